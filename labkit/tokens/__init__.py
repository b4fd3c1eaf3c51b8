"""Tokens kept: which tokens go on to the next block. A reducer goes into any block of any of our models."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Literal, TypeVar

from torch import nn

from labkit.evidence import Reducer
from labkit.tokens.adaptive import KeepShare, packed
from labkit.tokens.cluster import Cluster
from labkit.tokens.criteria import MergeByCriteria
from labkit.tokens.energy import MergeByEnergy
from labkit.tokens.frequency import Shrink
from labkit.tokens.fuse import Fuse
from labkit.tokens.merge import Merge, unmerge
from labkit.tokens.pool import AveragePool, MaxPool, StridedPool
from labkit.tokens.prune import Keep
from labkit.tokens.sampling import Sample
from labkit.tokens.score import Score, class_attention
from labkit.vit import Block, ViT

__all__ = [
    "AveragePool",
    "Cluster",
    "Fuse",
    "Keep",
    "KeepShare",
    "MaxPool",
    "Merge",
    "MergeByCriteria",
    "MergeByEnergy",
    "Sample",
    "Score",
    "Shrink",
    "StridedPool",
    "attach",
    "class_attention",
    "packed",
    "unmerge",
]


Module = TypeVar("Module", bound=nn.Module)


def attach(model: ViT, reducer: Reducer, layers: Iterable[int] | Literal["entry"]) -> ViT:
    """A copy of the model, sharing its weights, that reduces its tokens in the given blocks (0 is the first).

    "entry" is in front of the first block, where there is no attention yet. The parameters of a reducer that has
    some become parameters of the copy.
    """
    slim = _twin(model)
    slim.blocks = nn.ModuleList(_twin(block) for block in model.blocks)
    if layers == "entry":
        slim.entry = reducer
        return slim
    for layer in layers:
        block = slim.blocks[layer]
        assert isinstance(block, Block)
        block.reducer = reducer
    return slim


def _twin(module: Module) -> Module:
    """The same parts under a new roof: what is added to the copy is not added to the original."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    return twin
