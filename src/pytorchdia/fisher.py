"""Uncertainties from the observed Fisher information (eq 15-17, section 2.5)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .arrays import Matrix, Params
from .errors import Finding
from .linalg import factorise
from .objective import Objective
from .solvers.conjugate_gradients import conjugate_gradients

__all__ = ["Uncertainty", "fisher_information", "uncertainty", "validity_findings"]


@dataclass(frozen=True)
class Uncertainty:
    """Errors of the fitted parameters, and what the tests of section 2.5 say about them.

    Attributes
    ----------
    scale : float
        Error of P, sqrt(1' Sigma 1) over the kernel pixels.
    background : tuple of float
        Errors of the background coefficients [ADU].
    covariance : Matrix or None
        Sigma of eq 16, (p, p), float64; None if it was not asked for.
    findings : tuple of Finding
    """

    scale: float
    background: tuple[float, ...]
    covariance: Matrix | None
    findings: tuple[Finding, ...]

    @property
    def valid(self) -> bool:
        """Whether all tests were passed."""
        return not self.findings


def fisher_information(objective: Objective, theta: Params) -> Matrix:
    """Observed Fisher information: the Hessian of the objective at ``theta`` (eq 15), float64.

    Eq 15 is printed without its minus sign; this is minus the second derivative of ln p. With a
    penalty it is the curvature of the posterior (section 2.7).
    """
    terms = objective.pixel_terms(objective.model.mv(theta))
    return objective.hessian(terms.curvature, torch.float64)


def uncertainty(objective: Objective, theta: Params, full: bool = True) -> Uncertainty:
    """Errors from the inverse of the Fisher information (eq 16, 17).

    Parameters
    ----------
    objective : Objective
    theta : Params
        The solution.
    full : bool
        False leaves out the covariance matrix and its tests: the errors of P and of the background
        are then found without the matrix, by conjugate gradients, which is quicker for large
        frames. Where that fails the matrix is computed after all.
    """
    if not full:
        quick = _without_matrix(objective, theta)
        if quick is not None:
            return quick
    covariance, findings = _invert(fisher_information(objective, theta))
    scale, *background = (_error(float(g @ covariance @ g)) for g in _gradients(objective))
    return Uncertainty(scale, tuple(background), covariance if full else None, findings)


def _error(variance: float) -> float:
    """The root of a variance; infinite for one that no error can have."""
    return math.sqrt(variance) if 0.0 < variance < math.inf else math.inf


def _gradients(objective: Objective) -> list[Params]:
    """d/dtheta of P and of each background coefficient."""
    model = objective.model
    unit = torch.eye(model.n_params, dtype=torch.float64, device=objective.target.device)
    return [model.scale_gradient(), *unit[model.kernel.n_params :]]


def _invert(information: Matrix) -> tuple[Matrix, tuple[Finding, ...]]:
    """Eq 16 and the tests of section 2.5."""
    factor = factorise(information)
    if factor is None:
        covariance = torch.linalg.pinv(information.nan_to_num(), hermitian=True)
        return covariance, validity_findings(covariance)
    covariance = factor.inverse()
    findings = validity_findings(covariance)
    if factor.jitter:
        finding = Finding(
            "fisher-singular",
            f"The Fisher information is singular to working precision ({factor.jitter:.0e} of "
            "its diagonal was added to invert it); the errors of single kernel pixels are "
            "only lower bounds. Try a smaller kernel or a penalty.",
            "warning",
        )
        findings += (finding,)
    return covariance, findings


def _without_matrix(objective: Objective, theta: Params) -> Uncertainty | None:
    """Errors of P and of the background by solving H x = g; None if H is not safely regular."""
    curvature = objective.pixel_terms(objective.model.mv(theta)).curvature
    factor = factorise(objective.preconditioner(curvature.abs()), 0.0, least_pivot=1e-9)
    if factor is None:
        return None
    errors = []
    for gradient in _gradients(objective):
        result = conjugate_gradients(
            lambda v: objective.hessian_product(curvature, v), gradient, factor, 1e-5, 200
        )
        if not result.solved:
            return None
        errors.append(_error(float(gradient @ result.solution)))
    return Uncertainty(errors[0], tuple(errors[1:]), None, ())


def validity_findings(covariance: Matrix) -> tuple[Finding, ...]:
    """The two tests of section 2.5: the determinant, and every eigenvalue, must be positive."""
    scale = covariance.diagonal().abs().clamp(min=torch.finfo(covariance.dtype).tiny).rsqrt()
    correlation = scale[:, None] * covariance * scale  # the same signs, without the units
    findings = []
    sign, _ = torch.linalg.slogdet(correlation)
    if not sign > 0:
        findings.append(
            Finding(
                "covariance-determinant",
                "The covariance matrix has a determinant that is not positive; its error bars are "
                "not valid. Try a smaller kernel, a penalty, or a less extreme likelihood.",
                "warning",
            )
        )
    eigenvalues = torch.linalg.eigvalsh(correlation)
    negative = int((eigenvalues <= 0).sum())
    if negative:
        findings.append(
            Finding(
                "covariance-eigenvalues",
                f"The covariance matrix has {negative} of {len(eigenvalues)} eigenvalues that are "
                f"not positive (the least is {float(eigenvalues.min()):.1e} of its scale); its "
                "error bars are not valid. Try a smaller kernel or a penalty.",
                "warning",
            )
        )
    return tuple(findings)
