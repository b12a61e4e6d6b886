"""Factors of symmetric positive definite matrices that are close to singular."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .arrays import Matrix

__all__ = ["Factor", "factorise"]

_JITTERS = (0.0, 1e-12, 1e-11, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6)


@dataclass(frozen=True)
class Factor:
    """Cholesky factor of a matrix scaled to a unit diagonal, ``jitter`` added to that diagonal."""

    lower: Matrix
    scale: Tensor
    jitter: float

    def solve(self, rhs: Tensor) -> Tensor:
        """H^-1 rhs for a vector (p,)."""
        scaled = (self.scale * rhs)[:, None]
        return self.scale * torch.cholesky_solve(scaled, self.lower)[:, 0]

    def inverse(self) -> Matrix:
        """H^-1, (p, p), symmetric to the last bit."""
        inverse = self.scale[:, None] * torch.cholesky_inverse(self.lower) * self.scale
        return 0.5 * (inverse + inverse.T)


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
    diagonal = matrix.diagonal()
    if not torch.isfinite(matrix).all() or (diagonal <= 0).any():
        return None
    scale = diagonal.rsqrt()
    scaled = scale[:, None] * matrix * scale
    for jitter in _JITTERS:
        if jitter > max_jitter:
            break
        lower, info = torch.linalg.cholesky_ex(
            scaled + jitter * torch.eye(len(scale), dtype=scaled.dtype, device=scaled.device)
        )
        pivot = lower.diagonal().min() ** 2
        if int(info) == 0 and pivot > least_pivot:
            return Factor(lower, scale, jitter)
    return None
