"""Correlation of an image with small kernels, and its adjoint, tile by tile in Fourier space.

Eq 2 is a correlation: ``(R (x) K)[i, j] = sum_lm K[n_y + l, n_x + m] R[i + l, j + m]``. This is
the only file that knows that orientation, besides :meth:`ImageModel.mv_direct
<pytorchdia.image_model.ImageModel.mv_direct>`, its slow twin.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from .tiling import Tiling

__all__ = ["Correlator"]

# Pixels that are transformed at a time: on a CPU what its caches hold, elsewhere enough to fill it.
_CHUNK = {"cpu": 2**18}
_CHUNK_ELSEWHERE = 2**25


@dataclass(frozen=True)
class Correlator:
    """One image, ready to be correlated with kernels of half-widths (n_y, n_x).

    Parameters
    ----------
    image : Tensor
        (..., h, w), finite.
    half_shape : (int, int)
    keep : int
        Bytes that the transforms of the tiles may take from one call to the next. Those that do
        not fit are computed anew at each use.
    device : torch.device, optional
        Where the work is done, if not where the image is.
    squared : bool
        Take the image's square in its place.
    """

    image: Tensor
    half_shape: tuple[int, int]
    keep: int = 0
    device: torch.device | None = None
    squared: bool = False
    _kept: dict[tuple[int, torch.dtype], Tensor] = field(
        default_factory=dict, repr=False, compare=False
    )
    _held: list[int] = field(default_factory=lambda: [0], repr=False, compare=False)  # bytes
    _kept_waves: dict[torch.dtype, tuple[Tensor, Tensor, Tensor]] = field(
        default_factory=dict, repr=False, compare=False
    )

    @cached_property
    def tiling(self) -> Tiling:
        """The tiles."""
        return Tiling((self.image.shape[-2], self.image.shape[-1]), self.half_shape)

    @cached_property
    def chunks(self) -> list[slice]:
        """The tiles in runs that are worked on together."""
        device = self.image.device if self.device is None else self.device
        budget = _CHUNK.get(device.type, _CHUNK_ELSEWHERE)
        return self.tiling.chunks(budget)

    def kernel_spectrum(self, kernel: Tensor) -> Tensor:
        """The transform of a kernel (..., ky, kx) as :meth:`forward` needs it."""
        rows, columns, _ = self._waves(kernel.dtype)
        spectrum = rows @ kernel.to(rows.dtype) @ columns
        return spectrum.unsqueeze(-3)

    def forward(self, kernel_spectrum: Tensor, tiles: slice) -> Tensor:
        """The correlation at the pixels of some tiles, (..., tile, row, column)."""
        dtype = kernel_spectrum.real.dtype
        rows, columns = self.tiling.core
        product = self._spectrum(tiles, dtype) * kernel_spectrum
        values: Tensor = torch.fft.irfft2(product, s=self.tiling.fft)
        return values[..., :rows, :columns]

    def project(self, values: Tensor, tiles: slice, total: Tensor | None) -> Tensor:
        """Add the transform of the adjoint over some tiles to ``total``, and return that.

        ``values`` are (..., tile, row, column) and must be 0 at pixels that a tile does not own.
        Begin with None and the first chunk; give the end to :meth:`lags`.
        """
        spectrum: Tensor = torch.fft.rfft2(values, s=self.tiling.fft).conj_physical_()
        image = self._spectrum(tiles, values.dtype)
        if total is None:
            return spectrum * image
        total[..., : image.shape[-3], :, :].addcmul_(spectrum, image)
        return total

    def lags(self, total: Tensor) -> Tensor:
        """sum_ij values[i, j] image[i + l, j + m] for every lag of the box, (..., ky, kx)."""
        rows, _, columns = self._waves(total.real.dtype)
        lags: Tensor = (rows.mT @ total.sum(dim=-3) @ columns).real
        return lags

    def _waves(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """The few waves that a small box needs, in place of transforms of mostly zeros.

        e^{+2 pi i y k / f_y} (f_y, ky); the same for x (kx, f_x / 2 + 1); and for the way back
        (f_x / 2 + 1, kx), where each column stands for two, and with the norm.
        """
        if dtype not in self._kept_waves:
            (f_y, f_x), (n_y, n_x) = self.tiling.fft, self.half_shape
            half = f_x // 2 + 1
            waves = []
            for length, count, n in ((f_y, f_y, n_y), (f_x, half, n_x)):
                turns = torch.outer(torch.arange(count), torch.arange(2 * n + 1)) % length
                angle = turns.to(torch.float64) * (2.0 * math.pi / length)
                waves.append(torch.polar(torch.ones_like(angle), angle))
            weight = torch.full((half, 1), 2.0 / (f_y * f_x), dtype=torch.float64)
            weight[0] /= 2.0
            if f_x % 2 == 0:
                weight[-1] /= 2.0
            kind = torch.complex64 if dtype == torch.float32 else torch.complex128
            device = self.image.device if self.device is None else self.device
            rows, columns = waves
            self._kept_waves[dtype] = (
                rows.to(device, kind),
                columns.mT.contiguous().to(device, kind),
                (weight * columns).to(device, kind),
            )
        return self._kept_waves[dtype]

    def _spectrum(self, tiles: slice, dtype: torch.dtype) -> Tensor:
        key = (tiles.start, dtype)
        if key in self._kept:
            return self._kept[key]
        wide = self.tiling.cut_wide(self.image, tiles).to(self.device, dtype)
        wide = wide * wide if self.squared else wide
        spectrum: Tensor = torch.fft.rfft2(wide, s=self.tiling.fft)
        size = spectrum.numel() * spectrum.element_size()
        if self._held[0] + size <= self.keep:
            self._kept[key] = spectrum
            self._held[0] += size
        return spectrum

    def forget(self) -> None:
        """Let go of all transforms."""
        self._kept.clear()
        self._held[0] = 0
