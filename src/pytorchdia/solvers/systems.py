"""The linear systems of one Newton step: without the matrix, or with it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..arrays import Params, Tiled
from ..errors import Finding
from ..linalg import Factor, cholesky, factorise
from ..objective import Objective
from .base import System, singular_finding
from .conjugate_gradients import CGResult, conjugate_gradients

__all__ = [
    "ARMIJO",
    "EXACT_SCALE",
    "LEAST_PIVOT",
    "MAX_CG",
    "MatrixFree",
    "Move",
    "WithMatrix",
    "absolute",
    "has_negative",
    "scale_error",
]

ARMIJO = 1e-4  # least share of the predicted decrease that a step must bring
MAX_CG = 80  # iterations after which another way is taken
EXACT_SCALE = {torch.float32: 1e-8, torch.float64: 1e-13}  # goal for P, by the objective's dtype

_FIRST_TOL = 1e-3  # relative residual of the least squares start by conjugate gradients
_STEP_TOL = 3e-3  # and of a Newton step
_SLOW_CG = 25  # iterations after which the preconditioner is renewed
# Precisions of the products in order, each with the least pivot of a preconditioner that it bears.
LEAST_PIVOT = {torch.float32: 1e-6, torch.float64: 1e-11}
_CHORD_DROP = 1e-2  # a factor is kept while each step cuts the decrement by this much


class Move(NamedTuple):
    """A Newton step (to be subtracted) and the drop of the loss that it predicts."""

    step: Tensor
    decrement: float


def absolute(curvature: Tiled) -> Tiled:
    """The absolute h; the list itself if h is nowhere negative."""
    if not has_negative(curvature):
        return curvature
    return [part.abs() for part in curvature]


def has_negative(curvature: Tiled) -> bool:
    """Whether the loss curves down somewhere."""
    return any(bool((part < 0).any()) for part in curvature)


def candidates(curvature: Tiled) -> list[Tiled]:
    """The exact h, and |h| if it differs."""
    other = absolute(curvature)
    return [curvature] if other is curvature else [curvature, other]


def scale_error(objective: Objective, factor: Factor) -> Tensor:
    """The error of P with the preconditioner in place of H, (...,)."""
    gradient = objective.model.scale_gradient().expand_as(factor.scale)
    return (gradient * factor.solve(gradient)).sum(dim=-1).clamp(min=0.0).sqrt()


class MatrixFree:
    """Newton systems solved by preconditioned conjugate gradients."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.dtype = objective.dtype
        self.factor: Factor | None = None
        self.curvature: Tiled | None = None
        self.slow = False

    def solve(self, weight: Tiled, rhs: Params) -> Params | None:
        """H^-1 rhs for fixed weights, as far as a first step needs it."""
        if not self.prepare(weight):
            return None
        result = self.iterate(rhs, _FIRST_TOL)
        return result.solution if bool(result.solved) else None

    def newton_move(self, curvature: Tiled, gradient: Callable[[], Params]) -> Move | None:
        if (self.factor is None or self.slow) and not self.prepare(absolute(curvature)):
            return None
        rhs = gradient()
        for candidate in candidates(curvature):
            self.curvature = _in(self.dtype, candidate)
            result = self.iterate(rhs, _STEP_TOL)
            if bool(result.solved):
                return Move(result.solution, 0.5 * float(rhs @ result.solution))
        return None

    def repeat(self, gradient: Params) -> Move:
        step = self.iterate(gradient, _STEP_TOL).solution
        return Move(step, 0.5 * float(gradient @ step))

    def estimate(self, gradient: Params) -> float:
        """The decrement with the preconditioner in place of H."""
        assert self.factor is not None
        return 0.5 * float(gradient @ self.factor.solve(gradient))

    def is_exact(self, decrement: float) -> bool:
        """Whether what a decrement is left moves P by less than rounding matters."""
        assert self.factor is not None
        sigma_p = float(scale_error(self.objective, self.factor))
        return math.sqrt(2.0 * max(decrement, 0.0)) * sigma_p < EXACT_SCALE[self.objective.dtype]

    def prepare(self, weight: Tiled) -> bool:
        """Factor the preconditioner for these weights, in float64 if float32 is too coarse."""
        for dtype, least_pivot in LEAST_PIVOT.items():
            if torch.finfo(dtype).bits < torch.finfo(self.dtype).bits:
                continue
            matrix = self.objective.preconditioner(_in(dtype, weight))
            self.factor, good = cholesky(matrix, least_pivot)
            if bool(good):
                self.dtype, self.curvature = dtype, _in(dtype, weight)
                return True
        self.factor = None
        return False

    def iterate(self, rhs: Params, tol: float) -> CGResult:
        factor, curvature = self.factor, self.curvature
        assert factor is not None
        assert curvature is not None
        result = conjugate_gradients(
            lambda v: self.objective.hessian_product(curvature, v), rhs, factor, tol, MAX_CG
        )
        self.slow = result.iterations > _SLOW_CG
        return result

    def ridge_value(self, theta: Params) -> float:
        return 0.0

    def ridge_gradient(self, theta: Params) -> float:
        return 0.0

    def findings(self) -> tuple[Finding, ...]:
        return ()

    def system(self) -> System | None:
        """The Hessian as last used."""
        if self.factor is None or self.curvature is None:
            return None
        return System(self.curvature, self.factor)


class WithMatrix:
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

    def solve(self, weight: Tiled, rhs: Params) -> Params | None:
        """H^-1 rhs for fixed weights."""
        factor = self.factorise(weight, self.dtype, 0.0)
        factor = factor or self.factorise(weight, torch.float64, 1e-6)
        return None if factor is None else factor.solve(rhs)

    def newton_move(self, curvature: Tiled, gradient: Callable[[], Params]) -> Move | None:
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

    def repeat(self, gradient: Params) -> Move:
        assert self.factor is not None
        step = self.factor.solve(gradient)
        return Move(step, 0.5 * float(gradient @ step))

    def estimate(self, gradient: Params) -> float:
        return self.repeat(gradient).decrement

    def is_exact(self, decrement: float) -> bool:
        return False  # a step more costs little: go on until rounding stops it

    def positive_definite(self, curvature: Tiled) -> Factor | None:
        """A factor of the Hessian or of the nearest safe matrix: h, its absolute, then a ridge."""
        tried = candidates(curvature)
        for candidate in tried:
            for dtype in dict.fromkeys((self.dtype, torch.float64)):
                factor = self.factorise(candidate, dtype, max_jitter=0.0)
                if factor is not None:
                    return factor
        return self.factorise(tried[-1], torch.float64, max_jitter=1e-6)

    def factorise(self, weight: Tiled, dtype: torch.dtype, max_jitter: float) -> Factor | None:
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

    def system(self) -> System | None:
        return None


def _in(dtype: torch.dtype, curvature: Tiled) -> Tiled:
    return [part.to(dtype) for part in curvature]
