"""From the rows of single pairs to numbers of cells."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ..metrics import mean_photometric_bias, mean_photometric_variance, robust_scale
from .cells import CELLS, Cell, CellValue
from .scenarios import METHODS, Method

__all__ = ["MEDIANS", "summarise"]

MEDIANS = ("P", "mse", "mse_noisy", "mfb", "mfv")
_NUMBERS = ("seed", "snr", "phi_r", "phi_k", *MEDIANS, "flux")
_LEAST = 3  # pairs without which a cell is left empty

FloatArray = NDArray[np.float64]
Numbers = dict[str, FloatArray]


def summarise(
    rows: Iterable[dict[str, str]], methods: Sequence[Method] = METHODS
) -> list[CellValue]:
    """Medians, percentiles, MPB, MPV and, where they are recorded, the pulls of P, in the cells.

    A pull is (P - P_true) / error of P. ``ratio`` is the median over pairs of the MSE of eq 28 over
    that of the method named in ``against``. P is told in units of the true one.
    """
    by_method: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        by_method.setdefault(row["method"], []).append(row)
    numbers = {name: _numbers(mine) for name, mine in by_method.items()}
    found: list[CellValue] = []
    for method in methods:
        if method.name not in numbers:
            continue
        mine = numbers[method.name]
        other = numbers.get(method.against or "")
        if other is not None:
            mine["ratio"] = _ratios(mine, other)
        for cell in CELLS:
            held = cell.holds(mine["snr"], mine["phi_r"], mine["phi_k"])
            if held.sum() >= _LEAST:
                chosen = {name: values[held] for name, values in mine.items()}
                found += _cell_values(method.name, cell, chosen)
    return found


def _numbers(rows: list[dict[str, str]]) -> Numbers:
    numbers = {name: np.array([float(row[name]) for row in rows]) for name in _NUMBERS}
    if all("P_error" in row for row in rows):
        truth, error = (
            np.array([float(row[name]) for row in rows]) for name in ("P_true", "P_error")
        )
        numbers["pull"] = (numbers["P"] - truth) / error
        numbers["P"] = numbers["P"] / truth
    return numbers


def _ratios(mine: Numbers, other: Numbers) -> FloatArray:
    """MSE over that of another method, pair by pair; NaN where the other has no such pair."""
    theirs = dict(zip(other["seed"], other["mse"], strict=True))
    return np.array(
        [
            mse / theirs.get(seed, np.nan)
            for seed, mse in zip(mine["seed"], mine["mse"], strict=True)
        ]
    )


def _cell_values(method: str, cell: Cell, numbers: Numbers) -> list[CellValue]:
    found = [_median_of(method, metric, cell, numbers[metric]) for metric in MEDIANS]
    found += _photometry_of(method, cell, numbers["flux"])
    if "ratio" in numbers:
        paired = numbers["ratio"][np.isfinite(numbers["ratio"])]
        if len(paired) >= _LEAST:
            found.append(_median_of(method, "ratio", cell, paired))
            found.append(_single(method, "worst_ratio", cell, paired.max(), np.nan, len(paired)))
    if "pull" in numbers and np.isfinite(numbers["pull"]).all():
        found += _pulls_of(method, cell, numbers["pull"])
    return found


def _median_of(method: str, metric: str, cell: Cell, values: FloatArray) -> CellValue:
    low, median, high = np.percentile(values, [16, 50, 84])
    error = 1.2533 * 0.5 * (high - low) / math.sqrt(len(values))
    return CellValue(method, metric, cell, median, low, high, error, len(values))


def _photometry_of(method: str, cell: Cell, values: FloatArray) -> list[CellValue]:
    fluxes, n = torch.from_numpy(values), len(values)
    bias, variance = mean_photometric_bias(fluxes), mean_photometric_variance(fluxes)
    centred = values - bias
    # The standard error of a variance, from the fourth moment.
    spread = math.sqrt(max(float((centred**4).mean()) - variance**2, 0.0) / n)
    return [
        _single(method, "mpb", cell, bias, math.sqrt(variance / n), n),
        _single(method, "mpv", cell, variance, spread, n),
    ]


def _pulls_of(method: str, cell: Cell, pulls: FloatArray) -> list[CellValue]:
    """Median, robust scale, and shares within one and two errors (0.683 and 0.954 if right)."""
    n, scale = len(pulls), robust_scale(torch.from_numpy(pulls))
    # 1.4826 MAD has 0.37 of the efficiency of a standard deviation.
    found = [
        _median_of(method, "pull", cell, pulls),
        _single(method, "pull_scale", cell, scale, scale / math.sqrt(2.0 * 0.37 * n), n),
    ]
    for sigmas, expected in ((1, 0.6827), (2, 0.9545)):
        share = float((np.abs(pulls) < sigmas).mean())
        error = math.sqrt(expected * (1.0 - expected) / n)  # if the errors are right
        found.append(_single(method, f"within_{sigmas}", cell, share, error, n))
    return found


def _single(method: str, metric: str, cell: Cell, value: float, error: float, n: int) -> CellValue:
    return CellValue(method, metric, cell, value, value, value, error, n)
