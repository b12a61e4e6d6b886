"""The plots of a report as SVG inside the page, drawn in the colours of its text."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..frames_table import FrameRow
from .numbers import Curve, Scatter

__all__ = ["curve_drawing", "scatter_drawing", "season_drawing"]

_INK, _BLUE, _ORANGE, _GREY = "#123456", "#3b7dd8", "#d9730d", "#8a8f98"
_MANY = 400  # points, above which they are drawn as an image, so that the page stays small


def season_drawing(rows: Sequence[FrameRow]) -> str:
    """Seeing, sky and P over time."""
    timed = [row for row in rows if row.time is not None]
    figure = Figure(figsize=(6.8, 5.8), layout="constrained")
    panels = figure.subplots(3, 1, sharex=True)
    start = float(np.floor(min((row.time for row in timed if row.time is not None), default=0.0)))
    names = ("fwhm", "sky", "scale")
    for axes, name, label in zip(
        panels, names, ("seeing, FWHM [pixels]", "sky [ADU]", "P"), strict=True
    ):
        for used, colour, marker in (("reference", _ORANGE, "s"), ("done", _BLUE, "o"),
                                     ("not used", _GREY, "x")):  # fmt: skip
            chosen = [r for r in timed if getattr(r, name) is not None and _use(r) == used]
            if chosen:
                _points(
                    axes, _column(chosen, "time") - start, _column(chosen, name),
                    _column(chosen, "scale_error") if name == "scale" else None,
                    colour, marker, used,
                )  # fmt: skip
        axes.set_ylabel(label)
    panels[-1].set_xlabel(f"MJD - {start:.0f}")
    handles: dict[str, Any] = {}
    for axes in panels:
        handles |= dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    if handles:
        figure.legend(
            handles=list(handles.values()),
            labels=list(handles),
            loc="outside upper center",
            ncols=3,
        )
    return _svg(figure, "season", "Seeing, sky level and photometric scale P of the frames over "
                f"time; {len(timed)} frames with a known time.")  # fmt: skip


def scatter_drawing(scatter: Scatter) -> str:
    """RMS of the light curves against magnitude."""
    figure = Figure(figsize=(6.8, 4.2), layout="constrained")
    axes = figure.subplots()
    kinds = ((~scatter.varies, _BLUE, "stars"), (scatter.varies, _ORANGE, "candidates"))
    for chosen, colour, label in kinds:
        if chosen.any():
            axes.plot(
                scatter.magnitude[chosen], scatter.rms[chosen], ".", color=colour, label=label,
                markersize=5 if colour == _BLUE else 8, rasterized=int(chosen.sum()) > _MANY,
            )  # fmt: skip
    axes.plot(*scatter.expected, color=_GREY, label="median of the error bars")
    if scatter.limit is not None:
        axes.plot(*scatter.limit, color=_INK, linestyle="--", label="photon limit")
    axes.set_yscale("log")
    axes.set(xlabel="magnitude on the reference (1 ADU: 25)", ylabel="RMS [mag]")
    axes.legend()
    return _svg(figure, "scatter", "Scatter of the light curves against magnitude for "
                f"{len(scatter.rms)} stars, with the photon limit.")  # fmt: skip


def curve_drawing(curve: Curve, name: str, title: str) -> str:
    """Flux against time, with error bars; flagged epochs are hollow.

    Flagged ones do not stretch the axis where most are clean; how many lie beyond it is said.
    """
    figure = Figure(figsize=(5.4, 2.7), layout="constrained")
    axes = figure.subplots()
    start = float(np.floor(curve.time.min())) if len(curve.time) else 0.0
    axes.axhline(0.0, color=_GREY, linewidth=0.8)
    beyond = _beyond(curve)
    flagged = f"flagged, {beyond.sum()} beyond" if beyond.any() else "flagged"
    for chosen, hollow in ((curve.clean, False), (~curve.clean, True)):
        if chosen.any():
            _points(
                axes, curve.time[chosen] - start, curve.flux[chosen], curve.error[chosen], _BLUE,
                "o", flagged if hollow else "clean", hollow,
            )  # fmt: skip
    if beyond.any():
        shown, error = curve.flux[~beyond], np.nan_to_num(curve.error[~beyond])
        low, high = min(0.0, (shown - error).min()), max(0.0, (shown + error).max())
        axes.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))
    if not curve.clean.all():
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, borderaxespad=0.1)
    axes.set(xlabel=f"MJD - {start:.0f}", ylabel="flux - reference [ADU]")
    return _svg(figure, name, f"{title} of {len(curve.time)} epochs.")


def _beyond(curve: Curve) -> NDArray[np.bool_]:
    """Flagged epochs further off than half the range of the clean ones, if these are the most."""
    flux = np.append(curve.flux[curve.clean], 0.0)
    if 2 * (len(flux) - 1) < len(curve.flux) or not np.ptp(flux):
        return np.zeros(len(curve.flux), dtype=np.bool_)
    reach = 0.5 * np.ptp(flux)
    far = (curve.flux < flux.min() - reach) | (curve.flux > flux.max() + reach)
    result: NDArray[np.bool_] = ~curve.clean & far
    return result


def _points(
    axes: Any, x: NDArray[Any], y: NDArray[Any], error: NDArray[Any] | None, colour: str,
    marker: str, label: str, hollow: bool = False,
) -> None:  # fmt: skip
    bars = None if error is None else np.nan_to_num(error)
    line, _, stems = axes.errorbar(
        x, y, bars, fmt=marker, color=colour, markersize=4.5, elinewidth=1,
        markerfacecolor="none" if hollow else colour, label=label,
    )  # fmt: skip
    for artist in (line, *stems):
        artist.set_rasterized(len(x) > _MANY)


def _column(rows: Sequence[FrameRow], name: str) -> NDArray[np.float64]:
    return np.array([np.nan if (v := getattr(r, name)) is None else v for r in rows], dtype=float)


def _use(row: FrameRow) -> str:
    if row.status != "done":
        return "not used"
    return "reference" if row.in_reference else "done"


def _svg(figure: Figure, name: str, label: str) -> str:
    """The figure as an element of the page, its ids made its own, its ink the page's."""
    file = io.StringIO()
    settings: dict[Any, Any] = {
        "svg.hashsalt": name, "savefig.dpi": 144, "svg.fonttype": "none",
        "font.size": 10, "font.family": "sans-serif",
        "text.color": _INK, "axes.edgecolor": _INK, "axes.labelcolor": _INK, "xtick.color": _INK,
        "ytick.color": _INK, "axes.facecolor": "none", "legend.framealpha": 0.0,
    }  # fmt: skip
    with rc_context(settings):
        _ink(figure)
        FigureCanvasSVG(figure)
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", dpi=144, metadata=nothing)
    text = file.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r"font(-family)?: ([^;\"]*?)'?DejaVu Sans'?[^;\"]*", _font, text)
    text = re.sub(r'width="[\d.]+pt" height="[\d.]+pt" ', "", text, count=1)
    text = text.replace(_INK, "currentColor")
    return text.replace("<svg", f'<svg class="plot" role="img" aria-label="{label}"', 1)


def _font(found: re.Match[str]) -> str:
    size = re.search(r"[\d.]+px", found[2])
    return f"font: {size[0]} sans-serif" if size else "font-family: sans-serif"


def _ink(figure: Figure) -> None:
    """Axes and words in the colour that stands for the page's text; no background."""
    figure.patch.set_alpha(0.0)
    for axes in figure.axes:
        axes.patch.set_alpha(0.0)
        axes.tick_params(which="both", colors=_INK)
        axes.xaxis.label.set_color(_INK)
        axes.yaxis.label.set_color(_INK)
        for spine in axes.spines.values():
            spine.set_color(_INK)
    own = [axes.get_legend() for axes in figure.axes]
    for legend in [*figure.legends, *(legend for legend in own if legend is not None)]:
        legend.get_frame().set_alpha(0.0)
        for word in legend.get_texts():
            word.set_color(_INK)
