"""Rounding a weight matrix: each number to its nearest level, or each column so that later ones repair its error.

"GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", 2022 (S254). Not the weights' error
counts but the output's, ‖(W - Q) X‖², and inputs are correlated: what rounding one column spoils, others can make up
for. With H⁻¹ = Uᵀ U and U upper triangular, columns are rounded from left to right:

    share = (w_i - round(w_i)) / U_ii        w_j -= share · U_ij  for all j > i        ‖(W - Q) X‖² = Σ share²

    grid = weight_grid(layer.weight, bits=4)
    rounded, error = gptq(layer.weight, layer_hessian(inputs), grid)
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor

from labkit.errors import LabkitError
from labkit.quant.grids import Uniform, prepared

Per = Literal["tensor", "channel"] | int


def weight_grid(weight: Tensor, bits: int, per: Per = "channel", symmetric: bool = False) -> Uniform:
    """The grid between the extremes of the tensor, of each output channel, or of each group of `per` inputs."""
    if not weight.numel():
        raise LabkitError("The weight is empty; there is no range to make a grid from.")
    if per == "tensor":
        return Uniform.of(weight.amin(), weight.amax(), bits, symmetric)
    if per == "channel":
        rest = tuple(range(1, weight.ndim))
        return Uniform.of(weight.amin(rest, keepdim=True), weight.amax(rest, keepdim=True), bits, symmetric)
    if not isinstance(per, int) or per < 1 or weight.ndim != 2 or weight.shape[1] % per:
        raise LabkitError(
            f'per={per!r} does not cut a weight of shape {tuple(weight.shape)}; choose "tensor", "channel" '
            "or, for a matrix, a number of inputs that divides its width."
        )
    low, high = rearrange(weight, "out (group d) -> out group d", d=per).aminmax(dim=2)
    return Uniform.of(low.repeat_interleave(per, dim=1), high.repeat_interleave(per, dim=1), bits, symmetric)


def group_width(grid: Uniform) -> int:
    """How many neighbouring inputs share a scale and a zero, in every row of a weight's grid."""
    columns = torch.cat([grid.scale, grid.zero.to(grid.scale)])
    edges = (columns[:, 1:] != columns[:, :-1]).any(dim=0).nonzero().flatten() + 1
    return math.gcd(columns.shape[1], *edges.tolist())


def round_to_nearest(weight: Tensor, bits: int, per: Per = "channel", symmetric: bool = False) -> Tensor:
    """Each weight to the nearest level of its own grid: the baseline that knows no inputs."""
    return weight_grid(weight, bits, per, symmetric).round(weight)


def layer_hessian(x: Tensor | Iterable[Tensor]) -> Tensor:
    """Σ x xᵀ over the inputs (…, d) of a layer, in one tensor or in batches: (d, d), float64.

    Half of the second derivative of the layer's squared output error, the same for every row of its weight.
    """
    total: Tensor | None = None
    for batch in [x] if isinstance(x, Tensor) else x:
        rows = prepared(batch.detach()).flatten(0, -2)
        gram = (rows.mT @ rows).double()
        total = gram if total is None else total + gram
    if total is None:
        raise LabkitError("There are no inputs to learn the Hessian from; pass at least one batch.")
    return total


def output_error(weight: Tensor, rounded: Tensor, hessian: Tensor) -> Tensor:
    """‖(W - Q) X‖² of each row, from H = X Xᵀ alone: (out,)."""
    difference = weight.double() - rounded.double()
    return ((difference @ hessian.double()) * difference).sum(dim=1)


@torch.no_grad()
def gptq(weight: Tensor, hessian: Tensor, grid: Uniform, block: int = 128, damp: float = 0.01) -> tuple[Tensor, Tensor]:
    """The rounded weight, all on `grid`, and the output error of each row, as the damped Hessian sees it.

    `block` columns repair each other at once and the rest in one product: faster, the same result. Where inputs are
    uncorrelated it is rounding to nearest, and a weight that is on the grid stays as it is.
    """
    if weight.ndim != 2 or hessian.shape != (weight.shape[1], weight.shape[1]):
        raise LabkitError(
            f"Weight {tuple(weight.shape)} and Hessian {tuple(hessian.shape)} do not fit; expected (out, d) and (d, d)."
        )
    factor, left = inverse_factor(hessian, damp), weight.to(torch.float64, copy=True)
    scale, zero = grid.scale.expand_as(weight), grid.zero.expand_as(weight)
    rounded, error = torch.empty_like(weight), left.new_zeros(len(weight))
    for start in range(0, weight.shape[1], block):
        stop = min(start + block, weight.shape[1])
        shares = left.new_zeros(len(weight), stop - start)
        for i in range(start, stop):
            column = replace(grid, scale=scale[:, i], zero=zero[:, i])
            rounded[:, i] = column.round(left[:, i].to(weight.dtype))
            share = (left[:, i] - rounded[:, i]) / factor[i, i]
            left[:, i + 1 : stop] -= torch.outer(share, factor[i, i + 1 : stop])
            shares[:, i - start] = share
        left[:, stop:] -= shares @ factor[start:stop, stop:]
        error += shares.square().sum(dim=1)
    return rounded, error


def inverse_factor(hessian: Tensor, damp: float) -> Tensor:
    """U, upper triangular, with Uᵀ U = (H + damp · mean(diagonal) · 1)⁻¹; a dead input, always 0, gets a 1 of its own.

    H is never inverted: H = R Rᵀ, the Cholesky factor from the last corner up, and U = R⁻¹.
    """
    hessian = hessian.double()
    if not hessian.isfinite().all() or not damp >= 0:
        raise LabkitError(f"The Hessian holds NaN or infinity, or damp={damp} is negative; check the layer's inputs.")
    diagonal = hessian.diagonal()
    hessian = hessian + torch.diag(damp * diagonal.mean() + (diagonal == 0).to(hessian))
    flipped, failed = torch.linalg.cholesky_ex(hessian.flip(0, 1))
    if failed:
        raise LabkitError(
            f"With damp={damp} the Hessian is singular: some inputs determine others. Raise damp, as to 0.01, "
            "or calibrate on more tokens than the layer has inputs."
        )
    identity = torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device)
    factor: Tensor = torch.linalg.solve_triangular(flipped.flip(0, 1), identity, upper=True)
    return factor
