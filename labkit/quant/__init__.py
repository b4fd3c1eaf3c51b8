"""Bits: how many for each weight and activation."""

from labkit.quant.model import layers, quantize, untouched
from labkit.quant.point import Point, points, watched
from labkit.quant.recipe import Recipe

__all__ = ["Point", "Recipe", "layers", "points", "quantize", "untouched", "watched"]
