"""A paper's own mechanism at work, now, in a few seconds: `demo(row)` → a picture and a sentence.

Nothing says by hand which paper shows what. The row's symbol is made on a bench (`labkit.viz.demo_bench`), and what it
turns out to be decides: a mixer shows its matrix, a reducer the tokens it keeps, a grid what rounding costs. What fits
no kind shows its check instead, run now.

    picture, sentence = demo(row)
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Iterator
from functools import cache
from types import ModuleType
from typing import Any

from labkit.attention.gallery import FAMILIES, VARIANTS
from labkit.attention.gallery import variant as variant_of
from labkit.attention.matrix import effective_matrix
from labkit.errors import LabkitError
from labkit.papers import Row
from labkit.papers.scan import ids
from labkit.viz import demo_draw, gallery_check
from labkit.viz.demo_bench import Bench
from labkit.viz.demo_kinds import mixing, patched, placed, reduced, scored
from labkit.viz.demo_numbers import chosen, folded, gridded, renewed, turned, weighted
from labkit.viz.demo_parts import Demo, Kind, influence
from labkit.viz.mixer_dial import DENSE, made

__all__ = ["Demo", "demo"]

# In the order in which they are asked; the last says least, and is asked when nothing else has an answer.
STRONG: tuple[Kind, ...] = (reduced, scored, gridded, placed, renewed, folded, patched, mixing, weighted, chosen)
WEAK: tuple[Kind, ...] = (turned,)


@cache
def shared() -> Bench:
    """The bench that all demonstrations of a notebook use."""
    return Bench()


def demo(row: Row, bench: Bench | None = None) -> Demo:
    """The picture of the paper's mechanism and what it shows; without a picture, what the paper's check says now."""
    bench = bench or shared()
    if not row.symbol.startswith("labkit."):
        return Demo(None, f"There is nothing to show: no code here holds {row.id} itself.")
    shown = mixer(row, bench) or of_symbol(row, bench)
    if shown.picture is not None:
        return shown
    if not row.check:
        return Demo(None, f"{shown.sentence} No test names this paper.")
    return Demo(None, f"{shown.sentence} So its check is the demonstration: {gallery_check.run(row.check).words}")


def mixer(row: Row, bench: Bench) -> Demo | None:
    """A paper of the gallery of mixers: the matrix that its first variant applies, beside the dense one."""
    each = next((variant for variant in VARIANTS if row.id in variant.papers), None)
    if each is None:
        return None
    x, grid, attn = bench.tokens, bench.grid, bench.block.attn
    ours, dense = (made(name, attn, grid) for name in (each.name, DENSE))
    plain = effective_matrix(dense, x, grid)[0].mean(dim=0)
    matrix = effective_matrix(ours, x, grid)[0].mean(dim=0) if each.linear else None
    middle = grid[0] // 2 * grid[1] + grid[1] // 2
    field = influence(lambda tokens: ours(tokens, grid), x, middle)[0].norm(dim=1).reshape(grid)
    price, full = (variant.cost(grid, x.shape[-1], attn.heads).macs for variant in (each, variant_of(DENSE)))
    said = f"{row.symbol}, as “{each.name}” ({FAMILIES[each.family]}): {each.idea} "
    said += f"At {x.shape[1]} tokens it has {price / full:.0%} of the multiplications of dense attention"
    if matrix is None:
        said += "; it is not linear in its values, so no matrix describes it."
    else:
        said += f", and {float((matrix.abs() > 1e-7).double().mean()):.0%} of its matrix is not zero."
    return Demo(demo_draw.mixers(bench.image[0], plain, matrix, field), said)


def of_symbol(row: Row, bench: Bench) -> Demo:
    """The first thing of the symbol's file, the symbol first, that can be made and shows something."""
    problems: list[str] = []
    symbol = pkgutil.resolve_name(row.symbol)
    assert bench.things  # made here: what is wrong with the bench is no problem of the paper's
    for thing, kinds in order(symbol, row.id):
        try:
            result = bench.make(thing)
            shown = next(filter(None, (kind(bench, thing, result) for kind in kinds)), None)
        except (LabkitError, RuntimeError, TypeError, ValueError, IndexError) as error:
            problems.append(f"{thing.__name__}: {error}")
            continue
        if shown is not None:
            beside = "" if thing is symbol else f", in the file of {row.symbol.rpartition('.')[2]}"
            return Demo(shown.picture, f"{thing.__module__}.{thing.__qualname__}{beside}: {shown.sentence}")
    because = f" ({problems[0]})" if problems else ""
    return Demo(None, f"{row.symbol} fits none of the pictures{because}.")


def order(symbol: Any, id: str) -> Iterator[tuple[Any, tuple[Kind, ...]]]:
    """What is tried, and as what: the symbol, then the rest of its file, but nothing that names other papers only.

    A class is a mechanism and comes first in any case; beside a function there may be something that shows more.
    """
    home: Any = symbol if isinstance(symbol, ModuleType) else inspect.getmodule(symbol)
    others = [
        each
        for name, each in vars(home).items()
        if not name.startswith("_") and (inspect.isclass(each) or inspect.isfunction(each)) and each is not symbol
        if each.__module__ == home.__name__ and id in (ids(inspect.getdoc(each)) or {id})
    ]
    own = [] if symbol is home else [symbol]
    weak = [(each, WEAK) for each in own]
    yield from ((each, STRONG) for each in own)
    yield from weak if inspect.isclass(symbol) else []
    yield from ((each, STRONG) for each in others)
    yield from [] if inspect.isclass(symbol) else weak
    yield from ((each, WEAK) for each in others)
