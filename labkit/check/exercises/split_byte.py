"""An 8-bit code as two 4-bit codes with a sign: so 4-bit multipliers compute 8-bit products."""

from __future__ import annotations

import torch

from labkit.check.exercise import Exercise
from labkit.quant.int4_training import bit_split

task = Exercise(
    lesson="09_quantization",
    reference=bit_split,
    parts=("high half", "low half"),
    hints=("high is codes / 16, rounded to the nearest, halves upwards.", "`(codes + 8) // 16`; low is what is left."),
    praise="A product of 8-bit codes is now two products of 4-bit ones.",
)


@task.stub
def split_byte(codes):
    """A chip multiplies 4-bit codes, −8 to 7, and you have 8-bit ones. Write `split_byte(codes)`: whole numbers high
    and low, both from −8 to 7, with 16 · high + low = codes. The codes go from −128 to 119.
    """
    return torch.zeros_like(codes), torch.zeros_like(codes)


@task.cases
def cases(dice):
    yield (torch.tensor([5, 8, 9, -8, -9, 119]),)
    yield (torch.randint(-128, 120, (3, 5), generator=dice),)
    yield (torch.arange(-128, 120),)


@task.mistake(
    "Your low half goes from 0 to 15, as without a sign, and a 4-bit code ends at 7. Let high be the nearest multiple "
    "of 16, not the one below."
)
def low_without_sign(codes):
    return codes // 16, codes % 16


@task.mistake(
    "8 becomes 0 and 8, and 8 is one too many for low: `round` takes halves to the even number, and here they have to "
    "go up."
)
def halves_to_even(codes):
    high = (codes / 16).round().long()
    return high, codes - 16 * high


@task.mistake(
    "Your low half reaches from −15 to 15: you cut towards 0. With the nearest multiple of 16 what is left over is at "
    "most 8 in size."
)
def cut_towards_zero(codes):
    high = torch.div(codes, 16, rounding_mode="trunc")
    return high, codes - 16 * high


@task.mistake(
    "high is right. low is `codes % 16`, which never is negative: where high was rounded up, 16 · high + low is 16 "
    "too much."
)
def low_by_remainder(codes):
    return (codes + 8) // 16, codes % 16


@task.mistake("high is right. What is left is codes − 16 · high: a unit of high stands for 16, not for 1.")
def high_taken_off_once(codes):
    high = (codes + 8) // 16
    return high, codes - high


@task.mistake("high has decimals, and a code is a whole number: divide with `//`, which rounds down, after adding 8.")
def with_decimals(codes):
    high = (codes + 8) / 16
    return high, codes - 16 * high
