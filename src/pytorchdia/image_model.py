"""The image model M = R (x) K + B as a linear operator A on theta (eq 1-2, 18).

``M = A theta`` with theta = (kernel coefficients, background coefficients). Its products are all
that any solver needs: :meth:`ImageModel.mv` (A theta), :meth:`ImageModel.rmv` (A' r) and
:meth:`ImageModel.gram` (A' diag(w) A), the last also times a vector and approximately.

Images are full size. Pixels within half a kernel of the edge have no model: they are 0 in ``mv``
and count for nothing in ``rmv`` and ``gram``. Every array may have axes before those named here:
a stack of references, of parameters, or of both.

The work is done in tiles (:mod:`pytorchdia.correlate`). ``Tiled`` stands for an image that exists
only as the chunks of tiles in which it is worked on, each padded to the size of its transforms.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from .arrays import Image, Kernel, Mask, Matrix, Params, Scalar, Tiled
from .background import PolynomialBackground
from .correlate import Correlator
from .errors import ShapeError
from .frame import footprint_sum, outside, strips
from .kernel import DeltaKernel, KernelModel

__all__ = ["ImageModel"]

_GRAM_ELEMENTS = 4_000_000  # size of one block of rows of A in `gram`: 32 MB in float64
_KEEP = 2**26  # bytes of transforms that are kept however small the frame
_KEEP_PER_PIXEL = 6  # and per pixel of the reference: the float32 transforms of its tiles fit


@dataclass(frozen=True)
class ImageModel:
    """A for one reference, one kernel model and one background model.

    The precision of each product is that of its argument: float32 parameters are convolved in
    float32, float64 ones in float64.

    Parameters
    ----------
    reference : Image
        R, background subtracted, finite everywhere (bad pixels filled with anything and masked
        by the caller), (..., h, w).
    kernel : KernelModel
    background : PolynomialBackground
    keep : int, optional
        Bytes that the transforms of the reference may occupy between products; what does not fit
        is computed anew each time. None takes 6 bytes per pixel (float32 fits), at least 64 MB.
    compute_on : torch.device, optional
        Where the work is done, if not where the reference is; its tiles are sent there as needed.
    """

    reference: Image
    kernel: KernelModel
    background: PolynomialBackground
    keep: int | None = None
    compute_on: torch.device | None = None

    def __post_init__(self) -> None:
        if self.reference.ndim < 2:
            raise ShapeError(
                f"The reference must be a 2-D image, got shape {self.reference.shape}."
            )
        outside(self.shape, self.kernel.half_shape)  # raises if the kernel does not fit

    @property
    def device(self) -> torch.device:
        """Where the work is done."""
        return self.reference.device if self.compute_on is None else self.compute_on

    @property
    def shape(self) -> tuple[int, int]:
        """(h, w)."""
        return self.reference.shape[-2], self.reference.shape[-1]

    @property
    def n_params(self) -> int:
        """Length of theta."""
        return self.kernel.n_params + self.background.n_params

    @cached_property
    def valid(self) -> Mask:
        """True where the model is defined: the N_data pixels of section 2.1, (h, w)."""
        return ~outside(self.shape, self.kernel.half_shape).to(self.reference.device)

    @cached_property
    def correlator(self) -> Correlator:
        """R, ready to be correlated with kernels."""
        keep = max(_KEEP, _KEEP_PER_PIXEL * self.reference.numel())
        return Correlator(
            self.reference,
            self.kernel.half_shape,
            keep if self.keep is None else self.keep,
            self.compute_on,
        )

    def with_kernel(self, kernel: KernelModel) -> ImageModel:
        """The same with another kernel model on the same box; transforms are shared."""
        other = replace(self, kernel=kernel)
        other.__dict__["correlator"] = self.correlator  # where cached_property looks for it
        return other

    def __getitem__(self, item: int | Tensor) -> ImageModel:
        """The model of one pair of a stack, or of some of them."""
        kernel = self.kernel.item(item)
        if self.reference.ndim > 2:
            return replace(self, reference=self.reference[item], kernel=kernel)
        return self if kernel is self.kernel else self.with_kernel(kernel)

    @property
    def chunks(self) -> list[slice]:
        """The tiles in the runs in which they are worked on."""
        return self.correlator.chunks

    def split(self, theta: Params) -> tuple[Params, Params]:
        """(kernel coefficients, background coefficients)."""
        return theta[..., : self.kernel.n_params], theta[..., self.kernel.n_params :]

    def kernel_image(self, theta: Params) -> Kernel:
        """K_lm, (..., ky, kx)."""
        return self.kernel.image(self.split(theta)[0])

    def background_image(self, theta: Params) -> Image:
        """B [ADU], (..., h, w), border included."""
        return self.background.image(self.split(theta)[1], self.shape)

    def scale(self, theta: Params) -> Scalar:
        """P, the sum of the kernel (eq 3)."""
        return self.kernel.true_image(self.split(theta)[0]).sum(dim=(-2, -1))

    def scale_gradient(self) -> Params:
        """dP/dtheta, float64: 1 for each pixel of a delta kernel, 0 for the background."""
        of_kernel = self.kernel.sum_gradient(self.device)
        zeros = of_kernel.new_zeros(*of_kernel.shape[:-1], self.background.n_params)
        return torch.cat([of_kernel, zeros], dim=-1)

    @property
    def _n_pixels(self) -> int:
        """Pixels of the kernel's box."""
        return self.kernel.shape[0] * self.kernel.shape[1]

    def _in_basis(self, matrix: Tensor) -> Tensor:
        """T' matrix T, (..., p, p), from kernel pixels and background to theta."""
        if isinstance(self.kernel, DeltaKernel):
            return matrix
        for _ in range(2):  # the rows, then the columns
            rows = matrix.movedim(-2, 0)
            kernels = rows[..., : self._n_pixels]
            kernels = kernels.reshape(*kernels.shape[:-1], *self.kernel.shape)
            rows = torch.cat([self.kernel.coefficients(kernels), rows[..., self._n_pixels :]], -1)
            matrix = rows.movedim(0, -2).mT
        return matrix

    def models(self, theta: Params) -> Iterator[tuple[slice, Tensor]]:
        """A theta chunk by chunk: (tiles, their pixels (..., tile, row, column), padded)."""
        k, b = self.split(theta)
        spectrum = self.correlator.kernel_spectrum(self.kernel.image(k))
        level = b[..., 0] if self.background.degree == 0 else None
        for tiles in self.chunks:
            values = self.correlator.forward(spectrum, tiles, level)
            if level is None:
                self.correlator.core(values).add_(self._background(b, tiles))
            yield tiles, values

    def mv(self, theta: Params) -> Image:
        """A theta: the model image [ADU], (..., h, w); 0 in the border."""
        lead = _broadcast(self.reference.shape[:-2], theta.shape[:-1])
        image = torch.zeros((*lead, *self.shape), dtype=theta.dtype, device=theta.device)
        for tiles, values in self.models(theta):
            self.correlator.tiling.paste(values, tiles, image)
        return image

    def mv_direct(self, theta: Params) -> Image:
        """A theta as the paper computes it: one convolutional layer (section 2.3), by conv2d.

        Slow, differentiable by ``theta`` (p,); for one reference (h, w).
        """
        k, b = self.split(theta)
        kernel = self.kernel.image(k)[None, None]
        reference = self.reference.to(theta.dtype)[None, None]
        inner = torch.nn.functional.conv2d(reference, kernel)[0, 0]
        n_y, n_x = self.kernel.half_shape
        image = torch.nn.functional.pad(inner, (n_x, n_x, n_y, n_y))
        return torch.where(self.valid, image + self.background.image(b, self.shape), 0.0)

    def rmv(self, image: Image | Tiled) -> Params:
        """A' r: the adjoint of :meth:`mv`. The border of an image (..., h, w) does not count."""
        projection = Projection(self)
        for i, tiles in enumerate(self.chunks):
            projection.add(tiles, self.part(image, i))
        return projection.params()

    def part(self, image: Image | Mask | Tiled, i: int) -> Tensor:
        """The i-th chunk of tiles of an image; 0 at pixels that another tile owns."""
        if isinstance(image, list):
            return image[i]
        return self.correlator.tiling.cut_owned(image, self.chunks[i], self.device)

    def padded_part(self, image: Image | Tiled, i: int) -> Tensor:
        """The i-th chunk, padded to the size of its transforms as the chunks of a Tiled are."""
        part = self.part(image, i)
        return part if isinstance(image, list) else self.correlator.tiling.padded(part)

    def assembled(self, image: Image | Tiled) -> Image:
        """A tiled image in one piece, (..., h, w); 0 in the border."""
        if not isinstance(image, list):
            return image
        lead = image[0].shape[:-3]
        whole = torch.zeros((*lead, *self.shape), dtype=image[0].dtype, device=image[0].device)
        self._paste(image, whole)
        return whole

    def _paste(self, image: Tiled, whole: Tensor) -> None:
        for tiles, part in zip(self.chunks, image, strict=True):
            self.correlator.tiling.paste(part, tiles, whole)

    def empty_tiled(self, lead: torch.Size, dtype: torch.dtype) -> Tiled:
        """A tiled image of zeros for a stack of shape ``lead``, in one piece of memory."""
        tiling = self.correlator.tiling
        store = torch.zeros(*lead, len(tiling), *tiling.fft, dtype=dtype, device=self.device)
        return [store[..., tiles, :, :] for tiles in self.chunks]

    def gram_product(self, weight: Image | Tiled, theta: Params) -> Params:
        """A' diag(w) A theta without the matrix, float64; in the dtype of ``weight``."""
        dtype = weight[0].dtype
        projection = Projection(self)
        for i, (tiles, values) in enumerate(self.models(theta.to(dtype))):
            part = self.padded_part(weight, i)
            fits = _broadcast(values.shape, part.shape) == values.shape
            projection.add(tiles, values.mul_(part) if fits else values * part)
        return projection.params()

    def gram(self, weight: Image | Tiled) -> Matrix:
        """A' diag(w) A, (..., p, p), float64, by blocks of image rows.

        The products run in the dtype of ``weight``; the sum over blocks is float64. Negative
        weights are allowed.
        """
        weight = self.assembled(weight)
        lead = _broadcast(self.reference.shape[:-2], weight.shape[:-2])
        reference = self.reference.expand(*lead, *self.shape).reshape(-1, *self.shape)
        weights = weight.expand(*lead, *self.shape).reshape(-1, *self.shape)
        grams = [self._gram_of(r, w) for r, w in zip(reference, weights, strict=True)]
        return self._in_basis(torch.stack(grams).reshape(*lead, *grams[0].shape))

    def gram_of_pixels(self, weight: Image, pixels: Tensor) -> Matrix:
        """A' diag(w) A over a few pixels only, (p, p), float64.

        ``pixels`` are their flat indices in the image (h, w), which must have one reference.
        """
        (n_y, n_x), (ky, kx) = self.kernel.half_shape, self.kernel.shape
        patches = self.reference.unfold(0, ky, 1).unfold(1, kx, 1)
        y, x = pixels // self.shape[1], pixels % self.shape[1]
        home = self.reference.device
        rows = patches[(y - n_y).to(home), (x - n_x).to(home)].reshape(len(pixels), -1).to(weight)
        xi, eta = self.background.axes(self.shape, weight.dtype, weight.device)
        terms = [xi[y] ** n * eta[x] ** m for m, n in self.background.exponents]
        rows = torch.cat([rows, torch.stack(terms, dim=1)], dim=1)
        gram = rows.T @ (rows * weight.reshape(-1)[pixels, None])
        return self._in_basis(gram.to(torch.float64))

    def gram_toeplitz(self, weight: Image | Tiled) -> Matrix:
        """An approximation of :meth:`gram` from one autocorrelation, float64.

        A' diag(w) A weights the product of two shifted references by w. Here each pixel of the
        reference carries one weight instead, wherever it is shifted to: the mean of w over the
        places to which the kernel's box takes it, so that the trace is exact. With v that mean,
        the result is the Gram matrix of shifted copies of sqrt(v) R (positive semi-definite,
        therefore), its rows and columns scaled so that the whole diagonal is exact.
        ``weight`` must not be negative, and 0 in the border; its dtype is used.
        """
        (ky, kx), (n_y, n_x) = self.kernel.shape, self.kernel.half_shape
        dtype, device, lead = weight[0].dtype, weight[0].device, self._lead(weight)
        exact = self._gram_diagonal(weight)
        root = self._root_of_mean(weight)
        padded = root.clone()
        inner = padded[..., 2 * n_y : -2 * n_y or None, 2 * n_x : -2 * n_x or None]
        for rows in strips(self.shape[0]):  # without a whole copy of R in this dtype
            inner[..., rows, :] *= self.reference[..., rows, :].to(root)
        shifted = Correlator(padded, (2 * n_y, 2 * n_x))
        power = _correlation(shifted, padded)
        n_k, n_all = self._n_pixels, self._n_pixels + self.background.n_params
        gram = torch.empty(*lead, n_all, n_all, dtype=torch.float64, device=device)
        index = _lag_index(self.kernel.shape).to(device)
        gram[..., :n_k, :n_k] = power.flatten(-2)[..., index].reshape(*lead, n_k, n_k)
        xi, eta = self.background.axes(self.shape, dtype, device)
        xi_padded, eta_padded = (
            torch.nn.functional.pad(axis, (2 * n, 2 * n)) for axis, n in ((xi, n_y), (eta, n_x))
        )
        for k, (m, n) in enumerate(self.background.exponents):
            term = root * xi_padded[:, None] ** n * eta_padded**m if m or n else root
            cross = _correlation(shifted, term)[..., n_y : n_y + ky, n_x : n_x + kx]
            gram[..., n_k + k, :n_k] = cross.flatten(-2)
        gram[..., :n_k, n_k:] = gram[..., n_k:, :n_k].mT
        del shifted, padded
        root = root[..., 2 * n_y : -2 * n_y or None, 2 * n_x : -2 * n_x or None]
        gram[..., n_k:, n_k:] = self._background_gram(root.mul_(root))
        diagonal = gram.diagonal(dim1=-2, dim2=-1)
        ratio = torch.where((exact > 0) & (diagonal > 0), exact / diagonal, 1.0).sqrt()
        return self._in_basis(gram.mul_(ratio.unsqueeze(-1)).mul_(ratio.unsqueeze(-2)))

    def _gram_diagonal(self, weight: Image | Tiled) -> Params:
        """The diagonal of :meth:`gram` over kernel pixels and background, float64."""
        squares = Correlator(
            self.reference, self.kernel.half_shape, device=self.compute_on, squared=True
        )
        total: Tensor | None = None
        table: Tensor | float = 0.0
        for i, tiles in enumerate(squares.chunks):
            part = self.part(weight, i)
            total, _ = squares.project(part, tiles, total)
            rows, columns = self.powers(tiles, part.dtype)
            moments = (rows**2).mT @ squares.core(part) @ columns**2
            table = table + moments.sum(dim=-3, dtype=torch.float64)
        assert total is not None
        assert isinstance(table, Tensor)
        m, n = self._exponents
        kernel = squares.lags(total).flatten(-2).to(torch.float64)
        return torch.cat([kernel, table[..., n, m]], dim=-1)

    def _root_of_mean(self, weight: Image | Tiled) -> Tensor:
        """Root of the mean of w over the places of each pixel of R, with a margin of 2 n of 0.

        In place and by strips, so that there is only one image of this kind.
        """
        (ky, kx), (n_y, n_x), (h, w) = self.kernel.shape, self.kernel.half_shape, self.shape
        lead, dtype, device = self._lead(weight), weight[0].dtype, weight[0].device
        root = torch.zeros(*lead, h + 4 * n_y, w + 4 * n_x, dtype=dtype, device=device)
        inner = root[..., 2 * n_y : 2 * n_y + h, 2 * n_x : 2 * n_x + w]
        if isinstance(weight, list):
            self._paste(weight, inner)
        else:
            inner.copy_(weight)
        above = inner.new_zeros(*lead, n_y, w)  # rows of w that have been overwritten
        for rows in strips(h):
            bottom = min(rows.stop + n_y, h)
            near = torch.cat([above, inner[..., rows.start : bottom, :]], dim=-2)
            above = near[..., rows.stop - rows.start : rows.stop - rows.start + n_y, :]
            near = torch.nn.functional.pad(near, (n_x, n_x, 0, rows.stop + n_y - bottom))
            mean = footprint_sum(near, (n_y, n_x)).clamp_(min=0.0).div_(ky * kx)
            inner[..., rows, :] = mean.sqrt_()
        return root

    def _gram_of(self, reference: Tensor, weight: Tensor) -> Matrix:
        (n_y, n_x), (ky, kx) = self.kernel.half_shape, self.kernel.shape
        h, w = self.shape
        xi, eta = self.background.axes(self.shape, weight.dtype, weight.device)
        n_k, n_all = self._n_pixels, self._n_pixels + self.background.n_params
        gram = torch.zeros(n_all, n_all, dtype=torch.float64, device=weight.device)
        width = w - 2 * n_x
        step = max(1, _GRAM_ELEMENTS // (width * n_all))
        for top in range(n_y, h - n_y, step):
            rows = slice(top, min(top + step, h - n_y))
            used = weight[rows, n_x : w - n_x]
            if not used.any():
                continue
            strip = reference[rows.start - n_y : rows.stop + n_y].to(weight)
            block = torch.empty(used.numel(), n_all, dtype=weight.dtype, device=weight.device)
            view = block.as_strided((*used.shape, ky, kx), (width * n_all, n_all, kx, 1))
            view.copy_(strip.unfold(0, ky, 1).unfold(1, kx, 1))
            for k, (m, n) in enumerate(self.background.exponents):
                term = xi[rows, None] ** n * eta[n_x : w - n_x] ** m
                block[:, n_k + k] = term.reshape(-1)
            gram += (block.T @ (block * used.reshape(-1, 1))).to(torch.float64)
        return 0.5 * (gram + gram.T)

    def _background_gram(self, weight: Image) -> Matrix:
        exponents, d = self.background.exponents, self.background.degree
        if d == 0:
            return weight.sum(dim=(-2, -1), dtype=torch.float64)[..., None, None]
        xi, eta = self.background.axes(self.shape, weight.dtype, weight.device)
        powers_y, powers_x = (
            torch.stack([axis.double() ** k for k in range(2 * d + 1)]) for axis in (xi, eta)
        )
        columns = (weight @ powers_x.T.to(weight.dtype)).to(torch.float64)
        moments = powers_y @ columns  # (..., power of y, power of x)
        index = [[(n + q, m + p) for p, q in exponents] for m, n in exponents]
        return moments[..., torch.tensor(index)[..., 0], torch.tensor(index)[..., 1]]

    def _lead(self, weight: Image | Tiled) -> torch.Size:
        return weight[0].shape[:-3] if isinstance(weight, list) else weight.shape[:-2]

    def _background(self, coefficients: Params, tiles: slice) -> Tensor:
        """B at the pixels of some tiles."""
        if self.background.degree == 0:
            return coefficients[..., :, None, None]
        d = self.background.degree
        table = coefficients.new_zeros(*coefficients.shape[:-1], d + 1, d + 1)
        m, n = self._exponents
        table[..., n, m] = coefficients
        rows, columns = self.powers(tiles, coefficients.dtype)
        return rows @ table.unsqueeze(-3) @ columns.mT

    @cached_property
    def _exponents(self) -> tuple[Tensor, Tensor]:
        """Powers m and n of each background coefficient."""
        m, n = torch.tensor(self.background.exponents, device=self.device).T
        return m, n

    @cached_property
    def _powers(self) -> dict[tuple[int, torch.dtype], tuple[Tensor, Tensor]]:
        """Those of :meth:`powers` that have been asked for, by the first tile."""
        return {}

    def powers(self, tiles: slice, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """xi^n (tile, row, d + 1) and eta^m (tile, column, d + 1) at the pixels of some tiles."""
        key = tiles.start, dtype
        if key not in self._powers:
            self._powers[key] = self._powers_at(tiles, dtype)
        return self._powers[key]

    def _powers_at(self, tiles: slice, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        device = self.device
        xi, eta = self.background.axes(self.shape, dtype, device)
        cut = self.correlator.tiling.cut
        k = torch.arange(self.background.degree + 1, device=device)
        rows = cut(xi[:, None].expand(self.shape), tiles)[..., :, 0]
        columns = cut(eta.expand(self.shape), tiles)[..., 0, :]
        return rows[..., None] ** k, columns[..., None] ** k


class Projection:
    """A' r, gathered chunk by chunk."""

    def __init__(self, model: ImageModel) -> None:
        self._model = model
        self._kernel: Tensor | None = None
        self._background: Tensor | float = 0.0

    def add(self, tiles: slice, values: Tensor) -> None:
        """Add the pixels (..., tile, row, column) of some tiles, 0 where they do not count."""
        model = self._model
        self._kernel, level = model.correlator.project(values, tiles, self._kernel)
        if model.background.degree == 0:
            moments = level.unsqueeze(-1)
        else:
            rows, columns = model.powers(tiles, values.dtype)
            values = model.correlator.core(values)
            table = (rows.mT @ values @ columns).sum(dim=-3).to(torch.float64)
            m, n = model._exponents
            moments = table[..., n, m]
        self._background = self._background + moments

    def params(self) -> Params:
        """The sum, (..., p), float64."""
        assert isinstance(self._kernel, Tensor)
        assert isinstance(self._background, Tensor)
        lags = self._model.correlator.lags(self._kernel).to(torch.float64)
        return torch.cat([self._model.kernel.coefficients(lags), self._background], dim=-1)


def _correlation(correlator: Correlator, image: Tensor) -> Tensor:
    """sum_ij image[i, j] R[i + l, j + m] over a whole image for every lag of the box."""
    total = None
    for tiles in correlator.chunks:
        values = correlator.tiling.cut_owned(image, tiles, image.device)
        total, _ = correlator.project(values, tiles, total)
    assert total is not None
    return correlator.lags(total)


@lru_cache(maxsize=16)
def _lag_index(shape: tuple[int, int]) -> Tensor:
    """Where the lag between two pixels of a kernel lies in its lags, flat, (n_k * n_k,)."""
    ky, kx = shape
    dy, dx = (torch.arange(k)[:, None] - torch.arange(k) + k - 1 for k in (ky, kx))
    return (dy[:, None, :, None] * (2 * kx - 1) + dx[None, :, None, :]).reshape(-1)


def _broadcast(*shapes: torch.Size) -> torch.Size:
    # torch.broadcast_shapes imports sympy, which takes a second.
    return torch.Size(np.broadcast_shapes(*shapes))
