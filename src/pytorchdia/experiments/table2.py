"""The simulated image tests of section 3.3: Table 2 and Figure 3, for several scenarios.

Pairs are worked on in blocks of consecutive seeds, spread over processes. Each block is one file,
written under a temporary name and renamed, so that a run that was interrupted goes on where it
stopped, and a later run with more pairs adds only what is missing.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import correlate

from ..errors import InputError, PyTorchDIAWarning
from ..kernel import DeltaKernel
from ..metrics import (
    least_flux_error,
    mean_fit_bias,
    mean_fit_variance,
    mean_squared_error,
    psf_flux,
)
from ..noise import FixedVariance
from ..simulate import Stars, render_gaussian
from ..subtract import subtract
from ..subtraction import Subtraction, SubtractionStack
from .cells import SNR_REGIMES, CellValue
from .report import draw_figure3, write_page
from .scenarios import PAPER_SCENARIO, Case, Method, Scenario
from .summary import MEDIANS, summarise
from .tables import read_rows, write_rows

__all__ = ["ALL_PAIRS", "PAPER_PAIRS", "measure", "normalised_flux", "run_table2"]

PAPER_PAIRS = 71_569  # in the cells of the paper
ALL_PAIRS = 101_500  # that have to be simulated for as many: seven in ten have 8 < SNR < 1000
BLOCK = 32  # pairs in one file
_PAPER_COLUMNS = ("seed", "method", "status", "snr", "phi_r", "phi_k", *MEDIANS, "flux")
_COLUMNS = (*_PAPER_COLUMNS, "P_true", "P_error")


def run_table2(
    folder: Path,
    pairs: int,
    scenario: Scenario = PAPER_SCENARIO,
    workers: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[CellValue]:
    """Simulate and fit the first ``pairs`` pairs of a scenario, and summarise them by cells.

    Parameters
    ----------
    folder : Path
        For the blocks (``blocks/``), the table (``table2.csv``), its page and its picture; made if
        it is not there. Scenarios other than the paper's have a folder of their own in it.
    pairs : int
        Number of simulated pairs, with seeds from 0 on; rounded up to whole blocks of 32.
    scenario : Scenario
        What the pairs are, and the methods.
    workers : int, optional
        Processes, each with one thread; None takes one for each core.
    progress : callable, optional
        Called with the blocks done and their total.

    Raises
    ------
    InputError
        None of the pairs has an SNR within the table.
    """
    home = folder if scenario.is_the_papers else folder / scenario.name
    blocks = home / "blocks"
    blocks.mkdir(parents=True, exist_ok=True)
    jobs = [
        (scenario, block, method, blocks / f"{method.name}-{block:05d}.csv")
        for block in range(math.ceil(pairs / BLOCK))
        for method in scenario.methods
    ]
    missing = [job for job in jobs if not job[-1].exists()]
    done = len(jobs) - len(missing)
    progress(done, len(jobs))
    if missing:
        context = multiprocessing.get_context("spawn")
        count = min(len(missing), workers or os.cpu_count() or 1)
        with context.Pool(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for _ in pool.imap_unordered(_run_block, missing):
                done += 1
                progress(done, len(jobs))
    rows = [row for job in jobs for row in read_rows(job[-1])]
    if not rows:
        raise InputError(
            f"None of the {pairs} pairs of {scenario.name} has an SNR between "
            f"{SNR_REGIMES[0][0]:g} and {SNR_REGIMES[-1][1]:g}; take more pairs, or another frame."
        )
    summaries = summarise(rows, scenario.methods)
    write_table(summaries, home / "table2.csv")
    write_page(summaries, scenario, home / "table2.md")
    draw_figure3(summaries, scenario, home / "figure3.png")
    return summaries


def _run_block(job: tuple[Scenario, int, Method, Path]) -> None:
    """Fit the pairs of one block by one method, and write their rows."""
    scenario, block, method, path = job
    columns = _PAPER_COLUMNS if scenario.is_the_papers else _COLUMNS
    cases = {seed: scenario.case(seed) for seed in range(block * BLOCK, (block + 1) * BLOCK)}
    low, high = SNR_REGIMES[0][0], SNR_REGIMES[-1][1]
    cases = {seed: case for seed, case in cases.items() if low < case.pair.snr < high}
    measured = zip(cases, _fit(scenario, method, list(cases.values())), strict=True)
    rows = [{"seed": seed, "method": method.name, **values} for seed, values in measured]
    write_rows([{name: row[name] for name in columns} for row in rows], path, columns)


def _fit(scenario: Scenario, method: Method, cases: list[Case]) -> list[dict[str, object]]:
    """The metrics of each case."""
    if not cases:
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PyTorchDIAWarning)
        results = subtract(
            np.stack([case.pair.target for case in cases]),
            np.stack([case.pair.reference for case in cases]),
            kernel=DeltaKernel(scenario.kernel),
            noise=scenario.noise,
            reference_noise=FixedVariance(np.stack([c.pair.reference_sigma**2 for c in cases])),
            likelihood=method.likelihood,
            penalty=method.penalty,
            solver=method.solver,
            covariance=None if scenario.is_the_papers else False,  # who wants no errors waits less
        )
    assert isinstance(results, SubtractionStack)
    return [measure(case, result) for case, result in zip(cases, results, strict=True)]


def measure(case: Case, result: Subtraction) -> dict[str, object]:
    """The metrics of Table 1 for one pair.

    Eq 28 runs over all pixels that the fit could use; what compares the model with the noisy target
    leaves out the pixels that are known to be hit.
    """
    pair = case.pair
    use = torch.from_numpy(~result.mask)
    clean = use if case.hit is None else use & torch.from_numpy(~case.hit)
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
        "mse_noisy": mean_squared_error(model, target, clean),
        "mfb": mean_fit_bias(normalised, clean),
        "mfv": mean_fit_variance(normalised, clean),
        "flux": normalised_flux(case, result),
        "P_true": case.scale,
        "P_error": result.scale_error,
    }


def normalised_flux(case: Case, result: Subtraction) -> float:
    """F_measured / sigma_min at the brightest star (section 3.2 iii, eq 31); its mean should be 0.

    The PSF of the fit is the reference's, convolved with the fitted kernel and normalised, on a
    stamp of 9 phi_I pixels; sigma_min has the true PSF of the target. Pixels that are known to be
    hit do not count in either.
    """
    pair = case.pair
    (h, w), margin = pair.target.shape, len(result.kernel) // 2
    brightest = int(np.argmax(pair.stars.flux))
    x, y = float(pair.stars.x[brightest]), float(pair.stars.y[brightest])
    half = math.ceil(9.0 * pair.phi_i) // 2  # an odd side, as in the authors' notebook
    top, left = max(round(y) - half, margin), max(round(x) - half, margin)
    bottom, right = min(round(y) + half + 1, h - margin), min(round(x) + half + 1, w - margin)
    rows, columns = slice(top, bottom), slice(left, right)
    alone = Stars(np.array([x]), np.array([y]), np.array([1.0]))
    sharp = render_gaussian(alone, (h, w), pair.phi_r)
    # Convolved where it is wanted: the margin keeps the kernel inside the frame.
    around = sharp[top - margin : bottom + margin, left - margin : right + margin]
    wide = correlate(around, result.kernel)
    wide = wide[margin : margin + bottom - top, margin : margin + right - left]
    variance = torch.from_numpy(pair.target_sigma[rows, columns] ** 2)
    if case.hit is not None:
        variance[torch.from_numpy(case.hit[rows, columns])] = torch.inf
    difference = torch.from_numpy(result.difference[rows, columns]).to(torch.float64)
    fit = psf_flux(difference, torch.from_numpy(wide / wide.sum()), variance)
    truth = torch.from_numpy(case.psf(alone)[rows, columns])
    return fit.flux / result.scale / least_flux_error(truth, variance, case.scale)


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
