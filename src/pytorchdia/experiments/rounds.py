"""Timings that are kept: contenders take turns, and each round of a point is one file.

A run that was interrupted goes on with the round where it stopped; a later run with more points or
rounds adds only what is missing. A folder holds the timings of one machine.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .clock import clocked, machine, settled
from .tables import read_rows, write_rows, write_text

__all__ = ["LEAST", "Contender", "Job", "Point", "StoppedError", "Timing", "run_rounds"]

LEAST = 3  # rounds of which a median is taken, at the least
ENOUGH = 1.0  # seconds; who takes longer runs once in each round, not twice
_COLUMNS = (
    "scene", "image", "kernel", "method", "device", "round", "seconds", "reason", "status",
    "evaluations", "phi_i", "snr",
)  # fmt: skip

Job = Callable[[], dict[str, Any]]
"""What is timed; answers further columns (status, evaluations, phi_i, snr)."""


class StoppedError(Exception):
    """Raised by a job that has gone on for as long as it may."""


@dataclass(frozen=True)
class Point:
    """One size at which all contenders are timed.

    Parameters
    ----------
    scene : str
        What the images are, or what is computed of them.
    image, kernel : int
        Sides of the square image and kernel [pixels].
    rounds : int
        Rounds, at most.
    budget : float
        Seconds for one contender at this point. One that would need more for three rounds is left
        out; one that has used it up is done.
    """

    scene: str
    image: int
    kernel: int
    rounds: int
    budget: float

    def path(self, folder: Path, number: int) -> Path:
        """The file of one round."""
        return folder / f"{self.scene}-{self.image:04d}-{self.kernel:02d}-{number:03d}.csv"

    def limit(self, number: int) -> float:
        """Seconds that one run of a round may take: three of the first must fit the budget."""
        return self.budget if number else self.budget / LEAST


@dataclass(frozen=True)
class Contender:
    """A method on a device, and the powers of n and m by which its time is expected to grow."""

    method: str
    device: str
    growth: tuple[float, float]


@dataclass(frozen=True)
class Timing:
    """One row of a file. ``seconds`` is NaN where ``reason`` says why it was left out."""

    scene: str
    image: int
    kernel: int
    method: str
    device: str
    round: int
    seconds: float
    reason: str
    status: str
    evaluations: float
    phi_i: float
    snr: float

    @classmethod
    def read(cls, row: dict[str, str]) -> Timing:
        """A row of a CSV file; empty numbers are NaN."""

        def number(name: str) -> float:
            return float(row[name] or "nan")

        return cls(
            row["scene"], int(row["image"]), int(row["kernel"]), row["method"], row["device"],
            int(row["round"]), number("seconds"), row["reason"], row["status"],
            number("evaluations"), number("phi_i"), number("snr"),
        )  # fmt: skip

    @property
    def used(self) -> float:
        """Seconds of the machine that it took, with the run before it."""
        return self.seconds * (1.0 if self.seconds >= ENOUGH else 2.0)

    def of(self, contender: Contender) -> bool:
        """Whether this contender was timed here."""
        return (self.method, self.device) == (contender.method, contender.device)

    def at(self, point: Point) -> bool:
        """Whether it was timed at this point."""
        return (self.scene, self.image, self.kernel) == (point.scene, point.image, point.kernel)


def run_rounds(
    folder: Path,
    points: Sequence[Point],
    contenders: Sequence[Contender],
    make: Callable[[Point, Contender, int], Job | str],
    warm_up: Callable[[Contender], Any] = lambda contender: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    pause: float = 0.3,
) -> list[Timing]:
    """Time all contenders at all points, round by round, and keep every round.

    Parameters
    ----------
    folder : Path
        For ``timings/``, a file for each round, and ``machine.json``; made if it is not there.
    points : sequence of Point
        From cheap to dear: what a contender takes at one tells what it will take at the next.
    contenders : sequence of Contender
    make : callable
        Prepares a contender's turn of a round, outside the clock; a string is a reason to leave it
        out.
    warm_up : callable
        Called for each contender before the first missing round.
    progress : callable
        Called with the rounds done and their total.
    pause : float
        Seconds before each turn.

    Raises
    ------
    InputError
        The folder holds timings of another machine, or of another number of threads.
    """
    timings = folder / "timings"
    timings.mkdir(parents=True, exist_ok=True)
    _require_same_machine(folder / "machine.json")
    jobs = [(point, i) for point in points for i in range(point.rounds)]
    missing = {(p, i) for p, i in jobs if not p.path(timings, i).exists()}
    if missing:
        for contender in contenders:
            warm_up(contender)
    found: list[Timing] = []
    for done, (point, number) in enumerate(jobs):
        progress(done, len(jobs))
        path = point.path(timings, number)
        if (point, number) in missing:
            rows = [_turn(point, c, number, found, make, pause) for c in contenders]
            write_rows([row for row in rows if row is not None], path, _COLUMNS)
        found += [Timing.read(row) for row in read_rows(path)]
    progress(len(jobs), len(jobs))
    return found


def _turn(
    point: Point,
    contender: Contender,
    number: int,
    found: Sequence[Timing],
    make: Callable[[Point, Contender, int], Job | str],
    pause: float,
) -> dict[str, Any] | None:
    """One contender's turn as a row; None if it is done with, or was left out before."""
    row: dict[str, Any] = dict.fromkeys(_COLUMNS, "")
    row |= {"scene": point.scene, "image": point.image, "kernel": point.kernel}
    row |= {"method": contender.method, "device": contender.device, "round": number}
    mine = [t for t in found if t.of(contender) and t.at(point)]
    if any(t.reason for t in mine):
        return None
    if not mine:
        expected = _extrapolated(point, contender, found)
        if expected * LEAST > point.budget:
            row["reason"] = f"expected to take {expected:.0f} s"
            return row
    elif len(mine) >= LEAST:
        used = [t.used for t in mine]
        if sum(used) + float(np.median(used)) > point.budget:
            return None
    job = make(point, contender, number)
    if isinstance(job, str):
        return row | {"reason": job}
    outcomes: list[dict[str, Any]] = []
    try:
        row["seconds"] = settled(clocked(lambda: outcomes.append(job())), pause, ENOUGH)
    except StoppedError:
        return row | {"reason": f"stopped after {point.limit(number):.3g} s"}
    return row | outcomes[-1]


def _extrapolated(point: Point, contender: Contender, found: Sequence[Timing]) -> float:
    """What it should take, from the last point of the same scene that it was timed at; or 0."""
    known = [
        t for t in found if t.of(contender) and t.scene == point.scene and math.isfinite(t.seconds)
    ]
    if not known:
        return 0.0
    last = known[-1]
    seconds = [t.seconds for t in known if (t.image, t.kernel) == (last.image, last.kernel)]
    by_image, by_kernel = contender.growth
    growth: float = (point.image / last.image) ** by_image
    growth *= (point.kernel / last.kernel) ** by_kernel
    return float(np.median(seconds)) * growth


def _require_same_machine(path: Path) -> None:
    here = machine()
    if not path.exists():
        write_text(json.dumps(here, indent=1) + "\n", path)
        return
    there = json.loads(path.read_text())
    differ = [name for name in here if there.get(name) != here[name]]
    if differ:
        listed = ", ".join(f"{name} {there.get(name)} (now {here[name]})" for name in differ)
        raise InputError(
            f"{path.parent} holds timings of another machine or set-up: {listed}. Timings of two "
            "machines do not go together; choose another folder."
        )
