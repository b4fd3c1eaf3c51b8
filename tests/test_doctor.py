"""The doctor: each fault that it looks for is made here, and must be found and come with a remedy."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import sys
import types
import webbrowser

import pytest

from labkit import doctor, paths
from labkit.errors import LabkitError


def break_in_two(name, *args):
    raise RuntimeError(f"operator {name} does not exist\nand a second line")


def module(name: str, **members: object) -> types.ModuleType:
    made = types.ModuleType(name)
    made.__dict__.update(members)
    return made


def write_checkpoint(folder, name="tiny", sha256=None):
    (folder / f"{name}.safetensors").write_bytes(b"weights")
    digest = sha256 or hashlib.sha256(b"weights").hexdigest()
    (folder / f"{name}.json").write_text(json.dumps({"sha256": digest}))


def test_this_machine_passes_and_every_complaint_has_a_remedy():
    rows = doctor.examine()
    assert doctor.healthy(rows), doctor.table(rows)
    assert len({row.name for row in rows}) == len(rows)
    assert all(bool(row.advice) == (row.status != doctor.OK) for row in rows)


def test_the_table_shows_each_row_its_remedy_and_the_verdict():
    rows = [doctor.Row("disk", doctor.WARN, "full", "Free some."), doctor.Row("Python", doctor.OK, "3.11")]
    assert doctor.table(rows).splitlines() == [
        "warn  disk                     full",
        "      Free some.",
        "ok    Python                   3.11",
        "",
        "This machine is ready. 1 ok, 1 warn, 0 bad.",
    ]
    rows.append(doctor.Row("torch", doctor.BAD, "missing", "Install it."))
    assert doctor.table(rows).endswith("is not ready: see the rows marked bad. 1 ok, 1 warn, 1 bad.")
    assert not doctor.healthy(rows)


@pytest.mark.parametrize(
    ("version", "status"), [((3, 10, 9), doctor.BAD), ((3, 11, 0), doctor.OK), ((3, 14, 0), doctor.WARN)]
)
def test_python_outside_the_tested_range(monkeypatch, version, status):
    monkeypatch.setattr(sys, "version_info", version)
    assert doctor.python().status == status


def test_a_missing_and_an_old_package(monkeypatch):
    installed = importlib.metadata.version

    def version(name):
        if name == "timm":
            raise importlib.metadata.PackageNotFoundError(name)
        return {"torch": "2.13.0+cpu", "numpy": "1.26.4"}.get(name) or installed(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    rows = {row.name: row for row in doctor.packages()}
    assert {name for name, row in rows.items() if row.status == doctor.BAD} == {"timm", "torch", "numpy"}
    assert rows["timm"].found.startswith("missing, needs >=")
    assert rows["timm"].advice.startswith('Run: python -m pip install --upgrade "timm>=')
    assert rows["numpy"].found.startswith("1.26.4, needs >=2")


def test_a_local_build_of_torch_is_in_range(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.15.0+cpu")
    monkeypatch.setattr(doctor, "requirements", lambda: ["torch>=2.11,!=2.13.0"])
    assert doctor.packages() == [doctor.Row("torch", doctor.OK, "2.15.0+cpu")]


def test_requirements_come_from_the_clone_or_else_from_the_installed_package(monkeypatch, tmp_path):
    in_clone = doctor.requirements()
    assert any(line.startswith("torch>=") for line in in_clone)
    assert not any("#" in line for line in in_clone)

    monkeypatch.setattr(paths, "ROOT", tmp_path)
    declared = ["torch>=2.11", 'pytest>=8; extra == "test"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: declared)
    assert doctor.requirements() == ["torch>=2.11"]

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", missing)
    with pytest.raises(LabkitError, match="not installed"):
        doctor.requirements()


def test_a_pair_that_does_not_load(monkeypatch):
    broken = module("torchvision", ops=module("ops", nms=lambda *a: break_in_two("torchvision::nms")))
    monkeypatch.setitem(sys.modules, "torchvision", broken)
    row = doctor.torch_pair()
    assert (row.status, row.advice) == (doctor.BAD, f"Run: {doctor.REINSTALL}")
    assert row.found == "do not work together: operator torchvision::nms does not exist"


def test_a_pair_that_computes_nonsense(monkeypatch):
    import torch

    wrong = module("torchvision", ops=module("ops", nms=lambda *a: torch.tensor([0, 1])))
    monkeypatch.setitem(sys.modules, "torchvision", wrong)
    assert doctor.torch_pair().status == doctor.BAD


def test_without_torch_the_doctor_still_speaks(monkeypatch):
    for name in ("torch", "torchvision", "labkit.machine"):
        monkeypatch.setitem(sys.modules, name, None)
    assert doctor.torch_pair().status == doctor.BAD
    assert doctor.device().status == doctor.WARN


def test_checkpoints_are_held_against_their_cards(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "CHECKPOINTS", tmp_path)
    assert [row.status for row in doctor.checkpoints()] == [doctor.WARN]

    write_checkpoint(tmp_path, "good")
    assert [row.status for row in doctor.checkpoints()] == [doctor.OK]

    write_checkpoint(tmp_path, "changed", sha256="0" * 64)
    write_checkpoint(tmp_path, "orphan")
    (tmp_path / "orphan.json").unlink()
    write_checkpoint(tmp_path, "scribbled")
    (tmp_path / "scribbled.json").write_text('["sha256"]')
    rows = {row.name: row for row in doctor.checkpoints()}
    assert {name for name, row in rows.items() if row.status == doctor.BAD} == {
        "checkpoint changed",
        "checkpoint orphan",
        "checkpoint scribbled",
    }
    assert "its card says 000000000000" in rows["checkpoint changed"].found
    assert rows["checkpoint changed"].advice.endswith("git checkout -- data/checkpoints/changed.*")


def test_a_folder_that_cannot_be_written(monkeypatch, tmp_path):
    assert doctor.writable("cache", tmp_path / "not" / "yet").status == doctor.OK
    assert not (tmp_path / "not").exists()

    def read_only(dir):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", read_only)
    row = doctor.writable("cache", tmp_path)
    assert row.status == doctor.BAD and row.found.endswith("Permission denied") and str(tmp_path) in row.advice


def test_no_kernel_no_browser_little_memory_full_disk(monkeypatch):
    import jupyter_client.kernelspec
    import psutil

    manager = jupyter_client.kernelspec.KernelSpecManager
    monkeypatch.setattr(manager, "find_kernel_specs", lambda self: {"ir": "somewhere"})
    assert doctor.kernel().status == doctor.BAD

    def none():
        raise webbrowser.Error("could not locate runnable browser")

    monkeypatch.setattr(webbrowser, "get", none)
    assert doctor.browser().status == doctor.WARN

    monkeypatch.setattr(psutil, "virtual_memory", lambda: types.SimpleNamespace(total=2**30))
    assert doctor.memory().status == doctor.WARN

    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=2**20))
    assert doctor.disk().status == doctor.WARN
