"""Newton's method with exact second derivatives, damped, safe where the loss is not convex."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import torch

from ..arrays import Params
from ..errors import Finding, InputError, Status
from ..objective import Evaluation, Objective
from .base import OnStep, Solution, Solver, Step, flat_start
from .inexact_newton import descend
from .systems import ARMIJO, MatrixFree, Move, WithMatrix

__all__ = ["Newton"]

_MANY = 8  # steps that need an explanation if there are more
_FAR = 3.0  # sigma
_ON_THE_WAY = 0.01  # share of tol for a fit that hyperparameters come from, not polished
_POLISH = 5  # steps with a kept factor after convergence, down to rounding


@dataclass(frozen=True)
class Newton(Solver):
    """Newton steps theta - t H^-1 grad, with H = A' diag(h) A from the pixels' own curvatures.

    The curvature h of each pixel's loss is exact. Each system is solved without the matrix, by
    conjugate gradients with the Cholesky factor of a block-Toeplitz approximation of H as
    preconditioner, and only as accurately as the step deserves. Unless a starting point is given,
    the first step is the weighted least squares solution with the target's own variances (the
    first round of Bramich 2008), from where few Newton steps remain. A stack of pairs is solved
    side by side.

    A pair for which full steps do not do is taken on by itself: where H is not positive definite
    (robust losses far from the minimum), ``|h|`` takes the place of h, which is positive
    semi-definite for any loss; steps are halved until the loss falls; where none does, a
    reweighted least squares step is taken; and where a system cannot be solved without the matrix,
    the matrix is computed and factored, and the result says so.

    Parameters are float64, and so are loss and gradient where they decide. The products with H run
    in the dtype of the objective, and so do the passes over the pixels far from the minimum; in
    float64 where that is too coarse. If H is singular even then, the least ridge that helps (1e-12
    of its diagonal or more) is added to the objective, and reported.

    Parameters
    ----------
    tol : float
        Goal for the Newton decrement grad' H^-1 grad / 2, the predicted drop of the loss, in units
        of ln likelihood.
    max_steps : int
        Upper limit of steps.
    matrix_free : bool
        False computes and factors the normal matrix in every case: the slow twin.
    polish : bool
        After the goal, repeat steps until P is exact to rounding.
    """

    tol: float = 1e-6
    max_steps: int = 50
    matrix_free: bool = True
    polish: bool = True

    def __post_init__(self) -> None:
        if not (self.tol > 0 and math.isfinite(self.tol)):
            raise InputError(f"Newton needs a finite tol > 0, got {self.tol}; 1e-6 is usual.")
        if self.max_steps < 1:
            raise InputError(f"Newton needs at least 1 step, got max_steps = {self.max_steps}.")

    def on_the_way(self) -> Newton:
        return replace(self, tol=_ON_THE_WAY * self.tol, polish=False)

    def solve(
        self, objective: Objective, theta0: Params | None = None, on_step: OnStep | None = None
    ) -> Solution:
        start = None if theta0 is None else theta0[None]
        return self.solve_stack(objective.as_stack(), start, on_step)[0]

    def solve_stack(
        self, objective: Objective, theta0: Params | None = None, on_step: OnStep | None = None
    ) -> list[Solution]:
        """Side by side as far as that goes, then one by one."""
        start = None if theta0 is None else theta0.to(torch.float64)
        left: dict[int, tuple[Params | None, int]] = {
            i: (None if start is None else start[i], 0) for i in range(len(objective.target))
        }
        solutions: dict[int, Solution] = {}
        if self.matrix_free:
            done, left = descend(objective, self.tol, self.max_steps, start, on_step, self.polish)
            solutions.update(done)
        for i, (theta, steps) in left.items():
            one = objective[i]
            descent = _Descent(self, one, on_step, steps)
            if theta is None:
                solutions[i] = descent.run(flat_start(one), least_squares_first=True)
            else:
                solutions[i] = descent.run(theta, least_squares_first=False)
        return [_explained(objective[i], solutions[i]) for i in range(len(objective.target))]


def _explained(objective: Objective, solution: Solution) -> Solution:
    """The solution, and why it took long if it did."""
    if solution.steps <= _MANY or solution.status is not Status.CONVERGED:
        return solution
    with torch.no_grad():
        model = objective.model.mv(solution.theta)
        sigma = objective.variance(model).sqrt()
    far = ((objective.target.to(model) - model).abs() > _FAR * sigma) & objective.use
    count, used = int(far.sum()), int(objective.use.sum())
    finding = Finding(
        "many-steps",
        f"The fit took {solution.steps} steps because the loss is not well described by a parabola "
        f"on the way: {count} of {used} pixels ({100 * count / used:.2g} %) lie more than "
        f"{_FAR:.0f} sigma from the model even now. Is the noise model right for them "
        "(noise of the reference, saturation, cosmic rays), or should they be masked?",
    )
    return replace(solution, findings=(*solution.findings, finding))


_Answer = TypeVar("_Answer")


class _Point(NamedTuple):
    theta: Params
    terms: Evaluation


class _Descent:
    """One descent: the way in which its systems are solved, and the ridge that they needed."""

    def __init__(
        self, options: Newton, objective: Objective, on_step: OnStep | None, steps: int = 0
    ) -> None:
        self.options = options
        self.objective = objective
        self.on_step = on_step
        self.steps = steps
        self.evaluations = 0
        self.system: MatrixFree | WithMatrix = WithMatrix(objective)
        if options.matrix_free:
            self.system = MatrixFree(objective)

    def run(self, theta: Params, least_squares_first: bool) -> Solution:
        first = self.least_squares(theta) if least_squares_first else None
        point, steps = (self.at(theta), 0) if first is None else (first, 1)
        steps += self.steps
        while math.isfinite(self.loss(point)):
            move = self.newton_move(point)
            if move is None:
                break
            self.tell(steps, self.loss(point), move.decrement)
            if move.decrement <= self.options.tol:
                decrement = move.decrement
                if self.options.polish:
                    point, decrement = self.polish(point, move)
                return self.finish(point, Status.CONVERGED, steps, decrement)
            if steps >= self.options.max_steps:
                return self.finish(point, Status.MAX_STEPS, steps, move.decrement)
            lower = self.line_search(point, move) or self.majorised_step(point)
            if lower is None:
                return self.finish(point, Status.STALLED, steps, move.decrement)
            point, steps = lower, steps + 1
        return self.finish(point, Status.NOT_FINITE, steps, None)

    def at(self, theta: Params) -> _Point:
        self.evaluations += 1
        return _Point(theta, self.objective.evaluate(theta))

    def loss(self, point: _Point) -> float:
        return float(point.terms.loss) + self.system.ridge_value(point.theta)

    def gradient(self, point: _Point) -> Params:
        return point.terms.gradient + self.system.ridge_gradient(point.theta)

    def newton_move(self, point: _Point) -> Move | None:
        """The Newton step at ``point``."""
        curvature = point.terms.curvature
        assert curvature is not None
        return self.ask(lambda system: system.newton_move(curvature, lambda: self.gradient(point)))

    def ask(self, question: Callable[[MatrixFree | WithMatrix], _Answer | None]) -> _Answer | None:
        """The answer of the system in use, or of the matrix from now on if it has none."""
        answer = question(self.system)
        if answer is None and isinstance(self.system, MatrixFree):
            self.system = WithMatrix(self.objective, fallback=True)
            answer = question(self.system)
        return answer

    def least_squares(self, start: Params) -> _Point | None:
        """The least squares solution with 1/sigma^2(I) as weights, if it beats ``start``."""
        o = self.objective
        loss = float(o.evaluate(start, curvature=False).loss)
        if not math.isfinite(loss):
            return None
        self.tell(0, loss, math.inf)
        weight, rhs = o.weighted_target()
        theta = self.ask(lambda system: system.solve(weight, rhs))
        if theta is None:
            return None
        there = self.at(theta)
        return there if self.loss(there) < loss else None

    def line_search(self, point: _Point, move: Move) -> _Point | None:
        loss, t = self.loss(point), 1.0
        for _ in range(25):
            trial = self.at(point.theta - t * move.step)
            rounding = 1e-14 * abs(loss)
            if self.loss(trial) <= loss - ARMIJO * t * 2.0 * move.decrement + rounding:
                return trial
            t *= 0.5
        return None

    def majorised_step(self, point: _Point) -> _Point | None:
        """A reweighted least squares step, for losses whose curvature vanishes almost everywhere.

        The weight -g / (I - M) is positive wherever the loss grows with the residual (for Huber
        beyond c, where h is 0), and the step lowers the loss where Newton's does not.
        """
        o = self.objective
        weight = o.majoriser(point.theta)
        gradient = self.gradient(point)
        step = MatrixFree(o).solve(weight, gradient)
        if step is None:
            step = WithMatrix(o, fallback=True).solve(weight, gradient)
        if step is None:
            return None
        return self.line_search(point, Move(step, 0.5 * float(gradient @ step)))

    def polish(self, point: _Point, move: Move) -> tuple[_Point, float]:
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
            float(point.terms.loss),
            steps,
            self.evaluations,
            decrement,
            findings=self.system.findings(),
            system=self.system.system(),
        )
