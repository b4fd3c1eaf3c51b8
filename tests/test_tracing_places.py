"""Proof, family by family, that every token lies where its layer says, and that rows say which cells mix.

The proof changes one row or one column of patches and asks which queries and which keys feel it. It uses nothing of
the code that computes layouts: attention lets nothing through and convolutions see only their own cell, so each
token knows the pixels of its own place and no others.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from labkit.tracing.layouts import Layer
from labkit.tracing.record import trace
from labkit.tracing.trace import Trace
from tests.timm_families import FAMILIES, OTHERS, Size, build, described, pictures


class Silence(TorchFunctionMode):
    """Writes down the scores of every attention and lets none of it through."""

    def __init__(self) -> None:
        super().__init__()
        self.scores: list[Tensor] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            q, k, v = args[:3]
            self.scores.append(q @ k.transpose(-2, -1))
            return torch.zeros_like(q[..., :1] * v[..., :1, :])
        out = func(*args, **kwargs)
        softmax = func in (torch.softmax, Tensor.softmax, F.softmax) and out.ndim > 2 and out.shape[-1] > 1
        if softmax and (args[1] if len(args) > 1 else kwargs["dim"]) in (-1, out.ndim - 1):
            self.scores.append(args[0])
            return torch.zeros_like(out)
        return out


@torch.no_grad()
def make_local(model: nn.Module) -> None:
    """Convolutions that read only the pixels of their own cell, and weights that keep signals alive."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            kept = torch.ones_like(module.weight)
            if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1:
                (top, left), (down, right) = module.padding, module.stride
                kept.zero_()[..., top : top + down, left : left + right] = 1
            module.weight.copy_(torch.randn_like(kept) * kept * kept[0].sum().clamp_min(1) ** -0.5)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.BatchNorm2d):
            module.weight.fill_(1)
    for module in model.modules():  # gates that look at the whole image stand half open
        if "Squeeze" in type(module).__name__ or "SEModule" in type(module).__name__:
            for parameter in module.parameters():
                parameter.zero_()


def probes(size: Size, patch: int) -> tuple[Tensor, int, int]:
    """A picture, and the same with one row of patches changed, then with one column changed."""
    picture, other = pictures(size)
    rows, columns = size[0] // patch, size[1] // patch
    changed = picture.repeat(1 + rows + columns, 1, 1, 1)
    for i in range(rows):
        changed[1 + i, :, i * patch : (i + 1) * patch] = other[:, i * patch : (i + 1) * patch]
    for i in range(columns):
        changed[1 + rows + i, :, :, i * patch : (i + 1) * patch] = other[:, :, i * patch : (i + 1) * patch]
    return changed.double(), rows, columns


def middle(felt: Tensor) -> Tensor:
    """Where along an axis of [0, 1] each token feels a change: (probes, tokens) → (tokens,)."""
    weight = felt**2 * (felt**2 > 0.1 * felt.amax(dim=0) ** 2)
    places = (torch.arange(len(felt)) + 0.5) / len(felt)
    return places.to(weight) @ weight / weight.sum(dim=0)


def misplaced(felt: Tensor, rows: int, cells: Tensor, grid: Size) -> tuple[Tensor, Tensor]:
    """How many cells each token lies off the cell it is said to be, and how much a place each token has."""
    found = torch.stack([middle(felt[:rows]) * grid[0], middle(felt[rows:]) * grid[1]])
    said = torch.stack([cells // grid[1], cells % grid[1]]) + 0.5
    return (found - said).abs().amax(dim=0)[cells >= 0], torch.minimum(felt[:rows].amax(dim=0), felt[rows:].amax(dim=0))


def tokens_of(layer: Layer) -> Iterator[tuple[int, Size, Tensor]]:
    """For queries and keys: the axis of scores on which their like lie, their grid, and each token's cell or -1."""
    sides = ((-1, layer.grid, layer.prefix, layer.windows), (-2, layer.key_grid, layer.key_prefix, layer.key_windows))
    for axis, (h, w), prefix, windows in sides:
        whole = torch.cat([torch.full((prefix,), -1), torch.arange(h * w)])
        yield axis, (h, w), whole if windows is None else windows


def changes(seen: Trace, number: int, scores: Tensor, axis: int) -> Tensor:
    """(probes, tokens): how much each query (axis -1) or key (axis -2) felt each probe.

    A query that feels a change changes its whole row of scores, a key its column; padding has no scores to change.
    """
    layer, scores = seen.layers[number], seen.arrange[number](scores)
    change = (scores[1:] - scores[:1]).abs().sum(dim=1)
    others = layer.key_windows if axis == -1 else layer.windows
    if others is not None:
        change = change.masked_fill((others < 0).unsqueeze(-2 if axis == -1 else -1), torch.inf)
    return change.amin(dim=axis).flatten(1)


# Where 7 cells become 4, or 3 are stretched to 4, the cells that are drawn lie a little off.
ROUNDED = {"efficientvit_m": 0.8, "mobilevit": 0.8}
# Behind an attention without a residual path, LeViT's downsampling, silence is all that is left.
SILENT = {"levit": 8}
PROVED = [name for name, family in (FAMILIES | OTHERS).items() if set(family.maps) - {"channel", "3 x channel"}]


@pytest.mark.parametrize("name", PROVED)
def test_tokens_lie_where_their_layer_says(name):
    family, model = (FAMILIES | OTHERS)[name], build(name).double()
    make_local(model)
    images, rows, _ = probes(family.size, family.patch)
    seen = trace(model, images, batch=len(images))
    with Silence() as silence, torch.no_grad():
        model(images)
    assert described(seen.layers) == family.maps
    assert len(silence.scores) == len(seen.layers)
    unfelt = 0
    for number, (layer, scores) in enumerate(zip(seen.layers, silence.scores, strict=True)):
        if layer.kind in ("channel", "unknown"):
            continue
        for axis, grid, cells in tokens_of(layer):
            if not (cells >= 0).any():
                continue
            felt = changes(seen, number, scores, axis)
            if not felt.isfinite().all() or felt.max() < 1e-12:
                unfelt += axis == -1
                continue
            off, strength = misplaced(felt, rows, cells.flatten(), grid)
            assert sorted(cells[cells >= 0].tolist()) == list(range(grid[0] * grid[1]))
            assert (off < ROUNDED.get(name, 0.6)).float().mean() > 0.97, (
                f"{layer.sentence()} {axis}: {off.max():.2f} cells off"
            )
            assert (strength[cells.flatten() < 0] < 1e-9).all(), f"{layer.name}: padding feels the image"
    assert unfelt == SILENT.get(name, 0)


# Module that mixes, the number of its layer, and how its map is laid out.
MIXERS = {
    "swin, padded": ("layers.0.blocks.1", 1, "b h w c"),
    "swinv2": ("layers.0.blocks.1", 1, "b h w c"),
    "maxvit": ("stages.0.blocks.0.attn_grid", 1, "b h w c"),
    "twins svt": ("blocks.0.0", 0, "b (h w) c"),
    "davit": ("stages.0.blocks.0.0", 0, "b c h w"),
    "tiny_vit": ("stages.1.blocks.0", 0, "b h w c"),
}


@pytest.mark.parametrize("name", MIXERS)
def test_rows_say_which_cells_mix(name):
    """Change one cell of what enters a block: the cells that feel it are those whose rows look at it."""
    path, number, axes = MIXERS[name]
    model, images = build(name).double(), pictures(FAMILIES[name].size, 1).double()
    make_local(model)
    block, entered = model.get_submodule(path), []
    with block.register_forward_pre_hook(lambda _, args: entered.append(args)):
        seen = trace(model, images)
    (h, w), (x, *rest) = seen.layers[number].grid, entered[0]
    changed = torch.randperm(h * w, generator=torch.Generator().manual_seed(0))[:40]
    x = rearrange(x, f"{axes} -> b (h w) c", h=h, w=w).repeat(1 + len(changed), 1, 1)
    x[torch.arange(len(changed)) + 1, changed] += torch.randn(len(changed), x.shape[-1])
    with torch.no_grad():
        out = block(rearrange(x, f"b (h w) c -> {axes}", h=h, w=w), *rest)
    out = rearrange(out, f"{axes} -> b (h w) c", h=h, w=w)
    mixed = ((out[1:] - out[:1]).abs().amax(dim=-1) > 1e-15).T
    looks = seen.rows(number, 0).amax(dim=0)[:, changed] > 1e-15
    looks[changed, torch.arange(len(changed))] = True  # the residual path
    assert torch.equal(mixed, looks)
