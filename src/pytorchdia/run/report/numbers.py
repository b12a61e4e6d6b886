"""The numbers behind the plots of a report, from the tables of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from ...metrics import FWHM_PER_SIGMA
from ..lightcurves import LightCurve, LightCurves

__all__ = ["Curve", "Scatter", "curve_of", "photon_limit", "scatter_of"]

FloatArray = NDArray[np.float64]

_VALUES = 4_000_000  # read at most for the scatter of the light curves
_STARS = 3000
_EPOCHS = 2000  # of one light curve that is drawn
_PER_MAG = 2.5 / np.log(10.0)


@dataclass(frozen=True)
class Curve:
    """Times [MJD], fluxes and errors [ADU of the reference], whether no flag is set."""

    time: FloatArray
    flux: FloatArray
    error: FloatArray
    clean: NDArray[np.bool_]


@dataclass(frozen=True)
class Scatter:
    """Scatter of light curves [mag], as a robust RMS, and two lines (magnitude, RMS)."""

    magnitude: FloatArray
    rms: FloatArray
    varies: NDArray[np.bool_]
    expected: tuple[FloatArray, FloatArray]
    limit: tuple[FloatArray, FloatArray] | None


def curve_of(light_curve: LightCurve) -> Curve:
    """What is drawn of a light curve; evenly thinned if it is very long."""
    table = light_curve.epochs
    known = ~np.logical_or.reduce(
        [np.ma.getmaskarray(table[name]) for name in ("time", "flux", "error")]
    )
    table = table[known]
    table = table[_thinned(len(table), _EPOCHS)]
    time, flux, error = (np.asarray(table[n], dtype=float) for n in ("time", "flux", "error"))
    return Curve(time, flux, error, np.asarray(table["flags"]) == 0)


def scatter_of(
    curves: LightCurves, variables: Sequence[int], conditions: Sequence[Mapping[str, Any]]
) -> Scatter | None:
    """Scatter of the light curves of bright and faint stars; None where there is none to see.

    Parameters
    ----------
    curves : LightCurves
    variables : sequence of int
        Stars that are candidates for variables.
    conditions : sequence of Mapping
        gain, fwhm, sky_scatter and scale of each frame that was used.
    """
    flux = np.ma.filled(curves.stars["flux"].astype(float), np.nan)
    order = np.argsort(-flux, kind="stable")
    order = order[np.isfinite(flux[order]) & (flux[order] > 0)]
    most = int(np.clip(_VALUES // max(1, len(conditions)), 100, _STARS))
    chosen = np.sort(order[_thinned(len(order), most)])
    stars = curves.ids[chosen]
    table = curves.dataset.to_table(
        columns=["star", "flux", "error"],
        filter=pc.field("star").isin(stars.tolist()) & (pc.field("flags") == 0),
    )
    star, value, error = (
        np.asarray(table[n].to_numpy(), dtype=float) for n in ("star", "flux", "error")
    )
    good = np.isfinite(value) & np.isfinite(error)
    rms, expected = _by_star(star[good], value[good], error[good], stars)
    known = np.isfinite(rms) & (rms > 0)
    if not known.any():
        return None
    base = flux[chosen][known]
    magnitude = 25.0 - 2.5 * np.log10(base)
    grid = np.linspace(magnitude.min(), magnitude.max(), 60)
    limit = photon_limit(10 ** (0.4 * (25.0 - grid)), conditions)
    return Scatter(
        magnitude, _PER_MAG * rms[known] / base, np.isin(stars[known], list(variables)),
        _running_median(magnitude, _PER_MAG * expected[known] / base),
        None if limit is None else (grid, limit),
    )  # fmt: skip


def _by_star(
    star: FloatArray, flux: FloatArray, error: FloatArray, stars: NDArray[np.int64]
) -> tuple[FloatArray, FloatArray]:
    """Robust RMS and median error of each star with three epochs or more; NaN for the others."""
    order = np.lexsort((flux, star))
    star, flux, error = star[order], flux[order], error[order]
    first, last = np.searchsorted(star, stars, "left"), np.searchsorted(star, stars, "right")
    rms, expected = np.full(len(stars), np.nan), np.full(len(stars), np.nan)
    for i, (a, b) in enumerate(zip(first, last, strict=True)):
        if b - a >= 3:
            middle = np.median(flux[a:b])
            rms[i] = 1.4826 * np.median(np.abs(flux[a:b] - middle))
            expected[i] = np.median(error[a:b])
    return rms, expected


def photon_limit(flux: FloatArray, conditions: Sequence[Mapping[str, Any]]) -> FloatArray | None:
    """Error [mag] of an isolated star fitted with a Gaussian PSF, median over the frames.

    Variance [ADU^2 of the reference]: F / (g P) + 4 pi s^2 (scatter of the sky / P)^2, with s the
    PSF's standard deviation.
    """
    names = ("gain", "fwhm", "sky_scatter", "scale")
    usable = [[c[n] for n in names] for c in conditions if all(c.get(n) for n in names)]
    if not usable:
        return None
    gain, fwhm, sky, scale = np.array(usable, dtype=float).T
    area = 4.0 * np.pi * (fwhm / FWHM_PER_SIGMA) ** 2
    variance = np.median(flux[:, None] / (gain * scale) + area * (sky / scale) ** 2, axis=1)
    error: FloatArray = _PER_MAG * np.sqrt(variance) / flux
    return error


def _running_median(x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
    order = np.argsort(x, kind="stable")
    parts = [p for p in np.array_split(order, max(1, min(30, len(order) // 8))) if len(p)]
    return (
        np.array([np.median(x[p]) for p in parts]),
        np.array([np.median(y[p]) for p in parts]),
    )


def _thinned(n: int, most: int) -> NDArray[np.int64]:
    """Indices of at most ``most`` of n, evenly spread."""
    return np.unique(np.linspace(0, max(n - 1, 0), min(n, most)).round().astype(np.int64))
