"""Correlation of an image with small kernels, and its adjoint, tile by tile in Fourier space.

Eq 2 is a correlation: ``(R (x) K)[i, j] = sum_lm K[n_y + l, n_x + m] R[i + l, j + m]``. This is
the only file that knows that orientation, besides :meth:`ImageModel.mv_direct
<pytorchdia.image_model.ImageModel.mv_direct>`, its slow twin.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from .tiling import Tiling

__all__ = ["Correlator", "elements_at_a_time"]


def elements_at_a_time(device: torch.device) -> int:
    """Pixels to transform at a time: on a CPU what its caches hold, elsewhere enough to fill it."""
    return 2**18 if device.type == "cpu" else 2**25


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
    _kept: dict[torch.dtype, Tensor] = field(default_factory=dict, repr=False, compare=False)
    _made: set[tuple[int, torch.dtype]] = field(default_factory=set, repr=False, compare=False)
    _closed: list[bool] = field(default_factory=list, repr=False, compare=False)

    @cached_property
    def tiling(self) -> Tiling:
        """The tiles."""
        return Tiling((self.image.shape[-2], self.image.shape[-1]), self.half_shape)

    @cached_property
    def chunks(self) -> list[slice]:
        """The tiles in runs that are worked on together."""
        device = self.image.device if self.device is None else self.device
        return self.tiling.chunks(elements_at_a_time(device))

    def kernel_spectrum(self, kernel: Tensor) -> Tensor:
        """The transform of a kernel (..., ky, kx) as :meth:`forward` needs it."""
        rows, columns, _ = self._waves(kernel.dtype)
        spectrum = rows @ kernel.to(rows.dtype) @ columns
        return spectrum.unsqueeze(-3)

    def forward(
        self,
        kernel_spectrum: Tensor,
        tiles: slice,
        level: Tensor | None = None,
        instead: Tensor | None = None,
    ) -> Tensor:
        """The correlation at the pixels of some tiles, (..., tile, row, column).

        ``level`` (...,) is added to it. Other tiles with their halo may be given ``instead`` of
        those of the image. Rows and columns are those of the transform: what lies
        beyond the core of a tile (``Tiling.core``) has no meaning.
        """
        f_y, f_x = self.tiling.fft
        if instead is None:
            product = self._spectrum(tiles, kernel_spectrum.real.dtype) * kernel_spectrum
        else:
            product = torch.fft.rfft2(instead, s=(f_y, f_x)).mul_(kernel_spectrum)
        if level is not None:
            product[..., 0, 0] += level[..., None] * (f_y * f_x)
        values: Tensor = torch.fft.irfft2(product, s=(f_y, f_x))
        return values

    def core(self, values: Tensor) -> Tensor:
        """The pixels of tiles without what :meth:`forward` appends to them."""
        rows, columns = self.tiling.core
        return values[..., :rows, :columns]

    def project(
        self, values: Tensor, tiles: slice, total: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Add the transform of the adjoint over some tiles to ``total``.

        Returns the new total and the sum of ``values`` over all pixels, (...,). ``values`` are
        (..., tile, row, column), padded or not, and must be 0 at pixels that a tile does not own.
        Begin with None and the first chunk; give the end to :meth:`lags`.
        """
        spectrum: Tensor = torch.fft.rfft2(values, s=self.tiling.fft).conj_physical_()
        level = spectrum[..., 0, 0].real.sum(dim=-1, dtype=torch.float64)
        image = self._spectrum(tiles, values.dtype)
        if total is None:
            return spectrum * image, level
        total[..., : image.shape[-3], :, :].addcmul_(spectrum, image)
        return total, level

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
        device = self.image.device if self.device is None else self.device
        return _waves(self.tiling.fft, self.half_shape, dtype, device)

    def _spectrum(self, tiles: slice, dtype: torch.dtype) -> Tensor:
        kept = self._room(dtype)
        if tiles.stop > kept.shape[-3]:
            return self._transform(tiles, dtype)
        mine = kept[..., tiles, :, :]
        if (tiles.start, dtype) not in self._made:
            mine.copy_(self._transform(tiles, dtype))
            self._made.add((tiles.start, dtype))
        return mine

    def _transform(self, tiles: slice, dtype: torch.dtype) -> Tensor:
        wide = self.tiling.cut_wide(self.image, tiles).to(self.device, dtype)
        spectrum: Tensor = torch.fft.rfft2(wide * wide if self.squared else wide, s=self.tiling.fft)
        return spectrum

    def _room(self, dtype: torch.dtype) -> Tensor:
        """Where the transforms of the first tiles are kept, as many as memory is left for.

        One piece, so that a large one goes back to the system when it is let go.
        """
        if dtype not in self._kept:
            kind = torch.complex64 if dtype == torch.float32 else torch.complex128
            lead, (f_y, f_x) = self.image.shape[:-2], self.tiling.fft
            size = math.prod(lead) * f_y * (f_x // 2 + 1) * kind.itemsize
            held = sum(each.numel() * each.element_size() for each in self._kept.values())
            count = 0 if self._closed else min(len(self.tiling), max(0, self.keep - held) // size)
            device = self.image.device if self.device is None else self.device
            shape = (*lead, count, f_y, f_x // 2 + 1)
            self._kept[dtype] = torch.empty(shape, dtype=kind, device=device)
        return self._kept[dtype]

    def forget(self, for_good: bool = False) -> None:
        """Let go of all transforms, and keep none from now on if that is ``for_good``."""
        self._kept.clear()
        self._made.clear()
        if for_good:
            self._closed.append(True)


@lru_cache(maxsize=64)
def _waves(
    fft: tuple[int, int], half_shape: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    (f_y, f_x), (n_y, n_x) = fft, half_shape
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
    rows, columns = waves
    return (
        rows.to(device, kind),
        columns.mT.contiguous().to(device, kind),
        (weight * columns).to(device, kind),
    )
