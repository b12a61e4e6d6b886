"""Sources in one difference, and in the stack of all differences of a season."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import numpy as np
from astropy.nddata import extract_array
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import maximum_filter
from scipy.optimize import brentq
from scipy.spatial import cKDTree

from ..flags import DescribedFlag
from ..frame import Flag, Frame
from ..stars.catalogue import variance_of
from ..stars.matched_filter import Filtered, disc, find_peaks, matched_filter, smooth_sky
from ..stars.psf import PSF
from .surroundings import part_of_trail_or_halo

__all__ = [
    "DetectionFlag",
    "Detections",
    "filter_difference",
    "find_in_difference",
    "reference_light",
    "systematic_share",
    "with_systematic",
]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_BAD = int(Flag.NON_FINITE | Flag.SATURATED | Flag.MASKED | Flag.BAD_VARIANCE | Flag.REFERENCE)
_UNUSABLE = _BAD | int(Flag.BORDER)
_RIPPLE = 0.05  # of a source's significance, that its own residuals may have beside it
_PSF_ERROR = 0.05  # of a source's light, allowed for in the test of its shape
_ILL_SHAPED = 4.0
_LOBE = 4.0  # sigma, least significance of the other half of a dipole
_ENOUGH_STARS = 10


class DetectionFlag(DescribedFlag):
    """Why a detection may be none. Zero is a source with the shape of the PSF."""

    DIPOLE = (1, "a shifted star fits better than a source")
    ILL_SHAPED = (2, "does not have the shape of the PSF")
    NEAR_BAD_PIXELS = (4, "saturated or bad pixels within one FWHM")
    ONE_EPOCH = (8, "in the stack because of a single epoch, which does not show it")
    TRAIL_OR_HALO = (16, "nearly as bright beside it, along a line or all round")


@dataclass(frozen=True)
class Detections:
    """Sources in one image, (n,) each, the most significant first.

    Attributes
    ----------
    x, y : ndarray
        [pixels].
    flux, error : ndarray
        [ADU of the reference], negative where a star has faded.
    significance : ndarray
        Flux over error, with its sign.
    flags : ndarray of int
        Bits of :class:`DetectionFlag`.
    """

    x: FloatArray
    y: FloatArray
    flux: FloatArray
    error: FloatArray
    significance: FloatArray
    flags: IntArray

    def __len__(self) -> int:
        return len(self.x)

    def chosen(self, which: NDArray[np.bool_]) -> Detections:
        """Those that ``which``, (n,), is True for."""
        return Detections(*(getattr(self, f.name)[which] for f in fields(self)))


def reference_light(reference: Frame, psf: PSF) -> FloatArray:
    """The flux that a star at each pixel of the reference would have [ADU], (h, w)."""
    data = reference.data.double().numpy()
    sky = smooth_sky(data, reference.mask.numpy(), 64)
    return matched_filter(data - sky, variance_of(reference), _central(psf, data.shape)).flux


def systematic_share(flux: ArrayLike, error: ArrayLike, reference_flux: ArrayLike) -> float:
    """The share of a star's light by which bright constant stars scatter beyond their errors.

    Most stars do not vary: what the fluxes of the bright ones scatter too much on an epoch comes
    from P, the kernel, the registration or the PSF, and grows with the star.

    Parameters
    ----------
    flux, error : array_like
        On the difference [ADU of the reference], (n,).
    reference_flux : array_like
        [ADU], (n,).
    """
    f, e, r = (np.asarray(v, dtype=np.float64) for v in (flux, error, reference_flux))
    good = np.isfinite(e) & (e > 0) & (r > 0)
    f, e, r = f[good], e[good], r[good]
    bright = r / e >= max(100.0, float(np.median(r / e))) if len(r) else good[:0]
    if bright.sum() < _ENOUGH_STARS:
        return 0.0
    f, e, r = f[bright], e[bright], r[bright]

    def excess(share: float) -> float:
        return 1.4826 * float(np.median(np.abs(f) / np.hypot(e, share * r))) - 1.0

    if excess(0.0) <= 0:
        return 0.0
    # With this share alone, without the errors, there is no excess: 1.5 is more than 1.4826.
    return float(brentq(excess, 0.0, 1.5 * float(np.median(np.abs(f) / r))))


def filter_difference(
    difference: NDArray[np.floating],
    variance: NDArray[np.floating],
    flags: NDArray[np.integer] | None,
    psf: PSF,
    *,
    scale: float = 1.0,
    light: FloatArray | None = None,
    share: float = 0.0,
) -> Filtered:
    """Flux and error of a star at each pixel of a difference, on the scale of the reference.

    Errors are enlarged by the robust scatter of the whole image if that is more than they say, and
    by a share of the brightest light of the reference within one FWHM.

    Parameters
    ----------
    difference, variance, flags, psf, scale
        As for :func:`~pytorchdia.stars.photometry.measure_fluxes`.
    light : ndarray, optional
        :func:`reference_light`, (h, w).
    share : float
        :func:`systematic_share` of this epoch.
    """
    sigma2 = np.asarray(variance, dtype=np.float64)
    if flags is not None:
        sigma2 = np.where((np.asarray(flags) & _UNUSABLE) == 0, sigma2, np.inf)
    shape = sigma2.shape
    filtered = matched_filter(difference, sigma2, _central(psf, shape))
    flux, error = filtered.flux / scale, filtered.error / scale
    known = np.isfinite(error)
    if known.any():
        z = flux[known] / error[known]
        error = error * max(1.0, float(1.4826 * np.median(np.abs(z - np.median(z)))))
    plain = Filtered(flux, error)
    return plain if light is None else with_systematic(plain, psf, light, share)


def with_systematic(filtered: Filtered, psf: PSF, light: FloatArray, share: float) -> Filtered:
    """With a systematic error: a share of the brightest light of the reference within one FWHM.

    What is left of a star reaches beyond it.

    Parameters
    ----------
    filtered, psf, light, share
        As :func:`filter_difference` gives and takes them.
    """
    brightest = maximum_filter(np.maximum(light, 0.0), footprint=disc(psf.fwhm), mode="nearest")
    return replace(filtered, systematic=share * brightest)


def find_in_difference(
    difference: NDArray[np.floating],
    variance: NDArray[np.floating],
    flags: NDArray[np.integer] | None,
    psf: PSF,
    filtered: Filtered,
    *,
    threshold: float = 5.0,
) -> Detections:
    """Sources of either sign in a difference, with what speaks against each.

    Parameters
    ----------
    difference, variance, flags, psf
        As for :func:`filter_difference`.
    filtered : Filtered
        What that returned.
    threshold : float
        Least significance.
    """
    found = _peaks(filtered, threshold, psf.fwhm)
    sigma2 = np.asarray(variance, dtype=np.float64)
    bits = np.zeros(sigma2.shape, np.int64) if flags is None else np.asarray(flags, np.int64)
    weight = np.zeros(sigma2.shape)
    good = np.isfinite(sigma2) & (sigma2 > 0) & ((bits & _UNUSABLE) == 0)
    weight[good] = 1.0 / sigma2[good]
    data = np.where(good, difference, 0.0)
    near = _near(found, (bits & _BAD) != 0, psf.fwhm)
    verdict = np.zeros(len(found), dtype=np.int64)
    verdict[near] |= DetectionFlag.NEAR_BAD_PIXELS
    known = np.isfinite(filtered.error)
    wide = part_of_trail_or_halo(filtered.over_noise, known, found.x, found.y, psf.fwhm)
    verdict[wide] |= DetectionFlag.TRAIL_OR_HALO
    lobes = _opposite_lobes(found, filtered.significance, psf.fwhm)
    for i in range(len(found)):
        here, lobe = (float(found.x[i]), float(found.y[i])), lobes[i]
        if _misfit(data, weight, psf, *here) > _ILL_SHAPED:
            verdict[i] |= DetectionFlag.ILL_SHAPED
        if lobe is not None and _is_dipole(data, weight, psf, here, lobe):
            verdict[i] |= DetectionFlag.DIPOLE
    return Detections(found.x, found.y, found.flux, found.error, found.significance, verdict)


def _peaks(filtered: Filtered, threshold: float, fwhm: float) -> Detections:
    """Local extremes, without the ripples round much stronger ones."""
    z, sharp = filtered.significance, filtered.over_noise
    sides = [find_peaks(sign * sharp, threshold, max(1.0, 0.5 * fwhm)) for sign in (1.0, -1.0)]
    x, y = (np.concatenate([side[k] for side in sides]) for k in (0, 1))
    iy, ix = np.rint(y).astype(int), np.rint(x).astype(int)
    order = np.argsort(-np.abs(z[iy, ix]))
    x, y, iy, ix = x[order], y[order], iy[order], ix[order]
    strength = np.abs(sharp[iy, ix])
    keep = np.abs(z[iy, ix]) >= threshold
    if len(x):
        tree = cKDTree(np.column_stack([x, y]))
        for i, near in enumerate(tree.query_ball_point(np.column_stack([x, y]), 3.0 * fwhm)):
            keep[i] &= strength[i] > _RIPPLE * max(strength[j] for j in near)
    x, y, iy, ix = x[keep], y[keep], iy[keep], ix[keep]
    return Detections(
        x,
        y,
        filtered.flux[iy, ix],
        filtered.total_error[iy, ix],
        z[iy, ix],
        np.zeros(len(x), np.int64),
    )  # fmt: skip


def _near(found: Detections, bad: NDArray[np.bool_], fwhm: float) -> NDArray[np.bool_]:
    bad_y, bad_x = np.nonzero(bad)
    if not len(bad_y) or not len(found):
        return np.zeros(len(found), dtype=bool)
    distance, _ = cKDTree(np.column_stack([bad_x, bad_y])).query(
        np.column_stack([found.x, found.y])
    )
    return np.asarray(distance <= fwhm)


def _opposite_lobes(
    found: Detections, significance: FloatArray, fwhm: float
) -> list[tuple[float, float] | None]:
    """For each source the strongest pixel of the other sign within 2 FWHM, if it is significant."""
    reach = math.ceil(2.0 * fwhm)
    h, w = significance.shape
    lobes: list[tuple[float, float] | None] = []
    for x, y, z in zip(found.x, found.y, found.significance, strict=True):
        top, left = max(0, round(y) - reach), max(0, round(x) - reach)
        window = significance[
            top : min(h, round(y) + reach + 1), left : min(w, round(x) + reach + 1)
        ]
        against = -math.copysign(1.0, z) * window
        j, i = np.unravel_index(int(against.argmax()), against.shape)
        strong = against[j, i] > max(_LOBE, 0.2 * abs(z))
        place = float(left + i), float(top + j)
        near = np.hypot(found.x - place[0], found.y - place[1])
        if near.min() < 1.0:  # it was found itself, to a fraction of a pixel
            place = float(found.x[near.argmin()]), float(found.y[near.argmin()])
        lobes.append(place if strong else None)
    return lobes


def _window(image: FloatArray, x: float, y: float, half: int) -> FloatArray:
    """A stamp about the nearest pixel, 0 outside the image."""
    size, middle = (2 * half + 1, 2 * half + 1), (round(y), round(x))
    stamp: FloatArray = extract_array(image, size, middle, mode="partial", fill_value=0.0)
    return stamp


def _misfit(data: FloatArray, weight: FloatArray, psf: PSF, x: float, y: float) -> float:
    """How ill a source at (x, y) is fitted: chi-square per pixel of its core."""
    half = math.ceil(1.5 * psf.fwhm)
    stamp, values = psf.stamps(x, y, half)[0], _window(data, x, y, half)
    w = _window(weight, x, y, half)
    flux = float((w * stamp * values).sum() / max(float((w * stamp**2).sum()), 1e-300))
    tolerant = w / (1.0 + w * (_PSF_ERROR * flux * stamp) ** 2)
    core = (stamp > 0.25 * stamp.max()) & (w > 0)
    return float((tolerant * (values - flux * stamp) ** 2)[core].mean()) if core.any() else math.inf


def _is_dipole(
    data: FloatArray,
    weight: FloatArray,
    psf: PSF,
    one: tuple[float, float],
    other: tuple[float, float],
) -> bool:
    """Whether a star that has moved, two slopes of the PSF, fits better than two sources."""
    x, y = 0.5 * (one[0] + other[0]), 0.5 * (one[1] + other[1])
    half, around, d = math.ceil(1.5 * psf.fwhm), (round(x), round(y)), 0.25

    def column(x: float, y: float) -> FloatArray:
        return psf.stamps(x, y, half, around).ravel()

    root = np.sqrt(_window(weight, x, y, half).ravel())
    values = root * _window(data, x, y, half).ravel()

    def misfit(*columns: FloatArray) -> float:
        design = root[:, None] * np.column_stack(columns)
        theta, *_ = np.linalg.lstsq(design, values, rcond=None)
        return float(((values - design @ theta) ** 2).sum())

    moved = misfit(column(x + d, y) - column(x - d, y), column(x, y + d) - column(x, y - d))
    return moved < misfit(column(*one), column(*other))


def _central(psf: PSF, shape: tuple[int, int]) -> FloatArray:
    """The PSF in the middle of the frame, centred on a pixel, no larger than what matters."""
    y, x = shape[0] // 2, shape[1] // 2
    half = min(psf.half, math.ceil(2.0 * psf.fwhm))
    return np.asarray(psf.stamps(x, y, half)[0], dtype=np.float64)
