"""Bits: how many for each weight and activation."""

from labkit.quant.uniform import round_to_grid, simulate

__all__ = ["round_to_grid", "simulate"]
