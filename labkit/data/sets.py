"""Three public data sets, downloaded on request and kept where torchvision keeps them; no file is unpickled.

CIFAR-10 is therefore read from its *binary version* (a label byte, then 3,072 pixel bytes): the usual archive
holds pickles, and a pickle runs any code that is in it. Sources: "Learning Multiple Layers of Features from Tiny
Images", Krizhevsky, 2009; "Fashion-MNIST", Xiao et al., 2017; Imagenette, fast.ai, 2019.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import math
import os
import shutil
import tarfile
import tempfile
import urllib.request
import zlib
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.data.batch import ImageSet
from labkit.data.folder import folder
from labkit.errors import LabkitError, closest


class Remote(NamedTuple):
    url: str
    md5: str  # as the authors publish it


FASHION_HOST = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"  # it offers no https: the md5 vouches
CIFAR = Remote("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530")
IMAGENETTE = Remote(
    "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-160.tgz", "e793b78cc4c9e9a4ccc0c1155377a412"
)
FASHION = {
    "train": (
        Remote(f"{FASHION_HOST}/train-images-idx3-ubyte.gz", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
        Remote(f"{FASHION_HOST}/train-labels-idx1-ubyte.gz", "25c81989df183df01b3e8a0aad5dffbe"),
    ),
    "val": (
        Remote(f"{FASHION_HOST}/t10k-images-idx3-ubyte.gz", "bef4ecab320f06d8554ea6380940ec79"),
        Remote(f"{FASHION_HOST}/t10k-labels-idx1-ubyte.gz", "bb300cfdad3c16e7a12a480ee83cd310"),
    ),
}
CIFAR_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FASHION_NAMES = (
    *("T-shirt/top", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)
IMAGENETTE_NAMES = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}


def torchvision_set(
    name: str,
    root: str | Path,
    split: str = "train",
    limit: int | None = None,
    size: int | None = None,
    download: bool = False,
) -> ImageSet:
    """Read "cifar10" (32 pixels), "fashion_mnist" (28) or "imagenette" (160) from the folder `root`.

    The network is used only with `download=True`, and never while LABKIT_OFFLINE=1. `size` scales the images.
    """
    readers = {"cifar10": _cifar10, "fashion_mnist": _fashion_mnist, "imagenette": _imagenette}
    if name not in readers:
        raise LabkitError(f'There is no set "{name}", only {", ".join(readers)}.{closest(name, readers)}')
    if split not in ("train", "val"):
        raise LabkitError(f'There is no split "{split}" of {name}: it has "train" and "val".')
    if min(size or 1, limit or 1) < 1 or 0 in (size, limit):
        raise LabkitError(f"size and limit must be 1 or more, got size={size} and limit={limit}.")
    return readers[name](Path(root).expanduser(), split, limit, size, download)


def _cifar10(root: Path, split: str, limit: int | None, size: int | None, download: bool) -> ImageSet:
    batches = root / "cifar-10-batches-bin"
    if not batches.is_dir():
        _unpack(_local(root, CIFAR, download), batches)
    files = [f"data_batch_{i}.bin" for i in range(1, 6)] if split == "train" else ["test_batch.bin"]
    rows = np.concatenate([_cifar_rows(batches / file) for file in files])[:limit]
    images = rows[:, 1:].reshape(-1, 3, 32, 32)
    return ImageSet(_scaled(images, size), torch.from_numpy(rows[:, 0].astype(np.int64)), names=CIFAR_NAMES)


def _cifar_rows(path: Path) -> np.ndarray:
    if not path.is_file():
        raise LabkitError(f'"{path}" is missing: delete the folder around it and unpack {CIFAR.url} again.')
    values = np.fromfile(path, dtype=np.uint8)
    if len(values) == 0 or len(values) % 3073 or (rows := values.reshape(-1, 3073))[:, 0].max() > 9:
        raise LabkitError(f'"{path}" is damaged: expected rows of one label (0 to 9) and 3,072 pixel bytes.')
    return rows


def _fashion_mnist(root: Path, split: str, limit: int | None, size: int | None, download: bool) -> ImageSet:
    files = [_local(root / "FashionMNIST" / "raw", remote, download) for remote in FASHION[split]]
    images, labels = (_idx(file) for file in files)
    if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1] or labels.max(initial=0) > 9:
        raise LabkitError(f'The files in "{files[0].parent}" do not fit together: delete them and fetch them again.')
    pixels = _scaled(images[:limit, None], size).expand(-1, 3, -1, -1).contiguous()
    return ImageSet(pixels, torch.from_numpy(labels[:limit].astype(np.int64)), names=FASHION_NAMES)


def _idx(path: Path) -> np.ndarray:
    """The idx format: 0, 0, 8 (unsigned bytes), how many axes; their lengths, big-endian; the bytes."""
    try:
        data = gzip.decompress(path.read_bytes())
        shape = [int(n) for n in np.frombuffer(data, ">u4", data[3], 4)]
        if data[:3] != b"\0\0\x08" or len(data) != 4 + 4 * len(shape) + math.prod(shape):
            raise ValueError
        return np.frombuffer(data, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)
    except (OSError, EOFError, zlib.error, ValueError, IndexError) as error:
        raise LabkitError(f'"{path}" is damaged: expected a gzipped idx file. Delete it and fetch it again.') from error


def _imagenette(root: Path, split: str, limit: int | None, size: int | None, download: bool) -> ImageSet:
    top = root / "imagenette2-160"
    if not top.is_dir():
        _unpack(_local(root, IMAGENETTE, download), top)
    data = folder(top / split, size or 160, limit)
    return replace(data, names=tuple(IMAGENETTE_NAMES.get(name, name) for name in data.names))


def _scaled(images: np.ndarray, size: int | None) -> Tensor:
    pixels = torch.from_numpy(images.astype(np.float32)).div_(255)
    if size in (None, pixels.shape[-1]):
        return pixels
    return F.interpolate(pixels, size=(size, size), mode="bicubic", antialias=True).clamp_(0, 1)


def _local(where: Path, remote: Remote, download: bool) -> Path:
    """The archive in folder `where`, its md5 checked; fetched first when that is wanted and allowed."""
    path = where / remote.url.rsplit("/", 1)[1]
    by_hand = f'Put {remote.url} into the folder "{where}" as it is, without unpacking it'
    if not path.is_file():
        if not download:
            raise LabkitError(f'"{path}" is missing. {by_hand}, or pass download=True.')
        if os.environ.get("LABKIT_OFFLINE", "0") not in ("", "0"):
            raise LabkitError(f'"{path}" is missing and LABKIT_OFFLINE forbids a download. {by_hand}.')
        try:
            _fetch(remote, path)
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise LabkitError(f"{remote.url} could not be downloaded ({reason}). {by_hand}.") from error
    if _md5(path) != remote.md5:
        raise LabkitError(f'"{path}" is damaged (its md5 is not {remote.md5}): delete it. {by_hand}.')
    return path


def _fetch(remote: Remote, path: Path) -> None:
    print(f"Downloading {remote.url}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as box:  # half a file never gets the final name
        part = Path(box, path.name)
        with urllib.request.urlopen(remote.url, timeout=30) as reply, part.open("wb") as out:
            shutil.copyfileobj(reply, out)
        if _md5(part) != remote.md5:
            raise OSError("what arrived is not the file that was published")
        part.replace(path)


def _md5(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest()


def _unpack(archive: Path, target: Path) -> None:
    """Unpack beside the archive, in one step as seen from outside, and never outside that folder."""
    try:
        with tempfile.TemporaryDirectory(dir=archive.parent) as part:
            with tarfile.open(archive) as tar:
                tar.extractall(part, filter="data")
            Path(part, target.name).rename(target)
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise LabkitError(f'"{archive}" could not be unpacked into "{target}": {error}.') from error
