"""Stars: where they stand and how bright they are (section 3.1, ii and iii)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["FloatArray", "Stars", "draw_stars"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Stars:
    """Positions [pixels] and fluxes [ADU] of stars, (n,) each."""

    x: FloatArray
    y: FloatArray
    flux: FloatArray

    def shifted(self, dx: float, dy: float) -> Stars:
        """The same stars moved by (dx, dy) pixels."""
        return Stars(self.x + dx, self.y + dy, self.flux)

    def moved(self, matrix: FloatArray) -> Stars:
        """The same stars at ``matrix`` (2, 3) times (x, y, 1)."""
        x, y = matrix[:, :2] @ np.stack([self.x, self.y]) + matrix[:, 2:]
        return Stars(x, y, self.flux)

    def joined(self, other: Stars) -> Stars:
        """These stars and those of ``other``; at one place their fluxes add up."""
        return Stars(*(np.concatenate(both) for both in zip(self, other, strict=True)))

    def __iter__(self) -> Iterator[FloatArray]:
        """x, y and flux."""
        return iter((self.x, self.y, self.flux))


def draw_stars(rng: np.random.Generator, shape: tuple[int, int], log_density: float) -> Stars:
    """Stars as in section 3.1 (ii)-(iii), the brightest one moved to the centre.

    Parameters
    ----------
    rng : numpy.random.Generator
    shape : (int, int)
        (h, w).
    log_density : float
        lg of the number of stars per 100 x 100 pixels.
    """
    h, w = shape
    n = max(1, round(10**log_density * h * w / 1e4))
    flux = rng.uniform(1e-9, 10**-4.5, n) ** (-2.0 / 3.0)
    x, y = rng.uniform(0, w - 1, n), rng.uniform(0, h - 1, n)
    brightest = int(np.argmax(flux))
    x[brightest], y[brightest] = 0.5 * (w - 1), 0.5 * (h - 1)
    return Stars(x, y, flux)
