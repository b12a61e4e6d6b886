"""Point sources in an image by a matched filter: what both stars and variables are found with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter
from scipy.signal import oaconvolve

from ..measure import background_mesh

__all__ = ["Filtered", "disc", "find_peaks", "matched_filter", "smooth_sky"]

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

_LEAST_COVERAGE = 0.5  # share of a PSF's weight that must lie on good pixels


@dataclass(frozen=True)
class Filtered:
    """The flux that a star at each pixel would have, were it alone.

    Attributes
    ----------
    flux : ndarray
        [ADU], (h, w); 0 where too little of the PSF lies on good pixels.
    error : ndarray
        From the noise [ADU], (h, w); infinite there.
    systematic : ndarray, optional
        What else the flux may be off by [ADU], (h, w).
    """

    flux: FloatArray
    error: FloatArray
    systematic: FloatArray | None = None

    @property
    def total_error(self) -> FloatArray:
        """Noise and systematic error together [ADU], (h, w)."""
        return self.error if self.systematic is None else np.hypot(self.error, self.systematic)

    @property
    def significance(self) -> FloatArray:
        """Flux in units of its total error, (h, w)."""
        return self.flux / self.total_error

    @property
    def over_noise(self) -> FloatArray:
        """Flux in units of its noise, (h, w).

        This has its peak where the source is; that of the significance is pushed off bright stars,
        on which the systematic error is largest.
        """
        return self.flux / self.error


def matched_filter(
    image: NDArray[np.floating], variance: NDArray[np.floating], psf: NDArray[np.floating]
) -> Filtered:
    """The flux of a PSF centred on each pixel, by least squares with the weights 1/variance.

    Parameters
    ----------
    image : ndarray
        [ADU], (h, w), without sky.
    variance : ndarray
        [ADU^2], (h, w); infinite where there is no data.
    psf : ndarray
        Stamp with odd sides and sum 1, centred on its central pixel.
    """
    good = np.isfinite(variance)
    weight = np.divide(1.0, variance, out=np.zeros(variance.shape), where=good)
    psf = np.asarray(psf, dtype=np.float64)
    flipped = psf[::-1, ::-1]
    signal = oaconvolve(np.where(good, image, 0.0) * weight, flipped, mode="same")
    unit = float(weight.max(initial=0.0)) or 1.0  # so that rounding is told from no weight
    information = oaconvolve(weight / unit, flipped**2, mode="same")
    coverage = oaconvolve(good.astype(np.float64), flipped**2, mode="same") / (psf**2).sum()
    usable = (coverage > _LEAST_COVERAGE) & (information > 1e-12)
    information = np.where(usable, information, 1.0) * unit
    return Filtered(
        np.where(usable, signal / information, 0.0),
        np.where(usable, 1.0 / np.sqrt(information), np.inf),
    )


def disc(radius: float) -> BoolArray:
    """True within a radius [pixels] of the middle: a footprint for filters."""
    reach = np.arange(-int(radius), int(radius) + 1)
    inside: BoolArray = np.hypot(reach[:, None], reach) <= radius
    return inside


def find_peaks(
    significance: NDArray[np.floating], threshold: float, radius: float
) -> tuple[FloatArray, FloatArray]:
    """Positions (x, y) of the local maxima above a threshold, to a fraction of a pixel.

    Parameters
    ----------
    significance : ndarray
        (h, w), finite.
    threshold : float
        Least value of a maximum.
    radius : float
        No two maxima lie closer than this [pixels].
    """
    highest = maximum_filter(significance, footprint=disc(radius), mode="constant", cval=-np.inf)
    y, x = np.nonzero((significance >= threshold) & (significance == highest))
    h, w = significance.shape
    inside = (y > 0) & (y < h - 1) & (x > 0) & (x < w - 1)
    y, x = y[inside], x[inside]
    return (
        x + _vertex(significance[y, x - 1], significance[y, x], significance[y, x + 1]),
        y + _vertex(significance[y - 1, x], significance[y, x], significance[y + 1, x]),
    )


def _vertex(before: FloatArray, at: FloatArray, after: FloatArray) -> FloatArray:
    """Where the parabola through three neighbours has its top, from the middle one [pixels]."""
    curvature = 2.0 * at - before - after
    slope = 0.5 * (after - before)
    offset = np.divide(slope, curvature, out=np.zeros_like(slope), where=curvature > 0)
    clipped: FloatArray = np.clip(offset, -0.5, 0.5)
    return clipped


def smooth_sky(data: FloatArray, bad: BoolArray, box: int) -> FloatArray:
    """The slowly varying sky [ADU], (h, w): medians in boxes of ``box`` pixels, without stars."""
    return background_mesh(data, bad, max(8, min(box, min(data.shape) // 2)))
