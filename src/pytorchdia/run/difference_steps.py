"""The steps of a run that make a difference and measure in it, as plain functions."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..background import PolynomialBackground
from ..changes.changed_pixels import changed_sources, footprints
from ..changes.detections import filter_difference, find_in_difference, systematic_share
from ..config import PriorName, make_likelihood, make_penalty, parse_kernel_size
from ..drift import Drift, ensemble_drift
from ..errors import Finding
from ..frame import Flag, Frame
from ..kernel import DeltaKernel
from ..measure import kernel_size
from ..noise import NoiseModel
from ..preparation.register import Registration
from ..regions import FrameDifference, subtract_by_regions
from ..solvers import Newton, Solver
from ..stars.photometry import Fluxes
from ..subtract import subtract
from .epoch import EpochDifference
from .frame_steps import Source, reference_of, registered
from .images import write_difference
from .settings import Settings
from .state import Made
from .tables import DETECTIONS, EPOCH, FOLLOWED, read_table, write_table

__all__ = ["follow_candidates", "photometry_of_frame", "subtract_frame"]

FloatArray = NDArray[np.float64]

_A_LOOK = Newton(max_steps=4)  # within some 0.05 sigma of the whole fit on nearly all pixels
_MOST_CHANGED = 0.2  # share of the pixels; beyond, it is the subtraction that is bad


def subtract_frame(
    source: Source, registration: Registration, fwhm: float | None, settings: Settings, run: Path
) -> Made:
    """Subtract the matched reference from a frame, region by region.

    A first look, a few steps without a prior, shows what has changed; the fit that counts leaves
    that out.
    """
    reference = reference_of(run).frame
    target, noise = registered(source, registration, reference.shape, reference.wcs, settings)
    kernel = _kernel(settings.subtract.kernel, fwhm, reference.shape)
    match = partial(_match, reference=reference, noise=noise, kernel=kernel, settings=settings)
    look = match(target, prior=PriorName.NONE, solver=_A_LOOK, covariance=None)
    left, findings = _without_changed(target, look, run)
    result = match(left, prior=settings.subtract.prior, start=look)
    cards = {
        "FRAME": source.name,
        "DIAP": result.scale,
        "DIAPERR": result.scale_error,
        "BUNIT": "adu",
    }
    path = write_difference(
        run / "differences" / f"{source.name}_diff.fits", result, reference.wcs, cards
    )
    values = {
        "scale": result.scale,
        "scale_error": result.scale_error,
        "kernel": list(kernel.shape),
        "regions": len(result.fits),
        "reduced_chi_square": float(np.mean([fit.reduced_chi_square for fit in result.fits])),
        "converged": all(fit.status == "CONVERGED" for fit in result.fits),
        "masked_share": float((result.flags & ~int(Flag.CHANGED) != 0).mean()),
    }
    said = dict.fromkeys((*target.findings, *findings, *result.findings))
    return Made((path,), values, tuple(said))


def _match(
    target: Frame, *, reference: Frame, noise: NoiseModel | None, kernel: DeltaKernel,
    settings: Settings, prior: PriorName | None, solver: Solver = Newton(),
    start: FrameDifference | None = None, covariance: bool | None = False,
) -> FrameDifference:  # fmt: skip
    chosen = settings.subtract
    fit = partial(
        subtract, background=PolynomialBackground(chosen.background),
        likelihood=make_likelihood(chosen.likelihood), device=chosen.device,
        solver=solver,
    )  # fmt: skip
    if prior is not None:
        fit = partial(fit, penalty=make_penalty(prior, None))
    regions = None if chosen.regions == "auto" else chosen.regions
    return subtract_by_regions(
        target, reference, kernel=kernel, noise=noise, regions=regions, start=start,
        covariance=covariance, fit=fit,
    )  # fmt: skip


def _without_changed(
    target: Frame, first: FrameDifference, run: Path
) -> tuple[Frame, tuple[Finding, ...]]:
    """The target with the pixels flagged in which a first difference shows a change."""
    if not any(fit.scale > 0 for fit in first.fits):
        return target, ()  # no stars that it could be judged by
    seen = EpochDifference.of(first, run)
    found = changed_sources(seen.difference, seen.variance, first.flags, seen.psf, seen.light)
    hit = footprints(found, seen.variance, seen.psf) & (first.flags == 0)
    share = hit.sum() / max((first.flags == 0).sum(), 1)
    if not hit.any():
        return target, ()
    if share > _MOST_CHANGED:
        return target, (Finding(
            "changed-everywhere",
            f"{len(found)} sources in {100 * share:.0f} % of the pixels of {target.name} seem to "
            "have changed; that many are more likely ill subtracted, so all took part in the fit.",
            "warning",
        ),)  # fmt: skip
    finding = Finding(
        "changed-sources",
        f"{len(found)} sources of {target.name} have changed; their pixels "
        f"({100 * share:.2f} %) did not take part in the fit of the kernel.",
    )
    return target.flagged(torch.from_numpy(hit), Flag.CHANGED), (finding,)


def photometry_of_frame(
    name: str, quality: Mapping[str, Any], settings: Settings, run: Path
) -> Made:
    """Fluxes of all stars in a difference, as one Parquet part."""
    epoch = EpochDifference.read(name, run)
    stars = read_table(run / "stars.parquet")
    x, y = (np.asarray(stars[axis], dtype=np.float64) for axis in "xy")
    fluxes = epoch.fluxes(x, y, settings)
    good, clean = fluxes.valid, fluxes.flags == 0
    known = np.asarray(stars["flux"].to_numpy(zero_copy_only=False), dtype=np.float64)
    drift = ensemble_drift(fluxes.flux[clean], fluxes.error[clean], known[clean])
    columns = {"star": np.asarray(stars["star"])}
    columns |= _epoch_columns(name, quality, epoch, fluxes, (x, y), drift, known)
    path = write_table(run / "photometry" / f"{name}.parquet", EPOCH, columns)
    # The difference keeps the drift: for what is found in it that is one more error.
    share = systematic_share(fluxes.flux[good], fluxes.error[good], np.nan_to_num(known[good]))
    images = (epoch.difference, epoch.variance, epoch.stored.flags, epoch.psf)
    filtered = filter_difference(*images, light=epoch.light, share=share)
    found = find_in_difference(*images, filtered, threshold=settings.variables.threshold)
    second = write_table(run / "detections" / f"{name}.parquet", DETECTIONS, vars(found))
    values = {
        "systematic_share": share,
        "drift": drift.share,
        "drift_error": drift.error,
        "detections": len(found),
        "stars": len(x),
        "measured": int(good.sum()),
        "clean": int((fluxes.flags == 0).sum()),
        "median_error": float(np.median(fluxes.error[good])) if good.any() else None,
    }
    return Made((path, second), values, _drift_told(drift, name))


def _drift_told(drift: Drift, name: str) -> tuple[Finding, ...]:
    if not drift.share:
        return ()
    return (Finding(
        "stars-drift",
        f"The stars of {name} seem to have {'gained' if drift.share > 0 else 'lost'} "
        f"{100 * abs(drift.share):.2g} +- {100 * drift.error:.1g} % of their light together (the "
        f"median of {drift.n_stars}): no kernel turns the reference's PSF into that of this frame, "
        "as with undersampled stars, or a frame sharper than the reference. It was taken off all "
        "fluxes.",
        "warning",
    ),)  # fmt: skip


def follow_candidates(
    name: str, quality: Mapping[str, Any], photometry: Mapping[str, Any], settings: Settings,
    run: Path,
) -> Made:  # fmt: skip
    """Fluxes in a difference of all candidates that are not doubtful, at their own places.

    Only they are in the fit: what does not vary is in no difference. Where the light changes is not
    always where the catalogue has a star, and a new source is in no catalogue.
    """
    table = read_table(run / "candidates.parquet")
    believed = np.array([kind != "doubtful" for kind in table["kind"].to_pylist()], dtype=np.bool_)
    number, x, y = (np.asarray(table[column])[believed] for column in ("candidate", "x", "y"))
    epoch = EpochDifference.read(name, run)
    fluxes = epoch.fluxes(x, y, settings)
    drift = Drift(photometry["drift"], photometry["drift_error"])
    columns = {"candidate": number}
    columns |= _epoch_columns(name, quality, epoch, fluxes, (x, y), drift)
    path = run / "followed" / f"{name}.parquet"
    return Made((write_table(path, FOLLOWED, columns, rows=len(x)),), {"candidates": len(x)})


def _epoch_columns(
    name: str, quality: Mapping[str, Any], epoch: EpochDifference, fluxes: Fluxes,
    at: tuple[FloatArray, FloatArray], drift: Drift, known: FloatArray | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Columns of :data:`~pytorchdia.run.tables.EPOCH` but for the first.

    ``known`` are fluxes on the reference; where there is none, its light at the place drifts.
    """
    stored, flux, error = epoch.stored, fluxes.flux, fluxes.error
    if drift.share:
        light = epoch.light_at(*at)
        light = light if known is None else np.where(np.isfinite(known), known, light)
        flux, error = drift.removed(flux, error, light)
    which = stored.region_of(*at)
    scales = np.array([fit.scale for fit in stored.fits])
    errors = np.array([fit.scale_error for fit in stored.fits])
    return {
        "frame": name,
        "time": quality["time"],
        "time_scale": quality["time_scale"],
        "bjd_tdb": quality["bjd_tdb"],
        "flux": np.where(fluxes.valid, flux, np.nan),
        "error": np.where(fluxes.valid, error, np.nan),
        "chi_square": fluxes.chi_square,
        "n_pixels": fluxes.n_pixels,
        "scale": scales[which],
        "scale_error": np.hypot(errors, scales * drift.error)[which],
        "drift": drift.share,
        "fwhm": quality["fwhm"],
        "flags": fluxes.flags,
    }


def _kernel(size: str | int, fwhm: float | None, shape: tuple[int, int]) -> DeltaKernel:
    """The kernel asked for, or one of 9 Gaussian widths of the frame's PSF (section 3.3)."""
    given = parse_kernel_size(str(size))
    if given is not None:
        return given
    return DeltaKernel(kernel_size(fwhm, shape))
