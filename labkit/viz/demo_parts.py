"""What every kind of demonstration needs: who moves whom, and a made thing as a function of images or of tokens."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from labkit.errors import LabkitError
from labkit.vit import ViT
from labkit.viz.demo_bench import Bench

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GIVEN = {"block", "linear", "mlp", "model", "norm", "vit"}  # arguments that bring trained weights along
ASKS = 8  # random questions that estimate how much each input moves an output


class Demo(NamedTuple):
    """A picture, or None where a mechanism shows none, and what there is to see in a sentence."""

    picture: Figure | None
    sentence: str


Kind = Callable[[Bench, Any, Any], Demo | None]


def influence(function: Callable[[Tensor], Tensor], x: Tensor, token: int) -> Tensor:
    """How much each number of x (1, ...) moves output token `token` of `function(x)` (1, m, d): the norm of ∂out/∂in.

    Random signs ask for all d outputs at once; the mean square of what they find is the sum of the squares.
    """
    signs = torch.Generator().manual_seed(0)
    with torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        out = function(x)[0, token]
        if not out.requires_grad:
            return torch.zeros_like(x)
        squares = torch.zeros_like(x)
        for _ in range(ASKS):
            asked = out * (torch.randint(0, 2, out.shape, generator=signs) * 2 - 1).to(out)
            found = torch.autograd.grad(asked.sum(), x, retain_graph=True, allow_unused=True)[0]
            squares += 0 if found is None else found.square()
    return (squares / ASKS).sqrt()


def values(made: Any) -> Tensor | None:
    """The numbers in a result: a tensor, what `restore` gives back, or whole numbers times their scale."""
    if hasattr(made, "restore"):
        return made.restore()
    if isinstance(made, tuple) and made and isinstance(made[0], Tensor):
        whole = isinstance(made[1], Tensor) and not made[0].is_complex() and made[0].equal(made[0].round())
        return made[0] * made[1] if whole else made[0]
    return made if isinstance(made, Tensor) else None


def untrained(thing: Any, made: Any) -> str:
    """A warning where the weights are as they were drawn, and none came from the model."""
    given = GIVEN & set(inspect.signature(thing).parameters)
    random = isinstance(made, nn.Module) and any(p.ndim > 1 for p in made.parameters()) and not given
    return " Its weights are random: nothing was trained." if random else ""


def of_images(bench: Bench, thing: Any, made: Any) -> Callable[[Tensor], Tensor] | None:
    """images → tokens, where it is one."""
    if isinstance(made, ViT):
        return lambda images: made.observe(images).steps[-1].x
    module = isinstance(made, nn.Module) and list(inspect.signature(made.forward).parameters)[:1] == ["images"]
    if not module and not (inspect.isfunction(thing) and "images" in inspect.signature(thing).parameters):
        return None
    given = {} if module else bench.arguments(thing)
    ask = made if module else thing

    def tokens(images: Tensor) -> Tensor:
        out = ask(**{**given, "images": images})
        return out[0] if isinstance(out, tuple) else out

    return tokens


def of_tokens(bench: Bench, thing: Any, made: Any) -> Callable[[Tensor], Tensor] | None:
    """tokens → tokens, where it is one: `made(x, grid)`, `made(x)`, or a function of tokens x."""
    ask = made.forward if isinstance(made, nn.Module) else thing
    if not callable(ask) or inspect.isclass(ask):
        return None
    names = list(inspect.signature(ask).parameters)
    name = next((name for name in ("context", "patches", "tokens", "x") if name in names), None)
    if name is None:
        return None
    given = bench.arguments(ask) | ({"grid": bench.grid} if "grid" in names else {})

    def tokens(x: Tensor) -> Tensor:
        out = values(ask(**{**given, name: x}))
        if out is None:
            raise LabkitError(f"{thing.__name__} makes no tokens of tokens.")
        return out[:, None] if out.ndim == 2 else out

    return tokens
