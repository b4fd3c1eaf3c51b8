"""Patches that matter go slowly, through the whole block; the others fast, each moved as their one representative is.

"Evo-ViT: Slow-Fast Token Evolution for Dynamic Vision Transformer", 2021. The representative is the mean of the fast
patches, weighted by how much the class token looks at them, and what it has become more is added to each of them. No
patch is lost: one that was fast in this block may be slow in the next. As the class token may change its mind from
block to block, patches are ranked by a running mean of its attention.

    slim = slow_fast(model, keep=0.5, layers=range(4, 12))          196 → 98 + 1 → 196 patches in each block

The paper knows this block's attention to the slow patches only, when it is over, and ranks by it in the next; here
the class token is asked for all patches in front of the block (`labkit.tokens.squeeze`). The representative is
attended to by the number of its patches, in the paper as one token.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor

from labkit.errors import LabkitError
from labkit.evidence import Evidence
from labkit.tokens.fuse import Fuse
from labkit.tokens.score import class_attention
from labkit.tokens.squeeze import squeeze
from labkit.vit import ViT


@dataclass
class RunningAttention:
    """Two scores: `begin` is the class token's attention, `go_on` its mean with what the last block's score was.

    Between the blocks of a pass the last score is kept here, so they have to run in order and on the same patches.
    """

    momentum: float  # the weight of what was
    last: Tensor | None = field(default=None, repr=False)

    def begin(self, evidence: Evidence, prefix: int) -> Tensor:
        scores = class_attention(evidence, prefix)
        self.last = scores.detach()
        return scores

    def go_on(self, evidence: Evidence, prefix: int) -> Tensor:
        now = class_attention(evidence, prefix)
        if self.last is None or self.last.shape != now.shape:
            raise LabkitError(
                f"There is no earlier attention to these {len(now)} x {now.shape[1]} patches to go on from; run all "
                "blocks in order, with nothing between them that drops patches, or choose momentum=0."
            )
        scores = self.momentum * self.last + (1 - self.momentum) * now
        self.last = scores.detach()
        return scores


def slow_fast(model: ViT, keep: float, layers: Iterable[int], momentum: float = 0.5) -> ViT:
    """A copy of the model, sharing its weights, that in the given blocks computes the `keep` share of the patches.

    The share is rounded up. `keep=1` is the plain model; `momentum=0` asks each block anew.
    """
    if not 0 <= momentum < 1:
        raise LabkitError(f"momentum={momentum} is no weight of the past; expected a number from 0 to below 1.")
    running = RunningAttention(momentum)
    for i, layer in enumerate(sorted(layers, key=lambda layer: layer % len(model.blocks))):
        score = running.go_on if i and momentum else running.begin
        model = squeeze(model, Fuse(keep, score), [layer])
    return model
