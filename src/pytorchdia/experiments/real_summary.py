"""From the fits of all stamps to Table 3 and to the scatter of the light curves (section 4.3)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..metrics import (
    mean_photometric_bias,
    mean_photometric_variance,
    robust_scale,
    within_robust_cut,
)
from .cells import CELLS, SNR_REGIMES, CellValue
from .series import Series

__all__ = ["REAL_METHODS", "Row", "Scatter", "SeriesSummary", "rows_of", "summarise_series"]

FloatArray = NDArray[np.float64]

REAL_METHODS = ("b08", "huber", "plain", "prior")
"""B08 with sigma clipping; the paper's robust loss; eq 8; the robust loss under the prior."""
STRIPS = 4  # parts of the frame along x, each with a P_true of its own
MAGNITUDE = 2.5 / math.log(10.0)


@dataclass(frozen=True)
class Row:
    """One stamp at one epoch by one method; fluxes are on the reference's scale [ADU]."""

    epoch: str
    time: float
    star: int
    y: int
    x: int
    method: str
    phi_r: float
    phi_i: float
    phi_k: float
    kernel: int
    status: str
    snr: float
    P: float
    mfb: float
    mfv: float
    flux: float
    sigma_min: float


@dataclass(frozen=True)
class Scatter:
    """How the light curve of one star scatters by one method [ADU].

    ``least`` is the median of sigma_min over its epochs: the scatter of noise alone.
    """

    method: str
    star: int
    flux: float
    rms: float
    robust: float
    least: float
    n: int


@dataclass(frozen=True)
class SeriesSummary:
    """Everything that the page and the picture show."""

    series: Series
    rows: tuple[Row, ...]
    cells: tuple[CellValue, ...]
    kept: dict[tuple[str, str], int]
    scatter: tuple[Scatter, ...]

    def cell_rows(self) -> list[dict[str, object]]:
        """A line for each metric of each method in each cell."""
        return [
            {
                "method": c.method, "metric": c.metric, "regime": c.cell.regime,
                "cell": c.cell.name, "value": c.value, "p16": c.low, "p84": c.high,
                "standard_error": c.error, "n": c.n,
            }
            for c in self.cells
        ]  # fmt: skip

    def scatter_rows(self) -> list[dict[str, object]]:
        """A line for each star and method."""
        return [dict(vars(s)) for s in self.scatter]

    def ratios(self, measure: str, method: str, to: str = "huber") -> FloatArray:
        """Scatter (``rms`` or ``robust``) of each star by one method over that by another."""
        by = {(s.method, s.star): float(getattr(s, measure)) for s in self.scatter}
        stars = sorted({s.star for s in self.scatter})
        return np.array([by[method, star] / by[to, star] for star in stars])


def rows_of(table: Iterable[dict[str, str]]) -> list[Row]:
    """Rows of a block as objects."""
    return [
        Row(
            epoch=r["epoch"], time=float(r["time"] or "nan"), star=int(r["star"]), y=int(r["y"]),
            x=int(r["x"]), method=r["method"], phi_r=float(r["phi_r"]), phi_i=float(r["phi_i"]),
            phi_k=float(r["phi_k"]), kernel=int(r["kernel"]), status=r["status"],
            snr=float(r["snr"]), P=float(r["P"]), mfb=float(r["mfb"]), mfv=float(r["mfv"]),
            flux=float(r["flux"]), sigma_min=float(r["sigma_min"]),
        )
        for r in table
    ]  # fmt: skip


def summarise_series(
    rows: Sequence[Row], series: Series, fluxes: FloatArray, width: int
) -> SeriesSummary:
    """Table 3 and the scatter of the light curves.

    Stamps without a flux by one of the methods are left out of all; those of SNR beyond the
    paper's table are left out of the table, not of the light curves.
    """
    bad = {(r.epoch, r.star) for r in rows if not math.isfinite(r.flux)}
    rows = [r for r in rows if (r.epoch, r.star) not in bad]
    truth = _true_scales(rows, width)
    values: list[CellValue] = []
    kept: dict[tuple[str, str], int] = {}
    for method in REAL_METHODS:
        mine = [r for r in rows if r.method == method]
        if not mine:
            continue
        normalised = _normalised(mine, truth, width)
        low, high = SNR_REGIMES[0][0], SNR_REGIMES[-1][1]
        inside = np.array([low < r.snr < high for r in mine])
        values += _cells(method, mine, normalised, inside, truth, width, kept)
    return SeriesSummary(series, tuple(rows), tuple(values), kept, tuple(_scatter(rows, fluxes)))


def _strip(row: Row, width: int) -> tuple[str, int]:
    return row.epoch, STRIPS * row.x // width


def _true_scales(rows: Sequence[Row], width: int) -> dict[tuple[str, int], float]:
    """P_true: the median P of B08 in each strip of each epoch."""
    found: dict[tuple[str, int], list[float]] = {}
    for row in rows:
        if row.method == "b08":
            found.setdefault(_strip(row, width), []).append(row.P)
    return {place: float(np.median(values)) for place, values in found.items()}


def _normalised(rows: Sequence[Row], truth: dict[tuple[str, int], float], width: int) -> FloatArray:
    """F_measured / sigma_min, each light curve shifted to a median of 0."""
    values = np.array([r.flux / r.sigma_min * truth[_strip(r, width)] for r in rows])
    stars = np.array([r.star for r in rows])
    for star in set(stars.tolist()):
        values[stars == star] -= np.median(values[stars == star])
    return values


def _cells(
    method: str,
    rows: Sequence[Row],
    normalised: FloatArray,
    inside: NDArray[np.bool_],
    truth: dict[tuple[str, int], float],
    width: int,
    kept: dict[tuple[str, str], int],
) -> Iterator[CellValue]:
    snr, phi_r, phi_k = (np.array([getattr(r, n) for r in rows]) for n in ("snr", "phi_r", "phi_k"))
    metrics = {
        "P": np.array([r.P / truth[_strip(r, width)] for r in rows]),
        "mfb": np.array([r.mfb for r in rows]),
        "mfv": np.array([r.mfv for r in rows]),
    }
    for cell in CELLS:
        held = cell.holds(snr, phi_r, phi_k) & inside
        n = int(held.sum())
        if n < 3:
            continue
        for metric, values in metrics.items():
            low, median, high = np.percentile(values[held], [16, 50, 84])
            error = 1.2533 * 0.5 * (high - low) / math.sqrt(n)
            yield CellValue(method, metric, cell, median, low, high, error, n)
        fluxes = torch.from_numpy(normalised[held])
        fluxes = fluxes[within_robust_cut(fluxes)]
        kept[method, f"{cell.regime} {cell.name}"] = m = len(fluxes)
        bias, spread = mean_photometric_bias(fluxes), mean_photometric_variance(fluxes)
        fourth = float(((fluxes - bias) ** 4).mean())
        yield CellValue(method, "mpb", cell, bias, bias, bias, math.sqrt(spread / m), n)
        error = math.sqrt(max(fourth - spread**2, 0.0) / m)
        yield CellValue(method, "mpv", cell, spread, spread, spread, error, n)


def _scatter(rows: Sequence[Row], fluxes: FloatArray) -> Iterator[Scatter]:
    curves: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        curves.setdefault((row.method, row.star), []).append(row)
    for (method, star), curve in sorted(curves.items()):
        if len(curve) < 3:
            continue
        values = np.array([r.flux for r in curve])
        values = values - np.median(values)
        least = float(np.median([r.sigma_min / r.P for r in curve]))
        yield Scatter(
            method, star, float(fluxes[star]), float(values.std(ddof=1)),
            robust_scale(torch.from_numpy(values)), least, len(curve),
        )  # fmt: skip
