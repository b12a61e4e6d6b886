"""What is said of a fit: its findings, and the warnings that they become."""

from __future__ import annotations

import warnings

import torch

from .drift import Drift
from .errors import (
    ConvergenceWarning,
    CovarianceWarning,
    Finding,
    NoiseWarning,
    PyTorchDIAWarning,
)
from .fisher import Uncertainty
from .likelihood import Gaussian, Likelihood
from .objective import Objective
from .solvers import Solution

__all__ = ["findings_of_fit", "warn_of"]

_DRIFT, _DRIFT_ERRORS = 0.01, 5.0  # share of the light, and its errors, that are told
_SKY_SCALE = (0.8, 1.25)  # robust scale of clean residuals beyond which the errors are doubted


def findings_of_fit(
    objective: Objective,
    solution: Solution,
    errors: Uncertainty,
    residual_scale: float,
    drift: Drift,
) -> tuple[Finding, ...]:
    """What the status, P and the residuals on the sky give reason to say.

    Parameters
    ----------
    objective : Objective
    solution : Solution
    errors : Uncertainty
    residual_scale : float
        Robust scale of the difference over its error on the sky.
    drift : Drift
        Share of the model's light that is left in the difference.
    """
    found = (
        _status_finding(objective, solution),
        _scale_finding(objective, solution, errors),
        _residual_finding(residual_scale),
        _drift_finding(drift, objective.likelihood),
    )
    return tuple(finding for finding in found if finding is not None)


def _status_finding(objective: Objective, solution: Solution) -> Finding | None:
    if solution.status.ok:
        return None
    model = objective.model.mv(solution.theta)
    normalised = (objective.target - model) / objective.variance(model).sqrt()
    sizes = torch.where(objective.use, normalised.abs().nan_to_num(nan=torch.inf), 0.0)
    y, x = divmod(int(sizes.argmax()), sizes.shape[1])
    message = (
        f"{solution.status.value} The pixel furthest from the model is x = {x}, y = {y}, by "
        f"{float(sizes.max()):.3g} sigma."
    )
    return Finding(solution.status.name.lower().replace("_", "-"), message, "warning")


def _scale_finding(objective: Objective, solution: Solution, errors: Uncertainty) -> Finding | None:
    scale = float(objective.model.scale(solution.theta))
    if scale > 3.0 * errors.scale or (scale > 0 and not errors.known):
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


def _drift_finding(drift: Drift, likelihood: Likelihood) -> Finding | None:
    if not drift.above(_DRIFT, _DRIFT_ERRORS):
        return None
    remedy = (
        "No kernel makes stars sharper or undersampled ones from others, and noise in the "
        "reference lowers P: choose another reference, or count with P (1 + share)."
        if isinstance(likelihood, Gaussian)
        else "A robust loss takes what no kernel can do at bright stars (undersampled, or sharper "
        "than the reference's) for outliers: raise its tolerance, or fit with the Gaussian loss."
    )
    way = "low" if drift.share > 0 else "high"
    return Finding(
        "scale-drift",
        f"The difference still holds {100 * drift.share:+.1f} % (error {100 * drift.error:.1f}) of "
        f"the light of the model, the same share all over the frame: P is too {way} by as much. "
        f"{remedy}",
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


def warn_of(findings: tuple[Finding, ...]) -> None:
    """A Python warning, at the caller of ``subtract``, for each finding of that level."""
    for finding in findings:
        if finding.level == "warning":
            category = _WARNING_OF_CODE.get(finding.code, PyTorchDIAWarning)
            warnings.warn(finding.message, category, stacklevel=3)
