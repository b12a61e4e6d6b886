"""Stars: where they stand and how bright they are (section 3.1, ii and iii)."""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

__all__ = ["FloatArray", "Reading", "Stars", "draw_stars"]

FloatArray = NDArray[np.float64]


class Reading(enum.StrEnum):
    """Two readings of section 3.1, which differ in what its text leaves open.

    ``TEXT`` is the text, word by word. ``NOTEBOOK`` is what the authors' public notebook of these
    tests does, from which Table 2 comes: both images have one sky; the number of stars is rounded
    down; the brightest one stands in the middle of a pixel; and the light of each star is
    normalised over the pixels of the image, so that what an undersampled PSF catches does not
    depend on where the star stands between the pixels, and a star at the edge loses nothing.
    """

    TEXT = "text"
    NOTEBOOK = "notebook"


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


def draw_stars(
    rng: np.random.Generator,
    shape: tuple[int, int],
    log_density: float,
    reading: Reading | str = Reading.TEXT,
) -> Stars:
    """Stars as in section 3.1 (ii)-(iii), the brightest one moved to the centre.

    Parameters
    ----------
    rng : numpy.random.Generator
    shape : (int, int)
        (h, w).
    log_density : float
        lg of the number of stars per 100 x 100 pixels.
    reading : {"text", "notebook"}
        Of section 3.1 (``Reading``).

    Raises
    ------
    InputError
        There is no such reading.
    """
    h, w = shape
    expected = 10**log_density * h * w / 1e4
    match reading:
        case Reading.TEXT:
            n, ends, middle = round(expected), (h - 1, w - 1), (0.5 * (h - 1), 0.5 * (w - 1))
        case Reading.NOTEBOOK:
            n, ends, middle = math.floor(expected), (h, w), (h // 2, w // 2)
        case _:
            raise InputError(f"reading must be one of {', '.join(Reading)}, got {reading!r}.")
    n = max(1, n)
    flux = rng.uniform(1e-9, 10**-4.5, n) ** (-2.0 / 3.0)
    x, y = rng.uniform(0, ends[1], n), rng.uniform(0, ends[0], n)
    brightest = int(np.argmax(flux))
    y[brightest], x[brightest] = middle
    return Stars(x, y, flux)
