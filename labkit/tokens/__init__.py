"""Tokens kept: which tokens go on to the next block. A reducer goes into any block of any of our models."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from torch import nn

from labkit.evidence import Reducer
from labkit.layers import twin
from labkit.tokens.adaptive import KeepShare, packed
from labkit.tokens.cluster import Cluster
from labkit.tokens.criteria import MergeByCriteria
from labkit.tokens.deferred import DeferredMasking, PatchDropout
from labkit.tokens.energy import MergeByEnergy
from labkit.tokens.frequency import Shrink
from labkit.tokens.fuse import Fuse
from labkit.tokens.merge import Merge, unmerge
from labkit.tokens.pool import AveragePool, MaxPool, StridedPool
from labkit.tokens.prune import Keep
from labkit.tokens.sampling import Sample
from labkit.tokens.score import Score, class_attention
from labkit.tokens.words import VisualWords
from labkit.vit import Block, ViT

__all__ = [
    "AveragePool",
    "Cluster",
    "DeferredMasking",
    "Fuse",
    "Keep",
    "KeepShare",
    "MaxPool",
    "Merge",
    "MergeByCriteria",
    "MergeByEnergy",
    "PatchDropout",
    "Sample",
    "Score",
    "Shrink",
    "StridedPool",
    "VisualWords",
    "attach",
    "class_attention",
    "packed",
    "unmerge",
]


def attach(model: ViT, reducer: Reducer, layers: Iterable[int] | Literal["entry"]) -> ViT:
    """A copy of the model, sharing its weights, that reduces its tokens in the given blocks (0 is the first).

    "entry" is in front of the first block, where there is no attention yet. The parameters of a reducer that has
    some become parameters of the copy.
    """
    slim = twin(model)
    slim.blocks = nn.ModuleList(twin(block) for block in model.blocks)
    if isinstance(reducer, nn.Module):
        reducer.train(model.training)
    if layers == "entry":
        _put(slim, "entry", reducer)
        return slim
    for layer in layers:
        block = slim.blocks[layer]
        assert isinstance(block, Block)
        _put(block, "reducer", reducer)
    return slim


def _put(owner: nn.Module, name: str, reducer: Reducer) -> None:
    """Where torch held a module before, it takes nothing else."""
    owner._modules.pop(name, None)
    setattr(owner, name, reducer)
