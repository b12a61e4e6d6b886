"""Positions of stars: made arrays and checked, and taken from pixels to the sky and back."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from astropy.coordinates import angular_separation
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError, ShapeError

__all__ = ["as_positions", "checked_positions", "on_pixels", "on_sky"]

FloatArray = NDArray[np.float64]


def as_positions(x: ArrayLike, y: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Both coordinates as arrays, (n,) each; a number is a list of one."""
    first, second = (np.atleast_1d(np.asarray(v, dtype=np.float64)) for v in (x, y))
    return first, second


def checked_positions(x: ArrayLike, y: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Both coordinates as arrays, (n,) each: two lists of one length, all finite.

    Raises
    ------
    ShapeError
        They are not lists of one length.
    InputError
        One of them is not finite.
    """
    first, second = as_positions(x, y)
    if first.ndim != 1 or first.shape != second.shape:
        raise ShapeError(
            f"The positions have shapes {first.shape} and {second.shape}; give two lists of one "
            "length."
        )
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise InputError("Some positions are not finite numbers; leave these stars out.")
    return first, second


def on_sky(wcs: Any, x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
    """RA and Dec [degrees] of pixels, (n,) each, by any WCS that astropy takes for one."""
    ra, dec = wcs.low_level_wcs.pixel_to_world_values(x, y)
    return np.asarray(ra, dtype=np.float64), np.asarray(dec, dtype=np.float64)


def on_pixels(wcs: Any, ra: FloatArray, dec: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Pixels x, y of RA and Dec [degrees], (n,) each; NaN where the WCS leads to none and back.

    A place on the other side of the sky has no pixel, and the inverse of a distortion may end at a
    wrong one.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it does not converge, for some
        x, y = (
            np.asarray(v, dtype=np.float64)
            for v in wcs.low_level_wcs.world_to_pixel_values(ra, dec)
        )
        there, beside = (np.radians(on_sky(wcs, x + step, y)) for step in (0.0, 1.0))
    off = angular_separation(*np.radians([ra, dec]), *there)
    known = off <= 0.1 * angular_separation(*there, *beside)
    return np.where(known, x, np.nan), np.where(known, y, np.nan)
