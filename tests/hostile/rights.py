"""What may not be read or written, for real: root, who may read everything, gives that right up for a while."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import torch
from PIL import Image
from safetensors.torch import save_file

import labkit
from labkit import choices, data, paths, report
from labkit.audit.subject import Subject, subject
from labkit.explain.cache import cached
from tests.hostile import Case, Cases, Impossible, command
from tests.hostile.told import AUDIT

READ_ALL = 0b110  # Linux: CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
VERSION_3 = 0x20080522


@contextlib.contextmanager
def like_anybody() -> Iterator[None]:
    """Root without the right to read and write everything (in this thread); anybody else is like anybody already."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    head, held, fewer = (ctypes.c_uint32 * 2)(VERSION_3, 0), (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()
    if libc.capget(head, held) != 0:
        raise Impossible("root cannot give up its rights here")
    fewer[:] = held[:]
    fewer[0] &= ~READ_ALL  # the rights in effect; those permitted stay, to be taken up again
    assert libc.capset(head, fewer) == 0
    try:
        yield
    finally:
        assert libc.capset(head, held) == 0


def photos(place: Path, count: int = 20) -> Path:
    place.mkdir(parents=True)
    for i in range(count):
        Image.new("RGB", (20, 20), (12 * i, 0, 0)).save(place / f"{i:02d}.png")
    return place


def noted(found: Subject, name: str, tested: int) -> None:
    """What cannot be read is named, and the others are tested."""
    assert any(name in note and "cannot be" in note for note in found.notes), found.notes
    assert len(found.inputs) == tested


def folders(at: Path) -> dict[str, Callable[[], object]]:
    """Folders of images, all or part of them locked."""
    whole, shut = photos(at / "whole"), photos(at / "shut")
    one, classes, blind = photos(at / "one"), at / "classes", photos(at / "blind")
    photos(classes / "1"), photos(classes / "2"), photos(at / "above" / "in" / "photos")
    os.symlink(at / "above" / "in" / "photos", at / "link")
    photos(at / "linked" / "1")
    os.symlink(at / "above" / "in" / "photos", at / "linked" / "2")
    for place in (shut, classes / "2", at / "above" / "in", one / "03.png", *photos(at / "none").iterdir()):
        place.chmod(0)
    blind.chmod(0o444)  # its names can be listed, and nothing else
    return {
        "open": lambda: subject(images=str(whole), limit=4),
        "shut": lambda: subject(images=str(shut)),
        "below a shut one": lambda: subject(images=str(at / "above" / "in" / "photos")),
        "above a shut one": lambda: subject(images=str(at / "above")),
        "a link": lambda: subject(images=str(at / "link")),
        "a link as a class": lambda: subject(images=str(at / "linked"), limit=4),
        "one class": lambda: noted(subject(images=str(classes), limit=4), "'classes/2'", 4),
        "one image": lambda: noted(subject(images=str(one), limit=100), "'one/03.png'", 15),
        "all images": lambda: subject(images=str(at / "none")),
        "names only": lambda: subject(images=str(blind)),
        "not all": lambda: data.folder(one, 8, limit=3),
    }


def files(at: Path) -> dict[str, Callable[[], object]]:
    """Weights, labels, parameters and audits, each locked, and in a locked folder."""
    open_one, box = photos(at / "tabled"), at / "box"
    box.mkdir()
    for place in (at, box):
        shutil.copy(paths.CHECKPOINTS / "digits-vit.safetensors", place / "mine.safetensors")
        save_file({"a": torch.zeros(1)}, place / "timm.safetensors")
        (place / "labels.csv").write_text("00.png,1\n")
        (place / "told.json").write_text(json.dumps({"seed": 1}))
        for name in ("mine.safetensors", "timm.safetensors", "labels.csv", "told.json"):
            (place / name).chmod(0)
    box.chmod(0)
    cases: dict[str, Callable[[], object]] = {}
    for place in (at, box):
        cases |= {
            f"{place}, a model": lambda place=place: labkit.load(str(place / "mine.safetensors")),
            f"{place}, a model to audit": lambda place=place: subject(str(place / "mine.safetensors")),
            f"{place}, weights": lambda place=place: subject("vit_tiny_patch16_224", str(place / "timm.safetensors")),
            f"{place}, labels": lambda place=place: subject(images=str(open_one), labels=str(place / "labels.csv")),
            f"{place}, parameters": lambda place=place: choices.read_object(place / "told.json"),
            f"{place}, audits": lambda place=place: command(
                "report", "compare", place / "told.json", place / "told.json"
            ),
        }
    return cases


def outs(at: Path) -> dict[str, Callable[[], object]]:
    """Where nothing may be written."""
    locked, unseen, old = at / "locked", at / "unseen", at / "old"
    for place in (locked, unseen / "below", old):
        place.mkdir(parents=True)
    (old / "audit.html").write_text("mine")
    (old / "audit.html").chmod(0)
    locked.chmod(0o555)
    unseen.chmod(0)
    old.chmod(0o555)

    def audit(place: Path, force: bool = False) -> None:
        report.prepare(AUDIT, *(place / f"audit.{kind}" for kind in ("ipynb", "html", "json")), force=force)

    def kept() -> None:
        with contextlib.suppress(labkit.errors.LabkitError):
            audit(old, force=True)
        assert (old / "audit.html").exists()

    return {
        "locked": lambda: audit(locked),
        "below a locked one": lambda: audit(locked / "more"),
        "unseen": lambda: audit(unseen / "below"),
        "of another": lambda: audit(old),
        "of another, by force": lambda: audit(old, force=True),
        "what is there stays": kept,
        "the command": lambda: command("report", "audit", "--out", locked / "report"),
    }


def caches(at: Path) -> dict[str, Callable[[], object]]:
    """A cache that may not be read or written costs time, or a sentence, and never the run."""
    at.chmod(0)

    def result() -> None:
        with mock.patch.object(paths, "CACHE", at / "labkit"):
            assert cached("judge", "name", lambda: torch.ones(2)).tolist() == [1, 1]

    def published() -> object:
        with (
            mock.patch.dict(os.environ, {"LABKIT_OFFLINE": "1"}),
            mock.patch("huggingface_hub.constants.HF_HUB_CACHE", str(at / "hub")),
        ):
            return subject("vit_tiny_patch16_224")

    return {"ours": result, "of published weights": published}


def rights(folder: Path, count: int) -> Cases:
    for part in (folders, files, outs, caches):
        place = folder / part.__name__
        place.mkdir()
        cases = part(place)

        def limited(case: Callable[[], object]) -> Case:
            def call() -> object:
                with like_anybody():
                    return case()

            return call

        yield from (limited(case) for case in cases.values())
        unlock(place)


def unlock(place: Path) -> None:
    """So that the folder can be cleared away by whoever is not root."""
    place.chmod(0o700)
    for here, names, _ in os.walk(place):
        for name in names:
            if not Path(here, name).is_symlink():
                Path(here, name).chmod(0o700)
