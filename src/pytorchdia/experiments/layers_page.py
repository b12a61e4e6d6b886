"""Figure 9 as a page and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..product import replacing
from .rounds import Timing
from .scaling import TimingSummary, summarise_timings, write_summaries
from .speed_page import machine_lines, powers, table
from .tables import write_text

__all__ = ["draw_layers", "write_layers"]

_TITLES = {"model": "Model image", "gradient": "Loss and gradient"}
_TURN = 23  # side of the kernel beyond which the paper's times change their behaviour


def write_layers(timings: Sequence[Timing], folder: Path) -> None:
    """``cudnn.csv`` with every median, and ``cudnn.md``, which says what was measured."""
    summaries = summarise_timings(timings)
    write_summaries(summaries, folder / "cudnn.csv")
    image = summaries[0].image
    lines = ["# cudnn: the convolution as a network layer (section 5.3)", ""]
    lines += [_which(summaries), "", *machine_lines(folder)]
    lines += [
        f"Timed: one product on an image of {image} x {image} pixels whose reference is on the",
        "device already, float32: the model image; and loss with gradient, of which a fit by the",
        "paper's algorithm takes hundreds. The paper's Figure 9 shows whole fits, and so also how",
        "many products they took. Contenders take turns; each runs twice in its turn and the",
        "second run counts. Seconds are medians with their quartiles.", "",
    ]  # fmt: skip
    for scene, title in _TITLES.items():
        mine = [s for s in summaries if s.scene == scene]
        if not mine:
            continue
        formal = {(s.method, "kernel"): 2 for s in mine if s.method.startswith("layer")}
        lines += [f"## {title}", "", *table(mine, "kernel"), "", *powers(mine, "kernel", formal)]
        lines += _over_tiles(mine)
    lines += [
        "The paper finds non-deterministic cuDNN slightly faster at all small kernels, a clear",
        f"change of behaviour beyond {_TURN} x {_TURN}, and less predictable times after it.", "",
    ]  # fmt: skip
    write_text("\n".join(lines), folder / "cudnn.md")


def _which(summaries: Sequence[TimingSummary]) -> str:
    if any(s.device == "cuda" for s in summaries):
        return "**Measured: cuDNN, on a CUDA device**, on, deterministic and off, as in the paper."
    return (
        "**Measured: oneDNN on a CPU, on and off; not cuDNN.** This machine has no CUDA device, "
        "and oneDNN is what takes cuDNN's place on a CPU: an analogue, not the paper's experiment."
    )


def _over_tiles(summaries: Sequence[TimingSummary]) -> list[str]:
    """The layers over the tiles, which are the last contender."""
    lines = []
    at = {(s.method, s.kernel): s.median for s in summaries if s.n}
    for method in dict.fromkeys(s.method for s in summaries):
        ratios = {}
        for kernel in sorted(k for m, k in at if m == method and (summaries[-1].method, k) in at):
            ratios[kernel] = at[method, kernel] / at[summaries[-1].method, kernel]
        if method != summaries[-1].method and ratios:
            listed = ", ".join(f"{r:.2g} at {k}" for k, r in ratios.items())
            lines.append(f"- {method} over {summaries[-1].method}: {listed}.")
    return [*lines, ""]


def draw_layers(timings: Sequence[Timing], path: Path) -> None:
    """Seconds against the size of the kernel, a panel for each product."""
    summaries = summarise_timings(timings)
    scenes = [scene for scene in _TITLES if any(s.scene == scene for s in summaries)]
    figure = Figure(figsize=(5.2 * len(scenes), 4.4), layout="constrained")
    grid: Any = figure.subplots(1, len(scenes), squeeze=False)
    for axes, scene in zip(grid[0], scenes, strict=True):
        for label in dict.fromkeys(s.label for s in summaries):
            mine = [s for s in summaries if s.scene == scene and s.label == label and s.n]
            median = [s.median for s in mine]
            bars = [[s.median - s.q25 for s in mine], [s.q75 - s.median for s in mine]]
            axes.errorbar([s.kernel for s in mine], median, bars, fmt="o-", label=label)
        axes.axvline(_TURN, color="grey", lw=0.8, ls=":")
        title = f"{_TITLES[scene]}, {summaries[0].image} x {summaries[0].image}"
        axes.set(yscale="log", title=title, ylabel="median time [s]")
        axes.set_xlabel("side of the kernel [pixels]")
        axes.legend(fontsize=8)
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=110)
