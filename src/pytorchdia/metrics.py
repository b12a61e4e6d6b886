"""Measures of how well a model fits, and of its photometry (sections 3.2 and 4.3, Table 1)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .arrays import Image, Mask

__all__ = [
    "FWHM_PER_SIGMA",
    "Photometry",
    "least_flux_error",
    "mean_fit_bias",
    "mean_fit_variance",
    "mean_photometric_bias",
    "mean_photometric_variance",
    "mean_squared_error",
    "psf_flux",
    "robust_scale",
    "sample",
    "within_robust_cut",
]

Values = Float[Tensor, " n"]
Chosen = Bool[Tensor, " n"]

_SAMPLE = 2**18

FWHM_PER_SIGMA = 2.0 * math.sqrt(2.0 * math.log(2.0))
"""Full width at half maximum of a Gaussian in units of its standard deviation."""


def mean_squared_error(model: Image, truth: Image, use: Mask) -> float:
    """MSE [ADU^2] against the noiseless target (eq 28). ``use`` is True at the pixels to count."""
    return float(((model - truth)[use] ** 2).mean())


def mean_fit_bias(normalised: Image, use: Mask) -> float:
    """MFB: the mean of (I - M) / sigma (eq 29)."""
    return float(normalised[use].mean(dtype=torch.float64))


def mean_fit_variance(normalised: Image, use: Mask) -> float:
    """MFV: the variance of (I - M) / sigma about its mean (eq 30)."""
    return float(normalised[use].to(torch.float64).var(correction=1))


def robust_scale(values: torch.Tensor) -> float:
    """Standard deviation from the median absolute deviation: 1.4826 MAD."""
    return float(1.4826 * (values - values.median()).abs().median())


def sample(image: torch.Tensor) -> torch.Tensor:
    """Every n-th row and column of images (..., h, w), from which a median is taken quickly.

    Frames of up to 2^18 pixels are left as they are; of larger ones 2^16 pixels or more remain, so
    that a median keeps its place to half a percent of the scatter.
    """
    step = math.ceil(math.sqrt(image.shape[-2] * image.shape[-1] / _SAMPLE))
    return image[..., ::step, ::step]


class Photometry(NamedTuple):
    """A PSF fit to a difference image: flux, its error, and the constant beneath [ADU]."""

    flux: float
    error: float
    level: float


def psf_flux(difference: Image, psf: Image, variance: Image) -> Photometry:
    """Scale a PSF plus a constant to a stamp of a difference image (section 3.2 iii).

    Parameters
    ----------
    difference : Image
        Stamp [ADU], (h, w).
    psf : Image
        Normalised PSF on the same pixels.
    variance : Image
        [ADU^2]; infinite where a pixel is not to count.
    """
    weight = torch.where(variance < torch.inf, 1.0 / variance, 0.0).to(torch.float64).flatten()
    columns = torch.stack([psf.flatten(), torch.ones_like(psf).flatten()], dim=1).to(torch.float64)
    values = torch.where(weight > 0, difference.flatten().to(torch.float64), 0.0)
    information = columns.T @ (weight[:, None] * columns)
    covariance = torch.linalg.inv(information)
    flux, level = covariance @ (columns.T @ (weight * values))
    return Photometry(float(flux), float(covariance[0, 0].sqrt()), float(level))


def least_flux_error(psf: Image, variance: Image, scale: float = 1.0) -> float:
    """sigma_min of eq 31: the least error of a PSF-fitted flux on the reference's scale [ADU].

    ``psf`` is the true normalised PSF of the target, ``variance`` the true one [ADU^2] and
    ``scale`` the true P.
    """
    return float((psf**2 / variance).sum(dtype=torch.float64) ** -0.5) / scale


def mean_photometric_bias(fluxes: Values) -> float:
    """MPB: the mean of F_measured / sigma_min over simulations (eq 32)."""
    return float(fluxes.mean(dtype=torch.float64))


def mean_photometric_variance(fluxes: Values) -> float:
    """MPV: the variance of F_measured / sigma_min about its mean (eq 33)."""
    return float(fluxes.to(torch.float64).var(correction=1))


def within_robust_cut(fluxes: Values, limit: float = 4.5) -> Chosen:
    """True for values within ``limit`` sigma_MAD (eq 34) of their median."""
    return (fluxes - fluxes.median()).abs() <= limit * robust_scale(fluxes)
