"""The differential background B(x, y) as a polynomial (eq 18-19)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .arrays import Image, Params
from .errors import InputError

__all__ = ["PolynomialBackground"]


@dataclass(frozen=True)
class PolynomialBackground:
    """Polynomial of total degree d with all (d+1)(d+2)/2 terms, cross terms included (eq 18).

    B = sum_mn b_mn eta(x)^m xi(y)^n with eta = (x - x_c) / N_x and xi = (y - y_c) / N_y (eq 19),
    where (x_c, y_c) is the middle of the frame. The first term is the constant B_0.

    Parameters
    ----------
    degree : int
        d; 0 is the scalar background of eq 2.
    """

    degree: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.degree, int) or self.degree < 0:
            raise InputError(
                f"The background degree must be a whole number of at least 0, got {self.degree}."
            )

    @property
    def exponents(self) -> list[tuple[int, int]]:
        """(m, n), the powers of x and of y, in the order of the coefficients."""
        d = self.degree
        return [(m, n) for m in range(d + 1) for n in range(d + 1 - m)]

    @property
    def n_params(self) -> int:
        """Number of coefficients."""
        return len(self.exponents)

    def axes(
        self, shape: tuple[int, int], dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """xi(y), (h,), and eta(x), (w,), of eq 19."""
        xi, eta = ((torch.arange(n, dtype=dtype, device=device) - 0.5 * (n - 1)) / n for n in shape)
        return xi, eta

    def image(
        self, coefficients: Params, shape: tuple[int, int], rows: slice = slice(None)
    ) -> Image:
        """B(x, y) [ADU] on a frame of ``shape`` (h, w), or on some rows of it."""
        xi, eta = self.axes(shape, coefficients.dtype, coefficients.device)
        xi = xi[rows]
        image = torch.zeros((*coefficients.shape[:-1], len(xi), len(eta)),
                            dtype=coefficients.dtype, device=coefficients.device)  # fmt: skip
        for k, (m, n) in enumerate(self.exponents):
            image = image + coefficients[..., k, None, None] * (xi[:, None] ** n * eta**m)
        return image
