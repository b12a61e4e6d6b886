"""A folder of frames of one field: which is the reference, and how the others lie on it.

As in section 4.1, no frame is resampled. A target needs only a shift by whole pixels; the kernel
does the rest. Frames that were registered before have a shift of zero.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from astropy.stats import mad_std
from numpy.typing import NDArray
from scipy.fft import irfft2, next_fast_len, rfft2
from scipy.ndimage import gaussian_filter

from ..errors import InputError, PyTorchDIAError, PyTorchDIAWarning
from ..frame import Frame
from ..io import as_frame, stem
from ..measure import flattened, measure_seeing
from ..metrics import FWHM_PER_SIGMA

__all__ = ["Epoch", "Series", "read_series", "whole_pixel_shift"]

FloatArray = NDArray[np.float64]
SUFFIXES = (".fits", ".fit", ".fts", ".fits.fz", ".fit.fz", ".fits.gz", ".fit.gz", ".fts.gz")
_TIME_KEYWORDS = ("BJD", "HJD", "MJD-OBS", "MJD", "JD")
_CLEAR = 10.0  # times its own scatter that the peak of a cross-correlation must stand out


@dataclass(frozen=True)
class Epoch:
    """One frame of a series.

    Attributes
    ----------
    path : Path
    time : float or None
        As the header gives it [d].
    fwhm : float
        Of its stars [pixels].
    shift : (int, int)
        (dy, dx): a star at (y, x) of the reference is at (y + dy, x + dx) here.
    """

    path: Path
    time: float | None
    fwhm: float
    shift: tuple[int, int] = (0, 0)

    @property
    def name(self) -> str:
        """The file's name without its endings."""
        return stem(self.path)

    @property
    def phi(self) -> float:
        """Gaussian width of the stars [pixels]."""
        return self.fwhm / FWHM_PER_SIGMA


@dataclass(frozen=True)
class Series:
    """A reference, the targets in the order of time, and the frames left out with the reason."""

    reference: Epoch
    epochs: tuple[Epoch, ...]
    rejected: tuple[tuple[str, str], ...] = ()


def read_series(
    folder: Path,
    reference: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Series:
    """Measure the frames of a folder; the reference is the named one, else the sharpest.

    Raises
    ------
    InputError
        The folder does not exist or holds fewer than three usable frames, or no frame has the
        name asked for.
    """
    paths = _frames_in(folder)
    found: dict[Epoch, FloatArray] = {}
    rejected: list[tuple[str, str]] = []
    for number, path in enumerate(paths):
        progress(number, len(paths))
        try:
            frame = read_frame(path)
            seeing = measure_seeing(frame)
        except PyTorchDIAError as error:
            rejected.append((stem(path), str(error)))
            continue
        if seeing is None:
            rejected.append((stem(path), "its seeing cannot be measured: too few stars"))
        else:
            found[Epoch(path, _time_of(frame.meta), seeing.fwhm)] = flattened(frame)
    progress(len(paths), len(paths))
    chosen = _choose(list(found), reference, folder)
    targets = []
    for epoch, image in found.items():
        if epoch == chosen:
            continue
        shift = whole_pixel_shift(image, found[chosen])
        if shift is None:
            reason = "no whole-pixel shift brings its stars onto those of the reference"
            rejected.append((epoch.name, reason))
        else:
            targets.append(Epoch(epoch.path, epoch.time, epoch.fwhm, shift))
    if len(targets) < 2:
        raise InputError(
            f"Of {len(paths)} frames in {folder} only {len(targets)} lie on the reference "
            f"{chosen.name}; a light curve needs two or more."
        )
    targets.sort(key=lambda e: (math.inf if e.time is None else e.time, e.name))
    return Series(chosen, tuple(targets), tuple(rejected))


def _frames_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}; --frames names a folder of FITS files.")
    paths = sorted(p for p in folder.iterdir() if p.name.lower().endswith(SUFFIXES))
    if len(paths) < 3:
        raise InputError(
            f"{folder} holds {len(paths)} FITS files; a reference and two targets are the least."
        )
    return paths


def _choose(epochs: list[Epoch], name: str | None, folder: Path) -> Epoch:
    if not epochs:
        raise InputError(f"No frame in {folder} has stars whose width can be measured.")
    if name is None:
        return min(epochs, key=lambda e: e.fwhm)
    named = [e for e in epochs if name in (e.path.name, e.name)]
    if not named:
        raise InputError(
            f"No usable frame in {folder} is called {name}; there are "
            f"{', '.join(e.path.name for e in epochs[:20])}."
        )
    return named[0]


def read_frame(path: Path) -> Frame:
    """A frame without the warnings of its reading, which a series would repeat for each."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PyTorchDIAWarning)
        return as_frame(path)


def _time_of(meta: Any) -> float | None:
    for keyword in _TIME_KEYWORDS:
        value = meta.get(keyword)
        if isinstance(value, (int, float)) and math.isfinite(value):
            return float(value)
    return None


def whole_pixel_shift(target: FloatArray, reference: FloatArray) -> tuple[int, int] | None:
    """(dy, dx) by which the stars of ``target`` are further up and right; None if none stands out.

    The peak of the cross-correlation. Stars are cut off at 30 times the scatter, so that a few
    bright ones do not decide alone.
    """
    if target.shape != reference.shape:
        return None
    shape = [next_fast_len(2 * n, real=True) for n in target.shape]
    images = []
    for image in (target, reference):
        scatter = float(mad_std(image[image != 0.0])) if image.any() else 0.0
        clipped = np.clip(image / scatter if scatter > 0 else image, -3.0, 30.0)
        images.append(rfft2(clipped - gaussian_filter(clipped, 8.0), shape))
    correlation = irfft2(images[0] * np.conj(images[1]), shape)
    peak = int(np.argmax(correlation))
    if correlation.flat[peak] < _CLEAR * mad_std(correlation):
        return None
    places = np.unravel_index(peak, correlation.shape)
    dy, dx = (int(p) if p < n // 2 else int(p) - n for p, n in zip(places, shape, strict=True))
    return dy, dx
