"""Your own images: a folder of pictures, or of one sub-folder for each class, as the tensors a model expects.

Every file is tried, whatever its name. One that cannot be read is named in `.skipped` and the others go on.
"""

from __future__ import annotations

import os
import unicodedata
from itertools import zip_longest
from pathlib import Path

import torch

from labkit.data.batch import ImageSet
from labkit.data.picture import label, read_image
from labkit.errors import LabkitError

EXPECTED = "Expected a folder with images (JPEG, PNG, WebP, …), or with one sub-folder of images for each class."
NOT_OURS = {"thumbs.db", "desktop.ini"}  # what Windows leaves in folders, as hidden as .DS_Store

Classes = dict[str | None, list[Path]]  # the files by class name, or all of them under None


def folder(path: str | Path, size: int = 224, limit: int | None = None) -> ImageSet:
    """Read the images under `path`: shortest side scaled to `size`, then the centre cut out.

    With sub-folders, their sorted names are the classes, and images come from each class in turn: the first
    few (and the first `limit`) show all of them. Without, `labels` is None and `names` holds the file names.
    """
    root = Path(path).expanduser()
    if size < 1 or (limit is not None and limit < 1):
        raise LabkitError(f"size and limit must be 1 or more, got size={size} and limit={limit}.")
    classes, skipped = _find(root)
    queue = [file for turn in zip_longest(*classes.values()) for file in turn if file]
    if not queue:
        raise LabkitError(f'There is no image in "{root}".{_first(skipped)} {EXPECTED}')
    wanted = min(limit or len(queue), len(queue))
    _check_memory(wanted, size)
    images = torch.empty(wanted, 3, size, size)
    done: list[Path] = []
    for file in queue:
        if len(done) == wanted:
            break
        try:
            images[len(done)] = read_image(file, size)
            done.append(file)
        except LabkitError as error:
            skipped.append(str(error))
    if not done:
        raise LabkitError(f'None of the {len(queue)} files in "{root}" could be read.{_first(skipped)}')
    images, left_out = images[: len(done)], tuple(skipped)
    if None in classes:
        return ImageSet(images, names=tuple(_text(file.name) for file in done), skipped=left_out)
    owner = {file: i for i, files in enumerate(classes.values()) for file in files}
    labels = torch.tensor([owner[file] for file in done])
    return ImageSet(images, labels, names=tuple(_text(str(name)) for name in classes), skipped=left_out)


def _find(root: Path) -> tuple[Classes, list[str]]:
    """The files of each class, in sorted order, and a sentence about each thing left out."""
    try:
        if not root.exists():
            raise LabkitError(f'There is no folder "{root}". {EXPECTED}')
        if not root.is_dir():
            raise LabkitError(f'"{root}" is a file. {EXPECTED}')
        entries = sorted((entry for entry in root.iterdir() if _visible(entry.name)), key=_order)
    except OSError as error:
        raise LabkitError(f'The folder "{root}" cannot be read: {error.strerror}.') from error
    skipped: list[str] = []
    classes: Classes = {}
    for entry in (entry for entry in entries if entry.is_dir()):
        if entry.resolve() in (root.resolve(), *root.resolve().parents):
            skipped.append(f"{label(entry)} is a link back to a folder around it: not followed.")
        elif files := _walk(entry, skipped):
            classes[entry.name] = files
    loose = [entry for entry in entries if not entry.is_dir()]
    if not classes:
        return {None: loose}, skipped
    return classes, skipped + [f"{label(file)} lies beside the class folders: it has no class." for file in loose]


def _walk(top: Path, skipped: list[str]) -> list[Path]:
    """Every visible file below a class folder; links to folders are not followed, so no loop can hang us."""
    files: list[Path] = []

    def unreadable(error: OSError) -> None:
        skipped.append(f"{label(Path(error.filename))} cannot be read: {error.strerror}.")

    for here, folders, names in os.walk(top, onerror=unreadable):
        folders[:] = sorted(name for name in folders if _visible(name))
        links = [path for path in (Path(here, name) for name in folders) if path.is_symlink()]
        skipped += [f"{label(path)} is a link to a folder: not followed." for path in links]
        files += [Path(here, name) for name in names if _visible(name)]
    return sorted(files, key=_order)


def _check_memory(n: int, size: int) -> None:
    need = n * 3 * size * size * 4
    have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2 * need
    if need > have / 2:
        raise LabkitError(
            f"{n:,} images of {size}×{size} need {need / 1e9:.1f} GB, more than half of this machine's "
            f"memory: pass limit={max(1, n * have // need // 4)}, or a smaller size."
        )


def _visible(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in NOT_OURS


def _order(path: Path) -> str:
    return unicodedata.normalize("NFC", str(path))  # an accent may be stored as one character or as two


def _text(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "replace")  # bytes that are not text must not break a caption


def _first(skipped: list[str]) -> str:
    return f" The first: {skipped[0]}" if skipped else ""
