"""How a frame is cut into tiles, so that small Fourier transforms do the work of large ones.

A correlation with a kernel of half-widths (n_y, n_x) at the pixels of one tile needs the tile and
a halo of that width around it, and nothing else (overlap-save). Tiles stay in the processor's
cache, and cost and memory per pixel do not grow with the frame.

All tiles have one size. Where the last one would leave the frame it is moved back inside; the few
pixels that two tiles then share belong to the first of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import scipy.fft
import torch
from torch import Tensor

__all__ = ["Cut", "Tiling"]

_SHORTEST, _LONGEST = 112, 512  # pixels of a transform along one axis, where the frame allows it
_HALOS = 4  # but at least this many halos, lest wide kernels do little else


@dataclass(frozen=True)
class Cut:
    """One axis, cut into pieces of ``core`` pixels that start at ``starts``.

    Attributes
    ----------
    starts : tuple of int
        First pixel of each piece, halo included.
    core, halo, fft : int
        Pixels of a piece without its halo, of the halo (both sides together), and of the transform.
    """

    starts: tuple[int, ...]
    core: int
    halo: int
    fft: int

    @classmethod
    def of(cls, length: int, half: int) -> Cut:
        """The cheapest cut of an axis of ``length`` pixels for a kernel of half-width ``half``."""
        halo, valid = 2 * half, length - 2 * half
        longest = max(_LONGEST, _HALOS * halo)
        options: list[tuple[float, int, int, int]] = []
        for count in range(1, valid + 1):
            core = math.ceil(valid / count)
            fft = scipy.fft.next_fast_len(core + halo, real=True)
            if fft < max(_SHORTEST, 2 * halo) and options:
                break
            if fft <= longest:
                # Longer transforms cost more per pixel: measured, 1.6 times from 128 to 512.
                options.append((count * fft * (math.log2(fft) - 4.0), count, core, fft))
        _, count, core, fft = min(options)
        gap = (valid - core) / max(count - 1, 1)
        return cls(tuple(round(i * gap) for i in range(count)), core, halo, fft)

    @cached_property
    def shared(self) -> tuple[int, ...]:
        """Pixels at the beginning of each piece that the piece before has as well."""
        ends = (0, *(start + self.core for start in self.starts[:-1]))
        return tuple(end - start for end, start in zip(ends, self.starts, strict=True))


@dataclass(frozen=True)
class Tiling:
    """Tiles of a frame of ``shape`` (h, w) for a kernel of ``half_shape`` (n_y, n_x).

    Tiles are numbered row by row; ``tiles`` is always a slice of those numbers. The tiles of an
    image (..., h, w) have the axes (..., tile, row, column). They may be ``padded``.
    """

    shape: tuple[int, int]
    half_shape: tuple[int, int]

    @cached_property
    def _cuts(self) -> tuple[Cut, Cut]:
        (h, w), (n_y, n_x) = self.shape, self.half_shape
        return Cut.of(h, n_y), Cut.of(w, n_x)

    @cached_property
    def _corners(self) -> list[tuple[int, int]]:
        rows, columns = self._cuts
        return list(product(rows.starts, columns.starts))

    @cached_property
    def _shared(self) -> list[tuple[int, int]]:
        rows, columns = self._cuts
        return list(product(rows.shared, columns.shared))

    def __len__(self) -> int:
        return len(self._corners)

    @property
    def core(self) -> tuple[int, int]:
        """(rows, columns) of a tile."""
        return self._cuts[0].core, self._cuts[1].core

    @property
    def fft(self) -> tuple[int, int]:
        """(rows, columns) of the transform of a tile with its halo."""
        return self._cuts[0].fft, self._cuts[1].fft

    def chunks(self, elements: int) -> list[slice]:
        """The tiles in runs that together transform about ``elements`` pixels."""
        step = max(1, elements // (self.fft[0] * self.fft[1]))
        return [slice(i, min(i + step, len(self))) for i in range(0, len(self), step)]

    def cut(self, image: Tensor, tiles: slice) -> Tensor:
        """The tiles of an image without their halo."""
        return self._pieces(image, tiles, self.half_shape, self.core)

    def cut_owned(self, image: Tensor, tiles: slice, device: torch.device) -> Tensor:
        """The tiles of an image on ``device``, 0 at the pixels that another tile owns."""
        cut = self.cut(image, tiles)
        if tiles.stop - tiles.start == 1 and any(self._shared[tiles.start]):
            cut = cut.clone()  # one tile alone is a view of the image
        return self.disown(cut.to(device), tiles)

    def cut_wide(self, image: Tensor, tiles: slice) -> Tensor:
        """The tiles of an image with their halo."""
        (n_y, n_x), (c_y, c_x) = self.half_shape, self.core
        return self._pieces(image, tiles, (0, 0), (c_y + 2 * n_y, c_x + 2 * n_x))

    def paste(self, values: Tensor, tiles: slice, image: Tensor) -> None:
        """Write the pixels that tiles own into an image: the inverse of :meth:`cut`."""
        (n_y, n_x), (c_y, c_x) = self.half_shape, self.core
        for i, ((y, x), (s_y, s_x)) in enumerate(
            zip(self._corners[tiles], self._shared[tiles], strict=True)
        ):
            rows, columns = slice(y + n_y + s_y, y + n_y + c_y), slice(x + n_x + s_x, x + n_x + c_x)
            image[..., rows, columns] = values[..., i, s_y:c_y, s_x:c_x]

    def disown(self, values: Tensor, tiles: slice) -> Tensor:
        """``values``, set to 0 (in place) at the pixels that another tile owns."""
        for i, (s_y, s_x) in enumerate(self._shared[tiles]):
            if s_y:
                values[..., i, :s_y, :] = 0
            if s_x:
                values[..., i, :, :s_x] = 0
        return values

    def padded(self, values: Tensor) -> Tensor:
        """Tiles with zeros appended up to the size of their transform."""
        (c_y, c_x), (f_y, f_x) = values.shape[-2:], self.fft
        return torch.nn.functional.pad(values, (0, f_x - c_x, 0, f_y - c_y))

    def _pieces(
        self, image: Tensor, tiles: slice, offset: tuple[int, int], size: tuple[int, int]
    ) -> Tensor:
        views = [
            image[
                ...,
                y + offset[0] : y + offset[0] + size[0],
                x + offset[1] : x + offset[1] + size[1],
            ]
            for y, x in self._corners[tiles]
        ]
        return views[0].unsqueeze(-3) if len(views) == 1 else torch.stack(views, dim=-3)
