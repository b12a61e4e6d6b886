"""PSF photometry: the fluxes of all stars of a frame at once, by robust least squares.

The model of a difference (or of the reference) is a PSF for each star and a smooth sky. Stars that
overlap share their pixels, and the error of each holds what it cannot tell from its neighbours'.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.signal import oaconvolve
from scipy.spatial import cKDTree

from ..errors import InputError, ShapeError
from ..flags import DescribedFlag
from ..frame import Flag, Frame
from .catalogue import Catalogue, StarFlag, catalogue_from_list, variance_of
from .matched_filter import find_peaks, matched_filter
from .positions import checked_positions, on_sky
from .psf import PSF
from .scene import Scene, Solved, solve_scene

__all__ = [
    "FluxFlag",
    "Fluxes",
    "find_hidden_stars",
    "magnitudes",
    "measure_fluxes",
    "reference_fluxes",
    "refine_positions",
    "target_variance",
]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_UNUSABLE = int(
    Flag.NON_FINITE
    | Flag.SATURATED
    | Flag.MASKED
    | Flag.BAD_VARIANCE
    | Flag.REFERENCE
    | Flag.BORDER
)  # but not CLIPPED, because the pixels of a variable star are
_LEAST_COVERAGE = 0.1  # share of a PSF's weight on good pixels, for a flux at all
_BLENDED = 1.5  # error over that of the star alone
_ILL_FITTED = 4.0
_REFERENCE_SKY = 32.0  # pixels between the nodes of the sky beneath a crowd


class FluxFlag(DescribedFlag):
    """What is wrong with a measured flux. Zero is a flux without blemish."""

    NO_DATA = (1, "too little of the PSF lies on good pixels: flux 0, error infinite")
    EDGE = (2, "the core of the PSF leaves the frame, or the part of it that has a model")
    MASKED_CORE = (4, "bad pixels in the core of the PSF")
    SATURATED = (8, "saturated pixels in the core of the PSF, on the frame or on the reference")
    BLENDED = (16, "neighbours enlarge the error by half or more")
    BAD_FIT = (32, "the core of the PSF is not fitted within the noise")
    REJECTED_PIXELS = (64, "pixels in the core of the PSF were rejected as outliers")


@dataclass(frozen=True)
class Fluxes:
    """Fluxes of n stars on one frame, (n,) each, on the scale of the reference.

    Attributes
    ----------
    flux : ndarray
        [ADU of the reference]; 0 where there is no data.
    error : ndarray
        Its standard deviation; infinite where there is no data. It is the scatter of a constant
        star over epochs. The error of P is not in it, because the stars of an epoch share it.
    sky : ndarray
        Level under each star [ADU of the frame].
    chi_square : ndarray
        Per pixel, over the core of the PSF, rejected pixels included.
    n_pixels : ndarray of int
        Good pixels in the core.
    blending : ndarray
        Error over that of the star alone.
    flags : ndarray of int
        Bits of :class:`FluxFlag`.
    """

    flux: FloatArray
    error: FloatArray
    sky: FloatArray
    chi_square: FloatArray
    n_pixels: IntArray
    blending: FloatArray
    flags: IntArray

    def __len__(self) -> int:
        return len(self.flux)

    @property
    def valid(self) -> NDArray[np.bool_]:
        """Where there is a flux, (n,)."""
        return np.asarray((self.flags & FluxFlag.NO_DATA) == 0)

    @property
    def significance(self) -> FloatArray:
        """Flux in units of its error, (n,)."""
        return self.flux / self.error


def measure_fluxes(
    difference: NDArray[np.floating],
    variance: NDArray[np.floating],
    flags: NDArray[np.integer] | None,
    psf: PSF,
    x: ArrayLike,
    y: ArrayLike,
    *,
    scale: float = 1.0,
    sky_spacing: float | None = 64.0,
    robust: bool = True,
) -> Fluxes:
    """Fit the PSF to a difference image at every star, all stars at once.

    Parameters
    ----------
    difference, variance : ndarray
        [ADU], [ADU^2], (h, w). The weights are 1/variance, so that the light of neighbours counts;
        an infinite variance is a pixel without data.
    flags : ndarray, optional
        Bits of :class:`~pytorchdia.frame.Flag`, (h, w). Pixels that are only CLIPPED are used.
    psf : PSF
        Of this epoch: the reference's, convolved with the kernel.
    x, y : array_like
        Positions of the stars [pixels], (n,).
    scale : float
        P. Fluxes and errors are divided by it.
    sky_spacing : float, optional
        Distance of the nodes between which the residual sky is interpolated [pixels]. None means
        that there is none.
    robust : bool
        Give pixels that the model cannot explain less weight, or none: cosmic rays, and variables
        that are not in the list. What the fitted light of the stars explains is not an outlier,
        nor is a few per cent of it.

    Raises
    ------
    InputError
        P is not a positive number, or a position is not finite.
    ShapeError
        The images or the positions do not go together.
    """
    x, y = checked_positions(x, y)
    if not 0.0 < scale < math.inf:
        raise InputError(f"The photometric scale must be a positive number, got {scale!r}.")
    data, sigma2 = (np.asarray(a, dtype=np.float64) for a in (difference, variance))
    bits = np.zeros(data.shape, dtype=np.int64) if flags is None else np.asarray(flags, np.int64)
    if data.ndim != 2 or not data.shape == sigma2.shape == bits.shape:
        raise ShapeError(
            f"Difference, variance and flags have shapes {data.shape}, {sigma2.shape} and "
            f"{bits.shape}; they must be one (h, w)."
        )
    good = np.isfinite(sigma2) & (sigma2 > 0) & np.isfinite(data) & ((bits & _UNUSABLE) == 0)
    weight = np.divide(1.0, sigma2, out=np.zeros_like(data), where=good)
    scene = Scene.of(np.where(good, data, 0.0), weight, psf, x, y, sky_spacing)
    return _fluxes(scene, solve_scene(scene, robust), bits, scale)


def reference_fluxes(
    reference: Frame, psf: PSF, catalogue: Catalogue, *, sky_spacing: float = _REFERENCE_SKY
) -> Fluxes:
    """Fluxes on the reference itself, to which those of the differences are added.

    Parameters
    ----------
    reference : Frame
    psf : PSF
        Of the reference, not convolved.
    catalogue : Catalogue
    sky_spacing : float
        As for :func:`measure_fluxes`.
    """
    fluxes = measure_fluxes(
        reference.data.double().numpy(), variance_of(reference), reference.flags.numpy(), psf,
        catalogue.x, catalogue.y, sky_spacing=sky_spacing,
    )  # fmt: skip
    saturated = (catalogue.flags & StarFlag.SATURATED) != 0
    return replace(fluxes, flags=fluxes.flags | np.where(saturated, int(FluxFlag.SATURATED), 0))


def refine_positions(
    reference: Frame, psf: PSF, catalogue: Catalogue, *, steps: int = 3, max_shift: float = 1.0,
    fluxes: bool = True,
) -> Catalogue:  # fmt: skip
    """The catalogue with positions and fluxes of a PSF fit to the reference, all stars at once.

    A wrong position loses light of a variable star. Stars that are saturated, too faint to tell
    (below 5 sigma) or that would move by more than ``max_shift`` pixels keep their positions.

    Parameters
    ----------
    reference : Frame
    psf : PSF
    catalogue : Catalogue
    steps : int
        Gauss-Newton steps.
    max_shift : float
        [pixels].
    fluxes : bool
        False leaves the fluxes as they are, to save the time of one fit.
    """
    x, y = catalogue.x.copy(), catalogue.y.copy()
    fixed = (catalogue.flags & (StarFlag.SATURATED | StarFlag.OUTSIDE)) != 0
    for _ in range(steps):
        scene = _reference_scene(reference, psf, x, y)
        step_x, step_y, flux, error = scene.shifts(solve_scene(scene, robust=True))
        usable = ~fixed & (flux > 5.0 * error)
        x += np.where(usable, np.clip(step_x, -0.3, 0.3), 0.0)
        y += np.where(usable, np.clip(step_y, -0.3, 0.3), 0.0)
    far = np.hypot(x - catalogue.x, y - catalogue.y) > max_shift
    x, y = np.where(far, catalogue.x, x), np.where(far, catalogue.y, y)
    moved = replace(catalogue, x=x, y=y)
    if reference.wcs is not None and len(x):
        ra, dec = on_sky(reference.wcs, x, y)
        if catalogue.ra is not None and catalogue.dec is not None:
            away = (catalogue.flags & StarFlag.OUTSIDE) != 0
            ra, dec = np.where(away, catalogue.ra, ra), np.where(away, catalogue.dec, dec)
        moved = replace(moved, ra=ra, dec=dec)
    if not fluxes:
        return moved
    measured = reference_fluxes(reference, psf, moved)
    return replace(moved, flux=measured.flux, flux_error=measured.error)


def find_hidden_stars(
    reference: Frame, psf: PSF, catalogue: Catalogue, *, threshold: float = 5.0
) -> Catalogue:
    """The catalogue with the stars that show once those it holds are taken off the reference.

    Parameters
    ----------
    reference : Frame
    psf : PSF
    catalogue : Catalogue
        Refined (:func:`refine_positions`).
    threshold : float
        Least significance. A new star must also hold a twentieth of the light under it, or it is
        taken for a flaw of the PSF.
    """
    scene = _reference_scene(reference, psf, catalogue.x, catalogue.y)
    solved = solve_scene(scene, robust=True)
    variance = np.where(scene.weight > 0, 1.0 / np.where(scene.weight > 0, scene.weight, 1), np.inf)
    stamp = psf.stamps(0.0, 0.0, min(psf.half, math.ceil(2.0 * psf.fwhm)))[0]
    left = matched_filter(solved.residual, variance, stamp)
    x, y = find_peaks(left.significance, threshold, max(1.0, 0.5 * psf.fwhm))
    iy, ix = np.rint(y).astype(int), np.rint(x).astype(int)
    light = (scene.stars @ np.maximum(solved.flux, 0.0)).reshape(scene.data.shape)
    real = left.flux[iy, ix] * stamp.max() > 0.05 * light[iy, ix]
    if len(catalogue) and len(x):
        tree = cKDTree(np.column_stack([catalogue.x, catalogue.y]))
        real &= tree.query(np.column_stack([x, y]))[0] > 0.5 * psf.fwhm
    more = catalogue_from_list(reference, x=x[real], y=y[real], fwhm=psf.fwhm)
    clean = (more.flags & (StarFlag.SATURATED | StarFlag.MASKED)) == 0
    return catalogue.joined(more.chosen(clean))


def target_variance(
    variance: NDArray[np.floating], kernel: ArrayLike, reference_variance: NDArray[np.floating]
) -> FloatArray:
    """The part of a difference's variance that is the target's own [ADU^2], (h, w).

    The noise of the reference is one and the same in all differences of a season: it shifts the
    light curve of a star and does not scatter it. Fluxes measured with this variance therefore
    have the errors with which a constant star scatters over the epochs.

    Parameters
    ----------
    variance : ndarray
        Of the difference, target and reference together, (h, w); infinite where there is no data.
    kernel : array_like
        K_lm (eq 2), (ky, kx).
    reference_variance : ndarray
        sigma_R^2 [ADU^2], (h, w); infinite at bad pixels.
    """
    total = np.asarray(variance, dtype=np.float64)
    sigma2 = np.where(np.isfinite(reference_variance), reference_variance, 0.0)
    squared = np.asarray(kernel, dtype=np.float64)[::-1, ::-1] ** 2
    shared = oaconvolve(sigma2, squared, mode="same")
    return np.where(np.isfinite(total), np.maximum(total - shared, 0.01 * total), np.inf)


def magnitudes(
    total: ArrayLike, error: ArrayLike, zero_point: float = 25.0
) -> tuple[FloatArray, FloatArray]:
    """Magnitudes and their errors of total fluxes (reference plus difference); NaN for flux <= 0.

    Parameters
    ----------
    total, error : array_like
        [ADU].
    zero_point : float
        Magnitude of 1 ADU.
    """
    flux, sigma = (np.asarray(v, dtype=np.float64) for v in (total, error))
    positive = np.isfinite(flux) & np.isfinite(sigma) & (flux > 0)
    safe = np.where(positive, flux, 1.0)
    magnitude = zero_point - 2.5 * np.log10(safe)
    spread = 2.5 / math.log(10.0) * sigma / safe
    return np.where(positive, magnitude, np.nan), np.where(positive, spread, np.nan)


def _reference_scene(reference: Frame, psf: PSF, x: FloatArray, y: FloatArray) -> Scene:
    data, sigma2 = reference.data.double().numpy(), variance_of(reference)
    good = np.isfinite(sigma2)
    weight = np.divide(1.0, sigma2, out=np.zeros_like(data), where=good)
    return Scene.of(np.where(good, data, 0.0), weight, psf, x, y, _REFERENCE_SKY)


def _fluxes(scene: Scene, solved: Solved, bits: IntArray, scale: float) -> Fluxes:
    """Fluxes with their flags, from the solution and from the pixels of each core."""
    core = scene.core()
    z2 = solved.z**2
    n_pixels = core.count(scene.weight > 0)
    chi_square = core.total(np.where(scene.weight > 0, z2, 0.0)) / np.maximum(n_pixels, 1)
    no_data = solved.coverage < _LEAST_COVERAGE
    flags = np.zeros(len(scene.x), dtype=np.int64)
    saturated = (bits & int(Flag.SATURATED)) != 0
    border = (bits & int(Flag.BORDER)) != 0
    for flag, where in (
        (FluxFlag.NO_DATA, no_data),
        (FluxFlag.EDGE, core.leaves_frame | (core.count(border) > 0)),
        (FluxFlag.MASKED_CORE, core.count((scene.weight == 0) & ~border) > 0),
        (FluxFlag.SATURATED, core.count(saturated) > 0),
        (FluxFlag.BLENDED, solved.blending > _BLENDED),
        (FluxFlag.BAD_FIT, chi_square > _ILL_FITTED),
        (FluxFlag.REJECTED_PIXELS, core.count(solved.rejected) > 0),
    ):
        flags[where] |= int(flag)
    return Fluxes(
        flux=np.where(no_data, 0.0, solved.flux / scale),
        error=np.where(no_data, np.inf, solved.error / scale),
        sky=solved.sky_at_stars,
        chi_square=chi_square,
        n_pixels=n_pixels,
        blending=np.where(no_data, 1.0, solved.blending),
        flags=flags,
    )
