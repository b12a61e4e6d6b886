"""A simulated season: frames of one field over many nights, with the truth about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from astropy.wcs import WCS

from ...errors import InputError
from .. import Camera, Conditions, Exposure, MoffatPSF, expose
from .epochs import Epoch, Trouble, draw_epoch
from .field import Field, draw_field

__all__ = ["Season", "SeasonFrame"]

START = 58650.2
"""MJD (UTC) of the start of every season; its times count from here."""

_RA, _DEC, _PIXEL = 268.5, -29.1, 0.4  # degrees, degrees, arcsec
_DEFAULT_DENSITY = 1000 / 512**2  # constant stars per pixel


@dataclass(frozen=True)
class SeasonFrame:
    """One frame of a season.

    Attributes
    ----------
    epoch : Epoch
        When and how it was taken.
    exposure : Exposure
        Its pixels and the truth about them, before they become 16-bit integers.
    wcs : WCS, optional
        Exact.
    """

    epoch: Epoch
    exposure: Exposure
    wcs: WCS | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Season:
    """A season of frames of one field, each of them drawn from the seed and its own number alone.

    Positions and fluxes of the truth are those of the reference grid: the frame without shift and
    rotation, at scale 1 (120 s under a clear sky). A frame is the same whatever the number of
    frames is, so a season can be continued.

    Attributes
    ----------
    seed : int
    shape : (int, int)
        (h, w) of all frames.
    n_stars : int, optional
        Constant stars on the reference, in the mean; 1000 per 512 x 512 pixels if None.
    n_saturated : int
        Stars that saturate in every frame.
    n_variables : int
        Variable and new stars: microlensing, RR Lyrae, eclipses, a nova, and so on in turn.
    max_shift : float, optional
        Largest shift along an axis [pixels], reached by one frame of ten; the others stay within 6
        pixels. A quarter of the shorter side if None.
    max_rotation : float
        [degrees].
    cosmic_rays : float
        Share of pixels hit in 120 s.
    beta : float, optional
        Slope of Moffat's wings; None for Gaussian PSFs.
    bad_share : float
        Share of frames with a :class:`~pytorchdia.simulate.season.Trouble`.
    troubles : Mapping, optional
        From numbers of frames to their trouble, whatever ``bad_share`` says.
    with_wcs : bool
        Whether headers have world coordinates.
    """

    seed: int = 1
    shape: tuple[int, int] = (512, 512)
    n_stars: int | None = None
    n_saturated: int = 3
    n_variables: int = 8
    max_shift: float | None = None
    max_rotation: float = 0.05
    cosmic_rays: float = 1e-4
    beta: float | None = 3.0
    bad_share: float = 0.0
    troubles: Mapping[int, Trouble] | None = None
    with_wcs: bool = True

    def __post_init__(self) -> None:
        if min(self.shape) < 64:
            raise InputError(f"A season needs frames of at least 64 x 64 pixels, got {self.shape}.")
        counts = (self.seed, self.n_saturated, self.n_variables, self.n_stars or 0)
        if min(counts) < 0 or not 0.0 <= self.bad_share <= 1.0 or not 0 <= self.cosmic_rays < 0.1:
            raise InputError(
                "The seed and the numbers of stars must be at least 0, the share of bad frames "
                "between 0 and 1, and that of cosmic rays between 0 and 0.1; got "
                f"{self.seed}, {self.n_stars}, {self.n_saturated}, {self.n_variables}, "
                f"{self.bad_share:g} and {self.cosmic_rays:g}."
            )
        if self.reach < 0 or self.max_rotation < 0:
            raise InputError(
                "The largest shift and rotation must be at least 0, got "
                f"{self.reach:g} pixels and {self.max_rotation:g} degrees."
            )

    @property
    def reach(self) -> float:
        """``max_shift`` or its default [pixels]."""
        return 0.25 * min(self.shape) if self.max_shift is None else self.max_shift

    @property
    def camera(self) -> Camera:
        """With a dead column that the mask of each frame shows, and a weak one that it does not."""
        w = self.shape[1]
        return Camera(
            gain=1.6, read_noise=6.0, saturation=58000.0, bleeding=True,
            bad_columns=(round(0.29 * w),), hidden_columns=(round(0.67 * w),),
        )  # fmt: skip

    @cached_property
    def field(self) -> Field:
        """The stars."""
        h, w = self.shape
        n = round(_DEFAULT_DENSITY * h * w) if self.n_stars is None else self.n_stars
        turned = np.radians(self.max_rotation) * np.hypot(h, w)
        return draw_field(
            np.random.default_rng([self.seed, 0]), self.shape, n, self.n_saturated,
            self.n_variables, margin=self.reach + turned + 12.0,
        )  # fmt: skip

    def epoch(self, number: int) -> Epoch:
        """When and how frame ``number`` (from 0 on) was taken; quick, no pixel is drawn."""
        if number < 0:
            raise InputError(f"Frames are counted from 0 on, got {number}.")
        return draw_epoch(
            np.random.default_rng([self.seed, 1, number]), number, self.shape,
            max_shift=self.reach, max_rotation=self.max_rotation, cosmic_rays=self.cosmic_rays,
            beta=self.beta, bad_share=self.bad_share, trouble=(self.troubles or {}).get(number),
        )  # fmt: skip

    def frame(self, number: int) -> SeasonFrame:
        """Frame ``number``, from 0 on."""
        epoch = self.epoch(number)
        rng = np.random.default_rng([self.seed, 2, number])
        stars = self.field.at(epoch.time)
        exposure = expose(rng, stars, self.shape, epoch.conditions, self.camera)
        return SeasonFrame(epoch, exposure, self.wcs(epoch.conditions) if self.with_wcs else None)

    def ideal(self, time: float = 0.0, exposures: int = 20) -> SeasonFrame:
        """A deep sharp exposure on the reference grid, without defects, as no telescope gives it.

        Parameters
        ----------
        time : float
            At which the variable stars are seen [days from the start].
        exposures : int
            It is the mean of so many.
        """
        conditions = Conditions(MoffatPSF(2.8), sky=(350.0,), exposures=exposures)
        camera = Camera(self.camera.gain, self.camera.read_noise)
        rng = np.random.default_rng([self.seed, 3])
        exposure = expose(rng, self.field.at(time), self.shape, conditions, camera)
        epoch = Epoch(-1, time, 120.0, 2.8, 0.0, Trouble.NONE, conditions)
        return SeasonFrame(epoch, exposure, self.wcs(epoch.conditions) if self.with_wcs else None)

    def wcs(self, conditions: Conditions | None = None) -> WCS:
        """The exact tangential projection of a frame; of the reference grid if None."""
        seen = Conditions(MoffatPSF(1.0)) if conditions is None else conditions
        matrix = seen.matrix(self.shape)
        middle = matrix @ [0.5 * (self.shape[1] - 1), 0.5 * (self.shape[0] - 1), 1.0]
        wcs = WCS(naxis=2)
        wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
        wcs.wcs.crval = [_RA, _DEC]
        wcs.wcs.crpix = middle + 1.0
        scale = np.diag([-_PIXEL / 3600.0, _PIXEL / 3600.0])
        wcs.wcs.cd = scale @ np.linalg.inv(matrix[:, :2])
        return wcs
