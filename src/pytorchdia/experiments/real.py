"""The real image tests of section 4 on any series of a crowded field: Table 3 and light curves.

Each epoch is one block and one file, so that a run that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ..errors import InputError, PyTorchDIAError, PyTorchDIAWarning
from ..frame import Flag, Frame
from ..kernel import DeltaKernel
from ..likelihood import Gaussian, Huber, Likelihood
from ..measure import default_noise, reference_level
from ..metrics import least_flux_error, mean_fit_bias, mean_fit_variance, psf_flux
from ..noise import FixedVariance, NoiseModel
from ..prior import GaussianProcessPrior
from ..solvers import Newton, NormalEquations, Solver
from ..subtract import subtract
from ..subtraction import Subtraction, SubtractionStack
from .empirical import FloatArray, psf_half_width, psf_of, robust_flux
from .real_report import draw_series, write_series_page
from .real_summary import SeriesSummary, rows_of, summarise_series
from .series import Epoch, Series, read_frame, read_series
from .stamps import STAMP, Star, choose_stars, cut_noise, cut_stamp, find_stars, scene, window
from .tables import read_rows, write_rows

__all__ = ["PAPER_STARS", "QUICK_EPOCHS", "QUICK_STARS", "Method", "run_real"]

PAPER_STARS = 30
QUICK_STARS, QUICK_EPOCHS = 6, 3
_FAILED = "failed"


@dataclass(frozen=True)
class Method:
    """One way to fit a kernel."""

    likelihood: Likelihood
    penalty: GaussianProcessPrior | None
    solver: Solver


METHODS = {
    "b08": Method(Gaussian(), None, NormalEquations(3, k_sigma=5.0)),
    "huber": Method(Huber(tolerance=0.0), None, Newton()),
    "plain": Method(Gaussian(), None, Newton()),
    "prior": Method(Huber(tolerance=0.0), GaussianProcessPrior(), Newton()),
}


@dataclass(frozen=True)
class _Job:
    reference: Epoch
    epoch: Epoch
    stars: tuple[Star, ...]
    scene: tuple[Star, ...]
    stamp: int
    path: Path


def run_real(
    folder: Path,
    frames: Path,
    *,
    reference: str | None = None,
    stars: int = PAPER_STARS,
    stamp: int = STAMP,
    max_epochs: int | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> SeriesSummary:
    """Fit stamps around bright stars at each epoch, and compare the methods.

    Parameters
    ----------
    folder : Path
        For the blocks, ``real.csv``, ``scatter.csv``, ``real.md`` and ``real.png``; made if absent.
    frames : Path
        Folder of FITS files of one field, on one grid up to shifts by whole pixels.
    reference : str, optional
        File name of the reference; None takes the frame with the sharpest stars.
    stars : int
        Largest number of stars.
    stamp : int
        Side of the stamp around a star [pixels].
    max_epochs : int, optional
        Take only so many epochs, evenly spread over the series; None takes all.
    workers : int, optional
        Processes, each with one thread; None takes one for each core.
    progress : callable, optional
        Called with the frames measured and epochs fitted so far, and their total.

    Raises
    ------
    InputError
        The frames cannot be used, or ``folder`` holds a run on other frames or stars.
    """
    series = _only(read_series(frames, reference), max_epochs)
    total = len(series.epochs)
    blocks = folder / "blocks"
    blocks.mkdir(parents=True, exist_ok=True)
    frame = read_frame(series.reference.path)
    everything = find_stars(frame, series.reference.fwhm)
    chosen = choose_stars(frame, everything, series.reference.fwhm, stars, stamp)
    fluxes = _star_fluxes(folder / "stars.csv", series.reference, frame, chosen, everything, stamp)
    jobs = [
        _Job(series.reference, e, tuple(chosen), tuple(everything), stamp, blocks / f"{e.name}.csv")
        for e in series.epochs
    ]
    missing = [job for job in jobs if not job.path.exists()]
    done = total - len(missing)
    progress(done, total)
    for _ in _worked(missing, workers):
        done += 1
        progress(done, total)
    rows, failed = [], []
    for job in jobs:
        found = read_rows(job.path)
        failed += [(job.epoch.name, r["message"]) for r in found if r["method"] == _FAILED]
        rows += rows_of([r for r in found if r["method"] != _FAILED])
    series = replace(series, rejected=(*series.rejected, *failed))
    summary = summarise_series(rows, series, fluxes, width=frame.shape[1])
    write_rows(summary.cell_rows(), folder / "real.csv")
    write_rows(summary.scatter_rows(), folder / "scatter.csv")
    write_rows([vars(row) for row in rows], folder / "lightcurves.csv")
    write_series_page(summary, folder / "real.md")
    draw_series(summary, folder / "real.png")
    return summary


def _only(series: Series, count: int | None) -> Series:
    if count is None or count >= len(series.epochs):
        return series
    places = np.linspace(0, len(series.epochs) - 1, count).round().astype(int)
    return replace(series, epochs=tuple(series.epochs[i] for i in places))


def _worked(jobs: Sequence[_Job], workers: int | None) -> list[None] | map[None]:
    """The jobs done one after the other: here, or in processes of their own."""
    count = min(len(jobs), workers or os.cpu_count() or 1)
    if count <= 1:
        return map(_run_epoch, jobs)
    context = multiprocessing.get_context("spawn")
    with context.Pool(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return list(pool.imap_unordered(_run_epoch, jobs))


def _star_fluxes(
    path: Path,
    reference: Epoch,
    frame: Frame,
    stars: Sequence[Star],
    everything: Sequence[Star],
    size: int,
) -> FloatArray:
    """Flux of each star in the reference [ADU]; a run on other stars must not be mixed with it."""
    key = [(reference.name, str(size), str(s.y), str(s.x)) for s in stars]
    if path.exists():
        rows = read_rows(path)
        if [(r["reference"], r["stamp"], r["y"], r["x"]) for r in rows] != key:
            raise InputError(
                f"{path.parent} holds a run on another reference or other stars; choose another "
                "folder."
            )
        return np.array([float(r["flux"]) for r in rows])
    places = [window(star, (0, 0), size) for star in stars]
    stamps = [replace(frame, data=frame.data[p], flags=frame.flags[p]) for p in places]
    half = psf_half_width(reference.fwhm)
    psfs = _psfs(stamps, stamps, [scene(everything, frame, p) for p in places], half)
    middle = _middle(half, size)
    fluxes = []
    for stamp, psf in zip(stamps, psfs, strict=True):
        unit = torch.ones((2 * half + 1, 2 * half + 1), dtype=torch.float64)
        flux = math.nan
        if psf is not None:
            data = stamp.data[middle].double()
            flux = psf_flux(data, torch.from_numpy(psf.copy()), unit).flux
        fluxes.append(flux)
    rows_out = [
        {
            "star": i,
            "reference": reference.name,
            "stamp": size,
            "y": s.y,
            "x": s.x,
            "peak": s.peak,
            "flux": f,
        }
        for i, (s, f) in enumerate(zip(stars, fluxes, strict=True))
    ]
    write_rows(rows_out, path)
    return np.array(fluxes)


def _run_epoch(job: _Job) -> None:
    """Fit the stamps of one epoch by all methods, and write their rows."""
    try:
        rows = _epoch_rows(job)
    except PyTorchDIAError as error:
        rows = [{"method": _FAILED, "message": str(error)}]
    write_rows(rows, job.path, ("method", "message"))


def _epoch_rows(job: _Job) -> list[dict[str, object]]:
    reference, target = read_frame(job.reference.path), read_frame(job.epoch.path)
    cuts = []
    for i, star in enumerate(job.stars):
        place, there = (window(star, shift, job.stamp) for shift in ((0, 0), job.epoch.shift))
        t, r = cut_stamp(target, there), cut_stamp(reference, place)
        if t is not None and r is not None:
            cuts.append((i, t, r, place, there))
    if not cuts:
        return []
    numbers, targets, references, places, at = (list(each) for each in zip(*cuts, strict=True))
    half = psf_half_width(job.epoch.fwhm)
    psfs = _psfs(targets, references, [scene(job.scene, reference, p) for p in places], half)
    noise = cut_noise(default_noise(target)[0], at)
    size = max(5, 2 * math.ceil((7.0 * job.epoch.phi - 1.0) / 2.0) + 1)
    fits = {
        name: _fitted(targets, references, DeltaKernel(size), noise, method)
        for name, method in METHODS.items()
    }
    rows: list[dict[str, object]] = []
    for i, number in enumerate(numbers):
        b08 = fits["b08"][i]
        model = torch.from_numpy(b08.model).double()
        sigma2 = noise.item(i).variance(model)
        for name, stack in fits.items():
            row = _measure(targets[i], stack[i], b08, sigma2, psfs[i], half)
            rows.append({**_labels(job, number, name, size), **row})
    return rows


def _labels(job: _Job, number: int, method: str, size: int) -> dict[str, object]:
    star, wide, sharp = job.stars[number], job.epoch.phi, job.reference.phi
    return {
        "epoch": job.epoch.name, "time": job.epoch.time, "star": number, "y": star.y, "x": star.x,
        "method": method, "phi_r": sharp, "phi_i": wide,
        "phi_k": math.sqrt(max(wide**2 - sharp**2, 0.0)), "kernel": size,
    }  # fmt: skip


def _fitted(
    targets: list[Frame],
    references: list[Frame],
    kernel: DeltaKernel,
    noise: NoiseModel,
    method: Method,
    reference_background: float | None = None,
) -> SubtractionStack:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PyTorchDIAWarning)
        stack = subtract(
            targets, references, kernel=kernel, noise=noise, reference_noise=FixedVariance(1.0),
            likelihood=method.likelihood, penalty=method.penalty, solver=method.solver,
            reference_background=reference_background, covariance=False,
        )  # fmt: skip
    assert isinstance(stack, SubtractionStack)  # lists make stacks
    return stack


def _psfs(
    targets: list[Frame], references: list[Frame], scenes: list[FloatArray], half: int
) -> list[FloatArray | None]:
    """The empirical PSF of each target: the kernel of a scene of points, all pixels alike."""
    points = [
        replace(r, data=torch.from_numpy(image))
        for r, image in zip(references, scenes, strict=True)
    ]
    kernel = DeltaKernel(2 * half + 1)
    stack = _fitted(targets, points, kernel, FixedVariance(1.0), METHODS["plain"], 0.0)
    return [psf_of(result.kernel) for result in stack]


def _middle(half: int, size: int) -> tuple[slice, slice]:
    middle = slice(size // 2 - half, size // 2 + half + 1)
    return middle, middle


def _measure(
    target: Frame,
    result: Subtraction,
    b08: Subtraction,
    sigma2: torch.Tensor,
    psf: FloatArray | None,
    half: int,
) -> dict[str, object]:
    """The metrics of section 4.2; sigma_min is that of P_true = 1, to be divided by P_true."""
    use = torch.from_numpy(~b08.mask)
    difference = torch.from_numpy(result.difference).double()
    normalised = difference / sigma2.sqrt()
    light = (target.data.double() - reference_level(target))[use].sum()
    flux, sigma_min = math.nan, math.nan
    if psf is not None:
        middle = _middle(half, target.shape[0])
        known = torch.from_numpy((result.flags[middle] & ~Flag.CLIPPED) == 0)
        variance = torch.where(known, sigma2[middle], torch.inf)
        flux = robust_flux(difference[middle].numpy(), psf, variance.numpy()) / result.scale
        sigma_min = least_flux_error(torch.from_numpy(psf.copy()), variance)
    return {
        "status": result.status.name,
        "snr": float(light / sigma2[use].sum().sqrt()),
        "P": result.scale,
        "mfb": mean_fit_bias(normalised, use),
        "mfv": mean_fit_variance(normalised, use),
        "flux": flux,
        "sigma_min": sigma_min,
    }
