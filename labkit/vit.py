"""The plain vision transformer, from pixels to logits: patches become tokens, blocks mix them, a head reads.

"An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale", 2020 (S207). Its parts are in
`labkit.layers`; parameters carry the names that timm gives them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from labkit.errors import LabkitError
from labkit.evidence import Evidence, Grid, Observation, Reducer, Step
from labkit.layers import (
    MLP,
    Attention,
    Block,
    Impl,
    LayerScale,
    PatchEmbed,
    Size,
    check_images,
    init_weights,
    reduce_tokens,
)

__all__ = [
    "MLP",
    "Attention",
    "Block",
    "Impl",
    "LayerScale",
    "PatchEmbed",
    "Size",
    "ViT",
    "check_images",
    "reduce_tokens",
]


def resample_positions(positions: Tensor, old: Grid, new: Grid, prefix: int = 0) -> Tensor:
    """Learned positions (1, prefix + h*w, d) on a new grid: bicubic, antialiased, prefix rows untouched."""
    if old == new:
        return positions
    head, grid = positions[:, :prefix], positions[:, prefix:]
    grid = grid.to(torch.promote_types(grid.dtype, torch.float32))
    grid = rearrange(grid, "1 (h w) d -> 1 d h w", h=old[0])
    grid = F.interpolate(grid, size=new, mode="bicubic", antialias=True)
    return torch.cat([head, rearrange(grid, "1 d h w -> 1 (h w) d").to(positions.dtype)], dim=1)


class ViT(nn.Module):
    """Patches, class token, positions → blocks → norm → pool → head. The thing that every dial turns.

    `pool` is "class" (read the first token), "avg" (the mean of the patches) or a module (b, n, d) → (b, d).
    Images of another size than `image_size` are welcome: the learned positions are resampled.
    """

    def __init__(
        self,
        image_size: Size = 224,
        patch_size: Size = 16,
        classes: int = 1000,
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        *,
        channels: int = 3,
        pool: Literal["class", "avg"] | nn.Module = "class",
        class_token: bool | None = None,
        registers: int = 0,
        positions: bool = True,
        prefix_positions: bool = True,  # do the tokens before the patches have positions of their own?
        layer_scale: float | None = None,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
        patching: nn.Module | None = None,
        position: nn.Module | Sequence[nn.Module] | None = None,  # in place of the learned table
        impl: Impl = "fast",
    ) -> None:
        super().__init__()
        class_token = pool == "class" if class_token is None else class_token
        if pool == "class" and not class_token:
            raise LabkitError('pool="class" reads the class token; set class_token=True or pool="avg".')
        if isinstance(pool, str) and pool not in ("class", "avg"):
            raise LabkitError(f'pool={pool!r} is unknown; choose "class", "avg" or a module (b, n, d) → (b, d).')
        self.patch_embed = patching if patching is not None else PatchEmbed(patch_size, channels, dim)
        size = (image_size, image_size) if isinstance(image_size, int) else image_size
        training = self.patch_embed.training
        with torch.no_grad():  # in eval mode: the probe must not enter the statistics of a batch norm
            self.grid: Grid = self.patch_embed.eval()(torch.zeros(1, channels, *size))[1]
        self.patch_embed.train(training)
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim) * 1e-6) if class_token else None
        self.reg_token = nn.Parameter(torch.randn(1, registers, dim) * 1e-6) if registers else None
        self.embeds_prefix = prefix_positions
        n = self.grid[0] * self.grid[1] + (self.prefix if prefix_positions else 0)
        self.pos_embed = nn.Parameter(torch.randn(1, n, dim) * 0.02) if positions and position is None else None
        self.position: nn.Module | None = None
        self.norm_pre: nn.Module = nn.Identity()
        self.blocks = nn.ModuleList(
            Block(dim, heads, mlp_ratio, layer_scale=layer_scale, norm=norm) for _ in range(depth)
        )
        if position is not None:
            self.set_position(position)
        self.norm = norm(dim)
        self.attn_pool = pool if isinstance(pool, nn.Module) else None
        self.fc_norm: nn.Module = nn.Identity()
        self.head = nn.Linear(dim, classes) if classes else nn.Identity()
        self.pool = pool if isinstance(pool, str) else "module"
        self.entry: Reducer | None = None  # a token reducer in front of the first block
        self.pools_prefix = False  # does an average or a module read the tokens before the patches too?
        self.last: Literal["class", "full"] = "class"
        self.set_impl(impl)
        self.apply(init_weights)

    @property
    def prefix(self) -> int:
        """How many tokens stand before the patches."""
        return sum(t.shape[1] for t in self.prefix_tokens())

    def prefix_tokens(self) -> list[Tensor]:
        return [t for t in (self.cls_token, self.reg_token) if t is not None]

    def set_position(self, position: nn.Module | Sequence[nn.Module]) -> ViT:
        """Plug a module in where it says it belongs: its `place` is "tokens", "scores" or "blocks".

        At the scores one module serves all blocks, or a sequence gives each block its own.
        """
        each = [position] * len(self.blocks) if isinstance(position, nn.Module) else list(position)
        place = getattr(each[0], "place", None)
        if place == "tokens":
            self.position = each[0]
        elif place == "blocks":
            self.blocks[0].after = each[0]
        elif place == "scores" and len(each) == len(self.blocks):
            for block, module in zip(self.blocks, each, strict=True):
                attn: Any = block.attn
                attn.position = module
        else:
            raise LabkitError(
                f"{type(each[0]).__name__} (place={place!r}, {len(each)} for {len(self.blocks)} blocks) does not fit; "
                'expected place "tokens", "scores" or "blocks", and at the scores one module or one for each block.'
            )
        return self

    def set_impl(self, impl: Impl) -> ViT:
        """Choose the written-out ("plain") or the fused ("fast") attention wherever there is one."""
        if impl not in ("plain", "fast"):
            raise LabkitError(f'impl={impl!r} is unknown; choose "plain" or "fast".')
        self.impl = impl
        for module in self.modules():
            if hasattr(module, "impl"):
                module.impl = impl  # type: ignore[assignment]
        return self

    @classmethod
    def from_timm(cls, model: str | nn.Module, pretrained: bool = False, **kwargs: Any) -> ViT:
        """Our ViT with the weights and the logits of a plain timm VisionTransformer (name or instance)."""
        from labkit.convert import from_timm

        return from_timm(model, pretrained, **kwargs)

    def embed(self, images: Tensor) -> tuple[Tensor, Grid]:
        """Images (b, c, h, w) → tokens (b, prefix + patches, d) with positions, and the patch grid."""
        x, grid = self.patch_embed(images)
        x = x if self.position is None else self.position(x, grid)
        prefix = [t.expand(len(x), -1, -1) for t in self.prefix_tokens()]
        pos = self.pos_embed
        if pos is not None and self.embeds_prefix:
            x = torch.cat([*prefix, x], dim=1) + resample_positions(pos, self.grid, grid, self.prefix)
        else:
            x = x if pos is None else x + resample_positions(pos, self.grid, grid)
            x = torch.cat([*prefix, x], dim=1)
        return self.norm_pre(x), grid

    def enter(self, images: Tensor) -> tuple[Step, Grid]:
        """The tokens that the first block gets, with the map when they were reduced before it, and the grid."""
        x, grid = self.embed(images)
        if self.entry is None:
            return Step(x, None, None, None), grid
        evidence = Evidence(x[:, None, :0], x[:, None], v=x[:, None], images=images)
        x, how, sizes = reduce_tokens(self.entry, x, evidence, None, self.prefix)
        return Step(x, evidence, how, sizes), grid

    def steps(self, x: Tensor, grid: Grid, rows: int | None = None, sizes: Tensor | None = None) -> Iterator[Step]:
        """Run the blocks one by one; with `rows`, the last one computes only the first `rows` tokens."""
        for i, block in enumerate(self.blocks, start=1):
            step = block(x, grid, sizes, self.prefix, rows if i == len(self.blocks) else None)
            x, sizes = step.x, step.sizes
            yield step

    def rows_read(self) -> int | None:
        """How many leading tokens the head reads; None when it reads them all."""
        return 1 if self.pool == "class" else None

    def rows_computed(self) -> int | None:
        """How many leading tokens fast inference computes in the last block: those that the head reads; None: all."""
        return self.rows_read() if self.last == "class" and self.impl == "fast" and not self.training else None

    def read(self, x: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Tokens (b, n, d) → logits (b, classes); in the mean a token that stands for s patches counts s times."""
        x = self.norm(x)
        if self.pool == "class":
            x = x[:, 0]
        else:
            first = 0 if self.pools_prefix else self.prefix
            x = x[:, first:]
            if self.attn_pool is not None:
                x = self.attn_pool(x) if sizes is None else self.attn_pool(x, sizes[:, first:])
            elif sizes is None:
                x = x.mean(dim=1)
            else:
                share = sizes[:, first:, None] / sizes[:, first:].sum(dim=1)[:, None, None]
                x = (share * x).sum(dim=1)
        return self.head(self.fc_norm(x))

    def last_step(self, images: Tensor) -> Step:
        """What leaves the last block; fast inference computes only the tokens that the head reads."""
        last, grid = self.enter(images)
        for step in self.steps(last.x, grid, self.rows_computed(), last.sizes):
            last = step
        return last

    def features(self, images: Tensor) -> Tensor:
        """The tokens that leave the last block."""
        return self.last_step(images).x

    def forward(self, images: Tensor) -> Tensor:
        last = self.last_step(images)
        return self.read(last.x, last.sizes)

    def observe(self, images: Tensor) -> Observation:
        """The same pass with everything kept: logits and, for each block, its tokens and its evidence."""
        first, grid = self.enter(images)
        steps = list(self.steps(first.x, grid, sizes=first.sizes))
        return Observation(self.read(steps[-1].x, steps[-1].sizes), grid, first.x, steps, first.how)
