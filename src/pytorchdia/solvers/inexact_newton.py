"""Inexact Newton for a stack of pairs, side by side, as long as full steps do.

Each step solves its system by conjugate gradients, only as accurately as the step deserves. Far
from the minimum the passes over the pixels run in the dtype of the objective; near it, loss and
gradient are float64, which alone decide where a fit ends. Pairs that need more than this are
handed back.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from ..arrays import Params, Tiled
from ..errors import Finding, Status
from ..linalg import Factor, cholesky
from ..objective import Evaluation, Objective
from .base import OnStep, Solution, Step, System
from .conjugate_gradients import conjugate_gradients
from .systems import (
    ARMIJO,
    EXACT_SCALE,
    LEAST_PIVOT,
    MAX_CG,
    absolute,
    has_negative,
    scale_error,
)

__all__ = ["descend"]

_FIRST_TOL = 1e-3  # relative residual of the least squares start by conjugate gradients,
_FAR_TOL = 5e-3  # of a Newton step far from the minimum,
_NEAR_TOL = 1e-4  # and of one near it
_NEAR = 1.0  # decrement below which a fit is near: from there on float64 decides
_FEW = 10  # iterations after which a closer preconditioner pays
_FEW_SMALL = 30  # and for frames of less than
_SMALL = 2**17  # this many pixels, whose products cost little
_LARGE = 2**22  # pixels from which memory is worth more than one transform of each tile
_SLOW = 1e-3  # share of the decrement that a step near the minimum may leave
_LEAST_SHARE = 0.2  # of a step; one that must be shorter is a matter for the slow path,
_HALVINGS = 4  # and so is a loss that needs more of them than these
_PATIENCE = 4  # steps near the minimum after which a loss counts as rough, if it has not converged:
_ROUGH = 100.0  # it then ends within this many times the goal
_POLISH = 5  # steps within the goal that may be spent on P
# Rounding of a loss, relative to the sum of its terms' sizes, by the dtype of the pass.
_ROUNDING = {torch.float32: 2e-6, torch.float64: 1e-13}

Left = dict[int, tuple[Params | None, int]]


def descend(
    stack: Objective,
    tol: float,
    max_steps: int,
    start: Params | None,
    on_step: OnStep | None,
    polish: bool,
) -> tuple[dict[int, Solution], Left]:
    """Fit all pairs of a stack; in the objective's dtype first, then in float64.

    Parameters
    ----------
    stack : Objective
        Its target is (pairs, h, w).
    tol, max_steps
        As for :class:`~pytorchdia.solvers.Newton`.
    start : Params, optional
        (pairs, p), float64; None starts from weighted least squares.
    on_step : callable, optional
    polish : bool
        Whether P must be exact as well.

    Returns
    -------
    solutions : dict
        By the number of the pair: those that converged, or took all steps that they may.
    left : dict
        The others: where they stand (None: nowhere yet) and the steps taken.
    """
    solutions: dict[int, Solution] = {}
    left: Left = dict.fromkeys(range(len(stack.target)), (None, 0))
    for dtype in dict.fromkeys((stack.dtype, torch.float64)):
        rows = [i for i, (theta, _) in left.items() if theta is None]
        if not rows:
            break
        index = torch.tensor(rows, device=stack.model.device)
        some = stack if len(rows) == len(stack.target) else stack[index]
        descent = _Descent(some, rows, dtype, tol, max_steps, on_step, polish)
        descent.run(None if start is None else start[index])
        solutions |= descent.solutions
        left = {i: where for i, where in left.items() if i not in descent.solutions}
        left |= descent.left
    return solutions, left


class _Descent:
    """The pairs under way in one precision: where they stand, and their systems."""

    def __init__(
        self,
        stack: Objective,
        pairs: list[int],
        dtype: torch.dtype,
        tol: float,
        max_steps: int,
        on_step: OnStep | None,
        polish: bool,
    ) -> None:
        self.objective, self.pairs, self.dtype = stack, pairs, dtype
        self.tol, self.max_steps, self.on_step, self.polish = tol, max_steps, on_step, polish
        device = stack.model.device
        shape = (len(pairs), stack.model.n_params)
        self.active = torch.ones(len(pairs), dtype=torch.bool, device=device)
        self.theta = torch.zeros(shape, dtype=torch.float64, device=device)
        self.begun = False  # whether `theta` is worth starting from
        self.last_theta = self.theta
        self.last_loss = torch.full((len(pairs),), math.inf, dtype=torch.float64, device=device)
        self.last_dtype = dtype
        self.halvings = torch.zeros(len(pairs), dtype=torch.int64, device=device)
        self.last_decrement = self.last_loss
        self.last_left = self.last_loss
        self.curvature: Tiled = []
        self.factor: Factor | None = None
        self.refined = False
        self.near_steps = self.polish_steps = 0
        self.steps = self.evaluations = 0
        self.solutions: dict[int, Solution] = {}
        self.left: Left = {}

    def run(self, start: Params | None) -> None:
        """Fit them: fills ``solutions`` and ``left``."""
        if start is None:
            self.least_squares()
        else:
            self.theta, self.begun = start, True
        while bool(self.active.any()):
            near = self.is_near()
            last = self.steps >= self.max_steps
            dtype = torch.float64 if near or last else self.dtype
            e = self.descended(self.evaluate(dtype), dtype)
            if dtype == torch.float64:
                self.release(e, last)
            if not bool(self.active.any()):
                break
            self.step(e, _NEAR_TOL if near else _FAR_TOL)
            self.shrink()

    def is_near(self) -> bool:
        """Whether the last step of every pair under way was one near the minimum."""
        return self.largest_decrement() < _NEAR

    def least_squares(self) -> None:
        """Start from the least squares solution with weights 1/sigma^2(I)."""
        o = self.objective
        weights, rhs = o.weighted_target()
        self.curvature = self.cast(weights)
        self.prepare()
        self.theta = self.solve(rhs, _FIRST_TOL)
        self.curvature = []
        self.steps, self.begun = 1, True

    def evaluate(self, dtype: torch.dtype) -> Evaluation:
        """Loss, gradient and curvature where the pairs stand now."""
        self.evaluations += 1
        self.curvature = []  # room for the new one
        e = self.objective.evaluate(self.theta, dtype)
        assert e.curvature is not None
        self.curvature = self.cast(e.curvature)
        if self.factor is None:
            self.prepare()
        return e._replace(curvature=None)

    def descended(self, e: Evaluation, dtype: torch.dtype) -> Evaluation:
        """Where all losses fell: after halves of the step for pairs that it led too far.

        Those whose loss does not fall then either, or that were led astray too often, are handed
        back.
        """
        first, share = bool(self.last_loss.isinf().all()), 1.0
        while bool((missed := self.active & ~self.fallen(e, dtype, share)).any()):
            lost = missed & (first | (share < _LEAST_SHARE) | (self.halvings >= _HALVINGS))
            self.hand_back(lost, None if first else self.last_theta)
            missed = missed & ~lost
            if not bool(missed.any()):
                break
            share *= 0.5
            self.halvings = self.halvings + missed
            middle = 0.5 * (self.theta + self.last_theta)
            self.theta = torch.where(missed[:, None], middle, self.theta)
            e = self.evaluate(dtype)
        self.last_loss, self.last_dtype = e.loss, dtype
        return e

    def fallen(self, e: Evaluation, dtype: torch.dtype, share: float) -> Tensor:
        """Whether the loss of each pair fell as a share of the step should make it."""
        coarseness = max(_ROUNDING[dtype], _ROUNDING[self.last_dtype])
        rounding = coarseness * (e.loss.abs() + self.objective.counts)
        goal = self.last_loss - ARMIJO * 2.0 * share * self.last_decrement + rounding
        goal = torch.where(self.last_loss.isinf(), self.last_loss, goal)
        return torch.isfinite(e.loss) & (e.loss <= goal)

    def step(self, e: Evaluation, tol: float) -> None:
        """One full Newton step for every pair under way."""
        move = self.solve(e.gradient, tol)
        decrement = 0.5 * (e.gradient * move).sum(dim=-1)
        self.last_decrement = torch.where(self.active, decrement, 0.0)
        self.last_theta = self.theta
        self.theta = self.theta - torch.where(self.active[:, None], move, 0.0)
        if self.largest_decrement() > self.tol:
            self.steps += 1
        else:
            self.polish_steps += 1
        self.near_steps += self.is_near()
        self.tell()

    def solve(self, rhs: Params, tol: float) -> Params:
        """H^-1 rhs of the pairs under way; those for which it fails are handed back."""
        solution, solved = self.iterate(self.curvature, rhs, tol)
        if not bool(solved[self.active].all()) and has_negative(self.curvature):
            other, also = self.iterate(absolute(self.curvature), rhs, tol)
            solution = torch.where(solved[:, None], solution, other)
            solved = solved | also
        self.hand_back(self.active & ~solved)
        return solution

    def iterate(self, curvature: Tiled, rhs: Params, tol: float) -> tuple[Params, Tensor]:
        """Conjugate gradients; if they are slow, a closer preconditioner is made once."""
        assert self.factor is not None
        rhs = torch.where(self.active[:, None], rhs, 0.0)

        def product(vector: Params) -> Params:
            return self.objective.hessian_product(curvature, vector)

        subset = partial(self.objective.subset, curvature)
        few = _FEW if self.objective.target[0].numel() >= _SMALL else _FEW_SMALL
        few = MAX_CG if self.refined else few
        result = conjugate_gradients(product, rhs, self.factor, tol, few, subset)
        slow = self.active & ~result.solved
        if self.refined or not bool(slow.any()):
            return result.solution, result.solved
        self.refine(slow)
        goal = (tol / result.reduction).clamp(max=0.5)
        residual = torch.where(slow[:, None], result.residual, 0.0)
        more = conjugate_gradients(product, residual, self.factor, goal, MAX_CG, subset)
        return result.solution + more.solution, result.solved | more.solved

    def prepare(self) -> None:
        """Factor the preconditioners; pairs that float32 does not do for are handed back."""
        if self.objective.use.numel() > _LARGE:
            self.objective.model.correlator.forget()  # made anew when they are needed
        matrix = self.objective.preconditioner(absolute(self.curvature))
        self.factor, good = cholesky(matrix, LEAST_PIVOT[self.dtype])
        self.hand_back(self.active & ~good)
        if len(self.pairs) > 1 and self.dtype == torch.float32:
            self.factor = self.factor.with_quick()
        self.scale_error = scale_error(self.objective, self.factor)

    def refine(self, rows: Tensor) -> None:
        """A closer preconditioner for some pairs."""
        assert self.factor is not None
        factors = [self.factor[i] for i in range(len(self.pairs))]
        for i in rows.nonzero()[:, 0].tolist():
            mine = absolute([part[i] for part in self.curvature])
            matrix = self.objective[i].close_preconditioner(mine)
            factor, good = cholesky(matrix, LEAST_PIVOT[self.dtype])
            if bool(good):
                factors[i] = factor if factors[i].quick is None else factor.with_quick()
        self.factor, self.refined = Factor.stack(factors), True
        self.scale_error = scale_error(self.objective, self.factor)

    def release(self, e: Evaluation, last: bool) -> None:
        """Let go of the pairs whose fit has converged, in loss and in P; of all at the last."""
        assert self.factor is not None
        left = 0.5 * (e.gradient * self.factor.solve(e.gradient)).sum(dim=-1)
        exact = (2.0 * left).clamp(min=0.0).sqrt() * self.scale_error
        small = left <= 0.1 * self.tol
        stuck = left > 0.3 * self.last_left  # rounding stops it
        smooth = small & ((exact < EXACT_SCALE[self.objective.dtype]) | stuck | (not self.polish))
        smooth = smooth | (self.last_decrement <= self.tol) & (self.polish_steps >= _POLISH)
        slow = (left > _SLOW * self.last_decrement) & ~small & (left <= _ROUGH * self.tol)
        rough = slow & (self.near_steps >= _PATIENCE)
        converged = smooth | rough
        done = self.active & (converged | last)
        self.last_left = torch.where(small, left, math.inf)
        for i in done.nonzero()[:, 0].tolist():
            self.solutions[self.pairs[i]] = Solution(
                self.theta[i],
                Status.CONVERGED if bool(converged[i]) else Status.MAX_STEPS,
                float(e.loss[i]),
                self.steps,
                self.evaluations,
                float(left[i]),
                findings=(_rough_finding(float(left[i])),) if bool(rough[i] & ~smooth[i]) else (),
                system=System([part[i] for part in self.curvature], self.factor[i]),
            )
        self.active = self.active & ~done

    def hand_back(self, rows: Tensor, theta: Params | None = None) -> None:
        """Give up on some pairs, where they stand or at ``theta``."""
        if theta is None and self.begun:
            theta = self.theta
        for i in rows.nonzero()[:, 0].tolist():
            self.left[self.pairs[i]] = (None if theta is None else theta[i], self.steps)
        self.active = self.active & ~rows

    def shrink(self) -> None:
        """Drop the pairs that are done, once they are half of all."""
        rows = self.active.nonzero()[:, 0]
        if not 0 < len(rows) <= len(self.pairs) // 2:
            return
        assert self.factor is not None
        self.objective = self.objective[rows]
        self.pairs = [self.pairs[i] for i in rows.tolist()]
        self.curvature = [part[rows] for part in self.curvature]
        self.factor = self.factor[rows]
        for name in ("active", "theta", "last_theta", "last_loss", "last_decrement", "last_left",
                     "halvings", "scale_error"):  # fmt: skip
            setattr(self, name, getattr(self, name)[rows])

    def cast(self, curvature: Tiled) -> Tiled:
        return [part.to(self.dtype) for part in curvature]

    def largest_decrement(self) -> float:
        return float(torch.where(self.active, self.last_decrement, 0.0).max())

    def tell(self) -> None:
        if self.on_step is not None:
            largest = self.largest_decrement()
            goal = f"decrement {largest:.1e}, goal {self.tol:.0e}"
            self.on_step(Step(self.steps, float(self.last_loss[self.active].sum()), goal))


def _rough_finding(left: float) -> Finding:
    return Finding(
        "rough-loss",
        f"The loss has kinks where the fit ended (pixels at the floor of the noise model), so that "
        f"steps shrink slowly; one more would lower it by about {left:.0e}.",
    )
