"""The commands of a season: ``init``, ``reduce``, ``status`` and ``lightcurve``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..errors import InputError, PyTorchDIAError, WriteError
from ..run.frames_table import read_frames
from ..run.init import init_chips, init_config
from ..run.lightcurves import LightCurve, LightCurves
from ..run.pipeline import RunSummary
from ..run.reduce import STEPS, reduce
from ..run.settings import Settings, load_settings
from . import display
from .display import stderr

__all__ = ["add_commands"]

SOME_FAILED = 6
"""Exit code of a run that went to its end, but not all of it went well."""

Run = Annotated[Path, typer.Argument(help="Folder of a run of 'pytorchdia reduce'.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
_STEPS = ", ".join(STEPS)


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this file to the command line."""
    for function, name in (
        (init, "init"),
        (reduce_season, "reduce"),
        (status, "status"),
        (lightcurve, "lightcurve"),
    ):
        app.command(name)(function)


def init(
    folder: Annotated[Path, typer.Argument(help="Folder that holds the frames of a season.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Settings file; FOLDER/config.toml if absent."),
    ] = None,
    chips: Annotated[
        bool,
        typer.Option("--chips", help="One file, and one run, for each chip of a mosaic (MEF)."),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace it.")] = False,
) -> None:
    """Write a commented settings file for the frames in FOLDER, from their headers."""
    if not chips:
        path = init_config(folder, output, overwrite)
        display.show_written(path, f"; read it, then: pytorchdia reduce {path}")
        return
    paths = init_chips(folder, output, overwrite)
    for path in paths[:-1]:
        display.show_written(path)
    display.show_written(
        paths[-1], f"; read them, then: pytorchdia reduce {' '.join(map(str, paths))}"
    )


def reduce_season(
    configs: Annotated[
        list[Path],
        typer.Argument(
            metavar="CONFIG...",
            help="Settings; 'pytorchdia init' writes them. Several (chips, filters) are done one "
            "after the other.",
        ),
    ],
    only: Annotated[
        str | None, typer.Option("--only", help=f"Do this step alone: {_STEPS}.")
    ] = None,
    until: Annotated[str | None, typer.Option("--until", help="Stop after this step.")] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            min=1,
            help="Processes on this machine, with Dask; as many as pay if absent.",
        ),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option("--scheduler", help="Address of a running Dask scheduler (tcp://...)."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what there is to do.")
    ] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress, no table.")] = False,
) -> None:
    """Reduce a season: register all frames, make a reference, subtract it, measure light curves.

    A run that was interrupted, or whose settings or frames have changed, does what is missing.
    """
    if workers is not None and scheduler is not None:
        raise InputError("Give --workers or --scheduler, not both.")
    seasons = _with_folders_of_their_own(configs)
    went_well, broken = True, []
    for number, settings in enumerate(seasons, 1):
        if len(seasons) > 1 and not quiet:
            title = f"{settings.run_folder} ({number} of {len(seasons)})"
            stderr.print(title, markup=False, soft_wrap=True, highlight=False)
        try:
            with display.step_bars(quiet or dry_run) as progress:
                summary = reduce(
                    settings, only=only, until=until, scheduler=scheduler, dry_run=dry_run,
                    progress=progress,
                    workers="auto" if workers is None and scheduler is None else workers,
                )  # fmt: skip
        except WriteError:  # a full disk is one for all of them
            raise
        except PyTorchDIAError as error:
            if len(seasons) == 1:
                raise
            display.show_error(str(error))
            broken.append(settings.run_folder)
            continue
        if dry_run:
            _show_plan(summary)
        elif not quiet:
            _show_summary(summary)
        went_well &= not (summary.failed or summary.troubles)
    if broken:
        raise InputError(
            f"{len(broken)} of {len(seasons)} runs could not be done, as said above: "
            f"{', '.join(map(str, broken))}."
        )
    if not went_well:
        raise typer.Exit(SOME_FAILED)


def _with_folders_of_their_own(configs: list[Path]) -> list[Settings]:
    """The settings, all of them read before the first is at work."""
    seasons = [load_settings(config) for config in configs]
    places = [settings.run_folder.resolve() for settings in seasons]
    shared = next((place for place in places if places.count(place) > 1), None)
    if shared is not None:
        names = [str(c) for c, place in zip(configs, places, strict=True) if place == shared]
        raise InputError(
            f"{' and '.join(names)} have the same run folder, {shared}; give each one of its own "
            "(run.folder)."
        )
    return seasons


def status(run: Run, as_json: AsJson = False) -> None:
    """Print the table of frames of a run: what became of each, and why."""
    table = read_frames(run)
    names = ("name", "status", "time", "fwhm", "n_stars", "scale")
    if as_json:
        rows = [
            {name: row[name].item() if hasattr(row[name], "item") else row[name]
             for name in table.colnames if not _masked(row[name])}
            for row in table
        ]  # fmt: skip
        print(json.dumps(rows, indent=1, default=str))
        return
    shown = Table(header_style="bold")
    for name in names:
        shown.add_column(name, overflow="fold")
    for row in table:
        shown.add_row(*(escape(_cell(row[name])) for name in names))
    Console().print(shown)
    for row in table:
        if row["reason"] and not _masked(row["reason"]):
            print(f"{row['name']}: {row['reason']}")


def lightcurve(
    run: Run,
    star: Annotated[
        str | None, typer.Argument(help="Number of the star, or its name in the list of stars.")
    ] = None,
    x: Annotated[float | None, typer.Option("--x", help="Or the star nearest to this x,")] = None,
    y: Annotated[float | None, typer.Option("--y", help="and this y on the reference.")] = None,
    ra: Annotated[
        float | None, typer.Option("--ra", help="Or nearest to this right ascension (degrees),")
    ] = None,
    dec: Annotated[
        float | None, typer.Option("--dec", help="and this declination (degrees).")
    ] = None,
    candidate: Annotated[
        int | None,
        typer.Option(help="Or a variable or new source, by its number in the report."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Write CSV, ECSV, FITS or VOTable by its ending."),
    ] = None,
    plot_file: Annotated[Path | None, typer.Option("--plot", help="Draw it (PNG, PDF).")] = None,
    zero_point: Annotated[
        float, typer.Option("--zero-point", help="Magnitude of 1 ADU on the reference.")
    ] = 25.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files.")] = False,
) -> None:
    """Print, write or plot the light curve of one star, or of one candidate."""
    curve = _chosen(LightCurves.open(run), star, (x, y), (ra, dec), candidate)
    if output is not None:
        curve.write(output, overwrite, zero_point)
        display.show_written(output)
    if plot_file is not None:
        from ..run.curve_plot import save_light_curve  # matplotlib takes a while to import

        save_light_curve(curve, plot_file, overwrite)
        display.show_written(plot_file)
    if output is None and plot_file is None:
        table = curve.to_table(zero_point)
        names = ["frame", "time", "flux", "error", "total", "magnitude", "magnitude_error", "flags"]
        print("\n".join(table[names].pformat(max_lines=-1, max_width=-1)))


def _chosen(
    curves: LightCurves,
    star: str | None,
    pixel: tuple[float | None, float | None],
    sky: tuple[float | None, float | None],
    candidate: int | None,
) -> LightCurve:
    (x, y), (ra, dec) = pixel, sky
    ways = sum(way is not None for way in (star, x, ra, candidate))
    if ways != 1 or (x is None) != (y is None) or (ra is None) != (dec is None):
        raise InputError(
            "Give the number or the name of a star, or --x and --y of a place on the reference, or "
            "--ra and --dec, or --candidate."
        )
    try:
        if candidate is not None:
            return curves.candidate(candidate)
        if star is not None:
            by_number = star.isdecimal() and int(star) in curves
            return curves[int(star)] if by_number else curves.named(star)
    except KeyError as error:
        raise InputError(str(error.args[0])) from error
    if x is not None and y is not None:
        return curves.at(x, y)
    assert ra is not None
    assert dec is not None
    return curves.near(ra, dec)


def _show_plan(summary: RunSummary) -> None:
    shown = Table("step", "done", "to do", header_style="bold")
    for step, done, to_do in summary.planned:
        shown.add_row(step, str(done), str(to_do))
    Console().print(shown)
    if any(to_do for _, _, to_do in summary.planned):
        print(f"Later steps depend on these; {len(summary.rows)} frames in all.")
    else:
        print("Nothing is left to do.")


def _show_summary(summary: RunSummary) -> None:
    for status, colour in (("failed", "red"), ("rejected", "yellow")):
        for row in summary.rows:
            if row.status == status:
                text = escape(f"{row.name} ({row.step}): {row.reason}")
                stderr.print(f"[{colour}]{status}[/] {text}", soft_wrap=True, highlight=False)
    for state in summary.troubles:
        text = escape(f"{state.trouble} {summary.run / 'log.txt'} has more.")
        stderr.print(f"[red]failed[/] {text}", soft_wrap=True, highlight=False)
    counts = {
        s: sum(row.status == s for row in summary.rows) for s in ("done", "rejected", "failed")
    }
    made = sum(to_do for _, _, to_do in summary.planned)
    stderr.print(
        f"{counts['done']} frames done, {counts['rejected']} rejected, {counts['failed']} failed; "
        f"{made} pieces of work were done now. Results are in {summary.run}.",
        soft_wrap=True, markup=False,
    )  # fmt: skip


def _masked(value: object) -> bool:
    return bool(getattr(value, "mask", False))


def _cell(value: object) -> str:
    if _masked(value):
        return ""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.5f}"
