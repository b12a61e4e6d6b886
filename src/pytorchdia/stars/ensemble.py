"""What all stars of an epoch seem to have gained together, and fluxes without it.

Most stars do not vary. Where the kernel cannot turn the PSF of the reference into that of the
frame, as with undersampled stars or a frame sharper than the reference, the PSF fit to the
difference finds the same share of its light at each of them, and measures a variable too high by
it as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Drift", "ensemble_drift"]

FloatArray = NDArray[np.float64]

_LEAST_STARS = 20
_LEAST_SIGNIFICANCE = 20.0  # reference flux over the error of the flux, of a star that is asked
_LEAST_SHARE, _LEAST_ERRORS = 0.005, 3.0  # of a drift that is believed
_NO_BETTER = 0.005  # of its light: no star counts as measured better than this


@dataclass(frozen=True)
class Drift:
    """The share of their light that constant stars have gained together.

    Attributes
    ----------
    share, error : float
        Relative to the reference; 0 where there is no drift to be believed.
    n_stars : int
        That were asked.
    """

    share: float = 0.0
    error: float = 0.0
    n_stars: int = 0

    def removed(
        self, flux: FloatArray, error: FloatArray, constant: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Fluxes on the difference without the drift, and their errors.

        With F the constant light and d the share, what is measured is (1 + d) (F + f) - F.

        Parameters
        ----------
        flux, error : ndarray
            On the difference [ADU of the reference], (n,).
        constant : ndarray
            Flux on the reference [ADU], (n,).
        """
        gain = 1.0 + self.share
        return (flux - self.share * constant) / gain, error / gain


def ensemble_drift(flux: ArrayLike, error: ArrayLike, reference_flux: ArrayLike) -> Drift:
    """The drift of an epoch: the weighted median of flux over reference flux.

    A median, so that variables do not count, and no star as if it were known to better than half
    a per cent, so that the brightest do not decide alone. It is believed from half a per cent and
    three of its errors on, and with 20 stars.

    Parameters
    ----------
    flux, error : array_like
        On the difference [ADU of the reference], (n,); those that are not finite are left out.
    reference_flux : array_like
        [ADU], (n,).
    """
    f, e, r = (np.asarray(values, dtype=np.float64) for values in (flux, error, reference_flux))
    with np.errstate(invalid="ignore"):
        good = np.isfinite(f) & (e > 0) & np.isfinite(r) & (r > _LEAST_SIGNIFICANCE * e)
    if good.sum() < _LEAST_STARS:
        return Drift(n_stars=int(good.sum()))
    ratio, weight = f[good] / r[good], 1.0 / ((e[good] / r[good]) ** 2 + _NO_BETTER**2)
    share = _weighted_median(ratio, weight)
    scatter = 1.4826 * _weighted_median(np.abs(ratio - share), weight)
    stars = weight.sum() ** 2 / (weight**2).sum()  # as many of equal weight
    its_error = math.sqrt(0.5 * math.pi / stars) * scatter
    believed = abs(share) > max(_LEAST_SHARE, _LEAST_ERRORS * its_error) and share > -1.0
    if not believed:
        return Drift(n_stars=len(ratio))
    return Drift(share, its_error, len(ratio))


def _weighted_median(values: FloatArray, weight: FloatArray) -> float:
    order = np.argsort(values)
    below = np.cumsum(weight[order])
    return float(values[order][np.searchsorted(below, 0.5 * below[-1])])
