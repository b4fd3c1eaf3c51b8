"""A whole ViT in whole numbers: integer pixels go in, integer logits come out, and no float is touched between.

"I-ViT: Integer-only Quantization for Efficient Vision Transformer Inference", 2022 (S015). `quantize` has given codes
to all that is multiplied; the steps between are those of `labkit.quant.integer_layers`.

    whole = IntegerViT(quantize(model, Recipe(attention=8), images), images)
    logits = whole(whole.encode(images)) * whole.scale      # both floats are outside
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from operator import attrgetter
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from labkit.errors import LabkitError
from labkit.layers import MLP, LayerScale, PatchEmbed
from labkit.quant.grids import Uniform
from labkit.quant.int8 import Int8MLP, refusal
from labkit.quant.integer_layers import IntegerBlock, IntegerLinear, Span, Step, norm_step, saturated
from labkit.quant.layers import RoundedAttention, RoundedLinear, RoundedPatches
from labkit.quant.model import BATCH
from labkit.vit import ViT

NONE, NOTHING = type(None), nn.Identity
PARTS: dict[str, tuple[type, ...]] = {
    "patch_embed": (PatchEmbed,),
    "patch_embed.proj": (RoundedPatches,),
    "patch_embed.norm": (NOTHING,),
    "position": (NONE,),
    "norm_pre": (NOTHING,),
    "entry": (NONE,),
    "norm": (nn.LayerNorm, NOTHING),
    "attn_pool": (NONE,),
    "fc_norm": (nn.LayerNorm, NOTHING),
    "head": (RoundedLinear,),
}
BLOCK_PARTS: dict[str, tuple[type, ...]] = {
    "norm1": (nn.LayerNorm,),
    "attn": (RoundedAttention,),
    "attn.q_norm": (nn.LayerNorm, NOTHING),
    "attn.k_norm": (nn.LayerNorm, NOTHING),
    "attn.position": (NONE,),
    "attn.norm": (NOTHING,),
    "ls1": (LayerScale, NOTHING),
    "reducer": (NONE,),
    "norm2": (nn.LayerNorm,),
    "mlp": (MLP, Int8MLP),
    "mlp.act": (nn.GELU,),
    "mlp.norm": (NOTHING,),
    "ls2": (LayerScale, NOTHING),
    "after": (NONE,),
}


class IntegerViT:
    """Made from a quantized ViT; the calibration images show how far the residual stream and the logits reach."""

    @torch.no_grad()
    def __init__(self, quantized: ViT, calibration: Tensor) -> None:
        problem = next(problems(quantized), None)
        if problem:
            raise LabkitError(
                f"{problem} Integers run a plain ViT after quantize(model, Recipe(attention=8), calibration)."
            )
        if not len(calibration):
            raise LabkitError("How far tokens reach is read from images, and there are none; pass those of quantize.")
        model: Any = copy.deepcopy(quantized).cpu().eval()
        reach = reaches(model, calibration.cpu())
        stream = Span.wide(max(far for name, far in reach.items() if name.endswith(("norm1", "norm2", "last"))))
        logits = Span.wide(reach["logits"])
        self.scale = logits.scale
        self.pixels: Uniform = model.patch_embed.proj.input.grid
        self.zero, self.top, self.patch = int(self.pixels.zero), self.pixels.ends[1], model.patch_embed.proj.stride
        self.shape = (model.patch_embed.proj.in_channels, *(n * p for n, p in zip(model.grid, self.patch, strict=True)))
        self.patches = IntegerLinear(model.patch_embed.proj, stream)
        self.prefix, self.positions = (saturated((x.double() / stream.scale).round()).int() for x in added(model))
        self.blocks = [IntegerBlock(b, stream, reach, f"blocks.{i}") for i, b in enumerate(model.blocks)]
        self._make_reader(model, stream, logits)

    def _make_reader(self, model: Any, stream: Span, logits: Span) -> None:
        """Norm, sum over the tokens that are read, mean, and the head on the mean's grid."""
        into_head = Span.of(model.head.input.grid)
        first = 0 if model.pool == "class" or model.pools_prefix else model.prefix
        self.read = slice(first, 1 if model.pool == "class" else None)
        count = 1 if model.pool == "class" else model.grid[0] * model.grid[1] + model.prefix - first
        source, self.norm = stream, None
        if isinstance(model.norm, nn.LayerNorm):
            source = Span.wide(bound(model.norm))
            self.norm = norm_step(model.norm, stream, source)
        if isinstance(model.fc_norm, nn.LayerNorm):
            self.mean = [Step(source.scale / count, source), norm_step(model.fc_norm, source, into_head)]
        else:
            self.mean = [Step(source.scale / count, into_head)]
        self.head = IntegerLinear(model.head, logits)

    def encode(self, images: Tensor) -> Tensor:
        """Pixels as codes from 0: bytes when the calibration images reached from 0 to 1."""
        return self.pixels.encode(images.cpu()).to(torch.uint8)

    def __call__(self, codes: Tensor) -> Tensor:
        """Codes (b, c, h, w) → integer logits (b, classes), which `scale` makes those of the quantized model."""
        if codes.dtype != torch.uint8 or tuple(codes.shape[1:]) != self.shape:
            shape = ", ".join(map(str, self.shape))
            raise LabkitError(
                f"The codes are {codes.dtype} of shape {tuple(codes.shape)}; expected uint8 of shape (batch, {shape}), "
                "as encode(images) gives them."
            )
        p, q = self.patch
        x = rearrange(codes.clamp(max=self.top).int() - self.zero, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=q)
        x = saturated(self.patches(x) + self.positions)
        x = torch.cat([self.prefix.expand(len(x), -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        x = x[:, self.read] if self.norm is None else self.norm(x[:, self.read])
        x = x.sum(dim=1)
        for step in self.mean:
            x = step(x)
        return self.head(x)


def added(model: Any) -> tuple[Tensor, Tensor]:
    """What stands before the patches, (1, prefix, d), and what is added to them, (1, 1 or patches, d)."""
    nothing = torch.zeros(1, 1, model.patch_embed.proj.out_features)
    prefix, table = torch.cat([nothing[:, :0], *model.prefix_tokens()], dim=1), model.pos_embed
    if table is None:
        return prefix, nothing
    if not model.embeds_prefix:
        return prefix, table
    return prefix + table[:, : model.prefix], table[:, model.prefix :]


def bound(norm: nn.LayerNorm) -> float:
    """The largest number that a LayerNorm can put out: one channel holds all of the variance."""
    d = norm.normalized_shape[0]
    weight = torch.ones(d) if norm.weight is None else norm.weight
    bias = torch.zeros(d) if norm.bias is None else norm.bias
    return float((weight.abs() * d**0.5 + bias.abs()).max())


def reaches(model: ViT, images: Tensor) -> dict[str, float]:
    """{norm: twice the largest number that came to it}, of the last block's output and of the logits too.

    Twice, because other images go further, and of 16 bits one can be spared.
    """
    found: dict[str, float] = {}

    def note(name: str) -> Any:
        return lambda module, x: found.update({name: max(found.get(name, 0.0), 2 * float(x[0].detach().abs().max()))})

    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm):
            module.register_forward_pre_hook(note(name))
    model.norm.register_forward_pre_hook(note("last"))
    for some in images.split(BATCH):
        note("logits")(model, [model(some)])
    return found


def problems(model: ViT) -> Iterator[str]:
    """What has no integer form here, as sentences. Parts come first: what is asked of layers supposes them."""
    if not isinstance(model, ViT):
        yield f"{type(model).__name__} is no labkit ViT."
    owners: list[tuple[str, Any, dict[str, tuple[type, ...]]]] = [("", model, PARTS)]
    owners += [(f"blocks.{i}.", block, BLOCK_PARTS) for i, block in enumerate(model.blocks)]
    for prefix, owner, parts in owners:
        for path, kinds in parts.items():
            part = attrgetter(path)(owner)
            if type(part) not in kinds:
                yield f"{prefix}{path} is {type(part).__name__} and not {' or '.join(k.__name__ for k in kinds)}."
    for name, module in model.named_modules():
        if isinstance(module, RoundedLinear):
            why = "its tokens find their own grids, with floats." if module.input.token_bits else refusal(module)
            why = "its inputs are rotated, in floats." if module.rotated else why
            if why:
                yield f"{name} has no integer form: {why}"
        if isinstance(module, RoundedAttention):
            if module.centred:
                yield f"{name} takes the mean of its keys away, which has no integer form here."
            for part in ("q", "k", "softmax", "v"):
                grid = getattr(module, part).grid
                if not isinstance(grid, Uniform) or grid.bits > 8:
                    yield f"{name}.{part} is on no uniform grid of at most 8 bits."
