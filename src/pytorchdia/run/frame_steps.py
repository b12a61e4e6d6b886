"""The steps of a run as plain functions: files in, files out, and what to say of them.

Each is given paths, names and settings, never open things, so that any process can do it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..background import PolynomialBackground
from ..changes.detections import (
    filter_difference,
    find_in_difference,
    reference_light,
    systematic_share,
)
from ..config import make_likelihood, make_penalty, parse_kernel_size
from ..frame import Frame
from ..headers import Keywords, TimeKeyword
from ..io import as_frame, read_plane
from ..kernel import DeltaKernel
from ..measure import default_noise, kernel_size
from ..noise import NoiseModel
from ..preparation.quality import FrameQuality, measure_quality
from ..preparation.register import Registration, find_transform, measure_flux_ratio
from ..preparation.resample import apply_registration
from ..preparation.star_detection import DetectedStars, detect_stars
from ..regions import subtract_by_regions
from ..stars.catalogue import variance_of
from ..stars.photometry import measure_fluxes, target_variance
from ..stars.psf import RegionalPSF
from ..subtract import subtract
from .images import (
    StoredDifference,
    read_difference,
    read_frame,
    read_psf,
    write_difference,
    write_frame,
)
from .settings import Settings
from .state import Made, file_digest
from .tables import DETECTIONS, EPOCH, read_table, write_table

__all__ = [
    "Source",
    "measure_frame",
    "photometry_of_frame",
    "quality_from",
    "register_frame",
    "registered",
    "registration_from",
    "subtract_frame",
]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Source:
    """A frame of the season: its name in the run, and its file."""

    name: str
    path: Path


def measure_frame(source: Source, settings: Settings) -> Made:
    """Read a frame and measure its quality."""
    frame = load(source, settings)
    quality = measure_quality(frame, keywords_of(settings))
    values = asdict(quality)
    del values["findings"]
    values["sha256"] = file_digest(source.path)
    return Made((), values, quality.findings)


def quality_from(values: Mapping[str, Any], transparency: float | None = None) -> FrameQuality:
    """The quality that :func:`measure_frame` put into its state."""
    kept = {key: value for key, value in values.items() if key != "sha256"}
    kept["shape"] = tuple(kept["shape"])
    kept["transparency"] = transparency
    return FrameQuality(**kept)


def register_frame(source: Source, grid: Source, settings: Settings, run: Path) -> Made:
    """Lay a frame onto the grid of another."""
    frame, onto = load(source, settings), _grid(grid, settings)
    stars = detect_stars(frame)
    found = find_transform(
        frame, onto.frame, max_shift=settings.registration.max_shift,
        frame_stars=stars, onto_stars=onto.stars,
    )  # fmt: skip
    ratio = measure_flux_ratio(frame, onto.frame, found, stars, onto.stars)
    mine, theirs = frame.detector.exposure, onto.frame.detector.exposure
    transparency = None
    if ratio is not None:
        transparency = ratio[0] * (theirs / mine if mine and theirs else 1.0)
    values = {
        "matrix": found.matrix.tolist(),
        "how": found.how,
        "by": found.by,
        "n_matched": int(found.n_matched),
        "residual": float(found.residual),
        "drift": float(found.drift),
        "transparency": transparency,
    }
    products: tuple[Path, ...] = ()
    if settings.run.keep_registered:
        moved = apply_registration(frame, found, onto.frame.shape, onto.frame.wcs)
        path = run / "registered" / f"{source.name}.fits"
        products = (write_frame(path, moved, {"FRAME": source.name}),)
    return Made(products, values, found.findings)


def registration_from(values: Mapping[str, Any]) -> Registration:
    """The registration that :func:`register_frame` put into its state."""
    return Registration(
        np.array(values["matrix"], dtype=np.float64), values["how"], values["by"],
        values["n_matched"], values["residual"], values["drift"],
    )  # fmt: skip


def registered(
    source: Source, registration: Registration, shape: tuple[int, int], wcs: Any, settings: Settings
) -> tuple[Frame, NoiseModel | None]:
    """A frame on the reference's grid, and its noise model where there is a flat-field (eq 6)."""
    frame = load(source, settings)
    flat = _plane(settings.path(settings.frames.flat))
    if flat is None:
        return apply_registration(frame, registration, shape, wcs), None
    if registration.how == "shift" and frame.variance is None:
        moved = apply_registration(frame, registration, shape, wcs)
        light = Frame(torch.from_numpy(flat), torch.zeros_like(frame.flags))
        field = apply_registration(light, registration, shape)
        usable = (field.flags == 0) & (field.data > 0)
        noise, findings = default_noise(moved, flat=torch.where(usable, field.data, 1.0))
        return replace(moved, findings=moved.findings + findings), noise
    # Resampling mixes pixels of the flat-field: their variances are what travels.
    noise, findings = default_noise(frame, flat=torch.from_numpy(flat))
    with_variance = replace(frame, variance=noise.variance(frame.data))
    moved = apply_registration(with_variance, registration, shape, wcs)
    return replace(moved, findings=moved.findings + findings), None


def subtract_frame(
    source: Source, registration: Registration, fwhm: float | None, settings: Settings, run: Path
) -> Made:
    """Subtract the matched reference from a frame, region by region."""
    reference, _ = reference_and_light(run)
    target, noise = registered(source, registration, reference.shape, reference.wcs, settings)
    chosen = settings.subtract
    fit = partial(
        subtract, background=PolynomialBackground(chosen.background),
        likelihood=make_likelihood(chosen.likelihood), device=chosen.device,
    )  # fmt: skip
    if chosen.prior is not None:
        fit = partial(fit, penalty=make_penalty(chosen.prior, None))
    kernel = _kernel(chosen.kernel, fwhm, reference.shape)
    regions = None if chosen.regions == "auto" else chosen.regions
    result = subtract_by_regions(
        target, reference, kernel=kernel, noise=noise, regions=regions, fit=fit
    )
    cards = {
        "FRAME": source.name,
        "DIAP": result.scale,
        "DIAPERR": result.scale_error,
        "BUNIT": "adu",
    }
    path = write_difference(
        run / "differences" / f"{source.name}_diff.fits", result, reference.wcs, cards
    )
    fitted = [fit for fit in result.fits if fit.kernel is not None]
    values = {
        "scale": result.scale,
        "scale_error": result.scale_error,
        "kernel": list(kernel.shape),
        "regions": len(result.fits),
        "regions_fitted": len(fitted),
        "reduced_chi_square": float(np.mean([fit.reduced_chi_square for fit in fitted])),
        "converged": all(fit.status == "CONVERGED" for fit in fitted),
        "masked_share": float((result.flags != 0).mean()),
    }
    said = dict.fromkeys((*target.findings, *result.findings))
    return Made((path,), values, tuple(said))


def photometry_of_frame(
    name: str, quality: Mapping[str, Any], settings: Settings, run: Path
) -> Made:
    """Fluxes of all stars in a difference, as one Parquet part."""
    stored = read_difference(run / "differences" / f"{name}_diff.fits")
    stars = read_table(run / "stars.parquet")
    x, y = (np.asarray(stars[axis], dtype=np.float64) for axis in "xy")
    psf = epoch_psf(stored, run)
    difference, variance, shared = on_reference_scale(stored, run)
    fluxes = measure_fluxes(
        difference, shared, stored.flags, psf, x, y,
        sky_spacing=settings.photometry.sky_spacing, robust=settings.photometry.robust,
    )  # fmt: skip
    which = stored.region_of(x, y)
    scales = np.array([fit.scale for fit in stored.fits])
    errors = np.array([fit.scale_error for fit in stored.fits])
    columns = {
        "star": np.asarray(stars["star"]),
        "frame": name,
        "time": quality["time"],
        "time_scale": quality["time_scale"],
        "bjd_tdb": quality["bjd_tdb"],
        "flux": np.where(fluxes.valid, fluxes.flux, np.nan),
        "error": np.where(fluxes.valid, fluxes.error, np.nan),
        "chi_square": fluxes.chi_square,
        "n_pixels": fluxes.n_pixels,
        "scale": scales[which],
        "scale_error": errors[which],
        "fwhm": quality["fwhm"],
        "flags": fluxes.flags,
    }
    path = write_table(run / "photometry" / f"{name}.parquet", EPOCH, columns)
    good = fluxes.valid
    reference = np.asarray(stars["flux"].to_numpy(zero_copy_only=False), dtype=np.float64)
    share = systematic_share(columns["flux"], columns["error"], np.nan_to_num(reference))
    _, light = reference_and_light(run)
    filtered = filter_difference(difference, variance, stored.flags, psf, light=light, share=share)
    found = find_in_difference(
        difference, variance, stored.flags, psf, filtered, threshold=settings.variables.threshold
    )
    second = write_table(run / "detections" / f"{name}.parquet", DETECTIONS, vars(found))
    values = {
        "systematic_share": share,
        "detections": len(found),
        "stars": len(x),
        "measured": int(good.sum()),
        "clean": int((fluxes.flags == 0).sum()),
        "median_error": float(np.median(fluxes.error[good])) if good.any() else None,
    }
    return Made((path, second), values)


def epoch_psf(stored: StoredDifference, run: Path) -> RegionalPSF:
    """The reference's PSF convolved with the kernel of each region (section 4.2)."""
    psf = read_psf(run / "psf.fits")
    models = [psf.convolved(fit.kernel) for fit in stored.fits if fit.kernel is not None]
    return RegionalPSF(models, stored.region_of)


def on_reference_scale(
    stored: StoredDifference, run: Path
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Difference, its variance, and the target's own part of that, in units of the reference.

    Each region is divided by its own P.
    """
    reference, _ = reference_and_light(run)
    theirs = variance_of(reference)
    difference = stored.difference.astype(np.float64)
    variance = stored.variance.astype(np.float64)
    own = np.full(variance.shape, np.inf)
    for fit in stored.fits:
        here = (fit.region.rows, fit.region.columns)
        scale = fit.scale if fit.scale > 0 else math.inf
        assert fit.kernel is not None
        half_y, half_x = (n // 2 for n in fit.kernel.shape)
        top, left = max(0, here[0].start - half_y), max(0, here[1].start - half_x)
        wide = (slice(top, here[0].stop + half_y), slice(left, here[1].stop + half_x))
        part = target_variance(stored.variance[wide], fit.kernel, theirs[wide])
        inside = part[
            here[0].start - top : here[0].stop - top, here[1].start - left : here[1].stop - left
        ]
        difference[here] /= scale
        variance[here] /= scale**2
        own[here] = inside / scale**2
    bad = ~np.isfinite(variance) | (variance <= 0)
    difference[bad], variance[bad], own[bad] = 0.0, np.inf, np.inf
    return difference, variance, own


def load(source: Source, settings: Settings) -> Frame:
    """Read a raw frame with the season's mask, camera and keywords."""
    camera = settings.camera
    mask = _plane(settings.path(settings.frames.mask))
    frame = as_frame(
        source.path, hdu=settings.frames.hdu, gain=camera.gain, read_noise=camera.read_noise,
        saturation=camera.saturation, keywords=keywords_of(settings),
        mask=None if mask is None else ~np.isfinite(mask) | (mask != 0),
    )  # fmt: skip
    return replace(frame, name=source.name)


def keywords_of(settings: Settings) -> Keywords:
    """The user's own header keywords."""
    chosen = settings.keywords
    time = chosen.time
    times = () if time is None else (TimeKeyword(**time.model_dump()),)
    return Keywords(
        chosen.gain, chosen.read_noise, chosen.saturation, chosen.exposure, chosen.filter, times
    )


def _kernel(size: str | int, fwhm: float | None, shape: tuple[int, int]) -> DeltaKernel:
    """The kernel asked for, or one of 9 Gaussian widths of the frame's PSF (section 3.3)."""
    given = parse_kernel_size(str(size))
    if given is not None:
        return given
    return DeltaKernel(kernel_size(fwhm, shape))


@dataclass(frozen=True)
class _Grid:
    frame: Frame
    stars: DetectedStars


def _grid(grid: Source, settings: Settings) -> _Grid:
    """The frame whose grid is used, with its stars; kept for the next frame."""
    key = (grid, _stamp(grid.path), settings)
    if key not in _grids:
        frame = load(grid, settings)
        _grids.clear()
        _grids[key] = _Grid(frame, detect_stars(frame))
    return _grids[key]


_grids: dict[Any, _Grid] = {}


def _stamp(path: Path) -> tuple[int, int]:
    """Changes when a file does."""
    about = path.stat()
    return about.st_size, about.st_mtime_ns


def reference_and_light(run: Path) -> tuple[Frame, FloatArray]:
    """The reference of a run, and its light at each pixel; kept for the next frame."""
    return _reference(run, _stamp(run / "reference.fits"))


@lru_cache(maxsize=1)
def _reference(run: Path, stamp: tuple[int, int]) -> tuple[Frame, FloatArray]:
    reference = read_frame(run / "reference.fits", "reference")
    return reference, reference_light(reference, read_psf(run / "psf.fits"))


@lru_cache(maxsize=2)
def _cached_plane(path: Path, stamp: tuple[int, int]) -> FloatArray:
    return read_plane(path)


def _plane(path: Path | None) -> FloatArray | None:
    """An image that holds for all frames, NaN at its bad pixels."""
    return None if path is None else _cached_plane(path, _stamp(path))
