"""Small members of the families of timm, and the maps that each must show."""

from __future__ import annotations

from itertools import groupby
from typing import NamedTuple

import timm
import torch
from torch import Tensor, nn

from labkit.tracing.layouts import Layer

Size = tuple[int, int]


class Family(NamedTuple):
    """A small member of a family, an image it takes, and the maps it must show, as `described` writes them."""

    name: str
    size: Size
    maps: list[str]
    options: dict | None = None
    patch: int = 4  # pixels that a probe changes: the finest grid of attention


SMALL = {"depth": 2, "embed_dim": 24, "num_heads": 2}
TWO = {"depths": (2, 2), "embed_dim": 24, "num_heads": (2, 4)}
FAMILIES = {
    "vit": Family("vit_tiny_patch16_224", (32, 48), ["2 x self 2x3 +1"], {**SMALL, "img_size": (32, 48)}, 16),
    "vit without class token": Family(
        "vit_base_patch16_siglip_224",
        (32, 48),
        ["2 x self 2x3", "class -> 2x3"],
        {**SMALL, "img_size": (32, 48)},
        16,
    ),
    "deit": Family(
        "deit_tiny_distilled_patch16_224", (32, 48), ["2 x self 2x3 +2"], {**SMALL, "img_size": (32, 48)}, 16
    ),
    "deit3": Family("deit3_small_patch16_224", (32, 48), ["2 x self 2x3 +1"], {**SMALL, "img_size": (32, 48)}, 16),
    "dinov2 with registers": Family(
        "vit_small_patch14_reg4_dinov2", (28, 42), ["2 x self 2x3 +5"], {**SMALL, "img_size": (28, 42)}, 14
    ),
    "swin": Family(
        "swin_tiny_patch4_window7_224",
        (56, 112),
        ["2 x windowed 14x28 in 8 of 49", "2 x windowed 7x14 in 2 of 49"],
        {**TWO, "img_size": (56, 112), "window_size": 7},
    ),
    "swin, padded": Family(
        "swin_tiny_patch4_window7_224",
        (40, 72),
        ["2 x windowed 10x18 in 6 of 49", "2 x windowed 5x9 in 2 of 49"],
        {**TWO, "strict_img_size": False},
    ),
    "swin, another size of as many cells": Family(
        "swin_tiny_patch4_window7_224",
        (28, 112),
        ["2 x windowed 7x28 in 4 of 49"],
        {**TWO, "depths": (2,), "num_heads": (2,), "img_size": (56, 56), "window_size": 7, "strict_img_size": False},
    ),
    "swinv2": Family(
        "swinv2_tiny_window8_256",
        (48, 80),
        ["2 x windowed 12x20 in 6 of 64", "2 x windowed 6x10 in 2 of 48"],
        {**TWO, "img_size": (48, 80)},
    ),
    "maxvit": Family(
        "maxvit_rmlp_pico_rw_256",
        (96, 96),
        [
            "2 x windowed 24x24 in 64 of 9",
            "2 x windowed 12x12 in 16 of 9",
            "4 x windowed 6x6 in 4 of 9",
            "2 x self 3x3",
        ],
        {"img_size": 96, "depths": (1, 1, 2, 1), "embed_dim": (32, 32, 32, 32)},
    ),
    "pvt_v2": Family(
        "pvt_v2_b0",
        (64, 96),
        ["reduced 16x24 -> 2x3", "reduced 8x12 -> 2x3", "reduced 4x6 -> 2x3", "self 2x3"],
        {"depths": (1, 1, 1, 1), "embed_dims": (16, 32, 32, 32), "num_heads": (1, 2, 2, 2)},
    ),
    "twins svt": Family(
        "twins_svt_small",
        (64, 96),
        [
            *("windowed 16x24 in 12 of 49", "reduced 16x24 -> 2x3", "windowed 8x12 in 4 of 49", "reduced 8x12 -> 2x3"),
            *("windowed 4x6 in 1 of 49", "reduced 4x6 -> 2x3", "windowed 2x3 in 1 of 49", "self 2x3"),
        ],
        {"img_size": (64, 96), "depths": [2, 2, 2, 2], "embed_dims": [16, 32, 32, 32], "num_heads": [2, 4, 4, 4]},
    ),
    "twins pcpvt": Family(
        "twins_pcpvt_small",
        (64, 96),
        ["reduced 16x24 -> 2x3", "reduced 8x12 -> 2x3", "reduced 4x6 -> 2x3", "self 2x3"],
        {"img_size": (64, 96), "depths": [1, 1, 1, 1], "embed_dims": [16, 32, 32, 32], "num_heads": [2, 4, 4, 4]},
    ),
    "cait": Family(
        "cait_xxs24_224", (32, 48), ["2 x self 2x3", "2 x class -> 2x3 +1"], {**SMALL, "img_size": (32, 48)}, 16
    ),
    "xcit": Family("xcit_nano_12_p16_224", (32, 48), ["2 x channel", "2 x class -> 2x3 +1"], {"depth": 2}, 16),
    "levit": Family(
        "levit_128s",
        (224, 224),
        ["2 x self 14x14", "reduced 7x7 -> 14x14", "3 x self 7x7", "reduced 4x4 -> 7x7", "4 x self 4x4"],
        patch=16,
    ),
    "tiny_vit": Family(
        "tiny_vit_5m_224",
        (64, 96),
        ["windowed 8x12 in 4 of 49", "windowed 4x6 in 1 of 49", "windowed 2x3 in 1 of 49"],
        {
            "depths": (1, 1, 1, 1),
            "window_sizes": (7, 7, 7, 7),
            "embed_dims": (32, 32, 64, 64),
            "num_heads": (1, 2, 2, 2),
        },
    ),
    "hiera": Family(
        "hiera_tiny_224",
        (64, 96),
        [
            *("windowed 16x24 in 6 of 64", "windowed 8x12 -> 16x24 in 6 of 16", "windowed 8x12 in 6 of 16"),
            *("windowed 4x6 -> 8x12 in 6 of 4", "6 x self 4x6", "reduced 2x3 -> 4x6", "self 2x3"),
        ],
        {"img_size": (64, 96), "embed_dim": 24},
    ),
    "efficientvit_m": Family(
        "efficientvit_m0", (224, 224), ["4 x windowed 14x14 in 4 of 49", "8 x self 7x7", "12 x self 4x4"], patch=16
    ),
    "efficientvit_b": Family("efficientvit_b0", (64, 64), []),
    "mobilevit": Family(
        "mobilevit_xxs",
        (64, 96),
        ["2 x windowed 8x12 in 4 of 24", "4 x windowed 4x6 in 4 of 6", "3 x windowed 2x4 in 4 of 2"],
    ),
    "davit": Family(
        "davit_tiny",
        (64, 96),
        [
            *("windowed 16x24 in 12 of 49", "channel", "windowed 8x12 in 4 of 49", "channel"),
            *("windowed 4x6 in 1 of 49", "channel", "windowed 2x3 in 1 of 49", "channel"),
        ],
        {"depths": (1, 1, 1, 1), "embed_dims": (16, 32, 32, 32), "num_heads": (2, 2, 2, 2)},
    ),
    "edgenext": Family("edgenext_xx_small", (64, 64), ["3 x channel"]),
    "poolformer": Family("poolformer_s12", (64, 64), []),
}
# Families beyond those that were asked for: whatever they claim must be true, and what is not known stays undrawn.
OTHERS = {
    "beit": Family("beit_base_patch16_224", (32, 48), ["2 x self 2x3 +1"], {**SMALL, "img_size": (32, 48)}, 16),
    "eva02": Family("eva02_tiny_patch14_224", (28, 42), ["2 x self 2x3 +1"], {"img_size": (28, 42), "depth": 2}, 14),
    "mobilevitv2": Family("mobilevitv2_050", (64, 96), ["9 x unknown"], {}, 8),
    "sam": Family(
        "samvit_base_patch16",
        (96, 96),
        ["2 x unknown"],
        {**SMALL, "img_size": 96, "window_size": 4, "global_attn_indexes": (1,)},
        16,
    ),
    "sam2": Family(
        "sam2_hiera_tiny",
        (64, 64),
        ["windowed 16x16 in 4 of 64", "unknown", "windowed 8x8 in 4 of 16", "unknown", "self 4x4", "unknown"],
        {"stages": (1, 2, 2, 1), "embed_dim": 24, "num_heads": 1, "global_att_blocks": (4,)},
    ),
}


def build(name: str) -> nn.Module:
    """The model with random weights; what begins at zero, which would hide a branch, is random too."""
    family = (FAMILIES | OTHERS)[name]
    torch.manual_seed(0)
    model = timm.create_model(family.name, num_classes=5, **(family.options or {})).eval()
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return model


def pictures(size: Size, count: int = 2) -> Tensor:
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(0))


def described(layers: list[Layer]) -> list[str]:
    """The maps in words, equal neighbours counted."""

    def words(layer: Layer) -> str:
        grids = [f"{h}x{w}" for h, w in dict.fromkeys([layer.grid, layer.key_grid]) if h]
        text = f"{layer.kind} {'-> ' * (layer.kind == 'class')}{' -> '.join(grids)}".strip()
        text += f" +{layer.key_prefix}" if layer.key_prefix else ""
        return text if layer.windows is None else "{} in {} of {}".format(text, *layer.windows.shape)

    runs = [(text, len(list(run))) for text, run in groupby(words(layer) for layer in layers)]
    return [text if count == 1 else f"{count} x {text}" for text, count in runs]
