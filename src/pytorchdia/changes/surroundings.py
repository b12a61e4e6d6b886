"""Whether it is as bright beside a detection as on it: then it is part of a trail or a halo."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["part_of_trail_or_halo"]

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

_INNER, _OUTER = 1.5, 4.0  # FWHM, radii of the ring that is looked at
_WEDGES = 24  # it is cut into; a trail fills two opposite ones, or the one that is known
_AS_BRIGHT = 0.4  # of the peak, the level beside it; noise alone reaches it in one of a hundred
_BOTH_SIDES = 0.2  # of the peak, the level on the fainter side of a trail
_LEAST_KNOWN = 0.3  # share of a wedge


def part_of_trail_or_halo(
    significance: NDArray[np.floating], known: BoolArray, x: FloatArray, y: FloatArray, fwhm: float
) -> BoolArray:
    """True for peaks beside which it is nearly as bright, along a line or all round, (n,).

    Satellites, charge that bled or was left behind, and the scattered light of saturated stars
    make many peaks above any threshold, each no wider than a star.

    Parameters
    ----------
    significance : ndarray
        Of a source at each pixel, with its sign, (h, w).
    known : ndarray of bool
        Where it is known, (h, w).
    x, y : ndarray
        Peaks of either sign [pixels], (n,).
    fwhm : float
        Of the PSF [pixels].
    """
    if not len(x):
        return np.zeros(0, dtype=np.bool_)
    h, w = significance.shape
    ix, iy = np.rint(x).astype(int), np.rint(y).astype(int)
    peak = significance[iy, ix]
    level = np.empty((_WEDGES, len(x)))
    for wedge, (dy, dx) in enumerate(_wedges(fwhm)):
        rows, columns = iy + dy[:, None], ix + dx[:, None]
        inside = (rows >= 0) & (rows < h) & (columns >= 0) & (columns < w)
        rows, columns = np.clip(rows, 0, h - 1), np.clip(columns, 0, w - 1)
        seen = inside & known[rows, columns]
        total = np.where(seen, significance[rows, columns], 0.0).sum(0)
        enough = seen.sum(0) >= max(1.0, _LEAST_KNOWN * len(dy))
        level[wedge] = np.where(enough, total / np.maximum(seen.sum(0), 1), np.nan)
    share = level / peak
    share = np.where(np.isnan(share), np.roll(share, _WEDGES // 2, axis=0), share)
    share = np.nan_to_num(share)
    one, other = share[: _WEDGES // 2], share[_WEDGES // 2 :]
    along = (0.5 * (one + other) >= _AS_BRIGHT) & (np.minimum(one, other) >= _BOTH_SIDES)
    around = np.median(share, axis=0)
    result: BoolArray = along.any(0) | (around >= _AS_BRIGHT)
    return result


def _wedges(fwhm: float) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """The offsets (dy, dx) of the pixels in each wedge of the ring; opposite ones half-way on."""
    reach = math.ceil(_OUTER * fwhm)
    dy, dx = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    distance = np.hypot(dy, dx)
    ring = (distance >= _INNER * fwhm) & (distance <= _OUTER * fwhm)
    turn = np.arctan2(dy, dx) / (2.0 * np.pi) * _WEDGES
    number = np.rint(turn).astype(int) % _WEDGES
    return [(dy[ring & (number == k)], dx[ring & (number == k)]) for k in range(_WEDGES)]
