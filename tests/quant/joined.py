"""What the tests of the joined model share: recipes of every kind, and a small model rounded by each."""

from __future__ import annotations

import functools

import torch

from labkit.quant import Recipe, quantize
from labkit.vit import ViT
from tests import checks, oblong

RECIPES = {
    "W8/A8": Recipe(attention=8),
    "W3 affine": Recipe(3, 6, attention=6, symmetric=False),
    "tensor": Recipe(4, 4, per="tensor", ends="same"),
    "groups": Recipe(4, 8, per=8),
    "weights": Recipe(4, None, ends=None),
    "inputs": Recipe(None, 8, attention=8),
    "floats": Recipe("e4m3", "e5m2"),
    "tokens": Recipe(8, 8, per_token=True),
    "channels": Recipe(4, 4, attention=4, fold="channels", softmax="adalog", gelu="twin", centred=True),
    "rotated": Recipe(8, 8, fold="rotate", clip="percentile"),
    "smooth": Recipe(4, 8, fold="smooth", rounding="gptq", correct_bias=True),
}
IMAGES = oblong.images(6)


@functools.cache
def made(name: str) -> ViT:
    """Made once for all tests; whoever changes it changes a copy."""
    return quantize(oblong.model(), RECIPES[name], IMAGES)


def close(a: torch.Tensor, b: torch.Tensor, tol: float) -> None:
    """Within a share of the largest number."""
    checks.equal(a, b, tol * b.abs().max().item())
