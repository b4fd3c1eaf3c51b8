"""Train on a random share of the patches: dropped at once they are lost, dropped after a light mixer they are heard.

"PatchDropout: Economizing Vision Transformers Using Patch Dropout", 2022, drops patches in front of the first block;
they have their positions already, so those that stay know where they are. "Stretching Each Dollar: Diffusion Training
from Scratch on a Micro-Budget", 2024 (S053) lets a small transformer mix all patches first: what is dropped has been
told to the others, and its pixels get a gradient. At inference nothing is dropped.

    draw = torch.Generator().manual_seed(0)
    slim = tokens.attach(model, PatchDropout(0.5, draw), "entry").train()
    slim = tokens.attach(model, DeferredMasking(PatchMixer(384, 6), 0.25, draw), "entry").train()
    tokens.attach(model, PatchDropout(0.25, draw), [1])          the model's own first blocks are the mixer

With the share `keep` of n patches the blocks compute keep times their linear part, 12 keep n d², and keep² times
their attention, 2 keep² n² d (a class token aside); the mixer is paid in full. `labkit.cost` counts inference, so
that it sees neither saving: ask it for `block_macs(prefix + kept(n, keep), d)`, or count `Keep(keep, random(draw))`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from labkit.errors import LabkitError
from labkit.evidence import Evidence, Grid, Groups, taken
from labkit.layers import Block, init_weights
from labkit.tokens.score import highest, present
from labkit.tokens.words import patch_grid


def kept(patches: int, keep: float) -> int:
    """How many of the patches the share `keep` is: never none."""
    return max(1, round(keep * patches))


class PatchDropout(nn.Module):
    """A reducer: in training a random share `keep` of the patches of each image goes on, in order; in eval mode all.

    Nothing is learnt by dropping, so the others are really left out, and not computed. `keep=1` is the identity.
    """

    def __init__(self, keep: float, generator: torch.Generator) -> None:
        super().__init__()
        if not 0 < keep <= 1:
            raise LabkitError(f"keep={keep} is not a share; expected a number above 0 and at most 1.")
        self.keep, self.generator = keep, generator

    def reduce(self, x: Tensor, evidence: Evidence, sizes: Tensor | None, prefix: int) -> tuple[Tensor, Groups]:
        b, n = x.shape[:2]
        if not self.training:
            return x, Groups.choice(torch.arange(n, device=x.device).expand(b, n), n)
        chance = torch.randn(b, n - prefix, generator=self.generator, device=self.generator.device)
        score = present(-chance.to(x.device), sizes, prefix)  # the lowest stay: from one seed, those of timm
        stay = highest(score, kept(n - prefix, self.keep), prefix)
        return taken(x, stay), Groups.choice(stay, n)


class PatchMixer(nn.Module):
    """A few blocks of attention among all patches: (x, grid) → x. `depth=0` mixes nothing."""

    def __init__(self, dim: int, heads: int, depth: int = 1, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(dim, heads, mlp_ratio) for _ in range(depth))
        self.apply(init_weights)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        for block in self.blocks:
            x = block(x, grid).x
        return x


class DeferredMasking(nn.Module):
    """A reducer for the entry: `mixer(x, grid) → x` on all patch tokens, and then PatchDropout.

    The mixer stays at inference, as a part of the model. The map says which tokens stay, not what they have heard.
    """

    def __init__(self, mixer: nn.Module, keep: float, generator: torch.Generator) -> None:
        super().__init__()
        self.mixer = mixer
        self.dropout = PatchDropout(keep, generator)

    def reduce(self, x: Tensor, evidence: Evidence, sizes: Tensor | None, prefix: int) -> tuple[Tensor, Groups]:
        mixed = self.mixer(x[:, prefix:], patch_grid(evidence, prefix))
        return self.dropout.reduce(torch.cat([x[:, :prefix], mixed], dim=1), evidence, sizes, prefix)
