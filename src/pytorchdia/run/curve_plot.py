"""The picture of a light curve."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ..errors import InputError
from ..product import check_writable, replacing
from .lightcurves import LightCurve

__all__ = ["draw_light_curve", "save_light_curve"]


def draw_light_curve(curve: LightCurve) -> Figure:
    """Flux relative to the reference against time, with error bars; flagged epochs are hollow."""
    table = curve.to_table()
    known = ~(
        np.ma.getmaskarray(table["time"])
        | np.ma.getmaskarray(table["flux"])
        | np.ma.getmaskarray(table["error"])
    )
    table = table[known]
    clean = np.asarray(table["flags"]) == 0
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for rows, face, label in ((clean, None, "clean"), (~clean, "none", "flagged")):
        if rows.any():
            axes.errorbar(
                np.asarray(table["time"])[rows], np.asarray(table["flux"])[rows],
                np.asarray(table["error"])[rows], fmt="o", markerfacecolor=face, label=label,
            )  # fmt: skip
    scales = sorted({str(s) for s in table["time_scale"]})
    axes.set_xlabel(f"MJD ({', '.join(scales)})")
    axes.set_ylabel("flux - reference [ADU]")
    axes.set_title(f"{curve.title} at x = {curve.x:.1f}, y = {curve.y:.1f}")
    if not clean.all():
        axes.legend()
    return figure


def save_light_curve(curve: LightCurve, path: Path, overwrite: bool = False) -> Path:
    """Write :func:`draw_light_curve` to a file, whole or not at all.

    Raises
    ------
    InputError
        The ending is that of no picture.
    WriteError
        The file exists and ``overwrite`` is False, or it cannot be written.
    """
    check_writable(path, overwrite)
    figure = draw_light_curve(curve)
    known = figure.canvas.get_supported_filetypes()
    if path.suffix and path.suffix[1:].lower() not in known:
        raise InputError(
            f"{path.name} ends in none of {', '.join(known)}; the ending tells the kind of picture."
        )
    with replacing(path, path.suffix or ".png") as partial:
        figure.savefig(partial)
    return path
