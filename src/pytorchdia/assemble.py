"""From a solution to what the user gets: the images, the diagnostics, the findings."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .arrays import Flags, Image
from .background import PolynomialBackground
from .drift import BLOCK, Drift, block_drift
from .errors import Finding
from .fisher import Uncertainty
from .frame import Flag, Frame, strips, with_flag
from .metrics import robust_scale, sample
from .noise import NoiseModel
from .objective import Objective
from .solvers import Solution
from .subtraction import Background, Diagnostics, Subtraction
from .tiling import Tiling
from .verdict import findings_of_fit

__all__ = ["Pair", "assemble"]


@dataclass(frozen=True)
class Pair:
    """Two frames that are to be subtracted, and what has been decided about them.

    Attributes
    ----------
    target, reference : Frame
    flags : Flags
        Of the target, with the border and the footprints of bad reference pixels, (h, w).
    level : float
        Taken off the reference [ADU].
    noise : NoiseModel
        Of the target.
    reference_noise : NoiseModel or None
    findings : tuple of Finding
        About the noise.
    """

    target: Frame
    reference: Frame
    flags: Flags = field(repr=False)
    level: float
    noise: NoiseModel
    reference_noise: NoiseModel | None
    findings: tuple[Finding, ...]

    def reference_variance(self, dtype: torch.dtype) -> Image | None:
        """sigma_R^2 [ADU^2], (h, w), 0 at bad pixels; None if it is not known."""
        if self.reference_noise is None:
            return None
        data, flags = self.reference.data, self.reference.flags
        found = torch.empty(data.shape, dtype=dtype)
        for rows in strips(len(data)):
            noise = self.reference_noise.rearranged(partial(_some_rows, rows))
            sigma2 = noise.variance(data[rows].to(torch.float64))
            found[rows] = torch.where(flags[rows] == 0, sigma2, 0.0).to(dtype)
        return found


def _some_rows(rows: slice, image: Tensor) -> Tensor:
    return image[..., rows, :]


def assemble(
    pair: Pair, objective: Objective, solution: Solution, errors: Uncertainty
) -> Subtraction:
    """The subtraction of one pair, but for its settings and its wall time."""
    model, theta, flags = objective.model, solution.theta, pair.flags
    if solution.clipped is not None:
        flags = with_flag(flags, solution.clipped.to(flags.device), Flag.CLIPPED)
    images, residuals, findings = _images_in_range(pair, objective, theta)
    modelled = (flags & Flag.no_model()) == 0
    has_data = modelled & ((flags & Flag.no_data()) == 0)
    has_data &= (images.variance > 0) & (images.variance < torch.inf)
    no_data = ~has_data
    images.difference.masked_fill_(no_data, 0.0)
    images.variance.masked_fill_(no_data, torch.inf)
    images.model.masked_fill_(~modelled, 0.0)
    spoilt = no_data & (flags == 0)
    flags = with_flag(flags, spoilt, Flag.BAD_VARIANCE) if bool(spoilt.any()) else flags
    sky_scale = _sky_scale(images, flags)
    n_k, coefficients = model.kernel.n_params, theta.cpu().numpy()
    drift = _drift(images, flags, model.background, theta[n_k:].cpu())
    covariance = None if errors.covariance is None else errors.covariance.cpu().numpy()
    return Subtraction(
        difference=images.difference.numpy(),
        variance=images.variance.numpy(),
        mask=(flags != 0).numpy(),
        flags=flags.numpy(),
        model=images.model.numpy(),
        kernel=model.kernel_image(theta).cpu().numpy(),
        kernel_covariance=None if covariance is None else covariance[:n_k, :n_k],
        covariance=covariance,
        scale=float(model.scale(theta)),
        scale_error=errors.scale,
        background=Background(
            coefficients[n_k:],
            np.array(errors.background),
            model.background.exponents,
            model.shape,
        ),
        status=solution.status,
        findings=(
            *pair.target.findings, *pair.reference.findings, *pair.findings, *solution.findings,
            *errors.findings, *findings,
            *findings_of_fit(objective, solution, errors, sky_scale, drift),
        ),
        diagnostics=_diagnostics(pair, objective, solution, residuals, sky_scale, drift),
        settings=_settings(pair, objective),
        header=pair.target.meta,
        wcs=pair.target.wcs,
        unit=pair.target.unit,
    )  # fmt: skip


class _Images(NamedTuple):
    """Difference, variance and model, (h, w), on the CPU, before the flags are applied."""

    difference: Tensor
    variance: Tensor
    model: Tensor


@dataclass
class _Residuals:
    """Sums over the used pixels of z = (I - M) / sigma."""

    n: int
    total: float = 0.0
    squares: float = 0.0

    def add(self, z: Tensor) -> None:
        """Add pixels, 0 where they are not used."""
        self.total += float(z.sum())
        self.squares += float((z * z).sum())

    @property
    def mean(self) -> float:
        """MFB, eq 29."""
        return self.total / self.n

    @property
    def variance(self) -> float:
        """MFV, eq 30."""
        return (self.squares - self.n * self.mean**2) / (self.n - 1)


def _images_in_range(
    pair: Pair, objective: Objective, theta: Tensor
) -> tuple[_Images, _Residuals, tuple[Finding, ...]]:
    """The images in the dtype of the fit; in float64 if their variances need its range."""
    images, residuals, (low, high) = _images(pair, objective, theta, objective.dtype)
    if objective.dtype == torch.float64 or not low < high or (low > 1e-36 and high < 1e36):
        return images, residuals, ()
    images, residuals, _ = _images(pair, objective, theta, torch.float64)
    finding = Finding(
        "float64-images",
        f"The variances lie between {low:.1e} and {high:.1e}, beyond the range of float32; the "
        "images are float64.",
    )
    return images, residuals, (finding,)


def _images(
    pair: Pair, objective: Objective, theta: Tensor, dtype: torch.dtype
) -> tuple[_Images, _Residuals, tuple[float, float]]:
    """Difference, variance and model; and the least and the largest variance."""
    model, correlator = objective.model, objective.model.correlator
    tiling = correlator.tiling
    images = _Images(*(torch.zeros(model.shape, dtype=dtype) for _ in range(3)))
    squared_kernel = correlator.kernel_spectrum(model.kernel_image(theta).to(dtype) ** 2)
    residuals, low, high = _Residuals(objective.n_data), math.inf, 0.0
    for i, (tiles, padded) in enumerate(model.models(theta)):
        values = correlator.core(padded)
        variance = objective.noise_of(i).variance(values)
        difference = model.part(objective.target, i) - values
        residuals.add(objective.masked(difference * variance.rsqrt(), i))
        sigma2 = _reference_variance(pair, tiling, tiles, values.new_empty(0, dtype=dtype))
        if sigma2 is not None:  # K^2 (x) sigma_R^2
            through_kernel = correlator.forward(squared_kernel, tiles, instead=sigma2)
            variance = variance + correlator.core(through_kernel).clamp_(min=0.0)
        least, most = map(float, torch.aminmax(variance))
        if not 0.0 < least <= most < math.inf:  # somewhere it is not known
            good = (variance > 0) & (variance < torch.inf)
            least = float(torch.where(good, variance, torch.inf).min())
            most = float(torch.where(good, variance, 0.0).max())
        low, high = min(low, least), max(high, most)
        for image, part in zip(images, (difference, variance, values), strict=True):
            tiling.paste(part.to(device="cpu", dtype=dtype), tiles, image)
    return images, residuals, (low, high)


def _reference_variance(pair: Pair, tiling: Tiling, tiles: slice, like: Tensor) -> Tensor | None:
    """sigma_R^2 [ADU^2] of some tiles with their halo, 0 at bad pixels; None if it is not known."""
    if pair.reference_noise is None:
        return None
    cut = partial(tiling.cut_wide, tiles=tiles)
    noise = pair.reference_noise.rearranged(cut)
    sigma2 = noise.variance(cut(pair.reference.data).to(like))
    return torch.where(cut(pair.reference.flags).to(like.device) == 0, sigma2, 0.0)


def _sky_scale(images: _Images, flags: Flags) -> float:
    """Robust scale of difference / error over the darker half of the used pixels."""
    used = sample(flags) == 0
    difference, variance, model = (sample(image)[used] for image in images)
    if not len(model):
        return math.nan
    dark = model <= model.median()
    return robust_scale((difference / variance.sqrt())[dark])


def _drift(
    images: _Images, flags: Flags, background: PolynomialBackground, coefficients: Tensor
) -> Drift:
    """The share of the model's light that is left in the difference."""
    shape = images.model.shape[0], images.model.shape[1]
    strip_of = partial(_strip, images, flags, background, coefficients, shape)
    return block_drift(map(strip_of, strips(shape[0], rows=16 * BLOCK)))


def _strip(
    images: _Images,
    flags: Flags,
    background: PolynomialBackground,
    coefficients: Tensor,
    shape: tuple[int, int],
    rows: slice,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    light = images.model[rows] - background.image(coefficients, shape, rows)
    return images.difference[rows], light, images.variance[rows], flags[rows] == 0


def _diagnostics(
    pair: Pair,
    objective: Objective,
    solution: Solution,
    residuals: _Residuals,
    sky_scale: float,
    drift: Drift,
) -> Diagnostics:
    freedom = max(objective.n_data - objective.model.n_params, 1)
    return Diagnostics(
        loss=solution.loss,
        steps=solution.steps,
        evaluations=solution.evaluations,
        decrement=solution.decrement,
        mfb=residuals.mean,
        mfv=residuals.variance,
        reduced_chi_square=residuals.squares / freedom,
        residual_scale=sky_scale,
        drift=drift.share,
        drift_error=drift.error,
        n_pixels=objective.n_data,
        n_parameters=objective.model.n_params,
        n_effective=float(objective.model.n_params),
        reference_background=pair.level,
        reference_noise=pair.reference_noise is not None,
        seconds=0.0,
        device=str(objective.model.device),
        dtype=str(objective.dtype).removeprefix("torch."),
    )


def _settings(pair: Pair, objective: Objective) -> dict[str, Any]:
    return {
        "target": pair.target.name,
        "reference": pair.reference.name,
        "kernel": repr(objective.model.kernel),
        "background": repr(objective.model.background),
        "noise": repr(pair.noise),
        "likelihood": repr(objective.likelihood),
        "penalty": repr(objective.penalty),
        "reference noise": repr(pair.reference_noise),
    }
