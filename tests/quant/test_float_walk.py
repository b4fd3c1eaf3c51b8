"""The walk sees a float wherever one can hide: read, written, a number of Python, inside a layer; and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from labkit.quant.float_walk import FloatWalk
from tests import checks

CODES = torch.arange(6, dtype=torch.int32)


@pytest.mark.parametrize(
    ("step", "name"),
    [
        (lambda: CODES / 2, "div"),  # only what is written is a float
        (lambda: (0.5 * torch.ones(2)).int(), "_to_copy"),  # only what is read
        (lambda: CODES.clone().fill_(2.0), "fill_"),  # a number of Python
        (lambda: torch.cat([CODES, torch.zeros(1, dtype=torch.bfloat16)]), "cat"),  # in a list
        (lambda: nn.Linear(2, 2)(torch.ones(1, 2)), "addmm"),
    ],
)
def test_a_float_is_seen(step, name):
    with FloatWalk() as walk:
        step()
    assert walk.floating[name] == walk.all[name] == 1


def test_whole_numbers_pass_and_every_operation_is_counted_once():
    with FloatWalk() as walk:
        out = ((CODES + 1) * CODES) >> 1
        halves = out.chunk(2)
        torch.gt(halves[0] ^ halves[1], 3)
    assert dict(walk.all) == {"add": 1, "mul": 1, "__rshift__": 1, "split": 1, "bitwise_xor": 1, "gt": 1}
    assert not walk.floating and walk.floating.total() == 0
    checks.equal(out, torch.tensor([0, 1, 3, 6, 10, 15], dtype=torch.int32))


def test_an_operation_with_many_floats_counts_once_and_nothing_is_seen_after_the_walk():
    with FloatWalk() as walk:
        torch.cat([torch.ones(1), torch.ones(1)])
    torch.ones(3) / 2
    assert dict(walk.floating) == {"ones": 2, "cat": 1}
    assert walk.all["div"] == 0


def test_a_walk_does_not_bring_the_compiler_with_it():
    """What torch wraps, so that its compiler leaves it alone, imports all of the compiler when it is first called."""
    assert not hasattr(FloatWalk.__torch_dispatch__, "__wrapped__")
