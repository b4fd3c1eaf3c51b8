"""The public sets, read from tiny stand-ins in their own formats; nothing here touches the network."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import labkit.data.sets as sets
from labkit.data.sets import Remote, torchvision_set
from labkit.errors import LabkitError

random = np.random.RandomState(0)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(url, **_):
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.delenv("LABKIT_OFFLINE", raising=False)


def remote(url: str, data: bytes) -> Remote:
    return Remote(url, hashlib.md5(data).hexdigest())


def tar(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def cifar_rows(labels: list[int]) -> np.ndarray:
    rows = random.randint(0, 256, (len(labels), 3073), dtype=np.uint8)
    rows[:, 0] = labels
    return rows


def cifar_files() -> dict[str, bytes]:
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    return {f"cifar-10-batches-bin/{name}": cifar_rows([i, 9]).tobytes() for i, name in enumerate(names)}


def write_cifar(root: Path) -> dict[str, bytes]:
    (root / "cifar-10-batches-bin").mkdir(parents=True)
    files = cifar_files()
    for name, data in files.items():
        (root / name).write_bytes(data)
    return files


def idx(values: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, dtype=">u4").tobytes()
    return gzip.compress(header + values.astype(np.uint8).tobytes())


@pytest.fixture
def fashion(tmp_path, monkeypatch) -> Path:
    raw = tmp_path / "FashionMNIST/raw"
    raw.mkdir(parents=True)
    small = {}
    for split, (images, labels) in sets.FASHION.items():
        contents = random.randint(0, 256, (4, 28, 28)), np.array([9, 0, 1, 2])
        small[split] = tuple(
            remote(source.url, idx(values)) for source, values in zip((images, labels), contents, strict=True)
        )
        for source, values in zip((images, labels), contents, strict=True):
            (raw / source.url.rsplit("/", 1)[1]).write_bytes(idx(values))
    monkeypatch.setattr(sets, "FASHION", small)
    return tmp_path


# --- reading -----------------------------------------------------------------------------------------------


def test_cifar10_is_read_from_the_binary_version(tmp_path):
    files = write_cifar(tmp_path)
    val = torchvision_set("cifar10", tmp_path, "val")
    assert val.labels.tolist() == [5, 9] and val.names[5] == "dog" and len(val.names) == 10
    planes = np.frombuffer(files["cifar-10-batches-bin/test_batch.bin"], np.uint8).reshape(2, 3073)[:, 1:]
    assert np.array_equal((val.images * 255).round().numpy(), planes.reshape(2, 3, 32, 32))
    train = torchvision_set("cifar10", tmp_path, "train", limit=7, size=16)
    assert train.labels.tolist() == [0, 9, 1, 9, 2, 9, 3] and train.images.shape == (7, 3, 16, 16)


def test_cifar10_is_unpacked_from_the_archive_put_there_by_hand(tmp_path, monkeypatch):
    data = tar(cifar_files())
    monkeypatch.setattr(sets, "CIFAR", remote(sets.CIFAR.url, data))
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(data)
    assert torchvision_set("cifar10", tmp_path, "val").labels.tolist() == [5, 9]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "cifar-10-batches-bin",
        "cifar-10-binary.tar.gz",
    ]


def test_fashion_mnist(fashion):
    data = torchvision_set("fashion_mnist", fashion, "train", limit=3)
    assert data.images.shape == (3, 3, 28, 28) and torch.equal(data.images[:, 0], data.images[:, 1])
    assert [data.names[i] for i in data.labels] == ["ankle boot", "T-shirt/top", "trouser"]
    assert torchvision_set("fashion_mnist", fashion, "val", size=32).images.shape == (4, 3, 32, 32)


def test_imagenette_is_a_folder_of_jpegs(tmp_path, monkeypatch):
    stream = io.BytesIO()
    Image.new("RGB", (20, 16), (0, 0, 255)).save(stream, "JPEG")
    names = ("val/n01440764/a.JPEG", "val/n03417042/b.JPEG", "val/n03417042/c.JPEG", "train/n01440764/d.JPEG")
    data = tar({f"imagenette2-160/{name}": stream.getvalue() for name in names})
    monkeypatch.setattr(sets, "IMAGENETTE", remote(sets.IMAGENETTE.url, data))
    (tmp_path / "imagenette2-160.tgz").write_bytes(data)
    val = torchvision_set("imagenette", tmp_path, "val", size=16)
    assert val.names == ("tench", "garbage truck") and val.labels.tolist() == [0, 1, 1]
    assert torchvision_set("imagenette", tmp_path, "train").images.shape == (1, 3, 160, 160)


# --- downloading -------------------------------------------------------------------------------------------


def test_a_download_is_checked_unpacked_and_kept(tmp_path, monkeypatch):
    data = tar(cifar_files())
    monkeypatch.setattr(sets, "CIFAR", remote(sets.CIFAR.url, data))
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, **_: io.BytesIO(data))
    root = tmp_path / "made/on/the/way"
    assert torchvision_set("cifar10", root, "val", download=True).labels.tolist() == [5, 9]
    assert (root / "cifar-10-binary.tar.gz").read_bytes() == data


def test_a_download_cut_off_leaves_nothing_behind(tmp_path, monkeypatch):
    class Cut(io.BytesIO):
        def read(self, *_):
            raise ConnectionResetError("connection lost")

    monkeypatch.setattr(urllib.request, "urlopen", lambda url, **_: Cut())
    with pytest.raises(LabkitError, match=r"could not be downloaded \(connection lost\)"):
        torchvision_set("cifar10", tmp_path, download=True)
    assert list(tmp_path.iterdir()) == []


def test_a_download_of_something_else_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, **_: io.BytesIO(b"<html>log in first</html>"))
    with pytest.raises(LabkitError, match="what arrived is not the file that was published"):
        torchvision_set("cifar10", tmp_path, download=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "archive", "where"),
    [
        ("cifar10", "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", "."),
        ("fashion_mnist", f"{sets.FASHION_HOST}/train-images-idx3-ubyte.gz", "FashionMNIST/raw"),
        ("imagenette", "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-160.tgz", "."),
    ],
)
def test_missing_files_are_told_with_the_way_to_get_them(tmp_path, monkeypatch, name, archive, where):
    by_hand = f'Put {archive} into the folder "{tmp_path / where}" as it is'
    for download, offline, reason in [
        (False, "0", "is missing"),
        (True, "0", f"{archive} could not be downloaded (no network in tests)"),
        (True, "1", "LABKIT_OFFLINE forbids"),
    ]:
        monkeypatch.setenv("LABKIT_OFFLINE", offline)
        with pytest.raises(LabkitError) as caught:
            torchvision_set(name, tmp_path, download=download)
        assert reason in str(caught.value) and by_hand in str(caught.value)
        assert ("download=True" in str(caught.value)) == (not download)


# --- refusing ----------------------------------------------------------------------------------------------


def test_an_archive_with_another_md5_is_refused(tmp_path):
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(tar(cifar_files()))
    with pytest.raises(LabkitError, match=r"is damaged .*c32a1d4ab5d03f1284b67883e8d87530"):
        torchvision_set("cifar10", tmp_path)


@pytest.mark.parametrize(
    "data", [tar({"../evil": b"x"}), tar({"other/file": b"x"}), b"not an archive"], ids=["outside", "other", "none"]
)
def test_an_archive_cannot_write_outside_its_folder(tmp_path, monkeypatch, data):
    root = tmp_path / "root"
    root.mkdir()
    (root / "cifar-10-binary.tar.gz").write_bytes(data)
    monkeypatch.setattr(sets, "CIFAR", remote(sets.CIFAR.url, data))
    with pytest.raises(LabkitError, match="could not be unpacked"):
        torchvision_set("cifar10", root)
    assert [path.name for path in tmp_path.rglob("*")] == ["root", "cifar-10-binary.tar.gz"]


def test_damaged_files_are_refused(fashion, monkeypatch):
    batch = fashion / "cifar-10-batches-bin/test_batch.bin"
    batch.parent.mkdir()
    with pytest.raises(LabkitError, match=r"test_batch.bin\" is missing"):
        torchvision_set("cifar10", fashion, "val")
    for rows in (b"", b"123", cifar_rows([10]).tobytes()):
        batch.write_bytes(rows)
        with pytest.raises(LabkitError, match="is damaged: expected rows of one label"):
            torchvision_set("cifar10", fashion, "val")
    monkeypatch.setattr(sets, "_local", lambda where, source, download: where / source.url.rsplit("/", 1)[1])
    labels = fashion / "FashionMNIST/raw/t10k-labels-idx1-ubyte.gz"
    for data in (
        b"",
        b"text",
        gzip.compress(b"\0\0"),
        gzip.compress(b"\0\0\x08\1\0\0\0\5abc"),
        idx(np.ones(3))[:-9],
    ):
        labels.write_bytes(data)
        with pytest.raises(LabkitError, match="expected a gzipped idx file"):
            torchvision_set("fashion_mnist", fashion, "val")
    labels.write_bytes(idx(np.ones(3)))
    with pytest.raises(LabkitError, match="do not fit together"):
        torchvision_set("fashion_mnist", fashion, "val")


def test_wrong_arguments_are_answered_in_one_sentence(tmp_path):
    with pytest.raises(LabkitError, match='Did you mean "cifar10"'):
        torchvision_set("cifar-10", tmp_path)
    with pytest.raises(LabkitError, match='"train" and "val"'):
        torchvision_set("cifar10", tmp_path, "test")
    for wrong in ({"limit": 0}, {"size": 0}, {"limit": -1}, {"size": -8}):
        with pytest.raises(LabkitError, match="1 or more"):
            torchvision_set("cifar10", tmp_path, **wrong)
