"""What the command line shows: tables for people, JSON for scripts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from ..run.state import finite
from ..subtraction import with_error

if TYPE_CHECKING:
    from ..frame import Frame
    from ..product import Summary
    from ..subtraction import Subtraction

__all__ = [
    "progress_bar",
    "result_as_json",
    "show_error",
    "show_result",
    "show_summary",
    "show_written",
    "stderr",
    "step_bars",
    "summary_as_json",
]

stderr = Console(stderr=True)
"""For people; standard output is left to what scripts read."""

_CAMERA_UNITS = {"gain": "e-/ADU", "read_noise": "e-", "saturation": "ADU", "exposure": "s"}


def show_error(message: str) -> None:
    """One red sentence on standard error."""
    stderr.print(f"[bold red]Error:[/] {escape(message)}", soft_wrap=True, highlight=False)


def _progress(text: str) -> Progress:
    """Bars on standard error, with what is done and the time left."""
    return Progress(
        TextColumn(text), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(), console=stderr,
    )  # fmt: skip


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error with the time left; call it with what is done and the total."""
    with _progress(what) as progress:
        task = progress.add_task(what, total=None)

        def report(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield report


@contextmanager
def step_bars(silent: bool = False) -> Iterator[Callable[[str, int, int], None] | None]:
    """A bar for each step, with the time left; None to call if ``silent``."""
    if silent:
        yield None
        return
    with _progress("{task.description:>12}") as progress:
        tasks: dict[str, TaskID] = {}

        def report(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = progress.add_task(step, total=total, completed=done)
            progress.update(tasks[step], completed=done)

        yield report


def show_result(
    result: Subtraction, target: Frame, reference: Frame, written: Iterable[Path]
) -> None:
    """What was used, what came out, what to know about it, and where it lies."""
    camera = _table("Used", ("what", "target", "reference"), _camera_rows(target, reference))
    stderr.print(camera)
    stderr.print(_table("Settings", ("what", "value"), _settings_rows(result)))
    stderr.print(_table("Result", ("what", "value"), _result_rows(result)))
    for finding in result.findings:
        colour = "yellow" if finding.level == "warning" else "cyan"
        stderr.print(f"[{colour}]{finding.level}[/] {escape(finding.message)}", highlight=False)
    for path in written:
        show_written(path)


def show_written(path: Path, more: str = "") -> None:
    """That a file was written."""
    stderr.print(f"[green]wrote[/] {escape(f'{path}{more}')}", soft_wrap=True, highlight=False)


def result_as_json(result: Subtraction, written: Iterable[Path]) -> str:
    """The outcome as a JSON object."""
    b = result.background
    outcome = {
        "status": result.status.name,
        "message": result.status.value,
        "scale": result.scale,
        "scale_error": result.scale_error,
        "background": {
            "exponents": b.exponents,
            "coefficients": b.coefficients.tolist(),
            "errors": b.errors.tolist(),
        },
        "diagnostics": result.diagnostics.as_dict(),
        "settings": dict(result.settings),
        "findings": [asdict(finding) for finding in result.findings],
        "files": [str(path) for path in written],
    }
    return json.dumps(finite(outcome), indent=2)


def summary_as_json(summary: Summary) -> str:
    """The same as :func:`show_summary` as a JSON object."""
    return json.dumps(finite(asdict(summary)), indent=2)


def show_summary(summary: Summary) -> None:
    """Tables of what a result file holds, on standard output."""
    out = Console()
    out.print(_table("HDUs", ("name", "size", "type"), summary.hdus))
    rows = [(n, f"{v:.8g}", f"{e:.2g}", u) for n, v, e, u in summary.parameters]
    out.print(_table("Parameters", ("name", "value", "error", "unit"), rows))
    out.print(_table("How it was made", ("name", "value"), summary.diagnostics.items()))
    flagged = [(meaning, str(n)) for meaning, n in summary.flagged.items() if n]
    out.print(_table("Pixels not used", ("why", "pixels"), flagged))
    out.print(_table("Findings", ("level", "code", "message"), summary.findings))


def _camera_rows(target: Frame, reference: Frame) -> Iterable[tuple[str, ...]]:
    frames = (target, reference)
    yield "frame", *(f.name for f in frames)
    yield "size", *(f"{f.shape[0]} x {f.shape[1]}" for f in frames)
    yield "bad pixels", *(str(int(f.mask.sum())) for f in frames)
    for name, unit in _CAMERA_UNITS.items():
        cells = []
        for frame in frames:
            value = getattr(frame.detector, name)
            source = frame.detector.sources.get(name, "")
            cells.append("unknown" if value is None else f"{value:.6g} {unit} ({source})")
        yield name.replace("_", " "), *cells


def _settings_rows(result: Subtraction) -> Iterable[tuple[str, str]]:
    d = result.diagnostics
    for name, value in result.settings.items():
        if name == "penalty" and value.startswith("GaussianProcessPrior("):  # the file holds it all
            yield name, f"prior by the evidence, {d.n_effective:.0f} effective parameters"
        elif name not in ("target", "reference"):
            yield name, value
    yield "device, dtype", f"{d.device}, {d.dtype}"
    yield "reference background", f"{d.reference_background:.6g} ADU taken off"


def _result_rows(result: Subtraction) -> Iterable[tuple[str, str]]:
    d, b = result.diagnostics, result.background
    yield "status", result.status.value
    yield "P", with_error(result.scale, result.scale_error)
    for (m, n), value, error in zip(b.exponents, b.coefficients, b.errors, strict=True):
        yield f"background, x^{m} y^{n}", f"{with_error(value, error)} ADU"
    yield "pixels used", f"{d.n_pixels} of {result.mask.size}"
    yield "loss, steps", f"{d.loss:.4f}, {d.steps}"
    yield "reduced chi-square", f"{d.reduced_chi_square:.4f}"
    yield "residual scale on the sky", f"{d.residual_scale:.3f}"
    if d.drift_error > 0:
        yield "light left in the difference", f"{100 * d.drift:+.2f} ± {100 * d.drift_error:.2f} %"
    yield "time", f"{d.seconds:.2f} s"


def _table(title: str, columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    return table
