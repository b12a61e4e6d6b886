"""How the noise of the reference moves the fit, to first order: a part of its errors.

The fit ends where the score A' g vanishes. A change dR of the reference changes the model image by
dR (x) K, hence the score by A' [h (dR (x) K)] and the solution by -H^-1 of that. With noise sigma_R
in every pixel p of the reference, the covariance of the solution has, beside the H^-1 that comes
from the noise of the target,

    H^-1 W H^-1,   W = sum_p sigma_R^2(p) s(p) s(p)',   x' s(p) = (K * [h A x])(p),

where x is any direction of theta, the star the adjoint of the correlation of eq 2, and h the second
derivative of each pixel's term by the model. This holds for every likelihood and every noise model.

R is in A, too. That part of the change, dA' g, is a product of the noise of both images, which
H^-1 at the R as it is holds already: it is not counted twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from .arrays import Image, Kernel, Matrix, Params, Scalar, Tiled
from .correlate import Correlator, elements_at_a_time
from .image_model import ImageModel
from .objective import Objective

__all__ = ["ReferenceInfluence"]


@dataclass(frozen=True)
class ReferenceInfluence:
    """What the noise of the reference does to the fit of one pair.

    Parameters
    ----------
    model : ImageModel
    kernel : Kernel
        K of the solution, (ky, kx).
    curvature : Tiled
        h, 0 where a pixel is not used; the work is done in its dtype.
    variance : Image
        sigma_R^2 [ADU^2] with a margin of half a kernel, because the kernel spreads what is in the
        frame.
    """

    model: ImageModel
    kernel: Kernel
    curvature: Tiled
    variance: Image

    @classmethod
    def of(
        cls, objective: Objective, theta: Params, variance: Image, curvature: Tiled | None = None
    ) -> ReferenceInfluence:
        """At a solution ``theta``, (p,).

        Parameters
        ----------
        objective : Objective
        theta : Params
        variance : Image
            sigma_R^2 [ADU^2], (h, w).
        curvature : Tiled, optional
            h at the solution, to save its computation.
        """
        model = objective.model
        if curvature is None:
            curvature = objective.evaluate(theta, objective.dtype).curvature
            assert curvature is not None
        dtype = curvature[0].dtype
        wide = _with_margin(variance.to(model.reference.device, dtype), model)
        return cls(model, model.kernel_image(theta).to(dtype), curvature, wide)

    def variance_of(self, x: Params) -> Scalar:
        """The variance x' W x of a direction ``x`` of theta, (p,), float64."""
        model = self.model
        moved = torch.zeros_like(self.variance)
        chunks = model.models(x.to(moved.dtype))
        for (tiles, values), h in zip(chunks, self.curvature, strict=True):
            weighted = values.mul_(h)
            model.correlator.tiling.paste(weighted, tiles, _without_margin(moved, model))
        through = self._correlator(moved)
        kernel = through.kernel_spectrum(self.kernel.flip(-2, -1))
        total = torch.zeros((), dtype=torch.float64, device=model.device)
        for tiles in through.chunks:
            influence = through.core(through.forward(kernel, tiles))
            sigma2 = through.tiling.cut_owned(self.variance, tiles, model.device)
            total = total + influence.square_().mul_(sigma2).sum(dtype=torch.float64)
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
        model, device, dtype = self.model, self.model.device, self.variance.dtype
        curvature = _with_margin(model.assembled(self.curvature).to(self.variance), model)
        through = self._correlator(curvature)
        tiling = through.tiling
        kernel = through.kernel_spectrum(self.kernel.flip(-2, -1))
        reference = self._at_lags(_with_margin(model.reference, model))
        background = _with_margin(self._background_terms(), model)
        step = max(1, elements_at_a_time(device) // (tiling.fft[0] * tiling.fft[1]))
        for tile in (slice(i, i + 1) for i in range(len(tiling))):
            sigma = tiling.cut_owned(self.variance, tile, device).sqrt()
            if not bool((sigma > 0).any()):
                continue
            wide = tiling.cut_wide(reference, tile).to(device, dtype)
            of_kernel = model.kernel.coefficients(wide.movedim((0, 1), (-2, -1))).movedim(-1, 0)
            terms = tiling.cut_wide(background, tile).to(device)
            h = tiling.cut_wide(curvature, tile).to(device)
            columns = [
                through.core(through.forward(kernel, tile, instead=part * h)).mul_(sigma)
                for part in (*torch.split(of_kernel, step), terms)
            ]
            yield torch.cat(columns).flatten(1)

    def _at_lags(self, image: Image) -> Tensor:
        """``image`` moved by every lag of the box, a view (ky, kx, h, w)."""
        ky, kx = self.model.kernel.shape
        windows = _with_margin(image, self.model).unfold(0, ky, 1).unfold(1, kx, 1)
        return windows.permute(2, 3, 0, 1)

    def _background_terms(self) -> Tensor:
        """The derivative of the model by each background coefficient, (n_b, h, w)."""
        background, like = self.model.background, self.variance
        unit = torch.eye(background.n_params, dtype=like.dtype, device=like.device)
        return background.image(unit, self.model.shape)

    def _correlator(self, image: Image) -> Correlator:
        return Correlator(image, self.model.kernel.half_shape, device=self.model.device)


def _with_margin(image: Tensor, model: ImageModel) -> Tensor:
    n_y, n_x = model.kernel.half_shape
    return pad(image, (n_x, n_x, n_y, n_y))


def _without_margin(image: Tensor, model: ImageModel) -> Tensor:
    (n_y, n_x), (h, w) = model.kernel.half_shape, model.shape
    return image[..., n_y : n_y + h, n_x : n_x + w]
