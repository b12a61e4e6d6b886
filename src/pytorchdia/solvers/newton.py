"""Newton's method with exact second derivatives, damped, safe where the loss is not convex."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..arrays import Image, Params
from ..errors import Finding, InputError, Status
from ..linalg import Factor, factorise
from ..objective import Objective, PixelTerms
from .base import OnStep, Solution, Solver, Step, flat_start, singular_finding

__all__ = ["Newton"]

_ARMIJO = 1e-4  # least share of the predicted decrease that a step must bring
_CHORD_DROP = 1e-2  # a factor is kept while each step cuts the decrement by this much
_POLISH = 5  # steps with a kept factor after convergence, down to rounding


@dataclass(frozen=True)
class Newton(Solver):
    """Newton steps theta - t H^-1 grad, with H = A' diag(h) A from the pixels' own curvatures.

    The curvature h of each pixel's loss is exact (automatic differentiation). Where H is not
    positive definite (robust losses far from the minimum), ``|h|`` takes the place of h, which is
    positive semi-definite for any loss. Steps are halved until the loss falls. H is kept for the
    next step while that converges fast. Unless a starting point is given, the first step goes from
    the flat kernel to the weighted least squares solution with the target's own variances (the
    first round of Bramich 2008), from where few Newton steps remain.

    Parameters, gradient and loss are float64. The normal matrix is computed in the dtype of the
    objective, and again in float64 where that is too coarse to be factored. If it is singular even
    then, the least ridge that helps (1e-12 of its diagonal or more) is added to the objective, and
    reported.

    Parameters
    ----------
    tol : float
        Goal for the Newton decrement grad' H^-1 grad / 2, the predicted drop of the loss, in units
        of ln likelihood.
    max_steps : int
        Upper limit of steps.
    """

    tol: float = 1e-6
    max_steps: int = 50

    def __post_init__(self) -> None:
        if not (self.tol > 0 and math.isfinite(self.tol)):
            raise InputError(f"Newton needs a finite tol > 0, got {self.tol}; 1e-6 is usual.")
        if self.max_steps < 1:
            raise InputError(f"Newton needs at least 1 step, got max_steps = {self.max_steps}.")

    def solve(
        self, objective: Objective, theta0: Params | None = None, on_step: OnStep | None = None
    ) -> Solution:
        run = _Run(self, objective, on_step)
        if theta0 is not None:
            return run.solve(theta0.to(torch.float64), least_squares_first=False)
        return run.solve(flat_start(objective), least_squares_first=True)


class _Point(NamedTuple):
    theta: Params
    terms: PixelTerms


class _Run:
    """One descent: the factor of the Hessian in use, and what had to be done to it."""

    def __init__(self, options: Newton, objective: Objective, on_step: OnStep | None) -> None:
        self.options = options
        self.objective = objective
        self.on_step = on_step
        self.evaluations = 0
        self.refined = False
        self.jitter = 0.0
        self.ridge = torch.zeros(
            objective.model.n_params, dtype=torch.float64, device=objective.target.device
        )

    def solve(self, theta: Params, least_squares_first: bool) -> Solution:
        point, steps = self.at(theta), 0
        if least_squares_first and math.isfinite(self.loss(point)):
            self.report(0, point, math.inf)
            point, steps = self.least_squares_step(point)
        factor: Factor | None = None
        previous = math.inf
        while math.isfinite(self.loss(point)):
            kept = factor
            factor = kept or self.curvature(point.terms)
            if factor is None:
                break
            gradient = self.gradient(point)
            decrement = _decrement(gradient, factor)
            if kept and decrement > max(_CHORD_DROP * previous, self.options.tol):
                factor = None  # it converges too slowly with the old one
                continue
            self.report(steps, point, decrement)
            if decrement <= self.options.tol:
                point, decrement = self.polish(point, gradient, factor, decrement)
                return self.finish(point, Status.CONVERGED, steps, decrement)
            if steps == self.options.max_steps:
                return self.finish(point, Status.MAX_STEPS, steps, decrement)
            lower = self.line_search(point, factor.solve(gradient), decrement)
            if lower is None:
                return self.finish(point, Status.STALLED, steps, decrement)
            point, previous, steps = lower, decrement, steps + 1
        return self.finish(point, Status.NOT_FINITE, steps, None)

    def at(self, theta: Params) -> _Point:
        self.evaluations += 1
        return _Point(theta, self.objective.pixel_terms(self.objective.model.mv(theta)))

    def loss(self, point: _Point) -> float:
        ridge = 0.5 * float(self.ridge @ point.theta**2)
        return self.objective.total(point.theta, point.terms) + ridge

    def gradient(self, point: _Point) -> Tensor:
        return self.objective.gradient(point.theta, point.terms) + self.ridge * point.theta

    def curvature(self, terms: PixelTerms) -> Factor | None:
        """A factor of the Hessian or of the nearest safe matrix: exact h, |h|, and then a ridge."""
        candidates = [terms.curvature]
        if (terms.curvature < 0).any():
            candidates.append(terms.curvature.abs())
        for curvature in candidates:
            for dtype in dict.fromkeys((self.objective.dtype, torch.float64)):
                factor = self.factorise(curvature, dtype, max_jitter=0.0)
                if factor is not None:
                    return factor
        return self.factorise(candidates[-1], torch.float64, max_jitter=1e-6)

    def factorise(self, weight: Image, dtype: torch.dtype, max_jitter: float) -> Factor | None:
        """Factor A' diag(weight) A; jitter that it needs stays in the objective as a ridge."""
        matrix = self.objective.hessian(weight, dtype) + torch.diag(self.ridge)
        factor = factorise(matrix, max_jitter)
        if factor is not None:
            self.refined |= dtype != self.objective.dtype
            self.jitter = max(self.jitter, factor.jitter)
            self.ridge = self.ridge + factor.jitter * matrix.diagonal()
        return factor

    def least_squares_step(self, point: _Point) -> tuple[_Point, int]:
        """To the least squares solution with 1/sigma^2(I) as weights, if that lowers the loss."""
        o = self.objective
        weight = torch.where(o.use, 1.0 / o.variance(o.target), 0.0)
        factor = self.factorise(weight, o.dtype, 0.0) or self.factorise(weight, torch.float64, 1e-6)
        if factor is None:
            return point, 0
        there = self.at(factor.solve(o.model.rmv(weight * o.target)))
        return (there, 1) if self.loss(there) < self.loss(point) else (point, 0)

    def line_search(self, point: _Point, step: Tensor, decrement: float) -> _Point | None:
        loss, t = self.loss(point), 1.0
        for _ in range(25):
            trial = self.at(point.theta - t * step)
            rounding = 1e-14 * abs(loss)
            if self.loss(trial) <= loss - _ARMIJO * t * 2.0 * decrement + rounding:
                return trial
            t *= 0.5
        return None

    def polish(
        self, point: _Point, gradient: Tensor, factor: Factor, decrement: float
    ) -> tuple[_Point, float]:
        """Repeat the last step with the same factor until rounding stops it."""
        for _ in range(_POLISH):
            trial = self.at(point.theta - factor.solve(gradient))
            gradient = self.gradient(trial)
            smaller = _decrement(gradient, factor)
            if not smaller < 0.5 * decrement:
                break
            point, decrement = trial, smaller
        return point, decrement

    def report(self, number: int, point: _Point, decrement: float) -> None:
        if self.on_step is not None:
            goal = f"decrement {decrement:.1e}, goal {self.options.tol:.0e}"
            self.on_step(Step(number, self.loss(point), goal))

    def finish(
        self, point: _Point, status: Status, steps: int, decrement: float | None
    ) -> Solution:
        return Solution(
            point.theta,
            status,
            self.objective.total(point.theta, point.terms),
            steps,
            self.evaluations,
            decrement,
            findings=self.findings(),
        )

    def findings(self) -> tuple[Finding, ...]:
        if self.jitter:
            return (singular_finding(self.jitter),)
        if self.refined:
            finding = Finding(
                "float64-matrix",
                f"The normal matrix was too close to singular for {self.objective.dtype} and was "
                "computed in float64.",
            )
            return (finding,)
        return ()


def _decrement(gradient: Tensor, factor: Factor) -> float:
    return 0.5 * float(gradient @ factor.solve(gradient))
