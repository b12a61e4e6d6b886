"""One night after another: how each frame of a simulated season is seen."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

import numpy as np

from .. import Conditions, CosmicRays, GaussianPSF, MoffatPSF, Trail
from ..stars import FloatArray

__all__ = ["Epoch", "Trouble", "draw_epoch"]

_EXPOSURES = (60.0, 120.0, 120.0, 120.0, 200.0)  # [s]
_REFERENCE_EXPOSURE = 120.0  # [s]; the scale is 1 at this exposure under a clear sky
_PER_NIGHT = 2
_MOON_PERIOD = 29.53  # [days]
_PHI_OF_FWHM = 1.0 / np.sqrt(8.0 * np.log(2.0))


class Trouble(enum.Enum):
    """What makes a frame useless."""

    NONE = "none"
    CLOUD = "cloud"
    OUT_OF_FOCUS = "out of focus"
    TWILIGHT = "twilight"


@dataclass(frozen=True)
class Epoch:
    """The truth about one frame, without its pixels.

    Attributes
    ----------
    number : int
        From 0 on.
    time : float
        Middle of the exposure [days from the start of the season].
    exposure : float
        [s].
    fwhm, ellipticity : float
        Of the PSF, before any loss of focus; [pixels] and 1 - b/a.
    trouble : Trouble
    conditions : Conditions
    """

    number: int
    time: float
    exposure: float
    fwhm: float
    ellipticity: float
    trouble: Trouble
    conditions: Conditions


def draw_epoch(
    rng: np.random.Generator,
    number: int,
    shape: tuple[int, int],
    *,
    max_shift: float,
    max_rotation: float,
    cosmic_rays: float,
    beta: float | None,
    bad_share: float,
    trouble: Trouble | None,
) -> Epoch:
    """Conditions for frame ``number``; :class:`~pytorchdia.simulate.season.Season` has the rest.

    ``trouble`` is that of the frame, or None to draw it. All draws are made for every frame, so
    that asking for a bad frame changes nothing else about it.
    """
    exposure = float(rng.choice(_EXPOSURES))
    night, turn = divmod(number, _PER_NIGHT)
    time = night + 0.15 * turn + rng.uniform(0.0, 0.05)
    fwhm = float(np.clip(3.7 * np.exp(rng.normal(0.0, 0.18)), 2.5, 6.5))
    ellipticity = float(np.clip(rng.normal(0.06, 0.05), 0.0, 0.3))
    angle, coma = rng.uniform(0.0, 180.0), rng.uniform(0.0, 0.06)
    length = exposure / _REFERENCE_EXPOSURE
    clear = 1.0 - min(abs(rng.normal(0.0, 0.1)), 0.5)
    moon = 0.5 - 0.5 * np.cos(2.0 * np.pi * time / _MOON_PERIOD)
    sky = length * (350.0 + 900.0 * moon) * np.exp(rng.normal(0.0, 0.1))
    slopes = rng.normal(0.0, 0.03, 2)
    far = rng.uniform() < 0.1
    reach = max_shift if far else min(6.0, max_shift)
    shift = rng.uniform(-reach, reach, 2)
    rotation = rng.uniform(-max_rotation, max_rotation)
    trail = _draw_trail(rng, shape)
    drawn = _draw_trouble(rng, bad_share)
    trouble = drawn if trouble is None else trouble
    psf = (
        MoffatPSF(fwhm, ellipticity, angle, coma, beta)
        if beta is not None
        else GaussianPSF(fwhm * _PHI_OF_FWHM, ellipticity, angle)
    )
    conditions = Conditions(
        psf=psf,
        sky=(sky, sky * slopes[0], sky * slopes[1]),
        scale=length * clear,
        shift=(float(shift[0]), float(shift[1])),
        rotation=float(rotation),
        cosmic_rays=CosmicRays(min(cosmic_rays * length, 0.5)),
        trail=trail,
    )
    conditions = _spoilt(conditions, trouble)
    return Epoch(number, float(time), exposure, fwhm, ellipticity, trouble, conditions)


def _draw_trail(rng: np.random.Generator, shape: tuple[int, int]) -> Trail | None:
    """A satellite in one frame of twelve."""
    x, y = rng.uniform(0, shape[1]), rng.uniform(0, shape[0])
    trail = Trail(x, y, rng.uniform(0.0, 180.0), rng.uniform(200.0, 3000.0), rng.uniform(1.3, 2.5))
    return trail if rng.uniform() < 1 / 12 else None


def _draw_trouble(rng: np.random.Generator, bad_share: float) -> Trouble:
    bad = [trouble for trouble in Trouble if trouble is not Trouble.NONE]
    which = bad[rng.integers(len(bad))]
    return which if rng.uniform() < bad_share else Trouble.NONE


def _spoilt(conditions: Conditions, trouble: Trouble) -> Conditions:
    """The same conditions with a thick cloud, a telescope out of focus, or the Sun coming up."""
    if trouble is Trouble.CLOUD:
        sky = tuple(1.6 * b for b in conditions.sky)
        return replace(conditions, scale=0.06 * conditions.scale, sky=sky)
    if trouble is Trouble.OUT_OF_FOCUS:
        return replace(conditions, kernel=_annulus(9.0, 4.0))
    if trouble is Trouble.TWILIGHT:
        return replace(conditions, sky=(38000.0, 9000.0, -4000.0))
    return conditions


def _annulus(outer: float, inner: float) -> FloatArray:
    """The pupil of a telescope far from focus, sum 1."""
    half = int(np.ceil(outer))
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    r = np.hypot(x, y)
    ring = np.clip(outer + 0.5 - r, 0.0, 1.0) * np.clip(r - inner + 0.5, 0.0, 1.0)
    annulus: FloatArray = ring / ring.sum()
    return annulus
