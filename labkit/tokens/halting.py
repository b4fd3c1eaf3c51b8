"""Every token stops when it has had enough: its first channel says after each block how likely it is to halt there.

"A-ViT: Adaptive Tokens for Efficient Vision Transformer", 2021. With h = sigmoid(scale * x[0] + shift), and not one
parameter more, a token halts in the block in which its h add up to 1 - eps; what was left of 1 then counts for that
block, and the rest for none. The answer is read from the mean of the class token's states, weighted by these
probabilities. In training who halted stays in place, where nobody sees it; in use it leaves, so that images of one
batch keep different numbers.

    slim = HaltingViT(model, scale=10, shift=-30)
    train(slim, batches, recipe, loss=halting_loss(depth=8))
    depths(slim.eval().observe(images))                         how many blocks each token went through

Behind the block in which the class token halts, nothing can change the answer: the image's other tokens halt there,
too, where the authors let them go on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit.errors import LabkitError
from labkit.evidence import Grid, Groups, Observation, Step
from labkit.tokens.adaptive import keep_where
from labkit.vit import ViT

if TYPE_CHECKING:
    from labkit.data.batch import ImageSet
    from labkit.train import Loss


class HaltingViT(ViT):
    """A copy of the model, sharing its weights, whose tokens halt by themselves.

    `shift=-inf` never halts, and is the model. Where tokens could halt and merely do not, they are the model's as
    well, but earlier states of the class token have their share in the answer.
    """

    def __init__(self, model: ViT, scale: float = 10.0, shift: float = -30.0, eps: float = 0.01) -> None:
        if type(model) is not ViT or model.pool != "class":
            raise LabkitError('Halting needs a plain ViT that reads its class token alone; make it with pool="class".')
        if not 0 <= eps < 1:
            raise LabkitError(f"eps={eps} is not a rest that may be left of 1; expected at least 0 and less than 1.")
        nn.Module.__init__(self)
        vars(self).update(vars(model))
        self._modules = dict(model._modules)
        self.scale, self.shift, self.eps = scale, shift, eps

    def halt(self, x: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
        """The probability (b, n) to halt in this block, behind which the tokens are x, and what is left of 1 then.

        `left` (b, n) is what was left before; 0 for those who have halted.
        """
        h = (self.scale * x[..., 0].to(left) + self.shift).sigmoid()
        halts = left - h <= self.eps
        halts = halts | halts[:, :1]  # where the class token halts, all do
        return torch.where(halts, left, h), torch.where(halts, 0, left - h)

    def steps(self, x: Tensor, grid: Grid, rows: int | None = None, sizes: Tensor | None = None) -> Iterator[Step]:
        """Run the blocks one by one; the class token that leaves the last is the weighted mean of its states."""
        left, mean = self.whole(x, sizes), torch.zeros_like(x[:, :1])
        for i, block in enumerate(self.blocks, start=1):
            if block.reducer is not None:
                raise LabkitError(
                    "A block of this model reduces its tokens already; let them halt in one that does not."
                )
            final = i == len(self.blocks)
            step = block(x, grid, sizes, self.prefix, rows if final else None)
            share, left = (left, left) if final else self.halt(step.x, left)
            mean = mean + share[:, :1, None].to(x) * step.x[:, :1]
            if final:
                yield step._replace(x=torch.cat([mean, step.x[:, 1:]], dim=1))
                return
            x, how = step.x, None
            if self.training or not (left > 0).all():
                x, how = self.leave(x, left > 0)
                left = how.total(left[..., None])[..., 0]
                if sizes is not None or how.there is not None:
                    sizes = how.sizes(x.new_ones(step.x.shape[:2]) if sizes is None else sizes)
            yield Step(x, step.evidence, how, sizes)

    def leave(self, x: Tensor, there: Tensor) -> tuple[Tensor, Groups]:
        """The tokens that go on; prefix tokens stay in any case."""
        if not self.training:
            return keep_where(there[:, self.prefix :], x, self.prefix)
        there = torch.cat([torch.ones_like(there[:, : self.prefix]), there[:, self.prefix :]], dim=1)
        return x, Groups.masked(there.to(x))

    @staticmethod
    def whole(x: Tensor, sizes: Tensor | None) -> Tensor:
        """What is left of 1 at first, (b, n), in enough precision to add up: nothing in an empty place."""
        left = torch.ones_like(x[..., 0], dtype=torch.promote_types(x.dtype, torch.float32))
        return left if sizes is None else left * (sizes > 0)


def depths(seen: Observation) -> Tensor:
    """(b, n): how many blocks each token that entered the first one went through, in training and in use."""
    more = torch.zeros_like(seen.steps[-1].x[..., 0])
    for step in reversed(seen.steps):
        more = more if step.sizes is None else more * (step.sizes > 0)
        more = 1 + (step.how.spread(more[..., None])[..., 0] if isinstance(step.how, Groups) else more)
    return more


def probabilities(model: HaltingViT, seen: Observation) -> tuple[Tensor, Tensor]:
    """With what probability each token halts in each block, (blocks, b, n), and in which it does, (b, n) from 1.

    Over the blocks the probabilities add up to 1. It takes an observation in training.
    """
    if not model.training:
        raise LabkitError("Who has halted is gone in use, and cannot tell when; call model.train() first.")
    left = model.whole(seen.embedded, seen.entry.there if isinstance(seen.entry, Groups) else None)
    shares, last = [], torch.ones_like(left)
    for step in seen.steps[:-1]:
        share, left = model.halt(step.x, left)
        shares.append(share)
        last = last + (left > 0)
    return torch.stack([*shares, left]), last


def ponder_loss(shares: Tensor, last: Tensor) -> Tensor:
    """The mean over tokens of the block in which they halt plus what was left for it; arguments of `probabilities`.

    Only what was left has a gradient: the less, the sooner a token halts.
    """
    return (last + shares.gather(0, last.long()[None] - 1)[0]).mean()


def prior_loss(shares: Tensor, depth: float) -> Tensor:
    """KL(bell || where tokens halt): a bell of width 1 around block `depth`, counted from 1, and the mean of `shares`.

    The authors compare with the mean of h in each block, divided by its sum; ours is a distribution as it is.
    """
    block = torch.arange(1, len(shares) + 1, device=shares.device, dtype=shares.dtype)
    bell = (-(block - depth).square() / 2).softmax(dim=0)
    halting = shares.mean(dim=(1, 2)).clamp_min(torch.finfo(shares.dtype).tiny)
    return F.kl_div(halting.log(), bell, reduction="sum")


def halting_loss(depth: float, ponder: float = 5e-4, prior: float = 0.1) -> Loss:
    """For `labkit.train`: cross-entropy of the labels plus the ponder loss and the prior loss, by their weights."""
    from labkit.train import labels_of  # a dial needs the loop only when it is trained

    def loss(model: nn.Module, batch: ImageSet) -> tuple[Tensor, Tensor]:
        assert isinstance(model, HaltingViT)
        seen = model.observe(batch.images)
        shares, last = probabilities(model, seen)
        spent = ponder * ponder_loss(shares, last) + prior * prior_loss(shares, depth)
        return F.cross_entropy(seen.logits.float(), labels_of(batch)) + spent, seen.logits.float()

    return loss
