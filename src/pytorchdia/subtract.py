"""The one call: :func:`subtract`, target minus matched reference."""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from .arrays import Image, Mask
from .background import PolynomialBackground
from .errors import (
    ConvergenceWarning,
    CovarianceWarning,
    Finding,
    FlatImageError,
    InputError,
    NoiseModelError,
    NoiseWarning,
    PyTorchDIAWarning,
    ShapeError,
    TooFewPixelsError,
)
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
from .solvers import Newton, Solution, Solver, flat_start
from .solvers.base import OnStep
from .subtraction import Background, Diagnostics, Subtraction

__all__ = ["require_same_shape", "subtract"]

_SKY_SCALE = (0.8, 1.25)  # robust scale of clean residuals beyond which the errors are doubted


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
    _require_kinds(kernel, background, noise, likelihood, penalty, solver, reference_noise)
    target_frame, reference_frame = as_frame(target, mask=mask), as_frame(reference)
    require_same_shape(target_frame, reference_frame)
    flags = _combined_flags(target_frame, reference_frame, kernel)
    _require_structure(target_frame, flags == 0, "target")
    _require_structure(reference_frame, ~reference_frame.mask, "reference")
    level = _reference_level(reference_frame, reference_background)
    noise_findings: tuple[Finding, ...] = ()
    if noise is None:
        noise, noise_findings = default_noise(target_frame)
    if reference_noise is None:
        reference_noise, more = _known_noise(reference_frame)
        noise_findings += more

    where, precision = _device(device), _precision(dtype)
    flat_reference = torch.where(reference_frame.mask, 0.0, reference_frame.data - level)
    objective = Objective(
        ImageModel(flat_reference.to(where), kernel, background),
        target_frame.data.to(where), (flags == 0).to(where), noise, likelihood, penalty, precision,
    )  # fmt: skip
    _require_enough_pixels(objective, target_frame, reference_frame)
    _check_variance(objective)

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
    _warn(result)
    return result


def require_same_shape(target: Frame, reference: Frame) -> None:
    """Raise a ShapeError unless both frames have the same size."""
    if target.shape != reference.shape:
        raise ShapeError(
            f"The target ({target.name}) has shape {target.shape} but the reference "
            f"({reference.name}) has shape {reference.shape}; register and trim them to one pixel "
            "grid first."
        )


def _require_kinds(
    kernel: Any,
    background: Any,
    noise: Any,
    likelihood: Any,
    penalty: Any,
    solver: Any,
    reference_noise: Any,
) -> None:
    """Raise an InputError for a number or a name where an object is needed."""
    for name, value, kind, optional in (
        ("kernel", kernel, KernelModel, False),
        ("background", background, PolynomialBackground, False),
        ("noise", noise, NoiseModel, True),
        ("likelihood", likelihood, Likelihood, False),
        ("penalty", penalty, Penalty, True),
        ("solver", solver, Solver, False),
        ("reference_noise", reference_noise, NoiseModel, True),
    ):
        if not isinstance(value, kind) and not (optional and value is None):
            raise InputError(
                f"{name} must be a {kind.__name__}, got {value!r}; for instance "
                f"subtract(target, reference, {name}={_EXAMPLES[name]})."
            )


_EXAMPLES = {
    "kernel": "DeltaKernel(19)",
    "background": "PolynomialBackground(1)",
    "noise": "CCDNoise(read_noise=5.0, gain=1.5)",
    "likelihood": "Huber()",
    "penalty": "LaplacianPenalty(1.0)",
    "solver": "Newton()",
    "reference_noise": "CCDNoise(read_noise=5.0, gain=1.5)",
}


def _reference_level(reference: Frame, given: float | None) -> float:
    if given is None:
        return reference_level(reference)
    if not math.isfinite(given):
        raise InputError(f"The reference background must be a finite number, got {given}.")
    return float(given)


def _precision(dtype: torch.dtype) -> torch.dtype:
    if dtype not in (torch.float32, torch.float64):
        raise InputError(f"dtype must be torch.float32 or torch.float64, got {dtype}.")
    return dtype


def _device(device: str | torch.device) -> torch.device:
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.zeros(1, dtype=torch.float64, device=chosen)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise InputError(
            f"The device {str(device)!r} cannot be used ({reason}); use 'auto' or 'cpu'."
        ) from error
    return chosen


def _combined_flags(target: Frame, reference: Frame, kernel: KernelModel) -> torch.Tensor:
    """The target's flags, plus the border and the footprints of bad reference pixels."""
    flags = with_flag(target.flags, outside(target.shape, kernel.half_shape), Flag.BORDER)
    return with_flag(flags, grow(reference.mask, kernel.half_shape), Flag.REFERENCE)


def _require_structure(frame: Frame, use: Mask, role: str) -> None:
    """An image of one single value tells nothing of a kernel."""
    values = frame.data[use]
    if len(values) and float(values.min()) == float(values.max()):
        saturated = int(((frame.flags & Flag.SATURATED) != 0).sum())
        raise FlatImageError(
            f"The {role} ({frame.name}) is constant: all its {len(values)} usable pixels are "
            f"{float(values[0]):g} ({saturated} more are taken as saturated). Check that the right "
            "image was read, and the saturation level."
        )


def _require_enough_pixels(objective: Objective, target: Frame, reference: Frame) -> None:
    n_data, n_params = objective.n_data, objective.model.n_params
    if n_data > n_params:
        return
    h, w = target.shape
    raise TooFewPixelsError(
        f"Only {n_data} of {h * w} pixels can be used and the fit has {n_params} parameters; the "
        f"target has {int(target.mask.sum())} bad pixels and the reference "
        f"{int(reference.mask.sum())}, each of which takes out a whole kernel footprint. Use a "
        "smaller kernel, or check the masks and the saturation level."
    )


def _check_variance(objective: Objective) -> None:
    """The noise model must give a variance at the target's values and where the fit starts."""
    for model in (objective.target, objective.model.mv(flat_start(objective))):
        variance = objective.noise.variance(model)
        if variance.shape != model.shape:
            raise NoiseModelError(
                f"The noise model gives a variance of shape {tuple(variance.shape)} for an image "
                f"of shape {tuple(model.shape)}; it must work pixel by pixel."
            )
        bad = objective.use & ~((variance > 0) & torch.isfinite(variance))
        if bad.any():
            raise NoiseModelError(
                f"The noise model gives {int(bad.sum())} of {objective.n_data} used pixels a "
                "variance that is not positive and finite; check gain, read noise and variance "
                "image, and give a noise model of your own a floor."
            )


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
    modelled = (flags & Flag.no_model()) == 0
    image = model.mv(theta)
    fit_variance = objective.variance(image)
    normalised = (objective.target - image) / fit_variance.sqrt()
    chi_square = float((normalised[objective.use] ** 2).sum())

    variance = objective.noise.variance(image)
    if reference_noise is not None:
        variance = variance + _reference_variance(model, theta, reference, reference_noise)
    has_data = modelled & ((flags & (Flag.NON_FINITE | Flag.BAD_VARIANCE)) == 0)
    has_data &= torch.isfinite(variance.cpu()) & (variance.cpu() > 0)
    image, variance = image.cpu(), variance.cpu()
    difference = torch.where(has_data, target.data - image, 0.0)
    variance = torch.where(has_data, variance, torch.inf)

    use = objective.use.cpu()
    dark = use & (image <= image[use].median())
    scale_of_sky = robust_scale((difference / variance.sqrt())[dark])
    out, range_findings = _image_dtype(objective.dtype, variance[has_data])
    findings = (
        *target.findings, *reference.findings, *noise_findings, *solution.findings,
        *errors.findings, *range_findings,
        *_findings_of_fit(objective, solution, errors, normalised, scale_of_sky),
    )  # fmt: skip
    n_k = model.kernel.n_params
    covariance = None if errors.covariance is None else errors.covariance.cpu().numpy()
    coefficients = theta.cpu().numpy()
    dof = objective.n_data - model.n_params
    return Subtraction(
        difference=difference.numpy().astype(out),
        variance=variance.numpy().astype(out),
        mask=(flags != 0).numpy(),
        flags=flags.numpy(),
        model=torch.where(modelled, image, 0.0).numpy().astype(out),
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
        findings=findings,
        diagnostics=Diagnostics(
            loss=solution.loss,
            steps=solution.steps,
            evaluations=solution.evaluations,
            decrement=solution.decrement,
            mfb=mean_fit_bias(normalised, objective.use),
            mfv=mean_fit_variance(normalised, objective.use),
            reduced_chi_square=chi_square / dof,
            residual_scale=scale_of_sky,
            n_pixels=objective.n_data,
            n_parameters=model.n_params,
            reference_background=level,
            reference_noise=reference_noise is not None,
            seconds=0.0,
            device=str(objective.target.device),
            dtype=str(objective.dtype).removeprefix("torch."),
        ),
        settings={
            "target": target.name,
            "reference": reference.name,
            "kernel": repr(model.kernel),
            "background": repr(model.background),
            "noise": repr(objective.noise),
            "likelihood": repr(objective.likelihood),
            "penalty": repr(objective.penalty),
            "reference noise": repr(reference_noise),
        },
        header=target.meta,
        wcs=target.wcs,
        unit=target.unit,
    )


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


def _findings_of_fit(
    objective: Objective,
    solution: Solution,
    errors: Uncertainty,
    normalised: Image,
    residual_scale: float,
) -> tuple[Finding, ...]:
    found = (
        _status_finding(objective, solution, normalised),
        _scale_finding(objective, solution, errors),
        _residual_finding(residual_scale),
    )
    return tuple(finding for finding in found if finding is not None)


def _status_finding(objective: Objective, solution: Solution, normalised: Image) -> Finding | None:
    if solution.status.ok:
        return None
    sizes = torch.where(objective.use, normalised.abs().nan_to_num(nan=torch.inf), 0.0)
    y, x = divmod(int(sizes.argmax()), sizes.shape[1])
    message = (
        f"{solution.status.value} The pixel furthest from the model is x = {x}, y = {y}, by "
        f"{float(sizes.max()):.3g} sigma."
    )
    return Finding(solution.status.name.lower().replace("_", "-"), message, "warning")


def _scale_finding(objective: Objective, solution: Solution, errors: Uncertainty) -> Finding | None:
    scale = float(objective.model.scale(solution.theta))
    if scale > 3.0 * errors.scale:
        return None
    return Finding(
        "scale-uncertain",
        f"The photometric scale P is {scale:.3g} with an error of {errors.scale:.2g}; it must be "
        "positive and well known. There is too little signal in common to learn a kernel: few "
        "stars, another field, or no registration.",
        "warning",
    )


def _residual_finding(residual_scale: float) -> Finding | None:
    low, high = _SKY_SCALE
    if low <= residual_scale <= high:
        return None
    return Finding(
        "residual-scale",
        f"On the darker half of the frame the difference scatters by {residual_scale:.2f} times "
        "what its variance says; the noise model does not describe these images (resampling, "
        "wrong gain, unknown noise of the reference).",
        "warning",
    )


_WARNING_OF_CODE = {
    "fisher-singular": CovarianceWarning,
    "covariance-determinant": CovarianceWarning,
    "covariance-eigenvalues": CovarianceWarning,
    "stalled": ConvergenceWarning,
    "max-steps": ConvergenceWarning,
    "not-finite": ConvergenceWarning,
    "jitter": ConvergenceWarning,
    "noise-estimated": NoiseWarning,
    "noise-constant": NoiseWarning,
    "sky-restored": NoiseWarning,
    "sky-too-quiet": NoiseWarning,
    "residual-scale": NoiseWarning,
}


def _warn(result: Subtraction) -> None:
    for finding in result.findings:
        if finding.level == "warning":
            category = _WARNING_OF_CODE.get(finding.code, PyTorchDIAWarning)
            warnings.warn(finding.message, category, stacklevel=3)
