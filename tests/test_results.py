"""Cached measurements: written whole, read back, honest about where they come from; and the intervals."""

from __future__ import annotations

import json
import re
import subprocess

import numpy as np
import pytest
import torch

from labkit import files, machine, paths, results
from labkit.errors import LabkitError


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


def save(name="speed", values=None, **options):
    options = {"command": "make bench", "seed": 0} | options
    return results.save(name, {"ratio": 1.0} if values is None else values, **options)


def test_what_is_saved_is_loaded():
    values = {"ratio": torch.tensor(0.123456789), "rows": np.arange(3), "names": ("a", "b"), "none": None}
    saved = save(values=values | {"yes": np.bool_(True), "nested": {"n": 10**12, "small": 1.23456789e-9}})
    assert saved == results.load("speed")
    assert dict(saved.values) == {
        "ratio": 0.123457,
        "rows": [0, 1, 2],
        "names": ["a", "b"],
        "none": None,
        "yes": True,
        "nested": {"n": 10**12, "small": 1.23457e-9},
    }
    assert saved["ratio"] == 0.123457 and "ratio" in saved and len(saved) == 6


def test_the_file_is_sorted_and_alone(folder):
    save(values={"b": 1, "a": 2})
    save(values={"b": 1, "a": 2})
    assert [path.name for path in folder.iterdir()] == ["speed.json"]
    text = (folder / "speed.json").read_text()
    assert text.index('"a"') < text.index('"b"') and text.endswith("}\n")
    assert "/tmp" not in text and str(results.REPOSITORY) not in text


def test_a_failed_write_leaves_the_old_file(folder, monkeypatch):
    save(values={"a": 1})
    monkeypatch.setattr(files.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save(values={"a": 2})
    assert results.load("speed")["a"] == 1
    assert [path.name for path in folder.iterdir()] == ["speed.json"]


def test_the_provenance_says_everything():
    p = save(interval="95 % Wilson").provenance
    assert (p["command"], p["seed"], p["interval"]) == ("make bench", 0, "95 % Wilson")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", p["date"])
    assert p["versions"]["torch"] == torch.__version__.split("+")[0] or p["versions"]["torch"] == torch.__version__
    assert set(p["versions"]) == {"python", "labkit", "torch", "timm", "numpy"}
    assert p["machine"]["cpu"] and p["machine"]["cores"] >= 1


def test_the_commit_is_named_and_local_changes_too(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "REPOSITORY", tmp_path)
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "data" / "results")
    assert save().provenance["commit"] is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "code.py").write_text("x = 1\n")
    for command in (["init", "-q"], ["add", "code.py"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *command], check=True)
    save()
    p = save().provenance  # the first result does not make the tree dirty for the second
    assert re.fullmatch(r"[0-9a-f]{40}", p["commit"]) and p["dirty"] is False
    (tmp_path / "code.py").write_text("x = 2\n")
    assert save().provenance["dirty"] is True


def test_the_caption_is_one_sentence(monkeypatch):
    here = {"cpu": "Chip <9>", "cores": 2, "gpu": None, "system": "Linux"}
    monkeypatch.setattr(machine, "describe", lambda: here)
    result = save(interval="95 % Wilson")
    date, version = result.provenance["date"], result.provenance["versions"]["torch"]
    assert result.caption() == (
        f"Measured {date} with `make bench`, seed 0, on 2 cores of Chip <9>, torch {version}; ranges: 95 % Wilson."
    )
    html = result._repr_html_()
    assert re.search(r'^<small title="data/results/speed.json; .*timm .*; commit ', html)
    assert "<code>make bench</code>" in html and "Chip &lt;9&gt;" in html
    monkeypatch.setattr(machine, "describe", lambda: here | {"cores": 1, "gpu": "NVIDIA H200"})
    assert "make bench`, on 1 core of Chip <9> with NVIDIA H200, torch" in save(seed=None).caption()


def test_an_unknown_name_offers_the_nearest():
    save("speed-cpu")
    with pytest.raises(LabkitError, match=r'no result "sped-cpu" in data/results. Did you mean "speed-cpu"\?'):
        results.load("sped-cpu")
    with pytest.raises(LabkitError, match=r'"speed-cpu" has no value "ratoi". Did you mean "ratio"\?'):
        results.load("speed-cpu")["ratoi"]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"values": {}}', '{"schema": 1, "values": {}, "provenance": {}}', "\udcff"]
)
def test_a_damaged_file_is_a_sentence(folder, text):
    save()
    (folder / "speed.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(LabkitError, match=r"data/results/speed.json is damaged \(\w+: .*\); restore it with git"):
        results.load("speed")


def test_a_newer_schema_is_a_sentence(folder):
    save()
    content = json.loads((folder / "speed.json").read_text())
    (folder / "speed.json").write_text(json.dumps(content | {"schema": 2}))
    with pytest.raises(LabkitError, match="has schema 2, expected 1; measure it again"):
        results.load("speed")


@pytest.mark.parametrize(
    "values, sentence",
    [
        ({"a": [1, {"b": float("nan")}]}, r"values\.a\[1\]\.b is nan; a result holds finite numbers"),
        ({"a": torch.tensor(torch.inf)}, r"values\.a is inf"),
        ({"a": {1, 2}}, r"values\.a is a set; a result holds numbers"),
        ({"a": "saved to /home/me/x"}, r"values\.a holds an absolute path"),
        ({"a": r"C:\Users\me"}, r"values\.a holds an absolute path"),
    ],
)
def test_what_another_machine_cannot_read_is_refused(values, sentence):
    with pytest.raises(LabkitError, match=sentence):
        save(values=values)


def test_bad_arguments_are_sentences():
    with pytest.raises(LabkitError, match=r"provenance\.command holds an absolute path"):
        save(command="python /home/me/bench.py")
    with pytest.raises(LabkitError, match=r"name '\.\./x' is not usable"):
        save("../x")
    with pytest.raises(LabkitError, match="is not a sentence"):
        save(interval=(0.1, 0.2))
    assert save(command="python bench/x.py --ratio 1/2 --url https://a.org/b").provenance["command"]


def test_cores_respect_the_scheduler(monkeypatch):
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {0}, raising=False)
    assert machine.cores() == 1


def test_wilson_against_known_values():
    assert results.wilson(8, 10) == pytest.approx((0.4901, 0.9433), abs=1e-4)
    assert results.wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert results.wilson(20, 20) == pytest.approx((0.8389, 1.0), abs=1e-4)
    low, high = results.wilson(900, 1000)
    assert 1 - np.array(results.wilson(100, 1000))[::-1] == pytest.approx((low, high))
    for bad in [(3, 2), (-1, 2), (0, 0)]:
        with pytest.raises(LabkitError, match="make no proportion"):
            results.wilson(*bad)


def test_wilson_covers_95_percent():
    draw = np.random.default_rng(0)
    intervals = {k: results.wilson(k, 200) for k in range(201)}
    hits = [intervals[k][0] <= 0.95 <= intervals[k][1] for k in draw.binomial(200, 0.95, size=4000)]
    assert 0.93 <= np.mean(hits) <= 0.97


def test_bootstrap_is_seeded_and_near_the_normal_interval():
    values = np.random.default_rng(0).normal(10, 2, size=400)
    low, high = results.bootstrap(values, np.mean, seed=1)
    assert (low, high) == results.bootstrap(torch.tensor(values), np.mean, seed=1)
    assert (low, high) != results.bootstrap(values, np.mean, seed=2)
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)


def test_bootstrap_resamples_rows():
    pairs = np.stack([np.arange(50.0), 2 * np.arange(50.0)], axis=1)
    ratio = lambda rows: rows[:, 1].sum() / rows[:, 0].sum()  # noqa: E731
    assert results.bootstrap(pairs, ratio, n=50) == pytest.approx((2, 2))
    with pytest.raises(LabkitError, match="at least two values"):
        results.bootstrap([1.0])


def test_paired_difference_is_a_minus_b():
    a, b = torch.tensor([True] * 90 + [False] * 10), np.array([True] * 80 + [False] * 20)
    difference, low, high = results.paired_difference(a, b)
    assert difference == pytest.approx(0.1)
    assert (low, high) == pytest.approx((0.0343, 0.1618), abs=1e-4)
    assert results.paired_difference(b, a) == pytest.approx((-difference, -high, -low))


def test_models_that_never_disagree_are_not_proven_equal():
    difference, low, high = results.paired_difference([1] * 50, [1] * 50)
    assert difference == 0 and low < -0.02 and high > 0.02


@pytest.mark.parametrize("n, only_a, only_b", [(4000, 0.01, 0.005), (300, 0.05, 0.01), (2000, 0.02, 0.02)])
def test_paired_difference_covers_95_percent(n, only_a, only_b):
    draw = np.random.default_rng(0)
    hits = []
    for _ in range(1500):
        u = draw.random(n)
        a, b = u < 0.8 + only_a, (u < 0.8) | (u > 1 - only_b)
        _, low, high = results.paired_difference(a, b)
        hits.append(low <= only_a - only_b <= high)
    assert 0.93 <= np.mean(hits) <= 0.97


def test_pairing_needs_the_same_images():
    with pytest.raises(LabkitError, match=r"the same images.*shapes \(3,\) and \(2,\)"):
        results.paired_difference([1, 0, 1], [1, 0])
