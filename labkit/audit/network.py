"""The model that is audited, with the pixels it expects; unknown names and damaged weights are refused."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from labkit import convert, zoo
from labkit.errors import LabkitError, closest
from labkit.vit import ViT


class Network(NamedTuple):
    """A model, and the images that it was made for."""

    model: nn.Module
    plain: str  # empty, or why it is not a plain ViT
    mean: Tensor
    std: Tensor
    size: int
    crop: float = 1.0  # the share of an image's shorter side that is cut out of its centre
    headless: bool = False  # it has features, and no classes


def network(name: str, weights: str) -> Network:
    if name in zoo.SPECS or name.endswith(".safetensors"):
        if weights:
            raise LabkitError(f"{name} brings its own weights; leave --weights out, or name a model of timm.")
        net = zoo.load(name).eval()
        return Network(net, "", torch.zeros(3), torch.ones(3), side(net))
    import timm

    timm_name = name.removeprefix("timm:")
    if not timm.is_model(timm_name.partition(".")[0]):
        known = [*zoo.SPECS, *timm.list_models()]
        raise LabkitError(
            f'The model "{name}" is unknown; expected one of {", ".join(zoo.SPECS)}, a name of timm, or a .safetensors '
            f"file that labkit.save wrote.{closest(timm_name, known)}"
        )
    theirs = convert.create(timm_name, not weights, weights or None, {}).eval()
    if bad := damaged(theirs):
        raise LabkitError(
            f"{len(bad)} tensors of {weights or name} hold NaN or infinite numbers, the first is {bad[0]}."
        )
    config: Any = theirs.pretrained_cfg
    channels, height, width = config["input_size"]
    if channels != 3 or height != width:
        raise LabkitError(f"{name} reads {channels}×{height}×{width} pixels; an audit shows square images in colour.")
    pixels = torch.tensor(config["mean"]), torch.tensor(config["std"])
    how = *pixels, int(width), float(config["crop_pct"]), getattr(theirs, "num_classes", None) == 0
    try:
        return Network(ViT.from_timm(theirs).eval(), "", *how)
    except LabkitError as reason:
        return Network(theirs, str(reason), *how)


def damaged(model: nn.Module) -> list[str]:
    """Parameters with a number that is none; a buffer may be meant to be infinite, as a mask is."""
    return [name for name, value in model.named_parameters() if not value.isfinite().all()]


def side(model: ViT) -> int:
    proj: Any = getattr(model.patch_embed, "proj", None)
    return int(model.grid[0] * proj.stride[0])
