"""Tokens that stick out: patches of no interest that the model uses as scratch paper, seen by their large norm.

"Vision Transformers Need Registers", 2023: large models keep global notes in a few background tokens; registers,
tokens without a patch, take that role over.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from labkit.explain.patches import inside_tokens, on_patches
from labkit.tracing.trace import Trace


class Outliers(NamedTuple):
    """For the tokens before the first block and after each one."""

    norms: Tensor  # (depth + 1, b, rows, columns); NaN where the patch was dropped
    scores: Tensor  # the same shape: how many robust standard deviations above the median
    flags: Tensor  # the same shape, bool
    prefix: Tensor  # (depth + 1, b, prefix): the norms of class and register tokens

    def shares(self) -> Tensor:
        """(depth + 1,): the share of the patches still there that stick out."""
        return self.flags.flatten(1).sum(dim=1) / self.norms.isfinite().flatten(1).sum(dim=1)


def robust_z(norms: Tensor, floor: float = 0.1) -> Tensor:
    """Distance above the row's median in units of 1.4826 x median absolute deviation, the σ of a normal bulk.

    The unit is at least `floor` x the median, or tokens that are nearly equal would all stick out. NaN is left out.
    """
    median = norms.nanmedian(dim=-1, keepdim=True).values
    spread = (norms - median).abs().nanmedian(dim=-1, keepdim=True).values
    return (norms - median) / torch.maximum(1.4826 * spread, floor * median)


def outliers(trace: Trace, threshold: float = 5.0) -> Outliers:
    """Which patch tokens have a norm far above that of the other patches of the same image and depth."""
    norms, prefix = [], []
    for depth, x in enumerate(trace.tokens):
        size = x.float().norm(dim=-1)
        norms.append(on_patches(size, inside_tokens(trace, depth)))
        prefix.append(size[:, : trace.layers[0].prefix])
    joined = torch.stack(norms)
    scores = robust_z(joined)
    joined, scores = joined.unflatten(2, trace.patches), scores.unflatten(2, trace.patches)
    return Outliers(joined, scores, scores > threshold, torch.stack(prefix))
