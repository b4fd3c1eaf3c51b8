"""Demonstrations: what the bench gives to a name, what each kind measures, and how many papers have a picture."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from labkit import papers
from labkit.errors import LabkitError
from labkit.papers import Row
from labkit.quant.weights import gptq
from labkit.tokens.fuse import Fuse
from labkit.viz import demo as demos
from labkit.viz import demo_kinds, demo_numbers, demo_parts, gallery_check
from labkit.viz.demo_bench import CHOICES, Bench
from labkit.viz.demo_parts import influence
from tests import checks
from tests.weights import normal

ROW = Row("S900", "A title", 2024, "attention", "implement", "An idea.", "works", "", "tests/test_x.py::test_y", "")


@pytest.fixture(scope="module")
def bench():
    return Bench(images=8)


@pytest.fixture
def no_run(monkeypatch):
    """Checks that are asked for, instead of run."""
    asked = []
    done = gallery_check.Outcome(1, 0, 2.0, "1 passed in 2 s.")
    monkeypatch.setattr(gallery_check, "run", lambda check: asked.append(check) or done)
    return asked


def row(symbol: str) -> Row:
    return replace(ROW, symbol=symbol)


# --- the bench ------------------------------------------------------------------------------------------------------
def test_names_and_annotations_say_what_is_given(bench):
    def of_names(x: torch.Tensor, grid: tuple, r: int, keep: float = 1.0): ...
    def of_kinds(bits: CHOICES, q: int): ...

    of_names.__annotations__ = {"x": "Tensor", "grid": "Grid", "r": "int", "keep": "float"}
    given = bench.arguments(of_names)
    assert list(given) == ["x", "grid", "r"] and given["grid"] == (8, 8) and given["r"] == 16
    assert given["x"].shape == (1, 64, 128)
    of_kinds.__annotations__ = {"bits": "Sequence[int]", "q": "int"}
    assert bench.arguments(of_kinds) == {"bits": CHOICES, "q": 37}
    of_kinds.__annotations__ = {"bits": "int", "q": "Tensor"}
    given = bench.arguments(of_kinds)
    assert given["bits"] == 4 and given["q"].shape == (1, 4, 65, 32)


def test_what_the_bench_lacks_is_named(bench):
    def strange(moon: torch.Tensor): ...

    with pytest.raises(LabkitError, match="the bench has no moon"):
        bench.make(strange)


def test_a_thing_is_made_the_same_every_time_and_the_lessons_dice_are_left_alone(bench):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second = (bench.make(nn.Linear.__class__("Own", (Own,), {})).weight for _ in range(2))
    assert first.equal(second) and torch.get_rng_state().equal(before)
    assert bench.make(Fuse).keep == 0.5


class Own(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = torch.rand(dim)


Own.__init__.__annotations__["dim"] = "int"


def test_what_the_bench_gives_is_what_the_model_computes(bench):
    with torch.no_grad():
        seen = bench.model.observe(bench.image)
    checks.equal(bench.evidence.attention(), seen.steps[2].evidence.attention(), 1e-6, "attention of block 2")
    after = bench.mixed[0] + bench.block.mlp(bench.inputs[None])
    checks.equal(after, seen.steps[2].x, 1e-5, "the block from its parts and the block")


# --- what is measured -----------------------------------------------------------------------------------------------
def test_influence_is_the_size_of_the_derivative():
    weight = normal(6, 4)
    found = influence(lambda x: (x @ weight)[..., :1], normal(1, 3, 6), 2)
    checks.equal(found[0, 2], weight[:, 0].abs(), 1e-12, "one output: exactly |∂out/∂in|")
    assert not found[0, :2].any()
    assert not influence(lambda x: x.argmax(dim=-1)[..., None].double(), normal(1, 3, 6), 0).any()


def test_a_reducer_shows_what_goes_on(bench):
    shown = demo_kinds.reduced(bench, Fuse, Fuse(0.25))
    assert "In block 2, 64 patches become 17 tokens." in shown.sentence
    image, _, bars = shown.picture.axes
    assert image.images[0].get_array().shape == (64, 64, 3) and len(bars.patches) == 2
    whole = demo_kinds.reduced
    with pytest.raises(LabkitError, match="it keeps every token"):
        whole(bench, Fuse, Fuse(1.0))
    assert whole(bench, nn.Linear, nn.Linear(2, 2)) is None


def test_a_token_of_a_plain_patch_sees_its_patch_and_no_more(bench):
    shown = demo_kinds.patched(bench, type(bench.model.patch_embed), bench.model.patch_embed)
    assert "64 tokens of 128 numbers" in shown.sentence and "1.6% of the pixels move" in shown.sentence
    seen = torch.as_tensor(shown.picture.axes[2].images[0].get_array().data) > 0
    where = torch.zeros(64, 64, dtype=torch.bool)
    where[32:40, :8] = True  # token 32 is the first of the fifth row
    assert (seen == where).all()


def test_tokens_that_meet_nobody_are_no_mixer(bench):
    assert demo_kinds.mixing(bench, nn.LayerNorm, nn.LayerNorm(128)) is None
    shown = demo_kinds.mixing(bench, type(bench.block.attn), bench.block.attn)
    ours, *_, plain = (int(n) for n in re.findall(r"\d+", shown.sentence))
    assert ours == plain > 10


def test_better_rounding_has_less_noise_than_rounding_to_the_nearest(bench):
    shown = demo_numbers.weighted(bench, gptq, bench.make(gptq))
    ours, nearest = (float(part.split()[-1]) for part in shown.sentence.split(" dB")[:2])
    assert ours > nearest + 3 and len(shown.picture.axes) == 6
    assert demo_numbers.weighted(bench, gptq, (bench.block.mlp.fc1.weight.detach(), torch.ones(1))) is None


def test_whole_numbers_are_taken_times_their_scale():
    codes, scale = torch.tensor([[1, -2]]), torch.tensor([[0.5]])
    assert demo_parts.values((codes, scale)).tolist() == [[0.5, -1.0]]
    assert demo_parts.values((torch.tensor([0.3]), scale)).tolist() == [pytest.approx(0.3)]
    assert demo_parts.values("text") is None


# --- from a row to a picture ----------------------------------------------------------------------------------------
def test_a_mixer_stands_beside_dense_attention(bench):
    found = next(r for r in papers.rows() if r.symbol.endswith("WindowAttention") and "windows" in r.symbol)
    picture, said = demos.demo(found, bench)
    dense, ours = (torch.as_tensor(picture.axes[i].images[0].get_array().data) for i in (1, 2))
    attn = bench.block.attn.attend(bench.tokens)[1].attention()[0].mean(dim=0)
    checks.equal(dense, attn.detach(), 1e-5, "the dense matrix and the block's own attention")
    assert (ours > 0).double().mean() == 0.25 and "25% of its matrix is not zero" in said


def test_what_names_another_paper_only_is_not_shown(bench):
    from labkit.quant import log_grids

    own, other = log_grids.ShiftedLog, log_grids.AdaLog
    doc = other.__doc__
    try:
        other.__doc__ = "Of another paper (S999)."
        tried = [thing for thing, _ in demos.order(own, "S900")]
    finally:
        other.__doc__ = doc
    assert tried[0] is own and other not in tried and log_grids.fit_ada_log in tried


def test_what_fits_no_kind_shows_its_check_and_says_so(bench, no_run):
    picture, said = demos.demo(row("labkit.errors.closest"), bench)
    assert picture is None and no_run == [ROW.check]
    assert "labkit.errors.closest fits none of the pictures" in said and said.endswith("1 passed in 2 s.")


@pytest.mark.parametrize("symbol", ["", "S083"])
def test_without_code_there_is_nothing_to_show(bench, no_run, symbol):
    assert demos.demo(row(symbol), bench) == (None, "There is nothing to show: no code here holds S900 itself.")
    assert no_run == []


def test_nearly_every_working_paper_has_a_picture(bench, no_run, monkeypatch):
    monkeypatch.setattr(demo_parts, "ASKS", 1)
    working = [each for each in papers.rows() if each.status == "works"]
    shown = {each.id: demos.demo(each, bench) for each in working}
    pictures = [id for id, (picture, _) in shown.items() if picture is not None]
    print(f"{len(pictures)} of {len(working)} working papers have a picture.")
    assert len(pictures) >= 70
    assert all(said.endswith(".") for _, said in shown.values())
    assert len(no_run) == len(working) - len(pictures)
