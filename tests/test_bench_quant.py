"""The bench of few bits: one set of weights for all rivals, bars that can be missed, what is kept and printed."""

from __future__ import annotations

import sys

import pytest
import torch

from bench import quant as bench
from bench import quant_time, rivals
from labkit import paths, results


def shrink(patch: pytest.MonkeyPatch) -> None:
    few = {"NAME": "deit_tiny_patch16_224", "BATCHES": (1,), "TOKENS": (17,), "CALIBRATION": 2, "MERGED": 0}
    for name, value in few.items():
        patch.setattr(quant_time, name, value)
    patch.setattr(rivals, "SIZE", 32)


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    shrink(monkeypatch)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def candidates(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        yield quant_time.candidates(tmp_path_factory.mktemp("onnx"))


def found(ratio: float = 3.0, error: float = 0.03, rivals: bool = True) -> dict:
    """A measurement as it is kept, in which everything of ours is `ratio` times as fast as everything else."""
    others = [quant_time.PLAIN, *(quant_time.RIVALS if rivals else ())]
    names = [*others, quant_time.OURS, quant_time.MERGING]
    row = {
        name: {"ms": 1.5, "faster": {other: [ratio, ratio - 0.1, ratio + 0.1] for other in others}} for name in names
    }
    return {
        "kernel": "here",
        "missing": {} if rivals else {name: "No module named it" for name in quant_time.RIVALS},
        "errors": dict.fromkeys(names, error),
        "batches": {str(batch): {"threads": {"cpu": 1, "wall": 2}, "cpu": row, "wall": row} for batch in (1, 8, 16)},
        "attention": {"197": [2.0, 1.9, 2.1]},
    }


def test_bars_hold_and_are_missed():
    verdicts = [list(quant_time.bars(found(ratio)).values()) for ratio in (4.1, 3.0, 2.5, 0.9)]
    assert [sum(each) for each in verdicts] == [10, 9, 8, 1]  # three paces, the error, two rivals at three batches
    assert sum(quant_time.bars(found(4.1, error=0.06)).values()) == 9
    text = quant_time.summary(found(3.0))
    assert text.count("holds ") == 9 and "misses  labkit int8, merge r = 13, batch 16: ≥ 4.0" in text
    assert "3.00 [2.90, 3.10]" in text and "17" not in text


def test_who_is_missing_is_named_and_has_no_bar():
    alone = found(4.1, rivals=False)
    assert len(quant_time.bars(alone)) == 4
    text = quant_time.summary(alone | {"kernel": "The 8-bit kernel is missing (so)."})
    for name in quant_time.RIVALS:
        assert f"absent  {name}: No module named it" in text
    assert "absent  The 8-bit kernel is missing" in text


def test_all_models_have_the_same_weights(candidates):
    """Float models differ by rounding errors, and those that are rounded by a few percent."""
    models, missing = candidates
    assert set(models) | set(missing) >= {quant_time.PLAIN, quant_time.OURS, *quant_time.RIVALS}
    errors = quant_time.relative_errors(models)
    exact = {name for name, error in errors.items() if error < 1e-5}
    assert exact == {quant_time.PLAIN, "timm float32", "float32, merge r = 0"}
    assert all(1e-4 < error < 0.2 for name, error in errors.items() if name not in exact)


def test_a_toolkit_that_is_not_there_is_left_out_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "torch.ao.quantization", None)
    models, missing = quant_time.candidates(tmp_path)
    assert set(missing) == set(quant_time.RIVALS) and not set(models) & set(missing)
    assert "onnx" in missing[quant_time.RUNTIME]


def test_onnxruntime_has_the_threads_of_torch(tmp_path, monkeypatch):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    asked = []

    class Watched(runtime.InferenceSession):
        def __init__(self, path, options, **kwargs):
            asked.append(options.intra_op_num_threads)
            super().__init__(path, options, **kwargs)

    monkeypatch.setattr(runtime, "InferenceSession", Watched)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 4)).eval()
    x = quant_time.images(3, seed=0)
    rounded = quant_time.onnxruntime_dynamic(quant_time.exported(model, tmp_path))
    for threads in (1, 2, 1):
        torch.set_num_threads(threads)
        assert rounded(x).shape == (3, 4)
        assert (rounded(x) - model(x)).norm() < 0.05 * model(x).norm()
    assert asked == [1, 2]  # each once


def test_what_is_measured_is_kept_and_printed(candidates, monkeypatch, capsys):
    monkeypatch.setattr(quant_time, "candidates", lambda folder: candidates)
    name, _, summary, interval = bench.PARTS["time"]
    monkeypatch.setitem(bench.PARTS, "time", (name, lambda: quant_time.measure(0.0), summary, interval))
    assert bench.main(["--time"]) == 0
    printed = capsys.readouterr().out
    for line in ("times as fast, batch 1", "cpu, 1 thread", "17 tokens", "relative error of the logits", "Measured"):
        assert line in printed, line
    assert set(results.load("bench-quant")["errors"]) >= {quant_time.PLAIN, quant_time.OURS, quant_time.MERGING}
    assert bench.main(["--summary"]) == 0
    assert capsys.readouterr().out == printed
