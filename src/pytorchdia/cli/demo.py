"""Sample frames with everything that goes wrong at night, and the main job run on them."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS
from numpy.typing import NDArray
from rich.console import Console

from ..errors import WriteError
from ..simulate import Stars, draw_stars, render_moffat

__all__ = ["DemoField", "make_field", "run_demo"]

FloatArray = NDArray[np.float64]

_SHAPE = (300, 360)
_GAIN, _READ_NOISE, _SATURATION = 1.6, 6.0, 60000.0  # e-/ADU, e-, ADU


@dataclass(frozen=True)
class DemoField:
    """Two frames of one crowded field and the truth about its variable star.

    Attributes
    ----------
    target, reference : ndarray
        Images [ADU], (h, w).
    target_mask : ndarray of bool
        The target's bad column.
    variable : (int, int)
        (x, y) of the variable star on the target [pixels].
    brightening : float
        Its flux on the target minus P times its flux on the reference [ADU], within 8 pixels.
    scale : float
        The true P.
    """

    target: FloatArray
    reference: FloatArray
    target_mask: NDArray[np.bool_]
    variable: tuple[int, int]
    brightening: float
    scale: float


def make_field(seed: int) -> DemoField:
    """A crowded field seen twice: with round sharp stars, and with wide elongated ones.

    The target is a fifth fainter, shifted by part of a pixel, on a brighter sky; one star has
    brightened; a cosmic ray, a bad column and dead pixels spoil it.
    """
    rng = np.random.default_rng(seed)
    stars = draw_stars(rng, _SHAPE, log_density=2.3)
    scale, variable = 0.8, (250, 90)
    before, after = 6000.0, 26000.0
    sharp = {"fwhm": 2.9, "ellipticity": 0.08, "angle": 20.0, "coma": 0.0}
    wide = {"fwhm": 4.1, "ellipticity": 0.25, "angle": 65.0, "coma": 0.12}
    reference = 350.0 + render_moffat(_with(stars, variable, before), _SHAPE, **sharp)
    moved = _with(stars, variable, after).shifted(0.31, -0.22)
    target = 620.0 + scale * render_moffat(moved, _SHAPE, **wide)
    reference = _expose(rng, reference, exposures=8)
    target = _expose(rng, target, exposures=1)

    steps = np.arange(9)
    target[200 + steps, 60 + 2 * steps] += rng.uniform(1500, 6000, steps.size)  # cosmic ray
    mask = np.zeros(_SHAPE, dtype=bool)
    mask[:, 300] = True
    target[:, 300] = 65535.0
    reference[150:153, 120:122] = np.nan
    reference[20, 200] = np.nan
    star = Stars(np.array([250.31]), np.array([89.78]), np.array([scale * (after - before)]))
    change = render_moffat(star, _SHAPE, **wide)
    brightening = float(change[_near(variable)].sum())
    return DemoField(np.clip(target, 0, 65535), reference, mask, variable, brightening, scale)


def run_demo(folder: Path, seed: int, command: Callable[[list[str]], int | None]) -> int:
    """Write the sample frames into ``folder``, run the main job on them, and check its answer.

    Parameters
    ----------
    folder : Path
        Made if it does not exist; files of an earlier demo are replaced.
    seed : int
    command : callable
        Runs the command line with a list of arguments and returns its exit code.

    Returns
    -------
    int
        That exit code.
    """
    say = Console(stderr=True, markup=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        field = make_field(seed)
        target, reference = _write_frames(field, folder)
    except OSError as error:
        raise WriteError(
            f"The demo cannot write into {folder} ({error.strerror or error})."
        ) from error
    result, picture = folder / "difference.fits", folder / "difference.png"
    arguments = [
        "subtract", str(target), str(reference), "-o", str(result), "--plot", str(picture),
        "--likelihood", "huber", "--overwrite",
    ]  # fmt: skip
    say.print(f"Running: pytorchdia {shlex.join(arguments)}", soft_wrap=True, highlight=False)
    code = command(arguments)
    if code:
        return int(code)
    flux, flux_error = _flux(result, field.variable)
    x, y = field.variable
    say.print(
        f"\nThe star at x = {x}, y = {y} was made brighter by {field.brightening:.0f} ADU within 8 "
        f"pixels of it; the difference holds {flux:.0f} ± {flux_error:.0f} ADU there. The true P "
        f"is {field.scale:g}.",
        highlight=False,
    )
    say.print(f"Look at {picture}, open {result} in any FITS viewer, and run:", soft_wrap=True)
    say.print(f"  pytorchdia info {shlex.quote(str(result))}", soft_wrap=True, highlight=False)
    return 0


def _with(stars: Stars, position: tuple[int, int], flux: float) -> Stars:
    return Stars(
        np.append(stars.x, position[0]),
        np.append(stars.y, position[1]),
        np.append(stars.flux, flux),
    )


def _expose(rng: np.random.Generator, image: FloatArray, exposures: int) -> FloatArray:
    """The mean of several exposures with the noise of eq 6, cut off at saturation."""
    sigma = np.sqrt((_READ_NOISE / _GAIN) ** 2 + image / _GAIN) / np.sqrt(exposures)
    exposed: FloatArray = np.minimum(image + sigma * rng.standard_normal(image.shape), _SATURATION)
    return exposed


def _write_frames(field: DemoField, folder: Path) -> tuple[Path, Path]:
    """The target as 16-bit integers with a MASK image, the reference as floats with NaN."""
    header = _wcs().to_header()
    header["OBJECT"] = ("demo field", "simulated by pytorchdia")
    header["FILTER"] = "I"
    header["RDNOISE"] = (_READ_NOISE, "e-")
    header["SATURATE"] = (_SATURATION - 2000, "ADU")
    paths = folder / "target.fits", folder / "reference.fits"
    one = fits.Header(header, copy=True)
    one.update({"GAIN": (_GAIN, "e-/ADU"), "EXPTIME": (120.0, "s"), "MJD-OBS": 60000.25})
    fits.HDUList(
        [
            fits.PrimaryHDU(np.round(field.target).astype(np.uint16), one),
            fits.ImageHDU(field.target_mask.astype(np.uint8), name="MASK"),
        ]
    ).writeto(paths[0], overwrite=True)
    stack = fits.Header(header, copy=True)
    stack.update({"GAIN": (8 * _GAIN, "e-/ADU of the mean"), "EXPTIME": (120.0, "s, mean of 8")})
    stack["RDNOISE"] = (_READ_NOISE * np.sqrt(8.0), "e- of the mean of 8")
    fits.PrimaryHDU(field.reference.astype(np.float32), stack).writeto(paths[1], overwrite=True)
    return paths


def _wcs() -> WCS:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [273.87, -25.285]
    wcs.wcs.crpix = [_SHAPE[1] / 2, _SHAPE[0] / 2]
    wcs.wcs.cdelt = [-0.3 / 3600, 0.3 / 3600]
    return wcs


def _near(position: tuple[int, int], radius: float = 8.0) -> NDArray[np.bool_]:
    """Pixels within ``radius`` of the variable star on the target, which is shifted a little."""
    y, x = np.indices(_SHAPE)
    near: NDArray[np.bool_] = np.hypot(x - position[0] - 0.31, y - position[1] + 0.22) <= radius
    return near


def _flux(result: Path, position: tuple[int, int]) -> tuple[float, float]:
    """Sum of the difference near the variable star, and its error [ADU]."""
    with fits.open(result) as hdus:
        difference, variance = hdus[0].data, hdus["VARIANCE"].data
    inside = _near(position)
    return float(difference[inside].sum()), float(np.sqrt(variance[inside].sum()))
