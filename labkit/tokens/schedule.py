"""How much to reduce in which block: as much in each, more at first, in a few of them, or what meets a budget.

The decreasing schedule is from "Token Merging: Your ViT But Faster", 2022; keeping a share in three blocks is that
of "Not All Patches are What You Need: Expediting Vision Transformers via Token Reorganizations", 2022 (S029).

    attach_schedule(model, Merge, decreasing(13, depth=12))
    attach_schedule(model, Merge, to_macs(model, 0.5))
    attach_schedule(model, Keep, to_macs(model, 0.7, Keep, staged, SHARES))
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any

import torch

from labkit import tokens
from labkit.cost import block_macs, count
from labkit.errors import LabkitError
from labkit.evidence import Evidence, Reducer
from labkit.tokens.merge import Merge
from labkit.vit import MLP, Attention, Block, ViT

Amounts = Sequence[Any]  # for each block what its reducer is made of, None for a block without one
Make = Callable[[Any], Reducer]  # Merge takes an amount r, Keep a share

SHARES = tuple(i / 1000 for i in range(1000, 0, -1))  # a dial for `Keep`, from all to nothing


def constant(amount: Any, depth: int) -> list[Any]:
    """The same in every block."""
    return [amount] * depth


def decreasing(r: int, depth: int) -> list[int]:
    """From 2r in the first block down to 0 in the last, r on average, rounded down."""
    return [2 * r * (depth - 1 - i) // (depth - 1) for i in range(depth)] if depth > 1 else [r]


def staged(amount: Any, depth: int, every: int | None = None) -> list[Any]:
    """The amount in three blocks, a quarter of the depth apart (the 4th, 7th and 10th of 12), or `every` so many."""
    every = max(1, depth // 4) if every is None else every
    return [amount if i and i % every == 0 else None for i in range(depth)]


def attach_schedule(model: ViT, make: Make, amounts: Amounts) -> ViT:
    """A copy of the model, sharing its weights, whose block i reduces by `make(amounts[i])`."""
    if len(amounts) != len(model.blocks):
        raise LabkitError(
            f"The schedule has {len(amounts)} amounts and the model {len(model.blocks)} blocks; "
            "give each block one, None where it shall keep its tokens."
        )
    for layer, amount in enumerate(amounts):
        model = model if amount is None else tokens.attach(model, make(amount), [layer])
    return model


def tokens_after(model: ViT, make: Make, amounts: Amounts) -> list[int]:
    """How many tokens leave each block; the reducers are asked with blank tokens."""
    n, counts = model.prefix + model.grid[0] * model.grid[1], []
    for amount in amounts:
        if amount is not None:
            blank = torch.zeros(1, 1, n, 1)
            n = make(amount).reduce(blank[0], Evidence(blank, blank, v=blank), None, model.prefix)[0].shape[1]
        counts.append(n)
    return counts


def blocks_macs(model: ViT, after: Sequence[int]) -> int:
    """The law of `labkit.cost` with `after[i]` tokens leaving block i: its MLP has them, its attention those before.

    A last block of which only the class token is read reduces nothing.
    """
    n, total = model.prefix + model.grid[0] * model.grid[1], 0
    shortcut = model.last == "class" and model.impl == "fast"
    for i, (block, left) in enumerate(zip(model.blocks, after, strict=True), start=1):
        d, ratio = _shape(block)
        if shortcut and i == len(model.blocks) and model.rows_read() is not None:
            total += sum(block_macs(n, d, ratio, model.rows_read()).values())
        else:
            law = block_macs(n, d, ratio)
            total += sum(law.values()) - law["mlp"] + block_macs(left, d, ratio)["mlp"]
        n = left
    return total


def model_macs(model: ViT, after: Sequence[int] | None = None) -> int:
    """The whole model with `after[i]` tokens leaving block i, by the laws; None: with all of them.

    What a reducer itself computes is not in the law: a search for pairs takes a quarter of n² d_head a block.
    """
    whole = [model.prefix + model.grid[0] * model.grid[1]] * len(model.blocks)
    parts = count(model).parts
    fixed = sum(parts[part]["macs"] for part in parts if part not in block_macs(1, 1))
    return fixed + blocks_macs(model, whole if after is None else after)


def to_macs(
    model: ViT,
    share: float,
    make: Make = Merge,
    plan: Callable[[Any, int], Amounts] = constant,
    dial: Sequence[Any] | None = None,
) -> Amounts:
    """The mildest schedule `plan(amount, depth)` with which the model costs at most `share` of its MACs.

    `dial` are the amounts to choose from, the mildest first: by default all r that `Merge` can take. MACs are those
    of `model_macs`, without what the reducer itself computes.
    """
    depth, patches = len(model.blocks), model.grid[0] * model.grid[1]
    dial = range(patches // 2 + 1) if dial is None else dial
    full = model_macs(model)
    fixed = full - blocks_macs(model, [model.prefix + patches] * depth)

    def cost(amount: Any) -> int:
        return fixed + blocks_macs(model, tokens_after(model, make, plan(amount, depth)))

    if not 0 < share <= 1:
        raise LabkitError(f"share={share} is not a share; expected a number above 0 and at most 1.")
    place = bisect_left(dial, -share * full, key=lambda amount: -cost(amount))
    if place == len(dial):
        raise LabkitError(
            f"Even the strongest of these schedules costs {cost(dial[-1]) / full:.1%} of the model's MACs, and "
            f"{share:.1%} was asked for; ask for more, reduce in earlier blocks or widen the dial."
        )
    return plan(dial[place], depth)


def _shape(block: Any) -> tuple[int, float]:
    """Width, and how many times as wide the MLP is, of a block that the law describes."""
    if not (isinstance(block, Block) and isinstance(block.attn, Attention) and isinstance(block.mlp, MLP)):
        raise LabkitError(
            "The law of costs knows blocks of plain attention and a plain MLP; give the amounts yourself."
        )
    d, hidden = block.attn.qkv.in_features, block.mlp.fc1.out_features
    return d, (hidden + 0.5) / d  # the law rounds down
