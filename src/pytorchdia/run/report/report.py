"""What a report shows, gathered from the files of a run, and the step that writes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import Finding
from ...regions import FrameDifference
from ..frame_steps import Source, reference_of, registered, registration_from
from ..frames_table import FrameRow
from ..images import read_difference
from ..lightcurves import LightCurves
from ..settings import Settings
from ..state import Made, State, digest_of, write_text
from ..tables import read_table
from .drawings import curve_drawing, scatter_drawing, season_drawing
from .numbers import curve_of, scatter_of
from .page import Content, KernelPicture, VariableCard, page_of
from .pictures import Stamps, cut, grey, half_width, limits_of, shrunk, signed

__all__ = ["make_report", "report_digest"]

FloatArray = NDArray[np.float64]

MOST_VARIABLES = 12
MOST_KERNELS = 96
_STEPS = ("measure", "register", "subtract", "photometry")


def report_digest(
    rows: Sequence[FrameRow], settings: Settings, run: Path, made: Mapping[str, str],
    troubles: Sequence[str],
) -> str:  # fmt: skip
    """Digest of all that a report shows.

    Parameters
    ----------
    rows : sequence of FrameRow
    settings : Settings
    run : Path
    made : Mapping
        Contents of the other pieces of work that it depends on.
    troubles : sequence of str
        As :func:`make_report`.
    """
    return digest_of({
        "rows": [asdict(row) for row in rows],
        "settings": settings.model_dump(mode="json", by_alias=True),
        "findings": [(name, vars(finding)) for name, finding in _findings(rows, run)],
        "made": dict(made),
        "troubles": list(troubles),
    })  # fmt: skip


def make_report(
    rows: Sequence[FrameRow], sources: Sequence[Source], settings: Settings, run: Path,
    troubles: Sequence[str],
) -> Made:  # fmt: skip
    """Write ``report.html``.

    Its images are bounded: the twelve best candidates, 96 kernels, whatever the season holds.

    Parameters
    ----------
    rows : sequence of FrameRow
        The table of frames.
    sources : sequence of Source
        The files of the frames, from which stamps of targets are cut.
    settings : Settings
    run : Path
        Its folder.
    troubles : sequence of str
        What failed in the search for variables, and why.

    Raises
    ------
    ReadError
        A product of an earlier step is not there.
    WriteError
        The page cannot be written.
    """
    curves = LightCurves(run)
    found = run / "candidates.parquet"
    candidates: list[dict[str, Any]] = read_table(found).to_pylist() if found.exists() else []
    reference = reference_of(run).frame
    image = np.where(reference.mask.numpy(), np.nan, reference.data.numpy())
    made = State.read(run, "reference", "reference")
    fwhm = float(made.values["fwhm"]) if made is not None else 4.0
    best = candidates[:MOST_VARIABLES]
    stamps = _stamps(best, {s.name: s for s in sources}, settings, run, fwhm)
    small = shrunk(image, 800)
    scatter = scatter_of(
        curves, [c["star"] for c in candidates if c["star"] is not None and not c["flags"]],
        _conditions(rows, run),
    )  # fmt: skip
    content = Content(
        title=f"{run.name}, {len(rows)} frames",
        rows=tuple(rows),
        stars=len(curves),
        fwhm=fwhm,
        settings=settings,
        findings=tuple(_findings(rows, run)),
        candidates=tuple(candidates),
        troubles=tuple(troubles),
        reference=grey(small, *limits_of(small)),
        reference_shape=reference.shape,
        season=season_drawing(rows),
        scatter=None if scatter is None else scatter_drawing(scatter),
        photon_limit=scatter is not None and scatter.limit is not None,
        kernels=tuple(_kernels(rows, run)),
        variables=tuple(
            _card(number, candidate, stamps.get(number), curves)
            for number, candidate in enumerate(best, 1)
        ),
    )
    path = run / "report.html"
    write_text(path, page_of(content))
    return Made((path,), {"variables": len(best), "frames": len(rows)})


def _findings(rows: Sequence[FrameRow], run: Path) -> list[tuple[str, Finding]]:
    """(frame, finding); those of the reference bear its name."""
    made = State.read(run, "reference", "reference")
    said = [("the reference", f) for f in (made.findings if made is not None else ())]
    for row in rows:
        states = (State.read(run, step, row.name) for step in _STEPS)
        each = dict.fromkeys(f for state in states if state is not None for f in state.findings)
        said += [(row.name, finding) for finding in each]
    return said


def _conditions(rows: Sequence[FrameRow], run: Path) -> list[dict[str, Any]]:
    used = [row for row in rows if row.status == "done"]
    states = ((row, State.read(run, "measure", row.name)) for row in used)
    return [{**s.values, "scale": row.scale} for row, s in states if s is not None]


def _kernels(rows: Sequence[FrameRow], run: Path) -> list[KernelPicture]:
    """The kernel at the middle of the frame; evenly chosen frames where there are too many."""
    used = [r for r in rows if (run / "differences" / f"{r.name}_diff.fits").is_file()]
    used.sort(key=lambda r: (r.time is None, r.time or 0.0, r.name))
    chosen = np.unique(np.linspace(0, max(0, len(used) - 1), min(len(used), MOST_KERNELS)).round())
    pictures = []
    for row in (used[int(i)] for i in chosen):
        stored = read_difference(run / "differences" / f"{row.name}_diff.fits")
        height, width = stored.difference.shape
        at = int(stored.region_of(np.array([width / 2]), np.array([height / 2]))[0])
        kernel = stored.fits[at].kernel
        picture = signed(kernel, float(np.abs(kernel).max()) or 1.0, "PuOr_r")
        pictures.append(KernelPicture(row.name, picture, kernel.shape, stored.fits[at].scale))
    return pictures


def _stamps(
    best: Sequence[Mapping[str, Any]], sources: Mapping[str, Source], settings: Settings,
    run: Path, fwhm: float,
) -> dict[int, Stamps]:  # fmt: skip
    """Stamps of the best epoch of each candidate; no frame is read twice."""
    by_frame: dict[str, list[tuple[int, Mapping[str, Any]]]] = {}
    for number, candidate in enumerate(best, 1):
        if candidate["best_frame"] in sources:
            by_frame.setdefault(candidate["best_frame"], []).append((number, candidate))
    made: dict[int, Stamps] = {}
    for name, wanted in sorted(by_frame.items()):
        state = State.read(run, "register", name)
        if state is None or not sources[name].path.is_file():
            continue
        reference = reference_of(run).frame
        frame, _ = registered(
            sources[name], registration_from(state.values), reference.shape, reference.wcs, settings
        )
        stored = read_difference(run / "differences" / f"{name}_diff.fits")
        images = (
            np.where(reference.mask.numpy(), np.nan, reference.data.numpy()),
            np.where(frame.mask.numpy(), np.nan, frame.data.numpy()),
            _significance(stored),
        )
        for number, c in wanted:
            at = int(stored.region_of(np.array([c["x"]]), np.array([c["y"]]))[0])
            scale = stored.fits[at].scale
            one, two, three = (
                cut(i.astype(np.float64), c["x"], c["y"], half_width(fwhm)) for i in images
            )
            made[number] = _stamp(name, one, two, three, scale)
    return made


def _stamp(
    name: str, reference: FloatArray, target: FloatArray, difference: FloatArray, scale: float
) -> Stamps:
    """The target over P, and both less their sky, so that they can be blinked."""
    reference = reference - _sky(reference)
    target = (target - _sky(target)) / (scale if scale > 0 else 1.0)
    low, high = limits_of(reference)
    known = np.abs(difference[np.isfinite(difference)])
    limit = max(5.0, float(np.percentile(known, 99.0))) if known.size else 5.0
    return Stamps(
        name, grey(reference, low, high), grey(target, low, high), signed(difference, limit), limit
    )


def _sky(stamp: FloatArray) -> float:
    good = stamp[np.isfinite(stamp)]
    return float(np.percentile(good, 20.0)) if good.size else 0.0


def _significance(stored: FrameDifference) -> FloatArray:
    known = np.isfinite(stored.variance) & (stored.variance > 0)
    error = np.sqrt(np.where(known, stored.variance, 1.0))
    z: FloatArray = np.where(known, stored.difference / error, np.nan)
    return z


def _card(
    number: int, candidate: Mapping[str, Any], stamps: Stamps | None, curves: LightCurves
) -> VariableCard:
    if candidate["kind"] == "doubtful":
        return VariableCard(number, dict(candidate), None, stamps)
    curve = curve_of(curves.candidate(candidate["candidate"]))
    title = f"Light curve of candidate {number}"
    drawing = curve_drawing(curve, f"curve{number}", title) if len(curve.time) else None
    return VariableCard(number, dict(candidate), drawing, stamps)
