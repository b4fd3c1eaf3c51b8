"""The bench against the field: equal weights for everybody, absences with a reason, misses that show, a report."""

from __future__ import annotations

import copy
import dataclasses
import json
import sys

import pytest
import timm
import torch

from bench import field, field_summary, field_ways, report, rivals
from bench.field_ways import DYNAMIC, FAST, INT8, PLAIN, RUNTIME8, TIMM, WAYS
from labkit import paths, results
from labkit.errors import LabkitError

PLAN = field.Plan(("tiny",), (1, 2), 5, 0.0, 2)
REAL_RESULTS, REAL_REPORT = paths.RESULTS, report.PATH


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    threads, ways = torch.get_num_threads(), dict(WAYS)
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(report, "PATH", tmp_path / "RESULTS.md")
    monkeypatch.setattr(field, "UNFINISHED", tmp_path / "build" / "field.json")
    monkeypatch.setattr(field.machine, "cores", lambda: 1)  # two threads wait for ever where tests share the cores
    monkeypatch.setattr(rivals, "SIZE", 32)
    monkeypatch.setattr(field_ways, "CALIBRATION", 2)
    yield
    torch.set_num_threads(threads)
    WAYS.clear()  # whoever took some out puts them back at the end
    WAYS.update(ways)


def only(monkeypatch, *names: str) -> None:
    """A bench of so few ways."""
    for name in set(WAYS) - set(names):
        monkeypatch.delitem(WAYS, name)


def imagined(ratio: float = 1.5, batches: tuple[int, ...] = (1, 8), quick: bool = False) -> dict:
    """A measurement as it is kept, in which ours is `ratio` times as fast as all others, but level at batch 8."""
    rows = {}
    for name in WAYS:
        own = field_ways.ours(name)
        others = dict.fromkeys([TIMM, *(field_ways.rivals_of(name) if own else ())])
        middle = ratio if own else 1.0
        rows[name] = {"ms": 10 / middle, "faster": {o: [middle, middle - 0.1, middle + 0.1] for o in others}}
    level = copy.deepcopy(rows)
    for row in level.values():
        row["faster"] = {other: [1.0, 0.9, 1.1] for other in row["faster"]}
    plan = field.Plan(("tiny", "small"), batches, quick=quick)
    told = {"model": "deit", "errors": dict.fromkeys(WAYS, 1e-6), "macs": {FAST: 1.25e9}, "absent": {}}
    measured = {b: {"rounds": 5, "rows": level if b == 8 else rows, "absent": {}} for b in batches}
    groups = {str(b): copy.deepcopy(group) for b, group in measured.items()}
    here = field.places(gpu=False)[:1]
    return {
        "setting": field.setting(plan, here),
        "models": {size: {"cpu": copy.deepcopy(told)} for size in plan.sizes},
        "groups": {size: {here[0].name: copy.deepcopy(groups)} for size in plan.sizes},
    }


def without(found: dict, name: str, reason: str) -> dict:
    """The same, had `name` not been there."""
    for models in found["models"].values():
        del models["cpu"]["errors"][name]
        models["cpu"]["absent"][name] = reason
    for _, group in field_summary.cells(found):
        del group["rows"][name]
        for row in group["rows"].values():
            row["faster"].pop(name, None)
    return found


# --- the rivals ---


@pytest.mark.parametrize("size, fused", [("tiny", False), ("small", True)])
def test_torchs_encoder_layers_give_timms_logits(monkeypatch, size, fused):
    """With an even number of heads by the fused pass."""
    theirs = timm.create_model(field.model_name(size), img_size=32, depth=3).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(parameter.ndim))
    encoder, x, calls = rivals.torch_encoder(theirs), rivals.images(2, seed=0), []
    layer = torch._transformer_encoder_layer_fwd
    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", lambda *a: calls.append(a) or layer(*a))
    with torch.inference_mode():
        assert (encoder(x) - theirs(x)).abs().max() <= 1e-5 * theirs(x).abs().max()
    assert len(calls) == 3 * fused
    assert "Block" in type(theirs.blocks[0]).__name__  # theirs stays as it was


def test_who_is_not_installed_is_absent_with_the_reason(monkeypatch, tmp_path):
    for name in ("onnxruntime", "onnxruntime.quantization", "torchao", "torchao.quantization", "torch.ao.quantization"):
        monkeypatch.setitem(sys.modules, name, None)
    chosen = {name: way for name, way in WAYS.items() if not field_ways.ours(name)}
    models, absent = field.made("tiny", "cpu", chosen, tmp_path)
    assert list(models) == [TIMM, field_ways.ENCODER, field_ways.THEIR_HALF]
    assert "onnx" in absent[field_ways.RUNTIME] and "torchao" in absent[field_ways.COMPILED]
    assert "Error" not in absent[DYNAMIC] and len(absent) == len(chosen) - 3


def test_without_tiles_of_integers_ours_is_absent_too(monkeypatch, tmp_path):
    monkeypatch.setattr(field_ways.kernels, "available", lambda device: "The 8-bit kernel is missing (so).")
    _, absent = field.made("tiny", "cpu", {name: WAYS[name] for name in (INT8, field_ways.INT8_MERGE)}, tmp_path)
    assert set(absent.values()) == {"The 8-bit kernel is missing (so)."}


def test_a_reason_is_one_line_without_folders():
    told = rivals.missing(RuntimeError('failed at "/opt/build/torch/ir.cpp":6, ' + "word " * 99 + "\nand more"))
    assert told.startswith('RuntimeError: failed at "ir.cpp":6, word') and told.endswith("word…") and len(told) < 180
    assert rivals.missing(LabkitError("No tiles.")) == "No tiles." and rivals.missing(ValueError()) == "ValueError: "


def test_warnings_are_silent_inside_only(recwarn, caplog):
    import logging
    import warnings

    with rivals.quiet():
        warnings.warn("inside", stacklevel=1)
        logging.getLogger("torch").warning("inside")
    warnings.warn("outside", stacklevel=1)
    logging.getLogger("labkit-test").warning("outside")
    assert [str(w.message) for w in recwarn] == ["outside"] and caplog.messages == ["outside"]


# --- the measurement ---


def test_everybody_computes_the_same_vit(monkeypatch):
    """The float ones exactly, the rounded ones nearly; tokens that are lost and bits are all that differs."""
    monkeypatch.setitem(WAYS, PLAIN, dataclasses.replace(WAYS[PLAIN], quick=True))
    found = field.measure(field.Plan(("tiny",), (2,), 5, 0.0, 2, quick=True), gpu=False)
    errors, absent = found["models"]["tiny"]["cpu"]["errors"], found["models"]["tiny"]["cpu"]["absent"]
    assert set(errors) | set(absent) == set(field.ways("cpu", quick=True))
    exact = {name for name, error in errors.items() if error < 1e-5}
    assert exact >= {TIMM, FAST, PLAIN, field_ways.ENCODER} and not exact & {INT8, DYNAMIC, field_ways.HALF}
    assert all(error < 0.3 for error in errors.values())
    macs = found["models"]["tiny"]["cpu"]["macs"]
    assert macs[PLAIN] == macs[TIMM] > macs[FAST] == macs[field_ways.HALF] > macs[field_ways.MERGE]
    assert macs[field_ways.HALF_MERGE] == macs[field_ways.MERGE]
    if INT8 not in absent:
        assert macs[INT8] == macs[FAST] and macs[field_ways.INT8_MERGE] == macs[field_ways.MERGE]
    assert not field.UNFINISHED.exists()  # quick keeps nothing
    for _, group in field_summary.cells(found):
        assert group["rounds"] == 5 and set(group["rows"]) == set(errors)
        assert set(group["rows"][FAST]["faster"]) >= {TIMM, field_ways.ENCODER}
    field_summary.text(found)
    results.save("bench-field", found | {"bars": field_summary.bars(found)}, command="make bench")
    assert field_ways.COMPILED in report.text()


def test_an_interrupted_run_goes_on_behind_the_last_group(monkeypatch):
    only(monkeypatch, TIMM, FAST)
    measured, group = [], field.group

    def until(last: int):
        def one(models, x, place, plan):
            if len(measured) == last:
                raise KeyboardInterrupt
            measured.append((place.name, len(x)))
            return group(models, x, place, plan)

        return one

    monkeypatch.setattr(field, "group", until(1))
    with pytest.raises(KeyboardInterrupt):
        field.measure(PLAN, gpu=False)
    kept = json.loads(field.UNFINISHED.read_text())["groups"]
    monkeypatch.setattr(field, "group", until(99))
    found = field.measure(PLAN, gpu=False)
    assert measured == [("1 thread", 1), ("1 thread", 2)]
    assert found["groups"]["tiny"]["1 thread"]["1"] == kept["tiny"]["1 thread"]["1"]
    field.measure(field.Plan(("tiny",), (1, 2), 6, 0.0, 2), gpu=False)  # another plan begins anew
    assert len(measured) == 4
    field.forget()
    assert not field.UNFINISHED.exists()


def test_who_breaks_at_one_batch_is_absent_there_only(monkeypatch):
    def large_only(case):
        def call(x):
            if len(x) == 1:
                raise ValueError("one image is too few")
            return case.theirs(x)

        return call

    only(monkeypatch, TIMM, FAST, DYNAMIC)
    monkeypatch.setitem(WAYS, DYNAMIC, field_ways.Way("int8", large_only))
    found = field.measure(PLAN, gpu=False)
    groups = found["groups"]["tiny"]["1 thread"]
    assert groups["1"]["absent"] == {DYNAMIC: "ValueError: one image is too few"} and not groups["2"]["absent"]
    told = [line for line in field_summary.absent(found) if DYNAMIC in line]
    assert len(told) == 1 and "tiny, 1 thread, batch 1" in told[0] and "batch 2" not in told[0]
    lines = next(lines for _, _, lines in field_summary.tables(found))
    row = next(line for line in lines if line[1] == DYNAMIC)
    assert row[-2] == "absent" and "[" in row[-1]


def test_who_gives_no_numbers_is_absent(monkeypatch):
    only(monkeypatch, TIMM, FAST, DYNAMIC)
    monkeypatch.setitem(WAYS, DYNAMIC, field_ways.Way("int8", lambda case: lambda x: case.theirs(x) / 0))
    found = field.measure(dataclasses.replace(PLAN, batches=(1,)), gpu=False)
    assert found["models"]["tiny"]["cpu"]["absent"] == {DYNAMIC: "its logits are not finite"}
    assert set(found["groups"]["tiny"]["1 thread"]["1"]["rows"]) == {TIMM, FAST}


def test_what_takes_long_is_not_run_in_large_batches(monkeypatch):
    only(monkeypatch, TIMM, PLAIN)
    monkeypatch.setitem(WAYS, PLAIN, dataclasses.replace(WAYS[PLAIN], most=1))
    groups = field.measure(PLAN, gpu=False)["groups"]["tiny"]["1 thread"]
    assert PLAIN in groups["1"]["rows"] and groups["2"]["absent"] == {
        PLAIN: "measured up to batch 1, for it takes long"
    }


def test_a_gpu_gets_a_column_and_only_the_ways_that_it_can_run(monkeypatch):
    names = set(field.ways("cuda", quick=False))
    assert names >= {TIMM, FAST, PLAIN, field_ways.HALF, field_ways.KEEP, field_ways.MERGE, field_ways.HALF_MERGE}
    assert not names & {INT8, DYNAMIC, RUNTIME8, field_ways.RUNTIME, field_ways.COMPILED}
    assert [place.name for place in field.places(gpu=False)] == ["1 thread"]
    monkeypatch.setattr(field.machine, "cores", lambda: 4)
    assert [place.name for place in field.places(gpu=True)] == ["1 thread", "4 threads", "GPU"]


# --- in words ---


def test_bars_hold_and_are_missed():
    held = field_summary.bars(imagined(1.5))
    assert len(held) == 10 and all(held.values())
    missed = field_summary.bars(imagined(0.8))
    assert [bar for bar, met in missed.items() if met] == list(missed)[-2:]  # the two errors
    assert next(iter(missed)).endswith("0.89 times on average, at worst 0.80 [0.70, 0.90] (tiny, 1 thread, batch 1)")
    found = imagined(1.5)
    found["models"]["small"]["cpu"]["errors"] |= {FAST: 1e-3, INT8: 0.2}
    assert list(field_summary.bars(found).values()) == [True] * 8 + [False] * 2


def test_who_is_absent_has_no_bar_and_a_line():
    found = without(imagined(), RUNTIME8, "No module named it")
    assert len(field_summary.bars(found)) == 9
    assert f"absent: {RUNTIME8}: No module named it" in field_summary.absent(found)
    assert "absent: GPU: torch sees none" in field_summary.absent(found)
    assert f"absent: {field_ways.COMPILED}: not in a quick run" in field_summary.absent(imagined(quick=True))
    cells = next(line for _, _, lines in field_summary.tables(found) for line in lines if line[1] == RUNTIME8)
    assert cells[-2:] == ["absent", "absent"]
    assert not any(RUNTIME8 in line for line in field_summary.duels(found))


@pytest.mark.parametrize("ratio, counts", [(1.5, ["2", "2", "0"]), (0.8, ["0", "2", "2"]), (1.05, ["0", "4", "0"])])
def test_a_duel_counts_who_is_clearly_ahead(ratio, counts):
    lines = {(line[1], line[2]): line for line in field_summary.duels(imagined(ratio))}
    assert lines[FAST, TIMM][3:6] == counts
    assert lines[field_ways.KEEP, TIMM][0] == "pruned" and not any(PLAIN in pair for pair in lines)
    found = field_summary.findings(imagined(ratio))
    losses = found.split("**Behind somewhere:**")[1].split("**Fastest")[0]
    assert (FAST in losses) == (ratio == 0.8)


def test_a_cell_says_milliseconds_and_how_many_times_as_fast():
    _, headers, lines = next(field_summary.tables(imagined(1.25)))
    assert len(headers) == 6 and headers[-1] == "batch 8: ms, × timm"
    row = next(line for line in lines if line[1] == FAST)
    assert row == ["float32", FAST, "1e-06", "1.25", "8.0, 1.25 [1.15, 1.35]", "8.0, 1.00 [0.90, 1.10]"]


# --- the report ---


def test_the_report_shows_misses_absences_and_every_other_bench():
    found = without(imagined(0.8, (1, 8, 16, 32)), RUNTIME8, "No module named it")
    results.save("bench-field", found, command="python bench/run.py field", seed=0, interval="95 %")
    results.save("bench-quant", {}, command="python bench/quant.py --time")
    results.save("bench-vit", {}, command="python bench/run.py vit")
    results.save("papers", {}, command="python -m labkit.papers build")
    text = report.text()
    assert text.count("**MISSED**") == 7 and f"absent: {RUNTIME8}: No module named it" in text
    assert "`python bench/quant.py --summary` (bench-quant)" in text and "`python bench/run.py vit` (bench-vit)" in text
    assert "labkit.papers" not in text
    assert max(line.count("|") - 1 for line in text.splitlines()) <= 9
    assert report.write().read_text(encoding="utf-8") == text == report.text()


def test_what_is_committed_is_what_the_numbers_say(monkeypatch):
    """`python bench/report.py` writes it anew."""
    if not (REAL_RESULTS / "bench-field.json").exists():
        assert not REAL_REPORT.exists()  # no report without its numbers
        return
    monkeypatch.setattr(paths, "RESULTS", REAL_RESULTS)
    monkeypatch.setattr(rivals, "SIZE", 224)
    assert REAL_REPORT.read_text(encoding="utf-8") == report.text()
