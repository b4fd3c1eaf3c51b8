"""The folder reader meets what real folders hold: all kinds of pictures, broken files, loops, odd names."""

from __future__ import annotations

import os
import struct
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from labkit.data.folder import folder
from labkit.data.picture import MAX_PIXELS, read_image
from labkit.errors import LabkitError

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


@pytest.fixture(autouse=True)
def quiet():
    """A notebook's stderr stays empty: a warning of Pillow's would be an error here."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def save(path: Path, color=RED, size=(12, 12), mode="RGB", **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path, **options)
    return path


def mean(path: Path) -> list[float]:
    return [round(value, 2) for value in read_image(path, 8).mean((1, 2)).tolist()]


# --- finding -----------------------------------------------------------------------------------------------


def test_class_folders_give_labels_by_sorted_name_and_images_in_turn(tmp_path):
    for name in ("b/2.png", "b/10.png", "a/deep/er/1.png"):
        save(tmp_path / name, RED if name[0] == "a" else BLUE)
    data = folder(tmp_path, size=8)
    assert data.names == ("a", "b") and data.labels.tolist() == [0, 1, 1]
    assert data.images.shape == (3, 3, 8, 8) and data.images.dtype == torch.float32
    assert data.images[:, 0, 0, 0].tolist() == [1, 0, 0]
    assert data.skipped == () and data.masks is None


def test_flat_folder_has_no_labels_and_keeps_the_file_names(tmp_path):
    for name in ("z.png", "a.png", "été ☃ 写真.png", "two\nlines.png", "no_suffix"):
        save(tmp_path / name, format="PNG")
    data = folder(str(tmp_path), size=8)
    assert data.labels is None
    assert data.names == ("a.png", "no_suffix", "two\nlines.png", "z.png", "été ☃ 写真.png")


def test_limit_counts_readable_images_and_takes_them_from_each_class(tmp_path):
    for name in ("a/1.png", "a/2.png", "a/3.png", "b/2.png", "b/3.png"):
        save(tmp_path / name)
    (tmp_path / "b/1.png").write_bytes(b"")
    data = folder(tmp_path, size=8, limit=3)
    assert data.labels.tolist() == [0, 0, 1]
    assert data.skipped == ("'b/1.png' is empty (0 bytes).",)
    assert len(folder(tmp_path, size=8, limit=100)) == 5


def test_a_seed_draws_from_all_files_and_labels_stay_with_them(tmp_path):
    for i in range(30):
        save(tmp_path / ("rare" if i < 6 else "usual") / f"{i:02d}.png", (8 * i, 0, 0))
    drawn = [folder(tmp_path, size=8, limit=20, seed=seed) for seed in (0, 0, 1)]
    numbers = [(found.images[:, 0, 0, 0] * 255 / 8).round().long() for found in drawn]
    assert torch.equal(numbers[0], numbers[1]) and not torch.equal(numbers[0], numbers[2])
    assert all(torch.equal(found.labels, (n >= 6).long()) for found, n in zip(drawn, numbers, strict=True))
    assert len(set(numbers[0].tolist())) == 20 and (numbers[0] < 6).sum() < 10, "not from each class in turn"


def test_hidden_files_and_folders_are_ignored(tmp_path):
    save(tmp_path / "a/1.png")
    for name in (
        ".DS_Store",
        "Thumbs.db",
        "a/.hidden.png",
        ".git/x.png",
        "a/.cache/y.png",
        "__MACOSX/._1.png",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"junk")
    data = folder(tmp_path, size=8)
    assert len(data) == 1 and data.names == ("a",) and data.skipped == ()


def test_loose_files_beside_class_folders_are_named(tmp_path):
    save(tmp_path / "a/1.png")
    save(tmp_path / "loose.png")
    assert "loose.png' lies beside the class folders" in folder(tmp_path, size=8).skipped[0]


def test_below_a_class_the_order_is_that_of_all_paths(tmp_path):
    names = ("b.png", "b/2.png", "b/1.png", "b-a.png", "B.png", "b.c/é.png", "b/d/e/f.png", "a b/z", "z")
    for number, name in enumerate(names):
        save(tmp_path / "class" / name, (number, 0, 0), format="PNG")
    found = (255 * folder(tmp_path, size=8).images[:, 0, 0, 0]).round().int().tolist()
    assert [names[i] for i in found] == sorted(names)


def test_no_more_is_listed_than_is_needed(tmp_path, monkeypatch):
    for number in range(20):
        save(tmp_path / f"a/{number:02d}/x.png")
        save(tmp_path / f"b/{number:02d}/x.png")
    listed, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (listed.append(Path(path).name), scandir(path))[1])
    assert folder(tmp_path, size=8, limit=4).labels.tolist() == [0, 1, 0, 1]
    assert listed == [tmp_path.name, "a", "00", "b", "00", "01", "01"]


def test_what_is_no_folder_of_images_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["labkit.data.folder"], "FUTILE", 5)
    for number in range(7):
        (tmp_path / f"{number}.txt").write_text("text")
    with pytest.raises(
        LabkitError, match=r"None of the first 6 files in .* could be read. The first: .*Expected a folder"
    ):
        folder(tmp_path, size=8, limit=3)
    save(tmp_path / "0.png")
    save(tmp_path / "9.png")
    found = folder(tmp_path, size=8, limit=3)
    assert found.names == ("0.png",) and "More than 5 files in" in found.skipped[0]
    (tmp_path / "6.txt").unlink()
    (tmp_path / "5.txt").unlink()
    assert folder(tmp_path, size=8, limit=3).names == ("0.png", "9.png"), "five of them are no reason to give up"


def test_more_than_can_be_listed_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["labkit.data.folder"], "MOST", 4)
    for number in range(6):
        save(tmp_path / f"{number}.png")
    found = folder(tmp_path, size=8, limit=3)
    assert len(found) == 3 and "holds more than 4 names: images were taken from the 4" in found.skipped[0]
    for name in "ab":
        for number in range(3):
            save(tmp_path / f"classes/{name}/{number}.png")
    with pytest.raises(LabkitError, match=r"holds more than 4 files; pass a limit of at most 4, or name a part"):
        folder(tmp_path / "classes", size=8)
    assert len(folder(tmp_path / "classes", size=8, limit=4)) == 4


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs links and pipes")
def test_loops_dead_links_and_pipes_do_not_hang(tmp_path):
    save(tmp_path / "set/a/1.png")
    (tmp_path / "set/around").symlink_to(tmp_path)
    (tmp_path / "set/a/loop").symlink_to(tmp_path / "set")
    (tmp_path / "set/a/itself").symlink_to(tmp_path / "set/a/itself")
    os.mkfifo(tmp_path / "set/a/pipe.png")
    (tmp_path / "set/linked").symlink_to(tmp_path / "set/a")  # a linked class folder is welcome
    data = folder(tmp_path / "set", size=8)
    assert data.names == ("a", "linked") and len(data) == 2
    assert {text.split("'")[1] for text in data.skipped} == {
        *("set/around", "a/loop", "a/itself", "a/pipe.png"),
        *("linked/loop", "linked/itself", "linked/pipe.png"),
    }


def test_a_name_that_is_not_text_can_be_printed(tmp_path):
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")).write_bytes(b"junk")
    except OSError:
        pytest.skip("this file system takes only text as names")
    save(tmp_path / "a.png")
    data = folder(tmp_path, size=8)
    assert "\\udcff.png" in data.skipped[0].encode("utf-8").decode()


# --- refusing ----------------------------------------------------------------------------------------------


def test_each_unusable_folder_gets_its_sentence(tmp_path, monkeypatch):
    with pytest.raises(LabkitError, match=r"There is no folder .*Expected a folder with images"):
        folder(tmp_path / "missing")
    with pytest.raises(LabkitError, match="is a file"):
        folder(save(tmp_path / "x.png"))
    (tmp_path / "empty/below").mkdir(parents=True)
    with pytest.raises(LabkitError, match=r"There is no image in .*Expected a folder with images"):
        folder(tmp_path / "empty")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/notes.txt").write_text("hello")
    with pytest.raises(LabkitError, match=r"None of the 1 files .*notes.txt' is not an image"):
        folder(tmp_path / "bad")
    with pytest.raises(LabkitError, match="1 or more"):
        folder(tmp_path, limit=0)

    def denied(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(LabkitError, match="cannot be read: Permission denied"):
        folder(tmp_path)


def test_an_unreadable_class_folder_is_skipped(tmp_path, monkeypatch):
    save(tmp_path / "a/1.png")
    save(tmp_path / "b/1.png")
    scandir = os.scandir

    def deny_b(path):
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", deny_b)
    data = folder(tmp_path, size=8)
    assert data.names == ("a",)
    assert data.skipped[0].endswith("b' cannot be read: Permission denied.")


@pytest.mark.skipif(not hasattr(os, "sysconf"), reason="the size of the memory is not known here")
def test_more_than_the_memory_is_refused_before_reading(tmp_path):
    save(tmp_path / "a.png")
    with pytest.raises(LabkitError, match="more than half of this machine's memory: pass limit="):
        folder(tmp_path, size=1_000_000)


def test_broken_files_are_named_and_the_rest_goes_on(tmp_path):
    whole = save(tmp_path / "whole.jpg", size=(64, 64)).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "zero.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("<html>404</html>")
    (tmp_path / "script.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    np.save(tmp_path / "array.npy", np.zeros(3))
    Image.fromarray(np.full((9, 9), np.nan, dtype=np.float32)).save(tmp_path / "nan.tiff")
    data = folder(tmp_path, size=8)
    assert data.names == ("whole.jpg",)
    assert [text.split("'")[1].split("/")[1] for text in data.skipped] == [
        *("array.npy", "cut.jpg", "nan.tiff", "script.eps", "text.jpg", "zero.jpg")
    ]
    assert "NaN" in data.skipped[2]


def test_random_damage_never_escapes_as_another_exception(tmp_path):
    random = np.random.RandomState(0)
    noise = Image.fromarray(random.randint(0, 256, (24, 24, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    for suffix in ("jpg", "png", "webp", "gif", "bmp", "tiff"):
        noise.save(tmp_path / f"x.{suffix}", **({"exif": exif} if suffix in ("jpg", "png", "webp") else {}))
        data = bytearray((tmp_path / f"x.{suffix}").read_bytes())
        for trial in range(40):
            bad = data.copy()
            for _ in range(4):
                bad[random.randint(len(bad) if trial % 2 else min(len(bad), 120))] = random.randint(256)
            (tmp_path / "bad").write_bytes(bad)
            try:
                image = read_image(tmp_path / "bad", 8)
            except LabkitError:
                continue
            assert image.shape == (3, 8, 8) and image.min() >= 0 and image.max() <= 1


# --- decoding ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tiff", "gif", "ppm"])
def test_formats(tmp_path, suffix):
    assert mean(save(tmp_path / f"x.{suffix}", BLUE)) == pytest.approx([0, 0, 1], abs=0.02)


def test_the_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (9, 9), color) for color in (GREEN, RED)]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert mean(tmp_path / "x.gif") == [0, 1, 0]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, suffix, orientation):
    upright = np.zeros((16, 16, 3), dtype=np.uint8)
    upright[:8, :8], upright[:8, 8:] = RED, GREEN  # red at the top left, green at the top right
    stored = {
        **{1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1]},
        **{5: upright.transpose(1, 0, 2), 6: np.rot90(upright, 1), 8: np.rot90(upright, -1)},
        7: np.rot90(upright, 2).transpose(1, 0, 2),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(stored))
    image.save(tmp_path / f"x.{suffix}", exif=exif, **({"quality": 95} if suffix in ("jpg", "webp") else {}))
    seen = read_image(tmp_path / f"x.{suffix}", 16)
    corners = [seen[:, 3, 3], seen[:, 3, 12], seen[:, 12, 3]]
    assert [corner.round().tolist() for corner in corners] == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]


def test_damaged_exif_leaves_the_picture_usable(tmp_path):
    image = Image.new("RGB", (9, 9), RED)
    image.save(tmp_path / "x.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xee" * 40)
    assert mean(tmp_path / "x.jpg") == pytest.approx([1, 0, 0], abs=0.02)


def test_transparency_lies_on_white(tmp_path):
    half_blue = [0.5, 0.5, 1]
    assert mean(save(tmp_path / "rgba.png", (0, 0, 255, 128), mode="RGBA")) == half_blue
    assert mean(save(tmp_path / "la.png", (0, 128), mode="LA")) == [0.5] * 3
    save(tmp_path / "key.png", RED, transparency=RED)
    assert mean(tmp_path / "key.png") == [1, 1, 1]
    palette = Image.new("P", (9, 9), 1)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.save(tmp_path / "p.png")
    assert mean(tmp_path / "p.png") == [0, 0, 1]
    palette.save(tmp_path / "pt.png", transparency=bytes([255, 128]))
    assert mean(tmp_path / "pt.png") == half_blue


def test_greyscale_bilevel_and_cmyk(tmp_path):
    assert mean(save(tmp_path / "l.jpg", 128, mode="L")) == [0.5] * 3
    assert mean(save(tmp_path / "one.png", 1, mode="1")) == [1] * 3
    assert mean(save(tmp_path / "cmyk.jpg", (0, 255, 255, 0), mode="CMYK")) == pytest.approx([1, 0, 0], abs=0.02)


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path, suffix):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / f"x.{suffix}")
    expected = torch.from_numpy(ramp.astype(np.float32) / 65535)
    assert torch.allclose(read_image(tmp_path / f"x.{suffix}", 8)[1], expected, atol=1e-4)


def test_float_and_wide_integer_tiffs(tmp_path):
    for name, values in {
        "fraction": np.full((8, 8), 0.25, dtype=np.float32),
        "range": np.linspace(-3, 900, 64, dtype=np.float32).reshape(8, 8),
        "wide": (np.arange(64, dtype=np.int32) * 100_000).reshape(8, 8),
    }.items():
        Image.fromarray(values).save(tmp_path / f"{name}.tiff")
    assert mean(tmp_path / "fraction.tiff") == [0.25] * 3
    assert mean(tmp_path / "range.tiff") == [0.5] * 3
    assert mean(tmp_path / "wide.tiff") == [0.5] * 3


def test_the_centre_is_cut_out_and_smoothed(tmp_path):
    wide = np.zeros((16, 48, 3), dtype=np.uint8)
    wide[:, 16:32] = GREEN
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.fromarray(wide.transpose(1, 0, 2)).save(tmp_path / "tall.png")
    assert mean(tmp_path / "wide.png") == mean(tmp_path / "tall.png") == pytest.approx([0, 1, 0], abs=0.03)
    stripes = np.zeros((256, 256), dtype=np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    assert read_image(tmp_path / "stripes.png", 8).sub(0.5).abs().max() < 0.01  # antialiased, not sampled
    assert read_image(save(tmp_path / "thin.png", size=(1, 500)), 8).shape == (3, 8, 8)


def test_a_large_jpeg_is_decoded_small(tmp_path, monkeypatch):
    save(tmp_path / "large.jpg", GREEN, size=(4000, 3000))
    loaded = []
    load = Image.Image.load
    monkeypatch.setattr(Image.Image, "load", lambda self: (loaded.append(self.size), load(self))[1])
    assert mean(tmp_path / "large.jpg") == pytest.approx([0, 1, 0], abs=0.02)
    assert max(loaded) == (500, 375)


@pytest.mark.parametrize("side", [11_000, 60_000])  # above our limit; above the one where Pillow itself raises
def test_a_decompression_bomb_is_skipped_with_the_limit(tmp_path, side):
    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    rows = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + rows + chunk(b"IEND", b""))
    save(tmp_path / "good.png")
    data = folder(tmp_path, size=8)
    assert data.names == ("good.png",) and side**2 > MAX_PIXELS
    assert "more than 120 megapixels" in data.skipped[0]
