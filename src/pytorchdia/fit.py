"""From an objective to its solutions and their error bars, with or without a prior."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from .arrays import Image, Kernel
from .checks import require_variance, require_variance_at_start
from .errors import Status
from .fisher import Uncertainty, uncertainties_of_stack, uncertainty
from .kernel import BasisKernel
from .objective import Objective
from .penalty import Penalty
from .prior import KernelPrior
from .regularise import (
    ReferenceVariance,
    Regularised,
    in_pixels,
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
        first = solver.on_the_way() if isinstance(penalty, KernelPrior) else solver
        solutions = first.solve_all(objective, theta0, on_step)
        if any(s.status is not Status.CONVERGED for s in solutions):
            require_variance_at_start(objective)
        prior = None
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
            quick = uncertainties_of_stack(objective, solutions, self._reference_variances())
        found = []
        for i, (solution, errors) in enumerate(zip(solutions, quick, strict=True)):
            one = objective.pair(i)
            if errors is None:
                errors = uncertainty(
                    _unclipped(one, solution), solution.theta, covariance, solution.system,
                    self.reference_variance and self.reference_variance(i),
                )  # fmt: skip
            if self.prior is not None:
                errors = uncertainty_in_pixels(one, errors, self.prior.priors[i])
            found.append(errors)
        return found

    def _reference_variances(self) -> Image | None:
        """sigma_R^2 [ADU^2] of each pair of a stack, (pairs, h, w); None if no noise is known."""
        if self.reference_variance is None:
            return None
        each = [self.reference_variance(i) for i in range(len(self.solutions))]
        known = [image for image in each if image is not None]
        if not known:
            return None
        return torch.stack([torch.zeros_like(known[0]) if i is None else i for i in each])

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
