"""One picture file as a tensor, whatever a camera, a scanner or a designer put into it.

Upright (EXIF), on white where it is transparent, 16 bits scaled rather than clipped, square at the centre.
"""

from __future__ import annotations

import stat
import warnings
from pathlib import Path

import numpy as np
import torch
from einops import rearrange, repeat
from PIL import ExifTags, Image
from torch import Tensor

from labkit.errors import LabkitError

# A closed list: Pillow also knows formats that start other programs (EPS runs Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "AVIF")
MAX_PIXELS = 120_000_000  # more is a decompression bomb rather than a photograph
TURNS = {  # EXIF orientation: what makes the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(path: str | Path, size: int = 224) -> Tensor:
    """The picture as (3, size, size) in [0, 1]: shortest side scaled to `size`, then the centre cut out."""
    path = Path(path)
    try:
        found = path.stat()
    except (OSError, ValueError) as error:  # a dead link; what nobody may see
        raise LabkitError(f"{label(path)} is not a file that can be opened.") from error
    if not stat.S_ISREG(found.st_mode):  # a named pipe would wait for ever
        raise LabkitError(f"{label(path)} is not a file that can be opened.")
    if found.st_size == 0:
        raise LabkitError(f"{label(path)} is empty (0 bytes).")
    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]  # an older Pillow has no AVIF
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=formats) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            image.draft(None, (2 * size, 2 * size))  # a JPEG decodes at 1/2, 1/4 or 1/8 for nothing
            image.load()
            values = np.asarray(_upright(_square(image, size), image), dtype=np.float32)
    except Image.DecompressionBombError as error:
        limit = f"{MAX_PIXELS // 1_000_000} megapixels"
        raise LabkitError(f"{label(path)} has more than {limit}: scale it down first.") from error
    except Image.UnidentifiedImageError as error:
        raise LabkitError(f"{label(path)} is not an image that can be read here ({', '.join(formats)}).") from error
    except Exception as error:  # decoders meet damaged files with nearly every kind of exception
        raise LabkitError(f"{label(path)} cannot be read: {str(error) or type(error).__name__}.") from error
    if values.ndim == 2:
        return torch.from_numpy(repeat(values.clip(0, 1), "h w -> c h w", c=3))
    return torch.from_numpy(rearrange(values / 255, "h w c -> c h w"))


def label(path: Path) -> str:
    """How a sentence names a file; line breaks and odd bytes in the name stay visible."""
    return repr(str(Path(path.parent.name, path.name)))


def _square(image: Image.Image, size: int) -> Image.Image:
    """The centre square, scaled: mode RGB, or mode F in [0, 1] where a channel has more than 8 bits."""
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    if image.mode[0] in "IF":  # 16 or 32 bits: convert("RGB") would clip them at 255
        image = Image.fromarray(_fractions(np.asarray(image)))
    else:
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    box = (left, top, left + side, top + side)
    image = image.resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image


def _fractions(values: np.ndarray) -> np.ndarray:
    """Counts of 16 bits over 65,535; fractions as they are; anything else from its least to its greatest."""
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("it holds NaN or infinite values")
    if values.dtype.kind == "f" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    elif values.dtype.kind != "f" and low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0
    unit = values.astype(np.float32)
    unit -= low  # in place: this array may hold a hundred million pixels
    unit /= max(high - low, 1e-12)
    return unit


def _upright(square: Image.Image, original: Image.Image) -> Image.Image:
    try:
        turn = TURNS.get(original.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged notes about a picture do not make the picture itself unusable
        turn = None
    return square if turn is None else square.transpose(turn)
