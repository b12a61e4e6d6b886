"""Pixels in which sources have changed, so that they must not decide on the kernel.

A variable star that takes part in the fit of the kernel bends P, and the kernel where brighter
stars are near; part of its change is then fitted away. Left out, it cannot.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..stars.matched_filter import find_peaks
from ..stars.psf import PSF
from .detections import (
    DetectionFlag,
    Detections,
    filter_difference,
    find_in_difference,
    systematic_share,
    with_systematic,
)

__all__ = ["changed_sources", "footprints"]

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

_THRESHOLD = 5.0  # sigma
_A_STAR = 20.0  # sigma, least light of one that tells how well stars are subtracted
_CHANGED_ALL_THE_SAME = int(DetectionFlag.NEAR_BAD_PIXELS | DetectionFlag.TRAIL_OR_HALO)
_LEAST = 0.3  # sigma of a pixel; a change below it bends nothing


def changed_sources(
    difference: NDArray[np.floating],
    variance: NDArray[np.floating],
    flags: NDArray[np.integer],
    psf: PSF,
    light: FloatArray,
) -> Detections:
    """Sources of a difference that have the shape of the PSF, near bad pixels or in trails or not.

    What looks like a star that is ill subtracted is none of them: to leave the brightest stars out
    of the fit would not make it better.

    Parameters
    ----------
    difference, variance, flags, psf
        As for :func:`~pytorchdia.stars.photometry.measure_fluxes`, on the scale of the reference.
    light : ndarray
        :func:`~pytorchdia.changes.detections.reference_light`, (h, w).
    """
    noise = filter_difference(difference, variance, flags, psf)
    x, y = find_peaks(light / noise.error, _A_STAR, max(1.0, 0.5 * psf.fwhm))
    star = np.rint(y).astype(int), np.rint(x).astype(int)
    share = systematic_share(noise.flux[star], noise.error[star], light[star])
    filtered = with_systematic(noise, psf, light, share)
    found = find_in_difference(difference, variance, flags, psf, filtered, threshold=_THRESHOLD)
    return found.chosen((found.flags & ~_CHANGED_ALL_THE_SAME) == 0)


def footprints(sources: Detections, variance: NDArray[np.floating], psf: PSF) -> BoolArray:
    """True where the light of any source exceeds a third of the noise of a pixel, (h, w).

    Parameters
    ----------
    sources : Detections
    variance : ndarray
        [ADU^2 of the reference], (h, w).
    psf : PSF
    """
    h, w = variance.shape
    hit = np.zeros((h, w), dtype=np.bool_)
    half = psf.half
    stamps = psf.stamps(sources.x, sources.y) if len(sources) else np.empty((0, 1, 1))
    for x, y, flux, stamp in zip(sources.x, sources.y, sources.flux, stamps, strict=True):
        top, left = round(float(y)) - half, round(float(x)) - half
        rows, columns = slice(max(top, 0), top + len(stamp)), slice(max(left, 0), left + len(stamp))
        inside = stamp[rows.start - top : h - top, columns.start - left : w - left]
        hit[rows, columns] |= abs(flux) * inside > _LEAST * np.sqrt(variance[rows, columns])
    return hit
