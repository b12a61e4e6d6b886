"""Medians and spreads of timings, and the powers by which they grow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy.stats import linregress

from .rounds import Timing
from .tables import write_rows

__all__ = [
    "Power",
    "TimingSummary",
    "power_law",
    "spread_line",
    "summarise_timings",
    "write_summaries",
]


@dataclass(frozen=True)
class TimingSummary:
    """Seconds of one method at one point: median, quartiles, 16th and 84th percentiles.

    ``n`` is 0, and ``reason`` says why, where it was left out. ``not_converged`` counts fits that
    ended otherwise.
    """

    scene: str
    image: int
    kernel: int
    method: str
    device: str
    n: int
    median: float
    q25: float
    q75: float
    p16: float
    p84: float
    evaluations: float
    not_converged: int
    reason: str

    @property
    def label(self) -> str:
        """The method and its device."""
        return f"{self.method} [{self.device}]"


@dataclass(frozen=True)
class Power:
    """seconds ~ size^value; the standard error is NaN for fewer than three points."""

    value: float
    error: float
    n: int

    def __str__(self) -> str:
        if self.n < 2:
            return "one point only"
        if self.n < 3:
            return f"{self.value:.2f} (two points)"
        return f"{self.value:.2f} ± {self.error:.2f} ({self.n} points)"


def power_law(sizes: Sequence[float], seconds: Sequence[float]) -> Power:
    """The slope of lg seconds against lg size by least squares, with its standard error."""
    n = len(sizes)
    if n < 2:
        return Power(math.nan, math.nan, n)
    fit = linregress(np.log(sizes), np.log(seconds))
    error = 0.0 if math.isnan(fit.stderr) else float(fit.stderr)  # NaN for equal times
    return Power(float(fit.slope), error if n > 2 else math.nan, n)


def summarise_timings(timings: Sequence[Timing]) -> list[TimingSummary]:
    """One summary for each method at each point, in the order in which they were timed."""
    groups: dict[tuple[str, int, int, str, str], list[Timing]] = {}
    for t in timings:
        groups.setdefault((t.scene, t.image, t.kernel, t.method, t.device), []).append(t)
    found = []
    for key, all_of in groups.items():
        mine = [t for t in all_of if not t.reason]
        reason = next((t.reason for t in all_of if t.reason), "")
        median, q25, q75, p16, p84, evaluations = [math.nan] * 6
        if mine:
            levels = [50, 25, 75, 16, 84]
            median, q25, q75, p16, p84 = map(
                float, np.percentile([t.seconds for t in mine], levels)
            )
            evaluations = float(np.median([t.evaluations for t in mine]))
        failed = sum(t.status != "CONVERGED" for t in mine)
        found.append(
            TimingSummary(*key, len(mine), median, q25, q75, p16, p84, evaluations, failed, reason)
        )
    return found


def spread_line(s: TimingSummary) -> str:
    """``median (quartiles)`` in seconds, or why there is none."""
    if not s.n:
        return f"left out: {s.reason}"
    line = f"{s.median:.3g} ({s.q25:.3g} to {s.q75:.3g})"
    return f"{line}; after {s.n} rounds {s.reason}" if s.reason else line


def write_summaries(summaries: Sequence[TimingSummary], path: Path) -> None:
    """One line for each summary."""
    write_rows([asdict(s) for s in summaries], path)
