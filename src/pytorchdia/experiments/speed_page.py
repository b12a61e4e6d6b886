"""Figures 6 to 8 as pages and pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from scipy.stats import spearmanr

from ..product import replacing
from .rounds import Timing
from .scaling import TimingSummary, power_law, spread_line, summarise_timings, write_summaries
from .tables import write_text

__all__ = ["draw_speed", "machine_lines", "powers", "table", "write_speed"]

_FLAT, _GAUSSIAN = "Adam, L-BFGS; flat start", "Adam, L-BFGS; Gaussian start"
_TITLES = {
    "ccd": "CCD images (section 5.2)", "emccd": "EMCCD images (section 5.1), simulated",
}  # fmt: skip
_FORMAL = {
    ("B08", "image"): 2, ("B08", "kernel"): 4,
    ("Adam, L-BFGS; layer", "image"): 2, ("Adam, L-BFGS; layer", "kernel"): 2,
}  # fmt: skip
_SPEARMAN = {(_FLAT, "phi_i"): -0.69, (_GAUSSIAN, "phi_i"): -0.29,
             (_FLAT, "snr"): 0.63, (_GAUSSIAN, "snr"): 0.26}  # fmt: skip
_PAPER_GAIN = {"ccd": "4 to 5 (19 x 19 and 25 x 25)", "emccd": "at most about 1.1"}
_MANY = 8  # targets from which a rank correlation is given


def write_speed(timings: Sequence[Timing], folder: Path, name: str, against: str) -> None:
    """``name``.csv with every median, and ``name``.md, which sets them beside the paper's."""
    summaries = summarise_timings(timings)
    write_summaries(summaries, folder / f"{name}.csv")
    lines = [f"# {name}: seconds against the size of the {against}", ""]
    lines += machine_lines(folder)
    lines += [
        "Timed: from images in main memory to the solution in parameters. Methods take turns,",
        "round by round. Who takes less than a second runs twice in each turn, and the second run",
        "counts; small images are fitted first to warm up. Seconds are medians with their",
        "quartiles. Whoever is expected to need more than the time allowed for three rounds is",
        "left out, and a fit that goes on for longer is stopped.",
        "The spread on CCD images is that of the machine (one pair); on EMCCD images each round",
        "has its own target, as in the paper.", "",
    ]  # fmt: skip
    for scene in dict.fromkeys(s.scene for s in summaries):
        mine = [s for s in summaries if s.scene == scene]
        lines += [f"## {_TITLES[scene]}", "", *table(mine, against), ""]
        lines += powers(mine, against, _FORMAL)
        lines += _ratios(mine, scene, against)
    lines += _correlations(timings)
    write_text("\n".join(lines), folder / f"{name}.md")


def machine_lines(folder: Path) -> list[str]:
    """What was measured on, as a paragraph."""
    m = json.loads((folder / "machine.json").read_text())
    gpu = m["gpu"] or "no CUDA device: all that follows was measured on the CPU"
    return [
        f"Machine: {m['cpu']}, {m['cores']} cores, {m['threads']} threads of torch; {gpu}.",
        f"pytorchdia {m['pytorchdia']}, torch {m['torch']}, Python {m['python']}.", "",
        "The paper: PyTorchDIA on a Tesla K80, B08 in Cython on a Xeon at 2.30 GHz. Its curves are",
        "plots without tables; only what its text states is set beside these numbers.", "",
    ]  # fmt: skip


def table(summaries: Sequence[TimingSummary], against: str) -> list[str]:
    """Sizes down, methods across."""
    labels = list(dict.fromkeys(s.label for s in summaries))
    lines = [f"| {against} | " + " | ".join(labels) + " |", "|---" * (1 + len(labels)) + "|"]
    for size in dict.fromkeys(getattr(s, against) for s in summaries):
        row = {s.label: s for s in summaries if getattr(s, against) == size}
        cells = []
        for label in labels:
            s = row.get(label)
            text = "" if s is None else spread_line(s)
            if s is not None and s.not_converged:
                text += f"; {s.not_converged} of {s.n} not converged"
            cells.append(text)
        lines.append(f"| {size} | " + " | ".join(cells) + " |")
    return lines


def powers(
    summaries: Sequence[TimingSummary], against: str, formal: dict[tuple[str, str], int]
) -> list[str]:
    """The fitted power of each method, and the local one between its two largest sizes."""
    symbol = {"image": "n", "kernel": "m"}[against]
    lines = [
        f"Seconds ~ {symbol}^a, by least squares in log-log, with the standard error of a:", "",
        "| Method | a, all sizes | a, two largest | The paper's formal a |", "|---|---|---|---|",
    ]  # fmt: skip
    for label in dict.fromkeys(s.label for s in summaries):
        mine = [s for s in summaries if s.label == label and s.n]
        if not mine:
            continue
        sizes, seconds = [getattr(s, against) for s in mine], [s.median for s in mine]
        last = power_law(sizes[-2:], seconds[-2:])
        theirs = formal.get((mine[0].method, against), "")
        local = f"{last.value:.2f}" if last.n == 2 else ""
        lines.append(f"| {label} | {power_law(sizes, seconds)} | {local} | {theirs} |")
    return [*lines, ""]


def _ratios(summaries: Sequence[TimingSummary], scene: str, against: str) -> list[str]:
    """What the paper states in words, with this machine's numbers."""
    lines = []
    for device in dict.fromkeys(s.device for s in summaries):
        at = {(s.method, getattr(s, against)): s for s in summaries if s.device == device and s.n}
        for one, other, words in (
            ("B08", "Newton", "B08 over Newton"),
            ("B08", _FLAT, "B08 over Adam, L-BFGS (the paper, on its GPU and larger images: "
             "at least an order of magnitude)"),
            (_FLAT, _GAUSSIAN, f"flat over Gaussian start (the paper: {_PAPER_GAIN[scene]})"),
        ):  # fmt: skip
            pairs = [(size, s.median / at[other, size].median) for (method, size), s in at.items()
                     if method == one and (other, size) in at]  # fmt: skip
            if pairs:
                listed = ", ".join(f"{ratio:.2g} at {size}" for size, ratio in pairs)
                lines.append(f"- {words} [{device}]: {listed}.")
    return [*lines, ""] if lines else []


def _many_targets(timings: Sequence[Timing]) -> list[Timing]:
    """EMCCD fits of the size at which there are most targets, if they are enough for Figure 7."""
    mine = [t for t in timings if t.scene == "emccd" and math.isfinite(t.seconds)]
    rounds: dict[int, set[int]] = {}
    for t in mine:
        rounds.setdefault(t.image, set()).add(t.round)
    best = max(rounds, key=lambda n: len(rounds[n]), default=0)
    return [t for t in mine if t.image == best] if len(rounds.get(best, ())) >= _MANY else []


def _correlations(timings: Sequence[Timing]) -> list[str]:
    """Figure 7: rank correlations of time with the width and the SNR of the target."""
    many = _many_targets(timings)
    if not many:
        return []
    lines = [
        "## Time against width and SNR of the target (Figure 7)", "",
        f"Targets of {many[0].image} x {many[0].image} pixels (the paper: 158 real ones of",
        "482 x 482). Spearman's rank correlation with its p-value; also that of the number of",
        "evaluations, which does not feel the noise of the machine.", "",
        "| Method | Targets | With | Seconds | Evaluations | The paper |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for method, device in dict.fromkeys((t.method, t.device) for t in many):
        mine = [t for t in many if (t.method, t.device) == (method, device)]
        if method == "B08" or len(mine) < _MANY:
            continue
        for what, symbol in (("phi_i", "phi_I"), ("snr", "SNR")):
            x = [getattr(t, what) for t in mine]
            cells = [_rank(x, [t.seconds for t in mine]), _rank(x, [t.evaluations for t in mine])]
            theirs = _SPEARMAN.get((method, what), "")
            lines.append(
                f"| {method} [{device}] | {len(mine)} | {symbol} | {cells[0]} | {cells[1]} | "
                f"{theirs} |"
            )
    return [*lines, ""]


def _rank(x: Sequence[float], y: Sequence[float]) -> str:
    if len(set(y)) < 2:
        return "all equal"
    found: Any = spearmanr(x, y)
    return f"{found.statistic:.2f} (p = {found.pvalue:.2g})"


def draw_speed(timings: Sequence[Timing], path: Path, against: str) -> None:
    """Log-log, one panel for each scene; and seconds against width and SNR where there are many."""
    summaries = summarise_timings(timings)
    scenes = list(dict.fromkeys(s.scene for s in summaries))
    many = _many_targets(timings)
    count = len(scenes) + 2 * bool(many)
    figure = Figure(figsize=(4.6 * count, 4.4), layout="constrained")
    panels: list[Any] = list(figure.subplots(1, count, squeeze=False)[0])
    styles = _styles(summaries)
    for axes, scene in zip(panels, scenes, strict=False):
        for label, style in styles.items():
            mine = [s for s in summaries if s.scene == scene and s.label == label and s.n]
            if mine:
                median = [s.median for s in mine]
                bars = [[s.median - s.p16 for s in mine], [s.p84 - s.median for s in mine]]
                axes.errorbar(
                    [getattr(s, against) for s in mine], median, bars, label=label, **style
                )
        sizes = sorted({getattr(s, against) for s in summaries if s.scene == scene})
        axes.set(xscale="log", yscale="log", xlabel=f"side of the {against} [pixels]",
                 ylabel="median time [s]", title=_TITLES[scene])  # fmt: skip
        axes.set_xticks(sizes, [str(n) for n in sizes])
        axes.minorticks_off()
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7)
    for axes, (what, title) in zip(
        panels[len(scenes) :], (("phi_i", "phi_I [pixels]"), ("snr", "SNR")), strict=False
    ):
        for label, style in styles.items():
            seen = [t for t in many if f"{t.method} [{t.device}]" == label]
            axes.plot([getattr(t, what) for t in seen], [t.seconds for t in seen],
                      style["marker"], color=style["color"], ls="none", label=label)  # fmt: skip
        axes.set(yscale="log", xlabel=title, ylabel="time [s]",
                 title=f"Targets of {many[0].image} x {many[0].image}")  # fmt: skip
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=110)


def _styles(summaries: Sequence[TimingSummary]) -> dict[str, dict[str, str]]:
    """A colour for each method; dashes and squares for a CUDA device."""
    methods = list(dict.fromkeys(s.method for s in summaries))
    styles = {}
    for s in summaries:
        look = {"ls": "-", "marker": "o"} if s.device == "cpu" else {"ls": "--", "marker": "s"}
        styles[s.label] = {"color": f"C{methods.index(s.method)}", **look}
    return styles
