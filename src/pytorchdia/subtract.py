"""The one call: :func:`subtract`, target minus matched reference."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from .arrays import Flags, Image, Mask
from .background import PolynomialBackground
from .checks import (
    require_enough_pixels,
    require_kinds,
    require_same_shape,
    require_structure,
    require_variance,
    usable_device,
    usable_dtype,
)
from .errors import Finding, InputError
from .fisher import Uncertainty, uncertainty
from .frame import Flag, Frame, grow, outside, with_flag
from .image_model import ImageModel
from .io import as_frame
from .kernel import DeltaKernel, KernelModel
from .likelihood import Gaussian, Likelihood
from .measure import default_noise, reference_level
from .metrics import mean_fit_bias, mean_fit_variance, robust_scale
from .noise import NoiseModel
from .objective import Objective
from .penalty import Penalty
from .solvers import Newton, Solution, Solver
from .solvers.base import OnStep
from .subtraction import Background, Diagnostics, Subtraction
from .verdict import findings_of_fit, warn_of

__all__ = ["subtract"]


def subtract(
    target: Any,
    reference: Any,
    *,
    kernel: KernelModel = DeltaKernel(19),
    background: PolynomialBackground = PolynomialBackground(0),
    noise: NoiseModel | None = None,
    likelihood: Likelihood = Gaussian(),
    penalty: Penalty | None = None,
    solver: Solver = Newton(),
    mask: Any = None,
    reference_noise: NoiseModel | None = None,
    reference_background: float | None = None,
    covariance: bool = True,
    device: str | torch.device = "auto",
    dtype: torch.dtype = torch.float32,
    on_step: OnStep | None = None,
) -> Subtraction:
    """Subtract the matched reference from the target: D = I - (R (x) K + B).

    Parameters
    ----------
    target, reference : array_like, Tensor, NDData, HDU, HDUList, str, Path or Frame
        I and R: two images of one shape, (h, w), on one pixel grid. See
        :func:`~pytorchdia.io.as_frame` for what each may be. The reference should be the sharper.
    kernel : KernelModel
        K (eq 2).
    background : PolynomialBackground
        B (eq 18).
    noise : NoiseModel, optional
        sigma^2(M) of the target (eq 6, 7). None takes the target's own uncertainty, or eq 6 with
        the gain and read noise of its header, or a guess from its sky, which is reported with a
        NoiseWarning.
    likelihood : Likelihood
        Gaussian (eq 8), or a robust one (section 2.4).
    penalty : Penalty, optional
        Regularises the kernel (section 2.7).
    solver : Solver
        Newton, AdamLBFGS or NormalEquations.
    mask : array_like, optional
        (h, w), True = ignore this pixel of the target.
    reference_noise : NoiseModel, optional
        Noise of the reference, for the variance of the difference only. None takes the
        reference's own uncertainty or its header's gain and read noise; if it has neither, the
        reference counts as free of noise.
    reference_background : float, optional
        Level [ADU] to take off the reference before the fit. None takes the median of its good
        pixels, as the paper does.
    covariance : bool
        False leaves out ``kernel_covariance``, ``covariance`` and their validity tests, which cost
        more than the fit of a large frame. P and the background keep their errors.
    device : str or torch.device
        "auto" takes a CUDA device if there is one.
    dtype : torch.dtype
        float32 or float64: precision of the heavy work and of the images returned. Parameters,
        sums and linear algebra are float64 in either case.
    on_step : callable, optional
        Called with a :class:`~pytorchdia.solvers.Step` after every step of the solver.

    Returns
    -------
    Subtraction

    Raises
    ------
    InputError
        The input cannot be used; the message says why and what to try. Its subclasses are drawn in
        :mod:`pytorchdia.errors`. A fit that does not converge does not raise: see ``status``.
    ReadError
        A path cannot be read.
    """
    started = time.perf_counter()
    require_kinds(kernel, background, noise, likelihood, penalty, solver, reference_noise)
    target_frame, reference_frame = as_frame(target, mask=mask), as_frame(reference)
    require_same_shape(target_frame, reference_frame)
    flags = _combined_flags(target_frame, reference_frame, kernel)
    require_structure(target_frame, flags == 0, "target")
    require_structure(reference_frame, ~reference_frame.mask, "reference")
    level = _reference_level(reference_frame, reference_background)
    noise_findings: tuple[Finding, ...] = ()
    if noise is None:
        noise, noise_findings = default_noise(target_frame)
    if reference_noise is None:
        reference_noise, more = _known_noise(reference_frame)
        noise_findings += more

    where, precision = usable_device(device), usable_dtype(dtype)
    flat_reference = torch.where(reference_frame.mask, 0.0, reference_frame.data - level)
    objective = Objective(
        ImageModel(flat_reference.to(where), kernel, background),
        target_frame.data.to(where), (flags == 0).to(where), noise, likelihood, penalty, precision,
    )  # fmt: skip
    require_enough_pixels(objective, target_frame, reference_frame)
    require_variance(objective)

    solution = solver.solve(objective, on_step=on_step)
    if solution.clipped is not None:
        flags = with_flag(flags, solution.clipped.to(flags.device), Flag.CLIPPED)
        objective = replace(objective, use=objective.use & ~solution.clipped)
    errors = uncertainty(objective, solution.theta, full=covariance)
    result = _assemble(
        objective, solution, errors, target_frame, reference_frame, reference_noise, level, flags,
        noise_findings,
    )  # fmt: skip
    result = replace(
        result,
        diagnostics=replace(result.diagnostics, seconds=time.perf_counter() - started),
        settings={**result.settings, "solver": repr(solver)},
    )
    warn_of(result.findings)
    return result


def _reference_level(reference: Frame, given: float | None) -> float:
    if given is None:
        return reference_level(reference)
    if not math.isfinite(given):
        raise InputError(f"The reference background must be a finite number, got {given}.")
    return float(given)


def _combined_flags(target: Frame, reference: Frame, kernel: KernelModel) -> torch.Tensor:
    """The target's flags, plus the border and the footprints of bad reference pixels."""
    flags = with_flag(target.flags, outside(target.shape, kernel.half_shape), Flag.BORDER)
    return with_flag(flags, grow(reference.mask, kernel.half_shape), Flag.REFERENCE)


def _known_noise(reference: Frame) -> tuple[NoiseModel | None, tuple[Finding, ...]]:
    """The reference's noise if it is known, never a guess."""
    if reference.variance is None and reference.detector.gain is None:
        finding = Finding(
            "reference-noise-unknown",
            f"The noise of the reference ({reference.name}) is not known and is not in the "
            "variance of the difference; give its gain and read noise, or its variance.",
        )
        return None, (finding,)
    noise, findings = default_noise(reference)
    return noise, findings


def _assemble(
    objective: Objective,
    solution: Solution,
    errors: Uncertainty,
    target: Frame,
    reference: Frame,
    reference_noise: NoiseModel | None,
    level: float,
    flags: torch.Tensor,
    noise_findings: tuple[Finding, ...],
) -> Subtraction:
    model, theta = objective.model, solution.theta
    image = model.mv(theta)
    normalised = (objective.target - image) / objective.variance(image).sqrt()
    variance = objective.noise.variance(image)
    if reference_noise is not None:
        variance = variance + _reference_variance(model, theta, reference, reference_noise)
    images = _images(image.cpu(), variance.cpu(), target, flags)
    flags = with_flag(flags, ~images.has_data & (flags == 0), Flag.BAD_VARIANCE)
    use = objective.use.cpu()
    dark = use & (images.model <= images.model[use].median())
    sky_scale = robust_scale((images.difference / images.variance.sqrt())[dark])
    out, range_findings = _image_dtype(objective.dtype, images.variance[images.has_data])
    n_k, coefficients = model.kernel.n_params, theta.cpu().numpy()
    covariance = None if errors.covariance is None else errors.covariance.cpu().numpy()
    return Subtraction(
        difference=images.difference.numpy().astype(out),
        variance=images.variance.numpy().astype(out),
        mask=(flags != 0).numpy(),
        flags=flags.numpy(),
        model=images.model.numpy().astype(out),
        kernel=model.kernel_image(theta).cpu().numpy(),
        kernel_covariance=None if covariance is None else covariance[:n_k, :n_k],
        covariance=covariance,
        scale=float(model.scale(theta)),
        scale_error=errors.scale,
        background=Background(
            coefficients[n_k:],
            np.array(errors.background),
            model.background.exponents,
            model.background_image(theta).cpu().numpy().astype(out),
        ),
        status=solution.status,
        findings=(
            *target.findings, *reference.findings, *noise_findings, *solution.findings,
            *errors.findings, *range_findings,
            *findings_of_fit(objective, solution, errors, normalised, sky_scale),
        ),
        diagnostics=_diagnostics(
            objective, solution, normalised, sky_scale, level, reference_noise is not None
        ),
        settings=_settings(objective, target, reference, reference_noise),
        header=target.meta,
        wcs=target.wcs,
        unit=target.unit,
    )  # fmt: skip


class _Images(NamedTuple):
    difference: Image
    variance: Image
    model: Image
    has_data: Mask


def _images(image: Image, variance: Image, target: Frame, flags: Flags) -> _Images:
    """Difference, variance and model at full size, on the CPU, float64; 0 and inf without data."""
    modelled = (flags & Flag.no_model()) == 0
    has_data = modelled & ((flags & (Flag.NON_FINITE | Flag.BAD_VARIANCE)) == 0)
    has_data &= torch.isfinite(variance) & (variance > 0)
    return _Images(
        difference=torch.where(has_data, target.data - image, 0.0),
        variance=torch.where(has_data, variance, torch.inf),
        model=torch.where(modelled, image, 0.0),
        has_data=has_data,
    )


def _diagnostics(
    objective: Objective,
    solution: Solution,
    normalised: Image,
    sky_scale: float,
    level: float,
    reference_noise: bool,
) -> Diagnostics:
    chi_square = float((normalised[objective.use] ** 2).sum())
    return Diagnostics(
        loss=solution.loss,
        steps=solution.steps,
        evaluations=solution.evaluations,
        decrement=solution.decrement,
        mfb=mean_fit_bias(normalised, objective.use),
        mfv=mean_fit_variance(normalised, objective.use),
        reduced_chi_square=chi_square / max(objective.n_data - objective.model.n_params, 1),
        residual_scale=sky_scale,
        n_pixels=objective.n_data,
        n_parameters=objective.model.n_params,
        reference_background=level,
        reference_noise=reference_noise,
        seconds=0.0,
        device=str(objective.target.device),
        dtype=str(objective.dtype).removeprefix("torch."),
    )


def _settings(
    objective: Objective, target: Frame, reference: Frame, reference_noise: NoiseModel | None
) -> dict[str, str]:
    return {
        "target": target.name,
        "reference": reference.name,
        "kernel": repr(objective.model.kernel),
        "background": repr(objective.model.background),
        "noise": repr(objective.noise),
        "likelihood": repr(objective.likelihood),
        "penalty": repr(objective.penalty),
        "reference noise": repr(reference_noise),
    }


def _reference_variance(
    model: ImageModel, theta: torch.Tensor, reference: Frame, noise: NoiseModel
) -> Image:
    """The reference's noise through the kernel: K^2 (x) sigma_R^2 [ADU^2]."""
    device = model.reference.device
    sigma2 = noise.variance(reference.data.to(device))
    sigma2 = torch.where(reference.mask.to(device), 0.0, sigma2)
    through = ImageModel(sigma2, model.kernel, PolynomialBackground(0))
    return through.convolve(model.kernel_image(theta) ** 2).clamp(min=0.0)


def _image_dtype(
    dtype: torch.dtype, variance: torch.Tensor
) -> tuple[type[np.floating[Any]], tuple[Finding, ...]]:
    """float32 for the images of a float32 fit, unless their variances do not fit into it."""
    if dtype == torch.float64:
        return np.float64, ()
    if not len(variance) or (float(variance.min()) > 1e-36 and float(variance.max()) < 1e36):
        return np.float32, ()
    finding = Finding(
        "float64-images",
        f"The variances lie between {float(variance.min()):.1e} and {float(variance.max()):.1e}, "
        "beyond the range of float32; the images are float64.",
    )
    return np.float64, (finding,)
