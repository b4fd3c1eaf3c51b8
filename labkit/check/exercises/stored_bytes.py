"""What a weight of few bits really takes: its codes, and the scales that say what they stand for."""

from __future__ import annotations

import torch
from torch import nn

from labkit.check.exercise import Exercise
from labkit.quant.layers import RoundedLinear
from labkit.quant.weights import weight_grid


def reference(outputs, inputs, bits, group):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = RoundedLinear(nn.Linear(inputs, outputs))
    layer.freeze(weight_grid(layer.weight, bits, group, symmetric=True))
    return layer.weight_bytes


task = Exercise(
    lesson="10_quantizing_a_vit",
    reference=reference,
    tolerance=1e-9,  # bytes, not measurements
    hints=("Eight bits are a byte.", "There are `outputs * inputs / group` scales."),
    praise="4 bits in groups of 32 are 5 bits for each weight in truth.",
    source="labkit.quant.layers.RoundedLinear.weight_bytes",
)


@task.stub
def stored_bytes(outputs, inputs, bits, group):
    """Write `stored_bytes(outputs, inputs, bits, group)`: the bytes of a weight (outputs, inputs) whose codes have
    `bits` bits with none to spare, and where `group` inputs of an output share one scale of 4 bytes.
    """
    return 0.0


@task.cases
def cases(dice):
    yield from ((3, 8, 4, 4), (6, 12, 2, 12), (5, 64, 3, 16), (512, 128, 8, 32))


@task.mistake("Those are bits, all of them: a byte has eight.")
def in_bits(outputs, inputs, bits, group):
    return 8 * reference(outputs, inputs, bits, group)


@task.mistake(
    "The scales are missing. Without them codes stand for nothing, and in small groups they are a good part of the "
    "file."
)
def no_scales(outputs, inputs, bits, group):
    return outputs * inputs * bits / 8


@task.mistake("You have one scale for each output, whatever the group: an output has inputs / group of them.")
def scale_for_each_output(outputs, inputs, bits, group):
    return outputs * inputs * bits / 8 + 4 * outputs


@task.mistake("Your scales take half a byte: they have 4 bytes each, so only the codes are divided by eight.")
def scales_of_four_bits(outputs, inputs, bits, group):
    return (outputs * inputs * bits + 4 * outputs * inputs / group) / 8


@task.mistake(
    "You give every code a byte, as a tensor of int8 would. In the file no bit is spare: four codes of 2 bits share a "
    "byte."
)
def a_byte_for_each_code(outputs, inputs, bits, group):
    return outputs * inputs + 4 * outputs * inputs / group


@task.mistake(
    "You have one scale for each group of inputs, shared by all outputs. Each output has its own: multiply by the "
    "outputs."
)
def shared_by_all_outputs(outputs, inputs, bits, group):
    return outputs * inputs * bits / 8 + 4 * inputs / group
