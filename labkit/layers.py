"""What a vision transformer is made of: patches become tokens, attention mixes them, an MLP works on each alone.

"An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale", 2020 (S207); LayerScale is from
"Going deeper with Image Transformers", 2021 (S182). Parameters carry the names that timm gives them, so that
weights travel both ways without a translation table.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from labkit.errors import LabkitError
from labkit.evidence import Evidence, Grid, Groups, Reducer, Step

Size = int | Grid
Impl = Literal["plain", "fast"]
Module = TypeVar("Module", bound=nn.Module)


def check_images(images: Tensor, channels: int, patch: Grid | None) -> Grid:
    """(height, width) of images that a patch embedding can cut; `patch=None` asks for no whole number of patches."""
    if images.ndim != 4 or images.shape[1] != channels:
        raise LabkitError(f"The images have shape {tuple(images.shape)}; expected (batch, {channels}, height, width).")
    h, w = images.shape[-2:]
    if patch is not None and (h % patch[0] or w % patch[1]):
        raise LabkitError(
            f"The image size {h}x{w} is not divisible by the patch size {patch[0]}x{patch[1]}; resize or pad it."
        )
    return h, w


class PatchEmbed(nn.Module):
    """Cut the image into squares and project each: a convolution whose stride is its kernel."""

    def __init__(self, patch_size: Size = 16, channels: int = 3, dim: int = 768, bias: bool = True) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, kernel_size=patch_size, stride=patch_size, bias=bias)
        self.norm: nn.Module = nn.Identity()
        self.crop = False  # True ignores the pixels behind the last whole patch instead of refusing them

    def forward(self, images: Tensor) -> tuple[Tensor, Grid]:
        ph, pw = self.proj.stride
        h, w = check_images(images, self.proj.in_channels, None if self.crop else (ph, pw))
        return self.norm(rearrange(self.proj(images), "b d h w -> b (h w) d")), (h // ph, w // pw)


def outputs(linear: nn.Linear, x: Tensor, first: int, last: int) -> Tensor:
    """The outputs of a layer from `first` to before `last`, at the cost of these alone."""
    if not isinstance(linear, nn.Linear):  # a layer that stands for one knows how to divide itself
        return linear(x, first, last)
    return F.linear(x, linear.weight[first:last], None if linear.bias is None else linear.bias[first:last])


class Attention(nn.Module):
    """softmax(q kᵀ / √d_head) v in `heads` subspaces; "plain" writes it out, "fast" calls a fused kernel."""

    def __init__(self, dim: int, heads: int, bias: bool = True, impl: Impl = "fast") -> None:
        super().__init__()
        if dim % heads:
            raise LabkitError(f"Width {dim} does not divide into {heads} heads; choose a multiple of {heads}.")
        self.heads, self.impl = heads, impl
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.q_norm: nn.Module = nn.Identity()
        self.k_norm: nn.Module = nn.Identity()
        self.norm: nn.Module = nn.Identity()
        self.proj = nn.Linear(dim, dim)
        self.position: nn.Module | None = None  # (q, k, bias, grid, prefix) → (q, k, bias)

    def project(self, x: Tensor, rows: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v as (b, heads, tokens, d_head); with `rows`, only the first `rows` tokens get a query."""
        if rows is None:
            q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        else:
            d = self.qkv.out_features // 3
            q, kv = outputs(self.qkv, x[:, :rows], 0, d), outputs(self.qkv, x, d, 3 * d)
            q = rearrange(q, "b n (h d) -> b h n d", h=self.heads)
            k, v = rearrange(kv, "b n (two h d) -> two b h n d", two=2, h=self.heads)
        return self.q_norm(q), self.k_norm(k), v

    def locate(self, q: Tensor, k: Tensor, bias: Tensor | None, grid: Grid, prefix: int) -> Evidence:
        """What the scores are made of: the bias of the rows that ask, and where tokens are, when that is told here."""
        bias = None if bias is None else bias[..., : q.shape[2], :]
        if self.position is not None:
            q, k, bias = self.position(q, k, bias, grid, prefix)
        return Evidence(q, k, bias)

    def attend(
        self, x: Tensor, bias: Tensor | None = None, rows: int | None = None, grid: Grid = (0, 0), prefix: int = 0
    ) -> tuple[Tensor, Evidence]:
        """The mixed tokens and the evidence; `bias` (..., 1 or n, n) is added to every head's scores."""
        q, k, v = self.project(x, rows)
        evidence = self.locate(q, k, bias, grid, prefix)
        evidence.v = v
        if self.impl == "plain":
            evidence.attn = evidence.attention()
            out = evidence.attn @ v
        else:
            out = F.scaled_dot_product_attention(evidence.q, evidence.k, v, attn_mask=evidence.bias)
        return self.proj(self.norm(rearrange(out, "b h n d -> b n (h d)"))), evidence

    def forward(self, x: Tensor, grid: Grid | None = None) -> Tensor:
        return self.attend(x, grid=grid or (1, x.shape[1]))[0]


class MLP(nn.Module):
    """Two linear layers with a bend between them, applied to each token alone."""

    def __init__(self, dim: int, hidden: int, act: Callable[[], nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = act()
        self.norm: nn.Module = nn.Identity()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.norm(self.act(self.fc1(x))))


class LayerScale(nn.Module):
    """One learned gain per channel of a residual branch; near zero, a deep stack begins as the identity."""

    def __init__(self, dim: int, init: float = 1e-5) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """x += mix(norm(x)); reduce the tokens if asked; x += mlp(norm(x)). Any mixer `(x, grid) -> x` fits."""

    def __init__(
        self,
        dim: int,
        heads: int,
        mlp_ratio: float = 4.0,
        *,
        layer_scale: float | None = None,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
        mixer: nn.Module | None = None,
        mlp: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = norm(dim)
        self.attn = mixer if mixer is not None else Attention(dim, heads)
        self.ls1: nn.Module = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.norm2 = norm(dim)
        self.mlp = mlp if mlp is not None else MLP(dim, int(dim * mlp_ratio))
        self.ls2: nn.Module = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.reducer: Reducer | None = None
        self.after: nn.Module | None = None  # (patch tokens, grid) → patch tokens, behind the block

    def forward(
        self, x: Tensor, grid: Grid, sizes: Tensor | None = None, prefix: int = 0, rows: int | None = None
    ) -> Step:
        """With `rows`, only the first `rows` tokens come out, exactly as the full block would give them."""
        mixed, evidence = self.mix(x, grid, sizes, prefix, rows)
        x, how = x[:, :rows] + mixed, None
        if self.reducer is not None and rows is None:
            x, how, sizes = reduce_tokens(self.reducer, x, evidence, sizes, prefix)
        x = x + self.ls2(self.mlp(self.norm2(x)))
        if self.after is not None and x.shape[1] > prefix:
            x = torch.cat([x[:, :prefix], self.after(x[:, prefix:], grid)], dim=1)
        return Step(x, evidence, how, sizes)

    def mix(
        self, x: Tensor, grid: Grid, sizes: Tensor | None, prefix: int = 0, rows: int | None = None
    ) -> tuple[Tensor, Evidence | None]:
        """What the first residual branch adds to the tokens, and the evidence when it is attention."""
        if not isinstance(self.attn, Attention):
            return self.ls1(self.attn(self.norm1(x), grid)[:, :rows]), None
        bias = None if sizes is None else log_sizes(sizes)[:, None, None, :]
        mixed, evidence = self.attn.attend(self.norm1(x), bias, rows, grid, prefix)
        evidence.sizes = sizes
        return self.ls1(mixed), evidence


def reduce_tokens(
    reducer: Reducer, x: Tensor, evidence: Evidence | None, sizes: Tensor | None, prefix: int
) -> tuple[Tensor, Tensor | Groups, Tensor | None]:
    """Fewer tokens, the map that made them, and how many patches each of them stands for (None: each for one)."""
    if evidence is None:
        raise LabkitError("A token reducer needs attention to decide, and the mixer of this block is none.")
    before = x.new_ones(x.shape[:2]) if sizes is None else sizes
    x, how = reducer.reduce(x, evidence, sizes, prefix)
    if isinstance(how, Groups):
        if sizes is None and not how.joins:
            return x, how, None  # no token stands for two: attention needs no bias, and its kernel no mask
        return x, how, how.sizes(before)
    # A dense map blends the patches: nobody is in one token alone, and the tokens share them evenly.
    alone, blended = before[:, :prefix], before[:, prefix:].sum(dim=1, keepdim=True)
    count = how.shape[1] - prefix
    return x, how, torch.cat([alone, (blended / count).expand(-1, count)], dim=1)


def log_sizes(sizes: Tensor) -> Tensor:
    """What is added to the scores so that a token of s patches is attended to s times, an empty place not at all.

    Where sizes are learned, they get so little more that a 1 stays a 1, and the gradient at 0 is finite, and right;
    far less would make numbers so small that processors slow down.
    """
    return (sizes + 1e-20 if sizes.requires_grad else sizes).log()


def twin(module: Module) -> Module:
    """The same parts under a new roof: what is added to the copy is not added to the original."""
    twin = copy.copy(module)
    for kind in ("_modules", "_parameters", "_buffers"):
        setattr(twin, kind, dict(getattr(module, kind)))
    return twin


def init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
