"""Slopes as the papers give them, students that begin as what was quantized, and training that can only help."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

import labkit
from labkit import data
from labkit.errors import LabkitError
from labkit.quant import Recipe, layers, points, quantize
from labkit.quant.grids import Uniform
from labkit.quant.int8 import execute
from labkit.quant.learned import LearnedGrid, LearnedRound, StraightPoint
from labkit.quant.train import frozen, reconstruct, trainable
from labkit.tokens import Keep, attach
from labkit.train import Recipe as Training
from labkit.train import epochs, optimizers, train
from labkit.verify import hits
from labkit.vit import ViT
from tests import checks
from tests.weights import normal, randomized

STEP, ZERO, ENDS = 0.25, 5, (0, 15)  # values from −1.25 to 2.5
X = torch.tensor([-9.0, -1.3, -1.2, -0.1, 0.0, 0.3, 1.11, 2.45, 2.55, 7.0], dtype=torch.float64)
BELOW, ABOVE = X < -1.25, X > 2.5
IMAGES = normal(12, 3, 16, 16)


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def tiny(**more) -> ViT:
    return randomized(ViT(16, 4, classes=5, dim=16, depth=2, heads=2, **more))


def slopes(weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x, step, zero = X.clone().requires_grad_(), number(STEP), number(ZERO)
    (LearnedRound.apply(x, step, zero, ENDS) * weights).sum().backward()
    return x.grad, step.grad, zero.grad


def test_slopes_are_those_of_the_papers_inside_and_outside():
    for i, x in enumerate(X):
        one = torch.zeros_like(X)
        one[i] = 2.0
        gradient, step, zero = slopes(one)
        checks.equal(gradient, one * ~(BELOW | ABOVE))
        inside = (x / STEP).round() - x / STEP  # "Learned Step Size Quantization", equation 3
        expected = -ZERO if BELOW[i] else 15 - ZERO if ABOVE[i] else inside
        assert step.item() == pytest.approx(2 * float(expected), abs=1e-12)
        assert zero.item() == (-2 * STEP if BELOW[i] or ABOVE[i] else 0)
    assert BELOW.sum() == 2 and ABOVE.sum() == 2


def test_each_channel_has_the_slope_of_its_own_values():
    x, step = normal(3, 40), torch.tensor([[0.1], [0.4], [2.0]], dtype=torch.float64, requires_grad=True)
    LearnedRound.apply(x, step, torch.zeros_like(step), (-7, 7)).square().sum().backward()
    for i in range(3):
        alone = number(step[i].item())
        LearnedRound.apply(x[i], alone, number(0.0), (-7, 7)).square().sum().backward()
        assert step.grad[i].item() == pytest.approx(alone.grad.item(), rel=1e-12) and alone.grad != 0


def test_where_values_are_clipped_the_slopes_are_finite_differences():
    """Inside, the value jumps and has none; there the paper's slope is that of x plus what rounding added, in steps."""
    eps = 1e-6
    outside = X[BELOW | ABOVE]
    weights = torch.arange(1.0, 1 + len(outside), dtype=torch.float64)
    value = lambda step, zero: (LearnedRound.apply(outside, step, zero, ENDS) * weights).sum()  # noqa: E731
    step, zero = number(STEP), number(ZERO)
    value(step, zero).backward()
    assert step.grad.item() == pytest.approx(
        (value(step + eps, zero) - value(step - eps, zero)).item() / (2 * eps), rel=1e-6
    )
    inside = X[~(BELOW | ABOVE)]
    step, added = number(STEP), (inside / STEP).round() - inside / STEP
    LearnedRound.apply(inside, step, number(ZERO), ENDS).square().sum().backward()
    moved = lambda step: (inside + added * step).square().sum()  # noqa: E731
    assert step.grad.item() == pytest.approx((moved(STEP + eps) - moved(STEP - eps)).item() / (2 * eps), rel=1e-6)


def test_a_learned_grid_begins_as_the_one_it_is_given_and_its_parameters_slope_as_the_values_do():
    x = 2 * normal(500)
    for grid in (Uniform.of(x.amin() / 3, x.amax() / 2, 4), Uniform.of(x.amin() / 3, x.amax() / 2, 3, symmetric=True)):
        learned = LearnedGrid(grid)
        checks.equal(learned.round(x), grid.round(x))
        checks.equal(learned.decode(learned.encode(x)), grid.round(x))
        checks.equal(learned.levels(), grid.levels())
        clipped = x[(x < grid.levels()[0]) | (x > grid.levels()[-1])]
        learned.round(clipped).square().sum().backward()
        with torch.no_grad():
            around = []
            for eps in (1e-6, -1e-6):
                learned.growth += eps
                around.append(learned.round(clipped).square().sum().item())
                learned.growth -= eps
        assert learned.growth.grad.item() == pytest.approx((around[0] - around[1]) / 2e-6, rel=1e-5)


def test_a_zero_can_be_learned_and_stays_a_code():
    """Data far from the grid: nothing but the zero can bring it there."""
    grid = LearnedGrid(Uniform.of(number(-3.0).detach(), number(0.75).detach(), 4))
    x = 0.5 + normal(200).abs()
    before = (grid.round(x) - x).square().mean().item()
    optimizer = torch.optim.Adam([grid.shift], 0.003)
    for _ in range(100):
        (grid.round(x) - x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert (grid.round(x) - x).square().mean() < 0.2 * before
    assert 0 <= grid.settled().zero < 6 and grid.round(torch.zeros(1).double()) == 0
    checks.equal(grid.settled().round(x), grid.round(x))


def test_where_tokens_find_their_grids_values_are_rounded_and_all_gradients_pass():
    x, point = normal(4, 9).requires_grad_(), StraightPoint()
    point.token_bits = 4
    rounded = point(x)
    rounded.sum().backward()
    checks.equal(x.grad, torch.ones_like(x))
    checks.equal(rounded, Uniform.of(*x.detach().aminmax(dim=-1, keepdim=True), 4, symmetric=True).round(x), 1e-12)


RECIPES = {
    "plain": Recipe(weights=4, activations=4, attention=4, clip="mse"),
    "gptq": Recipe(weights=3, activations=None, rounding="gptq", correct_bias=True, symmetric=False),
    "tensor": Recipe(weights=3, activations=4, per="tensor", ends="same"),
    "folded": Recipe(weights=4, activations=4, attention=4, fold="channels", softmax="log2", gelu="twin"),
    "smooth": Recipe(weights=4, activations=4, fold="smooth", centred=True, attention=4),
    "rotated": Recipe(weights=4, activations=4, fold="rotate", layers={"blocks.0.mlp.fc2": (None, 8)}),
    "tokens": Recipe(weights=4, activations=8, per_token=True),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_student_begins_as_what_was_quantized_and_freezes_to_it(name):
    model = tiny()
    plain, student = quantize(model, RECIPES[name], IMAGES), trainable(model, RECIPES[name], IMAGES)
    same = frozen(student)
    for key, layer in layers(plain).items():
        if layer.codes is not None:
            checks.equal(layers(same)[key].codes, layer.codes)
        assert layers(student)[key].codes is None
    checks.equal(same(IMAGES), plain(IMAGES))
    checks.equal(student(IMAGES), plain(IMAGES), 1e-9)
    assert {k: type(p) for k, p in points(same).items()} == {k: type(p) for k, p in points(plain).items()}


@pytest.mark.parametrize("name", ["plain", "folded", "gptq", "tokens"])
def test_what_was_trained_is_what_is_frozen(name):
    student = trainable(tiny(), RECIPES[name], IMAGES)
    before = student(IMAGES).detach()
    optimizer = torch.optim.Adam(student.parameters(), 3e-3)
    for _ in range(5):
        student(IMAGES).square().sum().backward()
        assert all(p.grad is not None and p.grad.any() for n, p in student.named_parameters() if "float_weight" in n)
        optimizer.step()
        optimizer.zero_grad()
    logits, plain = student(IMAGES).detach(), frozen(student)
    assert (logits - before).abs().max() > 0.1 * before.abs().max()
    checks.equal(plain(IMAGES), logits, 1e-4 * logits.abs().max().item())
    assert not [m for m in plain.modules() if isinstance(m, LearnedGrid)]
    assert all(layer.codes is not None and layer.float_weight is None for layer in layers(plain).values())


def test_backends_read_what_is_frozen():
    student = trainable(tiny().float(), Recipe(weights=4, activations=8), IMAGES.float())
    with torch.no_grad():
        for name, p in student.named_parameters():
            if name.endswith(("growth", "shift")):
                p += 0.01 * torch.rand(p.shape, generator=torch.Generator().manual_seed(len(name)))
        plain, fast = frozen(student), frozen(student)
        execute(fast)
        logits = student(IMAGES.float())
        checks.equal(fast(IMAGES.float()), logits, 0.02 * logits.abs().max().item())
        checks.equal(plain(IMAGES.float()), logits, 0.02 * logits.abs().max().item())


def test_steps_and_zeros_are_vectors_that_an_optimiser_neither_decays_nor_orthogonalises():
    student = trainable(tiny(), RECIPES["plain"], IMAGES)
    learned = {id(p) for n, p in student.named_parameters() if n.endswith(("growth", "shift"))}
    assert len(learned) == 10 + 2 * (10 + 8)  # weights; points of layers and of attentions
    for optimizer in optimizers(student, Training(1, "muon", weight_decay=0.1)):
        for group in optimizer.param_groups:
            if group["weight_decay"]:
                assert not learned & {id(p) for p in group["params"]}


def test_training_with_the_rounding_inside_repairs_what_rounding_broke():
    digits, shown = data.digits("train"), data.digits("val")[:120]
    student = trainable(labkit.load("digits-vit"), Recipe(weights=2, activations=4), digits.images[:32])
    before = hits(frozen(student), shown).float().mean()
    log = train(student, epochs(digits, 16), Training(steps=16, lr=1e-3, weight_decay=0.0), every=4)
    assert log.rows[-1]["loss"] < 0.5 * log.rows[0]["loss"]
    assert hits(frozen(student), shown).float().mean() > before + 0.2


def test_reconstruction_brings_blocks_closer_to_those_of_the_float_model_and_needs_no_labels():
    model = tiny()
    kept = copy.deepcopy(model.state_dict())
    student = trainable(model, RECIPES["plain"], IMAGES)
    errors = reconstruct(student, model, IMAGES, steps=60, batch=6)
    assert len(errors) == 2 and all(after < 0.8 * before for before, after in errors)
    off = lambda m: (m(IMAGES) - model(IMAGES)).square().mean().item()  # noqa: E731
    assert off(frozen(student)) < 0.7 * off(quantize(model, RECIPES["plain"], IMAGES))
    assert all(torch.equal(kept[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in [*student.parameters(), *model.parameters()])

    x, target = student.embed(IMAGES)[0], model.embed(IMAGES)[0]
    for i, (ours, theirs) in enumerate(zip(student.blocks, model.blocks, strict=True)):
        x, target = ours(x, (4, 4), None, 1).x, theirs(target, (4, 4), None, 1).x
        read = slice(0, 1 if i == 1 else None)  # of the last block, the head reads the class token
        assert errors[i][1] == pytest.approx((x - target)[:, read].square().mean().item(), rel=1e-9)


def test_a_block_that_training_makes_worse_stays_as_it_was():
    model = tiny(pool="avg")
    student = trainable(model, RECIPES["plain"], IMAGES)
    before = copy.deepcopy(student.state_dict())
    errors = reconstruct(student, model, IMAGES, steps=3, lr=5.0)
    assert all(a == b for a, b in errors) and all(torch.equal(before[k], v) for k, v in student.state_dict().items())


def test_what_cannot_be_trained_is_refused_in_a_sentence():
    with pytest.raises(LabkitError, match=r"patch_embed\.proj are on no uniform grid with one step"):
        trainable(tiny(), Recipe(weights=4, per=8), IMAGES)
    with pytest.raises(LabkitError, match="choose weights=bits"):
        trainable(tiny(), Recipe(weights="e4m3"), IMAGES)
    student = trainable(attach(tiny(), Keep(0.5), [0]), RECIPES["plain"], IMAGES)
    with pytest.raises(LabkitError, match="token by token"):
        reconstruct(student, tiny(), IMAGES)
