"""Uncertainties from the observed Fisher information (eq 15-17, section 2.5).

Where the noise of the reference is known, what it does to the fit is added (:mod:`.influence`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from .arrays import Image, Matrix, Params, Tiled
from .errors import Finding
from .influence import ReferenceInfluence
from .linalg import Factor, cholesky, factorise
from .objective import Objective
from .solvers import System
from .solvers.conjugate_gradients import conjugate_gradients

__all__ = [
    "Uncertainty",
    "fisher_information",
    "uncertainties_of_stack",
    "uncertainty",
    "validity_findings",
    "with_reference_noise",
]

_LEAST_PIVOT = 1e-4  # of an information matrix whose float32 products are good enough
_CG_TOL = 1e-3  # residual of the systems for single errors; it enters an error squared


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
        Sigma of eq 16, (p, p), float64, with what the noise of the reference adds to it; None if
        it was not asked for.
    findings : tuple of Finding
    directions : Params or None
        Sigma times the derivative by theta of P and of each background coefficient, (1 + n_b, p).
    known : bool
        False if no errors were asked for; those above are then infinite.
    """

    scale: float
    background: tuple[float, ...]
    covariance: Matrix | None
    findings: tuple[Finding, ...]
    directions: Params | None = None
    known: bool = True

    @property
    def valid(self) -> bool:
        """Whether all tests were passed."""
        return not self.findings


def fisher_information(objective: Objective, theta: Params) -> Matrix:
    """Observed Fisher information: the Hessian of the objective at ``theta`` (eq 15), float64.

    Eq 15 is printed without its minus sign; this is minus the second derivative of ln p. With a
    penalty it is the curvature of the posterior (section 2.7).
    """
    return objective.hessian(_curvature(objective, theta), torch.float64)


def _curvature(objective: Objective, theta: Params) -> Tiled:
    curvature = objective.evaluate(theta).curvature
    assert curvature is not None
    return curvature


def uncertainty(
    objective: Objective, theta: Params, full: bool = True, system: System | None = None
) -> Uncertainty:
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
    system : System, optional
        What the solver knows of the Hessian at ``theta``, to save its computation.
    """
    if not full:
        quick = _without_matrix(objective, theta, system)
        if quick is not None:
            return quick
    covariance, findings = _invert(_information(objective, theta, system))
    gradients = _gradients(objective)
    directions = gradients @ covariance
    errors = _errors((gradients * directions).sum(dim=-1), directions)
    return replace(errors, covariance=covariance if full else None, findings=findings)


def with_reference_noise(
    objective: Objective,
    theta: Params,
    errors: Uncertainty,
    variance: Image,
    system: System | None = None,
) -> Uncertainty:
    """Errors with what the noise of the reference adds to them (:mod:`.influence`).

    Parameters
    ----------
    objective : Objective
    theta : Params
        The solution.
    errors : Uncertainty
        Those that the noise of the target gives, with their directions.
    variance : Image
        sigma_R^2 [ADU^2] of each pixel of the reference, (h, w), 0 where it has no part.
    system : System, optional
        What the solver knows of the Hessian at ``theta``, to save its computation.
    """
    assert errors.directions is not None
    curvature = None if system is None else system.curvature
    influence = ReferenceInfluence.of(objective, theta, variance, curvature)
    added = [math.sqrt(float(influence.variance_of(x))) for x in errors.directions]
    scale, *background = map(math.hypot, (errors.scale, *errors.background), added)
    covariance = errors.covariance
    if covariance is not None:
        covariance = covariance + covariance @ influence.matrix() @ covariance
    return replace(errors, scale=scale, background=tuple(background), covariance=covariance)


def _information(objective: Objective, theta: Params, system: System | None) -> Matrix:
    """The matrix, by products in the dtype of the objective where that is good enough."""
    curvature = _curvature(objective, theta) if system is None else system.curvature
    if objective.dtype != torch.float64:
        information = objective.hessian(curvature)
        _, good = cholesky(information, _LEAST_PIVOT)
        if bool(good):
            return information
    return objective.hessian(curvature, torch.float64)


def _error(variance: float) -> float:
    """The root of a variance; infinite for one that no error can have."""
    return math.sqrt(variance) if 0.0 < variance < math.inf else math.inf


def _errors(variances: Tensor, directions: Params) -> Uncertainty:
    scale, *background = (_error(float(v)) for v in variances)
    return Uncertainty(scale, tuple(background), None, (), directions)


def _gradients(objective: Objective) -> Tensor:
    """d/dtheta of P and of each background coefficient, (1 + n_b, ..., p)."""
    model = objective.model
    scale = model.scale_gradient()
    unit = torch.eye(model.n_params, dtype=torch.float64, device=objective.model.device)
    rows = [row.expand_as(scale) for row in unit[model.kernel.n_params :]]
    return torch.stack([scale, *rows])


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


def uncertainties_of_stack(
    objective: Objective, systems: list[System | None]
) -> list[Uncertainty | None]:
    """Errors of P and of the background for each pair of a stack, side by side.

    None for a pair whose solver left no :class:`~pytorchdia.solvers.System`, or whose systems could
    not be solved: :func:`uncertainty` does what is needed there.
    """
    found: list[Uncertainty | None] = [None] * len(systems)
    rows = [i for i, system in enumerate(systems) if system is not None]
    usable = [system for system in systems if system is not None]
    if len({part.dtype for system in usable for part in system.curvature}) != 1:
        return found
    some = objective if len(rows) == len(systems) else objective[torch.tensor(rows)]
    parts = zip(*(system.curvature for system in usable), strict=True)
    curvature = [torch.stack(part) for part in parts]
    factor = Factor.stack([system.factor for system in usable])
    variances, directions, solved = _variances(some, System(curvature, factor), len(rows))
    for k, i in enumerate(rows):
        if bool(solved[:, k].all()):
            found[i] = _errors(variances[:, k], directions[:, k])
    return found


def _without_matrix(
    objective: Objective, theta: Params, system: System | None
) -> Uncertainty | None:
    """Errors of P and of the background by solving H x = g; None if H is not safely regular."""
    if system is None:
        curvature = _curvature(objective, theta)
        matrix = objective.preconditioner([part.abs() for part in curvature])
        factor, good = cholesky(matrix, 1e-9)
        if not bool(good):
            return None
        system = System(curvature, factor)
    variances, directions, solved = _variances(objective, system)
    return _errors(variances, directions) if bool(solved.all()) else None


def _variances(
    objective: Objective, system: System, pairs: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """G' x and x = H^-1 G of P and of each background coefficient, and whether x could be found.

    They are (coefficients, ...), or (coefficients, pairs, ...) for a stack.
    """
    gradients = _gradients(objective)
    if pairs is not None and gradients.ndim == 2:
        gradients = gradients[:, None].expand(-1, pairs, -1)
    result = conjugate_gradients(
        partial(objective.hessian_product, system.curvature),
        gradients, system.factor, _CG_TOL, 200,
        None if pairs is None else partial(objective.subset, system.curvature),
    )  # fmt: skip
    return (gradients * result.solution).sum(dim=-1), result.solution, result.solved


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
