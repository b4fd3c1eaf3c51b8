"""A layer on codes: whole numbers are multiplied and added, and two scales come in at the very end."""

from __future__ import annotations

import torch
from torch import nn

from labkit.check.exercise import Exercise, normal
from labkit.quant.grids import Uniform
from labkit.quant.layers import RoundedLinear


def reference(x, zero, w, scale_x, scale_w, bias):
    layer = RoundedLinear(nn.Linear(*w.mT.shape))
    layer.bias.data, layer.codes = bias, w.int()
    layer.grid = Uniform(scale_w[:, None], torch.zeros(len(w), 1, dtype=torch.int32), 8, signed=True)
    layer.input.grid = Uniform(torch.tensor(scale_x), torch.tensor(zero, dtype=torch.int32), 8)
    return layer(layer.input.grid.decode(x.int())).detach()


task = Exercise(
    lesson="10_quantizing_a_vit",
    reference=reference,
    axes=("row", "output"),
    hints=("The input stands for scale_x · (x − zero).", "`(x.long() - zero) @ w.long().T` are the sums."),
    praise="That is what integer hardware does: whole numbers inside, and the scales at the very end.",
    source="labkit.quant.layers.RoundedLinear",
)


@task.stub
def integer_linear(x, zero, w, scale_x, scale_w, bias):
    """Write `integer_linear(x, zero, w, scale_x, scale_w, bias)`: the outputs (rows, out) of a layer from codes x
    (rows, in) of the inputs, which are bytes (uint8) whose zero point is `zero`, and codes w (out, in) of the weights,
    which are bytes with a sign (int8) and whose zero is 0. Sum integers first; `scale_w` and `bias` have one number for
    each output.
    """
    return torch.zeros(len(x), len(w))


@task.cases
def cases(dice):
    for rows, width, out, zero in ((2, 3, 2, 100), (3, 5, 3, 77), (4, 32, 6, 131)):
        x = torch.randint(0, 256, (rows, width), generator=dice, dtype=torch.uint8)
        w = torch.randint(-127, 128, (out, width), generator=dice, dtype=torch.int8)
        yield x, zero, w, 0.02, 0.01 * (1.2 + normal(dice, out).tanh()), normal(dice, out)


def sums_of(x, zero, w):
    return (x.long() - zero) @ w.long().T


@task.mistake("The bias is missing. It is in the units of the output, so it is added at the very end.")
def no_bias(x, zero, w, scale_x, scale_w, bias):
    return sums_of(x, zero, w) * (scale_x * scale_w)


@task.mistake(
    "The zero point is missing: code 0 does not stand for 0 here, code `zero` does. Take it off the inputs before you "
    "multiply."
)
def no_zero(x, zero, w, scale_x, scale_w, bias):
    return sums_of(x, 0, w) * (scale_x * scale_w) + bias


@task.mistake(
    "A byte cannot be negative: x − zero wraps round, and 99 − 100 becomes 255. Widen the codes first, with `x.long()`."
)
def wrapped(x, zero, w, scale_x, scale_w, bias):
    return (x - zero).long() @ w.long().T * (scale_x * scale_w) + bias


@task.mistake(
    "You take the zero point off each sum, once. It belongs to every code, so a sum holds it once for each weight: "
    "zero · Σ w."
)
def zero_off_the_sum(x, zero, w, scale_x, scale_w, bias):
    return (sums_of(x, 0, w) - zero) * (scale_x * scale_w) + bias


@task.mistake("You scale the bias as well. It is a number of the output already; only the sums of codes are scaled.")
def bias_scaled(x, zero, w, scale_x, scale_w, bias):
    return (sums_of(x, zero, w) + bias) * (scale_x * scale_w)


@task.mistake(
    "The scale of the weights is missing: a sum of codes is in units of scale_x · scale_w, one for each output, and "
    "you used scale_x alone."
)
def one_scale(x, zero, w, scale_x, scale_w, bias):
    return sums_of(x, zero, w) * scale_x + bias
