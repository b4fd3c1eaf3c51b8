"""Relevance: start with each token relevant to itself alone, and let every layer pass on what raises the class.

R = I; then R += mean over heads of (gradient x attention)+ times R, layer by layer: "Generic Attention-model
Explainability for Interpreting Bi-Modal and Encoder-Decoder Transformers", 2021. Unlike in a rollout, a layer
that does not matter for the class leaves R as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from labkit.explain.attention import Reader, Reductions, flow, helpful, read_out, reductions
from labkit.explain.patches import Target
from labkit.tracing.trace import Trace


def relevance_matrix(
    attns: Sequence[Tensor], gradients: Sequence[Tensor], reductions: Reductions | None = None
) -> Tensor:
    """(b, n_last, n_first): how relevant each first token is to each last one, for the class of the gradients."""
    passed = (helpful(attn, gradient) for attn, gradient in zip(attns, gradients, strict=True))
    mixes = (torch.eye(step.shape[-1]).to(step) + step for step in passed)
    return flow(mixes, reductions or [None] * len(attns))


def relevance(trace: Trace, target: Target = None, reader: Reader | None = None) -> Tensor:
    """(b, rows, columns): the relevance of each patch to what the head reads; needs a trace with `grads=True`."""
    matrix = relevance_matrix(trace.attention, trace.gradients(target), reductions(trace))
    return read_out(trace, matrix, reader)
