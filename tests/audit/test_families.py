"""Every section on small members of the families of timm: numbers, a sentence, a table and a figure, or why not.

A plain ViT may read a class token, the mean or the answer of an attention pool; it may have norms without a bias, a
gated MLP, a token for distillation, or one block only.
"""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import timm
import torch

from labkit import cost
from labkit.audit import bits, looks, measure, speed, stacks
from labkit.audit.audit import PLAIN_ONLY, SECTIONS, Audit
from labkit.audit.subject import Subject
from labkit.data import shapes
from labkit.errors import LabkitError
from labkit.tracing.record import trace
from labkit.vit import ViT

SMALL = {"img_size": 64, "depth": 2}
NARROW = SMALL | {"embed_dim": 48, "num_heads": 3, "num_classes": 5}
PLAIN = {
    "test_vit2": SMALL,
    "test_vit3": SMALL,
    "test_vit4": SMALL,
    "deit_tiny_distilled_patch16_224": NARROW,
    "vit_tiny_patch16_224": NARROW | {"depth": 1},
}
OTHERS = {"test_convnext": {}, "test_coatnet": {"img_size": 64}}


def subject_of(name: str, **options) -> Subject:
    """The model on four images without labels; as `labkit.audit.subject` would give it, for any options of timm."""
    torch.manual_seed(0)
    theirs = timm.create_model(name, **options).eval()
    try:
        net, plain = ViT.from_timm(theirs).eval(), ""
    except LabkitError as why:
        net, plain = theirs, str(why)
    images = shapes("test", 4, size=64)
    with torch.inference_mode():
        truth = net(images.images).argmax(dim=1)
    ends = torch.zeros(3), torch.ones(3)
    return Subject(name, net, plain, images, images.images, images.images, truth, False, *ends, batch=1)


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    """Clocks run as short as they can: what is asked here is whether a section ends, and not how fast a model is."""
    times, peak = measure.times, speed.roofline.peak
    for part in (speed, stacks):
        monkeypatch.setattr(part, "times", lambda found, models, batch, seconds: times(found, models, 1, 0.01))
    monkeypatch.setattr(speed.roofline, "peak", lambda seconds, device: peak(0.02, device))


@pytest.mark.parametrize("name", [*PLAIN, *OTHERS])
def test_every_section_ends_in_numbers_words_a_table_and_a_picture_or_says_why_not(name):
    whole = Audit(subject_of(name, **(PLAIN | OTHERS)[name]), fast=True)
    for part in SECTIONS:
        section = whole.add(part)
        assert section.said.endswith(".") and "nan" not in section.said.lower()
        json.dumps(section.values, allow_nan=False)
        if name in OTHERS and part in PLAIN_ONLY:
            assert "is not a plain ViT" in section.said
        else:
            assert section.table is not None and section.picture[:4] == b"\x89PNG"
    assert (whole.recommendation()["verdict"] == "not measured") == (name in OTHERS)


def test_what_has_no_attention_has_no_heads():
    values = looks.measure(subject_of("test_convnext"), fast=True)
    assert values["layers"] == [] and "head" not in looks.sentence(values)


def test_attention_whose_heads_are_folded_into_images_is_not_told_head_by_head():
    narrow = {
        "img_size": 96,
        "depth": 2,
        "embed_dim": 24,
        "num_heads": 2,
        "window_size": 4,
        "global_attn_indexes": (1,),
    }
    torch.manual_seed(0)
    theirs = timm.create_model("samvit_base_patch16", num_classes=5, **narrow).eval()
    found = subject_of("test_convnext")
    pictures = torch.rand(4, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    values = looks.measure(replace(found, model=theirs, inputs=pictures), fast=True)
    assert values["layers"] == [] and "images and heads cannot be told apart" in looks.sentence(values)
    assert looks.table(values).rows == [] and looks.figure(values).axes
    layer = SimpleNamespace(name="halo", kind="unknown")
    blocked = SimpleNamespace(layers=[layer], attention=[torch.zeros(6, 4, 9, 16)], images=pictures[:2])
    assert looks.headless(blocked) == ["halo"], "two images, three heads, four blocks: blocks are no heads"


def test_large_models_are_asked_about_fewer_images_without_each_head():
    found = subject_of("test_vit2", **SMALL)
    many = replace(found, inputs=found.inputs[:1].repeat(40, 1, 1, 1))
    seen = trace(many.model, many.inputs[:2])
    each = sum(layer.heads for layer in seen.layers) * cost.count(many.model, many.size, channels=3).macs
    assert looks.affordable(many, seen, 7.5 * each) == 7
    assert looks.affordable(many, seen, 0.0) == looks.FEWEST
    assert looks.affordable(many, seen, 1000.0 * each) == 32
    assert looks.affordable(replace(many, inputs=many.inputs[:1]), seen, 0.0) == 1


def test_what_stays_in_floats_is_named_and_norms_without_a_bias_are_not_shifted():
    pooled = subject_of("test_vit3", **SMALL)
    values = bits.measure(pooled, fast=True)
    assert "attn_pool.q" in values["in_float"] and not set(values["in_float"]) & set(values["sensitivity"])
    assert "attn_pool.q" in bits.sentence(values) and "stay in floats." in bits.sentence(values)
    assert bits.careful(bits.EIGHT, pooled.vit).fold == "channels"
    assert bits.careful(bits.EIGHT, subject_of("test_vit4", **SMALL).vit).fold == "none"
