"""How well the run of a simulated season gives back what is true of it.

Constant stars scatter by their errors, or they do not; injected light curves come back without
bias, or they do not; and every candidate is a star that varies, or a false one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from astropy.stats import mad_std
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from ..errors import InputError
from ..run.lightcurves import LightCurve, LightCurves
from ..run.state import State
from ..simulate import Stars, render
from ..simulate.season import Truth, frame_number, read_truth
from ..stars.photometry import FluxFlag

__all__ = ["CurveRow", "PhotonLimit", "PullRow", "Recovery", "recover"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

ZERO_POINT = 25.0
"""Magnitude of 1 ADU on the scale of the truth."""

_NEAR = 1.0  # pixel, between a star of the catalogue and its truth
_OF_CHANGE = 2.5  # pixels, between a candidate and a star that varies
_LEAST_EPOCHS = 5
_HALF = 12  # half-width of the stamps of which the photon limit is computed


@dataclass(frozen=True)
class PullRow:
    """Constant stars between two magnitudes.

    Attributes
    ----------
    bright, faint : float
        The limits [mag].
    stars, points : int
        How many, and how many fluxes without a flag they have.
    pulls : float
        Robust scale of (flux - mean of the star) / error; 1 if the errors are right.
    pulls_with_scale : float
        The same with the error of P, which all stars of an epoch share, in the error.
    beyond_5 : float
        Share of pulls beyond 5.
    """

    bright: float
    faint: float
    stars: int
    points: int
    pulls: float
    pulls_with_scale: float
    beyond_5: float


@dataclass(frozen=True)
class CurveRow:
    """An injected variable.

    Attributes
    ----------
    star : int
        Its number in the truth.
    kind : str
    candidate : int or None
        Number of the candidate; None if it was not found.
    significance : float
        The largest in a single epoch that its true light curve makes [sigma].
    slope, slope_error : float
        Of the measured against the true flux; 1 if nothing is lost. NaN where nothing is measured.
    pulls : float
        Robust scale of (measured - true flux) / error, the mean taken off, P's error included.
    epochs : int
        Without a flag but BAD_FIT.
    """

    star: int
    kind: str
    candidate: int | None
    significance: float
    slope: float
    slope_error: float
    pulls: float
    epochs: int


@dataclass(frozen=True)
class PhotonLimit:
    """Fluxes of faint constant stars over the limit that the photons set for a known PSF.

    Attributes
    ----------
    error, scatter : float
        Median of error / limit; robust scale of (flux - median of the star) / limit.
    points : int
    """

    error: float
    scatter: float
    points: int


@dataclass(frozen=True)
class Recovery:
    """What :func:`recover` found.

    Attributes
    ----------
    stars, matched : int
        In the catalogue, and those of them that are stars of the truth.
    epochs : int
    pulls : tuple of PullRow
    curves : tuple of CurveRow
    false : tuple of int
        Numbers of the candidates, not doubtful ones, where no star varies.
    doubtful : int
        Candidates that are said to be doubtful.
    photon_limit : PhotonLimit
    """

    stars: int
    matched: int
    epochs: int
    pulls: tuple[PullRow, ...]
    curves: tuple[CurveRow, ...]
    false: tuple[int, ...]
    doubtful: int
    photon_limit: PhotonLimit


def recover(season: Path | str, run: Path | str) -> Recovery:
    """Compare a run with the truth of its season.

    Parameters
    ----------
    season : Path or str
        Folder that ``pytorchdia simulate`` wrote.
    run : Path or str
        Folder that ``pytorchdia reduce`` wrote.

    Raises
    ------
    InputError
        The run has too few epochs, or no star of the truth.
    ReadError
        One of them cannot be read.
    """
    joined = _Joined(read_truth(season), LightCurves(run))
    if len(joined.names) < _LEAST_EPOCHS or not (joined.star >= 0).any():
        raise InputError(
            f"{run} has {len(joined.names)} epochs and {int((joined.star >= 0).sum())} stars of "
            f"the truth in {season}; at least {_LEAST_EPOCHS} epochs and some stars are needed."
        )
    curves = tuple(_curve_row(joined, int(k)) for k in np.flatnonzero(joined.varies))
    table = joined.curves.candidates
    doubtful = np.asarray(table["kind"]) == "doubtful"
    real = joined.change_near(np.asarray(table["x"]), np.asarray(table["y"])) >= 0
    return Recovery(
        stars=len(joined.star),
        matched=int((joined.star >= 0).sum()),
        epochs=len(joined.names),
        pulls=tuple(_pull_rows(joined)),
        curves=curves,
        false=tuple(np.asarray(table["candidate"])[~real & ~doubtful].tolist()),
        doubtful=int(doubtful.sum()),
        photon_limit=_photon_limit(joined),
    )


class _Joined:
    """The catalogue and the fluxes of a run beside the truth.

    Attributes
    ----------
    star : ndarray of int
        For each star of the catalogue the brightest one of the truth near it, or -1, (n,).
    names : list of str
        Of the epochs.
    flux, error, flags : ndarray
        (epochs, n).
    scale_error : ndarray
        Relative error of P, (epochs, n).
    """

    def __init__(self, truth: Truth, curves: LightCurves) -> None:
        self.truth, self.curves = truth, curves
        state = State.read(curves.run, "reference", "reference")
        if state is None:
            raise InputError(f"The reference of {curves.run} is not made yet.")
        self.x, self.y = truth.places(frame_number(state.values["grid"]))
        self.true_flux = np.asarray(truth.stars["flux"], dtype=np.float64)
        self.varies = np.asarray(truth.stars["kind"]) != "constant"
        tree = cKDTree(np.column_stack([self.x, self.y]))
        catalogue = np.column_stack([curves.stars["x"], curves.stars["y"]])
        near = tree.query_ball_point(catalogue, _NEAR)
        self.star = np.array([max(n, key=self.true_flux.__getitem__) if n else -1 for n in near])
        table = curves.dataset.to_table()
        frame = np.array(table["frame"].to_pylist())
        self.names: list[str] = sorted(set(frame.tolist()))
        order = np.lexsort((np.asarray(table["star"]), frame))

        def grid(name: str) -> FloatArray:
            column = np.asarray(table[name].to_numpy(zero_copy_only=False), dtype=np.float64)
            return column[order].reshape(len(self.names), len(catalogue))

        self.flux, self.error = grid("flux"), grid("error")
        self.flags = grid("flags").astype(np.int64)
        self.scale_error = grid("scale_error") / grid("scale")

    @cached_property
    def numbers(self) -> list[int]:
        """Of the epochs in the season."""
        return [frame_number(name) for name in self.names]

    @cached_property
    def clean(self) -> NDArray[np.bool_]:
        """Stars of the catalogue that are constant and without a flag on the reference, (n,)."""
        flags = np.asarray(self.curves.stars["flags"], dtype=np.int64)
        chosen: NDArray[np.bool_] = (self.star >= 0) & ~self.varies[self.star] & (flags == 0)
        return chosen

    @cached_property
    def scale(self) -> float:
        """ADU of the reference for one ADU of the truth."""
        flux = np.ma.filled(self.curves.stars["flux"].astype(float), np.nan)[self.clean]
        true = self.true_flux[self.star[self.clean]]
        bright = true >= np.percentile(true, 70.0)
        return float(np.nanmedian(flux[bright] / true[bright]))

    @cached_property
    def good(self) -> NDArray[np.bool_]:
        """Fluxes without a flag, (epochs, n)."""
        good: NDArray[np.bool_] = (self.flags == 0) & np.isfinite(self.flux)
        return good & np.isfinite(self.error)

    def change_near(self, x: FloatArray, y: FloatArray) -> IntArray:
        """The nearest star that varies to each place, by its number in the truth, or -1."""
        which = np.flatnonzero(self.varies)
        if not len(which) or not len(x):
            return np.full(len(x), -1, dtype=np.int64)
        tree = cKDTree(np.column_stack([self.x[which], self.y[which]]))
        distance, nearest = tree.query(np.column_stack([x, y]))
        return np.where(distance <= _OF_CHANGE, which[nearest], -1)


def _spread(values: FloatArray) -> float:
    return float(mad_std(values)) if len(values) else np.nan


def _pull_rows(joined: _Joined) -> list[PullRow]:
    good = joined.good
    weight = np.where(good, 1.0 / np.where(good, joined.error, 1.0) ** 2, 0.0)
    total = np.where(weight.sum(axis=0) > 0, weight.sum(axis=0), 1.0)
    mean = np.where(good, weight * joined.flux, 0.0).sum(axis=0) / total
    left = np.sqrt(np.maximum(1.0 - weight / total, 1e-6))  # the mean follows its own star
    deviation = np.where(good, joined.flux - mean, 0.0)
    shared = joined.scale_error * joined.scale * joined.true_flux[joined.star]
    error = np.where(good, joined.error, 1.0)
    plain, whole = deviation / (error * left), deviation / (np.hypot(error, shared) * left)
    with np.errstate(divide="ignore"):  # novae have no flux at first
        magnitude = ZERO_POINT - 2.5 * np.log10(joined.true_flux[joined.star])
    usable = joined.clean & (good.sum(axis=0) >= _LEAST_EPOCHS)
    rows = []
    low, high = np.floor(magnitude[usable].min()), np.ceil(magnitude[usable].max())
    for bright in np.arange(low, high):
        chosen = usable & (magnitude >= bright) & (magnitude < bright + 1.0)
        here = good & chosen
        if here.any():
            rows.append(PullRow(
                float(bright), float(bright) + 1.0, int(chosen.sum()), int(here.sum()),
                _spread(plain[here]), _spread(whole[here]),
                float(np.mean(np.abs(plain[here]) > 5.0)),
            ))  # fmt: skip
    return rows


def _curve_row(joined: _Joined, star: int) -> CurveRow:
    """A variable as it is followed, or as a star of the catalogue if it was not found."""
    table = joined.curves.candidates
    near = joined.change_near(np.asarray(table["x"]), np.asarray(table["y"])) == star
    found = np.flatnonzero(near & (np.asarray(table["kind"]) != "doubtful"))
    candidate = int(table["candidate"][found[0]]) if len(found) else None
    kind = str(joined.truth.stars["kind"][star])
    curve = _measured(joined, star, candidate)
    if curve is None:
        return CurveRow(star, kind, candidate, np.nan, np.nan, np.nan, np.nan, 0)
    flux, error, flags, scale_error = _columns(curve, joined.names)
    true = joined.truth.light_curve(star, joined.numbers) * joined.scale
    good = np.isfinite(flux) & np.isfinite(error) & (flags & ~int(FluxFlag.BAD_FIT) == 0)
    if good.sum() < _LEAST_EPOCHS:
        return CurveRow(star, kind, candidate, np.nan, np.nan, np.nan, np.nan, int(good.sum()))
    flux, true, scale_error = flux[good], true[good], scale_error[good]
    # True relative to the reference, whose own flux the variable had a share of.
    total = np.hypot(error[good], scale_error * true)
    w = 1.0 / total**2
    f, t = flux - np.average(flux, weights=w), true - np.average(true, weights=w)
    information = float((w * t * t).sum())
    return CurveRow(
        star, kind, candidate, float(np.max(np.abs(t) / error[good])),
        float((w * t * f).sum()) / information, information**-0.5,
        _spread((f - t) / total), int(good.sum()),
    )  # fmt: skip


def _measured(joined: _Joined, star: int, candidate: int | None) -> LightCurve | None:
    if candidate is not None:
        return joined.curves.candidate(candidate)
    mine = np.flatnonzero(joined.star == star)
    return joined.curves[int(joined.curves.ids[mine[0]])] if len(mine) else None


def _columns(
    curve: LightCurve, names: Sequence[str]
) -> tuple[FloatArray, FloatArray, IntArray, FloatArray]:
    """Flux, error, flags and the relative error of P in the order of ``names``."""
    row = {str(name): i for i, name in enumerate(curve.epochs["frame"])}
    table = curve.epochs[[row[name] for name in names]]

    def values(name: str) -> Any:
        return np.ma.filled(table[name].astype(float), np.nan)

    flags = np.asarray(table["flags"], dtype=np.int64)
    return values("flux"), values("error"), flags, values("scale_error") / values("scale")


def _photon_limit(joined: _Joined, most_stars: int = 60, most_epochs: int = 12) -> PhotonLimit:
    """For faint stars in epochs spread over the season, with the true PSF and the true noise."""
    faint = joined.clean & (joined.true_flux[joined.star] <= np.median(
        joined.true_flux[joined.star[joined.clean]]
    ))  # fmt: skip
    chosen = np.flatnonzero(faint & joined.good.any(axis=0))
    chosen = chosen[np.unique(np.linspace(0, len(chosen) - 1, most_stars).round().astype(int))]
    epochs = np.unique(np.linspace(0, len(joined.names) - 1, most_epochs).round().astype(int))
    middle = np.nanmedian(np.where(joined.good, joined.flux, np.nan)[:, chosen], axis=0)
    errors, deviations = [], []
    for e in epochs:
        number = joined.numbers[e]
        frame = joined.truth.season.frame(number)
        x, y = joined.truth.places(number)
        for k, centre in zip(chosen, middle, strict=True):
            if not joined.good[e, k]:
                continue
            star = joined.star[k]
            limit = _least_error(frame.exposure, float(x[star]), float(y[star]))
            if np.isfinite(limit):
                errors.append(joined.error[e, k] / (joined.scale * limit))
                deviations.append((joined.flux[e, k] - centre) / (joined.scale * limit))
    return PhotonLimit(
        float(np.median(errors)) if errors else np.nan, _spread(np.array(deviations)), len(errors)
    )


def _least_error(exposure: Any, x: float, y: float) -> float:
    """Error of the flux of a star with a known PSF on a flat field [ADU at scale 1]."""
    ix, iy = round(x), round(y)
    h, w = exposure.noiseless.shape
    if not (_HALF <= ix < w - _HALF and _HALF <= iy < h - _HALF):
        return np.nan
    size = 2 * _HALF + 1
    one = Stars(*(np.array([v]) for v in (x - ix + _HALF, y - iy + _HALF, 1.0)))
    psf = exposure.conditions.scale * render(exposure.conditions.psf, one, (size, size))
    here = (slice(iy - _HALF, iy + _HALF + 1), slice(ix - _HALF, ix + _HALF + 1))
    return float(((psf / exposure.sigma[here]) ** 2).sum() ** -0.5)
