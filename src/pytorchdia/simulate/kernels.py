"""Kernels that are not round Gaussians."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

from ..errors import InputError
from .stars import FloatArray

__all__ = ["elliptical_kernel", "odd_kernels"]


def odd_kernels(size: int = 19) -> dict[str, FloatArray]:
    """Kernels that are not round Gaussians, by name, (size, size) each with sum 1."""
    half = size // 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float64)
    r, angle = np.hypot(x, y), np.arctan2(y, x)

    def spot(x0: float, y0: float, sigma: float) -> FloatArray:
        blob: FloatArray = np.exp(-0.5 * ((x - x0) ** 2 + (y - y0) ** 2) / sigma**2)
        blob /= blob.sum()
        return blob

    triangle = np.ones_like(x)
    for degrees in (90.0, 210.0, 330.0):
        a = np.radians(degrees)
        triangle *= x * np.cos(a) + y * np.sin(a) < 2.5
    along = x * np.cos(0.5) + y * np.sin(0.5)
    across = y * np.cos(0.5) - x * np.sin(0.5)
    ring = np.exp(-0.5 * ((r - 5.0) / 0.7) ** 2)
    kernels = {
        "triangle": gaussian_filter(triangle, 0.7),
        "trefoil": np.exp(-0.5 * (r / (2.0 * (1.0 + 0.4 * np.cos(3.0 * angle)))) ** 2),
        "double": 0.65 * spot(-3.5, 1.0, 1.2) + 0.35 * spot(3.5, -1.0, 1.2),
        "edge": spot(6.0, -5.0, 1.5),
        "streak": np.exp(-0.5 * ((along / 4.0) ** 2 + (across / 0.8) ** 2)),
        "delta": (r == 0).astype(np.float64),
        "ring": 0.8 * spot(0.0, 0.0, 1.2) + 0.2 * ring / ring.sum(),
    }
    return {name: kernel / kernel.sum() for name, kernel in kernels.items()}


def elliptical_kernel(
    size: int,
    widths: tuple[float, float],
    angle: float = 0.0,
    *,
    centre: tuple[float, float] = (0.0, 0.0),
    total: float = 1.0,
) -> FloatArray:
    """A Gaussian kernel, elongated, turned, off centre and of any sum, (size, size).

    Parameters
    ----------
    size : int
        Odd side [pixels].
    widths : (float, float)
        Standard deviations along and across ``angle`` [pixels].
    angle : float
        Of the first width, from +x towards +y [degrees].
    centre : (float, float)
        (x, y) of the maximum, from the middle of the kernel [pixels].
    total : float
        P, the sum of the kernel.

    Raises
    ------
    InputError
        The size is even or a width is not positive.
    """
    if size < 1 or size % 2 == 0 or min(widths) <= 0:
        raise InputError(
            f"A kernel needs an odd size and positive widths, got {size} and {widths}."
        )
    half = size // 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float64)
    x, y = x - centre[0], y - centre[1]
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    along, across = x * cos + y * sin, y * cos - x * sin
    kernel: FloatArray = np.exp(-0.5 * ((along / widths[0]) ** 2 + (across / widths[1]) ** 2))
    kernel *= total / kernel.sum()
    return kernel
