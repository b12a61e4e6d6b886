"""Measures of how well a model fits (section 3.2)."""

from __future__ import annotations

import math

import torch

from .arrays import Image, Mask

__all__ = ["mean_fit_bias", "mean_fit_variance", "mean_squared_error", "robust_scale", "sample"]

_SAMPLE = 2**18


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
