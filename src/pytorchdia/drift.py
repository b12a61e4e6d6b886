"""What all stars of a difference seem to have gained together, and fluxes without it.

Most stars do not vary. Where the kernel cannot turn the PSF of the reference into that of the
frame, as with undersampled stars or a frame sharper than the reference, P may be off: the
difference then holds the same share of the light of each of them, and a variable is measured too
high by it as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

__all__ = ["BLOCK", "Drift", "block_drift", "ensemble_drift"]

FloatArray = NDArray[np.float64]

BLOCK = 16
"""Side of the blocks whose light is summed [pixels]."""

_LEAST_STARS = 20
_LEAST_SIGNIFICANCE = 20.0  # reference flux over the error of the flux, of a star that is asked
_LEAST_FILLED = 0.5  # share of the pixels of a block that must be used
_LEAST_SHARE, _LEAST_ERRORS = 0.005, 3.0  # of a drift that is believed
_NO_BETTER = 0.005  # of its light: no star counts as measured better than this


@dataclass(frozen=True)
class Drift:
    """The share of their light that constant stars have gained together.

    Attributes
    ----------
    share, error : float
        Relative to the reference.
    n_stars : int
        Stars, or blocks, that were asked.
    """

    share: float = 0.0
    error: float = 0.0
    n_stars: int = 0

    def above(self, share: float, errors: float) -> bool:
        """Whether it is more than a share of the light and than so many of its errors."""
        return abs(self.share) > max(share, errors * self.error) and self.share > -1.0

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
    """The drift of an epoch, as far as it is to be believed: from half a per cent and three errors.

    Parameters
    ----------
    flux, error : array_like
        On the difference [ADU of the reference], (n,); those that are not finite are left out.
    reference_flux : array_like
        [ADU], (n,).
    """
    found = _drift(flux, error, reference_flux)
    return found if found.above(_LEAST_SHARE, _LEAST_ERRORS) else Drift(n_stars=found.n_stars)


def block_drift(strips: Iterable[tuple[Tensor, Tensor, Tensor, Tensor]]) -> Drift:
    """The drift of a difference image, from the sums over blocks of 16 x 16 pixels.

    What the kernel cannot do moves light about within a star and cancels in such a sum.

    Parameters
    ----------
    strips : iterable of (Tensor, Tensor, Tensor, Tensor)
        Difference [ADU], light of the model without its background [ADU], variance of the
        difference [ADU^2], and True where they are used: rows of an image, (rows, w).
    """
    sums = []
    for difference, light, variance, use in strips:
        each = (difference, light, variance, torch.ones_like(difference))
        parts = [_block_sums(torch.where(use, part, 0.0)) for part in each]
        sums.append(torch.stack(parts).reshape(len(parts), -1))
    difference, light, variance, count = torch.cat(sums, dim=1)
    filled = count >= _LEAST_FILLED * BLOCK**2
    flux, reference_flux = difference[filled].numpy(), light[filled].numpy()
    return _drift(flux, variance[filled].sqrt().numpy(), reference_flux)


def _block_sums(image: Tensor) -> Tensor:
    """Sums over whole blocks, in float64."""
    rows, columns = (n // BLOCK for n in image.shape)
    blocks = image[: rows * BLOCK, : columns * BLOCK].reshape(rows, BLOCK, columns, BLOCK)
    return blocks.sum(dim=(1, 3), dtype=torch.float64)


def _drift(flux: ArrayLike, error: ArrayLike, reference_flux: ArrayLike) -> Drift:
    """The weighted median of flux over reference flux; none from fewer than 20 stars.

    A median, so that variables do not count, and no star as if it were known to better than half
    a per cent, so that the brightest do not decide alone.
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
    return Drift(share, math.sqrt(0.5 * math.pi / stars) * scatter, len(ratio))


def _weighted_median(values: FloatArray, weight: FloatArray) -> float:
    order = np.argsort(values)
    below = np.cumsum(weight[order])
    return float(values[order][np.searchsorted(below, 0.5 * below[-1])])
