"""`make bench`: verdicts follow the numbers, a miss is tried once more, what is kept can be read back."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from bench import data, field, imports, report, run, vit
from bench.outcome import Outcome
from labkit import paths, results
from labkit.clock import Timing


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    monkeypatch.setattr(report, "PATH", tmp_path / "RESULTS.md")
    monkeypatch.setattr(report, "text", lambda: "a report")
    monkeypatch.setattr(field, "UNFINISHED", tmp_path / "field")
    return tmp_path


def install(monkeypatch, name: str, *verdicts: bool) -> list[bool]:
    """A bench whose bar is met or missed as told, call by call; returns the `quick` of each call."""
    calls: list[bool] = []

    def bench(quick: bool) -> Outcome:
        calls.append(quick)
        return Outcome(name, "a table", {"seconds": 0.5}, {f"{name} is fast": verdicts[len(calls) - 1]})

    monkeypatch.setitem(sys.modules, f"bench.{name}", types.SimpleNamespace(bench=bench))
    return calls


def test_bars_that_are_met_are_kept_and_exit_with_zero(monkeypatch, capsys):
    for name in run.NAMES:
        install(monkeypatch, name, True)
    assert run.main([]) == 0
    assert "Every bar is met." in capsys.readouterr().out
    assert results.names() == sorted(f"bench-{name}" for name in run.NAMES)
    saved = results.load("bench-vit")
    assert saved["seconds"] == 0.5 and saved["bars"] == {"vit is fast": True}
    assert "python bench/run.py vit" in saved.caption()
    assert report.PATH.read_text() == "a report"


@pytest.mark.parametrize("verdicts, code", [((False, True), 0), ((False, False), 1)])
def test_a_miss_is_tried_once_more(monkeypatch, capsys, verdicts, code):
    calls = install(monkeypatch, "vit", *verdicts)
    assert run.main(["vit"]) == code
    printed = capsys.readouterr().out
    assert len(calls) == 2 and "Once more" in printed and "MISSED  vit is fast" in printed
    assert ("1 missed: vit is fast" in printed) == bool(code)


def test_the_field_is_run_once_and_forgets_what_it_set_aside(monkeypatch, capsys):
    calls = install(monkeypatch, "field", False)
    field.UNFINISHED.write_text("half of it")
    assert run.main(["--quick", "field"]) == 1 and field.UNFINISHED.exists()
    calls.clear()
    assert run.main(["field"]) == 1
    assert calls == [False] and "Once more" not in capsys.readouterr().out
    assert results.names() == ["bench-field"] and not field.UNFINISHED.exists()


def test_without_the_field_there_is_no_report(monkeypatch):
    install(monkeypatch, "data", True)
    assert run.main(["data"]) == 0 and not report.PATH.exists()


def test_quick_keeps_nothing(monkeypatch):
    assert install(monkeypatch, "data", True) is not None and run.main(["--quick", "data"]) == 0
    assert results.names() == [] and not report.PATH.exists()


def test_an_unknown_bench_is_named(capsys):
    with pytest.raises(SystemExit):
        run.main(["vti"])
    assert "there is no bench vti; there is vit, imports, data, field" in capsys.readouterr().err


@pytest.mark.parametrize("fast, met", [(0.9, True), (1.1, False)])
def test_the_vit_bench_judges_by_the_ratio_to_timm(monkeypatch, fast, met):
    def compare(models, images, **options):
        assert options["clocks"][0] == "cpu"
        seconds = dict(zip(models, (1.0, fast, 1.2, 1.3), strict=True))
        times = {name: [value] * 5 for name, value in seconds.items()}
        return Timing({"cpu": times, "wall": times}, {"cpu": 1, "wall": 2}, "imagined")

    monkeypatch.setattr(vit, "compare", compare)
    monkeypatch.setattr(vit, "NAME", "test_vit")
    monkeypatch.setattr(vit, "BATCH", 2)
    outcome = vit.bench(quick=True)
    assert list(outcome.bars.values()) == [met, True, True]
    assert outcome.values["macs"]["timm"] == outcome.values["macs"]["plain"] > outcome.values["macs"]["fast"]
    results.save("bench-vit", outcome.values, command="make bench")


@pytest.mark.parametrize(
    "words, verdicts",
    [(["2.0", "0.1"], [True, True]), (["2.0", "0.4"], [False, True]), (["2.0", "0.1", "timm"], [True, False])],
)
def test_the_import_bench_judges_seconds_and_packages(monkeypatch, words, verdicts):
    monkeypatch.setattr(imports, "fresh_python", lambda: words)
    outcome = imports.bench(quick=True)
    assert list(outcome.bars.values()) == verdicts
    results.save("bench-imports", outcome.values, command="make bench")


@pytest.mark.parametrize("seconds, met", [(0.2, True), (0.3, False)])
def test_the_data_bench_judges_images_per_second(monkeypatch, seconds, met):
    def compare(makers, **options):
        assert options["clocks"] == ("cpu",)
        assert not met or all(len(make()) == 256 for make in makers.values())
        return Timing({"cpu": {task: [seconds] * 5 for task in makers}}, {"cpu": 1}, "imagined")

    monkeypatch.setattr(data, "compare", compare)
    outcome = data.bench(quick=True)
    assert outcome.values["classify"]["images_per_second"] == pytest.approx(256 / seconds)
    assert list(outcome.bars.values()) == [met]
    assert torch.is_grad_enabled()
    results.save("bench-data", outcome.values, command="make bench")
