"""Quantized models in files: codes with no bit to spare, scales, grids and the recipe, all in one safetensors file.

A weight of 3 bits takes three eighths of a byte. Whatever stays in float is written as it is, so that the model that
is read computes what the saved one did, to the bit. A file says which backend its model ran on, and is read for it.

    save(small, "small.safetensors", {"image_size": 64, "patch_size": 8, ...})    # or "timm:deit_small_patch16_224"
    again = read("small.safetensors")
"""

from __future__ import annotations

import math
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from labkit.checkpoint import Architecture, Contents, build, contents, described, fill, write
from labkit.errors import LabkitError
from labkit.quant.grids import Float8, Grid, Uniform
from labkit.quant.int8 import execute
from labkit.quant.layers import RoundedLinear, WeightGrid
from labkit.quant.log_grids import AdaLog, ShiftedLog
from labkit.quant.model import layers, prepare
from labkit.quant.point import points
from labkit.quant.recipe import Backend, Recipe
from labkit.quant.warped_grids import Tangent, Twin
from labkit.quant.weights import group_width
from labkit.vit import ViT

GRIDS: dict[str, Any] = {kind.__name__: kind for kind in (Uniform, Float8, AdaLog, ShiftedLog, Tangent, Twin)}

Tensors = dict[str, Tensor]


def save(model: ViT, path: str | Path, architecture: Architecture) -> int:
    """Writes what `quantize` made, and returns the bytes on disk. A model that was timm's says so: "timm:NAME"."""
    recipe = getattr(model, "recipe", None)
    if not isinstance(recipe, Recipe) or not layers(model):
        raise LabkitError("There are no codes to save in this model; quantize it first, or save it with labkit.save.")
    tensors: Tensors = {k: v for k, v in model.state_dict().items() if not k.endswith(".codes")}
    rows: dict[str, Any] = {}
    for name, layer in layers(model).items():
        if layer.grid is not None:
            rows[name] = _take_layer(name, layer, tensors)
    for name, point in points(model).items():
        if point.token_bits is not None or point.grid is not None:
            row = None if point.grid is None else _take_grid(point.grid, f"{name}.grid", tensors)
            rows[name] = {"token_bits": point.token_bits, "grid": row}
    backend = "int8" if any(layer.kernel is not None for layer in layers(model).values()) else "simulate"
    told = {"architecture": described(architecture, model), "recipe": asdict(recipe), "backend": backend, "rows": rows}
    return write(model, Path(path), told, tensors, restore)


def read(path: str | Path, backend: Backend | None = None) -> ViT:
    """The saved model in eval mode; without `backend` on the one that it ran on."""
    return restore(contents(Path(path)), backend)


def restore(file: Contents, backend: Backend | None = None) -> ViT:
    """The model from what a file holds; the sentence says what does not fit."""
    told, tensors = file.told, dict(file.tensors)
    if not file.quantized:
        raise LabkitError(f"{file.name} holds a float model; labkit.load reads it.")
    try:
        recipe = _recipe(told["recipe"])
        model = prepare(build(told["architecture"]), recipe)
        for name, row in told["rows"].items():
            part: Any = model.get_submodule(name)
            part.grid = None if row["grid"] is None else _grid(row["grid"], f"{name}.grid", tensors)
            if isinstance(part, RoundedLinear):
                _give_codes(part, name, tensors)
            else:
                part.token_bits = row["token_bits"]
        _add_parameters(model, tensors)
        fill(model, tensors)
        backend = told["backend"] if backend is None else backend
        if backend not in get_args(Backend):
            raise LabkitError(f'backend={backend!r} is unknown; choose "simulate" or "int8".')
    except LabkitError as reason:
        raise LabkitError(f"{file.name} cannot be read: {reason}") from None
    except (AttributeError, KeyError, TypeError, ValueError) as reason:
        raise LabkitError(f"{file.name} is not as labkit writes it ({reason!r}); save the model again.") from None
    model.recipe = recipe  # type: ignore[assignment]
    if backend == "int8":
        execute(model)
    return model.eval()


def pack(codes: Tensor, first: int, bits: int) -> Tensor:
    """Codes from `first` up as a row of bits, eight in a byte: (⌈codes · bits / 8⌉,) of uint8."""
    numbers = (codes.detach().cpu().flatten() - first).numpy()
    places = np.empty((len(numbers), bits), dtype=np.uint8)
    for i in range(bits):
        places[:, i] = (numbers >> i) & 1
    return torch.from_numpy(np.packbits(places))


def unpack(packed: Tensor, first: int, bits: int, count: int) -> Tensor:
    """The codes again, (count,) of int32."""
    if packed.dtype != torch.uint8 or packed.numel() != math.ceil(count * bits / 8):
        raise LabkitError(
            f"{count} codes of {bits} bits are {math.ceil(count * bits / 8)} bytes; the file has "
            f"{packed.numel()} numbers of {packed.dtype}."
        )
    places = np.unpackbits(packed.numpy(), count=count * bits).reshape(count, bits)
    numbers = np.full(count, first, dtype=np.int32)
    for i in range(bits):
        numbers += places[:, i].astype(np.int32) << i
    return torch.from_numpy(numbers)


def _span(grid: WeightGrid) -> tuple[int, int]:
    """The lowest code of a weight, and how many bits hold all."""
    return (grid.ends[0], grid.bits) if isinstance(grid, Uniform) else (-127, 8)


# --- from the model to the file -----------------------------------------------------------------------------
def _take_layer(name: str, layer: RoundedLinear, tensors: Tensors) -> dict[str, Any]:
    grid = layer.grid
    if layer.codes is None or not isinstance(grid, Uniform | Float8):
        raise LabkitError(f"{name} is still in training and has no codes; save what quant.train.frozen(model) gives.")
    tensors[f"{name}.codes"] = pack(layer.codes, *_span(grid))
    if isinstance(grid, Uniform) and grid.scale.ndim == 2:  # inputs of one group repeat their scale
        width = group_width(grid)
        grid = replace(grid, scale=grid.scale[:, ::width], zero=grid.zero[:, ::width])
    return {"grid": _take_grid(grid, f"{name}.grid", tensors)}


def _take_grid(grid: Grid, prefix: str, tensors: Tensors) -> dict[str, Any]:
    """What a grid holds besides tensors; these go into `tensors`."""
    if type(grid).__name__ not in GRIDS:
        raise LabkitError(f"{prefix} is a {type(grid).__name__}, which no file holds; save quant.train.frozen(model).")
    row: dict[str, Any] = {"class": type(grid).__name__}
    for field in fields(grid):  # type: ignore[arg-type]
        value = getattr(grid, field.name)
        if isinstance(value, Uniform):
            row[field.name] = _take_grid(value, f"{prefix}.{field.name}", tensors)
        elif not isinstance(value, Tensor):
            row[field.name] = value
        elif field.name == "zero" and not value.any():
            row["zero"] = 0
        else:
            small = field.name == "zero" and bool(((value >= 0) & (value < 256)).all())
            tensors[f"{prefix}.{field.name}"] = value.to(torch.uint8) if small else value
    return row


# --- and back -----------------------------------------------------------------------------------------------
def _recipe(told: dict[str, Any]) -> Recipe:
    unknown = set(told) - {field.name for field in fields(Recipe)}
    if unknown:
        raise LabkitError(f'its recipe says "{min(unknown)}", which this labkit does not know; a newer one wrote it.')
    return Recipe(**told | {"layers": {name: tuple(pair) for name, pair in told["layers"].items()}})


def _grid(row: dict[str, Any], prefix: str, tensors: Tensors) -> Any:
    kind = GRIDS.get(row["class"])
    if kind is None or set(row) - {"class", *(field.name for field in fields(kind))}:
        raise LabkitError(f"{prefix} is a grid that this labkit does not know ({row}); a newer one wrote it.")
    values: dict[str, Any] = {}
    for field in fields(kind):
        told = row.get(field.name)
        if isinstance(told, dict):
            values[field.name] = _grid(told, f"{prefix}.{field.name}", tensors)
        elif field.name == "zero":
            zero = torch.zeros_like(values["scale"]) if told == 0 else _pop(tensors, f"{prefix}.zero")
            values["zero"] = zero.to(torch.int32)
        else:
            values[field.name] = told if field.name in row else _pop(tensors, f"{prefix}.{field.name}")
    return kind(**values)


def _give_codes(layer: RoundedLinear, name: str, tensors: Tensors) -> None:
    grid, shape = layer.grid, (layer.out_features, layer.in_features)
    assert isinstance(grid, Uniform | Float8)
    try:
        layer.codes = unpack(_pop(tensors, f"{name}.codes"), *_span(grid), math.prod(shape)).reshape(shape)
    except LabkitError as reason:
        raise LabkitError(f"the codes of {name} do not fit its shape {shape}: {reason}") from None
    layer.float_weight = None
    if isinstance(grid, Uniform) and grid.scale.ndim == 2 and grid.scale.shape[1] > 1:
        width = layer.in_features // grid.scale.shape[1]
        scale, zero = (t.repeat_interleave(width, dim=1) for t in (grid.scale, grid.zero))
        layer.grid = replace(grid, scale=scale, zero=zero)
    tensors[f"{name}.codes"] = layer.codes


def _add_parameters(model: ViT, tensors: Tensors) -> None:
    """Folding and corrected means give norms and layers weights and biases that the architecture has not."""
    owners = dict(model.named_modules())
    for name, tensor in tensors.items():
        path, _, leaf = name.rpartition(".")
        owner: Any = owners.get(path) if leaf in ("weight", "bias") else None
        if isinstance(owner, RoundedLinear | nn.LayerNorm) and getattr(owner, leaf) is None:
            setattr(owner, leaf, nn.Parameter(tensor))
            if isinstance(owner, nn.LayerNorm):
                owner.elementwise_affine = True


def _pop(tensors: Tensors, name: str) -> Tensor:
    if name not in tensors:
        raise LabkitError(f"it has no tensor {name}; it was cut or edited.")
    return tensors.pop(name)
