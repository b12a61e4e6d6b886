"""A camera and what it does to the light: noise, saturation, bleeding, columns, cosmic rays."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .stars import FloatArray

__all__ = ["Camera", "CosmicRays", "Defect", "Trail", "bleed"]

BoolArray = NDArray[np.bool_]


class Defect(enum.IntFlag):
    """What spoils a pixel of a simulated exposure: the truth, much of it unknown to a reduction."""

    COSMIC_RAY = 1
    SATURATED = 2
    BAD_COLUMN = 4
    HIDDEN_COLUMN = 8
    TRAIL = 16
    BLED = 32  # charge of a saturated pixel of its column ended here


@dataclass(frozen=True)
class Camera:
    """A CCD with unit flat-field.

    Attributes
    ----------
    gain : float
        [e-/ADU].
    read_noise : float
        [electrons].
    saturation : float
        Full well [ADU]; no pixel shows more. Infinite if nothing saturates.
    bleeding : bool
        Whether charge above full well runs along the columns.
    bad_columns : tuple of int
        Dead columns that the observatory's mask knows of.
    hidden_columns : tuple of int
        Columns that lose light and that no mask knows of.
    hidden_response : float
        Share of the light that hidden columns show.
    """

    gain: float = 1.0
    read_noise: float = 5.0
    saturation: float = float("inf")
    bleeding: bool = False
    bad_columns: tuple[int, ...] = ()
    hidden_columns: tuple[int, ...] = ()
    hidden_response: float = 0.6

    def __post_init__(self) -> None:
        if not self.gain > 0 or not self.read_noise >= 0 or not self.saturation > 0:
            raise InputError(
                "A camera needs a gain and a saturation above 0 and a read noise of at least 0, "
                f"got {self.gain:g}, {self.saturation:g} and {self.read_noise:g}."
            )
        if self.bleeding and not np.isfinite(self.saturation):
            raise InputError("Charge bleeds above full well only; give a finite saturation.")

    def sigma(self, noiseless: FloatArray, exposures: int = 1) -> FloatArray:
        """Standard deviation [ADU] of the mean of some exposures (eq 6)."""
        variance = (self.read_noise / self.gain) ** 2 + np.maximum(noiseless, 0.0) / self.gain
        sigma: FloatArray = np.sqrt(variance / exposures)
        return sigma

    def response(self, shape: tuple[int, int]) -> FloatArray:
        """Share of the light that each column shows, (w,)."""
        columns = (*self.bad_columns, *self.hidden_columns)
        if any(not 0 <= column < shape[1] for column in columns):
            raise InputError(
                f"The columns {columns} do not all lie in an image {shape[1]} pixels wide."
            )
        response = np.ones(shape[1])
        response[list(self.hidden_columns)] = self.hidden_response
        response[list(self.bad_columns)] = 0.0
        return response

    def read_out(
        self,
        rng: np.random.Generator,
        noiseless: FloatArray,
        hits: FloatArray,
        exposures: int = 1,
    ) -> tuple[FloatArray, BoolArray]:
        """The image [ADU] of so much light: Poisson noise, hits [ADU], full well, read noise.

        Also where charge of other pixels was added.
        """
        electrons = rng.poisson(np.maximum(noiseless, 0.0) * (self.gain * exposures))
        image = electrons / (self.gain * exposures) + hits
        bled = np.zeros(image.shape, dtype=bool)
        if self.bleeding:
            charge, image = image, bleed(image, self.saturation)
            bled = image > charge
        full = image >= self.saturation  # such a pixel shows its full well, whatever the read noise
        image += rng.standard_normal(image.shape) * (self.read_noise / self.gain / exposures**0.5)
        read: FloatArray = np.where(full, self.saturation, np.minimum(image, self.saturation))
        return read, bled


@dataclass(frozen=True)
class CosmicRays:
    """Hits of cosmic rays: short straight tracks of random direction, length and energy.

    Attributes
    ----------
    share : float
        Share of the pixels that are hit, but for tracks that cross or leave the frame.
    energy : (float, float)
        Limits of the energy per pixel [ADU]; its logarithm is uniform.
    longest : int
        Tracks are from 1 to this many pixels long.
    """

    share: float = 0.0
    energy: tuple[float, float] = (200.0, 20000.0)
    longest: int = 6

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1 or not 0 < self.energy[0] <= self.energy[1] or self.longest < 1:
            raise InputError(
                "Cosmic rays need a share from 0 to below 1, rising energies above 0 and a length "
                f"of at least 1, got {self.share:g}, {self.energy} and {self.longest}."
            )

    def hits(self, rng: np.random.Generator, shape: tuple[int, int]) -> FloatArray:
        """The light that they add [ADU], (h, w)."""
        added = np.zeros(shape)
        n = rng.poisson(self.share * added.size * 2.0 / (1 + self.longest))
        y, x = rng.uniform(0, shape[0], n), rng.uniform(0, shape[1], n)
        angle, length = rng.uniform(0, 2 * np.pi, n), rng.integers(1, self.longest + 1, n)
        step = np.stack([np.sin(angle), np.cos(angle)])
        step /= np.abs(step).max(axis=0)  # each step enters a new pixel
        along = np.arange(self.longest)[:, None]
        rows = np.floor(y + along * step[0]).astype(int)
        columns = np.floor(x + along * step[1]).astype(int)
        low, high = np.log(self.energy)
        energy = np.exp(rng.uniform(low, high, rows.shape))
        inside = (along < length) & (rows >= 0) & (rows < shape[0])
        inside &= (columns >= 0) & (columns < shape[1])
        np.add.at(added, (rows[inside], columns[inside]), energy[inside])
        return added


@dataclass(frozen=True)
class Trail:
    """The trail of a satellite: a straight line of light.

    Attributes
    ----------
    x, y : float
        A point of it [pixels].
    angle : float
        From +x towards +y [degrees].
    peak : float
        [ADU] on its middle line.
    width : float
        Gaussian width across it [pixels].
    """

    x: float
    y: float
    angle: float
    peak: float
    width: float = 1.7

    def light(self, shape: tuple[int, int]) -> FloatArray:
        """[ADU], (h, w); the peak falls to 0.03 % at 4 widths, beyond which nothing is left."""
        rows, columns = np.arange(shape[0])[:, None], np.arange(shape[1])
        cos, sin = np.cos(np.radians(self.angle)), np.sin(np.radians(self.angle))
        across = ((rows - self.y) * cos - (columns - self.x) * sin) / self.width
        light: FloatArray = np.where(
            np.abs(across) < 4.0, self.peak * np.exp(-0.5 * across**2), 0.0
        )
        return light


def bleed(image: FloatArray, full_well: float) -> FloatArray:
    """``image`` with what exceeds ``full_well`` spilt along the columns, half of it each way.

    Charge is conserved but for what runs over the first and the last row.
    """
    filled: FloatArray = np.minimum(image, full_well)
    columns = np.flatnonzero((image > full_well).any(axis=0))
    spilt = 0.5 * np.maximum(image[:, columns] - full_well, 0.0)
    part = filled[:, columns]
    for step in (1, -1):
        carried = np.zeros(columns.size)
        for row, half in zip(part[::step], spilt[::step], strict=True):
            level = np.minimum(row + carried, full_well)
            carried = np.maximum(carried - (level - row), 0.0) + half
            row[:] = level
    filled[:, columns] = part
    return filled
