"""All dials on one model: `Stack` is the choice, `Stack(...).build(model)` the model that it makes."""

from labkit.stack.build import counts, patched
from labkit.stack.recipe import FLOAT, Stack
from labkit.stack.swap import Swapped, swap_mixers

__all__ = ["FLOAT", "Stack", "Swapped", "counts", "patched", "swap_mixers"]
