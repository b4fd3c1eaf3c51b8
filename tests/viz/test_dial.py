"""The first slider: what it keeps, what it says, and what is left of it without a kernel."""

from __future__ import annotations

import base64

import pytest
import torch

from labkit import data
from labkit.errors import LabkitError
from labkit.vit import ViT
from labkit.viz import dial


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return ViT(image_size=64, patch_size=8, classes=10, dim=16, depth=3, heads=2).eval()


@pytest.fixture(scope="module")
def images():
    return data.shapes("test", 20)


def test_a_look_at_full_budget_is_the_full_model(model, images):
    seen = dial.look(model, images, 1.0, example=3)
    assert seen.kept.all() and seen.kept.shape == model.grid
    with torch.inference_mode():
        logits = model(images.images)
    assert seen.prediction == images.names[int(logits[3].argmax())]
    assert seen.confidence == pytest.approx(float(logits[3].softmax(dim=0).max()), abs=1e-5)
    assert seen.accuracy == pytest.approx(float((logits.argmax(dim=1) == images.labels).double().mean()))
    assert seen.low <= seen.accuracy <= seen.high


def test_a_look_keeps_the_share_and_says_so(model, images):
    seen = dial.look(model, images, 0.25)
    assert int(seen.kept.sum()) == 16
    assert "25% of the patches (16 of 64)" in seen.sentence() and "of 20 images" in seen.sentence()
    dark = dial.dimmed(torch.ones(3, 64, 64), seen.kept)
    assert (dark == 1).mean() == 0.25 and dark[dark < 1].max() < 0.2


def test_a_look_needs_answers(model, images):
    with pytest.raises(LabkitError, match="no labels"):
        dial.look(model, data.ImageSet(images.images), 0.5)


def test_slider_code_and_view_agree_and_nothing_is_measured_twice(model, images, monkeypatch):
    ui = dial.KeepDial(model, images, keep=0.5)
    assert ui.keep == 0.5 and "Keep 50%" in ui.state()
    ui.slider.value = 25
    assert "Keep 25%" in ui.state() and 'alt="Keep 25%' in ui.view.value
    monkeypatch.setattr(dial, "look", lambda *_: pytest.fail("measured twice"))
    ui.keep = 0.5
    assert "Keep 50%" in ui.state() and list(ui.looks) == [25, 50]


def test_without_a_kernel_a_picture_and_its_sentence_remain(model, images):
    ui = dial.KeepDial(model, images, keep=0.5)
    shown, about = ui._repr_mimebundle_()
    assert base64.b64decode(shown["image/png"]).startswith(b"\x89PNG")
    assert shown["text/plain"] == about["image/png"]["alt"] == ui.state()
    assert "application/vnd.jupyter.widget-view+json" in shown


def test_every_image_is_drawn_over_its_map(model, images):
    fig = dial.seen(images[:3], torch.rand(3, 8, 8), ["a", "b", "c"])
    assert [ax.get_title() for ax in fig.axes[:3]] == ["a", "b", "c"]
    with pytest.raises(LabkitError, match="no masks"):
        dial.seen(data.ImageSet(images.images[:3]), torch.rand(3, 8, 8), ["a", "b", "c"])
