"""The experiment of a season: simulated, reduced, and compared with its truth, as a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from ..experiments.tables import write_rows, write_text
from ..run.init import init_config
from ..run.pipeline import Progress
from ..run.reduce import reduce
from ..simulate.season import Season, read_truth, require_same_season, write_season
from .compare import ZERO_POINT, Recovery, recover

__all__ = ["run_season_experiment"]


def run_season_experiment(
    folder: Path,
    season: Season,
    frames: int,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Recovery:
    """Simulate a season, reduce it, and write ``season.md`` and the tables behind it.

    What is there already, frames or pieces of work, is not made again. Frames beyond ``frames``
    that are there take part too.

    Parameters
    ----------
    folder : Path
    season : Season
    frames : int
    workers : int, optional
        As for :func:`pytorchdia.reduce`.
    progress : callable, optional
        Called as ``progress(step, done, total)``.

    Raises
    ------
    InputError
        The folder holds another season.
    ReadError
        It holds frames without their truth.
    WriteError
        It cannot be written.
    """
    frames = _simulate(folder, season, frames, progress)
    config = folder / "frames" / "config.toml"
    if not config.exists():
        init_config(folder / "frames")
    reduce(config, workers=workers, progress=progress)
    found = recover(folder, folder / "frames" / "run")
    write_rows([asdict(row) for row in found.pulls], folder / "pulls.csv", ["bright"])
    write_rows([asdict(row) for row in found.curves], folder / "curves.csv", ["star"])
    write_text(page_of(found, season, frames), folder / "season.md")
    return found


def _simulate(folder: Path, season: Season, frames: int, progress: Progress | None) -> int:
    """Write the frames that are missing; the number of those that are there then."""
    there = len(list((folder / "frames").glob("season_[0-9]*.fits")))
    if there:
        require_same_season(season, read_truth(folder).stars.meta["season"], folder)
    if there < frames:
        tell: Callable[[int, int], None] | None = None
        if progress is not None:
            report = progress

            def tell(done: int, total: int) -> None:
                report("simulate", done, total)

        write_season(season, folder, frames, first=there, overwrite=there > 0, progress=tell)
    return max(there, frames)


def page_of(found: Recovery, season: Season, frames: int) -> str:
    """Markdown: errors, light curves and candidates beside what they should be."""
    h, w = season.shape
    epochs = found.epochs
    limit = found.photon_limit
    known = [row for row in found.curves if row.epochs]
    seen = [row for row in known if row.significance > 10.0]
    lines = [
        "# A simulated season and its truth", "",
        f"{frames} frames of {h} x {w} pixels, seed {season.seed}; {epochs} epochs were measured. "
        f"{found.matched} of {found.stars} stars of the catalogue are stars of the truth.", "",
        "## Constant stars", "",
        "Robust scale of (flux - mean of the star) / error, fluxes without a flag; 1 if the errors "
        "are right. The second has the error of P, which all stars of an epoch share, in the "
        "error.", "",
        *_table(
            ("magnitude", "stars", "fluxes", "pulls", "with P", "beyond 5"),
            [
                (f"{row.bright:g} to {row.faint:g}", str(row.stars), str(row.points),
                 f"{row.pulls:.3f}", f"{row.pulls_with_scale:.3f}", f"{row.beyond_5:.4f}")
                for row in found.pulls
            ],
        ), "",
        f"Magnitude {ZERO_POINT:g} is 1 ADU at scale 1.", "",
        "## Photon limit", "",
        f"Faint half of the constant stars, {limit.points} fluxes: the error is {limit.error:.3f} "
        f"and the scatter {limit.scatter:.3f} times the error of a star with a known PSF on the "
        "noise of the frame alone.", "",
        "## Injected variables", "",
        "Slope of the measured against the true flux: 1 if nothing of a change is lost.", "",
        *_table(
            ("star", "kind", "candidate", "significance", "slope", "pulls", "epochs"),
            [
                (str(row.star), row.kind, "not found" if row.candidate is None else
                 str(row.candidate), f"{row.significance:.0f}",
                 f"{row.slope:.4f} ± {row.slope_error:.4f}", f"{row.pulls:.2f}", str(row.epochs))
                for row in found.curves
            ],
        ), "",
        f"{sum(row.candidate is not None for row in seen)} of {len(seen)} that change by more than "
        "10 sigma in an epoch were found.", "",
        "## Candidates", "",
        f"{len(found.false)} false ones in {epochs} epochs that are not said to be doubtful "
        f"(numbers {', '.join(map(str, found.false)) or 'none'}), and {found.doubtful} doubtful.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(heads) + " |", "|" + "---|" * len(heads),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]  # fmt: skip
