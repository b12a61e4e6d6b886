"""The PSF of the reference, and that of an epoch: the reference's convolved with the kernel.

Section 4.2 measures stars with the PSF of the target; it follows here from that of the reference,
as in section 3.2 (iii), so that the shape is that of the fit itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import map_coordinates, spline_filter
from scipy.signal import fftconvolve

from ..errors import Finding, InputError
from ..metrics import FWHM_PER_SIGMA
from .positions import as_positions

__all__ = ["PSF", "PSFModel", "RegionalPSF", "gaussian_psf"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_WINGS = 3e-3  # share of the light that a convolved PSF may lose outside its stamp


class PSF(Protocol):
    """What photometry asks of a PSF: its shape at any position of the frame."""

    @property
    def half(self) -> int:
        """Half-width of the stamps [pixels]."""

    @property
    def fwhm(self) -> float:
        """Full width at half maximum [pixels], typical of the frame."""

    def stamps(
        self,
        x: ArrayLike,
        y: ArrayLike,
        half: int | None = None,
        around: tuple[ArrayLike, ArrayLike] | None = None,
    ) -> FloatArray:
        """The PSF at n positions, (n, 2 half + 1, 2 half + 1).

        Each stamp is centred on the pixel nearest to its position, or on the pixel (x, y) given as
        ``around``; beyond the stamp of the PSF it is 0.
        """


@dataclass(frozen=True, eq=False)
class PSFModel:
    """A PSF that is the same all over the frame: light per pixel, tabulated finer than a pixel.

    Attributes
    ----------
    table : ndarray
        Share of a star's light in a pixel whose centre lies at an offset from the star, (n, n), n
        odd, offset 0 in the middle. Its sum is ``oversampling**2``: a star's pixels sum to 1,
        wings included.
    oversampling : int
        Entries per pixel along each axis.
    findings : tuple of Finding
        How it was made.
    n_stars : int
        Stars that it was learnt from; 0 for a formula.
    """

    table: FloatArray
    oversampling: int
    findings: tuple[Finding, ...] = ()
    n_stars: int = 0

    @property
    def half(self) -> int:
        """Half-width of the stamps [pixels]."""
        return len(self.table) // 2 // self.oversampling

    @cached_property
    def fwhm(self) -> float:
        """Diameter of the circle with the area above half maximum [pixels]."""
        fine = 4
        n = len(self.table)
        axis = np.arange(-(n // 2) * fine, n // 2 * fine + 1) / fine + n // 2
        rows, columns = np.meshgrid(axis, axis, indexing="ij")
        values = map_coordinates(self._spline, [rows, columns], prefilter=False, mode="mirror")
        area = (values >= 0.5 * values.max()).sum() / (fine * self.oversampling) ** 2
        return 2.0 * math.sqrt(area / math.pi)

    @cached_property
    def _spline(self) -> FloatArray:
        return np.asarray(spline_filter(self.table, order=3, mode="mirror"), dtype=np.float64)

    def stamps(
        self,
        x: ArrayLike,
        y: ArrayLike,
        half: int | None = None,
        around: tuple[ArrayLike, ArrayLike] | None = None,
    ) -> FloatArray:
        """The PSF at n positions, (n, 2 half + 1, 2 half + 1), as :meth:`PSF.stamps` says."""
        x, y = as_positions(x, y)
        around_x, around_y = (np.rint(x), np.rint(y)) if around is None else as_positions(*around)
        half = self.half if half is None else half
        grid = np.arange(-half, half + 1)
        middle = len(self.table) // 2
        rows = (grid - (y - around_y)[:, None]) * self.oversampling + middle
        columns = (grid - (x - around_x)[:, None]) * self.oversampling + middle
        return _interpolated(self._spline, rows, columns)

    def at(self, x: float, y: float, half: int | None = None) -> FloatArray:
        """The PSF of a star at (x, y) on the pixels round it, (2 half + 1, 2 half + 1)."""
        stamp: FloatArray = self.stamps(x, y, half)[0]
        return stamp

    def convolved(self, kernel: ArrayLike) -> PSFModel:
        """The PSF of an epoch: this one through the kernel of eq 2, without its scale P.

        The table goes through the kernel once, which is exact at every sub-pixel position because
        the kernel's pixels are whole pixels.

        Parameters
        ----------
        kernel : array_like
            K_lm as :func:`~pytorchdia.subtract.subtract` returns it, (ky, kx): a correlation.

        Raises
        ------
        InputError
            The kernel is not finite, has even sides, or does not sum to a positive number.
        """
        pixels = np.asarray(kernel, dtype=np.float64)
        if pixels.ndim != 2 or any(n % 2 == 0 for n in pixels.shape):
            raise InputError(f"A kernel has two odd sides, got shape {pixels.shape}.")
        scale = float(pixels.sum())
        if not 0.0 < scale < np.inf:
            raise InputError(
                f"The kernel sums to {scale:.4g}, so that no star keeps its light through it; the "
                "fit of this epoch went wrong, leave it out."
            )
        size, step = max(pixels.shape), self.oversampling
        square = np.zeros((step * (size - 1) + 1,) * 2)
        pads = [(size - n) // 2 * step for n in pixels.shape]
        square[pads[0] : len(square) - pads[0] : step, pads[1] : len(square) - pads[1] : step] = (
            pixels[::-1, ::-1] / scale
        )
        return PSFModel(
            _trimmed(fftconvolve(self.table, square), step), step, self.findings, self.n_stars
        )


@dataclass(frozen=True, eq=False)
class RegionalPSF:
    """A PSF that differs from one part of the frame to the next.

    Attributes
    ----------
    models : sequence of PSFModel
    region : callable
        From positions x, y, (n,) each, to indices into ``models``, (n,).
    """

    models: Sequence[PSFModel]
    region: Callable[[FloatArray, FloatArray], IntArray]

    @property
    def half(self) -> int:
        """Half-width of the largest model [pixels]."""
        return max(model.half for model in self.models)

    @property
    def fwhm(self) -> float:
        """Median over the models [pixels]."""
        return float(np.median([model.fwhm for model in self.models]))

    def stamps(
        self,
        x: ArrayLike,
        y: ArrayLike,
        half: int | None = None,
        around: tuple[ArrayLike, ArrayLike] | None = None,
    ) -> FloatArray:
        """The PSF at n positions, (n, 2 half + 1, 2 half + 1), as :meth:`PSF.stamps` says."""
        x, y = as_positions(x, y)
        around_x, around_y = (np.rint(x), np.rint(y)) if around is None else as_positions(*around)
        half = self.half if half is None else half
        stamps = np.empty((len(x), 2 * half + 1, 2 * half + 1))
        which = self.region(x, y)
        for i in np.unique(which):
            here = which == i
            stamps[here] = self.models[i].stamps(
                x[here], y[here], half, (around_x[here], around_y[here])
            )
        return stamps


def gaussian_psf(fwhm: float, findings: tuple[Finding, ...] = ()) -> PSFModel:
    """A round Gaussian of a given width [pixels]."""
    sigma = fwhm / FWHM_PER_SIGMA

    def profile(dx: FloatArray, dy: FloatArray) -> FloatArray:
        values: FloatArray = np.exp(-0.5 * (dx**2 + dy**2) / sigma**2)
        return values

    return tabulated(profile, fwhm, 2.5, findings)


def tabulated(
    profile: Callable[[FloatArray, FloatArray], FloatArray],
    fwhm: float,
    reach: float,
    findings: tuple[Finding, ...] = (),
    n_stars: int = 0,
) -> PSFModel:
    """A formula of the offsets (dx, dy) [pixels] as a table, out to ``reach`` FWHM."""
    step = int(np.clip(math.ceil(8.0 / fwhm), 2, 10))
    middle = step * max(5, math.ceil(reach * fwhm))
    offsets = np.arange(-middle, middle + 1) / step
    dx, dy = np.meshgrid(offsets, offsets)
    table = profile(dx, dy)
    return PSFModel(table * (step**2 / table.sum()), step, findings, n_stars)


def _interpolated(spline: FloatArray, rows: FloatArray, columns: FloatArray) -> FloatArray:
    """Cubic interpolation at a grid of rows and columns, whole steps apart, for each of n stamps.

    Stamps that begin between the same two entries of the table are weighted sums, each with its own
    weights, of the same 4 x 4 cuts through it.
    """
    n, size = rows.shape
    if not n:
        return np.empty((0, size, size))
    places = np.stack([rows, columns])
    before = np.floor(places[:, :, 0])
    along_y, along_x = _spline_weights(places[:, :, 0] - before)
    weights = (along_y[:, :, None] * along_x[:, None, :]).reshape(n, 16)
    last = len(spline) - 1
    taken = before[:, :, None, None] + np.arange(-1, 3)[:, None] + (rows[0] - rows[0, 0]).round()
    j, i = np.clip(last - np.abs(last - np.abs(taken)), 0, last).astype(np.int64)  # mirrored
    _, example, group = np.unique(
        before[0] + 1j * before[1], return_index=True, return_inverse=True
    )
    stamps = np.empty((n, size * size))
    for k, one in enumerate(example):
        cuts = spline.ravel()[j[one][:, None, :, None] * (last + 1) + i[one][:, None, :]]
        here = group == k
        stamps[here] = weights[here] @ cuts.reshape(16, size * size)
    values = stamps.reshape(n, size, size)
    outside = (places < 0) | (places > last)
    values[outside[0]] = 0.0
    values.transpose(0, 2, 1)[outside[1]] = 0.0
    return values


def _spline_weights(t: FloatArray) -> FloatArray:
    """Of the four entries round a place a fraction ``t`` beyond the second, (..., 4)."""
    u = 1.0 - t
    inner = (2.0 / 3.0 - t**2 * (1.0 - t / 2.0), 2.0 / 3.0 - u**2 * (1.0 - u / 2.0))
    return np.stack([u**3 / 6.0, *inner, t**3 / 6.0], axis=-1)


def _trimmed(table: FloatArray, step: int) -> FloatArray:
    """The inner square that holds all but a small share of the light, in whole pixels."""
    middle = len(table) // 2
    offset = np.abs(np.arange(len(table)) - middle)
    ring = np.maximum(offset[:, None], offset[None, :])
    light = np.cumsum(np.bincount(ring.ravel(), np.abs(table).ravel()))
    reach = int(np.searchsorted(light, (1.0 - _WINGS) * light[-1]))
    reach = min(step * math.ceil(reach / step), middle)
    inner = slice(middle - reach, middle + reach + 1)
    return table[inner, inner]
