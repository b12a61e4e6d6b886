"""Uncertainties from the observed Fisher information (eq 15-17, section 2.5)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .arrays import Matrix, Params
from .errors import Finding
from .linalg import factorise
from .objective import Objective

__all__ = ["Uncertainty", "fisher_information", "uncertainty", "validity_findings"]


@dataclass(frozen=True)
class Uncertainty:
    """Covariance of theta, and what the tests of section 2.5 say about it.

    Attributes
    ----------
    covariance : Matrix
        Sigma of eq 16, (p, p), float64.
    findings : tuple of Finding
    """

    covariance: Matrix
    findings: tuple[Finding, ...]

    @property
    def valid(self) -> bool:
        """Whether all tests were passed."""
        return not self.findings

    def error_of(self, gradient: Params) -> float:
        """Error of a linear function of theta with this gradient: sqrt(g' Sigma g)."""
        return float((gradient @ self.covariance @ gradient).clamp(min=0.0).sqrt())


def fisher_information(objective: Objective, theta: Params) -> Matrix:
    """Observed Fisher information: the Hessian of the objective at ``theta`` (eq 15), float64.

    Eq 15 is printed without its minus sign; this is minus the second derivative of ln p. With a
    penalty it is the curvature of the posterior (section 2.7).
    """
    terms = objective.pixel_terms(objective.model.mv(theta))
    return objective.hessian(terms.curvature, torch.float64)


def uncertainty(objective: Objective, theta: Params) -> Uncertainty:
    """Invert the Fisher information (eq 16) and test the result (section 2.5)."""
    information = fisher_information(objective, theta)
    factor = factorise(information)
    if factor is None:
        covariance = torch.linalg.pinv(information, hermitian=True)
        return Uncertainty(covariance, validity_findings(covariance))
    covariance = factor.inverse()
    findings = validity_findings(covariance)
    if factor.jitter:
        findings += (
            Finding(
                "fisher-singular",
                f"The Fisher information is singular to working precision ({factor.jitter:.0e} of "
                "its diagonal was added to invert it); the errors of single kernel pixels are "
                "only lower bounds. Try a smaller kernel or a penalty.",
                "warning",
            ),
        )
    return Uncertainty(covariance, findings)


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
