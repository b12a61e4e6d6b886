"""The simulated image tests of section 3.3: Table 2 and Figure 3, for several methods.

Pairs are worked on in blocks of consecutive seeds, spread over processes. Each block is one file,
written under a temporary name and renamed, so that a run that was interrupted goes on where it
stopped, and a later run with more pairs adds only what is missing.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import correlate

from ..errors import PyTorchDIAWarning
from ..kernel import DeltaKernel
from ..metrics import (
    least_flux_error,
    mean_fit_bias,
    mean_fit_variance,
    mean_photometric_bias,
    mean_photometric_variance,
    mean_squared_error,
    psf_flux,
)
from ..noise import CCDNoise
from ..prior import GaussianProcessPrior
from ..simulate import READ_NOISE, SimulatedPair, Stars, render_gaussian, simulate_pair
from ..solvers import Newton, NormalEquations
from ..subtract import subtract
from ..subtraction import Subtraction, SubtractionStack
from .cells import CELLS, METHODS, SNR_REGIMES, Cell, CellValue
from .report import draw_figure3, write_page
from .tables import read_rows, write_rows

__all__ = [
    "ALL_PAIRS",
    "PAPER_PAIRS",
    "Method",
    "measure",
    "normalised_flux",
    "run_table2",
    "summarise",
]

PAPER_PAIRS = 71_569  # in the cells of the paper
ALL_PAIRS = 101_500  # that have to be simulated for as many: seven in ten have 8 < SNR < 1000
BLOCK = 32  # pairs in one file
KERNEL = 19
MEDIANS = ("P", "mse", "mse_noisy", "mfb", "mfv")
_COLUMNS = ("seed", "method", "status", "snr", "phi_r", "phi_k", *MEDIANS, "flux")

Method = str
FloatArray = NDArray[np.float64]


def run_table2(
    folder: Path,
    pairs: int,
    methods: Iterable[Method] = METHODS,
    workers: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[CellValue]:
    """Simulate and fit the first ``pairs`` pairs, and summarise them by cells.

    Parameters
    ----------
    folder : Path
        For the blocks (``blocks/``) and the table (``table2.csv``); made if it is not there.
    pairs : int
        Number of simulated pairs, with seeds from 0 on; rounded up to whole blocks of 32.
    methods : iterable of str
        Of ``b08``, ``plain`` and ``prior``.
    workers : int, optional
        Processes, each with one thread; None takes one for each core.
    progress : callable, optional
        Called with the blocks done and their total.
    """
    blocks = folder / "blocks"
    blocks.mkdir(parents=True, exist_ok=True)
    methods = tuple(methods)
    jobs = [
        (block, method, blocks / f"{method}-{block:05d}.csv")
        for block in range(math.ceil(pairs / BLOCK))
        for method in methods
    ]
    missing = [job for job in jobs if not job[2].exists()]
    done = len(jobs) - len(missing)
    progress(done, len(jobs))
    if missing:
        context = multiprocessing.get_context("spawn")
        count = min(len(missing), workers or os.cpu_count() or 1)
        with context.Pool(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for _ in pool.imap_unordered(_run_block, missing):
                done += 1
                progress(done, len(jobs))
    rows = [row for job in jobs for row in read_rows(job[2])]
    summaries = summarise(rows)
    write_table(summaries, folder / "table2.csv")
    write_page(summaries, folder / "table2.md")
    draw_figure3(summaries, folder / "figure3.png")
    return summaries


def _run_block(job: tuple[int, Method, Path]) -> None:
    """Fit the pairs of one block by one method, and write their rows."""
    block, method, path = job
    pairs = {seed: simulate_pair(seed) for seed in range(block * BLOCK, (block + 1) * BLOCK)}
    pairs = {s: p for s, p in pairs.items() if SNR_REGIMES[0][0] < p.snr < SNR_REGIMES[-1][1]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PyTorchDIAWarning)
        results = subtract(
            np.stack([pair.target for pair in pairs.values()]),
            np.stack([pair.reference for pair in pairs.values()]),
            kernel=DeltaKernel(KERNEL),
            noise=CCDNoise(READ_NOISE),
            penalty=GaussianProcessPrior() if method == "prior" else None,
            solver=NormalEquations(3) if method == "b08" else Newton(),
            covariance=False,
        )
    assert isinstance(results, SubtractionStack)
    rows: list[dict[str, object]] = [
        {"seed": seed, "method": method, **measure(pair, result)}
        for (seed, pair), result in zip(pairs.items(), results, strict=True)
    ]
    write_rows(rows, path, _COLUMNS)


def measure(pair: SimulatedPair, result: Subtraction) -> dict[str, object]:
    """The metrics of Table 1 for one pair."""
    use = torch.from_numpy(~result.mask)
    model = torch.from_numpy(result.model).to(torch.float64)
    target, sigma = torch.from_numpy(pair.target), torch.from_numpy(pair.target_sigma)
    normalised = (target - model) / sigma
    return {
        "status": result.status.name,
        "snr": pair.snr,
        "phi_r": pair.phi_r,
        "phi_k": pair.phi_k,
        "P": result.scale,
        "mse": mean_squared_error(model, torch.from_numpy(pair.target_noiseless), use),
        "mse_noisy": mean_squared_error(model, target, use),
        "mfb": mean_fit_bias(normalised, use),
        "mfv": mean_fit_variance(normalised, use),
        "flux": normalised_flux(pair, result),
    }


def normalised_flux(pair: SimulatedPair, result: Subtraction) -> float:
    """F_measured / sigma_min at the brightest star (section 3.2 iii, eq 31); its mean should be 0.

    The PSF of the fit is the reference's, convolved with the fitted kernel and normalised, on a
    stamp of 9 phi_I pixels; sigma_min has the true PSF of the target.
    """
    (h, w), margin = pair.target.shape, KERNEL // 2
    brightest = int(np.argmax(pair.stars.flux))
    x, y = float(pair.stars.x[brightest]), float(pair.stars.y[brightest])
    half = math.ceil(4.5 * pair.phi_i)
    top, left = max(round(y) - half, margin), max(round(x) - half, margin)
    bottom, right = min(round(y) + half + 1, h - margin), min(round(x) + half + 1, w - margin)
    rows, columns = slice(top, bottom), slice(left, right)
    alone = Stars(np.array([x]), np.array([y]), np.array([1.0]))
    sharp = render_gaussian(alone, (h, w), pair.phi_r)
    wide = correlate(sharp, result.kernel, mode="constant")[rows, columns]
    variance = torch.from_numpy(pair.target_sigma[rows, columns] ** 2)
    difference = torch.from_numpy(result.difference[rows, columns]).to(torch.float64)
    fit = psf_flux(difference, torch.from_numpy(wide / wide.sum()), variance)
    truth = render_gaussian(alone.shifted(*pair.shift), (h, w), pair.phi_i)[rows, columns]
    return fit.flux / result.scale / least_flux_error(torch.from_numpy(truth), variance)


def summarise(rows: Iterable[dict[str, str]]) -> list[CellValue]:
    """Medians, percentiles, MPB and MPV in the twelve cells."""
    rows = list(rows)
    found = []
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        numbers = {
            name: np.array([float(row[name]) for row in mine])
            for name in ("snr", "phi_r", "phi_k", *MEDIANS, "flux")
        }
        for cell in CELLS:
            held = cell.holds(numbers["snr"], numbers["phi_r"], numbers["phi_k"])
            if held.sum() < 3:
                continue
            for metric in MEDIANS:
                found.append(_median_of(method, metric, cell, numbers[metric][held]))
            found += _photometry_of(method, cell, numbers["flux"][held])
    return found


def _median_of(method: Method, metric: str, cell: Cell, values: FloatArray) -> CellValue:
    low, median, high = np.percentile(values, [16, 50, 84])
    error = 1.2533 * 0.5 * (high - low) / math.sqrt(len(values))
    return CellValue(method, metric, cell, median, low, high, error, len(values))


def _photometry_of(method: Method, cell: Cell, values: FloatArray) -> list[CellValue]:
    fluxes, n = torch.from_numpy(values), len(values)
    bias, variance = mean_photometric_bias(fluxes), mean_photometric_variance(fluxes)
    centred = values - bias
    # The standard error of a variance, from the fourth moment.
    spread = math.sqrt(max(float((centred**4).mean()) - variance**2, 0.0) / n)
    return [
        CellValue(method, "mpb", cell, bias, bias, bias, math.sqrt(variance / n), n),
        CellValue(method, "mpv", cell, variance, variance, variance, spread, n),
    ]


def write_table(summaries: list[CellValue], path: Path) -> None:
    """One line for each summary."""
    write_rows(
        [
            {
                "method": s.method, "metric": s.metric, "regime": s.cell.regime,
                "cell": s.cell.name, "value": s.value, "p16": s.low, "p84": s.high,
                "standard_error": s.error, "n": s.n,
            }
            for s in summaries
        ],
        path,
    )  # fmt: skip
