"""The image model M = R (x) K + B as a linear operator A on theta (eq 1-2, 18).

``M = A theta`` with theta = (kernel coefficients, background coefficients). Its products are all
that any solver needs: :meth:`ImageModel.mv` (A theta), :meth:`ImageModel.rmv` (A' r) and
:meth:`ImageModel.gram` (A' diag(w) A), the last also times a vector and approximately. This is the
only file that knows the orientation of the kernel:
``M[i, j] = sum_lm K[n_y + l, n_x + m] R[i + l, j + m]``, as eq 2 has it.

Images are full size. Pixels within half a kernel of the edge have no model: they are 0 in ``mv``
and count for nothing in ``rmv`` and ``gram``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import scipy.fft
import torch
from torch import Tensor

from .arrays import Image, Kernel, Mask, Matrix, Params, Scalar
from .background import PolynomialBackground
from .errors import InputError, ShapeError
from .frame import outside
from .kernel import KernelModel

__all__ = ["ImageModel"]

_TILE_ELEMENTS = 4_000_000  # size of one block of rows of A in `gram`: 32 MB in float64


@dataclass(frozen=True)
class ImageModel:
    """A for one reference, one kernel model and one background model.

    The precision of each product is that of its argument: float32 parameters are convolved in
    float32, float64 ones in float64.

    Parameters
    ----------
    reference : Image
        R, background subtracted, finite everywhere (bad pixels filled with anything and masked
        by the caller), float64.
    kernel : KernelModel
    background : PolynomialBackground
    """

    reference: Image
    kernel: KernelModel
    background: PolynomialBackground
    _cache: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.reference.ndim != 2:
            raise ShapeError(
                f"The reference must be a 2-D image, got shape {self.reference.shape}."
            )
        if self.kernel.n_params != self.kernel.shape[0] * self.kernel.shape[1]:
            raise InputError(
                f"The kernel has {self.kernel.n_params} parameters on {self.kernel.shape} pixels; "
                "only kernels with one parameter for each pixel can be fitted so far."
            )
        outside(self.shape, self.kernel.half_shape)  # raises if the kernel does not fit

    @property
    def shape(self) -> tuple[int, int]:
        """(h, w)."""
        return self.reference.shape[0], self.reference.shape[1]

    @property
    def n_params(self) -> int:
        """Length of theta."""
        return self.kernel.n_params + self.background.n_params

    @cached_property
    def valid(self) -> Mask:
        """True where the model is defined: the N_data pixels of section 2.1."""
        return ~outside(self.shape, self.kernel.half_shape).to(self.reference.device)

    def split(self, theta: Params) -> tuple[Params, Params]:
        """(kernel coefficients, background coefficients)."""
        return theta[: self.kernel.n_params], theta[self.kernel.n_params :]

    def kernel_image(self, theta: Params) -> Kernel:
        """K_lm, (ky, kx)."""
        return self.kernel.image(self.split(theta)[0])

    def background_image(self, theta: Params) -> Image:
        """B [ADU], (h, w), border included."""
        return self._background(self.split(theta)[1])

    def scale(self, theta: Params) -> Scalar:
        """P, the sum of the kernel (eq 3)."""
        return self.kernel_image(theta).sum()

    def scale_gradient(self) -> Params:
        """dP/dtheta, float64: 1 for each pixel of a delta kernel, 0 for the background."""
        ones = torch.ones(self.kernel.shape, dtype=torch.float64, device=self.reference.device)
        zeros = torch.zeros(self.background.n_params, dtype=torch.float64, device=ones.device)
        return torch.cat([self.kernel.coefficients(ones), zeros])

    def mv(self, theta: Params) -> Image:
        """A theta: the model image [ADU], (h, w); 0 in the border."""
        k, b = self.split(theta)
        model = self.convolve(self.kernel.image(k)) + self._background(b)
        return torch.where(self.valid, model, 0.0)

    def rmv(self, image: Image) -> Params:
        """A' r: the adjoint of :meth:`mv`. ``image`` is (h, w); its border does not count."""
        return self._project(torch.where(self.valid, image, 0.0))

    def gram_product(self, weight: Image, theta: Params) -> Params:
        """A' diag(w) A theta without the matrix, float64.

        Computed in the dtype of ``weight`` (h, w), which must be 0 in the border.
        """
        k, b = self.split(theta.to(weight.dtype))
        image = self.convolve(self.kernel.image(k)) + self._background(b)
        return self._project(image * weight).to(torch.float64)

    def convolve(self, kernel: Kernel) -> Image:
        """R (x) K of eq 2, (h, w). Pixels of the border wrap around and mean nothing."""
        (ky, kx), (n_y, n_x) = self.kernel.shape, self.kernel.half_shape
        padded = torch.nn.functional.pad(
            kernel, (0, self._fft_shape[1] - kx, 0, self._fft_shape[0] - ky)
        ).roll((-n_y, -n_x), dims=(0, 1))
        spectrum = torch.fft.rfft2(padded).conj() * self._spectrum(kernel.dtype)
        h, w = self.shape
        convolved: Tensor = torch.fft.irfft2(spectrum, s=self._fft_shape)
        return convolved[:h, :w]

    def gram(self, weight: Image) -> Matrix:
        """A' diag(w) A, (p, p), float64, by blocks of image rows.

        The products run in the dtype of ``weight`` (h, w); the sum over blocks is float64.
        Negative weights are allowed.
        """
        (n_y, n_x), (ky, kx) = self.kernel.half_shape, self.kernel.shape
        h, w = self.shape
        reference = self.reference.to(weight.dtype)
        terms = self._terms(weight.dtype)
        gram = torch.zeros(self.n_params, self.n_params, dtype=torch.float64, device=weight.device)
        width = w - 2 * n_x
        step = max(1, _TILE_ELEMENTS // (width * self.n_params))
        for top in range(n_y, h - n_y, step):
            rows = slice(top, min(top + step, h - n_y))
            used = weight[rows, n_x : w - n_x]
            if not used.any():
                continue
            patches = (
                reference[rows.start - n_y : rows.stop + n_y].unfold(0, ky, 1).unfold(1, kx, 1)
            )
            block = torch.empty(
                used.numel(), self.n_params, dtype=weight.dtype, device=weight.device
            )
            self._fill(block, patches, terms[:, rows, n_x : w - n_x])
            gram += (block.T @ (block * used.reshape(-1, 1))).to(torch.float64)
        return 0.5 * (gram + gram.T)

    def gram_toeplitz(self, weight: Image) -> Matrix:
        """An approximation of :meth:`gram` from the autocorrelation of sqrt(w) R, float64.

        A' diag(w) A weights the product of two shifted references by w. Here each reference is
        multiplied by sqrt(w) before it is shifted. That makes a Gram matrix as well, so it is
        positive semi-definite, and it needs one autocorrelation only.
        ``weight`` (h, w) must not be negative and 0 in the border; its dtype is used.
        """
        ky, kx = self.kernel.shape
        root = weight.sqrt()
        spectrum = torch.fft.rfft2(root * self.reference.to(weight.dtype), s=self._fft_shape)
        power = torch.fft.irfft2(spectrum.real**2 + spectrum.imag**2, s=self._fft_shape)
        dy, dx = (torch.arange(k, device=weight.device) for k in (ky, kx))
        dy, dx = dy[:, None] - dy, dx[:, None] - dx
        shifted = power[dy[:, None, :, None], dx[None, :, None, :]].reshape(ky * kx, ky * kx)
        terms = root * self._terms(weight.dtype)
        cross = [
            self._lags(torch.fft.rfft2(term, s=self._fft_shape).conj() * spectrum).reshape(-1)
            for term in terms
        ]
        n_k = self.kernel.n_params
        gram = torch.empty(self.n_params, self.n_params, dtype=torch.float64, device=weight.device)
        gram[:n_k, :n_k] = shifted
        gram[n_k:, :n_k] = torch.stack(cross)
        gram[:n_k, n_k:] = gram[n_k:, :n_k].T
        gram[n_k:, n_k:] = torch.einsum("khw,lhw->kl", terms, terms)
        return gram

    def _project(self, image: Image) -> Params:
        """A' r for an image that is 0 in the border."""
        spectrum = torch.fft.rfft2(image, s=self._fft_shape).conj() * self._spectrum(image.dtype)
        if self.background.n_params == 1:
            background = image.sum()[None]
        else:
            background = torch.einsum("khw,hw->k", self._terms(image.dtype), image)
        return torch.cat([self.kernel.coefficients(self._lags(spectrum)), background])

    def _lags(self, spectrum: Tensor) -> Kernel:
        """The inverse transform at the lags of the kernel box, (ky, kx)."""
        corr = torch.fft.irfft2(spectrum, s=self._fft_shape)
        rows, columns = (
            torch.arange(-n, n + 1, device=corr.device) for n in self.kernel.half_shape
        )
        lags: Tensor = corr[rows[:, None], columns]
        return lags

    def _fill(self, block: Tensor, patches: Tensor, terms: Tensor) -> None:
        """Write the rows of A for one block: reference patches, then the background terms."""
        rows, columns, ky, kx = patches.shape
        n_k = self.kernel.n_params
        view = block.as_strided(
            (rows, columns, ky, kx), (columns * self.n_params, self.n_params, kx, 1)
        )
        view.copy_(patches)
        block[:, n_k:] = terms.flatten(1).T

    def _background(self, coefficients: Params) -> Image:
        if self.background.n_params == 1:
            return coefficients[0].expand(self.shape)
        terms = self._terms(coefficients.dtype)
        return torch.einsum("k,khw->hw", coefficients, terms)

    @cached_property
    def _fft_shape(self) -> tuple[int, int]:
        # The circular wrap reaches only the border, which is not valid: no padding is needed.
        h, w = (scipy.fft.next_fast_len(n, real=True) for n in self.shape)
        return h, w

    def _spectrum(self, dtype: torch.dtype) -> Tensor:
        return self._cached(
            f"spectrum {dtype}",
            lambda: torch.fft.rfft2(self.reference.to(dtype), s=self._fft_shape),
        )

    def _terms(self, dtype: torch.dtype) -> Tensor:
        return self._cached(
            f"terms {dtype}",
            lambda: self.background.terms(self.shape, dtype, self.reference.device),
        )

    def _cached(self, key: str, make: Callable[[], Tensor]) -> Tensor:
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]
