"""Table 3 and the light curves of a real series as a page and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..product import replacing
from .cells import CELLS
from .paper import PAPER_TABLE3, PAPER_TABLE3_COUNTS
from .real_summary import MAGNITUDE, REAL_METHODS, Scatter, SeriesSummary
from .tables import write_text

__all__ = ["draw_series", "ratio_with_error", "write_series_page"]

FloatArray = NDArray[np.float64]

_DIGITS = {"P": 4, "mfb": 4, "mfv": 4, "mpb": 3, "mpv": 3}
_NAMES = {
    "b08": "B08, 5 sigma clipping", "huber": "robust loss (the paper's)",
    "plain": "eq 8, no prior", "prior": "robust loss, prior",
}  # fmt: skip
_COLOURS = {"b08": "tab:blue", "huber": "tab:red", "plain": "tab:orange", "prior": "tab:green"}
_SHOWN = 4  # light curves in the picture


def write_series_page(summary: SeriesSummary, path: Path) -> None:
    """Markdown: Table 3, the scatter of the light curves, the frames left out."""
    series = summary.series
    stars = {r.star for r in summary.rows}
    kernels = [r.kernel for r in summary.rows]
    lines = [
        "# Section 4, rerun on a real series", "",
        f"Reference {series.reference.name} (FWHM {series.reference.fwhm:.2f} pixels), "
        f"{len(series.epochs)} targets, {len(stars)} stars, "
        f"{len({(r.epoch, r.star) for r in summary.rows})} stamps, kernels of "
        f"{min(kernels)} to {max(kernels)} pixels a side.", "",
        "Medians (MPB and MPV: mean and variance), with standard errors in parentheses; in square",
        "brackets the number of the paper, for its own frames. MPB and MPV are those of the stamps",
        "within the cut of eq 34.", "",
    ]  # fmt: skip
    for metric, digits in _DIGITS.items():
        lines += [f"## {metric if metric == 'P' else metric.upper()}", ""]
        lines += [_heading("| SNR | Cell | n ")]
        lines += ["|---" * (3 + len(REAL_METHODS)) + "|"]
        lines += [*_metric_lines(summary, metric, digits), ""]
    lines += ["## Scatter of the light curves", "", *_scatter_lines(summary), ""]
    if series.rejected:
        lines += ["## Frames left out", ""]
        lines += [f"- {name}: {reason}" for name, reason in series.rejected] + [""]
    write_text("\n".join(lines), path)


def _heading(start: str) -> str:
    return start + "| " + " | ".join(_NAMES[m] for m in REAL_METHODS) + " |"


def _paper_place(regime: int, wide_reference: bool, wide_kernel: bool) -> int | None:
    return 2 * (regime - 2) + (not wide_kernel) if regime > 1 and wide_reference else None


def _metric_lines(summary: SeriesSummary, metric: str, digits: int) -> list[str]:
    mine = {(c.method, c.cell): c for c in summary.cells if c.metric == metric}
    lines = []
    for cell in CELLS:
        if ("b08", cell) not in mine:
            continue
        place = _paper_place(cell.regime, cell.wide_reference, cell.wide_kernel)
        entries = []
        for method in REAL_METHODS:
            c = mine[method, cell]
            text = f"{c.value:.{digits}f} ({c.error:.{digits}f})"
            theirs = PAPER_TABLE3.get((method, metric))
            if theirs is not None and place is not None:
                text += f" [{theirs[place]:.{digits}f}]"
            if metric.startswith("mp"):
                text += f", {summary.kept[method, f'{cell.regime} {cell.name}']}/{c.n}"
            entries.append(text)
        n = f"{mine['b08', cell].n}"
        if place is not None:
            n += f" [{PAPER_TABLE3_COUNTS[place]}]"
        lines.append(f"| {cell.regime} | {cell.name} | {n} | " + " | ".join(entries) + " |")
    return lines


def ratio_with_error(values: FloatArray) -> tuple[float, float]:
    """The median of some ratios and its standard error, by the bootstrap over stars."""
    rng = np.random.default_rng(0)
    drawn = rng.choice(values, (2000, len(values)))
    return float(np.median(values)), float(np.median(drawn, axis=1).std())


def _scatter_lines(summary: SeriesSummary) -> list[str]:
    lines = [
        "Each star's light curve is shifted to a median of 0. Medians over stars; the ratios are",
        "to the robust loss without the prior, star by star, with standard errors.", "",
        "| Method | rms [mag] | robust [mag] | robust / sigma_min | rms ratio | robust ratio | "
        "stars with less rms |",
        "|---" * 7 + "|",
    ]  # fmt: skip
    for method in REAL_METHODS:
        mine = [s for s in summary.scatter if s.method == method]
        rms, robust = (MAGNITUDE * _relative(mine, name) for name in ("rms", "robust"))
        over = np.median([s.robust / s.least for s in mine])
        text = f"| {_NAMES[method]} | {np.median(rms):.4f} | {np.median(robust):.4f} | {over:.2f} "
        if method != "huber":
            ratios = {name: summary.ratios(name, method) for name in ("rms", "robust")}
            for values in ratios.values():
                text += "| {:.3f} ({:.3f}) ".format(*ratio_with_error(values))
            text += f"| {(ratios['rms'] < 1).sum()} of {len(mine)} |"
        else:
            text += "| 1 | 1 | |"
        lines.append(text)
    return lines


def _relative(scatter: list[Scatter], measure: str) -> FloatArray:
    return np.array([getattr(s, measure) / abs(s.flux) for s in scatter])


def draw_series(summary: SeriesSummary, path: Path) -> None:
    """Scatter against magnitude, the ratios to the fit without a prior, and some light curves."""
    figure = Figure(figsize=(11.0, 8.5), layout="constrained")
    grid = figure.add_gridspec(2 + _SHOWN // 2, 2, height_ratios=[1.6, 1.2] + [1] * (_SHOWN // 2))
    for column, measure in enumerate(("rms", "robust")):
        _draw_scatter(figure.add_subplot(grid[0, column]), summary, measure)
        _draw_ratios(figure.add_subplot(grid[1, column]), summary, measure)
    stars = sorted({s.star for s in summary.scatter})
    shown = [stars[i] for i in np.linspace(0, len(stars) - 1, _SHOWN).round().astype(int)]
    for place, star in enumerate(dict.fromkeys(shown)):
        _draw_curve(figure.add_subplot(grid[2 + place // 2, place % 2]), summary, star)
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=110)


def _draw_scatter(axes: Any, summary: SeriesSummary, measure: str) -> None:
    for method in REAL_METHODS:
        mine = [s for s in summary.scatter if s.method == method]
        axes.plot(
            _magnitudes(mine), MAGNITUDE * _relative(mine, measure), "o", ms=4, mfc="none",
            color=_COLOURS[method], label=_NAMES[method],
        )  # fmt: skip
    floor = [s for s in summary.scatter if s.method == "huber"]
    least = MAGNITUDE * _relative(floor, "least")
    axes.plot(_magnitudes(floor), least, "k_", label="sigma_min")
    axes.set(yscale="log", xlabel="magnitude (instrumental)", ylabel=f"{measure} scatter [mag]")
    axes.legend(fontsize=7)


def _magnitudes(scatter: list[Scatter]) -> FloatArray:
    return np.array([-2.5 * np.log10(abs(s.flux)) for s in scatter])


def _draw_ratios(axes: Any, summary: SeriesSummary, measure: str) -> None:
    floor = [s for s in summary.scatter if s.method == "huber"]
    order = sorted(floor, key=lambda s: s.star)
    for method in REAL_METHODS:
        if method != "huber":
            ratios = summary.ratios(measure, method)
            axes.plot(_magnitudes(order), ratios, "o", ms=4, mfc="none", color=_COLOURS[method])
    axes.axhline(1.0, color=_COLOURS["huber"], lw=0.8, ls="--")
    axes.set(yscale="log", xlabel="magnitude (instrumental)")
    axes.set_ylabel(f"{measure} over that of\nthe robust loss", fontsize=8)


def _draw_curve(axes: Any, summary: SeriesSummary, star: int) -> None:
    flux = next(s.flux for s in summary.scatter if s.star == star)
    epochs = [e.name for e in summary.series.epochs]
    for i, method in enumerate(REAL_METHODS):
        mine = [r for r in summary.rows if (r.star, r.method) == (star, method)]
        x = np.array([epochs.index(r.epoch) for r in mine]) + 0.12 * (i - 1.5)
        y = np.array([r.flux for r in mine])
        bars = MAGNITUDE * np.array([r.sigma_min / r.P for r in mine]) / flux
        y = -MAGNITUDE * (y - np.median(y)) / flux
        axes.errorbar(x, y, bars, fmt="o", ms=3, lw=0.8, color=_COLOURS[method])
    axes.axhline(0.0, color="grey", lw=0.6)
    axes.invert_yaxis()
    axes.set_xlabel("epoch, in the order of time", fontsize=8)
    axes.set_ylabel(f"star {star} [mag]", fontsize=8)
