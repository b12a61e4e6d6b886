"""The classical solution: iterated weighted linear least squares (Bramich 2008, section 2.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ..arrays import Image, Mask, Params
from ..errors import Finding, InputError, Status
from ..likelihood import Gaussian
from ..linalg import Factor, cholesky, factorise
from ..objective import Objective
from .base import OnStep, Solution, Solver, Step, flat_start, singular_finding
from .conjugate_gradients import conjugate_gradients
from .systems import LEAST_PIVOT

__all__ = ["NormalEquations"]

_CG_TOL = 1e-11  # of the right-hand side
_MAX_CG = 300
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
    matrix_free : bool
        Solve each round by conjugate gradients, all pairs of a stack side by side, until the
        residual is 1e-11 of the right-hand side (in the norm of the inverse preconditioner); a
        pair for which that fails gets its matrix. Else compute and factor each matrix.
    """

    iterations: int = 3
    k_sigma: float | None = None
    matrix_free: bool = False

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
        start = None if theta0 is None else theta0[None]
        return self._rounds(objective.as_stack(), start, on_step)[0]

    def solve_stack(
        self, objective: Objective, theta0: Params | None = None, on_step: OnStep | None = None
    ) -> list[Solution]:
        if not self.matrix_free:  # one after the other takes less memory
            return super().solve_stack(objective, theta0, on_step)
        return self._rounds(objective, theta0, on_step)

    def _rounds(
        self, stack: Objective, theta0: Params | None, on_step: OnStep | None
    ) -> list[Solution]:
        if not isinstance(stack.likelihood, Gaussian):
            raise InputError(
                f"NormalEquations is least squares and knows only the Gaussian likelihood, got "
                f"{stack.likelihood}; use Newton for a robust loss."
            )
        stack = replace(stack, target=stack.target.to(torch.float64))
        everything, now, theta = stack.use, stack, flat_start(stack)
        model = stack.target if theta0 is None else stack.model.mv(theta0)
        failed: dict[int, int] = {}  # in which round
        jitter = [0.0] * len(stack.target)
        for number in range(1, self.iterations + 1):
            variance = torch.where(everything, stack.noise.variance(model), 1.0)
            if self.k_sigma is not None and number > 1:
                far = ((stack.target - model) / variance.sqrt()).abs() > self.k_sigma
                now = replace(stack, use=everything & ~far)
            weight = torch.where(now.use, 1.0 / variance, 0.0)
            rhs = stack.model.rmv(weight * stack.target)
            solved = torch.zeros(len(jitter), dtype=torch.bool)
            if self.matrix_free:
                solution, solved = _by_conjugate_gradients(now, weight, rhs, theta)
                solved[list(failed)] = False
                theta = torch.where(solved[:, None], solution, theta)
            for i in (~solved).nonzero()[:, 0].tolist():
                if i in failed:
                    continue
                exact = _by_the_matrix(now[i], weight[i], rhs[i])
                if exact is None:
                    failed[i] = number
                else:
                    theta[i] = exact[0]
                    jitter[i] = max(jitter[i], exact[1])
            if len(failed) == len(jitter):
                break
            model = stack.model.mv(theta)
            if on_step is not None:
                on_step(Step(number, float(_losses(now, theta).sum()), f"{self.iterations} rounds"))
        losses, clipped = _losses(now, theta), everything & ~now.use
        return [
            self._failure(theta[i], failed[i])
            if i in failed
            else self._solution(theta[i], float(losses[i]), clipped[i], everything[i], jitter[i])
            for i in range(len(jitter))
        ]

    def _failure(self, theta: Params, number: int) -> Solution:
        return Solution(theta, Status.NOT_FINITE, math.inf, number - 1, number)

    def _solution(
        self, theta: Params, loss: float, clipped: Mask, everything: Mask, jitter: float
    ) -> Solution:
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


def _by_the_matrix(objective: Objective, weight: Image, rhs: Params) -> tuple[Params, float] | None:
    """The solution for one pair, refined once, and the jitter that its matrix needed."""
    factor = factorise(objective.hessian(weight, torch.float64))
    if factor is None or objective.n_data <= objective.model.n_params:
        return None
    theta = factor.solve(rhs)
    theta = theta + factor.solve(rhs - objective.hessian_product(weight, theta))
    return theta, factor.jitter


def _by_conjugate_gradients(
    stack: Objective, weight: Image, rhs: Params, start: Params
) -> tuple[Params, Tensor]:
    """The solutions for a stack, and which of them reached the goal."""
    factor, good = cholesky(stack.preconditioner(weight), LEAST_PIVOT[torch.float64])
    good = good & (stack.counts > stack.model.n_params).to(good.device)
    rhs = torch.where(good[:, None], rhs, 0.0)
    tiled = [stack.model.padded_part(weight, i) for i in range(len(stack.model.chunks))]
    product = partial(stack.hessian_product, tiled)
    subset = partial(stack.subset, tiled)
    start = torch.where(good[:, None], start, 0.0)
    left = rhs - product(start)
    goal = _CG_TOL * (_size(factor, rhs) / _size(factor, left)).clamp(min=1.0, max=1e10)
    result = conjugate_gradients(product, left, factor, goal, _MAX_CG, subset)
    return start + result.solution, good & result.solved


def _size(factor: Factor, vector: Params) -> Tensor:
    """In the norm of the inverse preconditioner, (...,)."""
    return (vector * factor.solve(vector)).sum(dim=-1).clamp(min=1e-300).sqrt()


def _losses(objective: Objective, theta: Params) -> Tensor:
    return objective.evaluate(theta, curvature=False).loss
