"""Columns and rows of the detector that differ from their neighbours and that no mask shows."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from astropy.stats import mad_std
from numpy.typing import NDArray

from ..errors import Finding
from ..frame import Flag, Frame

__all__ = ["find_bad_lines", "without_bad_lines"]

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

_THRESHOLD = 7.0  # robust sigma over all lines
_LEAST = 0.25  # of a pixel's noise; less does no harm
_NEIGHBOURS = (-3, -2, 2, 3)  # so that a defect two pixels wide is not its own neighbour
_SHORTEST, _PARTS = 100, 4  # pixels; parts of a line that are looked at alone
_MOST = 0.02  # share of the lines; beyond, it is a pattern of the read-out and no defect


def find_bad_lines(frame: Frame) -> BoolArray:
    """True on whole or quarter columns and rows whose level is not that of their neighbours.

    The level of a line is the median along it of each pixel less its neighbours across, so that
    stars do not count. It is bad if it stands out from those of all other lines by 7 robust
    standard deviations, and by a quarter of the noise of a pixel.

    Parameters
    ----------
    frame : Frame
        As the detector gave it, not resampled.

    Returns
    -------
    ndarray of bool
        (h, w).
    """
    data = np.where(frame.mask.numpy(), np.nan, frame.data.double().numpy())
    found = np.zeros(data.shape, dtype=np.bool_)
    for image, bad in ((data, found), (data.T, found.T)):
        _mark_columns(image, bad)
    return found


def without_bad_lines(frame: Frame) -> Frame:
    """The frame with :func:`find_bad_lines` flagged as MASKED, and a finding if there are any."""
    bad = find_bad_lines(frame)
    if not bad.any():
        return frame
    columns, rows = bad.all(axis=0).sum(), bad.all(axis=1).sum()
    finding = Finding(
        "bad-lines",
        f"{frame.name}: {int(bad.sum())} pixels of columns or rows that differ from their "
        f"neighbours were masked ({columns} whole columns, {rows} whole rows).",
    )
    flagged = frame.flagged(torch.from_numpy(bad), Flag.MASKED)
    return replace(flagged, findings=(*frame.findings, finding))


def _mark_columns(image: FloatArray, bad: BoolArray) -> None:
    h, w = image.shape
    if w < 8 * len(_NEIGHBOURS):
        return
    across = image - _mean_of_neighbours(image)
    some = across[np.isfinite(across)][::7]
    if not len(some):
        return
    noise = float(mad_std(some)) / np.sqrt(1.0 + 1.0 / len(_NEIGHBOURS))
    for parts in (1, _PARTS):
        edges = np.linspace(0, h, parts + 1).round().astype(int)
        if edges[1] < _SHORTEST and parts > 1:
            return
        for top, bottom in pairwise(edges):
            columns = _outlying(across[top:bottom], noise)
            if columns.sum() <= max(1.0, _MOST * w):
                bad[top:bottom, columns] = True


def _outlying(across: FloatArray, noise: float) -> BoolArray:
    """Columns whose median is not that of the others, (w,)."""
    share = np.isfinite(across).mean(axis=0)
    known: BoolArray = share > 0.5
    whole = share == 1.0
    level = np.full(across.shape[1], np.nan)
    level[whole] = np.median(across[:, whole], axis=0)  # ten times as fast
    level[known & ~whole] = np.nanmedian(across[:, known & ~whole], axis=0)
    if not known.any():
        return known
    level -= np.median(level[known])
    limit = max(_THRESHOLD * float(mad_std(level[known])), _LEAST * noise)
    outlying: BoolArray = known & (np.abs(np.nan_to_num(level)) > limit)
    # The neighbours of a bad column seem to differ from it; only the strongest nearby counts.
    strength = np.where(outlying, np.abs(np.nan_to_num(level)), 0.0)
    for shift in _NEIGHBOURS:
        outlying &= strength > 0.5 * _shifted(strength[None], shift)[0]
    return outlying


def _mean_of_neighbours(image: FloatArray) -> FloatArray:
    """Mean over the columns beside each; NaN where any of them is not known."""
    mean = np.zeros_like(image)
    for k in _NEIGHBOURS:
        mean += _shifted(image, k, np.nan)
    return mean / len(_NEIGHBOURS)


def _shifted(image: FloatArray, by: int, fill: float = 0.0) -> FloatArray:
    """``image[:, i + by]`` at column i."""
    moved = np.full_like(image, fill)
    if by > 0:
        moved[:, :-by] = image[:, by:]
    else:
        moved[:, -by:] = image[:, :by]
    return moved
