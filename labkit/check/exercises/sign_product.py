"""A dot product of signs without multiplying: those that agree less those that differ, and an xor finds the latter."""

from __future__ import annotations

import torch

from labkit.check.exercise import Exercise, normal
from labkit.operations import PRODUCTS
from labkit.quant import binary
from labkit.quant.float_walk import FloatWalk


def product_and_how(fn, a, b):
    """The result, and how many matrix products it took: the exercise is to do without."""
    with FloatWalk() as walk:
        result = fn(a, b)
    return result, sum(walk.all[kind] for kind in PRODUCTS)


task = Exercise(
    lesson="09_quantization",
    reference=lambda a, b: binary.xnor_popcount_dot(binary.pack(a), binary.pack(b), a.shape[1]).long(),
    axes=("row of a", "row of b"),
    parts=("dot product", "number of matrix products"),
    hints=(
        "Each place that agrees adds 1, each that differs takes 1 off.",
        "`a[:, None] ^ b[None]` is (n, m, d); count it over d.",
    ),
    praise="With 64 signs in a word of memory that is one xor and a count in place of 64 products.",
    source="labkit.quant.binary.xnor_popcount_dot",
    observe=product_and_how,
)


@task.stub
def sign_product(a, b):
    """Two rows of signs, as booleans: True is +1, False is −1. Write `sign_product(a, b)`: their dot product, a whole
    number for each pair of rows of a (n, d) and b (m, d), without multiplying anything: only `^` (which is true where
    two booleans differ), sums and differences; a factor of 2 is a shift, and allowed.
    """
    return torch.zeros(len(a), len(b), dtype=torch.long)


@task.cases
def cases(dice):
    for n, m, d in ((1, 2, 3), (3, 2, 5), (4, 6, 21)):
        yield normal(dice, n, d) > 0, normal(dice, m, d) > 0.3


@task.mistake(
    "You count the places that agree: a place that differs adds 0 in yours, and should take 1 off. Take the differing "
    "ones off twice."
)
def agreeing(a, b):
    return a.shape[1] - (a[:, None] ^ b[None]).sum(dim=-1)


@task.mistake("You count the places that differ. A row times itself gives 0 then, and should give d.")
def differing(a, b):
    return (a[:, None] ^ b[None]).sum(dim=-1)


@task.mistake("The sign is turned round: places that agree add 1, since (−1) · (−1) is 1 as well.")
def turned_round(a, b):
    return 2 * (a[:, None] ^ b[None]).sum(dim=-1) - a.shape[1]


@task.mistake(
    "`&` finds the places where both are +1 and forgets that two −1 agree as well; `^` sees every place that differs."
)
def both_positive(a, b):
    return (a[:, None] & b[None]).sum(dim=-1)


@task.mistake(
    "The numbers are right, but that is a matrix product of ±1: the chip would multiply after all. Count the places "
    "that differ instead."
)
def multiplied(a, b):
    return torch.where(a, 1, -1) @ torch.where(b, 1, -1).T


@task.mistake("That is a product of zeros and ones: False stands for −1 here, and in yours it counts as 0.")
def of_zeros_and_ones(a, b):
    return a.long() @ b.long().T
