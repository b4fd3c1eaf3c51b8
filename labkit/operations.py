"""What a call really does: each product of matrices and each convolution, with its true shape and its layer.

A dispatch mode watches the operators of one real run: einsum and matmul arrive taken apart, attention arrives
before it is fused. Element-wise work (norms, GELU, softmax, residuals) is left out: it multiplies nothing up.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from labkit.dispatch import Watch

# The operators that are one product, and where among their arguments its two factors begin.
PRODUCTS = {
    "linear": 0,
    "mm": 0,
    "bmm": 0,
    "mv": 0,
    "dot": 0,
    "_int_mm": 0,
    "addmm": 1,
    "baddbmm": 1,
    "addmv": 1,
}

# Which part a parameter or a module belongs to, by its path; the first that fits.
PATHS = (
    ("patch", r"^(patch_embed|conv_proj)(\.|$)"),
    ("head", r"^(heads?|head_dist|attn_pool|fc|classifier)(\.|$)"),
    ("qkv", r"\.(qkv|kv|[qkv]|[qkv]_proj|[qkv]_bias|in_proj_weight|in_proj_bias|query|key|value)(\.|$)"),
    ("proj", r"(attn|attention)\.(proj|out_proj)(\.|$)"),
    ("attention", r"(attn|attention)$"),
    ("mlp", r"(^|\.)mlp(\.|$)"),
)


@dataclass(frozen=True)
class Operation:
    """One product or convolution: the layer whose weights it used, how much it computed, what it moved."""

    name: str  # the layer, as in "blocks.0.attn.qkv"
    part: str  # patch, qkv, attention, proj, mlp, head or other
    macs: int
    weight_bytes: int  # of the weights it read
    activation_bytes: int  # of everything else it read, and of what it wrote

    @property
    def bytes(self) -> int:
        return self.weight_bytes + self.activation_bytes


def operations(fn: Callable, *inputs: Any) -> list[Operation]:
    """The operations of `fn(*inputs)` at inference, in order; `fn` is a module or any function of tensors."""
    model = fn if isinstance(fn, nn.Module) else nn.Module()
    recorder = _Recorder(model)
    fused_layers = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one kernel of nn.MultiheadAttention would hide four products
    try:
        with inference(model), _following(model, recorder.path), recorder:
            fn(*inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused_layers)
    return recorder.seen


def part_of(path: str) -> str:
    """The part that the parameter or module of this path belongs to; "other" when nothing fits."""
    return next((part for part, pattern in PATHS if re.search(pattern, path)), "other")


@contextmanager
def inference(*models: Any) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every module is back in the mode it was in."""
    modules = [m for model in models if isinstance(model, nn.Module) for m in model.modules()]
    before = [m.training for m in modules]
    try:
        for module in modules:
            module.training = False
        with torch.inference_mode():
            yield
    finally:
        for module, training in zip(modules, before, strict=True):
            module.training = training


@contextmanager
def _following(model: nn.Module, path: list[str]) -> Iterator[None]:
    """Keeps the names of the modules that are running in `path`, the innermost last."""
    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: path.append(name)))
        handles.append(module.register_forward_hook(lambda *_: path.__delitem__(-1)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Recorder(Watch):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.seen: list[Operation] = []
        self.path = [""]
        self.last = ("", "other")  # name and part of the last layer that has one
        # A slice or a transpose of a weight is still that weight: it has the same storage.
        weights = [*model.named_parameters(), *model.named_buffers()]
        self.owners = {_storage(w): name for name, w in weights}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, kind = kwargs or {}, func._overloadpacket.__name__
        if kind not in PRODUCTS and kind not in ("convolution", "scaled_dot_product_attention", "qlinear_pointwise"):
            with self:
                out = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if out is NotImplemented else out
        out = func(*args, **kwargs)
        if kind == "convolution":
            x, weight, transposed = args[0], args[1], args[6]
            self.record((x if transposed else out).numel() * weight[0].numel(), (x, weight), out)
        elif kind == "qlinear_pointwise":  # its weight lies in an order of the processor's own, and is no tensor
            self.record(out.numel() * args[0].shape[-1], (args[0],), out)
        elif kind == "scaled_dot_product_attention":
            q, k, v = args[:3]
            pairs = math.prod(q.shape[:-1]) * k.shape[-2]
            self.record(pairs * (q.shape[-1] + v.shape[-1]), (q, k, v), out)
        else:
            a, b = args[PRODUCTS[kind] :][:2]
            self.record(out.numel() * a.shape[-1], (a, b), out)
        return out

    def record(self, macs: int, operands: tuple[Tensor, ...], out: Tensor) -> None:
        owners = [self.owners.get(_storage(t)) for t in operands]
        path = next((name for name in owners if name), self.path[-1])
        name, part = re.sub(r"[._]weight$", "", path), part_of(path)
        if part not in ("attention", "other"):
            self.last = name, part
        elif self.last[1] == "qkv" and not any(owners):  # activations meet, and q, k, v are the latest there are
            name, part = self.last[0].rpartition(".")[0], "attention"
        sizes = [t.numel() * t.element_size() for t in operands]
        weight_bytes = sum(size for size, owner in zip(sizes, owners, strict=True) if owner)
        moved = sum(sizes) + out.numel() * out.element_size()
        self.seen.append(Operation(name, part, macs, weight_bytes, moved - weight_bytes))


def _storage(tensor: Tensor) -> int:
    """Which storage a tensor looks into; not its address, as on the device "meta" all have the same."""
    return tensor.untyped_storage()._cdata
