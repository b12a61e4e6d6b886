"""Linear systems without a matrix: preconditioned conjugate gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..arrays import Params
from ..linalg import Factor

__all__ = ["CGResult", "conjugate_gradients"]


class CGResult(NamedTuple):
    """Where the iteration ended.

    ``solved`` (...,) is False where the goal was not reached or a direction of negative curvature
    was met. ``residual`` is what is left of the right-hand side, and ``reduction`` (...,) its size
    relative to the beginning.
    """

    solution: Params
    iterations: int
    solved: Tensor
    residual: Params
    reduction: Tensor


Product = Callable[[Params], Params]


def conjugate_gradients(
    product: Product,
    rhs: Params,
    preconditioner: Factor,
    tol: float | Tensor,
    max_iterations: int,
    subset: Callable[[Tensor], Product] | None = None,
) -> CGResult:
    """Solve H x = rhs for a symmetric positive definite H that is known by its products.

    Systems stacked along leading axes are solved side by side; each stops at its own goal.

    Parameters
    ----------
    product : callable
        v -> H v, for v of the shape of ``rhs``.
    rhs : Params
        (..., p), float64.
    preconditioner : Factor
        Factor of a matrix close to H.
    tol : float or Tensor
        Goal for the residual relative to the right-hand side, both in the norm of the inverse
        preconditioner; one for all or (...,).
    max_iterations : int
    subset : callable, optional
        From the numbers of some systems to the product of those alone, for ``rhs`` (..., systems,
        p): once half of them are solved, the others go on by themselves.
    """
    solution, residual = torch.zeros_like(rhs), rhs
    direction = scaled = preconditioner.solve(residual)
    size = first = _dot(residual, scaled)
    goal = torch.as_tensor(tol, dtype=rhs.dtype, device=rhs.device) ** 2 * first
    active, failed = size > 0, ~(size >= 0)
    done: list[tuple[Tensor, tuple[Tensor, ...]]] = []
    rows = None if subset is None else torch.arange(rhs.shape[-2], device=rhs.device)
    iteration = 0
    while iteration < max_iterations and bool(active.any()):
        unsolved = active.reshape(-1, active.shape[-1]).any(dim=0) if rows is not None else active
        if subset is not None and rows is not None and 2 * int(unsolved.sum()) <= len(rows):
            rest = unsolved.nonzero()[:, 0]
            done.append((rows, (solution, residual, size, failed, active)))
            rows, preconditioner = rows[rest], preconditioner[rest]
            product = subset(rows)
            solution, residual, direction = (
                vectors[..., rest, :] for vectors in (solution, residual, direction)
            )
            size, goal, failed, active = (
                numbers[..., rest] for numbers in (size, goal, failed, active)
            )
        iteration += 1
        image = product(direction)
        curvature = _dot(direction, image)
        failed = failed | (active & ~(curvature > 0))
        active = active & ~failed
        step, moving = (size / curvature)[..., None], active[..., None]
        solution = torch.where(moving, solution + step * direction, solution)
        residual = torch.where(moving, residual - step * image, residual)
        scaled = preconditioner.solve(residual)
        previous, size = size, torch.where(active, _dot(residual, scaled), size)
        active = active & (size > goal)
        onward = scaled + (size / previous)[..., None] * direction
        direction = torch.where(active[..., None], onward, 0.0)
    if rows is not None:
        for its_rows, before in reversed(done):
            now = (solution, residual, size, failed, active)
            place = torch.isin(its_rows, rows).nonzero()[:, 0]
            solution, residual, size, failed, active = (
                old.index_copy(old.ndim - (2 if old.ndim == rhs.ndim else 1), place, new)
                for old, new in zip(before, now, strict=True)
            )
            rows = its_rows
    reduction = torch.where(first > 0, size / first, 0.0).clamp(min=0.0).sqrt()
    return CGResult(solution, iteration, ~(failed | active), residual, reduction)


def _dot(a: Params, b: Params) -> Tensor:
    return (a * b).sum(dim=-1)
