"""From an objective to its solutions and their error bars, with or without a prior."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from .arrays import Kernel
from .checks import require_variance, require_variance_at_start
from .errors import Status
from .fisher import Uncertainty, uncertainties_of_stack, uncertainty, with_reference_noise
from .kernel import BasisKernel
from .objective import Objective
from .penalty import Penalty
from .prior import KernelPrior
from .regularise import (
    ReferenceVariance,
    Regularised,
    in_pixels,
    joined,
    regularise,
    uncertainty_in_pixels,
)
from .solvers import Solution, Solver
from .solvers.base import OnStep, start_with

__all__ = ["Fits"]


@dataclass(frozen=True)
class Fits:
    """Fits of one pair or of a stack: in pixels, and under a prior also in its coefficients."""

    plain: Objective
    solutions: list[Solution]
    prior: Regularised | None
    solver: Solver
    reference_variance: ReferenceVariance | None = None

    @classmethod
    def of(
        cls,
        objective: Objective,
        solver: Solver,
        penalty: Penalty | KernelPrior | None,
        on_step: OnStep | None,
        reference_variance: ReferenceVariance | None = None,
        start: Kernel | None = None,
    ) -> Fits:
        require_variance(objective)
        theta0 = None
        if start is not None:
            theta0 = start_with(objective, start)
            theta0 = theta0 if theta0.ndim > 1 else theta0[None]
        twice = isinstance(penalty, KernelPrior) or objective.likelihood.tolerance > 0
        first = solver.on_the_way() if twice else solver
        solutions = first.solve_all(objective, theta0, on_step)
        if any(s.status is not Status.CONVERGED for s in solutions):
            require_variance_at_start(objective)
        prior = None
        if objective.likelihood.tolerance:
            theta = torch.stack([solution.theta for solution in solutions])
            objective = objective.tolerant(theta[0] if objective.target.ndim == 2 else theta)
            if not isinstance(penalty, KernelPrior):  # else the second fit is still to come
                again = solver.solve_all(objective, theta, on_step)
                solutions = [joined(*each) for each in zip(solutions, again, strict=True)]
        if isinstance(penalty, KernelPrior):
            prior = regularise(objective, solutions, penalty, solver, on_step, reference_variance)
        return cls(objective, solutions, prior, solver, reference_variance)

    @property
    def _final(self) -> tuple[Objective, list[Solution]]:
        if self.prior is None:
            return self.plain, self.solutions
        return self.prior.objective, self.prior.solutions

    def errors(self, covariance: bool | None) -> list[Uncertainty]:
        """Error bars of each pair; those of a stack side by side where that can be done."""
        objective, solutions = self._final
        if covariance is None:
            unknown = (math.inf,) * objective.model.background.n_params
            return [Uncertainty(math.inf, unknown, None, (), known=False)] * len(solutions)
        quick: list[Uncertainty | None] = [None] * len(solutions)
        alone = objective.target.ndim == 2
        if not (alone or covariance) and not any(s.clipped is not None for s in solutions):
            quick = uncertainties_of_stack(objective, [s.system for s in solutions])
        found = []
        for i, (solution, errors) in enumerate(zip(solutions, quick, strict=True)):
            one = _unclipped(objective.pair(i), solution)
            if errors is None:
                errors = uncertainty(one, solution.theta, covariance, solution.system)
            sigma2 = self.reference_variance(i, one.dtype) if self.reference_variance else None
            if self.prior is not None:
                prior = self.prior.priors[i]
                errors = uncertainty_in_pixels(one, solution, errors, prior, sigma2)
            elif sigma2 is not None:
                errors = with_reference_noise(one, solution.theta, errors, sigma2, solution.system)
            found.append(replace(errors, directions=None))
        return found

    def true_kernel(self, i: int) -> Kernel | None:
        """The kernel between the noiseless images, (ky, kx), if :meth:`in_pixels` has another."""
        objective, solutions = self._final
        kernel = objective.model.kernel
        if not isinstance(kernel, BasisKernel) or kernel.true_basis is None:
            return None
        one = objective.pair(i).model
        return one.kernel.true_image(one.split(solutions[i].theta)[0])

    def in_pixels(self, i: int) -> tuple[Objective, Solution]:
        """The fit of the i-th pair with a parameter for each kernel pixel."""
        objective, solution = self.plain.pair(i), self._final[1][i]
        if self.prior is not None:
            theta = in_pixels(self.prior.objective.pair(i), solution.theta)
            solution = replace(solution, theta=theta)
        if solution.system is not None:
            solution.system.curvature.clear()
        return _unclipped(objective, solution), replace(solution, system=None)


def _unclipped(objective: Objective, solution: Solution) -> Objective:
    if solution.clipped is None:
        return objective
    return replace(objective, use=objective.use & ~solution.clipped)
