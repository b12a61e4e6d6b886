"""Point spread functions, and stars drawn with them at their exact places between the pixels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from scipy.ndimage import map_coordinates, spline_filter

from ..errors import InputError
from .stars import FloatArray, Stars

__all__ = ["PSF", "ArrayPSF", "GaussianPSF", "MoffatPSF", "light_inside", "render",
           "render_gaussian", "render_moffat"]  # fmt: skip

_DENSE_LIMIT = 2e9  # products of pixels and stars up to which one matrix product is quick
_REACH = 9.0  # half a stamp in Gaussian widths: what lies outside is 3e-18 of the peak
_CHUNK = 65536  # stars whose profiles are held at once


class PSF(Protocol):
    """Anything that can say how the light of one star falls onto the pixels around it."""

    @property
    def half(self) -> int:
        """Half the side of a stamp [pixels]; the stamp is 2 half + 1 pixels wide."""

    def stamp(self, dx: float, dy: float) -> FloatArray:
        """Light of a star of flux 1 that stands (dx, dy) pixels from the middle of the stamp."""


@dataclass(frozen=True)
class GaussianPSF:
    """A Gaussian sampled at pixel centres, round as in section 3.1 or elongated.

    Attributes
    ----------
    phi : float
        Geometric mean of the standard deviations along both axes [pixels].
    ellipticity : float
        1 - b/a.
    angle : float
        Of the long axis, from +x towards +y [degrees].
    """

    phi: float
    ellipticity: float = 0.0
    angle: float = 0.0

    def __post_init__(self) -> None:
        _check(self.phi, "width phi", self.ellipticity)

    @property
    def half(self) -> int:
        """Nine widths of the long axis."""
        return int(np.ceil(_REACH * self.phi / np.sqrt(1.0 - self.ellipticity)))

    def stamp(self, dx: float, dy: float) -> FloatArray:
        """See :class:`PSF`."""
        r2 = _elliptical_radius2(self.half, dx, dy, self.ellipticity, self.angle)
        light: FloatArray = np.exp(-0.5 * r2 / self.phi**2) / (2.0 * np.pi * self.phi**2)
        return light


@dataclass(frozen=True)
class MoffatPSF:
    """A Moffat profile, elongated and lopsided at will, that sums to one on its stamp.

    Attributes
    ----------
    fwhm : float
        Geometric mean of the full widths at half maximum along both axes [pixels].
    ellipticity : float
        1 - b/a of the isophotes.
    angle : float
        Of the long axis, from +x towards +y [degrees].
    coma : float
        Share of the flux that lies in a second profile, one FWHM away along the long axis.
    beta : float
        Slope of the wings.
    """

    fwhm: float
    ellipticity: float = 0.0
    angle: float = 0.0
    coma: float = 0.0
    beta: float = 3.0

    def __post_init__(self) -> None:
        _check(self.fwhm, "FWHM", self.ellipticity)
        if not 0.0 <= self.coma < 1.0 or self.beta <= 1.0:
            raise InputError(
                "A Moffat profile needs a coma from 0 to below 1 and a beta above 1, got "
                f"{self.coma:g} and {self.beta:g}."
            )

    @property
    def half(self) -> int:
        """Six times the FWHM."""
        return int(np.ceil(6.0 * self.fwhm))

    def stamp(self, dx: float, dy: float) -> FloatArray:
        """See :class:`PSF`."""
        alpha = self.fwhm / (2.0 * np.sqrt(2.0 ** (1.0 / self.beta) - 1.0))
        cos, sin = np.cos(np.radians(self.angle)), np.sin(np.radians(self.angle))
        stamp = np.zeros((2 * self.half + 1, 2 * self.half + 1))
        for share, shift in ((1.0 - self.coma, 0.0), (self.coma, self.fwhm)):
            if share == 0.0:
                continue
            r2 = _elliptical_radius2(
                self.half, dx, dy, self.ellipticity, self.angle, (shift * cos, shift * sin)
            )
            profile = (1.0 + r2 / alpha**2) ** -self.beta
            stamp += share * profile / profile.sum()
        return stamp


@dataclass(frozen=True, eq=False)
class ArrayPSF:
    """A measured PSF, shifted by cubic splines; its stamps sum to one.

    Attributes
    ----------
    values : ndarray
        (ky, kx), odd sides, the star in the middle pixel; any sum above 0.
    oversampling : int
        Samples of ``values`` per pixel.
    """

    values: FloatArray
    oversampling: int = 1
    _splines: FloatArray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        values = np.asarray(self.values, dtype=np.float64)
        odd = values.ndim == 2 and all(n % 2 for n in values.shape)
        if not odd or not np.isfinite(values).all() or values.sum() <= 0 or self.oversampling < 1:
            raise InputError(
                "A measured PSF must be a finite array with two odd sides and a sum above 0, and "
                f"its oversampling at least 1; got shape {values.shape}, sum {values.sum():g}, "
                f"oversampling {self.oversampling}."
            )
        pad = 12  # the spline of a step rings: the edge of the array lies in zeros
        object.__setattr__(self, "_splines", spline_filter(np.pad(values, pad), 3, mode="mirror"))

    @property
    def half(self) -> int:
        """Half the longer side of ``values``, and a pixel more for the shift."""
        return int(np.ceil(max(n // 2 for n in self.values.shape) / self.oversampling)) + 1

    def stamp(self, dx: float, dy: float) -> FloatArray:
        """See :class:`PSF`."""
        offsets = np.arange(-self.half, self.half + 1)
        middle = [(n - 1) // 2 for n in self._splines.shape]
        rows = middle[0] + self.oversampling * (offsets - dy)
        columns = middle[1] + self.oversampling * (offsets - dx)
        stamp: FloatArray = map_coordinates(
            self._splines, np.meshgrid(rows, columns, indexing="ij"), order=3, prefilter=False,
            mode="constant",
        )  # fmt: skip
        stamp /= stamp.sum()
        return stamp


def render(psf: PSF, stars: Stars, shape: tuple[int, int]) -> FloatArray:
    """Image [ADU], (h, w), of ``stars`` with one PSF, each star on a stamp of its own.

    Stars outside the image whose stamps reach into it count.
    """
    image = np.zeros(shape)
    half = psf.half
    for x, y, flux in zip(stars.x, stars.y, stars.flux, strict=True):
        ix, iy = round(x), round(y)
        rows, columns = _meets(iy, half, shape[0]), _meets(ix, half, shape[1])
        if rows and columns:
            stamp = psf.stamp(x - ix, y - iy)
            image[rows[0], columns[0]] += flux * stamp[rows[1], columns[1]]
    return image


def render_gaussian(stars: Stars, shape: tuple[int, int], phi: float) -> FloatArray:
    """Image [ADU] of unit Gaussian PSFs of width ``phi`` [pixels], sampled at pixel centres.

    One matrix product where that is quick. In large and dense fields each star is drawn up to 9
    widths from its centre; what that leaves out is 3e-18 of the star's peak.
    """
    if float(shape[0]) * shape[1] * stars.x.size <= _DENSE_LIMIT:
        y, x = (np.arange(n, dtype=np.float64)[:, None] for n in shape)
        image: FloatArray = (_profile(y - stars.y, phi) * stars.flux) @ _profile(x - stars.x, phi).T
        return image
    return _gaussian_stamps(stars, shape, phi)


def light_inside(stars: Stars, shape: tuple[int, int], phi: float) -> FloatArray:
    """The share of each star's light, (n,), that :func:`render_gaussian` puts into an image.

    It is below one at the edges and, where the PSF is undersampled, depends on where a star stands
    between the pixels: by up to 3 % for a width of half a pixel.
    """
    along_y, along_x = (
        _profile(np.arange(n, dtype=np.float64)[:, None] - place, phi).sum(0)
        for n, place in zip(shape, (stars.y, stars.x), strict=True)
    )
    share: FloatArray = along_y * along_x
    return share


def _gaussian_stamps(stars: Stars, shape: tuple[int, int], phi: float) -> FloatArray:
    image = np.zeros(shape)
    half = int(np.ceil(_REACH * phi))
    offsets = np.arange(-half, half + 1)
    for start in range(0, stars.x.size, _CHUNK):
        part = slice(start, start + _CHUNK)
        ix, iy = np.rint(stars.x[part]).astype(int), np.rint(stars.y[part]).astype(int)
        along_x = _profile(offsets + (ix - stars.x[part])[:, None], phi)
        along_y = _profile(offsets + (iy - stars.y[part])[:, None], phi)
        along_y *= stars.flux[part, None]
        for k in range(ix.size):
            rows, columns = _meets(iy[k], half, shape[0]), _meets(ix[k], half, shape[1])
            if rows and columns:
                image[rows[0], columns[0]] += np.multiply.outer(
                    along_y[k, rows[1]], along_x[k, columns[1]]
                )
    return image


def render_moffat(
    stars: Stars,
    shape: tuple[int, int],
    fwhm: float,
    ellipticity: float = 0.0,
    angle: float = 0.0,
    coma: float = 0.0,
    beta: float = 3.0,
) -> FloatArray:
    """Image [ADU], (h, w), of stars with a :class:`MoffatPSF`, which explains the parameters."""
    return render(MoffatPSF(fwhm, ellipticity, angle, coma, beta), stars, shape)


def _profile(offset: FloatArray, phi: float) -> FloatArray:
    """One axis of a Gaussian PSF."""
    norm = 1.0 / np.sqrt(2 * np.pi * phi**2)
    profile: FloatArray = norm * np.exp(-0.5 * (offset / phi) ** 2)
    return profile


def _elliptical_radius2(
    half: int,
    dx: float,
    dy: float,
    ellipticity: float,
    angle: float,
    shift: tuple[float, float] = (0.0, 0.0),
) -> FloatArray:
    """Squared distance from (dx, dy) + shift, in which ellipses of equal area are circles."""
    offsets = np.arange(-half, half + 1)
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    ratio = np.sqrt(1.0 - ellipticity)
    x, y = offsets[None, :] - dx - shift[0], offsets[:, None] - dy - shift[1]
    along, across = x * cos + y * sin, y * cos - x * sin
    r2: FloatArray = (along * ratio) ** 2 + (across / ratio) ** 2
    return r2


def _meets(centre: int, half: int, size: int) -> tuple[slice, slice] | None:
    """Where a stamp lies on an axis of an image, and which part of the stamp that is."""
    first, last = max(0, centre - half), min(size, centre + half + 1)
    if first >= last:
        return None
    corner = centre - half
    return slice(first, last), slice(first - corner, last - corner)


def _check(width: float, name: str, ellipticity: float) -> None:
    if not width > 0 or not 0.0 <= ellipticity < 1.0:
        raise InputError(
            f"A PSF needs a {name} above 0 and an ellipticity from 0 to below 1, got {width:g} and "
            f"{ellipticity:g}."
        )
