"""Your own images: a folder of pictures, or of one sub-folder for each class, as the tensors a model expects.

Every file is tried, whatever its name. One that cannot be read is named in `.skipped` and the others go on. Folders are
listed as far as they are needed: a whole disk, named by mistake, ends in a sentence as well.
"""

from __future__ import annotations

import os
import random
import unicodedata
from collections.abc import Iterator
from itertools import chain, islice, zip_longest
from pathlib import Path

import torch
from torch import Tensor

from labkit.data.batch import ImageSet
from labkit.data.picture import label, read_image
from labkit.errors import LabkitError

EXPECTED = "Expected a folder with images (JPEG, PNG, WebP, …), or with one sub-folder of images for each class."
NOT_OURS = {"thumbs.db", "desktop.ini"}  # what Windows leaves in folders, as hidden as .DS_Store
MOST = 200_000  # images that are read at once, and names that are listed of one folder
FUTILE = 10_000  # after more files without an image than this, what was named is no folder of images

Classes = dict[str | None, Iterator[Path]]  # the files by class name, or all of them under None
Owned = tuple[int, Path]  # the number of the class, and the file


def folder(path: str | Path, size: int = 224, limit: int | None = None, seed: int | None = None) -> ImageSet:
    """Read the images under `path`: shortest side scaled to `size`, then the centre cut out.

    With sub-folders, their sorted names are the classes, and images come from each class in turn: the first
    few (and the first `limit`) show all of them. Without, `labels` is None and `names` holds the file names.
    With a `seed`, files are drawn from all of them instead: whatever is measured on them is fair to the whole folder.
    """
    if size < 1 or (limit is not None and limit < 1):
        raise LabkitError(f"size and limit must be 1 or more, got size={size} and limit={limit}.")
    root = Path(os.path.expanduser(path))
    skipped: list[str] = []
    classes = _find(root, skipped)
    queue = _in_turn(classes)
    if seed is not None:
        drawn = list(islice(queue, MOST))
        random.Random(seed).shuffle(drawn)
        queue = iter(drawn)
    first = list(islice(queue, min(limit or MOST + 1, MOST + 1)))
    if not first:
        raise LabkitError(f'There is no image in "{root}".{_first(skipped)} {EXPECTED}')
    if len(first) > MOST:
        raise LabkitError(f'"{root}" holds more than {MOST:,} files; pass a limit of at most {MOST}, or name a part.')
    _check_memory(len(first), size)
    images, done = _read(root, chain(first, queue), torch.empty(len(first), 3, size, size), skipped)
    if None in classes:
        return ImageSet(images, names=tuple(_text(file.name) for _, file in done), skipped=tuple(skipped))
    labels, names = torch.tensor([owner for owner, _ in done]), tuple(_text(str(name)) for name in classes)
    return ImageSet(images, labels, names=names, skipped=tuple(skipped))


def _read(root: Path, queue: Iterator[Owned], images: Tensor, skipped: list[str]) -> tuple[Tensor, list[Owned]]:
    """Fills `images`, as far as there are any; returns what was filled, and the files."""
    done: list[Owned] = []
    tried = 0
    for tried, (owner, file) in enumerate(queue, start=1):
        try:
            images[len(done)] = read_image(file, images.shape[-1])
            done.append((owner, file))
        except LabkitError as error:
            skipped.append(str(error))
        if len(done) == len(images) or tried - len(done) > FUTILE:
            break
    gave_up = tried - len(done) > FUTILE
    if not done:
        told = f"{'first ' * gave_up}{tried:,} files"
        raise LabkitError(f'None of the {told} in "{root}" could be read.{_first(skipped)} {EXPECTED}')
    if gave_up:
        skipped.insert(0, f'More than {FUTILE:,} files in "{root}" hold no image: no more were tried.')
    return images[: len(done)], done


def _in_turn(classes: Classes) -> Iterator[Owned]:
    """The first file of each class, the second of each, ..."""
    for turn in zip_longest(*classes.values()):
        yield from ((owner, file) for owner, file in enumerate(turn) if file is not None)


def _find(root: Path, skipped: list[str]) -> Classes:
    """The files of each class, in sorted order; a sentence in `skipped` about each thing left out."""
    try:
        if not root.exists():
            raise LabkitError(f'There is no folder "{root}". {EXPECTED}')
        if not root.is_dir():
            raise LabkitError(f'"{root}" is a file. {EXPECTED}')
        entries = sorted(_entries(root, skipped), key=lambda entry: _order(entry.name))
    except OSError as error:
        raise LabkitError(f'The folder "{root}" cannot be read: {error.strerror}.') from error
    around = (root.resolve(), *root.resolve().parents)
    classes: Classes = {}
    for entry in (entry for entry in entries if _is_folder(entry)):
        if entry.is_symlink() and Path(entry.path).resolve() in around:
            skipped.append(f"{label(Path(entry.path))} is a link back to a folder around it: not followed.")
            continue
        files = _walk(entry.path, skipped)
        if (first := next(files, None)) is not None:
            classes[entry.name] = chain([first], files)
    loose = [Path(entry.path) for entry in entries if not _is_folder(entry)]
    if not classes:
        return {None: iter(loose)}
    skipped += [f"{label(file)} lies beside the class folders: it has no class." for file in loose]
    return classes


def _walk(top: str, skipped: list[str]) -> Iterator[Path]:
    """Every visible file below a class folder, sorted; links to folders are not followed, so no loop can hang us."""
    waiting = [(top, True)]
    while waiting:
        path, is_folder = waiting.pop()
        if not is_folder:
            yield Path(path)
            continue
        try:
            found = [(entry, _is_folder(entry)) for entry in _entries(path, skipped)]
        except OSError as error:
            skipped.append(f"{label(Path(path))} cannot be read: {error.strerror}.")
            continue
        # With the slash behind them, names of folders stand where the files in them do when all paths are sorted.
        found.sort(key=lambda pair: _order(pair[0].name + os.sep * pair[1]), reverse=True)
        links = [entry for entry, inside in found if inside and entry.is_symlink()]
        skipped += [f"{label(Path(entry.path))} is a link to a folder: not followed." for entry in reversed(links)]
        waiting += [(entry.path, inside) for entry, inside in found if not (inside and entry.is_symlink())]


def _entries(place: str | Path, skipped: list[str]) -> list[os.DirEntry[str]]:
    """What is visible in a folder, in no order."""
    with os.scandir(place) as names:
        found = list(islice(names, MOST))
        if next(names, None) is not None:
            told = f"holds more than {MOST:,} names: images were taken from the {MOST:,} that the disk lists first."
            skipped.append(f"{label(Path(place))} {told}")
    return [entry for entry in found if _visible(entry.name)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads in circles, or where nobody may look: trying to read it says so
        return False


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


def _order(name: str) -> str:
    return unicodedata.normalize("NFC", name)  # an accent may be stored as one character or as two


def _text(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "replace")  # bytes that are not text must not break a caption


def _first(skipped: list[str]) -> str:
    return f" The first: {skipped[0]}" if skipped else ""
