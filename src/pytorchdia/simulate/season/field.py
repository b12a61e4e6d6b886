"""The field of a simulated season: constant stars and known variables, and where they stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .. import Eclipse, LightCurveModel, Microlensing, Nova, RRLyrae, Stars
from ..stars import FloatArray

__all__ = ["Field", "Variable", "draw_field"]

_MAGNITUDES = (11.5, 18.0)  # flux = 10^(0.4 (25 - m)): 630 to 250 000 ADU
_SLOPE = 0.25  # lg of the number of stars per magnitude
_BRIGHTEST = (2e6, 4e6)  # ADU: these saturate at any seeing


@dataclass(frozen=True)
class Variable:
    """A star whose light curve is known.

    Attributes
    ----------
    star : int
        Its index among the stars of the field.
    curve : LightCurveModel
        Flux [ADU] on the reference scale at times in days from the start of the season.
    """

    star: int
    curve: LightCurveModel

    @property
    def kind(self) -> str:
        """Name of the class of its curve."""
        return type(self.curve).__name__


@dataclass(frozen=True)
class Field:
    """Stars on the grid of the reference, in the frame and around it.

    Attributes
    ----------
    stars : Stars
        Fluxes [ADU] on the reference scale; those of variables are their fluxes at time 0.
    variables : tuple of Variable
    """

    stars: Stars
    variables: tuple[Variable, ...]

    def at(self, time: float) -> Stars:
        """The stars at ``time`` [days from the start]."""
        flux = self.stars.flux.copy()
        for variable in self.variables:
            flux[variable.star] = variable.curve.flux(np.array(time))
        return Stars(self.stars.x, self.stars.y, flux)

    def inside(self, shape: tuple[int, int]) -> NDArray[np.bool_]:
        """(n,), True for the stars that lie in the reference of ``shape`` (h, w)."""
        x, y = self.stars.x, self.stars.y
        h, w = shape
        found: NDArray[np.bool_] = (x > -0.5) & (x < w - 0.5) & (y > -0.5) & (y < h - 0.5)
        return found


def draw_field(
    rng: np.random.Generator,
    shape: tuple[int, int],
    n_stars: int,
    n_saturated: int,
    n_variables: int,
    margin: float,
) -> Field:
    """A field whose reference holds ``n_stars`` constant stars, on average, and all the variables.

    Parameters
    ----------
    rng : numpy.random.Generator
    shape : (int, int)
        (h, w) of the reference.
    n_stars, n_saturated, n_variables : int
        Constant stars, in the mean, within the reference; stars that saturate; variable and new
        stars.
    margin : float
        Stars reach so far beyond the reference [pixels].
    """
    h, w = shape
    places = _quiet_places(rng, shape, n_variables + n_saturated)
    curves = [_draw_curve(rng, k) for k in range(n_variables)]
    bright = rng.uniform(*_BRIGHTEST, n_saturated)
    n = round(n_stars * (h + 2 * margin) * (w + 2 * margin) / (h * w))
    x, y = rng.uniform(-margin, w + margin, n), rng.uniform(-margin, h + margin, n)
    low, high = (10 ** (_SLOPE * m) for m in _MAGNITUDES)
    flux = 10 ** (0.4 * (25.0 - np.log10(rng.uniform(low, high, n)) / _SLOPE))
    own = np.array([float(curve.flux(np.array(0.0))) for curve in curves])
    stars = Stars(
        np.concatenate([places[0], x]),
        np.concatenate([places[1], y]),
        np.concatenate([own, bright, flux]),
    )
    return Field(stars, tuple(Variable(k, curve) for k, curve in enumerate(curves)))


def _quiet_places(
    rng: np.random.Generator, shape: tuple[int, int], n: int
) -> tuple[FloatArray, FloatArray]:
    """(x, y) in the inner part of the frame, each the farthest of 30 draws from those before."""
    chosen = np.zeros((0, 2))
    for _ in range(n):
        drawn = rng.uniform(0.18, 0.82, (30, 2)) * (np.array([shape[1], shape[0]]) - 1.0)
        if chosen.size:
            gap = np.linalg.norm(drawn[:, None] - chosen, axis=2).min(axis=1)
            chosen = np.vstack([chosen, drawn[np.argmax(gap)]])
        else:
            chosen = drawn[:1]
    return chosen[:, 0], chosen[:, 1]


def _draw_curve(rng: np.random.Generator, number: int) -> LightCurveModel:
    """Microlensing, RR Lyrae, eclipses and a nova in turn; the first four within ten days."""
    round_ = number // 4
    start = 2.0 + 25.0 * round_
    kinds: Sequence[LightCurveModel] = (
        Microlensing(
            baseline=rng.uniform(4e3, 1e4), peak=start + rng.uniform(1.0, 3.0),
            duration=rng.uniform(3.0, 8.0) * (1 + round_), impact=rng.uniform(0.1, 0.4),
        ),
        RRLyrae(
            mean=rng.uniform(8e3, 3e4), period=rng.uniform(0.4, 0.7),
            amplitude=rng.uniform(0.5, 1.1), epoch=rng.uniform(0.0, 0.7),
        ),
        Eclipse(
            out=rng.uniform(1e4, 4e4), period=rng.uniform(0.8, 3.0), depth=rng.uniform(0.4, 0.7),
            second_depth=rng.uniform(0.05, 0.3), epoch=rng.uniform(0.0, 1.0),
        ),
        Nova(height=rng.uniform(1.5e4, 4e4), start=start + rng.uniform(0.0, 2.0)),
    )  # fmt: skip
    return kinds[number % 4]
