"""The command line of simulated seasons: ``pytorchdia simulate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..config import parse_frame_size
from ..simulate.season import Season, write_season
from . import display

__all__ = ["simulate"]


def simulate(
    folder: Annotated[
        Path, typer.Argument(help="Where frames and truth go; made if it does not exist.")
    ],
    frames: Annotated[
        int, typer.Option(min=1, max=10000, help="Frames of the season, two a night.")
    ] = 30,
    size: Annotated[
        str, typer.Option(help="Side of the frames, or HEIGHTxWIDTH [pixels], from 64 on.")
    ] = "512",
    seed: Annotated[int, typer.Option(min=0, help="Another seed is another field.")] = 1,
    first: Annotated[
        int,
        typer.Option(
            min=0,
            help="Continue a season: frames before this number (from 0 on) are there already. Give "
            "the same settings as before.",
        ),
    ] = 0,
    stars: Annotated[
        int | None,
        typer.Option(min=1, help="Constant stars; 1000 on 512 x 512 pixels if absent."),
    ] = None,
    variables: Annotated[
        int,
        typer.Option(
            min=0,
            max=200,
            help="Variable stars: microlensing, RR Lyrae, eclipses and a nova in turn.",
        ),
    ] = 8,
    max_shift: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Largest shift [pixels], of one frame in ten; a quarter of the side if absent.",
        ),
    ] = None,
    max_rotation: Annotated[
        float, typer.Option(min=0, max=180, help="Largest rotation [degrees].")
    ] = 0.05,
    bad_share: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Share of frames under cloud, out of focus or in twilight."
        ),
    ] = 0.1,
    wcs: Annotated[bool, typer.Option("--wcs/--no-wcs", help="World coordinates.")] = True,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace existing frames and tables.")
    ] = False,
) -> None:
    """Make a season of frames of one crowded field, to try a reduction on, and write its truth.

    FOLDER/frames holds the frames as a telescope would write them, FOLDER/truth the tables of what
    is in them: stars.ecsv, frames.ecsv (time, P, seeing, shift) and light_curves.ecsv. One seed
    always gives the same frames, and more frames do not change those before.
    """
    season = Season(
        seed=seed, shape=parse_frame_size(size), n_stars=stars, n_variables=variables,
        max_shift=max_shift, max_rotation=max_rotation, bad_share=bad_share, with_wcs=wcs,
    )  # fmt: skip
    with display.progress_bar("frames") as report:
        written = write_season(
            season, folder, frames, first=first, overwrite=overwrite, progress=report
        )
    display.stderr.print(
        f"Wrote {len(written)} frames into {written[0].parent}, and what is true of them into "
        f"{folder / 'truth'}.",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
