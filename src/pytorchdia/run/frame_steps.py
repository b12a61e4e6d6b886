"""The steps of a run as plain functions: files in, files out, and what to say of them.

Each is given paths, names and settings, never open things, so that any process can do it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..changes.detections import reference_light
from ..errors import Finding, ShapeError
from ..frame import Flag, Frame
from ..headers import Keywords, TimeKeyword, per_second
from ..io import as_frame, read_mask, read_plane
from ..measure import default_noise
from ..noise import NoiseModel
from ..preparation.bad_lines import without_bad_lines
from ..preparation.quality import FrameQuality, measure_quality
from ..preparation.register import Registration, find_transform, measure_flux_ratio
from ..preparation.resample import apply_registration
from ..preparation.star_detection import DetectedStars, detect_stars
from ..stars.psf import PSFModel
from .images import (
    read_frame,
    read_psf,
    write_frame,
)
from .settings import Settings
from .state import Made, file_digest

__all__ = [
    "Source",
    "measure_frame",
    "quality_from",
    "register_frame",
    "registered",
    "registration_from",
]

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Source:
    """A frame of the season, or a reference made elsewhere: its name in the run, and its file.

    Attributes
    ----------
    name : str
    path : Path
    made_elsewhere : bool
        What the settings say of the season's frames does not hold for it.
    """

    name: str
    path: Path
    made_elsewhere: bool = False


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
        alike = per_second(frame.unit) or not (mine or theirs)
        if alike:
            transparency = ratio[0]
        elif mine and theirs:
            transparency = ratio[0] * theirs / mine
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
    flat_file = settings.path(settings.frames.flat)
    if flat_file is None:
        return apply_registration(frame, registration, shape, wcs), None
    flat = _cached_plane(flat_file, settings.frames.hdu, _stamp(flat_file))
    frame, flat = _fit_for_use(frame, flat)
    if registration.how == "shift" and frame.variance is None:
        moved = apply_registration(frame, registration, shape, wcs)
        light = Frame(torch.from_numpy(flat), torch.zeros_like(frame.flags))
        field = apply_registration(light, registration, shape)
        inside = field.flags == 0
        noise, findings = default_noise(moved, flat=torch.where(inside, field.data, 1.0))
        return replace(moved, findings=moved.findings + findings), noise
    # Resampling mixes pixels of the flat-field: their variances are what travels.
    noise, findings = default_noise(frame, flat=torch.from_numpy(flat))
    with_variance = replace(frame, variance=noise.variance(frame.data))
    moved = apply_registration(with_variance, registration, shape, wcs)
    return replace(moved, findings=moved.findings + findings), None


def _fit_for_use(frame: Frame, flat: FloatArray) -> tuple[Frame, FloatArray]:
    """The frame without the pixels at which the flat-field is no positive number; it is 1 there."""
    if flat.shape != frame.shape:
        raise ShapeError(
            f"The flat-field has shape {flat.shape} but {frame.name} has shape {frame.shape}; they "
            "must be equal. Give the flat-field of this camera (frames.flat), trimmed like the "
            "frames."
        )
    good = flat > 0
    if good.all():
        return frame, flat
    finding = Finding(
        "flat-unusable",
        f"The flat-field is not a positive number at {(~good).sum()} of {good.size} pixels, which "
        f"were masked in {frame.name}.",
    )
    frame = frame.flagged(torch.from_numpy(~good), Flag.MASKED)
    return replace(frame, findings=(*frame.findings, finding)), np.where(good, flat, 1.0)


def load(source: Source, settings: Settings) -> Frame:
    """Read a raw frame with the season's mask, camera and keywords; or a reference with its own."""
    if source.made_elsewhere:
        own = settings.reference
        frame = as_frame(
            source.path, hdu=own.hdu, gain=own.gain, read_noise=own.read_noise,
            saturation=own.saturation, keywords=keywords_of(settings),
        )  # fmt: skip
        return replace(frame, name=source.name)
    camera, mask = settings.camera, settings.path(settings.frames.mask)
    bits, hdu = settings.keywords.mask_bits, settings.frames.hdu
    frame = as_frame(
        source.path, hdu=hdu, gain=camera.gain, read_noise=camera.read_noise,
        saturation=camera.saturation, keywords=keywords_of(settings),
        mask=None if mask is None else _cached_mask(mask, bits, hdu, _stamp(mask)),
    )  # fmt: skip
    frame = replace(frame, name=source.name)
    return without_bad_lines(frame) if settings.frames.bad_lines else frame


def keywords_of(settings: Settings) -> Keywords:
    """The user's own header keywords."""
    chosen = settings.keywords
    time = chosen.time
    times = () if time is None else (TimeKeyword(**time.model_dump()),)
    return Keywords(
        chosen.gain, chosen.read_noise, chosen.saturation, chosen.exposure, chosen.filter, times,
        chosen.mask, chosen.variance, chosen.mask_bits,
    )  # fmt: skip


@dataclass(frozen=True)
class _Grid:
    frame: Frame
    stars: DetectedStars


def _grid(grid: Source, settings: Settings) -> _Grid:
    """The frame whose grid is used, with its stars; kept for the next frame."""
    mask = settings.path(settings.frames.mask)
    key = (grid, _stamp(grid.path), None if mask is None else _stamp(mask), settings)
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


@dataclass(frozen=True)
class RunReference:
    """The reference of a run.

    Attributes
    ----------
    frame : Frame
    psf : PSFModel
    light : ndarray
        What a star at each pixel would have for a flux [ADU], (h, w).
    """

    frame: Frame
    psf: PSFModel
    light: FloatArray


def reference_of(run: Path) -> RunReference:
    """The reference of a run; kept for the next frame."""
    return _reference(run, _stamp(run / "reference.fits"), _stamp(run / "psf.fits"))


@lru_cache(maxsize=1)
def _reference(run: Path, *stamps: tuple[int, int]) -> RunReference:
    frame, psf = read_frame(run / "reference.fits", "reference"), read_psf(run / "psf.fits")
    return RunReference(frame, psf, reference_light(frame, psf))


@lru_cache(maxsize=1)
def _cached_plane(path: Path, chip: int | str | None, stamp: tuple[int, int]) -> FloatArray:
    return read_plane(path, chip)


@lru_cache(maxsize=1)
def _cached_mask(
    path: Path, bits: tuple[int, ...], chip: int | str | None, stamp: tuple[int, int]
) -> BoolArray:
    return read_mask(path, bits, chip)
