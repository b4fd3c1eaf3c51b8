"""The bench of fewer tokens: published numbers beside counted ones, budgets that are met, controls, what is printed."""

from __future__ import annotations

import pytest
import torch

from bench import tokens as bench
from bench import tokens_accuracy, tokens_tuned
from labkit import data, paths, results, tokens, zoo
from labkit.cost import count
from labkit.evidence import Evidence
from labkit.tokens.schedule import attach_schedule, to_macs
from labkit.vit import ViT
from tests import checks


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    yield tmp_path
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def deit() -> ViT:
    return ViT.from_timm(bench.NAME).eval()


@pytest.mark.parametrize("name", bench.PUBLISHED)
def test_the_macs_are_those_that_were_published(deit, name):
    """To the digit that is printed there; a predictor and a glance cost a little more than their papers count."""
    attach, published, _ = bench.PUBLISHED[name]
    slim = attach(deit).eval()
    slim.last = "full"
    ours = count(slim, bench.SIZE).macs / 1e9
    assert ours == pytest.approx(published, abs={"predict 0.7": 0.2, "slow-fast 0.5": 0.06}.get(name, 0.05))


@pytest.mark.parametrize("share", bench.MACS)
@pytest.mark.parametrize("name", bench.MATCHED)
def test_every_method_meets_the_same_budget(deit, name, share):
    make, plan, dial = bench.MATCHED[name]
    amounts = to_macs(deit, share, make, plan, dial)
    slim = attach_schedule(deit, make, amounts)
    macs = count(slim, bench.SIZE).macs / count(deit, bench.SIZE).macs
    assert share - 0.03 < macs < share + 0.05  # with scoring and matching


def test_the_paper_in_gathers_and_scatters_does_what_ours_does():
    """Without a class token, which takes a turn in the paper's alternation and none in ours."""
    dice = torch.Generator().manual_seed(0)
    x, keys = torch.randn(2, 16, 8, generator=dice), torch.randn(2, 2, 16, 4, generator=dice)
    sizes = torch.randint(1, 4, (2, 16), generator=dice).float()
    described, counts = bench.by_description(Evidence(keys, keys), x, sizes, 5, 0)
    ours, groups = tokens.Merge(5).reduce(x, Evidence(keys, keys), sizes, 0)
    assert described.shape == ours.shape == (2, 11, 8)
    checks.equal(counts.sum(dim=1), sizes.sum(dim=1), 1e-6)
    checks.equal(counts.sort(dim=1).values, groups.sizes(sizes).sort(dim=1).values, 1e-6)
    order = [t.sum(dim=2).argsort(dim=1)[..., None] for t in (described, ours)]
    checks.equal(described.take_along_dim(order[0], 1), ours.take_along_dim(order[1], 1), 1e-5)


@pytest.fixture(scope="module")
def judged():
    """Every method at one budget, on few images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens_accuracy, "DIALLED", 24)
        yield judge_all()


def judge_all():
    model, images = zoo.load("shapes-vit"), data.shapes("test", 24)
    with torch.no_grad():
        full = model(images.images)
    return {
        name: tokens_accuracy.judged(cut, 0.5, model, full, images) for name, cut in tokens_accuracy.methods().items()
    }


def test_all_methods_keep_what_was_asked_and_controls_do_what_they_should(judged):
    for name, found in judged.items():
        assert found["kept"] == pytest.approx(0.5, abs=0.12 if name.startswith("adaptive") else 0.07), name
        assert found["hits"].shape == (24,) and 0 <= found["agreement"] <= 1
        assert found["recall"].min() >= 0 and found["recall"].max() <= 1
    mean = {name: found["recall"].mean() for name, found in judged.items()}
    assert mean["control: the true mask"] > 0.95 > mean["keep: class attention"]
    assert mean["keep: class attention"] > mean["control: chance"] + 0.2 > mean["control: least attended"] + 0.2
    hits = {name: found["hits"].float().mean() for name, found in judged.items()}
    assert hits["control: the true mask"] > hits["control: chance"] > hits["control: least attended"]


def test_what_is_measured_is_kept_and_printed(monkeypatch, capsys):
    few = ("keep: class attention", "merge: similar keys", "control: chance")
    all_methods = tokens_accuracy.methods
    monkeypatch.setattr(tokens_accuracy, "methods", lambda: {name: all_methods()[name] for name in few})
    monkeypatch.setattr(tokens_accuracy, "KEEPS", (0.5,))
    for table in (tokens_tuned.ROWS,):
        for name in set(table) - {
            "full",
            "keep: a learned predictor, weights frozen",
            "schedule: learned rates, weights frozen, merging",
        }:
            monkeypatch.delitem(table, name)
    monkeypatch.setattr(tokens_tuned, "STEPS", 2)
    monkeypatch.setattr(bench, "SIZE", 64)
    monkeypatch.setattr(bench, "NAME", "deit_tiny_patch16_224")
    monkeypatch.setattr(bench, "WIDTH", 192)
    monkeypatch.setattr(bench, "BATCHES", (1,))
    for name in set(bench.PUBLISHED) - {"merge r = 13", "fuse 0.7"}:
        monkeypatch.delitem(bench.PUBLISHED, name)
    for name in set(bench.MATCHED) - {"fuse: class attention"}:
        monkeypatch.delitem(bench.MATCHED, name)
    short = {
        "time": lambda: bench.measure_time(0.0),
        "accuracy": lambda: tokens_accuracy.measure(24),
        "tune": lambda: tokens_tuned.measure(24, steps=1),
    }
    for part, measure in short.items():
        name, _, summary, interval = bench.PARTS[part]
        monkeypatch.setitem(bench.PARTS, part, (name, measure, summary, interval))
    assert bench.main(["--run"]) == 0
    printed = capsys.readouterr().out
    for line in ("share of ideal", "object recall", "times as fast as timm", "after 2 steps of 32", *few):
        assert line in printed, line
    assert set(results.load("bench-tokens-accuracy")["methods"]) == {"full", *few}
    assert bench.main(["--summary"]) == 0
    assert capsys.readouterr().out in printed
