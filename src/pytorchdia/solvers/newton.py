"""Newton's method with exact second derivatives, damped, safe where the loss is not convex."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..arrays import Params
from ..errors import Finding, Status
from ..linalg import Factor, factorise
from ..objective import Objective, PixelTerms
from .base import OnStep, Solution, Solver, Step, flat_start

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
    first round of Bramich 2008), from where few Newton steps remain. Parameters, gradient and loss are float64; the normal
    matrix is computed in the dtype of the objective, and again in float64 where that is too coarse
    to be factored.

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

    def solve(
        self, objective: Objective, theta0: Params | None = None, on_step: OnStep | None = None
    ) -> Solution:
        run = _Run(self, objective, on_step)
        if theta0 is not None:
            return run.solve(theta0.to(torch.float64), least_squares_first=False)
        return run.solve(flat_start(objective), least_squares_first=True)


class _Run:
    """One descent: the point, its derivatives, and the factor in use."""

    def __init__(self, options: Newton, objective: Objective, on_step: OnStep | None) -> None:
        self.options = options
        self.objective = objective
        self.on_step = on_step
        self.evaluations = 0
        self.jitter = 0.0
        self.refined = False

    def solve(self, theta: Params, least_squares_first: bool) -> Solution:
        terms, loss = self.evaluate(theta)
        factor: Factor | None = None
        previous = decrement = math.inf
        first = 0
        if least_squares_first and math.isfinite(loss):
            self.report(0, loss, math.inf)
            moved = self.least_squares_step(theta, loss)
            if moved is not None:
                (theta, terms, loss), first = moved, 1
        for steps in range(first, self.options.max_steps + 1):
            if not math.isfinite(loss):
                return self.finish(theta, Status.NOT_FINITE, loss, steps, None)
            gradient = self.objective.gradient(theta, terms)
            if factor is not None:
                decrement = _decrement(gradient, factor)
            if factor is None or decrement > max(_CHORD_DROP * previous, self.options.tol):
                factor = self.curvature(terms)
                if factor is None:
                    return self.finish(theta, Status.NOT_FINITE, loss, steps, None)
                decrement = _decrement(gradient, factor)
            self.report(steps, loss, decrement)
            if decrement <= self.options.tol:
                theta, loss, decrement = self.polish(theta, gradient, factor, loss, decrement)
                return self.finish(theta, Status.CONVERGED, loss, steps, decrement)
            if steps == self.options.max_steps:
                break
            moved = self.line_search(theta, factor.solve(gradient), loss, decrement)
            if moved is None:
                # Below the rounding of the sum there is nothing left to gain.
                small = decrement <= 1e-12 * abs(loss) + self.options.tol
                status = Status.CONVERGED if small else Status.STALLED
                return self.finish(theta, status, loss, steps, decrement)
            theta, terms, loss = moved
            previous = decrement
        return self.finish(theta, Status.MAX_STEPS, loss, self.options.max_steps, decrement)

    def evaluate(self, theta: Params) -> tuple[PixelTerms, float]:
        self.evaluations += 1
        terms = self.objective.pixel_terms(self.objective.model.mv(theta))
        return terms, self.objective.total(theta, terms)

    def curvature(self, terms: PixelTerms) -> Factor | None:
        """A factor of the Hessian or of the nearest safe matrix: exact h, |h|, and then jitter."""
        exact = [terms.curvature]
        if (terms.curvature < 0).any():
            exact.append(terms.curvature.abs())
        fast, full = self.objective.dtype, torch.float64
        for max_jitter in (0.0, 1e-6):
            for curvature in exact:
                for dtype in dict.fromkeys((fast, full)):
                    if max_jitter and dtype != full:
                        continue  # coarse products are no reason to add jitter
                    factor = factorise(self.objective.hessian(curvature, dtype), max_jitter)
                    if factor is not None:
                        self.refined |= dtype != fast
                        self.jitter = max(self.jitter, factor.jitter)
                        return factor
        return None

    def least_squares_step(
        self, theta: Params, loss: float
    ) -> tuple[Params, PixelTerms, float] | None:
        """To the least squares solution with 1/sigma^2(I) as weights, if that lowers the loss."""
        o = self.objective
        weight = torch.where(o.use, 1.0 / o.variance(o.target), 0.0)
        factor = factorise(o.hessian(weight))
        if factor is None:
            return None
        theta = factor.solve(o.model.rmv(weight * o.target))
        terms, new_loss = self.evaluate(theta)
        return (theta, terms, new_loss) if new_loss < loss else None

    def line_search(
        self, theta: Params, step: Tensor, loss: float, decrement: float
    ) -> tuple[Params, PixelTerms, float] | None:
        t = 1.0
        for _ in range(25):
            trial = theta - t * step
            terms, trial_loss = self.evaluate(trial)
            rounding = 1e-14 * abs(loss)
            if trial_loss <= loss - _ARMIJO * t * 2.0 * decrement + rounding:
                return trial, terms, trial_loss
            t *= 0.5
        return None

    def polish(
        self, theta: Params, gradient: Tensor, factor: Factor, loss: float, decrement: float
    ) -> tuple[Params, float, float]:
        """Repeat the last step with the same factor until rounding stops it: iterative refinement."""
        for _ in range(_POLISH):
            trial = theta - factor.solve(gradient)
            terms, trial_loss = self.evaluate(trial)
            gradient = self.objective.gradient(trial, terms)
            smaller = _decrement(gradient, factor)
            if not smaller < 0.5 * decrement:
                break
            theta, loss, decrement = trial, trial_loss, smaller
        return theta, loss, decrement

    def report(self, number: int, loss: float, decrement: float) -> None:
        if self.on_step is not None:
            goal = f"decrement {decrement:.1e}, goal {self.options.tol:.0e}"
            self.on_step(Step(number, loss, goal))

    def finish(
        self, theta: Params, status: Status, loss: float, steps: int, decrement: float | None
    ) -> Solution:
        findings = []
        if self.jitter:
            findings.append(
                Finding(
                    "jitter",
                    f"The normal matrix is singular to working precision; {self.jitter:.0e} of its "
                    "diagonal was added. Some kernel pixels are not determined by the data (a "
                    "reference without noise at high frequencies, or a kernel box that is too "
                    "large): their values and errors mean little, though P and the difference "
                    "do. Try a smaller kernel or a penalty.",
                    "warning",
                )
            )
        elif self.refined:
            findings.append(
                Finding(
                    "float64-matrix",
                    f"The normal matrix was too close to singular for {self.objective.dtype} and "
                    "was computed in float64.",
                )
            )
        return Solution(
            theta, status, loss, steps, self.evaluations, decrement, None, tuple(findings)
        )


def _decrement(gradient: Tensor, factor: Factor) -> float:
    return 0.5 * float(gradient @ factor.solve(gradient))
