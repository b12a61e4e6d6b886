"""Table 2 as a page and Figure 3 as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..product import replacing
from .cells import CELLS, CellValue
from .paper import PAPER, PAPER_COUNTS
from .scenarios import Scenario
from .tables import write_text

__all__ = ["draw_figure3", "write_page"]

METRICS = {"P": 4, "mse": 2, "mse_noisy": 2, "mfb": 4, "mfv": 4, "mpb": 3, "mpv": 3}
"""Metrics and the decimals with which they are printed, in the order of the table."""

_MORE = {
    "ratio": 3, "worst_ratio": 3, "pull": 2, "pull_scale": 2, "within_1": 2, "within_2": 2
}  # fmt: skip
"""Those that the paper does not have, printed where they were recorded."""

_LABELS = {
    "P": "P", "mse": "MSE, eq 28", "mse_noisy": "MSE, noisy target", "mfb": "MFB", "mfv": "MFV",
    "mpb": "MPB", "mpv": "MPV", "ratio": "MSE over that of the same loss without a prior",
    "worst_ratio": "The same, worst pair", "pull": "Pull of P, median",
    "pull_scale": "Pull of P, 1.4826 MAD", "within_1": "Share of P within one error",
    "within_2": "Share of P within two errors",
}  # fmt: skip
_IDEAL = {"P": 1.0, "mfb": 0.0, "mfv": 1.0, "mpb": 0.0, "mpv": 1.0}
_COLOURS = {
    "b08": "tab:blue", "plain": "tab:red", "prior": "tab:green", "b08-clip": "tab:blue",
    "gaussian": "tab:red", "huber": "tab:orange", "student-t": "tab:purple",
    "huber-prior": "tab:olive", "student-t-prior": "tab:green",
}  # fmt: skip


def write_page(summaries: Sequence[CellValue], scenario: Scenario, path: Path) -> None:
    """Markdown: a table for each metric with standard errors, beside the paper's numbers if any."""
    paper = scenario.is_the_papers
    lines = ["# Table 2, rerun" if paper else f"# Table 2, {scenario.name}", ""]
    if paper:
        lines += [
            "Medians (MPB and MPV: mean and variance) by cell, with standard errors in "
            "parentheses;",
            "in square brackets the number of the paper, whose MSE is that against the noisy "
            "target.",
        ]
        lines += ["", *_agreement(summaries, scenario)]
    else:
        lines += [
            f"{scenario.about} Medians (MPB and MPV: mean and variance) by cell, with standard",
            "errors in parentheses; P is told over the true P.",
        ]
    for metric, digits in (METRICS | _MORE).items():
        if table := _table(summaries, scenario, metric, digits):
            lines += ["", *table]
    write_text("\n".join([*lines, ""]), path)


def _agreement(summaries: Sequence[CellValue], scenario: Scenario) -> list[str]:
    """How far the numbers of the cells lie from the paper's, in errors, method by method.

    Those of both are counted, the paper's as if its pairs scattered like ours, and the rounding of
    its table.
    """
    lines = [
        "## Agreement with the paper", "",
        "Sum over the cells of the squared differences in units of their errors, those of both and "
        "the rounding of the paper's table; in parentheses the largest difference.", "",
    ]  # fmt: skip
    metrics = [m for m in METRICS if any(metric == m for _, metric in PAPER)]
    lines.append("| Method | Cells | " + " | ".join(_LABELS[m] for m in metrics) + " |")
    lines.append("|---" * (2 + len(metrics)) + "|")
    for method in scenario.methods:
        if (method.name, metrics[0]) not in PAPER:
            continue
        apart = [_apart(summaries, method.name, metric) for metric in metrics]
        entries = [
            f"{sum(z * z for z in each):.1f} ({max(each, key=abs):+.1f})" if each else ""
            for each in apart
        ]
        n = max(len(each) for each in apart)
        lines.append(f"| {method.label} | {n} | " + " | ".join(entries) + " |")
    return lines


def _apart(summaries: Sequence[CellValue], method: str, metric: str) -> list[float]:
    """Our numbers less the paper's, in units of the error of the difference."""
    rounding = 10.0 ** -METRICS[metric] / math.sqrt(12.0)
    found = []
    for s in summaries:
        if (s.method, s.metric) == (method, metric):
            i = CELLS.index(s.cell)
            both = s.error * math.sqrt(1.0 + s.n / PAPER_COUNTS[i])
            found.append((s.value - PAPER[method, metric][i]) / math.hypot(both, rounding))
    return found


def _table(
    summaries: Sequence[CellValue], scenario: Scenario, metric: str, digits: int
) -> list[str]:
    """The lines of one metric; none if it was not recorded."""
    mine = {(s.method, s.cell): s for s in summaries if s.metric == metric}
    methods = [m for m in scenario.methods if any(key[0] == m.name for key in mine)]
    if not methods:
        return []
    lines = [f"## {_LABELS[metric]}", ""]
    lines.append("| SNR | Cell | n | " + " | ".join(m.label for m in methods) + " |")
    lines.append("|---" * (3 + len(methods)) + "|")
    for i, cell in enumerate(CELLS):
        counts = [s.n for (_, where), s in mine.items() if where == cell]
        if not counts:
            continue
        entries = []
        for method in methods:
            text = _entry(mine.get((method.name, cell)), digits)
            theirs = PAPER.get((method.name, metric)) if scenario.is_the_papers else None
            entries.append(text if theirs is None else f"{text} [{theirs[i]:.{digits}f}]")
        n = f"{counts[0]} [{PAPER_COUNTS[i]}]" if scenario.is_the_papers else f"{counts[0]}"
        lines.append(f"| {cell.regime} | {cell.name} | {n} | " + " | ".join(entries) + " |")
    return lines


def _entry(s: CellValue | None, digits: int) -> str:
    if s is None:
        return ""
    error = f" ({s.error:.{digits}f})" if math.isfinite(s.error) else ""
    return f"{s.value:.{digits}f}{error}"


def draw_figure3(summaries: Sequence[CellValue], scenario: Scenario, path: Path) -> None:
    """One row for each metric, one column for each method, as in Figure 3 of the paper.

    Circles tell the sampling of the reference and crosses that of the kernel: big where the width
    is above one pixel. Bars are the 16th and 84th percentiles; of MPB and MPV, standard errors.
    """
    methods = [m for m in scenario.methods if any(s.method == m.name for s in summaries)]
    figure = Figure(figsize=(3.0 * len(methods) + 1.0, 1.9 * len(METRICS)), layout="constrained")
    grid: Any = figure.subplots(
        len(METRICS), len(methods), sharey="row", sharex=True, squeeze=False
    )
    for row, metric in zip(grid, METRICS, strict=True):
        for axes, method in zip(row, methods, strict=True):
            for s in summaries:
                if (s.method, s.metric) == (method.name, metric):
                    _point(axes, s, _COLOURS[method.name])
            if metric in _IDEAL:
                axes.axhline(_IDEAL[metric], color="green", ls="--", lw=0.8)
            if metric == "mse":
                axes.set_yscale("log")
        row[0].set_ylabel(_LABELS[metric])
    for axes, method in zip(grid[0], methods, strict=True):
        axes.set_title(method.label, fontsize=9)
    for axes in grid[-1]:
        axes.set(xlabel="SNR regime", xticks=[1, 2, 3], xlim=(0.5, 3.5))
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=110)


def _point(axes: Any, s: CellValue, colour: str) -> None:
    place = 2 * (not s.cell.wide_reference) + (not s.cell.wide_kernel)
    x = s.cell.regime + 0.17 * (place - 1.5)
    bars = (s.value - s.low, s.high - s.value) if s.high > s.low else (s.error, s.error)
    axes.errorbar(x, s.value, [[bars[0]], [bars[1]]], color=colour, lw=0.8)
    size = {True: 9, False: 5}
    axes.plot(x, s.value, "o", mfc="none", color=colour, ms=size[s.cell.wide_reference])
    axes.plot(x, s.value, "x", color=colour, ms=size[s.cell.wide_kernel] - 2)
