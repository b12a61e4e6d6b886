"""The classical solution: iterated weighted linear least squares (Bramich 2008, section 2.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from ..arrays import Params
from ..errors import Finding, InputError, Status
from ..likelihood import Gaussian
from ..linalg import factorise
from ..objective import Objective
from .base import OnStep, Solution, Solver, Step, flat_start, singular_finding

__all__ = ["NormalEquations"]

_MANY_CLIPPED = 0.05  # share of clipped pixels beyond which something else is wrong


@dataclass(frozen=True)
class NormalEquations(Solver):
    """Solve (A'WA + 2 N Q) theta = A'W I with W = 1/sigma^2 held fixed, and repeat.

    The variances come from the target itself at first and from the model of the round before
    afterwards. From the second round on, pixels further than ``k_sigma`` from the model of the
    round before are left out, each round anew. This minimises chi-square with fixed weights; it is
    not the minimum of eq 8, in which the weights move with the model, except where the variance
    does not depend on the model.

    Parameters
    ----------
    iterations : int
        Rounds of reweighting; three are usual.
    k_sigma : float or None
        Clip at this many sigma; None for no clipping.
    """

    iterations: int = 3
    k_sigma: float | None = None

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise InputError(f"NormalEquations needs at least 1 iteration, got {self.iterations}.")
        if self.k_sigma is not None and not self.k_sigma > 0:
            raise InputError(f"k_sigma must be positive, got {self.k_sigma}.")
        if self.k_sigma is not None and self.iterations < 2:
            raise InputError(
                "Clipping needs at least 2 iterations, got 1; the first round has no model to clip "
                "against."
            )

    def solve(
        self, objective: Objective, theta0: Params | None = None, on_step: OnStep | None = None
    ) -> Solution:
        if not isinstance(objective.likelihood, Gaussian):
            raise InputError(
                f"NormalEquations is least squares and knows only the Gaussian likelihood, got "
                f"{objective.likelihood}; use Newton for a robust loss."
            )
        objective = replace(objective, target=objective.target.to(torch.float64))
        everything = objective.use
        model = objective.target if theta0 is None else objective.model.mv(theta0)
        clipped = torch.zeros_like(everything)
        jitter, theta = 0.0, flat_start(objective)
        for number in range(1, self.iterations + 1):
            variance = torch.where(everything, objective.noise.variance(model), 1.0)
            if self.k_sigma is not None and number > 1:
                residual = (objective.target - model) / variance.sqrt()
                clipped = everything & (residual.abs() > self.k_sigma)
                objective = replace(objective, use=everything & ~clipped)
            weight = torch.where(objective.use, 1.0 / variance, 0.0)
            factor = factorise(objective.hessian(weight, torch.float64))
            if factor is None or objective.n_data <= objective.model.n_params:
                return Solution(theta, Status.NOT_FINITE, math.inf, number - 1, number)
            jitter = max(jitter, factor.jitter)
            rhs = objective.model.rmv(weight * objective.target)
            theta = factor.solve(rhs)
            theta = theta + factor.solve(rhs - objective.hessian_product(weight, theta))
            model = objective.model.mv(theta)
            if on_step is not None:
                on_step(Step(number, _loss(objective, theta), f"{self.iterations} rounds"))
        loss = _loss(objective, theta)
        findings = [singular_finding(jitter)] if jitter else []
        share = float(clipped.sum()) / max(int(everything.sum()), 1)
        if share > _MANY_CLIPPED:
            findings.append(
                Finding(
                    "many-clipped",
                    f"Clipping at {self.k_sigma:g} sigma rejected {share:.1%} of the pixels; the "
                    "noise model is wrong, or k-sigma too small. A robust likelihood needs no "
                    "clipping.",
                    "warning",
                )
            )
        return Solution(
            theta,
            Status.CONVERGED if math.isfinite(loss) else Status.NOT_FINITE,
            loss,
            self.iterations,
            self.iterations,
            clipped=clipped if bool(clipped.any()) else None,
            findings=tuple(findings),
        )


def _loss(objective: Objective, theta: Params) -> float:
    return float(objective.evaluate(theta, curvature=False).loss)
