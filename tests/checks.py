"""The recurring checks, so that a mechanism's test is one line: limits, laws of cost, symmetries, gradients.

Each raises an AssertionError whose sentence says what was expected, by how much it failed and where.
A function takes tokens `x`, (batch, n, d), unless the check says otherwise; it may return a tuple or a dict.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def tensors(value: Any) -> list[Tensor]:
    """The tensors in an output, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, tuple | list):
        return [tensor for part in value for tensor in tensors(part)]
    return [] if value is None else [torch.as_tensor(value)]


def check(condition: Any, sentence: str) -> None:
    """The one place that raises, so that pytest shows the test's line and not the helper's."""
    __tracebackhide__ = True
    if not condition:
        raise AssertionError(sentence)


def equal(a: Any, b: Any, tol: float = 0.0, what: str = "the two results") -> None:
    """Every element of `a` is within `tol` of `b`; infinities must agree, NaN equals nothing."""
    __tracebackhide__ = True
    firsts, seconds = tensors(a), tensors(b)
    check(firsts, f"{what}: there is no tensor to compare.")
    check(len(firsts) == len(seconds), f"{what}: {len(firsts)} tensors against {len(seconds)}.")
    for first, second in zip(firsts, seconds, strict=True):
        shapes = tuple(first.shape), tuple(second.shape)
        check(shapes[0] == shapes[1], f"{what}: shape {shapes[0]} against {shapes[1]}.")
        if first.numel() == 0:
            continue
        first, second = first.detach().double().cpu(), second.detach().double().cpu()
        difference = torch.where(first == second, 0.0, (first - second).abs())
        difference = difference.nan_to_num(torch.inf, torch.inf)
        worst, outside = difference.max(), int((difference > tol).sum())
        where = [int(i) for i in torch.unravel_index(difference.argmax(), difference.shape)]
        check(
            outside == 0,
            f"{what} differ: max |a - b| = {worst:.3g} at {where} (a = {first[tuple(where)]:.6g}, "
            f"b = {second[tuple(where)]:.6g}); {outside} of {difference.numel()} elements exceed {tol:g}.",
        )


def exact_limit(limited: Callable, plain: Callable, *inputs: Any, tol: float = 1e-5) -> None:
    """At full budget the method is the plain one."""
    __tracebackhide__ = True
    equal(limited(*inputs), plain(*inputs), tol, "at full budget, the method and the plain one")


def equal_gradients(f: Callable, g: Callable, x: Tensor, tol: float = 1e-5) -> None:
    """Both send the same gradient back to the input, whatever comes after them."""
    __tracebackhide__ = True
    equal(_input_gradient(f, x), _input_gradient(g, x), tol, "the gradients of the input")


def masked_equals_sliced(fn: Callable, x: Tensor, keep: Tensor, tol: float = 1e-5) -> None:
    """Masking tokens out gives the others what removing them does: `fn(x, keep)` against `fn(x[kept], None)`.

    `keep` is (n,) or (batch, n); an output (batch, n, ...) is compared where kept, (batch, d) as a whole.
    """
    __tracebackhide__ = True
    masked = fn(x, keep)
    for i, kept in enumerate(keep.expand(x.shape[:2])):
        sliced = fn(x[i : i + 1, kept], None)
        ours = masked[i : i + 1, kept] if masked.dim() > 2 else masked[i : i + 1]
        equal(ours, sliced, tol, f"image {i}: masked and sliced")


def conserves(fn: Callable, x: Tensor, total: Callable = lambda x: x.sum(dim=1), tol: float = 1e-5) -> None:
    """`total` is the same before and after; by default the sum over tokens."""
    __tracebackhide__ = True
    equal(total(fn(x)), total(x), tol, "the total after and before")


def permutation_equivariant(fn: Callable, x: Tensor, tol: float = 1e-5) -> None:
    """Reordering the tokens reorders the output: fn(x[:, p]) = fn(x)[:, p]."""
    __tracebackhide__ = True
    order = _shuffle(x.shape[1])
    equal(fn(x[:, order]), fn(x)[:, order], tol, "fn(permuted) and permuted fn")


def permutation_invariant(fn: Callable, x: Tensor, tol: float = 1e-5) -> None:
    """Reordering the tokens changes nothing: fn(x[:, p]) = fn(x)."""
    __tracebackhide__ = True
    equal(fn(x[:, _shuffle(x.shape[1])]), fn(x), tol, "fn(permuted) and fn")


def symmetric(matrix: Tensor, tol: float = 1e-6) -> None:
    """The last two axes may be exchanged."""
    __tracebackhide__ = True
    equal(matrix, matrix.transpose(-2, -1), tol, "the matrix and its transpose")


def rows_sum_to_one(attn: Tensor, tol: float = 1e-5) -> None:
    """The last axis is a probability distribution."""
    __tracebackhide__ = True
    check(attn.min() >= 0, f"a probability is negative: {attn.min():.3g}.")
    equal(attn.sum(dim=-1), torch.ones(attn.shape[:-1]), tol, "the row sums and 1")


def cost_law(macs: float | Callable, module: Callable, x: Tensor, rel: float = 1e-9) -> None:
    """The formula (a number, or a function of x's shape) counts what torch counts; 1 MAC = 2 FLOPs.

    Attention runs unfused here: the counters of older torch versions do not see the fused kernel.
    """
    __tracebackhide__ = True
    expected = macs(*x.shape) if callable(macs) else macs
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(x)
    counted = counter.get_total_flops() / 2
    off = abs(expected - counted) / max(counted, 1)
    check(off <= rel, f"the formula says {expected:,.0f} MACs, torch counts {counted:,.0f}: {off:.2%} apart.")


def gradients_flow(module: nn.Module, x: Tensor) -> None:
    """Every trainable parameter receives a gradient that is finite and not all zero."""
    __tracebackhide__ = True
    module = copy.deepcopy(module)
    _scalar(module(x)).backward()
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    for name, parameter in trainable.items():
        check(parameter.grad is not None, f"{name} receives no gradient.")
        check(parameter.grad.isfinite().all(), f"the gradient of {name} is not finite.")
        check(parameter.grad.any(), f"the gradient of {name} is all zero.")


def follows_dtype_and_device(module: Callable, x: Tensor) -> None:
    """In float64 and bfloat16, and on a GPU when there is one, the output is where and what the input is."""
    __tracebackhide__ = True
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    for device in devices:
        for dtype in (torch.float64, torch.bfloat16):
            moved = copy.deepcopy(module).to(device, dtype) if isinstance(module, nn.Module) else module
            for out in tensors(moved(x.to(device, dtype))):
                check(out.device.type == device, f"the input is on {device}, the output on {out.device.type}.")
                if out.is_floating_point():
                    check(out.dtype == dtype, f"the input is {dtype}, the output {out.dtype}.")
                    check(not out.isnan().any(), f"the output holds NaN in {dtype}.")


def deterministic(fn: Callable, *inputs: Any) -> None:
    """Two calls give the same bits."""
    __tracebackhide__ = True
    equal(fn(*inputs), fn(*inputs), 0.0, "the first and the second call")


def compiles(module: Callable, *inputs: Any, tol: float = 1e-10) -> None:
    """The compiler can trace the module, and what was traced computes the same."""
    __tracebackhide__ = True
    # It remembers the sizes that earlier tests compiled for, and makes a symbol of one that changed: 20 times as slow.
    torch.compiler.reset()
    equal(torch.compile(module, backend="aot_eager")(*inputs), module(*inputs), tol, "compiled and eager")


def batch_independent(fn: Callable, x: Tensor, tol: float = 1e-5) -> None:
    """An image's result does not depend on its neighbours in the batch: a batch of 2 is two batches of 1."""
    __tracebackhide__ = True
    check(len(x) > 1, "a batch of at least two images is needed.")
    together = tensors(fn(x))
    for i in range(len(x)):
        equal([out[i : i + 1] for out in together], fn(x[i : i + 1]), tol, f"image {i} in company and alone")


def _shuffle(n: int) -> Tensor:
    """A fixed order without symmetry: a reversal or a shift would let a symmetric neighbourhood pass."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))


def _scalar(out: Any) -> Tensor:
    """A random weighted sum: the plain sum, or that of the squares, is constant after a normalisation."""
    generator = torch.Generator().manual_seed(0)
    floats = [tensor for tensor in tensors(out) if tensor.is_floating_point()]
    return torch.stack([(t * torch.randn(t.shape, generator=generator).to(t)).sum() for t in floats]).sum()


def _input_gradient(fn: Callable, x: Tensor) -> Tensor:
    x = x.detach().clone().requires_grad_(True)
    return torch.autograd.grad(_scalar(fn(x)), x)[0]
