"""What every lesson does in its first cells, and how it shows a figure, a table or a number.

Everything printed is the same text on a CPU and on a GPU: numbers are rounded, no device is named, and a
picture comes with a sentence that says what it shows.
"""

from __future__ import annotations

import os
import random
import re
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from labkit import machine
from labkit.errors import LabkitError
from labkit.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image as Picture


WIDTH = 88  # columns that fit below a cell on a small screen
NUMBER = re.compile(r"[-+−±×]?[\d.,]+( ?(%|×|[kMG]?B|[mµn]?s|[kMG]|points?))?( \[.*\])?|-|–|")


def setup(seed: int = 0, device: str = "auto") -> torch.device:
    """Seed Python, numpy and torch, dress matplotlib, and say where tensors go; once or often, the same.

    "auto" is the GPU where there is one; LABKIT_DEVICE=cpu (or cuda) has the last word.
    """
    check_seed(seed)
    chosen = torch_device(os.environ.get("LABKIT_DEVICE") or device)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    # More threads than cores make small models slower, and a container often sees more cores than it owns.
    torch.set_num_threads(min(torch.get_num_threads(), machine.cores(), 8))
    # A GPU's short cuts change the fourth digit, and a lesson prints four.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True

    import matplotlib

    from labkit.viz.figures import STYLE

    matplotlib.rcParams.update(STYLE)
    return chosen


def check_seed(seed: int) -> None:
    if not 0 <= seed < 2**32:  # what numpy takes
        raise LabkitError(f"seed={seed}; expected a whole number from 0 to {2**32 - 1}.")


def torch_device(name: str) -> torch.device:
    """The device called `name`; "auto" is the GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise LabkitError(f'The device "{name}" is not here; choose "auto" or "cpu".') from error
    return device


def figure(fig: Figure | Picture, alt: str) -> None:
    """Show a matplotlib figure or a PIL image with alternative text, print that text, close the figure."""
    if not alt.strip():
        raise LabkitError("A figure needs a sentence for those who do not see it: figure(fig, alt='...').")
    from IPython.display import Image, display

    from labkit.viz.figures import png

    display(Image(png(fig), alt=alt))
    print(textwrap.fill(alt, WIDTH))  # a notebook would break a longer line inside words
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close(fig)


def text(value: Any, digits: int = 4) -> str:
    """Rounded numbers without device or dtype: `text(0.12345)` is "0.1235", a tensor is a bracketed list."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = value.double() if value.is_floating_point() else value

    def fixed(number: Any) -> str:
        return f"{round(float(number), digits) + 0.0:.{digits}f}"  # + 0.0 makes -0.0 positive

    return np.array2string(
        np.asarray(value), separator=", ", threshold=100, max_line_width=100, formatter={"float_kind": fixed}
    )


def _is_number(cell: Any) -> bool:
    return NUMBER.fullmatch(cell) is not None if isinstance(cell, str) else True


def table(rows: Iterable[Sequence[Any]], headers: Sequence[str], digits: int = 4) -> Table:
    """A table of `rows`; floats are rounded to `digits`, None is a dash; columns of numbers stand on the right."""
    rows = [list(row) for row in rows]
    for i, row in enumerate(rows):
        if len(row) != len(headers):
            raise LabkitError(f"Row {i} has {len(row)} cells, the table has {len(headers)} headers.")

    def cell(value: Any) -> str:
        if value is None:
            return "-"
        return value if isinstance(value, str) else text(value, digits)

    numeric = [bool(rows) and all(_is_number(row[i]) for row in rows) for i in range(len(headers))]
    return Table([str(header) for header in headers], [[cell(value) for value in row] for row in rows], numeric)
