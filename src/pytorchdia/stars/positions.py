"""Positions of stars as they are given: numbers or lists, made arrays and checked."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError, ShapeError

__all__ = ["as_positions", "checked_positions"]

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
