"""The scalar objective (eq 8, 13, 20): the one place where the loss is written.

loss(theta) = sum_ij nll(I_ij - M_ij, sigma^2_ij(M)) + N_data theta' Q theta,  M = A theta

The likelihood works pixel by pixel, so its gradient is A' g and its Hessian A' diag(h) A with g and
h the first and second derivative of each pixel's term by M. The derivatives of rho by z and of
sigma^2 by M come from automatic differentiation; the chain rule joins them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .arrays import Image, Mask, Matrix, Params, Pixels, Scalar, Tiled
from .frame import footprint_sum, strips
from .image_model import ImageModel, Projection
from .likelihood import Likelihood
from .noise import NoiseModel
from .penalty import Penalty

__all__ = ["Evaluation", "Objective"]


class Evaluation(NamedTuple):
    """The objective at one point: its value, its gradient, and the curvature h of each pixel.

    ``loss`` (...,) and ``gradient`` (..., p) are float64; ``curvature`` is None if not asked for.
    """

    loss: Scalar
    gradient: Params
    curvature: Tiled | None


@dataclass(frozen=True)
class Objective:
    """Negative log-likelihood of the target, plus the penalty if there is one.

    Every array may have further axes in front: a stack of targets, each with its own theta.

    Parameters
    ----------
    model : ImageModel
    target : Image
        I [ADU], (..., h, w), finite everywhere.
    use : Mask
        (..., h, w), **True where a pixel is used**; the others carry no weight at all.
    noise : NoiseModel
    likelihood : Likelihood
    penalty : Penalty, optional
    dtype : torch.dtype
        Precision of the heavy work (products with the Hessian, gradient descent). Parameters, sums
        and linear algebra are float64 whatever it is.
    looser : Image, optional
        By how many sigma the residual of each pixel may be larger before it is an outlier,
        (..., h, w): see :meth:`tolerant`.
    """

    model: ImageModel
    target: Image
    use: Mask
    noise: NoiseModel
    likelihood: Likelihood
    penalty: Penalty | None = None
    dtype: torch.dtype = torch.float64
    looser: Image | None = None

    def __getitem__(self, item: int | Tensor) -> Objective:
        """One pair of a stack, or some of them."""
        return replace(
            self,
            model=self.model[item],
            target=self.target[item],
            use=self.use[item],
            noise=self.noise.item(item),
            looser=None if self.looser is None else self.looser[item],
        )

    def as_stack(self) -> Objective:
        """The stack of this one pair; its item 0 is the pair again."""
        looser = None if self.looser is None else self.looser[None]
        return replace(self, target=self.target[None], use=self.use[None], looser=looser)

    def pair(self, i: int) -> Objective:
        """The i-th pair of a stack; itself if it is one pair."""
        return self if self.target.ndim == 2 else self[i]

    @cached_property
    def counts(self) -> Tensor:
        """N_data, the number of pixels used, (...,)."""
        # By strips, because the sum of a mask takes eight bytes for each of its pixels.
        each = [self.use[..., rows, :].sum(dim=(-2, -1)) for rows in strips(self.use.shape[-2])]
        return torch.stack(each).sum(dim=0)

    @property
    def n_data(self) -> int:
        """N_data over all pairs."""
        return int(self.counts.sum())

    def tolerant(self, theta: Params) -> Objective:
        """The same with the tolerance that its likelihood asks for.

        Parameters
        ----------
        theta : Params
            Of a first fit, (..., p): the light of its model, R (x) K, over sigma is what the
            tolerance is a share of, up to 10 sigma: a saturated star is an outlier.
        """
        share = self.likelihood.tolerance
        if not share:
            return self
        model, core = self.model, self.model.correlator.core
        dark = theta.clone()
        dark[..., model.kernel.n_params :] = 0.0
        tiled = model.empty_tiled(self.target.shape[:-2], self.dtype)
        with torch.no_grad():
            both = zip(model.models(theta), model.models(dark), strict=True)
            for i, ((_, values), (_, light)) in enumerate(both):
                sigma2 = self.noise_of(i).variance(core(values))
                looser = self.masked(core(light).abs() * (share * sigma2.rsqrt()), i)
                core(tiled[i]).copy_(looser.nan_to_num(nan=0.0, posinf=0.0).clamp(max=_LOOSEST))
        return replace(self, looser=model.assembled(tiled).to(self.target.device))

    def _likelihood_of(self, looser: Image | Pixels | None) -> Likelihood:
        return self.likelihood if looser is None else self.likelihood.loosened(looser)

    @cached_property
    def _constant(self) -> Tensor:
        """What the normalisation of the likelihood adds to the loss, (...,), float64."""
        if self.looser is None:
            return self.counts * torch.tensor(self.likelihood.log_norm, dtype=torch.float64)
        each = [
            torch.where(
                self.use[..., rows, :],
                self.likelihood.loosened(self.looser[..., rows, :].to(torch.float64)).log_norm, 0.0,
            ).sum(dim=(-2, -1))
            for rows in strips(self.use.shape[-2])
        ]  # fmt: skip
        return torch.stack(each).sum(dim=0)

    @cached_property
    def penalty_matrix(self) -> Matrix | None:
        """N_data Q over all of theta (the background's rows are 0), or None."""
        if self.penalty is None:
            return None
        counts = self.counts.to(self.model.device)
        added = self.penalty.added(self.model.kernel, counts)
        n_b = self.model.background.n_params
        return torch.nn.functional.pad(added, (0, n_b, 0, n_b))

    def variance(self, model: Image) -> Image:
        """sigma^2(M) [ADU^2] with unused pixels set to 1, so that nothing odd comes from them."""
        return torch.where(self.use, self.noise.variance(model), 1.0)

    def noise_of(self, i: int) -> NoiseModel:
        """The noise model of the i-th chunk of tiles."""
        return self.noise.rearranged(lambda image: self.model.part(image, i))

    def loss(self, theta: Params) -> Scalar:
        """The objective as written above, differentiable by ``theta`` (p,), for one pair.

        Computed in the dtype of ``theta``, with the convolution as a network layer: the slow twin
        of :meth:`evaluate`, and what the paper minimises.
        """
        model = self.model.mv_direct(theta)
        target = self.target.to(model.dtype)
        model = torch.where(self.use, model, target.abs() + 1.0)  # keeps NaN out of the gradient
        looser = None if self.looser is None else self.looser.to(model.dtype)
        nll = self._likelihood_of(looser).nll(target - model, self.variance(model))
        total = torch.where(self.use, nll, 0.0).sum(dtype=torch.float64)
        return total + self._penalty_value(theta)

    def evaluate(
        self, theta: Params, dtype: torch.dtype = torch.float64, curvature: bool = True
    ) -> Evaluation:
        """Loss, gradient A' g + 2 N Q theta, and h, in one pass over the pixels.

        Parameters
        ----------
        theta : Params
            (..., p), float64.
        dtype : torch.dtype
            Precision of the pass; sums over pixels are float64 in the loss.
        curvature : bool
            Whether to compute h. It is kept in the objective's own dtype, to save memory.
        """
        total = torch.zeros((), dtype=torch.float64, device=self.model.device)
        projection, core = Projection(self.model), self.model.correlator.core
        h: Tiled | None = None
        if curvature:
            lead = np.broadcast_shapes(self.target.shape[:-2], theta.shape[:-1])
            h = self.model.empty_tiled(torch.Size(lead), self.dtype)
        with torch.no_grad():
            for i, (tiles, model) in enumerate(self.model.models(theta.to(dtype))):
                terms = self._pixel_terms(core(model), i, curvature)
                total = total + terms[0].sum(dim=(-3, -2, -1), dtype=torch.float64)
                projection.add(tiles, terms[1])
                if h is not None:
                    core(h[i]).copy_(terms[2])
        gradient = projection.params()
        if self.penalty_matrix is not None:
            gradient = gradient + 2.0 * _product(self.penalty_matrix, theta)
        loss = total + self._constant.to(total) + self._penalty_value(theta)
        return Evaluation(loss, gradient, h)

    @cached_property
    def _all_used(self) -> list[bool]:
        """For each chunk of tiles whether all its pixels are used."""
        cut = self.model.correlator.tiling.cut
        return [bool(cut(self.use, tiles).all()) for tiles in self.model.chunks]

    def _used(self, i: int) -> Tensor | None:
        """True where a pixel of the i-th chunk is used and owned; None stands for all of them."""
        return None if self._all_used[i] else self.model.part(self.use, i)

    def masked(self, values: Pixels, i: int) -> Pixels:
        """Pixels of the i-th chunk, 0 where they are not used; ``values`` may be changed."""
        return self._masked(values, self._used(i), i)

    def _masked(self, values: Pixels, use: Tensor | None, i: int) -> Pixels:
        if use is None:
            return self.model.correlator.tiling.disown(values, self.model.chunks[i])
        return torch.where(use, values, 0.0)

    def _pixel_terms(self, model: Pixels, i: int, curvature: bool) -> tuple[Pixels, ...]:
        """Nll without its constant, g and, if asked for, h of the pixels of one chunk.

        They are 0 where a pixel is not used.
        """
        use = self._used(i)
        target = self.model.correlator.tiling.cut(self.target, self.model.chunks[i])
        order = 2 if curvature else 1
        v, dv, ddv = self.noise_of(i).derivatives(model, order)
        if use is not None:
            v = torch.where(use, v, 1.0)
        s = v.rsqrt()
        z = (target.to(model) - model).mul_(s)
        looser = self.looser
        if looser is not None:
            looser = self.model.correlator.tiling.cut(looser, self.model.chunks[i]).to(z)
        rho, slope, ddrho = self._likelihood_of(looser).derivatives(z, order)
        drho = torch.as_tensor(slope, dtype=z.dtype, device=z.device)
        nll = torch.add(rho, v.log(), alpha=0.5)
        h: Pixels | None = None
        if isinstance(dv, float):  # the variance does not follow the model
            g = -(drho * s)
            if curvature:
                h = ddrho * (s * s)
        else:
            u = s * s
            q = dv * u  # the logarithmic derivative of sigma^2
            t = torch.addcmul(s, z, q, value=0.5)  # -dz/dM
            g = torch.addcmul(q, t, drho, value=-2.0).mul_(0.5)
            if curvature:
                bend = torch.addcmul(s, z, q, value=0.75).mul_(q)  # d2z/dM2
                h = (t * t).mul_(ddrho).addcmul_(q, q, value=-0.5)
                if not isinstance(ddv, float):
                    curved = ddv * u
                    bend.addcmul_(z, curved, value=-0.5)
                    h.add_(curved, alpha=0.5)
                h.addcmul_(bend, drho)
        terms = (nll, g) if h is None else (nll, g, h)
        return tuple(self._masked(term, use, i) for term in terms)

    def weighted_target(self) -> tuple[Tiled, Params]:
        """Weights 1/sigma^2(I), 0 at unused pixels, tiled; and A' (I/sigma^2), (..., p)."""
        projection, correlator = Projection(self.model), self.model.correlator
        weights = self.model.empty_tiled(self.target.shape[:-2], self.dtype)
        for i, tiles in enumerate(self.model.chunks):
            use = self._used(i)
            target = correlator.tiling.cut(self.target, tiles).to(self.model.device, self.dtype)
            weight = self.noise_of(i).variance(target).reciprocal()
            weight = self._masked(weight, use, i)
            projection.add(tiles, weight * target)
            correlator.core(weights[i]).copy_(weight)
        return weights, projection.params()

    def majoriser(self, theta: Params) -> Tiled:
        """-g / (I - M), tiled: the weight of the least squares problem that touches the loss."""
        core = self.model.correlator.core
        weights = self.model.empty_tiled(theta.shape[:-1], theta.dtype)
        with torch.no_grad():
            for i, (_, values) in enumerate(self.model.models(theta)):
                model = core(values)
                use = self.model.part(self.use, i)
                residual = torch.where(use, self.model.part(self.target, i) - model, 0.0)
                g = self._pixel_terms(model, i, curvature=False)[1]
                weight = torch.where(residual != 0, -g / residual, 0.0)
                core(weights[i]).copy_(weight.clamp(min=0.0))
        return weights

    def hessian(self, curvature: Image | Tiled, dtype: torch.dtype | None = None) -> Matrix:
        """A' diag(curvature) A + 2 N Q, float64; the products run in ``dtype``."""
        whole = self.model.assembled(curvature)
        return self._with_penalty(self.model.gram(whole.to(dtype or self.dtype)))

    def hessian_product(self, curvature: Image | Tiled, theta: Params) -> Params:
        """(A' diag(curvature) A + 2 N Q) theta without the matrix, float64.

        ``curvature`` is 0 at unused pixels; the products run in its dtype.
        """
        product = self.model.gram_product(curvature, theta)
        if self.penalty_matrix is not None:
            product = product + 2.0 * _product(self.penalty_matrix, theta)
        return product

    def subset(self, curvature: Tiled, rows: Tensor) -> Callable[[Params], Params]:
        """:meth:`hessian_product` for some pairs of a stack."""
        some, parts = self[rows], [part[rows] for part in curvature]
        return lambda theta: some.hessian_product(parts, theta)

    def preconditioner(self, curvature: Image | Tiled) -> Matrix:
        """A quick approximation of :meth:`hessian` for ``curvature`` that is nowhere negative."""
        return self._with_penalty(self.model.gram_toeplitz(curvature))

    def close_preconditioner(self, curvature: Tiled) -> Matrix:
        """A closer and dearer one: exact over the pixels that say most of the kernel; one pair.

        Those are the pixels with the largest h times the sum of R^2 over their footprint. The rest
        of the frame enters as in :meth:`preconditioner`, its diagonal left as it is.
        """
        model = self.model
        weight = model.assembled(curvature)
        energy = footprint_energy(model.reference.to(weight), model.kernel.half_shape)
        score = (weight * energy).reshape(-1)
        count = min(_SAMPLE, int((score > 0).sum()))
        pixels = score.topk(count).indices
        rest = weight.clone()
        rest.reshape(-1)[pixels] = 0.0
        exact = model.gram_of_pixels(weight, pixels)
        return self._with_penalty(exact + model.gram_toeplitz(rest))

    def _with_penalty(self, matrix: Matrix) -> Matrix:
        return matrix if self.penalty_matrix is None else matrix + 2.0 * self.penalty_matrix

    def _penalty_value(self, theta: Params) -> Scalar:
        if self.penalty_matrix is None:
            return torch.zeros((), dtype=torch.float64, device=theta.device)
        theta = theta.to(torch.float64)
        return (theta * _product(self.penalty_matrix, theta)).sum(dim=-1)


_LOOSEST = 10.0  # sigma: the largest tolerance of a pixel
_SAMPLE = 6000  # pixels of the exact part of a close preconditioner


def footprint_energy(reference: Image, half_shape: tuple[int, int]) -> Image:
    """The sum of R^2 over the kernel's footprint around each pixel, (h, w); 0 in the border."""
    (h, w), (n_y, n_x) = reference.shape, half_shape
    energy = torch.zeros_like(reference)
    total = footprint_sum((reference**2).to(torch.float64), half_shape)
    energy[n_y : h - n_y, n_x : w - n_x] = total.clamp(min=0.0).to(energy.dtype)
    return energy


def _product(matrix: Matrix, vector: Params) -> Params:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)
