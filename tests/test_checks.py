"""Every check accepts what is right and rejects what is wrong, with a sentence that says how."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests import checks

DRAW = torch.Generator().manual_seed(0)
X = torch.randn(2, 9, 8, generator=DRAW)
KEEP = torch.tensor([1, 1, 0, 1, 0, 1, 1, 1, 0], dtype=torch.bool)


def rejects(sentence: str):
    return pytest.raises(AssertionError, match=sentence)


def attend(x, keep=None):
    scores = x @ x.transpose(1, 2)
    if keep is not None:
        scores = scores.masked_fill(~keep.expand(x.shape[:2])[:, None], float("-inf"))
    return scores.softmax(-1) @ x


class OneWay(nn.Module):
    """A linear layer with something wrong, by choice: a part unused, or a dtype or a device of its own."""

    def __init__(self, flaw: str = "") -> None:
        super().__init__()
        self.used, self.idle, self.flaw = nn.Linear(8, 8), nn.Linear(8, 8), flaw

    def forward(self, x):
        x = self.used(x)
        if self.flaw == "unused":
            return x
        if self.flaw == "zero":
            return x + 0 * self.idle(x)
        if self.flaw == "infinite":
            return x + self.idle(x) / 0
        return self.idle(x).float() if self.flaw == "float32" else self.idle(x)


def test_equal():
    checks.equal(X, X.clone())
    checks.equal(X, X + 1e-7, tol=1e-6)
    checks.equal({"a": X, "b": [1, 2.5]}, (X, (1, 2.5)))
    checks.equal(torch.tensor([-torch.inf, 0]), torch.tensor([-torch.inf, 0]))
    off = X.clone()
    off[1, 3, 2] += 0.5
    with rejects(r"max \|a - b\| = 0.5 at \[1, 3, 2\] .*; 1 of 144 elements exceed 1e-06"):
        checks.equal(X, off, tol=1e-6)
    with rejects(r"shape \(2, 9, 8\) against \(2, 9\)"):
        checks.equal(X, X[..., 0])
    with rejects("2 tensors against 1"):
        checks.equal((X, X), X)
    with rejects("no tensor to compare"):
        checks.equal(None, None)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_equal_lets_no_special_number_pass(bad):
    for a, b in [([bad], [0.0]), ([0.0], [bad]), ([torch.nan], [torch.nan]), ([torch.inf], [-torch.inf])]:
        with rejects(r"max \|a - b\| = inf at \[0\]"):
            checks.equal(torch.tensor(a), torch.tensor(b), tol=1e9)


def test_exact_limit():
    checks.exact_limit(lambda x, keep: x * keep, lambda x, keep: x, X, 1.0)
    with rejects("at full budget, the method and the plain one differ"):
        checks.exact_limit(lambda x: x * 1.001, lambda x: x, X)


def test_compiles():
    checks.compiles(lambda x: x.sin(), X)
    with rejects("compiled and eager differ"):
        checks.compiles(lambda x: x + torch.compiler.is_compiling(), X)


def test_equal_gradients():
    checks.equal_gradients(lambda x: F.layer_norm(x, (8,)), nn.LayerNorm(8), X)
    with rejects("the gradients of the input differ"):
        checks.equal_gradients(lambda x: F.layer_norm(x.detach(), (8,)) + 0 * x, nn.LayerNorm(8), X)


@pytest.mark.parametrize("keep", [KEEP, torch.stack([KEEP, KEEP.flip(0) | KEEP])])
def test_masked_equals_sliced(keep):
    checks.masked_equals_sliced(attend, X, keep)
    checks.masked_equals_sliced(lambda x, keep: attend(x, keep)[:, 0], X, keep)
    with rejects("image 0: masked and sliced differ"):  # zeroed tokens still take part in the softmax
        checks.masked_equals_sliced(lambda x, k: attend(x if k is None else x * k.expand(2, 9)[..., None]), X, keep)


def test_conserves():
    checks.conserves(lambda x: x.flip(1), X)
    checks.conserves(lambda x: x / x.norm() * 3, X / X.norm() * 3, total=torch.Tensor.norm)
    with rejects("the total after and before differ"):
        checks.conserves(lambda x: x[:, 1:], X)


def test_permutation_equivariant():
    checks.permutation_equivariant(attend, X)
    with rejects(r"fn\(permuted\) and permuted fn differ"):
        checks.permutation_equivariant(lambda x: x + x.roll(1, 1) + x.roll(-1, 1), X)


def test_permutation_invariant():
    checks.permutation_invariant(lambda x: attend(x).mean(1), X)
    with rejects(r"fn\(permuted\) and fn differ"):
        checks.permutation_invariant(lambda x: x[:, 0], X)


def test_symmetric():
    checks.symmetric(X @ X.transpose(1, 2))
    with rejects("the matrix and its transpose differ"):
        checks.symmetric((X @ X.transpose(1, 2)).softmax(-1))


def test_rows_sum_to_one():
    checks.rows_sum_to_one(X.softmax(-1))
    with rejects("the row sums and 1 differ"):
        checks.rows_sum_to_one(X.softmax(-2))
    with rejects("a probability is negative: -1"):
        checks.rows_sum_to_one(torch.tensor([[2.0, -1.0]]))


def test_cost_law():
    checks.cost_law(2 * 9 * 8 * 32, nn.Linear(8, 32), X)
    checks.cost_law(lambda b, n, d: b * n * d * 32, nn.Linear(8, 32), X)
    with rejects("the formula says 4,600 MACs, torch counts 4,608: 0.17% apart"):
        checks.cost_law(4600, nn.Linear(8, 32), X)
    checks.cost_law(4600, nn.Linear(8, 32), X, rel=0.003)


def test_cost_law_sees_fused_attention():
    fused = lambda x: F.scaled_dot_product_attention(*[x[:, None]] * 3)  # noqa: E731
    checks.cost_law(lambda b, n, d: 2 * b * n * n * d, fused, X)


def test_gradients_flow():
    module = OneWay()
    checks.gradients_flow(nn.Sequential(module, nn.LayerNorm(8)), X)
    assert module.used.weight.grad is None, "the check leaves the module as it was"
    with rejects(r"idle.weight receives no gradient"):
        checks.gradients_flow(OneWay("unused"), X)
    with rejects(r"the gradient of idle.weight is all zero"):
        checks.gradients_flow(OneWay("zero"), X)
    with rejects(r"the gradient of \w+.weight is not finite"):
        checks.gradients_flow(OneWay("infinite"), X)


def test_follows_dtype_and_device():
    module = OneWay()
    checks.follows_dtype_and_device(module, X)
    checks.follows_dtype_and_device(lambda x: (x * 2, x.argmax(-1)), X)
    assert module.used.weight.dtype == torch.float32, "the check leaves the module as it was"
    with rejects("the input is torch.float64, the output torch.float32"):
        checks.follows_dtype_and_device(OneWay("float32"), X)
    with rejects("the output holds NaN in torch.float64"):
        checks.follows_dtype_and_device(lambda x: x.abs().neg().log(), X)
    with rejects("the input is on cpu, the output on meta"):
        checks.follows_dtype_and_device(lambda x: x.to("meta"), X)


def test_deterministic():
    checks.deterministic(attend, X)
    with rejects("the first and the second call differ"):
        checks.deterministic(lambda: torch.rand(3))


def test_batch_independent():
    checks.batch_independent(attend, X)
    with rejects("image 0 in company and alone differ"):
        checks.batch_independent(lambda x: x - x.mean(0), X)
    with rejects("at least two images"):
        checks.batch_independent(attend, X[:1])
