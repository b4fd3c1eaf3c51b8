"""Blend n tokens into m by learned shares, and, while training, turn them back to be compared with a teacher's.

"Self-slimmed Vision Transformer", 2021 (SiT, S354). A small MLP reads from every token how much it has to say to each
of the m new ones; a softmax over the tokens makes shares of it, so that a new token is a mean of the old ones. What
was blended has no place in the image any more, so a second module learns to give n tokens back, which shall be those
of the model before it was slimmed; it is needed for training only. Later blocks attend to a new token by the number
of patches that it stands for, where the paper attends to it as to one.

    slim = attach(attach(model, TokenSlimming(384, 98), [3]), TokenSlimming(384, 49), [6])      196 → 98 → 49 patches
    student = Recalibrated(slim)
    train(student, batches, Recipe(steps=1000), loss=recalibrate(teacher=model))
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit.errors import LabkitError
from labkit.evidence import Evidence
from labkit.layers import MLP, log_sizes
from labkit.vit import ViT

if TYPE_CHECKING:
    from labkit.data.batch import ImageSet
    from labkit.train import Loss


class TokenSlimming(nn.Module):
    """A reducer: `m` new patch tokens, each a learned mean of all of them. Prefix tokens stay as they are.

    A token that stands for s patches has s shares, as if all of them were there.
    """

    def __init__(self, dim: int, m: int) -> None:
        super().__init__()
        if m < 1:
            raise LabkitError(f"m={m} leaves no token; expected a whole number from 1 on.")
        self.dim, self.m = dim, m
        self.says = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim // 2), nn.GELU(), nn.Linear(dim // 2, m))
        self.scale = nn.Parameter(torch.ones(1))  # the larger, the nearer a new token is to one old token

    def forward(self, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Patch tokens (b, n, d) → the new ones (b, m, d), and their shares (b, m, n); each row sums to one."""
        logits = self.scale * self.says(x)
        if sizes is not None:
            logits = logits + log_sizes(sizes)[..., None]
        shares = logits.softmax(dim=1).transpose(1, 2)
        return shares @ x, shares

    def reduce(self, x: Tensor, evidence: Evidence, sizes: Tensor | None, prefix: int) -> tuple[Tensor, Tensor]:
        b, patches = len(x), x.shape[1] - prefix
        if self.m > patches:
            raise LabkitError(f"m={self.m} tokens cannot be made of {patches} patch tokens; choose m <= {patches}.")
        slim, shares = self(x[:, prefix:], None if sizes is None else sizes[:, prefix:])
        alone = torch.eye(prefix, dtype=x.dtype, device=x.device).expand(b, -1, -1)
        how = torch.cat([F.pad(alone, (0, patches)), F.pad(shares, (prefix, 0))], dim=1)
        return torch.cat([x[:, :prefix], slim], dim=1), how


class ReverseTSM(nn.Module):
    """m slimmed tokens (b, m, d) → n tokens (b, n, d): an MLP across the tokens, then one across the channels."""

    def __init__(self, dim: int, m: int, n: int) -> None:
        super().__init__()
        self.m = m
        self.norm1 = nn.LayerNorm(dim)
        self.spread = nn.Sequential(nn.Linear(m, 4 * n), nn.GELU(), nn.Linear(4 * n, n))
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, 4 * dim)

    def forward(self, slim: Tensor) -> Tensor:
        if slim.shape[1] != self.m:
            raise LabkitError(f"This ReverseTSM turns {self.m} tokens back; {slim.shape[1]} arrived.")
        x = self.spread(self.norm1(slim).transpose(1, 2)).transpose(1, 2)
        return x + self.mlp(self.norm2(x))


def recalibration_loss(turned: Tensor, teacher: Tensor) -> Tensor:
    """The mean squared difference of the tokens that were turned back and the teacher's (b, n, d), which stay."""
    if turned.shape != teacher.shape:
        raise LabkitError(
            f"The tokens turned back have shape {tuple(turned.shape)}, the teacher's {tuple(teacher.shape)}; "
            "let the model teach as it was before it was slimmed, on images of the size that it was made for."
        )
    return F.mse_loss(turned, teacher.detach())


class Recalibrated(nn.Module):
    """A slimmed ViT with a `ReverseTSM` for each block whose tokens are slimmed: to be trained. `.model` ships."""

    def __init__(self, model: ViT) -> None:
        super().__init__()
        self.model, self.reverse = model, nn.ModuleList()
        n = model.grid[0] * model.grid[1]
        last = model.entry if isinstance(model.entry, TokenSlimming) else None
        for block in model.blocks:
            last = block.reducer if isinstance(block.reducer, TokenSlimming) else last
            self.reverse.append(nn.Identity() if last is None else ReverseTSM(last.dim, last.m, n))
        if last is None:
            raise LabkitError("No block of this model slims its tokens; attach a TokenSlimming first.")

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)


def recalibrate(teacher: ViT, tokens: float = 2.0, logits: float = 2.0) -> Loss:
    """The loss of a `Recalibrated`: of the labels, of the tokens behind each block, and of the logits.

    Tokens that are not slimmed yet are compared as they are. Both weights are those of the authors. The teacher is
    copied at once: a slimmed model shares its weights, and training will move them.
    """
    from labkit.train import labels_of  # a dial needs the loop only when it is trained

    teacher = copy.deepcopy(teacher).requires_grad_(False).eval()

    def loss(student: nn.Module, batch: ImageSet) -> tuple[Tensor, Tensor]:
        assert isinstance(student, Recalibrated)
        if len(teacher.blocks) != len(student.reverse):
            raise LabkitError(
                f"The teacher has {len(teacher.blocks)} blocks and the student {len(student.reverse)}; "
                "let the model teach as it was before it was slimmed."
            )
        seen, taught = student.model.observe(batch.images), teacher.observe(batch.images)
        apart = [
            recalibration_loss(reverse(ours.x[:, student.model.prefix :]), theirs.x[:, teacher.prefix :])
            for reverse, ours, theirs in zip(student.reverse, seen.steps, taught.steps, strict=True)
        ]
        said, wanted = seen.logits.float(), taught.logits.float()
        unlike = F.kl_div(said.log_softmax(-1), wanted.log_softmax(-1), reduction="batchmean", log_target=True)
        return F.cross_entropy(said, labels_of(batch)) + tokens * torch.stack(apart).mean() + logits * unlike, said

    return loss
