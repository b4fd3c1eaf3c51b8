"""The ways to compute one ViT that the bench compares, all from the same random weights, by what is asked of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor, nn

from bench import rivals
from bench.rivals import Model, images
from labkit import tokens
from labkit.errors import LabkitError
from labkit.quant import Recipe, kernels, quantize
from labkit.vit import ViT

THIRDS, SHARE, MERGED, CALIBRATION = (3, 6, 9), 0.7, 13, 16

TIMM, ENCODER, RUNTIME = "timm", "torch encoder layers", "onnxruntime"
FAST, PLAIN = "labkit", "labkit, written out"
THEIR_HALF, HALF = "timm, bfloat16", "labkit, bfloat16"
KEEP, FUSE, MERGE = f"labkit, keep {SHARE}", f"labkit, fuse {SHARE}", f"labkit, merge r = {MERGED}"
INT8, DYNAMIC, RUNTIME8 = "labkit, int8", "torch dynamic int8", "onnxruntime dynamic int8"
TORCHAO, COMPILED = "torchao int8", "torchao int8, compiled"
INT8_MERGE, HALF_MERGE = "labkit, int8 and merge", "labkit, bfloat16 and merge"
DYNAMIC_MERGE, RUNTIME8_MERGE = "torch dynamic int8 of the merged model", "onnxruntime dynamic int8 of the merged model"


class Half(nn.Module):
    """A model in bfloat16 between images and logits in float32."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.bfloat16()).float()


@dataclass(frozen=True)
class Case:
    """One timm model and what several ways begin with."""

    theirs: nn.Module
    folder: Path  # for what has to be written

    @cached_property
    def ours(self) -> ViT:
        device = next(self.theirs.parameters()).device
        return ViT.from_timm(self.theirs).to(device).eval().set_impl("fast")

    @cached_property
    def int8(self) -> ViT:
        if why := kernels.available("cpu"):
            raise LabkitError(why)
        return quantize(self.ours, Recipe(weights=8, activations=8), images(CALIBRATION, seed=1), backend="int8")

    def merged(self, model: ViT) -> ViT:
        return tokens.attach(model, tokens.Merge(MERGED), range(len(model.blocks))).eval()

    def merged_for_others(self) -> ViT:
        """They round whole layers, and the one row that the head reads takes parts of them."""
        model = copy.deepcopy(self.merged(self.ours))
        model.last = "full"
        return model

    @cached_property
    def exported(self) -> Path:
        return rivals.exported(self.theirs, self.folder)

    @cached_property
    def exported_merged(self) -> Path:
        (folder := self.folder / "merged").mkdir()
        return rivals.exported(self.merged_for_others(), folder)


@dataclass(frozen=True)
class Way:
    asks: str  # what rivals have in common
    make: Callable[[Case], Model]
    gpu: bool = False  # is it made for GPUs too?
    quick: bool = True
    most: int = 32  # images in a batch; with more it would only take time


FORWARD, IN_HALF, PRUNED, ONE, EIGHT, BOTH = ("float32", "bfloat16", "pruned", "merged", "int8", "combined")
WAYS: dict[str, Way] = {  # the one that all are held against comes first
    TIMM: Way(FORWARD, lambda case: case.theirs, gpu=True),
    ENCODER: Way(FORWARD, lambda case: rivals.torch_encoder(case.theirs), gpu=True),
    RUNTIME: Way(FORWARD, lambda case: rivals.onnxruntime(case.exported)),
    FAST: Way(FORWARD, lambda case: case.ours, gpu=True),
    PLAIN: Way(FORWARD, lambda case: copy.deepcopy(case.ours).set_impl("plain"), gpu=True, quick=False, most=8),
    THEIR_HALF: Way(IN_HALF, lambda case: Half(case.theirs), gpu=True),
    HALF: Way(IN_HALF, lambda case: Half(case.ours), gpu=True),
    KEEP: Way(PRUNED, lambda case: tokens.attach(case.ours, tokens.Keep(SHARE), THIRDS).eval(), gpu=True),
    FUSE: Way(PRUNED, lambda case: tokens.attach(case.ours, tokens.Fuse(SHARE), THIRDS).eval(), gpu=True, quick=False),
    MERGE: Way(ONE, lambda case: case.merged(case.ours), gpu=True),
    DYNAMIC: Way(EIGHT, lambda case: rivals.torch_dynamic(case.theirs)),
    RUNTIME8: Way(EIGHT, lambda case: rivals.onnxruntime_dynamic(case.exported)),
    TORCHAO: Way(EIGHT, lambda case: rivals.torchao_int8(case.theirs), quick=False, most=8),
    COMPILED: Way(EIGHT, lambda case: rivals.torchao_compiled(case.theirs), quick=False),
    INT8: Way(EIGHT, lambda case: case.int8),
    DYNAMIC_MERGE: Way(BOTH, lambda case: rivals.torch_dynamic(case.merged_for_others())),
    RUNTIME8_MERGE: Way(BOTH, lambda case: rivals.onnxruntime_dynamic(case.exported_merged)),
    INT8_MERGE: Way(BOTH, lambda case: case.merged(case.int8)),
    HALF_MERGE: Way(BOTH, lambda case: Half(case.merged(case.ours)), gpu=True),
}


def ours(name: str) -> bool:
    return name.startswith("labkit")


def rivals_of(name: str) -> list[str]:
    """Who does the same and is not ours; timm where nobody does."""
    others = [other for other, way in WAYS.items() if way.asks == WAYS[name].asks and not ours(other)]
    return others or [TIMM]
