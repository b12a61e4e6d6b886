"""The table of frames: one row for each frame of a run, whatever became of it."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import ascii  # noqa: A004
from astropy.table import MaskedColumn, Table

from ..errors import ReadError
from ..preparation.quality import Grade
from ..preparation.register import Registration
from .state import Outcome, State, write_text

__all__ = ["FrameRow", "read_frames", "write_frames"]


@dataclass(frozen=True)
class FrameRow:
    """What became of a frame; None for what is not known.

    Attributes
    ----------
    name, file : str
    status : str
        ``done``, ``failed``, ``rejected`` or ``to do``.
    step : str
        The last step that it went through, or in which it failed or was rejected.
    reason : str
        Why it failed or was rejected.
    time, bjd_tdb : float or None
        Middle of the exposure, MJD in ``time_scale``, and BJD.
    time_scale, filter : str
    exposure, sky, fwhm, ellipticity, masked_share, transparency : float or None
    n_stars, n_matched : int or None
    shift_x, shift_y, rotation : float or None
        On the reference's grid [pixels, degrees].
    registered_by : str
        ``stars``, ``wcs`` or ``same grid``; and whether it was resampled.
    in_reference : bool
    scale, scale_error, reduced_chi_square : float or None
        Of the subtraction.
    stars_measured, detections : int or None
    warnings : int
        Number of findings of that level.
    """

    name: str
    file: str
    status: str
    step: str = ""
    reason: str = ""
    time: float | None = None
    time_scale: str = ""
    bjd_tdb: float | None = None
    filter: str = ""
    exposure: float | None = None
    sky: float | None = None
    fwhm: float | None = None
    ellipticity: float | None = None
    n_stars: int | None = None
    masked_share: float | None = None
    transparency: float | None = None
    n_matched: int | None = None
    shift_x: float | None = None
    shift_y: float | None = None
    rotation: float | None = None
    registered_by: str = ""
    in_reference: bool = False
    scale: float | None = None
    scale_error: float | None = None
    reduced_chi_square: float | None = None
    stars_measured: int | None = None
    detections: int | None = None
    warnings: int = 0

    @classmethod
    def of(
        cls, name: str, file: str, states: Mapping[str, State | None], grade: Grade | None,
        in_reference: bool,
    ) -> FrameRow:  # fmt: skip
        """The row of a frame from its states, in the order of steps, and its grade."""
        values: dict[str, Any] = {"in_reference": in_reference}
        status, step, reason, warnings = "to do", "", "", 0
        for state in states.values():
            if state is None:
                break
            step = state.step
            warnings += sum(finding.level == "warning" for finding in state.findings)
            if state.outcome is Outcome.FAILED:
                status, reason = "failed", state.reason
                break
            values |= _known(state)
        else:
            status = "done"
        if grade is not None and not grade.accepted and status != "failed":
            status, reason = "rejected", grade.reason
        return cls(name, file, status, step, reason, warnings=warnings, **values)


def write_frames(path: Path, rows: Sequence[FrameRow]) -> Path:
    """Write the table as ECSV.

    Raises
    ------
    WriteError
        It cannot be written.
    """
    text = io.StringIO()
    frames_as_table(rows).write(text, format="ascii.ecsv")
    write_text(path, text.getvalue())
    return path


def frames_as_table(rows: Sequence[FrameRow]) -> Table:
    """The rows as an astropy Table; what is not known is masked."""
    columns = []
    for entry in fields(FrameRow):
        values = [getattr(row, entry.name) for row in rows]
        kind = str(entry.type).removesuffix(" | None")
        empty = {"str": "", "float": 0.0, "int": 0, "bool": False}[kind]
        columns.append(
            MaskedColumn(
                [empty if v is None else v for v in values],
                entry.name,
                mask=[v is None for v in values],
                dtype=None if kind == "str" else kind,
            )
        )
    return Table(columns)


def read_frames(run: Path) -> Table:
    """The table of frames of a run.

    Raises
    ------
    ReadError
        There is none.
    """
    path = run / "frames.ecsv"
    try:
        return ascii.read(path.read_text(), format="ecsv")
    except (OSError, ValueError) as error:
        raise ReadError(
            f"{run} holds no table of frames ({path.name}), so it is no run of 'pytorchdia reduce'."
        ) from error


def _known(state: State) -> dict[str, Any]:
    """The columns that the state of a step fills."""
    names = {
        "measure": ("time", "time_scale", "bjd_tdb", "filter", "exposure", "sky", "fwhm",
                    "ellipticity", "n_stars", "masked_share"),
        "register": ("transparency", "n_matched"),
        "subtract": ("scale", "scale_error", "reduced_chi_square"),
        "photometry": ("detections",),
    }[state.step]  # fmt: skip
    values = {name: state.values[name] for name in names}
    if state.step == "register":
        v = state.values
        (_, _, shift_x), (_, _, shift_y) = v["matrix"]
        values |= {
            "shift_x": shift_x,
            "shift_y": shift_y,
            "registered_by": f"{v['by']}, {v['how']}",
        }
        values["rotation"] = _rotation(v["matrix"])
    if state.step == "photometry":
        values["stars_measured"] = state.values["measured"]
    return values


def _rotation(matrix: Any) -> float:
    return Registration(np.array(matrix), "shift", "stars", 0, 0.0).rotation
