"""What is done to the channels in front of a linear layer is undone inside it: the columns carry the scale."""

from __future__ import annotations

import torch
from torch import nn

from labkit.check.exercise import Exercise, normal, uniform
from labkit.quant.fold import fold


def reference(weight, bias, scale, shift):
    linear = nn.Linear(*weight.mT.shape)
    linear.weight.data, linear.bias.data = weight, bias
    _, behind = fold(nn.LayerNorm(weight.shape[1]), linear, scale, shift)
    return behind.weight.detach(), behind.bias.detach()


task = Exercise(
    lesson="09_quantization",
    reference=reference,
    parts=("weight", "bias"),
    hints=(
        "x = scale · x' + shift. Put that into W x + b.",
        "A column of W belongs to an input channel: `weight * scale`.",
    ),
    praise="The layer puts out what it did, and what enters it has any size that you choose.",
    source="labkit.quant.fold.fold",
)


@task.stub
def fold_into_linear(weight, bias, scale, shift):
    """In front of a layer, x became (x − shift) / scale, with one scale and one shift for each input channel. Write
    `fold_into_linear(weight, bias, scale, shift)`: the weight (out, in) and the bias (out,) with which the layer puts
    out what it did.
    """
    return torch.zeros_like(weight), torch.zeros_like(bias)


@task.cases
def cases(dice):
    for out, width in ((2, 2), (3, 5), (6, 4), (5, 5)):
        yield normal(dice, out, width), normal(dice, out), uniform(dice, width) + 0.5, normal(dice, width)


@task.mistake(
    "You scaled the rows of the weight; they belong to the outputs. An input channel is a column, and what entered "
    "it divided has to be multiplied there."
)
def rows_scaled(weight, bias, scale, shift):
    return weight * scale[:, None], bias + weight @ shift


@task.mistake("You divided twice: x came in divided by its scale already, so the weight behind has to multiply by it.")
def divided(weight, bias, scale, shift):
    return weight / scale, bias + weight @ shift


@task.mistake("The sign of the shift is wrong: it was taken off in front, so behind it has to be added.")
def shift_taken_off(weight, bias, scale, shift):
    return weight * scale, bias - weight @ shift


@task.mistake(
    "The weight is right; the bias uses the new weight. The shift was taken off before the division, so it never met "
    "the scale: it passes through the old one."
)
def through_new_weight(weight, bias, scale, shift):
    return weight * scale, bias + (weight * scale) @ shift


@task.mistake("The weight is right, but the shift is lost: all outputs are off by a constant, which the bias can take.")
def bias_as_it_was(weight, bias, scale, shift):
    return weight * scale, bias.clone()


@task.mistake(
    "The shift has one number for each input, the bias one for each output. You added them as they are; the shift "
    "has to pass through the weight first."
)
def shift_as_it_is(weight, bias, scale, shift):
    return weight * scale, bias + shift
