"""Kernel models: how the coefficients become the array K_lm of eq 2.

A kernel model is a set of basis images on an odd box, K = sum_k c_k phi_k, with P = sum K (eq 3).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from .arrays import Basis, Kernel, Params
from .errors import ShapeError

__all__ = ["BasisKernel", "DeltaKernel", "KernelModel", "gaussian_kernel"]


class KernelModel(ABC):
    """Base of all kernel models: an odd box and a linear map from coefficients to its pixels."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """Size of the box, (ky, kx), both odd."""

    @property
    @abstractmethod
    def n_params(self) -> int:
        """Number of coefficients."""

    @abstractmethod
    def image(self, coefficients: Params) -> Kernel:
        """The kernel K_lm, (..., ky, kx), of coefficients (..., n_k)."""

    @abstractmethod
    def coefficients(self, kernel: Kernel) -> Params:
        """The adjoint of :meth:`image`; for a delta basis also its inverse."""

    def true_image(self, coefficients: Params) -> Kernel:
        """The kernel between the noiseless images, where that is not :meth:`image`."""
        return self.image(coefficients)

    def sum_gradient(self, device: torch.device) -> Params:
        """dP/dc, (..., n_k), float64, with P the sum of :meth:`true_image`."""
        return self.coefficients(torch.ones(self.shape, dtype=torch.float64, device=device))

    def item(self, item: int | Tensor) -> KernelModel:
        """The model of one pair of a stack, or of some of them."""
        return self

    @property
    def half_shape(self) -> tuple[int, int]:
        """Half-widths (n_y, n_x) of the box: the border that eq 2 cannot reach."""
        return self.shape[0] // 2, self.shape[1] // 2


@dataclass(frozen=True)
class DeltaKernel(KernelModel):
    """One free parameter for every kernel pixel (eq 1-3; Bramich 2008).

    Parameters
    ----------
    size : int or (int, int)
        Odd side length, or (ky, kx) for a rectangular box. The paper uses 7 to 9 times the
        Gaussian width of the target's PSF, 19 in its simulations.
    """

    size: int | tuple[int, int] = 19

    def __post_init__(self) -> None:
        size = self.size if isinstance(self.size, tuple) else (self.size, self.size)
        if len(size) != 2 or any(not isinstance(s, int) or s < 1 or s % 2 == 0 for s in size):
            hint = ""
            if all(isinstance(s, int) and s >= 1 for s in size):
                hint = "; try " + " x ".join(str(s + 1 - s % 2) for s in size)
            raise ShapeError(
                f"A kernel needs odd positive side lengths so that it has a centre, got "
                f"{self.size}{hint}."
            )

    @property
    def shape(self) -> tuple[int, int]:
        return self.size if isinstance(self.size, tuple) else (self.size, self.size)

    @property
    def n_params(self) -> int:
        return self.shape[0] * self.shape[1]

    def image(self, coefficients: Params) -> Kernel:
        return coefficients.reshape(*coefficients.shape[:-1], *self.shape)

    def coefficients(self, kernel: Kernel) -> Params:
        return kernel.flatten(-2)


@dataclass(frozen=True, eq=False)
class BasisKernel(KernelModel):
    """The kernel as a sum of basis images: ``K = sum_k c_k phi_k``.

    Parameters
    ----------
    shape_of_box : (int, int)
        (ky, kx), both odd.
    basis : Basis
        The images phi_k as columns, (..., ky kx, n_k), float64; one basis for all pairs of a stack
        or one for each.
    true_basis : Basis, optional
        Likewise, of the kernel between the noiseless images, where the noise of the reference lets
        the model image have only a part of it.
    """

    shape_of_box: tuple[int, int]
    basis: Basis
    true_basis: Basis | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.shape_of_box

    @property
    def n_params(self) -> int:
        return self.basis.shape[-1]

    def image(self, coefficients: Params) -> Kernel:
        return self._sum(self.basis, coefficients)

    def true_image(self, coefficients: Params) -> Kernel:
        return self._sum(self.basis if self.true_basis is None else self.true_basis, coefficients)

    def _sum(self, basis: Basis, coefficients: Params) -> Kernel:
        pixels = (basis.to(coefficients) @ coefficients.unsqueeze(-1)).squeeze(-1)
        return pixels.reshape(*pixels.shape[:-1], *self.shape)

    def sum_gradient(self, device: torch.device) -> Params:
        if self.true_basis is None:
            return super().sum_gradient(device)
        sums: Params = self.true_basis.sum(dim=-2).to(device)
        return sums

    def coefficients(self, kernel: Kernel) -> Params:
        basis = self.basis.to(kernel)
        # As a matrix product, a basis for each pair would be copied for every row of a matrix.
        return torch.einsum("...i,...ik->...k", kernel.flatten(-2), basis)

    def item(self, item: int | Tensor) -> BasisKernel:
        if self.basis.ndim == 2:
            return self
        true = None if self.true_basis is None else self.true_basis[item]
        return BasisKernel(self.shape_of_box, self.basis[item], true)


def gaussian_kernel(
    shape: tuple[int, int], sigma: float, dtype: torch.dtype = torch.float64
) -> Kernel:
    """A centred round Gaussian that sums to one: the judicious start of section 2.9.

    Parameters
    ----------
    shape : (int, int)
        Size of the box, (ky, kx).
    sigma : float
        Standard deviation [pixels].
    """
    axes = [torch.arange(s, dtype=dtype) - s // 2 for s in shape]
    y, x = (torch.exp(-0.5 * (a / sigma) ** 2) for a in axes)
    kernel = torch.outer(y, x)
    return kernel / kernel.sum()
