"""See the attention of any torch model without an edit or a hook: a mode that sees every call to torch.

Fused attention hides its probabilities; the mode computes them beside it from the same q and k. What the model
returns stays what it was.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from labkit.errors import LabkitError
from labkit.tracing.sightings import Seen, Sightings
from labkit.tracing.softmax import is_attention, probabilities, shared
from labkit.vit import Attention, ViT

BLOCKS = re.compile(r"blocks\.\d+(\.blocks\.\d+)?\.attn")
Head = tuple[int, int]  # (layer in the order in which attention runs, head)


@dataclass
class Call:
    """One attention that ran: where, how large, a function that gives its probabilities, and what was seen before."""

    name: str  # "blocks.3.attn"; a module that attends several times gets "[1]", "[2]" behind it
    owner: nn.Module | None
    shape: tuple[int, ...]  # (..., queries, keys)
    attn: Callable[[], Tensor]
    seen: Seen


class Watch(TorchFunctionMode):
    """Calls `see` for each attention. `graph=True` makes the output depend on what `see` was given.

    `silent` heads put out zeros: (layer, head) with layers counted in the order in which they run.
    """

    def __init__(
        self,
        model: nn.Module,
        see: Callable[[Call], None] = lambda call: None,
        graph: bool = False,
        silent: Iterable[Head] = (),
    ) -> None:
        super().__init__()
        if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
            raise LabkitError("TorchScript hides what a model calls; take the model before torch.jit made it.")
        self.see, self.graph, self.silent = see, graph, list(silent)
        self.own = isinstance(model, ViT)
        self.names = {id(module): name for name, module in model.named_modules()}
        self.times: Counter[str] = Counter()
        self.heads: list[int] = []  # of each layer that has run
        self.block = ""  # where the last one ran
        self.sightings = Sightings()
        self.compiled = any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in model.modules())

    def __enter__(self) -> Watch:
        # torch.compile would hide the calls, too, but can be told to wait.
        self.stance = torch.compiler.set_stance("force_eager") if self.compiled else nullcontext()
        self.stance.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.stance.__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and self.counts():
            return self.fused(*args, **kwargs)
        if func is F.multi_head_attention_forward and self.counts():
            return self.multi_head(func, args, kwargs)
        out = func(*args, **kwargs)
        if is_attention(func, args, kwargs, out) and self.counts():
            return self.written_out(out)
        self.sightings.note(func, args, kwargs, out, lambda: self.where()[0])
        return out

    def fused(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        def attn() -> Tensor:
            return probabilities(query, key, *args, **kwargs)

        shape = (*query.shape[:-1], key.shape[-2])
        if self.graph:
            inside = in_graph(attn())
            mask = self.report(shape, lambda: inside)
            out = inside @ (shared(value, query) if kwargs.get("enable_gqa") else value)
        else:
            mask = self.report(shape, attn)
            out = F.scaled_dot_product_attention(query, key, value, *args, **kwargs)
        return out if mask is None else out * mask.to(out)

    def written_out(self, attn: Tensor) -> Tensor:
        inside = in_graph(attn) if self.graph else attn
        mask = self.report(tuple(attn.shape), lambda: inside)
        return inside if mask is None else inside * mask.to(inside)

    def multi_head(self, func: Any, args: tuple, kwargs: dict) -> tuple[Tensor, Tensor | None]:
        """torch's own multi-head attention hands its probabilities over when it is asked to."""
        wanted, mean = kwargs.get("need_weights", True), kwargs.get("average_attn_weights", True)
        query, heads, weight = args[0], args[4], args[11]  # the weight of the projection behind the heads
        if self.graph and not query.requires_grad:
            live = query.detach().requires_grad_()
            args = tuple(live if arg is query else arg for arg in args)
        given = kwargs | {"need_weights": True, "average_attn_weights": False}
        out, attn = func(*args, **given)
        attn = attn if attn.ndim == 4 else attn[None]
        # What is handed over is a view of what was used, and only what was used has a gradient.
        inside = attn._base if self.graph and attn._base is not None else attn
        mask = self.report(tuple(attn.shape), lambda: inside)
        if mask is not None:  # a head is silent when its columns of the projection are zero
            columns = mask.flatten().repeat_interleave(weight.shape[1] // heads)
            out, _ = func(*args[:11], weight * columns.to(weight), *args[12:], **given)
        return out, (attn.mean(dim=1) if mean else attn) if wanted else None

    def counts(self) -> bool:
        """Is this an attention of its own? A token reducer only looks at one again."""
        name, owner = self.where()
        if self.own:  # the attention of a block, of which it hands over the evidence
            return isinstance(owner, Attention) and BLOCKS.fullmatch(name) is not None
        return not hasattr(owner, "reducer") and "reducer" not in name.split(".")

    def report(self, shape: tuple[int, ...], attn: Callable[[], Tensor]) -> Tensor | None:
        """Tell of one more attention; returns its mask when heads are to be silent."""
        name, owner = self.where()
        self.times[name] += 1
        numbered = f"{name or 'attention'}[{self.times[name] - 1}]".removesuffix("[0]")
        axis = axis_of_heads(len(shape) - 2, owner)
        mask = self.count(name, 1 if axis is None else shape[axis])
        self.see(Call(numbered, owner, shape, attn, self.sightings.until(name)))
        return mask.view(-1, *[1] * (len(shape) - 1 - (axis or 0))) if self.silent else None

    def count(self, name: str, heads: int) -> Tensor:
        """Count the heads, and give a number for each: 0 for the silent ones."""
        block, first = ".".join(name.split(".")[:2]), 0
        if self.own and block == self.block:  # side by side, several are one layer with all their heads
            first = self.heads[-1]
            self.heads[-1] += heads
        else:
            self.heads.append(heads)
        self.block = block
        silent = {head - first for layer, head in self.silent if layer == len(self.heads) - 1}
        return torch.tensor([float(head not in silent) for head in range(heads)])

    def where(self) -> tuple[str, nn.Module | None]:
        """The innermost module of the model that is running now, found on the call stack."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            module = frame.f_locals.get("self")
            if isinstance(module, nn.Module) and id(module) in self.names and not isinstance(module, nn.Softmax):
                return self.names[id(module)], module
            frame = frame.f_back
        return "attention", None


def axis_of_heads(axes: int, owner: nn.Module | None) -> int | None:
    """Which of the axes before queries and keys counts the heads: behind the batch, unless windows come first."""
    if axes < 2:
        return None
    return 2 if axes == 3 and hasattr(owner, "ws") else 1


def in_graph(attn: Tensor) -> Tensor:
    """Probabilities that a gradient can be taken for, even when every weight of the model is frozen."""
    return attn if attn.requires_grad else attn.requires_grad_()


def silenced(model: nn.Module, heads: Iterable[Head]) -> Callable[[Tensor], Tensor]:
    """The model, itself unchanged, as a function of images in which these heads, (layer, head), put out zeros."""
    heads = [(int(layer), int(head)) for layer, head in heads]

    def run(images: Tensor) -> Tensor:
        watch = Watch(model, silent=heads)
        with watch:
            logits = model(images)
        for layer, head in heads:
            if not 0 <= layer < len(watch.heads):
                raise LabkitError(f"There is no layer {layer} to silence a head of; {len(watch.heads)} attended.")
            if not 0 <= head < watch.heads[layer]:
                raise LabkitError(f"Layer {layer} has no head {head}; it has {watch.heads[layer]}, counted from 0.")
        return logits

    return run
