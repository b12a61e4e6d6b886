"""The stars to be measured: found on the reference, or taken from a list."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from astropy.table import Table
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import binary_dilation, center_of_mass, label
from scipy.spatial import cKDTree

from ..errors import Finding, InputError
from ..flags import DescribedFlag
from ..frame import Flag, Frame
from ..measure import default_noise, measure_seeing
from ..metrics import FWHM_PER_SIGMA
from .matched_filter import Filtered, find_peaks, matched_filter, smooth_sky
from .positions import checked_positions, on_pixels, on_sky

__all__ = ["Catalogue", "StarFlag", "catalogue_from_list", "find_stars", "variance_of"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_DEFAULT_FWHM = 3.0
_SKY_BOX = 64
_NOWHERE = -1e6  # x and y of a star that has no place on the plane of the frame


class StarFlag(DescribedFlag):
    """What is wrong with a star on the reference. Zero is a star without blemish."""

    SATURATED = (1, "saturated on the reference")
    MASKED = (2, "bad pixels within one FWHM on the reference")
    EDGE = (4, "within two FWHM of the edge of the reference")
    OUTSIDE = (8, "the position is not on the reference")


@dataclass(frozen=True)
class Catalogue:
    """Stars on the grid of the reference, (n,) each.

    Attributes
    ----------
    id : ndarray of int
    x, y : ndarray
        Positions [pixels]; -1e6 for one whose RA and Dec lie nowhere on the plane of the frame.
    flux, flux_error : ndarray
        Rough fluxes on the reference [ADU], each star taken alone; 0 and infinity where there is
        no data. :func:`~pytorchdia.stars.photometry.reference_fluxes` gives good ones.
    flags : ndarray of int
        Bits of :class:`StarFlag`.
    ra, dec : ndarray, optional
        [degrees], where the reference has world coordinates.
    names : tuple of str, optional
        As given with a list.
    findings : tuple of Finding
    """

    id: IntArray
    x: FloatArray
    y: FloatArray
    flux: FloatArray
    flux_error: FloatArray
    flags: IntArray
    ra: FloatArray | None = None
    dec: FloatArray | None = None
    names: tuple[str, ...] | None = None
    findings: tuple[Finding, ...] = ()

    def __len__(self) -> int:
        return len(self.id)

    def chosen(self, which: NDArray[Any]) -> Catalogue:
        """The stars at an index array or a mask."""
        index = np.arange(len(self))[which]
        return replace(
            self,
            **{
                name: value[index]
                for name in ("id", "x", "y", "flux", "flux_error", "flags", "ra", "dec")
                if (value := getattr(self, name)) is not None
            },
            names=None if self.names is None else tuple(self.names[i] for i in index),
        )

    def joined(self, more: Catalogue) -> Catalogue:
        """These stars and more of them, whose ids follow on the largest of these."""

        def both(name: str) -> Any:
            mine, theirs = getattr(self, name), getattr(more, name)
            return None if mine is None or theirs is None else np.concatenate([mine, theirs])

        first = int(self.id.max(initial=0)) + 1
        names = None
        if self.names is not None:
            names = (*self.names, *(more.names or ("",) * len(more)))
        return Catalogue(
            id=np.append(self.id, np.arange(first, first + len(more))),
            **{name: both(name) for name in ("x", "y", "flux", "flux_error", "flags", "ra", "dec")},
            names=names,
            findings=self.findings,
        )

    def to_table(self) -> Table:
        """One row per star, with units."""
        units = {
            "x": "pix",
            "y": "pix",
            "flux": "adu",
            "flux_error": "adu",
            "ra": "deg",
            "dec": "deg",
        }
        table = Table({"id": self.id})
        if self.names is not None:
            table["name"] = list(self.names)
        for name in ("ra", "dec", "x", "y", "flux", "flux_error", "flags"):
            if (value := getattr(self, name)) is not None:
                table[name] = value
                table[name].unit = units.get(name)
        return table


def find_stars(
    reference: Frame,
    *,
    fwhm: float | None = None,
    threshold: float = 5.0,
    max_stars: int | None = None,
) -> Catalogue:
    """Detect the stars of the reference, the brightest first.

    A matched filter with a Gaussian of the given width; its local maxima above the threshold are
    stars. Each patch of saturated pixels is one star, flagged.

    Parameters
    ----------
    reference : Frame
    fwhm : float, optional
        Of the stars [pixels]. None measures it.
    threshold : float
        Least significance.
    max_stars : int, optional
        Keep only the brightest.

    Raises
    ------
    InputError
        ``fwhm`` or ``threshold`` is not positive.
    """
    for name, value in (("fwhm", fwhm), ("threshold", threshold)):
        if value is not None and not 0 < value < np.inf:
            raise InputError(f"The {name} must be a positive number, got {value!r}.")
    fwhm, findings = _width(reference, fwhm)
    filtered = _filtered(reference, fwhm)
    x, y = find_peaks(filtered.significance, threshold, max(1.0, 0.5 * fwhm))
    x_sat, y_sat, near = _saturated(reference, fwhm)
    free = ~near[np.rint(y).astype(int), np.rint(x).astype(int)]
    x, y = np.append(x_sat, x[free]), np.append(y_sat, y[free])
    found = _catalogue(reference, x, y, fwhm, filtered, findings)
    order = np.lexsort((-found.flux, (found.flags & StarFlag.SATURATED) == 0))[:max_stars]
    return replace(found.chosen(order), id=np.arange(1, len(order) + 1))


def catalogue_from_list(
    reference: Frame,
    *,
    x: ArrayLike | None = None,
    y: ArrayLike | None = None,
    ra: ArrayLike | None = None,
    dec: ArrayLike | None = None,
    names: tuple[str, ...] | None = None,
    fwhm: float | None = None,
) -> Catalogue:
    """Stars at known positions, in the order given: pixels (x, y), or RA and Dec [degrees].

    Raises
    ------
    InputError
        Not one of the two pairs is given, the lengths differ, a position is not finite, or RA and
        Dec are given and the reference has no world coordinates.
    """
    if (x is None) != (y is None) or (ra is None) != (dec is None) or (x is None) == (ra is None):
        raise InputError("Give the positions of the stars as x and y, or as ra and dec.")
    first, second = checked_positions(*(v for v in (x, y, ra, dec) if v is not None))
    given = None
    if names is not None and len(names) != len(first):
        raise InputError(f"There are {len(first)} stars but {len(names)} names.")
    if x is None:
        if reference.wcs is None:
            raise InputError(
                f"The stars are given by RA and Dec, but {reference.name} has no world "
                "coordinates; give pixel positions x and y."
            )
        given = first, second
        first, second = (np.nan_to_num(v, nan=_NOWHERE) for v in on_pixels(reference.wcs, *given))
    width, findings = _width(reference, fwhm)
    filtered = _filtered(reference, width)
    return _catalogue(reference, first, second, width, filtered, findings, names, given)


def variance_of(frame: Frame) -> FloatArray:
    """sigma^2 of a frame from its own noise model [ADU^2], (h, w); infinite at bad pixels.

    That of :func:`~pytorchdia.measure.default_noise` at the data, which for a reference of many
    frames is close enough to that at the noiseless image.
    """
    noise, _ = default_noise(frame)
    variance = noise.variance(frame.data.double()).numpy()
    good = ~frame.mask.numpy() & np.isfinite(variance) & (variance > 0)
    return np.where(good, variance, np.inf)


def _width(reference: Frame, fwhm: float | None) -> tuple[float, tuple[Finding, ...]]:
    if fwhm is not None:
        return fwhm, ()
    seen = measure_seeing(reference)
    if seen is not None:
        return seen.fwhm, ()
    finding = Finding(
        "star-width-unknown",
        f"Too few stars of {reference.name} could be measured; stars of FWHM {_DEFAULT_FWHM:g} "
        "pixels were looked for. Give the FWHM.",
        "warning",
    )
    return _DEFAULT_FWHM, (finding,)


def _filtered(reference: Frame, fwhm: float) -> Filtered:
    data = reference.data.double().numpy()
    variance = variance_of(reference)
    sky = smooth_sky(data, reference.mask.numpy(), _SKY_BOX)
    half = int(np.ceil(1.5 * fwhm))
    offsets = np.arange(-half, half + 1)
    profile = np.exp(-0.5 * (offsets / (fwhm / FWHM_PER_SIGMA)) ** 2)
    psf = np.outer(profile, profile)
    return matched_filter(data - sky, variance, psf / psf.sum())


def _saturated(reference: Frame, fwhm: float) -> tuple[FloatArray, FloatArray, NDArray[np.bool_]]:
    """Centres of the saturated patches, and the pixels that belong to their stars."""
    saturated = (reference.flags.numpy() & int(Flag.SATURATED)) != 0
    if not saturated.any():
        return np.empty(0), np.empty(0), saturated
    joined = binary_dilation(saturated, np.ones((3, 3)))
    patches, n = label(joined)
    centres = np.array(center_of_mass(joined, patches, np.arange(1, n + 1)))
    reach = np.arange(-int(fwhm), int(fwhm) + 1)
    near = binary_dilation(saturated, np.hypot(*np.meshgrid(reach, reach)) <= fwhm)
    return centres[:, 1], centres[:, 0], near


def _catalogue(
    reference: Frame,
    x: FloatArray,
    y: FloatArray,
    fwhm: float,
    filtered: Filtered,
    findings: tuple[Finding, ...],
    names: tuple[str, ...] | None = None,
    given: tuple[FloatArray, FloatArray] | None = None,
) -> Catalogue:
    """Stars at pixels x, y, which were ``given`` as RA and Dec or not."""
    h, w = reference.shape
    outside = (x < -0.5) | (x > w - 0.5) | (y < -0.5) | (y > h - 0.5)
    iy = np.clip(np.rint(y), 0, h - 1).astype(int)
    ix = np.clip(np.rint(x), 0, w - 1).astype(int)
    sky = None
    if reference.wcs is not None and len(x):
        sky = on_sky(reference.wcs, x, y)
        if given is not None:
            sky = np.where(outside, given[0], sky[0]), np.where(outside, given[1], sky[1])
    return Catalogue(
        id=np.arange(1, len(x) + 1),
        x=x,
        y=y,
        flux=np.where(outside, 0.0, filtered.flux[iy, ix]),
        flux_error=np.where(outside, np.inf, filtered.error[iy, ix]),
        flags=_flags(reference, x, y, fwhm) | np.where(outside, int(StarFlag.OUTSIDE), 0),
        ra=None if sky is None else sky[0],
        dec=None if sky is None else sky[1],
        names=names,
        findings=findings,
    )


def _flags(reference: Frame, x: FloatArray, y: FloatArray, fwhm: float) -> IntArray:
    h, w = reference.shape
    flags = np.zeros(len(x), dtype=np.int64)
    edge = (np.minimum(x, w - 1 - x) < 2 * fwhm) | (np.minimum(y, h - 1 - y) < 2 * fwhm)
    flags[edge] |= StarFlag.EDGE
    bits = reference.flags.numpy()
    saturated = (bits & int(Flag.SATURATED)) != 0
    where = np.column_stack([x, y])
    for bad, flag in (((bits != 0), StarFlag.MASKED), (saturated, StarFlag.SATURATED)):
        bad_y, bad_x = np.nonzero(bad)
        if len(bad_y) and len(x):
            distance, _ = cKDTree(np.column_stack([bad_x, bad_y])).query(where)
            flags[distance <= fwhm] |= flag
    return flags
