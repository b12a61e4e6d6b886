"""The steps of a run that look at the whole season: the reference, and what varies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table
from numpy.typing import NDArray

from ..changes.candidates import Candidate, Kind, merge_detections, stack_detections
from ..changes.detections import Detections, filter_difference
from ..changes.stack import Stack
from ..errors import Finding, InputError, ReadError
from ..frame import Frame
from ..measure import measure_seeing
from ..preparation.combining import combine
from ..stars.catalogue import Catalogue, catalogue_from_list, find_stars
from ..stars.photometry import reference_fluxes, refine_positions
from ..stars.positions import on_sky
from ..stars.psf import PSFModel
from ..stars.psf_fit import fit_psf
from .epoch import EpochDifference
from .frame_steps import (
    RunReference,
    Source,
    load,
    reference_of,
    registered,
    registration_from,
)
from .images import (
    read_stack,
    write_frame,
    write_psf,
    write_stack,
)
from .settings import Settings
from .state import Made, digest_of
from .tables import CANDIDATES, STARS, read_table, write_table

__all__ = ["find_variables", "make_reference", "read_star_list", "stack_differences"]

FloatArray = NDArray[np.float64]


def make_reference(
    chosen: Sequence[tuple[Source, Mapping[str, Any]]], grid: Source, settings: Settings, run: Path
) -> Made:
    """Combine frames into the reference, or take that made elsewhere; find its stars and PSF.

    Parameters
    ----------
    chosen : sequence of (Source, Mapping)
        The frames to combine, with the values of their registrations; none if ``grid`` was made
        elsewhere and is the reference.
    grid : Source
        Whose grid is used.
    settings, run
    """
    onto = load(grid, settings)
    moved = [onto] if grid.made_elsewhere else []
    for source, values in chosen:
        registration = registration_from(values).exact(onto.shape)
        frame, noise = registered(source, registration, onto.shape, onto.wcs, settings)
        if noise is not None:  # it knows of the flat-field
            frame = replace(frame, variance=noise.variance(frame.data.double()))
        moved.append(frame)
    reference = combine(moved)
    psf, stars, findings = _stars_of(reference, settings)
    fluxes = reference_fluxes(reference, psf, stars)
    columns = {
        "star": stars.id, "x": stars.x, "y": stars.y,
        "ra": math.nan if stars.ra is None else stars.ra,
        "dec": math.nan if stars.dec is None else stars.dec,
        "flux": np.where(fluxes.valid, fluxes.flux, np.nan),
        "error": np.where(fluxes.valid, fluxes.error, np.nan),
        "flags": fluxes.flags,
        "name": None if stars.names is None else np.array(stars.names, dtype=object),
    }  # fmt: skip
    products = (
        write_frame(run / "reference.fits", reference, {"NFRAMES": len(moved)}),
        write_psf(run / "psf.fits", psf),
        write_table(run / "stars.parquet", STARS, columns, rows=len(stars)),
    )
    values = {
        "frames": [source.name for source, _ in chosen],
        "grid": grid.name,
        "chosen_by_rank": not (grid.made_elsewhere or settings.reference.frames),
        "max_frames": settings.reference.max_frames,
        "stars": len(stars),
        "fwhm": psf.fwhm,
        "psf_stars": psf.n_stars,
    }
    return Made(products, values, reference.findings + findings)


def _stars_of(
    reference: Frame, settings: Settings
) -> tuple[PSFModel, Catalogue, tuple[Finding, ...]]:
    """PSF and catalogue; the PSF is learnt from stars found, even where a list is given."""
    seen = measure_seeing(reference)
    fwhm = None if seen is None else seen.fwhm
    found = find_stars(reference, fwhm=fwhm, threshold=settings.stars.threshold)
    psf = fit_psf(reference, found, fwhm=fwhm)
    path = settings.path(settings.stars.list)
    stars = found if path is None else _listed(reference, path, psf.fwhm)
    if len(stars):
        stars = refine_positions(reference, psf, stars, fluxes=False)
    if settings.stars.max_stars is not None:
        stars = stars.chosen(np.arange(len(stars)) < settings.stars.max_stars)
    return psf, stars, found.findings + stars.findings + psf.findings


def _listed(reference: Frame, path: Path, fwhm: float) -> Catalogue:
    places, names = read_star_list(path)
    return catalogue_from_list(reference, **places, names=names, fwhm=fwhm)


def read_star_list(path: Path) -> tuple[dict[str, FloatArray], tuple[str, ...] | None]:
    """The places of a list of stars by axis, x and y or ra and dec, and the stars' names.

    Raises
    ------
    ReadError
        It cannot be read as a table.
    InputError
        A column or a number is missing.
    """
    try:
        table = Table.read(path)
    except Exception as error:  # astropy's readers raise many kinds
        reason = " ".join(str(error).split())[:200]
        raise ReadError(
            f"The list of stars {path} cannot be read as a table ({reason})."
        ) from error
    names = {name.lower(): name for name in table.colnames}
    axes = next((pair for pair in (("x", "y"), ("ra", "dec")) if {*pair} <= {*names}), None)
    if axes is None:
        raise InputError(
            f"The list of stars {path} has the columns {', '.join(table.colnames)}; it needs x and "
            "y [pixels from 0], or ra and dec [degrees]."
        )
    given = {axis: np.array([_number(cell) for cell in table[names[axis]]]) for axis in axes}
    known = np.isfinite([*given.values()]).all(axis=0)
    if not known.all():
        rows = np.flatnonzero(~known) + 1
        raise InputError(
            f"The list of stars {path} has no number for {' or '.join(axes)} in {len(rows)} of its "
            f"{len(table)} rows (the first is row {rows[0]}); fill it in, or leave the row out."
        )
    words = None
    if "name" in names:
        words = tuple("" if n is np.ma.masked else str(n) for n in table[names["name"]])
    return given, words


def _number(cell: Any) -> float:
    """A cell of a table; NaN where it is empty or holds no number."""
    try:
        return math.nan if cell is np.ma.masked else float(cell)
    except (TypeError, ValueError):
        return math.nan


def stack_differences(name: str, epochs: Sequence[tuple[str, float]], run: Path) -> Made:
    """Sum up what a star at each pixel would have for a flux in some of the differences.

    Parameters
    ----------
    name : str
        Of this part of the stack.
    epochs : sequence of (str, float)
        Name and systematic share of each frame.
    run
    """
    stack, widths = Stack(), []
    for frame, share in epochs:
        epoch = EpochDifference.read(frame, run)
        images = (epoch.difference, epoch.own, epoch.stored.flags, epoch.psf)
        stack.add(filter_difference(*images, light=epoch.light, share=share))
        widths.append(epoch.psf.fwhm)
    return Made((write_stack(run / "stack" / f"{name}.fits", stack),), {"fwhm": widths})


def find_variables(
    names: Sequence[str], parts: Mapping[str, Mapping[str, Any]], settings: Settings, run: Path
) -> Made:
    """Merge the detections of all differences and of their stack.

    Parameters
    ----------
    names : sequence of str
        Of the frames in the order of time.
    parts : Mapping of str to Mapping
        The parts of the stack, and the values of each.
    settings, run
    """
    stars = catalogue_of(run)
    reference = reference_of(run)
    stack = Stack()
    for part in parts:
        stack = stack.joined(read_stack(run / "stack" / f"{part}.fits"))
    fwhm = float(np.median(np.concatenate([values["fwhm"] for values in parts.values()])))
    threshold = settings.variables.threshold
    candidates = merge_detections(
        [_detections(run, name) for name in names],
        stack_detections(stack, fwhm, threshold=threshold), stars, fwhm=fwhm,
        shape=reference.frame.shape,
    )  # fmt: skip
    path = run / "candidates.parquet"
    columns = _columns(candidates, names, reference.frame)
    columns |= _on_reference(candidates, reference, stars)
    write_table(path, CANDIDATES, columns, rows=len(candidates))
    values = {
        "candidates": len(candidates),
        "epochs": len(names),
        "fwhm": fwhm,
        "followed": digest_of(
            {"candidates": [(c.x, c.y) for c in candidates if c.kind is not Kind.DOUBTFUL]}
        ),
    }
    return Made((path,), values)


def _on_reference(
    candidates: Sequence[Candidate], reference: RunReference, stars: Catalogue
) -> dict[str, FloatArray]:
    """Flux on the reference: that of the star, or measured beside all stars where there is none."""
    flux, error = np.full((2, len(candidates)), np.nan)
    row = {int(star): i for i, star in enumerate(stars.id)}
    for i, c in enumerate(candidates):
        if c.star is not None and math.isfinite(stars.flux_error[row[c.star]]):
            flux[i], error[i] = stars.flux[row[c.star]], stars.flux_error[row[c.star]]
    new = [i for i, c in enumerate(candidates) if c.kind is Kind.NEW]
    if new:
        x, y = (np.array([getattr(candidates[i], axis) for i in new]) for axis in "xy")
        frame, psf = reference.frame, reference.psf
        more = stars.joined(catalogue_from_list(frame, x=x, y=y, fwhm=psf.fwhm))
        found = reference_fluxes(frame, psf, more)
        added = slice(len(stars), None)
        flux[new] = np.where(found.valid, found.flux, np.nan)[added]
        error[new] = np.where(found.valid, found.error, np.nan)[added]
    return {"reference_flux": flux, "reference_error": error}


def catalogue_of(run: Path) -> Catalogue:
    """The stars of a run."""
    table = read_table(run / "stars.parquet")
    number = {
        name: np.asarray(table[name].to_numpy(zero_copy_only=False), dtype=np.float64)
        for name in ("x", "y", "flux", "error", "ra", "dec")
    }
    world = bool(len(table)) and bool(np.isfinite(number["ra"]).all())
    return Catalogue(
        np.asarray(table["star"]), number["x"], number["y"], np.nan_to_num(number["flux"]),
        np.where(np.isfinite(number["error"]), number["error"], np.inf),
        np.zeros(len(table), dtype=np.int64),
        number["ra"] if world else None, number["dec"] if world else None,
    )  # fmt: skip


def _detections(run: Path, name: str) -> Detections:
    table = read_table(run / "detections" / f"{name}.parquet")
    x, y, flux, error, significance = (
        np.asarray(table[c], dtype=np.float64) for c in ("x", "y", "flux", "error", "significance")
    )
    flags = np.asarray(table["flags"], dtype=np.int64)
    return Detections(x, y, flux, error, significance, flags)


def _columns(
    candidates: Sequence[Candidate], names: Sequence[str], reference: Frame
) -> dict[str, Any]:
    def each(name: str) -> Any:
        return np.array([getattr(c, name) for c in candidates], dtype=object)

    x, y = (each(axis).astype(np.float64) for axis in "xy")
    world = getattr(reference.wcs, "has_celestial", False) and len(candidates) > 0
    ra, dec = on_sky(reference.wcs, x, y) if world else (math.nan, math.nan)
    plain = ("star", "separation", "significance", "false_alarms", "flux", "error", "in_stack",
             "flags")  # fmt: skip
    return {
        "candidate": np.arange(1, len(candidates) + 1), "x": x, "y": y, "ra": ra, "dec": dec,
        "kind": np.array([str(c.kind) for c in candidates], dtype=object),
        "n_epochs": np.array([len(c.epochs) for c in candidates], dtype=np.int64),
        "best_frame": np.array(
            [None if c.best_epoch is None else names[c.best_epoch] for c in candidates],
            dtype=object,
        ),
        **{name: each(name) for name in plain},
    }  # fmt: skip
