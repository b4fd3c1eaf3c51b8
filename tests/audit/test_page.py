"""The page of an audit repeats itself: its command and its lines of Python give the same numbers again."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shlex
from dataclasses import replace

import pytest
import torch

from labkit import cli
from labkit.audit import bits, looks, page
from labkit.audit.audit import Audit
from labkit.audit.index import Index
from labkit.audit.subject import subject
from labkit.errors import LabkitError
from labkit.stack import Stack


@pytest.fixture(scope="module")
def audit():
    audit = Audit(subject(limit=9, seed=3, batch=2), fast=True, tolerance=0.02)
    audit.add("what")
    return audit


def test_the_command_is_understood_and_asks_for_the_same(audit, monkeypatch):
    odd = replace(audit.found, asked=audit.found.asked | {"weights": "my 'own' $file", "images": "<b>"})
    command = shlex.split(page.command(Audit(odd, fast=True, tolerance=0.02)))
    read: argparse.Namespace = cli.parser().parse_args(command[1:])
    assert (command[0], read.weights, read.images, read.fast) == ("labkit", "my 'own' $file", "<b>", True)
    assert read.parameter == ["limit=9", "seed=3", "batch=2", "tolerance=0.02"]
    assert "&lt;b&gt;" in page.repeat(Audit(odd), {}) and "<b>" not in page.repeat(Audit(odd), {})


@pytest.mark.parametrize("stack", [Stack(reducer="keep", keep=0.5, where="1, 3"), bits.FEW["W4/A4"]])
def test_the_lines_of_python_print_the_measured_share(audit, stack):
    right = audit.found.right(stack.build(audit.found.vit, audit.found.calibration))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(page.lines(audit, json.loads(json.dumps(stack.choices()))), {})
    assert f"tensor({right.double().mean():.4f}" in printed.getvalue()


def test_a_section_that_fails_says_why_and_only_our_own_mistakes_stop_the_audit(audit, monkeypatch):
    def fails(error):
        monkeypatch.setattr(looks, "measure", lambda *how: (_ for _ in ()).throw(error))

    ours, theirs = Audit(audit.found), Audit(replace(audit.found, plain="It is no plain ViT."))
    fails(LabkitError("This model has no eyes."))
    assert ours.add("looks").values == {"skipped": "This model has no eyes."}
    assert "looks" in page.contents(ours) and "(not measured)" in page.contents(ours)
    assert '<div id="explorer">' not in page.whole(ours)
    fails(RuntimeError("squabble"))
    assert theirs.add("looks").said == "Not measured. shapes-vit cannot be asked so (RuntimeError('squabble'))."
    with pytest.raises(RuntimeError, match="squabble"):
        ours.add("looks")


def test_without_labels_nothing_is_called_accuracy(audit):
    without = Audit(replace(audit.found, labelled=False))
    assert "accuracy" in page.whole(audit) and "accuracy" not in page.whole(without)


def test_the_guide_tells_what_an_answer_without_a_head_is(audit):
    index = Index.of(torch.eye(len(audit.found.inputs)), None)
    assert "has no head" in page.guide(replace(audit.found, index=index))
    assert "has no head" not in page.guide(audit.found)


def test_the_choices_come_first_where_there_is_one(audit):
    section = audit.sections["what"]
    both = Audit(audit.found, fast=True)
    both.sections = {"what": section, "together": replace(section, name="together", title="Together")}
    order = [page.whole(both).index(f'<section id="{name}">') for name in ("what", "together", "repeat")]
    assert order == sorted(order), "without a choice the sections keep their order"
    both.recommendation = lambda: {"sentence": "Take it.", "choice": "it", "stack": Stack().choices()}
    order = [page.whole(both).index(f'<section id="{name}">') for name in ("together", "what", "repeat")]
    assert order == sorted(order)
