"""How the noise of the reference moves the fit, to first order: a part of its errors.

The fit ends where the score A' g vanishes. A change of the reference's pixel p changes the score by
s(p) = d(A' g) / dR_p, and so the solution by -H^-1 s(p). With noise sigma_R in every pixel the
covariance of the solution has, beside the H^-1 that comes from the noise of the target,

    H^-1 W H^-1,   W = sum_p sigma_R^2(p) s(p) s(p)'.

R is in the score twice: in the model image, and in A. For a direction x of theta, with kernel k,

    x' s(p) = (K * [h A x])(p) + (k * g)(p),

where the star is the adjoint of the correlation of eq 2, and g and h are the derivatives of each
pixel's term by the model. This holds for every likelihood and every noise model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from .arrays import Image, Kernel, Matrix, Params, Scalar
from .correlate import Correlator, elements_at_a_time
from .image_model import ImageModel
from .objective import Objective

__all__ = ["ReferenceInfluence"]


@dataclass(frozen=True)
class ReferenceInfluence:
    """What the noise of the reference does to the fit of one pair.

    The images have a margin of half a kernel around the frame, because the kernel spreads what is
    in them.

    Parameters
    ----------
    model : ImageModel
    kernel : Kernel
        K of the solution, (ky, kx).
    slope, curvature : Image
        g and h with the margin, 0 where a pixel is not used; the work is done in their dtype.
    variance : Image
        sigma_R^2 [ADU^2] with the margin.
    """

    model: ImageModel
    kernel: Kernel
    slope: Image
    curvature: Image
    variance: Image

    @classmethod
    def of(cls, objective: Objective, theta: Params, variance: Image) -> ReferenceInfluence:
        """At a solution ``theta``, (p,); ``variance`` is sigma_R^2 [ADU^2], (h, w)."""
        model, dtype = objective.model, objective.dtype
        paste = model.correlator.tiling.paste
        home = model.reference.device
        slope, curvature = (torch.zeros(model.shape, dtype=dtype, device=home) for _ in range(2))
        for tiles, g, h in objective.pixel_derivatives(theta, dtype):
            paste(g, tiles, slope)
            paste(h, tiles, curvature)
        kernel = model.kernel_image(theta).to(dtype)
        images = (slope, curvature, variance.to(home, dtype))
        return cls(model, kernel, *(_with_margin(image, model) for image in images))

    def variance_of(self, x: Params) -> Scalar:
        """The variance x' W x of a direction ``x`` of theta, (p,), float64."""
        model, dtype = self.model, self.slope.dtype
        x = x.to(dtype)
        moved = torch.zeros_like(self.curvature)
        for tiles, values in model.models(x):
            model.correlator.tiling.paste(values, tiles, _without_margin(moved, model))
        moved.mul_(self.curvature)
        through, direct = self._correlator(moved), self._correlator(self.slope)
        kernel, own = (
            through.kernel_spectrum(each.flip(-2, -1))
            for each in (self.kernel, model.kernel_image(x))
        )
        total = torch.zeros((), dtype=torch.float64, device=model.device)
        for tiles in through.chunks:
            influence = through.forward(kernel, tiles) + direct.forward(own, tiles)
            sigma2 = through.tiling.cut_owned(self.variance, tiles, model.device)
            noise = through.core(influence).square_().mul_(sigma2)
            total = total + noise.sum(dtype=torch.float64)
        return total

    def matrix(self) -> Matrix:
        """W, (p, p), float64."""
        n = self.model.n_params
        total = torch.zeros(n, n, dtype=torch.float64, device=self.model.device)
        for columns in self._columns():
            columns = columns.to(torch.float64)
            total += columns @ columns.mT
        return 0.5 * (total + total.mT)

    def _columns(self) -> Iterator[Tensor]:
        """sigma_R s of the pixels of one tile after the other, (p, pixels)."""
        model, device, dtype = self.model, self.model.device, self.slope.dtype
        through = self._correlator(self.curvature)
        tiling = through.tiling
        kernel = through.kernel_spectrum(self.kernel.flip(-2, -1))
        # Views of R and of g at every lag of the box, (ky, kx, row, column).
        reference = self._at_lags(_with_margin(model.reference, model))
        slope = self._at_lags(self.slope)
        background = _with_margin(self._background_terms(), model)
        step = max(1, elements_at_a_time(device) // (tiling.fft[0] * tiling.fft[1]))
        for tile in (slice(i, i + 1) for i in range(len(tiling))):
            sigma = tiling.cut_owned(self.variance, tile, device).sqrt()
            if not bool((sigma > 0).any()):
                continue
            direct = tiling.cut(slope, tile).to(device, dtype).flip(0, 1)  # g at p - lag
            direct = self._in_basis(direct)
            columns = torch.cat([direct, direct.new_zeros(len(background), *direct.shape[1:])])
            wide = tiling.cut_wide(reference, tile).to(device, dtype)
            terms = tiling.cut_wide(background, tile).to(device)
            h = tiling.cut_wide(self.curvature, tile).to(device)
            sources = torch.cat([self._in_basis(wide), terms])
            for some in (slice(i, i + step) for i in range(0, len(sources), step)):
                spread = through.forward(kernel, tile, instead=sources[some] * h)
                columns[some] += through.core(spread)
            yield columns.mul_(sigma).flatten(1)

    def _at_lags(self, image: Image) -> Tensor:
        """``image`` moved by every lag of the box, a view (ky, kx, h, w)."""
        ky, kx = self.model.kernel.shape
        windows = _with_margin(image, self.model).unfold(0, ky, 1).unfold(1, kx, 1)
        return windows.permute(2, 3, 0, 1)

    def _in_basis(self, at_lags: Tensor) -> Tensor:
        """(ky, kx, ...) summed to (n_k, ...)."""
        return self.model.kernel.coefficients(at_lags.movedim((0, 1), (-2, -1))).movedim(-1, 0)

    def _background_terms(self) -> Tensor:
        """The derivative of the model by each background coefficient, (n_b, h, w)."""
        background = self.model.background
        unit = torch.eye(background.n_params, dtype=self.slope.dtype, device=self.slope.device)
        return background.image(unit, self.model.shape)

    def _correlator(self, image: Image) -> Correlator:
        return Correlator(image, self.model.kernel.half_shape, device=self.model.device)


def _with_margin(image: Tensor, model: ImageModel) -> Tensor:
    n_y, n_x = model.kernel.half_shape
    return pad(image, (n_x, n_x, n_y, n_y))


def _without_margin(image: Tensor, model: ImageModel) -> Tensor:
    (n_y, n_x), (h, w) = model.kernel.half_shape, model.shape
    return image[..., n_y : n_y + h, n_x : n_x + w]
