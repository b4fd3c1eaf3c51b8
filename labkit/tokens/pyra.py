"""Merge pairs as ToMe does, but first let each token that moves be re-scaled by what is learned about its pair.

"PYRA: Parallel Yielding Re-Activation for Training-Inference Efficient Task Adaptation", 2024 (S279). A pair is seen
as the sum of its two tokens, normalised. One learned vector reads from it a weight for each pair; another, one number
for each pair from the most similar on, gives a weight for each channel; and the token that moves is multiplied by

    1 + (2 σ(pairs · token) - 1) · 2 σ(channel · pairs)

This is one plus a matrix of rank one, from 3 d + r numbers a block, and while `token` is zero it is plain merging. As
in the authors' code the token that stays is not re-scaled: several may join it. The backbone is frozen:

    model.head = nn.Linear(384, 10)                             # a new task
    slim = adapt(model, [16] * 11 + [None])                     # r for each block; a copy of which little is trained
    train(slim, batches, Recipe(steps=1000))
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit.errors import LabkitError
from labkit.evidence import Evidence, Groups
from labkit.tokens.merge import join, propose
from labkit.tokens.schedule import attach_schedule
from labkit.vit import Attention, ViT


class PYRA(nn.Module):
    """A reducer: r merges a block, as `Merge`, of tokens that are re-scaled first. `r=0` is the identity.

    Each block needs its own. Where a class token is read the last block's never learns: nobody reads its patches.
    """

    def __init__(self, dim: int, r: int) -> None:
        super().__init__()
        if r < 0:
            raise LabkitError(f"r={r} merges no pairs; expected a whole number from 0 on.")
        self.norm = nn.LayerNorm(dim)
        self.token = nn.Parameter(torch.zeros(dim))
        self.channel = nn.Parameter(torch.zeros(r))

    def weights(self, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """Pairs (b, r, d), the most similar first → (b, r, 1) for each pair and (b, 1, d) for each channel."""
        pairs = self.norm(pairs)
        token = 2 * torch.sigmoid(pairs @ self.token) - 1
        channel = 2 * torch.sigmoid(self.channel[: pairs.shape[1]] @ pairs)
        return token[..., None], channel[:, None]

    def modulate(self, source: Tensor, pairs: Tensor) -> Tensor:
        """The tokens `source` (b, r, d) that are about to move, re-scaled by what is in their pairs (b, r, d)."""
        token, channel = self.weights(pairs)
        return source + source * (token * channel)

    def reduce(self, x: Tensor, evidence: Evidence, sizes: Tensor | None, prefix: int) -> tuple[Tensor, Groups]:
        if x.shape[2] != len(self.token):
            raise LabkitError(f"This PYRA is made for tokens of width {len(self.token)}; these have {x.shape[2]}.")
        keys = F.normalize(evidence.k.mean(dim=1)[:, prefix:], dim=-1)
        scores = keys[:, ::2] @ keys[:, 1::2].transpose(1, 2)
        source, target = propose(scores, min(len(self.channel), scores.shape[2]))
        source, target = prefix + 2 * source, prefix + 1 + 2 * target
        mass = x if sizes is None else x * sizes[..., None]  # in the pair a token counts as it will in the mean
        place = source[..., None].expand(-1, -1, x.shape[2])
        pairs = mass.gather(1, place) + mass.take_along_dim(target[..., None], dim=1)
        groups = join(source, target, x.shape[1], sizes)
        return groups.mean(x.scatter(1, place, self.modulate(x.gather(1, place), pairs))), groups


def adapt(model: ViT, r: Sequence[int | None]) -> ViT:
    """A copy that merges r[i] pairs in block i, and of which only what re-scales them and the head are trained.

    Its weights are its own: were they shared, freezing them here would freeze them in the model.
    """
    attn = model.blocks[0].attn
    if not isinstance(attn, Attention):
        raise LabkitError("PYRA finds its pairs by the keys of plain attention, and these blocks have none.")
    weight = attn.qkv.weight
    slim = attach_schedule(copy.deepcopy(model), lambda pairs: PYRA(weight.shape[1], pairs).to(weight), r)
    slim.requires_grad_(False)
    for name, module in slim.named_modules():
        if isinstance(module, PYRA) or name in ("head", "head_dist"):
            module.requires_grad_(True)
    return slim
