"""Tokens kept: which tokens go on to the next block. A reducer goes into any block of any of our models."""

from __future__ import annotations

import copy
from collections.abc import Iterable

from torch import nn

from labkit.tokens.merge import Merge
from labkit.tokens.prune import Keep, Score, class_attention
from labkit.vit import Block, Reducer, ViT

__all__ = ["Keep", "Merge", "Score", "attach", "class_attention"]


def attach(model: ViT, reducer: Reducer, layers: Iterable[int]) -> ViT:
    """A copy of the model, sharing its weights, that reduces its tokens in the given blocks (0 is the first)."""
    slim = copy.copy(model)
    slim._modules = dict(model._modules)
    slim.blocks = nn.ModuleList(copy.copy(block) for block in model.blocks)
    for layer in layers:
        block = slim.blocks[layer]
        assert isinstance(block, Block)
        block.reducer = reducer
    return slim
