"""Newton's method with exact second derivatives, damped, safe where the loss is not convex."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from ..arrays import Image, Params
from ..errors import Finding, InputError, Status
from ..linalg import Factor, factorise
from ..objective import Objective, PixelTerms
from .base import OnStep, Solution, Solver, Step, flat_start, singular_finding
from .conjugate_gradients import CGResult, conjugate_gradients

__all__ = ["Newton"]

_ARMIJO = 1e-4  # least share of the predicted decrease that a step must bring
_FIRST_TOL = 1e-3  # relative residual of the least squares start by conjugate gradients
_STEP_TOL = 3e-3  # and of a Newton step
_MAX_CG = 80  # iterations after which the matrix is computed instead
_SLOW_CG = 25  # iterations after which the preconditioner is renewed
# Precisions of the products in order, each with the least pivot of a preconditioner that it bears.
_LEAST_PIVOT = {torch.float32: 1e-6, torch.float64: 1e-11}
_CHORD_DROP = 1e-2  # a factor is kept while each step cuts the decrement by this much
_POLISH = 5  # steps with a kept factor after convergence, down to rounding


@dataclass(frozen=True)
class Newton(Solver):
    """Newton steps theta - t H^-1 grad, with H = A' diag(h) A from the pixels' own curvatures.

    The curvature h of each pixel's loss is exact (automatic differentiation). Each system is solved
    without the matrix, by conjugate gradients with the Cholesky factor of a block-Toeplitz
    approximation of H as preconditioner. Where that factor shows H to be close to singular, or the
    iteration fails, the matrix itself is computed and factored, and the result says so.

    Where H is not positive definite (robust losses far from the minimum), ``|h|`` takes the place
    of h, which is positive semi-definite for any loss. Steps are halved until the loss falls; where
    none does, a reweighted least squares step is taken.
    Unless a starting point is given, the first step goes from the flat kernel to the weighted least
    squares solution with the target's own variances (the first round of Bramich 2008), from where
    few Newton steps remain.

    Parameters, gradient and loss are float64. The products with H run in the dtype of the
    objective, and in float64 where that is too coarse. If H is singular even then, the least ridge
    that helps (1e-12 of its diagonal or more) is added to the objective, and reported.

    Parameters
    ----------
    tol : float
        Goal for the Newton decrement grad' H^-1 grad / 2, the predicted drop of the loss, in units
        of ln likelihood.
    max_steps : int
        Upper limit of steps.
    matrix_free : bool
        False computes and factors the normal matrix in every case: the slow twin.
    """

    tol: float = 1e-6
    max_steps: int = 50
    matrix_free: bool = True

    def __post_init__(self) -> None:
        if not (self.tol > 0 and math.isfinite(self.tol)):
            raise InputError(f"Newton needs a finite tol > 0, got {self.tol}; 1e-6 is usual.")
        if self.max_steps < 1:
            raise InputError(f"Newton needs at least 1 step, got max_steps = {self.max_steps}.")

    def solve(
        self, objective: Objective, theta0: Params | None = None, on_step: OnStep | None = None
    ) -> Solution:
        descent = _Descent(self, objective, on_step)
        if theta0 is not None:
            return descent.run(theta0.to(torch.float64), least_squares_first=False)
        return descent.run(flat_start(objective), least_squares_first=True)


_Answer = TypeVar("_Answer")


class _Point(NamedTuple):
    theta: Params
    terms: PixelTerms


class _Move(NamedTuple):
    """A Newton step (to be subtracted) and the drop of the loss that it predicts."""

    step: Tensor
    decrement: float


class _Descent:
    """One descent: the way in which its systems are solved, and the ridge that they needed."""

    def __init__(self, options: Newton, objective: Objective, on_step: OnStep | None) -> None:
        self.options = options
        self.objective = objective
        self.on_step = on_step
        self.evaluations = 0
        self.system: _MatrixFree | _Matrix = _Matrix(objective)
        if options.matrix_free:
            self.system = _MatrixFree(objective)

    def run(self, theta: Params, least_squares_first: bool) -> Solution:
        first = self.least_squares(theta) if least_squares_first else None
        point, steps = (self.at(theta), 0) if first is None else (first, 1)
        while math.isfinite(self.loss(point)):
            move = self.newton_move(point)
            if move is None:
                break
            self.tell(steps, self.loss(point), move.decrement)
            if move.decrement <= self.options.tol:
                point, decrement = self.polish(point, move)
                return self.finish(point, Status.CONVERGED, steps, decrement)
            if steps == self.options.max_steps:
                return self.finish(point, Status.MAX_STEPS, steps, move.decrement)
            lower = self.line_search(point, move) or self.majorised_step(point)
            if lower is None:
                return self.finish(point, Status.STALLED, steps, move.decrement)
            point, steps = lower, steps + 1
        return self.finish(point, Status.NOT_FINITE, steps, None)

    def at(self, theta: Params) -> _Point:
        self.evaluations += 1
        return _Point(theta, self.objective.pixel_terms(self.objective.model.mv(theta)))

    def loss(self, point: _Point) -> float:
        return self.objective.total(point.theta, point.terms) + self.system.ridge_value(point.theta)

    def gradient(self, point: _Point) -> Params:
        ridge = self.system.ridge_gradient(point.theta)
        return self.objective.gradient(point.theta, point.terms) + ridge

    def newton_move(self, point: _Point) -> _Move | None:
        """The Newton step at ``point``."""
        curvature = point.terms.curvature
        return self.ask(lambda system: system.newton_move(curvature, lambda: self.gradient(point)))

    def ask(self, question: Callable[[_MatrixFree | _Matrix], _Answer | None]) -> _Answer | None:
        """The answer of the system in use, or of the matrix from now on if it has none."""
        answer = question(self.system)
        if answer is None and isinstance(self.system, _MatrixFree):
            self.system = _Matrix(self.objective, fallback=True)
            answer = question(self.system)
        return answer

    def least_squares(self, start: Params) -> _Point | None:
        """The least squares solution with 1/sigma^2(I) as weights, if it beats ``start``."""
        o = self.objective
        with torch.no_grad():
            loss = float(o.loss(start))
        if not math.isfinite(loss):
            return None
        self.tell(0, loss, math.inf)
        weight = torch.where(o.use, 1.0 / o.variance(o.target), 0.0)
        rhs = o.model.rmv(weight * o.target)
        theta = self.ask(lambda system: system.solve(weight, rhs))
        if theta is None:
            return None
        there = self.at(theta)
        return there if self.loss(there) < loss else None

    def line_search(self, point: _Point, move: _Move) -> _Point | None:
        loss, t = self.loss(point), 1.0
        for _ in range(25):
            trial = self.at(point.theta - t * move.step)
            rounding = 1e-14 * abs(loss)
            if self.loss(trial) <= loss - _ARMIJO * t * 2.0 * move.decrement + rounding:
                return trial
            t *= 0.5
        return None

    def majorised_step(self, point: _Point) -> _Point | None:
        """A reweighted least squares step, for losses whose curvature vanishes almost everywhere.

        The weight -g / (I - M) is positive wherever the loss grows with the residual (for Huber
        beyond c, where h is 0), and the step lowers the loss where Newton's does not.
        """
        o = self.objective
        residual = torch.where(o.use, o.target - o.model.mv(point.theta), 0.0)
        weight = torch.where(residual != 0, -point.terms.gradient / residual, 0.0).clamp(min=0.0)
        gradient = self.gradient(point)
        step = _MatrixFree(o).solve(weight, gradient)
        if step is None:
            step = _Matrix(o, fallback=True).solve(weight, gradient)
        if step is None:
            return None
        return self.line_search(point, _Move(step, 0.5 * float(gradient @ step)))

    def polish(self, point: _Point, move: _Move) -> tuple[_Point, float]:
        """Repeat the last step with the same system until P is exact or rounding stops it."""
        decrement = move.decrement
        for _ in range(_POLISH):
            trial = self.at(point.theta - move.step)
            gradient = self.gradient(trial)
            left = self.system.estimate(gradient)
            if not left < 0.5 * decrement:
                break
            point, decrement = trial, left
            if self.system.is_exact(decrement):
                break
            move = self.system.repeat(gradient)
        return point, decrement

    def tell(self, number: int, loss: float, decrement: float) -> None:
        if self.on_step is not None:
            goal = f"decrement {decrement:.1e}, goal {self.options.tol:.0e}"
            self.on_step(Step(number, loss, goal))

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
            findings=self.system.findings(),
        )


class _MatrixFree:
    """Newton systems solved by preconditioned conjugate gradients."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.dtype = objective.dtype
        self.factor: Factor | None = None
        self.curvature: Image | None = None
        self.slow = False

    def solve(self, weight: Image, rhs: Params) -> Params | None:
        """H^-1 rhs for fixed weights, as far as a first step needs it."""
        if not self.prepare(weight):
            return None
        result = self.iterate(rhs, _FIRST_TOL)
        return result.solution if result.solved else None

    def newton_move(self, curvature: Image, gradient: Callable[[], Params]) -> _Move | None:
        if (self.factor is None or self.slow) and not self.prepare(curvature.abs()):
            return None
        rhs = gradient()
        candidates = [curvature]
        if (curvature < 0).any():
            candidates.append(curvature.abs())
        for candidate in candidates:
            self.curvature = candidate.to(self.dtype)
            result = self.iterate(rhs, _STEP_TOL)
            if result.solved:
                return _Move(result.solution, 0.5 * float(rhs @ result.solution))
        return None

    def repeat(self, gradient: Params) -> _Move:
        step = self.iterate(gradient, _STEP_TOL).solution
        return _Move(step, 0.5 * float(gradient @ step))

    def estimate(self, gradient: Params) -> float:
        """The decrement with the preconditioner in place of H."""
        assert self.factor is not None
        return 0.5 * float(gradient @ self.factor.solve(gradient))

    def is_exact(self, decrement: float) -> bool:
        """Whether what a decrement is left moves P by less than rounding matters."""
        assert self.factor is not None
        goal = 1e-8 if self.objective.dtype == torch.float32 else 1e-13
        gradient = self.objective.model.scale_gradient()
        sigma_p = math.sqrt(max(float(gradient @ self.factor.solve(gradient)), 0.0))
        return math.sqrt(2.0 * max(decrement, 0.0)) * sigma_p < goal

    def prepare(self, weight: Image) -> bool:
        """Factor the preconditioner for these weights, in float64 if float32 is too coarse."""
        for dtype, least_pivot in _LEAST_PIVOT.items():
            if torch.finfo(dtype).bits < torch.finfo(self.dtype).bits:
                continue
            matrix = self.objective.preconditioner(weight.to(dtype))
            self.factor = factorise(matrix, max_jitter=0.0, least_pivot=least_pivot)
            if self.factor is not None:
                self.dtype, self.curvature = dtype, weight.to(dtype)
                return True
        return False

    def iterate(self, rhs: Params, tol: float) -> CGResult:
        factor, curvature = self.factor, self.curvature
        assert factor is not None
        assert curvature is not None
        result = conjugate_gradients(
            lambda v: self.objective.hessian_product(curvature, v), rhs, factor, tol, _MAX_CG
        )
        self.slow = result.iterations > _SLOW_CG
        return result

    def ridge_value(self, theta: Params) -> float:
        return 0.0

    def ridge_gradient(self, theta: Params) -> float:
        return 0.0

    def findings(self) -> tuple[Finding, ...]:
        return ()


class _Matrix:
    """Newton systems solved by factoring the normal matrix.

    The factor is kept for the next step while that converges fast. A jitter that the matrix needs
    stays in the objective as a ridge, lest the descent creep along undetermined directions.
    """

    def __init__(self, objective: Objective, fallback: bool = False) -> None:
        self.objective = objective
        self.fallback = fallback
        # What was too hard without the matrix is too close to singular for a coarse one.
        self.dtype = torch.float64 if fallback else objective.dtype
        self.refined = False
        self.jitter = 0.0
        self.factor: Factor | None = None
        self.previous = math.inf
        self.ridge = torch.zeros(
            objective.model.n_params, dtype=torch.float64, device=objective.target.device
        )

    def solve(self, weight: Image, rhs: Params) -> Params | None:
        """H^-1 rhs for fixed weights."""
        factor = self.factorise(weight, self.dtype, 0.0)
        factor = factor or self.factorise(weight, torch.float64, 1e-6)
        return None if factor is None else factor.solve(rhs)

    def newton_move(self, curvature: Image, gradient: Callable[[], Params]) -> _Move | None:
        if self.factor is not None:
            move = self.repeat(gradient())
            if move.decrement <= _CHORD_DROP * self.previous:
                self.previous = move.decrement
                return move
        self.factor = self.positive_definite(curvature)
        if self.factor is None:
            return None
        move = self.repeat(gradient())  # with the ridge, if there is one now
        self.previous = move.decrement
        return move

    def repeat(self, gradient: Params) -> _Move:
        assert self.factor is not None
        step = self.factor.solve(gradient)
        return _Move(step, 0.5 * float(gradient @ step))

    def estimate(self, gradient: Params) -> float:
        return self.repeat(gradient).decrement

    def is_exact(self, decrement: float) -> bool:
        return False  # a step more costs little: go on until rounding stops it

    def positive_definite(self, curvature: Image) -> Factor | None:
        """A factor of the Hessian or of the nearest safe matrix: exact h, |h|, and then a ridge."""
        candidates = [curvature]
        if (curvature < 0).any():
            candidates.append(curvature.abs())
        for candidate in candidates:
            for dtype in dict.fromkeys((self.dtype, torch.float64)):
                factor = self.factorise(candidate, dtype, max_jitter=0.0)
                if factor is not None:
                    return factor
        return self.factorise(candidates[-1], torch.float64, max_jitter=1e-6)

    def factorise(self, weight: Image, dtype: torch.dtype, max_jitter: float) -> Factor | None:
        """Factor A' diag(weight) A; jitter that it needs stays in the objective as a ridge."""
        matrix = self.objective.hessian(weight, dtype) + torch.diag(self.ridge)
        factor = factorise(matrix, max_jitter)
        if factor is not None:
            self.refined |= dtype != self.dtype
            self.jitter = max(self.jitter, factor.jitter)
            self.ridge = self.ridge + factor.jitter * matrix.diagonal()
        return factor

    def ridge_value(self, theta: Params) -> float:
        return 0.5 * float(self.ridge @ theta**2)

    def ridge_gradient(self, theta: Params) -> Params:
        return self.ridge * theta

    def findings(self) -> tuple[Finding, ...]:
        if self.jitter:
            return (singular_finding(self.jitter),)
        if self.refined:
            finding = Finding(
                "float64-matrix",
                f"The normal matrix was too close to singular for {self.objective.dtype} and was "
                "computed in float64.",
            )
        elif self.fallback:
            finding = Finding(
                "matrix-computed",
                "The fit could not be solved without the normal matrix, which was computed; this "
                "takes longer and is as exact.",
            )
        else:
            return ()
        return (finding,)
