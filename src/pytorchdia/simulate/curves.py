"""Light curves of variable and new stars: flux [ADU] at times [days]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..errors import InputError
from .stars import FloatArray

__all__ = ["Eclipse", "LightCurveModel", "Microlensing", "Nova", "RRLyrae"]


class LightCurveModel(Protocol):
    """Anything that knows its flux at any time."""

    def flux(self, time: FloatArray) -> FloatArray:
        """[ADU] at ``time`` [days], of the same shape."""


@dataclass(frozen=True)
class Microlensing:
    """A point source and a point lens that pass each other uniformly (Paczynski 1986).

    Attributes
    ----------
    baseline : float
        Flux of the source without the lens [ADU].
    peak : float
        t_0, of the closest approach [days].
    duration : float
        t_E, in which the lens moves by an Einstein radius [days].
    impact : float
        u_0, the closest approach in Einstein radii.
    """

    baseline: float
    peak: float
    duration: float
    impact: float

    def __post_init__(self) -> None:
        _positive("duration", self.duration)
        _positive("impact parameter", self.impact)

    def flux(self, time: FloatArray) -> FloatArray:
        """Baseline times A(u) = (u^2 + 2) / (u sqrt(u^2 + 4))."""
        u2 = self.impact**2 + ((np.asarray(time) - self.peak) / self.duration) ** 2
        flux: FloatArray = self.baseline * (u2 + 2.0) / np.sqrt(u2 * (u2 + 4.0))
        return flux


@dataclass(frozen=True)
class RRLyrae:
    """A saw-tooth in magnitudes as RR Lyrae stars have it: up within ``rise``, slowly down.

    Attributes
    ----------
    mean : float
        Flux at the mean magnitude [ADU].
    period : float
        [days].
    amplitude : float
        From minimum to maximum [mag].
    epoch : float
        Of a maximum [days].
    rise : float
        Share of the period from minimum to maximum.
    """

    mean: float
    period: float
    amplitude: float
    epoch: float = 0.0
    rise: float = 0.2

    def __post_init__(self) -> None:
        _positive("period", self.period)
        if not 0.0 < self.rise < 1.0:
            raise InputError(f"The rise must be between 0 and 1 of a period, got {self.rise:g}.")

    def flux(self, time: FloatArray) -> FloatArray:
        """Two half waves of a cosine in magnitudes, of unequal length."""
        phase = np.mod((np.asarray(time) - self.epoch) / self.period, 1.0)
        fall = 1.0 - self.rise
        angle = np.where(
            phase < fall, np.pi * phase / fall, np.pi * (1.0 + (phase - fall) / self.rise)
        )
        flux: FloatArray = self.mean * 10.0 ** (0.2 * self.amplitude * np.cos(angle))
        return flux


@dataclass(frozen=True)
class Eclipse:
    """A detached eclipsing binary with two minima, half a period apart.

    Attributes
    ----------
    out : float
        Flux outside the eclipses [ADU].
    period : float
        [days].
    depth, second_depth : float
        Share of the flux that is lost in the middle of the first and of the second eclipse.
    width : float
        Share of the period from first to last contact of one eclipse; half of it is flat.
    epoch : float
        Middle of a first eclipse [days].
    """

    out: float
    period: float
    depth: float
    second_depth: float
    width: float = 0.2
    epoch: float = 0.0

    def __post_init__(self) -> None:
        _positive("period", self.period)
        if not 0.0 < self.width <= 0.5 or not 0.0 <= self.second_depth <= self.depth <= 1.0:
            raise InputError(
                "An eclipse needs a width up to half a period and depths from 0 to 1, the first "
                f"the deeper one; got {self.width:g}, {self.depth:g} and {self.second_depth:g}."
            )

    def flux(self, time: FloatArray) -> FloatArray:
        """Trapezia."""
        phase = np.mod((np.asarray(time) - self.epoch) / self.period, 1.0)
        first = np.minimum(phase, 1.0 - phase)
        lost = self.depth * self._inside(first)
        lost = lost + self.second_depth * self._inside(np.abs(phase - 0.5))
        flux: FloatArray = self.out * (1.0 - lost)
        return flux

    def _inside(self, distance: FloatArray) -> FloatArray:
        """1 in the flat half of an eclipse, falling to 0 at its contacts."""
        half = 0.5 * self.width
        inside: FloatArray = np.clip((half - distance) / (0.5 * half), 0.0, 1.0)
        return inside


@dataclass(frozen=True)
class Nova:
    """A new star: nothing, a linear rise, and an exponential decline.

    Attributes
    ----------
    height : float
        Flux at maximum [ADU].
    start : float
        Of the rise [days].
    rise : float
        From nothing to maximum [days].
    decline : float
        In which the flux falls by a factor e [days].
    """

    height: float
    start: float
    rise: float = 1.0
    decline: float = 12.0

    def __post_init__(self) -> None:
        _positive("rise", self.rise)
        _positive("decline", self.decline)

    def flux(self, time: FloatArray) -> FloatArray:
        """0 before the start."""
        since = np.asarray(time) - self.start
        up = np.clip(since / self.rise, 0.0, 1.0)
        flux: FloatArray = (
            self.height * up * np.exp(-np.maximum(since - self.rise, 0) / self.decline)
        )
        return flux


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise InputError(f"The {name} of a light curve must be above 0, got {value:g}.")
