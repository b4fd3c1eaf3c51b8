"""The dial of bits: what it finds for known numbers, that controls and code agree, what remains without a kernel."""

from __future__ import annotations

import base64
import math
from html import escape

import numpy as np
import pytest
import torch

from labkit.errors import LabkitError
from labkit.quant.calibrate import percentile
from labkit.quant.grids import Uniform
from labkit.quant.inspect import inspect
from labkit.viz import bits_dial
from labkit.viz.bits_dial import BITS, KEEPS, UNSIGNED, BitsDial, kinds, look, made, picture
from labkit.viz.slider import together
from tests.weights import normal

X = normal(4000).float()
ATTN = normal(40, 60).mul(3).softmax(dim=1).float()


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("keep", KEEPS)
def test_a_look_is_the_inspection_of_the_clipped_grid(bits, keep):
    found = look(X, bits, keep, "uniform")
    seen = inspect(X, Uniform.of(*percentile(X, bits, keep), bits))
    assert (found.sqnr_db, found.used, found.clipped) == (seen.sqnr_db, seen.used, seen.clipped)
    assert (found.levels[0], found.levels[-1]) == pytest.approx((float(seen.low), float(seen.high)))
    assert found.max_error == seen.max_error and found.counts.sum() == 4000


@pytest.mark.parametrize("kind", UNSIGNED)
@pytest.mark.parametrize("bits", BITS)
def test_every_kind_spends_its_bits_within_the_range(kind, bits):
    found = look(ATTN, bits, 0.999, kind)
    _, high = percentile(ATTN, bits, 0.999)
    assert found.levels[0] == 0 and found.levels[-1] == pytest.approx(float(high), rel=0.02)
    assert len(found.levels) == 2**bits or (kind.startswith("log") and len(found.levels) <= 2**bits)


def test_kinds_that_count_from_zero_are_offered_to_such_numbers_only():
    assert kinds(ATTN) == UNSIGNED and kinds(X) == ("uniform", "twin") == kinds(ATTN[:0])
    with pytest.raises(LabkitError, match='There is no "log2" grid for these numbers; choose one of uniform, twin'):
        made("log2", X, X.amin(), X.amax(), 4)
    with pytest.raises(LabkitError, match='There is no "tangent" grid'):
        BitsDial(X, kind="tangent")


def test_it_says_what_it_found():
    x = torch.linspace(0, 1, 101)
    assert look(x, 2, 1.0, "uniform").sentence() == (
        "2 bits, uniform, range of 100.00% of the numbers (0 to 1): 4 of 4 levels used, nothing cut off, "
        "signal over noise 15.6 dB, largest error 0.167."
    )
    assert "cut off, signal" in look(X, 4, 0.95, "uniform").sentence()
    assert "inf dB" in look(torch.zeros(4), 4, 1.0, "uniform").sentence()


def test_the_picture_shows_the_numbers_the_levels_and_every_look():
    looks = [look(ATTN, 4, 1.0, "uniform"), look(ATTN, 3, 0.99, "twin"), look(ATTN, 8, 0.99, "uniform")]
    left, right = picture(looks, "attention").axes
    ticks, ends = left.collections
    assert [segment[0][0] for segment in ticks.get_segments()] == pytest.approx(looks[-1].levels.tolist())
    assert [segment[0][0] for segment in ends.get_segments()] == pytest.approx(looks[-1].levels[[0, -1]].tolist())
    assert np.allclose(left.patches[0].get_data().edges, looks[-1].edges) and left.get_xlabel() == "attention"
    by = {line.get_label(): line.get_xydata().tolist() for line in right.lines}
    assert by["uniform"] == [[4, looks[0].sqnr_db], [8, looks[2].sqnr_db]] and by["twin"] == [[3, looks[1].sqnr_db]]
    assert right.lines[-1].get_xydata().tolist() == [[8, looks[2].sqnr_db]]
    kinds_shown = [line for line in right.lines if line.get_label() in UNSIGNED]
    assert len({line.get_marker() for line in kinds_shown}) == len(kinds_shown)


def test_exact_numbers_are_no_point_of_the_curve():
    exact = look(torch.zeros(9), 4, 1.0, "uniform")
    assert exact.sqnr_db == math.inf
    fig = picture([exact])
    assert fig.axes[1].get_title() == "inf dB"
    fig.canvas.draw()


def test_controls_code_and_view_agree_and_nothing_is_measured_twice(monkeypatch):
    dial = BitsDial(ATTN, bits=5, name="attention")
    assert (dial.bits, dial.keep, dial.kind) == (5, 1.0, "uniform") and dial.state().startswith("5 bits, uniform")
    dial.controls["keep"].value = 0.999
    dial.kind = "log2"
    assert dial.state().startswith("5 bits, log2, range of 99.90% of the numbers")
    assert f'alt="{escape(dial.state())}"' in dial.view.value
    assert list(dial.looks) == [(5, 1.0, "uniform"), (5, 0.999, "uniform"), (5, 0.999, "log2")]
    monkeypatch.setattr(bits_dial, "look", lambda *_: pytest.fail("measured twice"))
    dial.kind = "uniform"
    assert dial.controls["kind"].value == "uniform" and dial.state().startswith("5 bits, uniform, range of 99.90%")
    assert f'<p role="status">{escape(dial.state())}</p>' in dial.view.value


def test_every_control_says_what_it_is_and_stands_above_the_one_view():
    dial = BitsDial(X)
    assert [control.description for control in dial.controls.values()] == ["bits", "range of", "grid"]
    assert list(dial.box.children)[:2] == [dial.slider, dial.view]
    assert list(dial.slider.children) == list(dial.controls.values())


def test_without_a_kernel_a_picture_and_its_sentence_remain():
    dial = BitsDial(X, bits=3)
    shown, about = dial._repr_mimebundle_()
    assert base64.b64decode(shown["image/png"]).startswith(b"\x89PNG")
    assert shown["text/plain"] == about["image/png"]["alt"] == dial.state()
    assert "application/vnd.jupyter.widget-view+json" in shown


def test_controls_together_are_one_whose_value_is_the_tuple_of_theirs():
    import ipywidgets

    controls = {"a": ipywidgets.IntSlider(3), "b": ipywidgets.Dropdown(options=["x", "y"])}
    group, seen = together(controls), []
    assert group.value == (3, "x") and list(group.children) == list(controls.values())
    group.observe(lambda change: seen.append(change["new"]), names="value")
    controls["b"].value, controls["a"].value = "y", 4
    assert seen == [(3, "y"), (4, "y")] and group.value == (4, "y")
