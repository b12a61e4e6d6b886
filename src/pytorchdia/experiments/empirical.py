"""The empirical PSF of a target and the flux of a star in its difference (section 4.2)."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from ..likelihood import Huber

__all__ = ["psf_half_width", "psf_of", "robust_flux"]

FloatArray = NDArray[np.float64]


def psf_half_width(fwhm: float) -> int:
    """Radius of the stamp of the photometry: 1.5 FWHM, rounded up to an odd number of pixels."""
    radius = math.ceil(1.5 * fwhm)
    return radius + 1 - radius % 2


def psf_of(kernel: FloatArray) -> FloatArray | None:
    """The normalised image of a point from the kernel of a scene of points; None if it has no sum.

    Eq 2 is a correlation, so the image of a point is the kernel turned by half a turn.
    """
    turned = kernel[::-1, ::-1]
    total = float(turned.sum())
    return turned / total if total > 0 and bool(np.isfinite(turned).all()) else None


def robust_flux(difference: FloatArray, psf: FloatArray, variance: FloatArray) -> float:
    """F_diff [ADU]: the factor of ``psf`` that minimises the Huber loss of eq 12.

    Pixels of infinite variance do not count. By iteratively reweighted least squares; the loss is
    convex, so that there is one minimum.
    """
    huber = Huber()
    sigma = np.sqrt(variance)
    template, values = torch.from_numpy(psf / sigma), torch.from_numpy(difference / sigma)
    flux = float((template * values).sum() / (template**2).sum())
    for _ in range(100):
        z = values - flux * template
        weight = huber.derivatives(z, 1).first / torch.where(z == 0, 1.0, z)
        weight = torch.where(z == 0, 1.0, weight)
        better = float((weight * template * values).sum() / (weight * template**2).sum())
        if abs(better - flux) <= 1e-9 * abs(better):
            return better
        flux = better
    return flux
