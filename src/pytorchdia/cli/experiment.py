"""The command line of the paper's experiments: ``pytorchdia experiment NAME``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from ..config import parse_frame_size
from ..errors import InputError, WriteError
from ..experiments import (
    ALL_PAIRS,
    PAPER_PAIRS,
    PAPER_STARS,
    QUICK_EPOCHS,
    QUICK_STARS,
    SCENARIOS,
    Scenario,
    ScenarioName,
    real_frame_scenario,
    run_bias,
    run_layers,
    run_real,
    run_speed_image,
    run_speed_kernel,
    run_table2,
)
from ..recovery import run_season_experiment
from ..simulate.season import Season
from . import display

__all__ = ["app"]

app = typer.Typer(
    help="Rerun an experiment of the paper: a CSV table, a page beside the paper's numbers, a "
    "picture. A run that was interrupted goes on where it stopped.",
    no_args_is_help=True,
)

Folder = Annotated[Path | None, typer.Argument(help="Where results go; pytorchdia-NAME if absent.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes; one for each core if absent.")]
Quick = Annotated[bool, typer.Option("--quick", help="Small sizes: about a minute.")]

QUICK_PAIRS = 128


@app.command()
def bias(folder: Folder = None) -> None:
    """Known transformations of an image come back without bias (section 3.4)."""
    with _results("bias", folder) as (place, report):
        run_bias(place, progress=report)


@app.command()
def table2(
    folder: Folder = None,
    pairs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=f"Simulated pairs, of which seven in ten have an SNR within the paper's table; "
            f"{ALL_PAIRS} if absent, for the paper's {PAPER_PAIRS} in the table. More pairs in an "
            "old folder add what is missing.",
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help=f"{QUICK_PAIRS} pairs: about a minute.")
    ] = False,
    workers: Workers = None,
    scenario: Annotated[
        ScenarioName, typer.Option(help="What the pairs are; paper is section 3.1.")
    ] = ScenarioName.PAPER,
    frame: Annotated[
        Path | None, typer.Option(help="FITS file whose stars real-frame takes for the truth.")
    ] = None,
    saturation: Annotated[
        float | None, typer.Option(help="Level [ADU] from which --frame is not to be believed.")
    ] = None,
) -> None:
    """The simulated image tests: Table 2 and Figure 3 (section 3.3)."""
    if quick and pairs is not None:
        raise InputError("--quick sets the number of pairs; leave it or --pairs out.")
    count = QUICK_PAIRS if quick else ALL_PAIRS if pairs is None else pairs
    chosen = _scenario(scenario, frame, saturation)
    inner = "" if chosen.is_the_papers else f"{chosen.name}/"
    with _results("table2", folder, inner) as (place, report):
        run_table2(place, count, chosen, workers=workers, progress=report)


def _scenario(name: ScenarioName, frame: Path | None, saturation: float | None) -> Scenario:
    """The scenario of that name, with the frame that one of them needs."""
    if name is ScenarioName.REAL_FRAME:
        if frame is None:
            raise InputError("The scenario real-frame needs a frame; give it with --frame FILE.")
        return real_frame_scenario(frame, saturation)
    if frame is not None or saturation is not None:
        raise InputError("--frame and --saturation are for --scenario real-frame only.")
    return SCENARIOS[name]


@app.command()
def real(
    frames: Annotated[
        Path,
        typer.Option(
            help="Folder with the FITS frames of one field, registered or shifted by whole pixels."
        ),
    ],
    folder: Folder = None,
    reference: Annotated[
        str | None, typer.Option(help="File name of the reference; the sharpest frame if absent.")
    ] = None,
    stars: Annotated[
        int | None,
        typer.Option(min=1, help=f"Stars to measure; the paper's {PAPER_STARS} if absent."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help=f"{QUICK_STARS} stars at {QUICK_EPOCHS} epochs.")
    ] = False,
    workers: Workers = None,
) -> None:
    """Stamps around the bright stars of a real series: Table 3 and light curves (section 4)."""
    if quick and stars is not None:
        raise InputError("--quick sets the number of stars; leave it or --stars out.")
    with _results("real", folder) as (place, report):
        run_real(
            place, frames, reference=reference,
            stars=QUICK_STARS if quick else stars or PAPER_STARS,
            max_epochs=QUICK_EPOCHS if quick else None, workers=workers, progress=report,
        )  # fmt: skip


@app.command("speed-image")
def speed_image(folder: Folder = None, quick: Quick = False) -> None:
    """Time against the size of the image: Figures 6 to 8 (sections 5.1 and 5.2)."""
    with _results("speed-image", folder) as (place, report):
        run_speed_image(place, quick, report)


@app.command("speed-kernel")
def speed_kernel(folder: Folder = None, quick: Quick = False) -> None:
    """Time against the size of the kernel (sections 5.1 and 5.2)."""
    with _results("speed-kernel", folder) as (place, report):
        run_speed_kernel(place, quick, report)


@app.command()
def cudnn(folder: Folder = None, quick: Quick = False) -> None:
    """The convolution as a layer of a network against tiles: Figure 9 (section 5.3)."""
    with _results("cudnn", folder) as (place, report):
        run_layers(place, quick, report)


@app.command()
def season(
    folder: Folder = None,
    frames: Annotated[int, typer.Option(min=8, help="Frames, two a night.")] = 60,
    size: Annotated[str, typer.Option(help="Side, or HEIGHTxWIDTH [pixels].")] = "512",
    seed: Annotated[int, typer.Option(min=0, help="Another seed is another field.")] = 1,
    variables: Annotated[int, typer.Option(min=0, max=200, help="Variable stars.")] = 12,
    quick: Annotated[
        bool, typer.Option("--quick", help="12 frames of 200 x 200 pixels: about a minute.")
    ] = False,
    workers: Workers = None,
) -> None:
    """A simulated season from raw frames to light curves, compared with its truth."""
    chosen = Season(
        seed=seed, shape=parse_frame_size("200" if quick else size), n_variables=variables
    )
    place = Path("pytorchdia-season") if folder is None else folder
    with display.step_bars() as report:
        run_season_experiment(
            place, chosen, 12 if quick else frames, workers=workers, progress=report
        )
    display.stderr.print(f"Results are in {place}; read season.md first.", markup=False)


@contextmanager
def _results(
    name: str, folder: Path | None, inner: str = ""
) -> Iterator[tuple[Path, Callable[[int, int], None]]]:
    """The folder of an experiment and its progress bar; says at the end where to look."""
    place = Path(f"pytorchdia-{name}") if folder is None else folder
    with display.progress_bar(name) as report:
        try:
            yield place, report
        except OSError as error:
            raise WriteError(f"{place} cannot be written: {error}.") from error
    display.stderr.print(f"Results are in {place}; read {inner}{name}.md first.", markup=False)
