"""Every token takes its own way: in each block a router opens or shuts its way through attention and through the MLP.

"DiT: Efficient Vision Transformers with Dynamic Token Routing", 2023 (S391). A gate is max(0, tanh(·)). Shut, it is
exactly 0: the token passes as it is, and nothing is computed for it. Open, it weighs what the path adds. There the
paths lead to coarser grids as well; a plain ViT has one grid, and its tokens skip a block, ask, work, or both.

    slim = route(model, layers=range(2, 11))
    train(slim, batches, recipe, loss=routing_loss(0.6))            60 % of the cost of these paths

Only tokens with an open gate ask, but all are asked, so that gathering changes no result. While anyone asks, a block
makes keys and values for all its n tokens; a who ask and m who work cost 2 n d² + a (2 d² + 2 n d) + m (2 ratio d²)
MACs, and the router 2 d for each patch. In a batch q kᵀ has as many rows for every image as the busiest has.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from labkit.errors import LabkitError
from labkit.evidence import Evidence, Grid, Step
from labkit.layers import Attention, Block, Impl, log_sizes, outputs, twin
from labkit.vit import ViT

if TYPE_CHECKING:
    from labkit.data.batch import ImageSet
    from labkit.train import Loss


class TokenRouter(nn.Module):
    """Tokens (b, n, d) → gates (b, n, paths) from 0 to 1: max(0, tanh(·)), which learns wherever it is open.

    At first every gate is tanh(opening). It reads the direction of a token, not its length, which grows with depth.
    A way that is shut for every token of every image learns nothing any more.
    """

    def __init__(self, dim: int, paths: int = 2, opening: float = 2.0) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, paths)
        nn.init.zeros_(self.linear.weight)
        nn.init.constant_(self.linear.bias, opening)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(F.layer_norm(x, x.shape[-1:])).tanh().relu()


@dataclass
class Routed(Evidence):
    """What a routed block knew: its gates besides. Who did not ask has looked at nobody but itself."""

    gates: Tensor = field(kw_only=True)  # (b, rows, 2) for attention and the MLP; 1 for the prefix tokens

    def attention(self, rows: slice = slice(None)) -> Tensor:
        alone = torch.eye(self.q.shape[2], self.k.shape[2], dtype=self.q.dtype, device=self.q.device)[rows]
        return torch.where(self.gates[:, None, rows, :1] > 0, super().attention(rows), alone)


class RoutedBlock(Block):
    """A block with the weights of `block`: x += gate * mix(norm(x)); x += gate * mlp(norm(x)), token by token.

    "plain" computes everything and multiplies by the gates; "fast" computes it for those whose gate is open. Prefix
    tokens take every path, empty places none.
    """

    def __init__(self, block: Block, router: TokenRouter, impl: Impl = "fast") -> None:
        nn.Module.__init__(self)
        vars(self).update(vars(block))
        self._modules = dict(block._modules)
        self.router, self.impl = router, impl
        self.check()

    def check(self) -> None:
        attn = self.attn
        if not isinstance(attn, Attention) or attn.position is not None or self.after or self.reducer:
            raise LabkitError(
                "A block is routed if it has softmax attention, no position at its scores or behind it, and no token "
                "reducer; choose other layers."
            )
        dim, paths = self.router.linear.in_features, self.router.linear.out_features
        if (dim, paths) != (attn.proj.out_features, 2):
            raise LabkitError(
                f"The router opens {paths} paths for tokens of width {dim}; this block has two, attention and the "
                f"MLP, for tokens of width {attn.proj.out_features}: TokenRouter({attn.proj.out_features})."
            )

    def costs(self, n: int) -> tuple[int, int]:
        """MACs that one of n tokens pays on each path; keys and values are paid by the block."""
        assert isinstance(self.attn, Attention)
        d = self.attn.proj.out_features
        return 2 * d * d + 2 * n * d, sum(p.numel() for p in self.mlp.parameters() if p.ndim == 2)

    def gates(self, x: Tensor, sizes: Tensor | None, prefix: int) -> Tensor:
        gates = self.router(x[:, prefix:])
        gates = torch.cat([gates.new_ones(len(x), x.shape[1] - gates.shape[1], 2), gates], dim=1)
        return gates if sizes is None else gates * (sizes[:, : x.shape[1], None] > 0)

    def forward(
        self, x: Tensor, grid: Grid, sizes: Tensor | None = None, prefix: int = 0, rows: int | None = None
    ) -> Step:
        self.check()
        gates = self.gates(x[:, :rows], sizes, prefix)
        if self.impl == "plain":
            mixed, evidence = self.mix(x, grid, sizes, prefix, rows)
            x = x[:, :rows] + gates[..., :1] * mixed
            x = x + gates[..., 1:] * self.ls2(self.mlp(self.norm2(x)))
        else:
            ask, work = (gates > 0).unbind(dim=-1)
            mixed, evidence = self.mix_some(x, ask, sizes)
            x = put(x[:, :rows], ask, x[:, :rows][ask] + gates[..., :1][ask] * mixed)
            some = x[work]
            x = put(x, work, some + gates[..., 1:][work] * self.ls2(self.mlp(self.norm2(some[None])))[0])
        return Step(x, Routed(**vars(evidence), gates=gates), None, sizes)

    def mix_some(self, x: Tensor, ask: Tensor, sizes: Tensor | None) -> tuple[Tensor, Evidence]:
        """What attention adds to those who `ask` (b, rows), one after the other: (asking, d). All n may be asked."""
        attn = self.attn
        assert isinstance(attn, Attention)
        (b, n, d), rows, length = x.shape, ask.shape[1], ask.sum(dim=1, keepdim=True)
        if not ask.any():
            none = x.new_zeros(b, attn.heads, n, d // attn.heads)
            return x.new_zeros(0, d), Evidence(none[:, :, :rows], none, v=none)
        x = self.norm1(x)
        q, kv = outputs(attn.qkv, x[:, :rows][ask], 0, d), outputs(attn.qkv, x, d, 3 * d)
        q = attn.q_norm(rearrange(q, "a (h d) -> a h d", h=attn.heads))
        k, v = rearrange(kv, "b n (two h d) -> two b h n d", two=2, h=attn.heads)
        there = torch.arange(int(length.max()), device=x.device) < length  # in an image with fewer, places stay empty
        short, long = (put(q.new_zeros(b, w.shape[1], *q.shape[1:]), w, q).transpose(1, 2) for w in (there, ask))
        seen = Evidence(long, attn.k_norm(k), None if sizes is None else log_sizes(sizes)[:, None, None, :], v=v)
        mixed = F.scaled_dot_product_attention(short, seen.k, v, attn_mask=seen.bias).transpose(1, 2)[there]
        return self.ls1(attn.proj(attn.norm(mixed.flatten(1)))), seen


def put(x: Tensor, where: Tensor, rows: Tensor) -> Tensor:
    """x (b, n, ...) with these `rows` in the places `where` (b, n), one after the other."""
    return x.index_put((where,), rows.to(x.dtype))


def route(model: ViT, layers: Iterable[int], router: TokenRouter | None = None) -> ViT:
    """A copy of the model, sharing its weights, whose tokens choose their ways through the given blocks.

    Each block gets a router of its own. One `router` for all means early stopping: a token that was left as it is
    gets the same answer from then on. The last block is worth no router where only the class token is read behind it.
    """
    slim = twin(model)
    slim.blocks = nn.ModuleList(twin(block) for block in model.blocks)
    for layer in layers:
        block = model.blocks[layer]
        assert isinstance(block, Block)
        weight: Any = block.norm1.weight
        own = TokenRouter(len(weight)).to(weight) if router is None else router
        slim.blocks[layer] = RoutedBlock(block, own, model.impl)
    return slim


def budget_loss(gates: Tensor, cost: Tensor | Sequence[float], target: float) -> Tensor:
    """(share of the cost of all gates that the open ones have - target)², for `gates` (..., paths).

    A gate that is hardly open costs as much as one that is wide open, so it counts as 1; the gradient is the gate's.
    `cost` is that of each path, or of each path of each token. The mean is over the batch: images may differ.
    """
    if not 0 <= target <= 1:
        raise LabkitError(f"target={target} is not a share of the cost; expected a number from 0 to 1.")
    gates = gates.to(torch.promote_types(gates.dtype, torch.float32))
    opened = (gates > 0).to(gates) + (gates - gates.detach())  # in brackets 0, and not lost in rounding
    each = torch.as_tensor(cost, dtype=gates.dtype, device=gates.device).expand_as(gates)
    return ((opened * each).sum() / each.sum() - target).square()


def routing_loss(target: float, weight: float = 1.0) -> Loss:
    """For `labkit.train`: cross-entropy of the labels plus `weight` times the budget loss of all routed blocks."""
    from labkit.train import labels_of  # a dial needs the loop only when it is trained

    def loss(model: nn.Module, batch: ImageSet) -> tuple[Tensor, Tensor]:
        assert isinstance(model, ViT)
        seen = model.observe(batch.images)
        gates, costs = [], []
        for block, step in zip(model.blocks, seen.steps, strict=True):
            if isinstance(step.evidence, Routed):
                assert isinstance(block, RoutedBlock)
                gates.append(step.evidence.gates[:, model.prefix :].flatten(0, 1).float())
                costs.append(torch.tensor(block.costs(step.x.shape[1])).expand(len(gates[-1]), -1))
        if not gates:
            raise LabkitError("No block of this model is routed; make a routed copy with tokens.route(model, layers).")
        spent = budget_loss(torch.cat(gates), torch.cat(costs), target)
        return F.cross_entropy(seen.logits.float(), labels_of(batch)) + weight * spent, seen.logits.float()

    return loss
