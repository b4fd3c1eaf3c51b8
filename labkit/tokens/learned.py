"""Learn which tokens may go: a small network draws its decisions in training, and the gradient passes through them.

"DynamicViT: Efficient Vision Transformers with Dynamic Token Sparsification", 2021. In training a dropped token stays
in its place, where nobody sees it, so that all images of a batch have as many; in use the same network keeps the
`keep` share that it finds best, and the rest is gone. A loss holds the shares drawn in training to those kept in use.

    slim = attach(attach(model, LearnedDrop(192, 0.7), [3]), LearnedDrop(192, 0.7), [6])
    train(slim, batches, recipe, loss=dropping_loss(teacher=copy.deepcopy(model)))

Between two choices Gumbel-softmax is a sigmoid: two Gumbel numbers differ by the logit of a uniform one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit.distill import deit_loss
from labkit.errors import LabkitError
from labkit.evidence import Evidence, Groups, Observation, taken
from labkit.operations import inference
from labkit.tokens.score import highest, present
from labkit.vit import ViT

if TYPE_CHECKING:
    from labkit.data.batch import ImageSet
    from labkit.train import Loss


class Draws(nn.Module):
    """Uniform numbers which a resumed run repeats: the seed of the next draw is saved with the weights.

    It starts with a number of torch's own generator, as weights do, so that `torch.manual_seed` in front of the model
    says everything and no two of these modules draw alike. The CPU draws, for every device the same.
    """

    seed: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seed", torch.randint(2**31, ()))

    def forward(self, shape: torch.Size) -> Tensor:
        generator = torch.Generator().manual_seed(int(self.seed))
        self.seed += 1
        return torch.rand(shape, generator=generator, dtype=torch.float64)


class Predictor(nn.Module):
    """Tokens (b, n, d) → (b, n), the logit that a token should stay, from what it is and what the others are.

    Half of what is read from a token stays its own; the other half becomes the mean over the tokens still there.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim % 4 or dim < 4:
            raise LabkitError(f"Width {dim} does not divide into quarters; choose a multiple of 4.")
        self.dim = dim
        self.read = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU())
        self.judge = nn.Sequential(
            nn.Linear(dim, dim // 2), nn.GELU(), nn.Linear(dim // 2, dim // 4), nn.GELU(), nn.Linear(dim // 4, 1)
        )
        # Nearly all stay at first. Where little is left, what a hidden token would bring is told wrongly: in a softmax
        # over few a little of it seems worth more than all of it is.
        nn.init.constant_(self.judge[-1].bias, 2.0)  # type: ignore[arg-type]

    def forward(self, x: Tensor, sizes: Tensor | None) -> Tensor:
        own, common = self.read(x).chunk(2, dim=-1)
        if sizes is None:
            common = common.mean(dim=1, keepdim=True)
        else:
            share = sizes / sizes.sum(dim=1, keepdim=True)
            common = (share[..., None] * common).sum(dim=1, keepdim=True)
        return self.judge(torch.cat([own, common.expand_as(own)], dim=-1))[..., 0]


def at_least_one(kept: Tensor, scores: Tensor) -> Tensor:
    """`kept` (b, patches), and the patch with the highest of the `scores` where it would be none."""
    best = F.one_hot(scores.argmax(dim=1), kept.shape[1]).bool()
    return kept | (best & ~kept.any(dim=1, keepdim=True))


def check_width(x: Tensor, dim: int, name: str) -> None:
    if x.shape[-1] != dim:
        raise LabkitError(f"This {name} reads tokens of width {dim}, and these have {x.shape[-1]}; make it with that.")


class LearnedDrop(nn.Module):
    """A reducer that learns: keeps the `keep` share of the patches by its own judgement, and every prefix token.

    In training each patch is kept with the probability that the network gives it, at least one in any case.
    `keep` is a share of the patches that arrive; in use `keep=1` is the identity. Every block needs one of its own.
    """

    def __init__(self, dim: int, keep: float) -> None:
        super().__init__()
        if not 0 < keep <= 1:
            raise LabkitError(f"keep={keep} is not a share; expected a number above 0 and at most 1.")
        self.keep = keep
        self.predictor = Predictor(dim)
        self.draws = Draws()

    def reduce(self, x: Tensor, evidence: Evidence, sizes: Tensor | None, prefix: int) -> tuple[Tensor, Groups]:
        check_width(x, self.predictor.dim, "LearnedDrop")
        logits = self.predictor(x[:, prefix:], None if sizes is None else sizes[:, prefix:])
        if self.training:
            there = self.draw(logits, sizes, prefix)
            return x, Groups.masked(torch.cat([there.new_ones(len(x), prefix), there], dim=1))
        count = max(1, round(self.keep * logits.shape[1]))
        kept = highest(present(logits, sizes, prefix), count, prefix)
        return taken(x, kept), Groups.choice(kept, x.shape[1])

    def draw(self, logits: Tensor, sizes: Tensor | None, prefix: int) -> Tensor:
        """(b, patches) of 1 and 0, with the gradient of the sigmoid that was cut.

        What is gone already may be drawn here: sizes multiply, and so the earlier decision learns what it took away.
        """
        noisy = logits + self.draws(logits.shape).logit().to(logits)
        scores = present(noisy, sizes, prefix)
        hard = (noisy > 0) | at_least_one(scores > 0, scores)
        soft = noisy.sigmoid()
        return hard.to(soft) + (soft - soft.detach())


def ratio_loss(model: ViT, seen: Observation) -> Tensor:
    """How far the shares of the patches still there are from the product of the `keep`s so far.

    The mean square over images and over the blocks that learn to drop.
    """
    entry = seen.entry.there if isinstance(seen.entry, Groups) else None
    stages: list[tuple[object, Tensor | None]] = [(model.entry, entry)]
    stages += [(block.reducer, step.sizes) for block, step in zip(model.blocks, seen.steps, strict=True)]
    patches, target, errors = seen.grid[0] * seen.grid[1], 1.0, []
    for reducer, sizes in stages:
        if isinstance(reducer, LearnedDrop):
            if sizes is None:
                raise LabkitError("There is nothing to learn from what is dropped in use; call model.train() first.")
            target *= reducer.keep
            errors.append((sizes[:, model.prefix :].sum(dim=1) / patches - target).square().mean())
    if not errors:
        raise LabkitError(
            "This model has no LearnedDrop to train; attach one: tokens.attach(model, LearnedDrop(…), …)."
        )
    return torch.stack(errors).mean()


def dropping_loss(teacher: nn.Module | None = None, alpha: float = 0.5, ratio: float = 2.0) -> Loss:
    """For `labkit.train`: cross-entropy of the labels plus `ratio` times the ratio loss.

    With a teacher, the share `alpha` of the cross-entropy gives way to KL(teacher || student).
    """
    from labkit.train import labels_of  # a dial needs the loop only when it is trained

    def loss(model: nn.Module, batch: ImageSet) -> tuple[Tensor, Tensor]:
        assert isinstance(model, ViT)
        seen, labels = model.observe(batch.images), labels_of(batch)
        logits = seen.logits.float()
        if teacher is None:
            value = F.cross_entropy(logits, labels)
        else:
            value = deit_loss(logits, logits, labels, _taught(teacher, model, batch.images), "soft", alpha, tau=1.0)
        return value + ratio * ratio_loss(model, seen), logits

    return loss


def _taught(teacher: nn.Module, student: nn.Module, images: Tensor) -> Tensor:
    if {id(p) for p in teacher.parameters()} & {id(p) for p in student.parameters()}:
        raise LabkitError("The teacher shares weights with the student and would learn along; pass copy.deepcopy(it).")
    with inference(teacher):
        return teacher(images).float()
