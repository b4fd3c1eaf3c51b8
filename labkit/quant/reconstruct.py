"""Repair on a few images: which outputs matter, an MLP rebuilt to be easier to round, and rounding that is learned.

"APHQ-ViT: Post-Training Quantization with Average Perturbation Hessian Based Reconstruction for Vision Transformers",
2025 (S329). How far the loss's gradient moves when all outputs move a little is the row sum of its Hessian: it tells
which outputs matter even at the teacher itself, where the gradient, and with it its square, is zero. Weighted so, an
MLP is rebuilt with ReLU in place of GELU: its activations begin at 0, so that no code is spent on GELU's shallow dip.
"Up or Down? Adaptive Rounding for Post-Training Quantization", 2020, learns for each weight which neighbour it takes.

    importance = average_importance(perturbation_importance(distance_to_teacher(tail, z), z))
    relu_mlp = reconstruct_mlp(block.mlp, inputs, importance)
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit.errors import LabkitError
from labkit.layers import MLP
from labkit.quant.grids import Uniform, prepared
from labkit.quant.weights import output_error

STRETCH = 1.2  # the learned share runs a tenth beyond 0 and 1 and is clipped, so that both ends can be reached
PUSH = 0.5  # what an undecided weight costs at last, beside a row's error of 1 when rounded to nearest


def distance_to_teacher(tail: Callable[[Tensor], Tensor], z: Tensor) -> Callable[[Tensor], Tensor]:
    """A loss of z: the sum over images of KL(classes at the true z ‖ classes at the moved z). `tail` gives logits."""
    with torch.no_grad():
        teacher = tail(z).log_softmax(dim=-1)
    return lambda moved: F.kl_div(tail(moved).log_softmax(dim=-1), teacher, reduction="sum", log_target=True)


def perturbation_importance(loss: Callable[[Tensor], Tensor], z: Tensor, eps: float | None = None) -> Tensor:
    """(gradient at z + eps - gradient at z - eps) / 2 eps: the row sums of the Hessian of `loss`, in z's shape.

    For a Hessian that is diagonal they are its diagonal. By default eps is the cube root of the precision, times the
    size of z: the 1e-6 of the published code is lost in float32 as soon as a number is above 32.
    """
    if not z.isfinite().all():
        raise LabkitError("The outputs hold NaN or infinity, which have no neighbourhood; find where they arise.")
    if eps is None:
        eps = torch.finfo(z.dtype).eps ** (1 / 3) * max(1.0, z.abs().max().item())
    return (_gradient(loss, z + eps) - _gradient(loss, z - eps)) / (2 * eps)


def average_importance(h: Tensor) -> Tensor:
    """The mean size over the images (first axis), scaled to a mean of 1; alike for all where there is none at all."""
    size = h.abs().mean(dim=0, keepdim=True)
    return size / size.mean() if size.any() else torch.ones_like(size)


def weighted_error(out: Tensor, target: Tensor, h: Tensor | None = None) -> Tensor:
    """The mean squared error, each output counting `h` times; without one, or with ones, the plain one."""
    square = (out - target).square()
    return (square if h is None else h * square).mean()


def reconstruct_mlp(
    mlp: MLP, calib: Tensor, h: Tensor | None = None, steps: int = 300, lr: float = 1e-3, batch: int = 1024
) -> MLP:
    """A copy with ReLU, trained to give `mlp(calib)` again; `h` weighs its outputs (broadcast to their shape).

    Never worse on `calib` than the bare exchange of GELU for ReLU: if training fails, that is what comes back.
    """
    if not calib.numel():
        raise LabkitError("There are no inputs to rebuild the MLP on; pass at least one image's tokens.")
    with torch.no_grad():
        target = mlp(calib)
        weights = None if h is None else h.expand_as(target).flatten(0, -2)
    x, target = calib.flatten(0, -2), target.flatten(0, -2)
    swapped = copy.deepcopy(mlp)
    swapped.act = nn.ReLU()
    trained = copy.deepcopy(swapped)
    optimizer = torch.optim.Adam(trained.parameters(), lr)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    draw = torch.Generator().manual_seed(0)
    for _ in range(steps):
        rows = torch.randint(len(x), (batch,), generator=draw).to(x.device)
        with torch.enable_grad():
            loss = weighted_error(trained(x[rows]), target[rows], None if weights is None else weights[rows])
            gradients = torch.autograd.grad(loss, list(trained.parameters()))
        for parameter, gradient in zip(trained.parameters(), gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        decay.step()
    optimizer.zero_grad()
    with torch.no_grad():
        better = weighted_error(trained(x), target, weights) < weighted_error(swapped(x), target, weights)
    return trained if better else swapped


def adaptive_rounding(weight: Tensor, hessian: Tensor, grid: Uniform, steps: int = 300, lr: float = 0.05) -> Tensor:
    """Each weight on one of the two levels beside it, chosen together for the least ‖(W - Q) X‖²; H = X Xᵀ.

    The share of the way up is learned between 0 and 1, and pushed to the ends ever harder. A row that did not get
    better than by rounding to nearest is rounded to nearest.
    """
    nearest = grid.round(weight)
    work = prepared(weight.detach()) + torch.zeros_like(grid.scale)  # in the finer precision of the two
    below = (work / grid.scale).floor()
    share = (work / grid.scale - below).clamp(0.01, 0.99)
    hidden = torch.logit((share + (STRETCH - 1) / 2) / STRETCH).requires_grad_()
    curvature = hessian.to(work)
    size = ((work - nearest) @ curvature * (work - nearest)).sum(dim=1).clamp(min=torch.finfo(work.dtype).tiny)
    optimizer = torch.optim.Adam([hidden], lr)
    for step in range(steps):
        with torch.enable_grad():
            up = _upward(hidden)
            off = work - grid.decode((below + up + grid.zero).clamp(*grid.ends))
            loss = ((off @ curvature * off).sum(dim=1) / size).sum()
            late = max(0.0, step / steps - 0.2) / 0.8
            if late:
                loss = loss + PUSH * late * (1 - (2 * up - 1).abs().pow(2 + 18 * (1 - late))).sum()
            (hidden.grad,) = torch.autograd.grad(loss, [hidden])
        optimizer.step()
    codes = (below + (_upward(hidden.detach()) >= 0.5).to(below) + grid.zero).clamp(*grid.ends)
    learned = grid.decode(codes).to(weight.dtype)
    better = output_error(weight, learned, hessian) < output_error(weight, nearest, hessian)
    return torch.where(better[:, None], learned, nearest)


def _upward(hidden: Tensor) -> Tensor:
    return (hidden.sigmoid() * STRETCH - (STRETCH - 1) / 2).clamp(0, 1)


def _gradient(loss: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        return torch.autograd.grad(loss(z), z)[0]
