"""Small images as data URIs: the reference, stamps of variables, kernels."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.image import imsave
from numpy.typing import NDArray

__all__ = ["Stamps", "cut", "grey", "half_width", "limits_of", "shrunk", "signed"]

FloatArray = NDArray[np.float64]

_NO_DATA = (0.45, 0.50, 0.62, 1.0)


@dataclass(frozen=True)
class Stamps:
    """Data URIs of the same piece of sky, and the limits of the difference [sigma]."""

    frame: str
    reference: str
    target: str
    difference: str
    limit: float


def grey(image: FloatArray, low: float, high: float) -> str:
    """A PNG in grey, the first row at the bottom; what is not finite is bluish."""
    return _png(image, "gray", low, high)


def signed(image: FloatArray, limit: float, colours: str = "RdBu_r") -> str:
    """A PNG of positive and negative values on both sides of white."""
    return _png(image, colours, -limit, limit)


def limits_of(image: FloatArray) -> tuple[float, float]:
    """Levels shown as black and white: from the sky to a little below the brightest pixels."""
    good = image[np.isfinite(image)]
    if not good.size:
        return 0.0, 1.0
    low, high = np.percentile(good, [2.0, 99.0])
    return float(low), float(high) if high > low else float(low) + 1.0


def shrunk(image: FloatArray, largest: int) -> FloatArray:
    """Means of square blocks, so that no side is longer than ``largest``; NaN where all are."""
    n = -(-max(image.shape) // largest)
    if n <= 1:
        return image
    height, width = (-(-side // n) * n for side in image.shape)
    padded = np.full((height, width), np.nan)
    padded[: image.shape[0], : image.shape[1]] = image
    blocks = padded.reshape(height // n, n, width // n, n)
    known = np.isfinite(blocks)
    count = known.sum(axis=(1, 3))
    total = np.where(known, blocks, 0.0).sum(axis=(1, 3))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def half_width(fwhm: float) -> int:
    """Of a stamp, in pixels."""
    return int(np.clip(round(5.0 * fwhm), 12, 30))


def cut(image: FloatArray, x: float, y: float, half: int) -> FloatArray:
    """A stamp about a position, NaN beyond the edge."""
    row, column = round(y), round(x)
    stamp = np.full((2 * half + 1, 2 * half + 1), np.nan)
    rows = slice(max(0, row - half), max(0, min(image.shape[0], row + half + 1)))
    columns = slice(max(0, column - half), max(0, min(image.shape[1], column + half + 1)))
    piece = image[rows, columns]
    top, left = rows.start - (row - half), columns.start - (column - half)
    stamp[top : top + piece.shape[0], left : left + piece.shape[1]] = piece
    return stamp


def _png(image: FloatArray, colours: str, low: float, high: float) -> str:
    scaled = np.clip((np.nan_to_num(image) - low) / ((high - low) or 1.0), 0.0, 1.0)
    pixels = colormaps[colours](scaled)
    pixels[~np.isfinite(image)] = _NO_DATA
    file = io.BytesIO()
    nothing: Any = {"Software": None}  # no version of matplotlib in the bytes
    imsave(file, pixels[::-1, :, :3].copy(), format="png", metadata=nothing)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
