"""From a share to a pixel: two tables of 256 colours that every kind of colour vision can read, and how to use them.

"cividis" is for shares ("Optimizing colormaps with consideration for color vision deficiency to enable accurate
interpretation of scientific data", 2018), "PuOr" for differences (ColorBrewer). They are matplotlib's, written down
here so that no explorer waits for matplotlib; explorer.js is sent these tables and follows `colours` number by number.
"""

from __future__ import annotations

import base64

import numpy as np

_CIVIDIS = (
    "ACJNACNPACNQACRSACVUACZVACZXACdZAChbAChcACleACpgACpiACtkACxmACxnAC1pAC5rAC9tAC9vADBwADBwADFwADFwBDJwCDNwCzNwDjRw"
    "ETVvFDZvFjZvGDdvGjhvHDhuHTluHzpuITtuIjtuJDxuJT1tJz1tKD5tKj9tKz9tLEBtLkFsL0JsMEJsMUNsMkRsNERsNUVsNkZsN0ZsOEdsOUhs"
    "OkhrO0lrPUprPktrP0trQExrQU1rQk1rQ05rRE9rRU9rRlBrR1FrSFFrSVJrSlNrS1RsTFRsTVVsTlZsTlZsT1dsUFhsUVhsUllsU1psVFpsVVtt"
    "VlxtV11tWF1tWV5tWV9tWl9tW2BuXGFuXWFuXmJuX2NuYGRuYWRvYWVvYmZvY2ZvZGdvZWhwZmlwZ2lwaGpwaGtxaWtxamxxa21xbG1ybW5ybm9y"
    "bnBzb3BzcHFzcXJzcnN0c3N0dHR1dHV1dXV1dnZ2d3d2eHh2eXh3eXl3enp3e3t3fHt4fXx4fn14f314gH54gX94goB4g4B4hIF4hYJ4hYN4hoN4"
    "h4R4iIV4iYZ4ioZ4i4d4jIh4jYl4jol4j4p3kIt3kYx3kox3k413lI53lY93lo93l5B2mJF2mZJ2mpN2m5N2nJR2nZV1npZ1n5Z1oJd1oZh0opl0"
    "o5p0pJp0pZtzppxzp51zqJ5zqZ5yqp9yq6ByrKFxraJxrqJxr6NwsKRwsaVwsqZvs6ZvtKdvtahutqlut6ptuKttuattuqxsu61svK5rva9rvrBq"
    "v7BqwbFpwrJpw7NoxLRoxbVnxrVnx7ZmyLdlybhlyrlky7pkzLtjzbxizrxiz71h0L5g0r9g08Bf1MFe1cJe1sNd18Nc2MRb2cVa2sZa28dZ3MhY"
    "3slX38pW4MtV4cxU4sxT481S5M5R5c9Q5tBP6NFO6dJN6tNM69RL7NVK7dZI7tdH79hG8dlE8tpD89pC9NtA9dw/9t09+N47+d86+uA4++E2/eI0"
    "/eMz/eU0/eY2/ec3"
)
_PUOR = (
    "fzsIgTwHgz0HhT4Hhz8HiUAHi0EHjUIHj0QHkUUHk0YHlUcHl0gHmUkGm0oGnUwGn00GoU4Go08GpVAGp1EGqVIGq1QGrVUGr1YGsVcGs1gGtVoG"
    "t1wHuV0Hul8IvGEJvmIJwGQKwmUKw2cLxWkLx2oMyWwMym4NzG8NznEO0HMP0XQP03YQ1XgQ13kR2HsR2n0S3H4S3oAT4IIU4YQX4oYa44gd5Iog"
    "5Ywj5o4m55Ap6ZIs6pUv65cy7Jk27Zs57p08758/8aFC8qNF86VI9KhL9apO9qxR965V+bBY+rJb+7Re/LZh/bhk/bpn/btr/b1u/b9x/cB0/cJ4"
    "/cN7/cV+/caB/ciF/cqI/cuL/c2O/c6S/dCV/dGY/dOb/dWf/dai/dil/dmo/dus/dyv/d6y/uC2/eC4/eG7/eK9/OPA/OTC/OXF/ObH++fK++jM"
    "++nP+unS+urU+uvX+uzZ+e3c+e7e+e/h+fDj+PHm+PLo+PLr9/Pu9/Tw9/Xz9/b19vb29fX28/T18vP18fH08PD07+/z7e7z7O3z6+zy6uvy6enx"
    "5+jx5ufw5ebw5OXv4uTv4ePu4OHu3+Dt3t/t3N7s293s2tzr2dvr2Nrr1tjq1dbp09To0tLn0NDmz87lzc3kzMvjysniycfhx8XgxsPfxMLew8Dd"
    "wb7cwLzbvrravbjZu7bYurXXuLPWt7HVta/UtK3TsqvSsanRr6fPraXOq6PMqaHLp57JpZzIo5rGoZjFn5bDnZPCm5HAmY+/l429lYu8k4i6kYa5"
    "j4S3jYK2i4C0iX2zh3uxhXmwg3eugXWtgHOsfnCqfG2pemqneWemd2SkdWGjc16iclugcFifblWdbVKca0+baUyZZ0mYZkaWZEOVYkCUYD2SXzqR"
    "XTePWzSOWjGMWC6LViuKVCiIUyaGUSSEUCOCTiF/TSB9Sx56Sh14SBt2RxpzRRhxQxZuQhVsQBNqPxJnPRBlPA9iOg1gOQxeNwpbNglZNAdWMwZU"
    "MQRSMANPLgFNLQBL"
)


def table(name: str) -> np.ndarray:
    """uint8 (256, 3): "cividis" for shares, "PuOr" for differences."""
    text = {"cividis": _CIVIDIS, "PuOr": _PUOR}[name]
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(256, 3)


def colours(values: np.ndarray, low: float, high: float, name: str = "cividis") -> np.ndarray:
    """uint8 (..., 3): `low` and below is the first colour of the table, `high` and above the last."""
    if high <= low:
        return table(name)[np.zeros(values.shape, int)]
    return table(name)[np.floor((values - low) / (high - low) * 255 + 0.5).clip(0, 255).astype(int)]
