"""Every section measures what it says; a model that lacks what a section needs is told why it was left out."""

from __future__ import annotations

import json
from typing import get_args

import pytest
import timm
import torch

import labkit
from labkit.audit import looks, robust, speed, stacks, together, tokens
from labkit.audit.audit import SECTIONS, Audit, check, read
from labkit.audit.subject import Subject, subject
from labkit.data import shapes
from labkit.errors import LabkitError
from labkit.stack import Stack
from labkit.stack.reduce import Reduction


@pytest.fixture(scope="module")
def found() -> Subject:
    return subject(limit=12, batch=2)


@pytest.fixture(scope="module")
def audit(found) -> Audit:
    """All sections, measured once."""
    whole = Audit(found, fast=True)
    for name in SECTIONS:
        whole.add(name)
    return whole


@pytest.fixture
def stranger() -> Subject:
    """A model that is no plain ViT, on images that have no labels."""
    torch.manual_seed(0)
    net = timm.create_model("convnext_atto", num_classes=10).eval()
    images = shapes("test", 4, size=64)
    inputs = images.images
    truth = net(inputs).argmax(dim=1)
    ends = torch.zeros(3), torch.ones(3)
    return Subject("<script>alert(1)</script>", net, "It is a ConvNeXt.", images, inputs, inputs, truth, False, *ends)


def test_what_counts_what_the_model_has(audit, found):
    values = audit.sections["what"].values
    assert values["parameters"] == sum(p.numel() for p in found.vit.parameters())
    assert values["macs"] == labkit.cost.count(found.vit).macs == sum(p["macs"] for p in values["parts"].values())
    assert values["untouched"]["share"] == found.right().double().mean()


def test_the_time_of_the_parts_is_the_time_of_the_whole(audit):
    values = audit.sections["speed"].values
    parts = {name: part["ms"] for name, part in values["parts"].items()}
    assert {"mlp", "qkv", "attention", "proj", "norms", "patch", "head"} <= set(parts)
    assert max(parts, key=parts.get) == "mlp" and all(ms >= 0 for ms in parts.values())
    assert all(row["ms_low"] <= row["ms"] <= row["ms_high"] for row in values["batches"].values())
    assert 0.3 < sum(parts.values()) / values["batches"]["1"]["ms"] < 3
    assert 0 < sum(part["least_ms"] for part in values["parts"].values()) < sum(parts.values())


def test_a_stopwatch_leaves_the_model_as_it_was_and_knows_its_parts(found):
    before = found.vit(found.inputs[:1])
    with speed.Stopwatch(found.vit) as watch:
        assert found.vit(found.inputs[:1]).equal(before)
    assert watch.spent["qkv"] > 0 and watch.part(torch.softmax, (before,)) == "attention"
    assert watch.part(torch.nn.functional.linear, (before, found.vit.head.weight)) == "head"


def test_a_silenced_head_is_measured_as_the_kit_measures_it(audit, found):
    values = audit.sections["looks"].values
    effects = labkit.explain.ablation.head_effects(found.vit, found.inputs, found.truth)
    measured = torch.tensor([layer["effect"] for layer in values["layers"]])
    assert torch.allclose(measured, effects.probability, atol=1e-5)
    told = int(audit.sections["looks"].said.split()[0])
    assert told == len(looks.idle(values))


def test_every_way_and_every_budget_has_a_row_that_can_be_built_again(audit, found):
    rows = audit.sections["tokens"].values["candidates"]
    assert {row["name"] for row in rows} == set(tokens.grid(6, fast=True)) and len(rows) == 2 * len(tokens.FEW) + 2
    for row in (rows[0], rows[-1]):
        model = Stack(**row["stack"]).build(found.vit, found.calibration)
        assert found.right(model).double().mean().item() == row["share"]
        assert labkit.cost.count(model, found.size).macs == row["macs"] < labkit.cost.count(found.vit).macs


def test_without_a_class_token_nobody_asks_it():
    values = tokens.measure(subject("shapes-vit-gap", limit=4, batch=1), fast=True)
    assert {row["stack"]["reducer"] for row in values["candidates"]} == set(tokens.FEW) - {"keep-value"}
    assert tokens.sentence(values).endswith(
        "Left out: keep-value 70%, keep-value 50%, because it asks the class token, and this model has none; "
        '"keep-apart" and "merge" ask nobody.'
    )


def test_every_way_is_tried_in_full_and_two_of_them_in_every_place():
    tried = tokens.grid(12, fast=False)
    assert {(s.reducer, s.keep) for s in tried.values() if s.where == "3, 6, 9"} == {
        (way, keep) for way in get_args(Reduction)[1:] for keep in tokens.BUDGETS
    }
    placed = {stack.where for stack in tried.values() if stack.reducer == "merge-criteria"}
    assert placed == {"3, 6, 9", "3", "6, 9", "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10"}
    assert tried["merge-criteria 50% everywhere"].describe() == "merge-criteria to 50% in blocks 0 to 10"


@pytest.mark.parametrize(
    ("depth", "where"), [(1, []), (2, [(0,)]), (3, [(0, 1), (0,), (1,)]), (4, [(1, 2), (1,), (2,), (0, 1, 2)])]
)
def test_places_are_in_front_of_the_last_block_and_each_is_tried_once(depth, where):
    assert list(tokens.places(depth).values()) == where


def test_one_block_has_nothing_to_reduce():
    values = {"candidates": [], "left_out": {}, "blocks": 1, "word": "accuracy", "batch": 8, "untouched": {"share": 1}}
    assert tokens.sentence(values).startswith("Nothing to try: this model has one block")
    assert tokens.table(values).rows == [] and tokens.figure(values).axes


def test_bits_are_worse_when_they_are_few_and_every_layer_was_asked(audit, found):
    values = audit.sections["bits"].values
    assert set(values["sensitivity"]) == set(labkit.quant.untouched(found.vit))
    assert all(error > 0 for error in values["sensitivity"].values())
    assert {row["stack"]["backend"] for row in values["candidates"]} == {"int8"}


def test_both_at_once_holds_all_that_was_tried(audit):
    values = audit.sections["together"].values
    assert values["others"] == [row for name in ("tokens", "bits") for row in audit.sections[name].values["candidates"]]
    for row in values["candidates"]:
        assert row["stack"]["weights"] == 8 and row["stack"]["keep"] < 1
    ways = [row for row in values["others"] if row["stack"]["reducer"] not in ("none", "random")]
    assert values["untried"] == len(ways) - len(values["candidates"]) > 0
    quick = [row for row in audit.candidates() if row["ratio_high"] < 1]
    assert audit.recommendation()["choices"] == len(quick) + values["untried"]
    assert together.table(values).rows


# --- disturbances ---------------------------------------------------------------------------------------------------
def dice() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_disturbances_do_what_they_say():
    pixels = torch.rand(3, 3, 64, 48, generator=dice())
    hidden = robust.painted(0.25)(pixels, dice())
    changed = (hidden != pixels).any(dim=1).double().mean(dim=(1, 2))
    assert (changed - 0.25).abs().max() < 0.05
    square = robust.hidden_square(0.25)(pixels, dice())
    assert ((square != pixels).any(dim=1).double().mean(dim=(1, 2)) - 0.25).abs().max() < 0.02
    assert (robust.jpeg(95)(pixels, dice()) - pixels).abs().mean() < (
        robust.jpeg(5)(pixels, dice()) - pixels
    ).abs().mean()
    faded = robust.faded(0.5)(pixels, dice())
    assert torch.allclose(faded.std(), pixels.std() / 2, rtol=0.01)


def test_a_shift_is_by_one_pixel():
    pixels = torch.rand(1, 3, 8, 8, generator=dice())
    moved = robust.shifted(pixels, dice())[0]
    fits = [moved[:, 1:-1, 1:-1].equal(pixels[0, :, 1 + a : 7 + a, 1 + b : 7 + b]) for a in (-1, 1) for b in (-1, 1)]
    assert sum(fits) == 1


def test_painting_nothing_over_changes_nothing(found):
    assert robust.painted(0.0)(found.images.images, dice()).equal(found.images.images)


# --- the whole ------------------------------------------------------------------------------------------------------
def test_the_numbers_are_kept_by_the_schema_and_read_again(audit, tmp_path):
    values = read(audit.to_json(tmp_path / "audit.json"))
    assert values["sections"]["tokens"]["candidates"] == audit.sections["tokens"].values["candidates"]
    assert values["recommendation"]["sentence"] and values["word"] == "accuracy"
    assert list(values["sections"]) == list(SECTIONS)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda v: v.update(schema=2), "schema"),
        (lambda v: v.pop("model"), "the whole"),
        (lambda v: v["sections"].update(magic={}), "sections"),
        (lambda v: v["sections"]["tokens"]["candidates"][0].update(share=2), "sections/tokens/candidates/0/share"),
    ],
)
def test_what_is_no_audit_is_a_sentence_that_says_where(audit, change, where):
    values = json.loads(json.dumps(audit.values()))
    change(values)
    with pytest.raises(LabkitError, match=f"no audit of schema 1: at {where}"):
        check(values)


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00", '{"schema": 1}'])
def test_a_file_that_is_none_is_a_sentence(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(LabkitError, match="audit"):
        read(tmp_path / "a.json")


def test_a_model_that_is_not_plain_has_the_sections_that_apply(stranger, tmp_path):
    whole = Audit(stranger, fast=True)
    for name in SECTIONS:
        whole.add(name)
    skipped = [name for name, section in whole.sections.items() if "skipped" in section.values]
    assert skipped == ["tokens", "bits", "together"]
    assert whole.sections["looks"].values["layers"] == [] and "no maps" in whole.sections["looks"].said
    assert whole.recommendation()["verdict"] == "not measured"
    page = whole.to_html(tmp_path / "audit.html").read_text()
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)" in page
    told = page.split("<h2>")  # every word but the model's own and the schema's
    assert not any("accuracy" in part for part in told)
    read(whole.to_json(tmp_path / "audit.json"))


def test_every_section_is_told_in_words_a_table_and_a_picture(audit):
    for section in audit.sections.values():
        assert section.said.endswith(".") and section.table.rows and section.picture[:4] == b"\x89PNG"
        assert section.said in section._repr_html_().replace("&#x27;", "'")


def test_a_table_of_choices_is_ordered_by_time(audit):
    ratios = [row[1].split()[0] for row in stacks.table(audit.sections["tokens"].values).rows]
    assert ratios == sorted(ratios, key=float, reverse=True)


def test_what_nobody_would_choose_is_outside_the_frame_and_counted(audit):
    values = audit.sections["tokens"].values
    rows = [row | {"ratio": 0.9, "share": 0.9} for row in values["candidates"]]
    slow, bad = rows[0] | {"ratio": 2.0}, rows[1] | {"share": 0.1}
    title = stacks.figure(values | {"candidates": rows}).axes[0].get_title(loc="left")
    drawn = stacks.figure(values | {"candidates": [slow, bad, *rows[2:]]}).axes[0]
    assert title == ""
    assert drawn.get_title(loc="left") == f"2 of {len(rows)} choices, far slower or worse, lie outside"
    kinds = stacks.by_kind(audit.candidates())
    assert set(kinds) == {"tokens dropped", "tokens joined", "dice", "bits", "tokens and bits"}
    assert sum(map(len, kinds.values())) == len(audit.candidates())


def test_a_tolerance_is_a_share(found):
    for tolerance in (0, 1, -1, 5):
        with pytest.raises(LabkitError, match="tolerance"):
            Audit(found, tolerance=tolerance)
