"""A difference of a run as it is measured: in units of the reference, with the PSF of its epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from ..regions import FrameDifference
from ..stars.catalogue import variance_of
from ..stars.photometry import Fluxes, measure_fluxes, target_variance
from ..stars.psf import RegionalPSF
from .frame_steps import reference_of
from .images import read_difference
from .settings import Settings

__all__ = ["EpochDifference"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class EpochDifference:
    """A difference in units of the reference, each region divided by its own P.

    Attributes
    ----------
    stored : FrameDifference
        As it lies in the run folder, in units of the target.
    psf : RegionalPSF
        The reference's PSF convolved with the kernel of each region (section 4.2); by itself where
        P is not positive, so that there is no data.
    difference : ndarray
        [ADU of the reference], (h, w), 0 where there is no data.
    variance, own : ndarray
        Of the difference, and the target's own part of it [ADU^2 of the reference], (h, w),
        infinite where there is no data.
    light : ndarray
        What a star at each pixel of the reference would have for a flux [ADU], (h, w).
    """

    stored: FrameDifference
    psf: RegionalPSF
    difference: FloatArray
    variance: FloatArray
    own: FloatArray
    light: FloatArray

    @classmethod
    def of(cls, stored: FrameDifference, run: Path) -> EpochDifference:
        """From a difference, with the reference and the PSF of a run."""
        reference = reference_of(run)
        models = [
            reference.psf.convolved(fit.kernel) if fit.scale > 0 else reference.psf
            for fit in stored.fits
        ]
        images = _on_reference_scale(stored, variance_of(reference.frame))
        return cls(stored, RegionalPSF(models, stored.region_of), *images, reference.light)

    @classmethod
    def read(cls, name: str, run: Path) -> EpochDifference:
        """That of a frame, from the run folder."""
        return cls.of(read_difference(run / "differences" / f"{name}_diff.fits"), run)

    def light_at(self, x: FloatArray, y: FloatArray) -> FloatArray:
        """What the reference has at each place, as the flux of a star there [ADU], (n,)."""
        return np.asarray(map_coordinates(self.light, [y, x], order=3, mode="nearest"))

    def fluxes(self, x: FloatArray, y: FloatArray, settings: Settings) -> Fluxes:
        """The flux at each place, all at once.

        What the reference scatters by is the same in all epochs and not in the errors.
        """
        chosen = settings.photometry
        return measure_fluxes(
            self.difference, self.own, self.stored.flags, self.psf, x, y,
            sky_spacing=chosen.sky_spacing, robust=chosen.robust,
        )  # fmt: skip


def _on_reference_scale(
    stored: FrameDifference, theirs: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Difference, variance and the target's own variance, from the variance of the reference."""
    difference = stored.difference.astype(np.float64)
    variance = stored.variance.astype(np.float64)
    own = np.full(variance.shape, np.inf)
    for fit in stored.fits:
        here = (fit.region.rows, fit.region.columns)
        scale = fit.scale if fit.scale > 0 else math.inf
        half_y, half_x = (n // 2 for n in fit.kernel.shape)
        top, left = max(0, here[0].start - half_y), max(0, here[1].start - half_x)
        wide = (slice(top, here[0].stop + half_y), slice(left, here[1].stop + half_x))
        part = target_variance(stored.variance[wide], fit.kernel, theirs[wide])
        inside = part[
            here[0].start - top : here[0].stop - top, here[1].start - left : here[1].stop - left
        ]
        difference[here] /= scale
        variance[here] /= scale**2
        own[here] = inside / scale**2
    bad = ~np.isfinite(variance) | (variance <= 0)
    difference[bad], variance[bad], own[bad] = 0.0, np.inf, np.inf
    return difference, variance, own
