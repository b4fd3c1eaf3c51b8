"""What a row of the price tables of bits is made from, a model and a seed, and the ways to make a model with few bits.

The seed chooses the calibration images, the images of training with bits, and what is drawn at random.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from labkit import data, zoo
from labkit import train as training
from labkit.data.batch import ImageSet
from labkit.quant import Recipe, quantize
from labkit.quant.model import layers
from labkit.quant.outliers import plant
from labkit.quant.sensitivity import error_table
from labkit.quant.train import frozen, reconstruct, trainable
from labkit.vit import ViT

SEEDS = (0, 1, 2)
PLANTED = "shapes-vit, outliers planted"
RATIO = 40  # how many times as far a planted channel reaches
CALIBRATION = 32  # images
FAR = 10_000_000  # where calibration begins: beyond every training image of the shipped model
FRESH = 1_000_000  # the first step of training with bits: its images are new as well
STEPS, BATCH, RATE = 100, 32, 3e-4  # of training with bits
BLOCK_STEPS = 100  # of rebuilding each block
CHOICES = (2, 3, 4, 5, 6, 8)  # bits that a layer may get


class Case:
    """A model and a seed: all that a row is made from."""

    def __init__(self, name: str, seed: int) -> None:
        self.name, self.seed, self.shipped = name, seed, name.split(",")[0]

    @cached_property
    def model(self) -> ViT:
        model = zoo.load(self.shipped)
        return plant(model, RATIO) if self.name == PLANTED else model

    @cached_property
    def calibration(self) -> Tensor:
        if self.shipped == "shapes-vit":
            return data.shapes("train", CALIBRATION, start=FAR + 1000 * self.seed).images
        images = data.digits("train").images
        return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(self.seed))[:CALIBRATION]]

    @cached_property
    def sizes(self) -> dict[str, int]:
        """How many weights each layer has."""
        rounded = layers(quantize(self.model, only({}), self.calibration))
        return {name: layer.in_features * layer.out_features for name, layer in rounded.items()}

    @cached_property
    def errors(self) -> Tensor:
        """(layers, choices): how far the logits of the calibration images move when one layer's weights are rounded."""
        names = list(self.sizes)
        with torch.inference_mode():
            plain = self.model(self.calibration)

            def error(layer: int, bits: int) -> float:
                recipe = only({names[layer]: (bits, None)})
                return float((quantize(self.model, recipe)(self.calibration) - plain).square().mean())

            return error_table(error, len(names), CHOICES)

    @cached_property
    def _source(self) -> training.Batches:
        return zoo.SPECS[self.shipped].batches(BATCH)

    def batches(self, step: int, _: float) -> ImageSet:
        return self._source(FRESH + 10_000 * self.seed + step, 1.0)


Make = Callable[[Case], ViT]


def only(bits: dict[str, tuple[int | None, int | None]]) -> Recipe:
    """The named layers alone have few bits."""
    return Recipe(None, None, ends=None, layers=bits, clip="mse")


def made(recipe: Recipe) -> Make:
    return lambda case: quantize(case.model, recipe, case.calibration)


def rebuilt(recipe: Recipe) -> Make:
    def make(case: Case) -> ViT:
        student = trainable(case.model, recipe, case.calibration)
        reconstruct(student, case.model, case.calibration, BLOCK_STEPS)
        return frozen(student)

    return make


def trained(recipe: Recipe) -> Make:
    def make(case: Case) -> ViT:
        student = trainable(case.model, recipe, case.calibration)
        training.train(student, case.batches, training.Recipe(STEPS, lr=RATE, weight_decay=0.0))
        return frozen(student)

    return make


def trained_on(case: Case) -> ViT:
    """The control of training with bits: as many steps on the same images, in float."""
    model = zoo.load(case.shipped)
    training.train(model, case.batches, training.Recipe(STEPS, lr=RATE, weight_decay=0.0))
    return model
