"""Which pixels of registered frames show what is not of the sky: cosmic rays, trails, hot pixels.

A star that has changed differs from the median of the frames, too. It must stay whole: without the
core of its image, no PSF fits what is left of it.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects, grey_dilation, grey_erosion, label

__all__ = ["beyond_the_limit", "changed_stars", "lower_median"]

FloatArray = NDArray[np.float64]
Mask = NDArray[np.bool_]

_NOISE = 5.0  # sigma
_SLOPE = 0.7  # of the steepest step to a neighbour
_LIGHT = 0.5  # of the light itself, which other seeing moves about
_LARGEST = 4.0  # side of a changed star [FWHM]
_SHARP = 0.3  # of the share of its peak that a star has on its fainter side, along any axis
_DOUBT = 2.0  # sigma that this may be less
_AXES = np.array([[(0, k), (k, 0), (k, k), (k, -k)] for k in (-1, 1)]).swapaxes(0, 1)  # (dy, dx)


def lower_median(values: FloatArray, good: Mask) -> FloatArray:
    """Median over the good frames, (h, w), NaN where there is none; of two the lower one."""
    ordered = np.sort(np.where(good, values, np.inf), axis=0)
    middle = np.maximum(good.sum(axis=0) - 1, 0) // 2
    median: FloatArray = np.take_along_axis(ordered, middle[None], axis=0)[0]
    return np.where(np.isfinite(median), median, np.nan)


def beyond_the_limit(
    values: FloatArray, variances: FloatArray, median: FloatArray, good: Mask
) -> Mask:
    """Pixels that are further from the median than noise and another seeing can take them.

    Parameters
    ----------
    values, variances : ndarray
        Of the frames on one scale, without sky, (n, h, w).
    median : ndarray
        Of the frames, (h, w).
    good : ndarray of bool
        (n, h, w).
    """
    slope = np.maximum(
        grey_dilation(median, (3, 3)) - median, median - grey_erosion(median, (3, 3))
    )
    limit = _NOISE * np.sqrt(variances) + _SLOPE * slope + _LIGHT * np.maximum(median, 0.0)
    # The median is noisy itself, most of all that of a few frames.
    count = np.maximum(good.sum(axis=0), 1)
    limit = limit * np.sqrt(1.0 + math.pi / 2.0 / count)
    outlying: Mask = good & (np.abs(values - median) > limit)
    return outlying


def changed_stars(
    outlying: Mask, excess: FloatArray, median: FloatArray, sigma: float, fwhm: float
) -> Mask:
    """Those of the outliers of a frame that are a star of the median which has changed.

    They lie together, within some FWHM, peak where the star does, and are no sharper than it is
    along any axis: the track of a cosmic ray is, across itself.

    Parameters
    ----------
    outlying : ndarray of bool
        (h, w).
    excess : ndarray
        Frame less median, (h, w), 0 at bad pixels.
    median : ndarray
        Of the frames, without sky, (h, w).
    sigma : float
        Noise of the sky; a star peaks above five times as much.
    fwhm : float
        Of the stars [pixels].
    """
    labels, n = label(outlying, structure=np.ones((3, 3)))
    kept = np.zeros(n + 1, dtype=bool)
    largest, reach = _LARGEST * fwhm + 1.0, max(1, round(0.3 * fwhm))
    for i, box in enumerate(find_objects(labels), 1):
        if max(side.stop - side.start for side in box) > largest:
            continue
        height = np.where(labels[box] == i, np.abs(excess[box]), 0.0)
        y, x = (int(k) for k in np.unravel_index(height.argmax(), height.shape))
        y, x = y + box[0].start, x + box[1].start
        top, left = max(y - reach - 1, 0), max(x - reach - 1, 0)
        around = median[top : y + reach + 2, left : x + reach + 2]
        peak = np.unravel_index(around.argmax(), around.shape)
        py, px = int(peak[0]) + top, int(peak[1]) + left
        if max(abs(py - y), abs(px - x)) > reach or median[py, px] < 5.0 * sigma:
            continue
        noise = _DOUBT * sigma / height.max()
        kept[i] = (_beside(excess, y, x) + noise >= _SHARP * _beside(median, py, px)).all()
    changed: Mask = outlying & kept[labels]
    return changed


def _beside(image: FloatArray, y: int, x: int) -> FloatArray:
    """The fainter neighbour of a pixel along each axis and diagonal, as a share of it, (4,)."""
    rows, columns = y + _AXES[:, :, 0], x + _AXES[:, :, 1]
    inside = (rows >= 0) & (rows < image.shape[0]) & (columns >= 0) & (columns < image.shape[1])
    shares = np.where(inside, image[rows * inside, columns * inside] / image[y, x], np.inf)
    fainter: FloatArray = shares.min(axis=1)
    return fainter
