"""The dial of the budget: what a look finds, that menus and code agree, what is drawn, said and left in print."""

from __future__ import annotations

import base64
from dataclasses import replace
from html import escape

import pytest
import torch

from labkit import clock, cost
from labkit.data.batch import ImageSet
from labkit.errors import LabkitError
from labkit.stack import FLOAT, Stack
from labkit.stack.menu import choice
from labkit.vit import ViT
from labkit.viz import budget_dial
from labkit.viz.budget_dial import BITS, BudgetDial, Look, cheapest, look, picture
from tests.weights import normal, randomized


@pytest.fixture(scope="module")
def model():
    return randomized(ViT(16, 2, 4, dim=32, depth=4, heads=4)).float().eval()


@pytest.fixture(scope="module")
def images(model):
    """Images that the model names as it does, but for every fourth: it is right in 75 %."""
    pixels = normal(12, 3, 16, 16).float()
    with torch.no_grad():
        labels = model(pixels).argmax(dim=1)
    labels[::4] = (labels[::4] + 1) % 4
    return ImageSet(pixels, labels, names=["a", "b", "c", "d"])


@pytest.fixture
def timed(monkeypatch):
    """A clock that says what it is told: the time of `this` as a ratio."""
    told = {"ratio": 0.4}

    class Told:
        def ratio(self, name):
            return told["ratio"], told["ratio"] - 0.1, told["ratio"] + 0.1

    def compare(models, inputs, **how):
        told["clocks"], told["images"] = how["clocks"], len(inputs)
        return Told()

    monkeypatch.setattr(clock, "compare", compare)
    return told


def seen(time, right, stack=None, images=100, budget=0.5, floor=0.9):
    return Look(stack or Stack(), time, time - 0.05, time + 0.05, right, images, 0.6, 0.3, budget, floor)


def test_the_menus_stand_for_a_stack():
    assert choice(8, "dense", "merge", 1.0, FLOAT) == Stack(patch=8)
    assert choice(8, "dense", "keep", 0.5, 8) == Stack(
        patch=8, reducer="keep", keep=0.5, where="1, 2", weights=8, activations=8, backend="int8"
    )
    four = choice(16, "window", "merge", 1.0, 4)
    assert (four.mixer, four.mixed, four.clip, four.fold) == ("window", "0, 1", "percentile", "channels")


def test_a_look_asks_counts_and_times(model, images, timed):
    found = look(model, Stack(patch=4), images, None, 0.5, 0.9)
    built = Stack(patch=4).build(model)
    with torch.no_grad():
        assert found.right == int((built(images.images).argmax(dim=1) == images.labels).sum())
    assert (found.time, found.low, found.high, found.images) == (0.4, pytest.approx(0.3), 0.5, 12)
    assert found.macs == cost.count(built).macs / cost.count(model).macs
    assert timed["clocks"] == ("cpu",) and timed["images"] == 12
    assert look(model, Stack(), images, None, 0.5, 0.9).right == 9


@pytest.mark.parametrize(
    ("chosen", "label"),
    [
        ((8, "dense", "merge", 1.0, FLOAT), "8 px"),
        ((16, "window", "keep", 0.5, 4), "16 px, window, keep 50%, 4 bits"),
        ((0, "dense", "merge", 1.0, FLOAT), "plain"),
    ],
)
def test_a_point_of_the_front_has_a_short_name(chosen, label):
    found = seen(0.4, 95, choice(*chosen))
    assert found.brief() == label
    (ax,) = picture([found, seen(0.6, 80)]).axes
    assert [text.get_text() for text in ax.texts] == [label]


def test_it_is_really_timed_in_turns_with_the_model(model, images):
    found = look(model, Stack(patch=8), images, None, 0.5, 0.9, seconds=0.1)
    assert 0 < found.low <= found.time <= found.high


@pytest.mark.parametrize(
    ("time", "right", "inside", "words"),
    [
        (0.4, 95, True, ("inside the budget", "above the floor")),
        (0.5, 90, True, ("inside the budget", "above the floor")),
        (0.6, 95, False, ("over the budget", "above the floor")),
        (0.4, 80, False, ("inside the budget", "below the floor")),
    ],
)
def test_it_says_whether_the_choice_is_inside(time, right, inside, words):
    found = seen(time, right, Stack(patch=16))
    assert found.inside is inside and all(word in found.sentence() for word in words)
    assert found.sentence().startswith(f"16-pixel patches: {time:.2f} of the plain model's time (")
    assert f"{right}% of 100 right" in found.sentence() and "60% of the MACs, 30% of the bytes." in found.sentence()


def test_the_picture_shows_every_look_the_front_and_both_lines():
    looks = [seen(1.0, 97), seen(0.5, 96), seen(0.8, 90), seen(0.3, 70)]
    (ax,) = picture(looks).axes
    lines = [(line.get_marker(), line.get_xydata().tolist()) for line in ax.lines]
    assert [xy for mark, xy in lines if mark == "x"] == [[[0.8, 90]]]
    assert [xy[0][0] for mark, xy in lines if mark == "o"] == [1.0, 0.5, 0.3, 0.3]
    front = next(line for line in ax.lines if line.get_label() == "not beaten")
    assert front.get_xydata()[:3].tolist() == [[0.3, 70], [0.5, 96], [1.0, 97]]
    dashed = [line for line in ax.lines if line.get_linestyle() == "--"]
    assert dashed[0].get_xdata()[0] == 0.5 and dashed[1].get_ydata()[0] == 90
    low, high = ax.get_ylim()
    assert low < 70 and high > 100


def test_menus_code_and_view_agree_and_nothing_is_measured_twice(model, images, timed, monkeypatch):
    dial = BudgetDial(model, images, images.images[:4], patches=(4,), budget=0.5, floor=0.7)
    assert dial.now.stack == Stack(patch=2) and "75% of 12 right" in dial.state()
    calls = []
    monkeypatch.setattr(budget_dial, "look", lambda *given: calls.append(given[1]) or seen(0.3, 80, given[1]))
    dial.set(patch=4, keep=0.5, bits=8)
    assert calls == [choice(4, "dense", "merge", 0.5, 8)], "three dials at once are one measurement"
    assert [dial.controls[name].value for name in ("patch", "keep", "bits")] == [4, 0.5, 8]
    dial.controls["bits"].value = FLOAT
    assert calls[1:] == [choice(4, "dense", "merge", 0.5, FLOAT)] and dial.now.stack == calls[1]
    dial.set(bits=8)
    assert len(calls) == 2 and f'alt="{escape(dial.state())}"' in dial.view.value
    assert f'<p role="status">{escape(dial.state())}</p>' in dial.view.value


def test_the_best_is_the_fastest_inside_or_else_the_most_right(model, images, timed):
    dial = BudgetDial(model, images, images.images[:4])
    slow, fast, poor = seen(0.45, 97), seen(0.4, 91), seen(0.1, 50)
    dial.looks = dict(enumerate([slow, poor, fast]))
    assert dial.best() is fast
    outside = [replace(each, floor=0.99) for each in (poor, fast, slow)]
    dial.looks = dict(enumerate(outside))
    assert dial.best() is outside[2]
    better = replace(fast, right=95)
    dial.looks = dict(enumerate([fast, better, slow]))
    assert dial.best() is better, "of equally fast ones the better"


def test_who_stands_on_a_line_is_inside_and_nobody_may_be():
    points = {"a": (0.5, 0.9), "b": (0.5, 0.95), "c": (0.4, 0.89)}
    assert cheapest(points, 0.5, 0.9) == "b" and cheapest(points, 0.4, 0.89) == "c"
    assert cheapest(points, 0.49, 0.9) is None and cheapest({}, 1, 0) is None


def test_a_wrong_turn_is_a_sentence_and_turns_nothing(model, images, timed):
    dial = BudgetDial(model, images, images.images[:4])
    before = dial.state()
    with pytest.raises(LabkitError, match=r'There is no dial "bit"[.] Did you mean "bits"'):
        dial.set(keep=0.5, bit=8)
    with pytest.raises(LabkitError, match="bits=5 is not on the dial; choose one of 32, 8, 4"):
        dial.set(keep=0.5, bits=5)
    assert dial.state() == before and dial.controls["keep"].value == 1.0
    with pytest.raises(LabkitError, match=r"budget=0, floor=0[.]9; expected a time above 0"):
        BudgetDial(model, images, images.images[:4], budget=0)


def test_every_menu_has_a_name_and_a_picture_remains_without_a_kernel(model, images, timed):
    dial = BudgetDial(model, images, images.images[:4], patches=(4, 2))
    assert [menu.description for menu in dial.controls.values()] == ["patch", "mixer", "reducer", "keep", "bits"]
    assert [value for _, value in dial.controls["patch"].options] == [2, 4]
    assert [value for _, value in dial.controls["bits"].options] == list(BITS)
    assert list(dial.slider.children) == list(dial.controls.values())
    shown, about = dial._repr_mimebundle_()
    assert base64.b64decode(shown["image/png"]).startswith(b"\x89PNG")
    assert shown["text/plain"] == about["image/png"]["alt"] == dial.state()
    assert "application/vnd.jupyter.widget-view+json" in shown
