"""Factors of symmetric positive definite matrices that are close to singular."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .arrays import Matrix

__all__ = ["Factor", "cholesky", "factorise"]

_JITTERS = (0.0, 1e-12, 1e-11, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6)


@dataclass(frozen=True)
class Factor:
    """Cholesky factor of a matrix scaled to a unit diagonal, ``jitter`` added to that diagonal.

    ``lower`` is (..., p, p) and ``scale`` (..., p): one matrix, or one for each pair of a stack.
    ``quick`` may hold the inverse of the scaled matrix in float32, for preconditioners: for a stack
    a product with it is quicker than two triangular solutions.
    """

    lower: Matrix
    scale: Tensor
    jitter: float
    quick: Matrix | None = None

    def __getitem__(self, item: int | Tensor) -> Factor:
        """The factor of one matrix of a stack, or of some of them."""
        quick = None if self.quick is None else self.quick[item]
        return Factor(self.lower[item], self.scale[item], self.jitter, quick)

    @classmethod
    def stack(cls, factors: Sequence[Factor]) -> Factor:
        """The factors of several matrices as those of a stack."""
        quick = [factor.quick for factor in factors if factor.quick is not None]
        return cls(
            torch.stack([factor.lower for factor in factors]),
            torch.stack([factor.scale for factor in factors]),
            max(factor.jitter for factor in factors),
            torch.stack(quick) if len(quick) == len(factors) else None,
        )

    def with_quick(self) -> Factor:
        """The same with its inverse at hand."""
        return replace(self, quick=torch.cholesky_inverse(self.lower.to(torch.float32)))

    def solve(self, rhs: Tensor) -> Tensor:
        """H^-1 rhs for vectors (..., p)."""
        if rhs.ndim == self.lower.ndim:  # several sides of each system: (sides, ..., p)
            rows = (self.scale * rhs).movedim(0, -2)
            return self.scale * self._solve(rows).movedim(-2, 0)
        return self.scale * self._solve((self.scale * rhs).unsqueeze(-2)).squeeze(-2)

    def _solve(self, rows: Tensor) -> Tensor:
        """The scaled systems, for (..., sides, p)."""
        if self.quick is not None:  # symmetric: from the left it is read along its rows
            return (rows.to(torch.float32) @ self.quick).to(rows)
        half = torch.linalg.solve_triangular(self.lower, rows.mT, upper=False)
        whole: Tensor = torch.linalg.solve_triangular(self.lower.mT, half, upper=True)
        return whole.mT

    def matrix(self) -> Matrix:
        """The matrix that was factored, its jitter included; float64, or it might be indefinite."""
        lower = self.lower.to(torch.float64) / self.scale.unsqueeze(-1)
        matrix: Matrix = lower @ lower.mT
        return matrix

    def inverse(self) -> Matrix:
        """H^-1, (p, p), symmetric to the last bit."""
        inverse = self.scale[:, None] * torch.cholesky_inverse(self.lower) * self.scale
        return 0.5 * (inverse + inverse.T)


def cholesky(matrix: Matrix, least_pivot: float, jitter: float = 0.0) -> tuple[Factor, Tensor]:
    """Factor matrices (..., p, p), and whether each factor can be trusted, (...,) bool.

    It cannot if the matrix is not finite, has a diagonal element that is not positive, or if a
    pivot of the scaled matrix is not above ``least_pivot``.
    """
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    good = ((diagonal > 0) & (diagonal < torch.inf)).all(dim=-1)
    scale = torch.where(good.unsqueeze(-1), diagonal, 1.0).rsqrt()
    scaled = scale.unsqueeze(-1) * matrix * scale.unsqueeze(-2)
    if not bool(good.all()) or jitter:
        unit = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        scaled = torch.where(good[..., None, None], scaled + jitter * unit, unit)
    lower, info = torch.linalg.cholesky_ex(scaled)  # what is not finite leaves a pivot that is not
    pivot = lower.diagonal(dim1=-2, dim2=-1).amin(dim=-1) ** 2
    return Factor(lower, scale, jitter), good & (info == 0) & (pivot > least_pivot)


def factorise(
    matrix: Matrix, max_jitter: float = 1e-6, least_pivot: float | None = None
) -> Factor | None:
    """Factor ``matrix`` (float64), with the least jitter that makes it safely positive definite.

    A pivot of the scaled matrix below ``least_pivot`` counts as zero: what it divides would be
    noise. The default is what rounding makes of a float64 matrix of this size.

    Returns None if the matrix is not finite, has a diagonal element that is not positive, or needs
    more than ``max_jitter`` (relative to the unit diagonal of the scaled matrix).
    """
    if least_pivot is None:
        least_pivot = len(matrix) * torch.finfo(matrix.dtype).eps
    for jitter in _JITTERS:
        if jitter > max_jitter:
            break
        factor, good = cholesky(matrix, least_pivot, jitter)
        if bool(good):
            return factor
    return None
