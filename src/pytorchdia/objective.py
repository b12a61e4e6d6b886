"""The scalar objective (eq 8, 13, 20): the one place where the loss is written.

loss(theta) = sum_ij nll(I_ij - M_ij, sigma^2_ij(M)) + N_data theta' Q theta,  M = A theta

The likelihood works pixel by pixel, so its gradient is A' g and its Hessian A' diag(h) A with g and
h the first and second derivative of each pixel's term by M. Both come from automatic
differentiation.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch

from .arrays import Image, Mask, Matrix, Params, Scalar
from .image_model import ImageModel
from .likelihood import Likelihood
from .noise import NoiseModel
from .penalty import Penalty

__all__ = ["Objective", "PixelTerms"]


class PixelTerms(NamedTuple):
    """What one model image gives: the summed loss, and two derivatives for each pixel."""

    loss: Scalar
    gradient: Image
    curvature: Image


@dataclass(frozen=True)
class Objective:
    """Negative log-likelihood of the target, plus the penalty if there is one.

    Parameters
    ----------
    model : ImageModel
    target : Image
        I [ADU], (h, w), finite everywhere, float64.
    use : Mask
        (h, w), **True where a pixel is used**; the others carry no weight at all.
    noise : NoiseModel
    likelihood : Likelihood
    penalty : Penalty, optional
    dtype : torch.dtype
        Precision of the heavy work (products with the Hessian, gradient descent). Parameters, sums
        and linear algebra are float64 whatever it is.
    """

    model: ImageModel
    target: Image
    use: Mask
    noise: NoiseModel
    likelihood: Likelihood
    penalty: Penalty | None = None
    dtype: torch.dtype = torch.float64

    @cached_property
    def n_data(self) -> int:
        """N_data, the number of pixels used."""
        return int(self.use.sum())

    @cached_property
    def penalty_matrix(self) -> Matrix | None:
        """N_data Q over all of theta (the background's rows are 0), or None."""
        if self.penalty is None:
            return None
        n_k = self.model.kernel.n_params
        full = torch.zeros(self.model.n_params, self.model.n_params, dtype=torch.float64)
        full[:n_k, :n_k] = self.n_data * self.penalty.matrix(self.model.kernel)
        return full.to(self.target.device)

    def variance(self, model: Image) -> Image:
        """sigma^2(M) [ADU^2] with unused pixels set to 1, so that nothing odd comes from them."""
        return torch.where(self.use, self.noise.variance(model), 1.0)

    def pixel_loss(self, model: Image) -> Image:
        """Negative log-likelihood of each pixel, (h, w), in the dtype of ``model``; 0 if unused."""
        target = self.target.to(model.dtype)
        model = torch.where(self.use, model, target.abs() + 1.0)  # keeps NaN out of the gradient
        nll = self.likelihood.nll(target - model, self.variance(model))
        return torch.where(self.use, nll, 0.0)

    def loss(self, theta: Params) -> Scalar:
        """The objective, differentiable by ``theta``; computed in the dtype of ``theta``."""
        total = self.pixel_loss(self.model.mv(theta)).sum(dtype=torch.float64)
        return total + self._penalty_value(theta)

    def pixel_terms(self, model: Image) -> PixelTerms:
        """Loss without penalty, and its first two derivatives by each pixel of ``model``."""
        model = model.detach().requires_grad_(True)
        with torch.enable_grad():
            loss = self.pixel_loss(model).sum(dtype=torch.float64)
            (gradient,) = torch.autograd.grad(loss, model, create_graph=True)
            if gradient.requires_grad:
                (curvature,) = torch.autograd.grad(gradient.sum(), model)
            else:
                curvature = torch.zeros_like(model)
        return PixelTerms(
            loss.detach(),
            torch.where(self.use, gradient.detach(), 0.0),
            torch.where(self.use, curvature, 0.0),
        )

    def gradient(self, theta: Params, terms: PixelTerms) -> Params:
        """The derivative of the loss by ``theta``, A' g + 2 N Q theta, float64."""
        gradient = self.model.rmv(terms.gradient.to(torch.float64))
        if self.penalty_matrix is not None:
            gradient = gradient + 2.0 * self.penalty_matrix @ theta
        return gradient

    def hessian(self, curvature: Image, dtype: torch.dtype | None = None) -> Matrix:
        """A' diag(curvature) A + 2 N Q, float64; the products run in ``dtype``."""
        return self._with_penalty(self.model.gram(curvature.to(dtype or self.dtype)))

    def hessian_product(self, curvature: Image, theta: Params) -> Params:
        """(A' diag(curvature) A + 2 N Q) theta without the matrix, float64.

        ``curvature`` is 0 at unused pixels; the products run in its dtype.
        """
        product = self.model.gram_product(curvature, theta)
        if self.penalty_matrix is not None:
            product = product + 2.0 * self.penalty_matrix @ theta
        return product

    def preconditioner(self, curvature: Image) -> Matrix:
        """A quick approximation of :meth:`hessian` for ``curvature`` that is nowhere negative."""
        return self._with_penalty(self.model.gram_toeplitz(curvature))

    def _with_penalty(self, matrix: Matrix) -> Matrix:
        return matrix if self.penalty_matrix is None else matrix + 2.0 * self.penalty_matrix

    def total(self, theta: Params, terms: PixelTerms) -> float:
        """The objective from the pixel terms at ``theta``."""
        return float(terms.loss + self._penalty_value(theta))

    def _penalty_value(self, theta: Params) -> Scalar:
        if self.penalty_matrix is None:
            return torch.zeros((), dtype=torch.float64, device=theta.device)
        theta = theta.to(torch.float64)
        return theta @ self.penalty_matrix @ theta
