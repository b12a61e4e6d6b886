"""Quadratic penalties on the parameters: Gaussian priors (eq 20-21)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from .arrays import Matrix
from .errors import InputError
from .kernel import KernelModel

__all__ = ["LaplacianPenalty", "Penalty", "UnitNormal"]


class Penalty(ABC):
    """Base of all penalties: a positive semi-definite matrix over the kernel coefficients.

    The objective gains ``N_data * theta' Q theta`` with Q from :meth:`matrix` (eq 20 with the
    strength inside Q).
    """

    @abstractmethod
    def matrix(self, kernel: KernelModel) -> Matrix:
        """Q, (n_k, n_k) over the kernel coefficients, float64."""

    def added(self, kernel: KernelModel, n_data: Tensor) -> Matrix:
        """The matrix of the form that is added to the loss, N_data Q, for each pair of a stack."""
        return n_data[..., None, None] * self.matrix(kernel).to(n_data.device)


@dataclass(frozen=True)
class UnitNormal(Penalty):
    """Coefficients that are normal with unit variance: c' c / 2, whatever the amount of data."""

    def matrix(self, kernel: KernelModel) -> Matrix:
        return 0.5 * torch.eye(kernel.n_params, dtype=torch.float64)

    def added(self, kernel: KernelModel, n_data: Tensor) -> Matrix:
        matrix = self.matrix(kernel).to(n_data.device)
        return matrix.expand(*n_data.shape, *matrix.shape)


@dataclass(frozen=True)
class LaplacianPenalty(Penalty):
    """Favours kernels whose adjacent pixels are alike: lambda * N_data * theta' L theta (eq 20-21).

    L is the Laplacian matrix of the graph that joins each kernel pixel to the pixels beside, above
    and below it, so theta' L theta is the sum of (K_u - K_v)^2 over all adjacent pairs.

    Parameters
    ----------
    strength : float
        lambda of eq 20, at least 0. Bramich et al. (2016) found best values between 0.1 and 100
        for their images; it has to be tuned.
    """

    strength: float = 1.0

    def __post_init__(self) -> None:
        if not (self.strength >= 0 and math.isfinite(self.strength)):
            raise InputError(
                f"The strength of the penalty must be finite and at least 0, got {self.strength}."
            )

    def matrix(self, kernel: KernelModel) -> Matrix:
        if kernel.n_params != kernel.shape[0] * kernel.shape[1]:
            raise InputError("The Laplacian penalty needs a kernel with one parameter per pixel.")
        return self.strength * laplacian(kernel.shape)


def laplacian(shape: tuple[int, int]) -> Matrix:
    """The Laplacian matrix L of eq 21 for a (ky, kx) box, (ky kx, ky kx), without lambda."""
    ky, kx = shape
    index = torch.arange(ky * kx).reshape(ky, kx)
    pairs = torch.cat(
        [
            torch.stack([index[:-1].reshape(-1), index[1:].reshape(-1)]),
            torch.stack([index[:, :-1].reshape(-1), index[:, 1:].reshape(-1)]),
        ],
        dim=1,
    )
    adjacency = torch.zeros(ky * kx, ky * kx, dtype=torch.float64)
    adjacency[pairs[0], pairs[1]] = 1.0
    adjacency = adjacency + adjacency.T
    return torch.diag(adjacency.sum(dim=1)) - adjacency
