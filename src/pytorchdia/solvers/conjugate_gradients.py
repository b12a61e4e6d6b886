"""Linear systems without a matrix: preconditioned conjugate gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from ..arrays import Params
from ..linalg import Factor

__all__ = ["CGResult", "conjugate_gradients"]


class CGResult(NamedTuple):
    """Where the iteration ended.

    ``solved`` is False if the goal was not reached or a direction of negative curvature was met.
    """

    solution: Params
    iterations: int
    solved: bool


def conjugate_gradients(
    product: Callable[[Params], Params],
    rhs: Params,
    preconditioner: Factor,
    tol: float,
    max_iterations: int,
) -> CGResult:
    """Solve H x = rhs for a symmetric positive definite H that is known by its products.

    Parameters
    ----------
    product : callable
        v -> H v.
    rhs : Params
    preconditioner : Factor
        Factor of a matrix close to H.
    tol : float
        Goal for the residual relative to the right-hand side, both in the norm of the inverse
        preconditioner.
    max_iterations : int
    """
    solution = torch.zeros_like(rhs)
    residual = rhs
    direction = scaled = preconditioner.solve(residual)
    size = first = float(residual @ scaled)
    for iteration in range(1, max_iterations + 1):
        image = product(direction)
        curvature = float(direction @ image)
        if not curvature > 0:
            return CGResult(solution, iteration, size <= 0)
        step = size / curvature
        solution = solution + step * direction
        residual = residual - step * image
        scaled = preconditioner.solve(residual)
        previous, size = size, float(residual @ scaled)
        if size <= tol**2 * first:
            return CGResult(solution, iteration, True)
        direction = scaled + (size / previous) * direction
    return CGResult(solution, max_iterations, False)
