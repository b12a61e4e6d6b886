"""What is true of a simulated season, read back from its tables."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from astropy.table import Table

from ...errors import ReadError
from ..stars import FloatArray
from .epochs import Trouble
from .model import Season

__all__ = ["Truth", "read_truth"]


@dataclass(frozen=True)
class Truth:
    """A season, and the tables of :func:`~pytorchdia.simulate.season.truth_tables`.

    Attributes
    ----------
    season : Season
    stars, frames, light_curves : Table
    """

    season: Season
    stars: Table
    frames: Table
    light_curves: Table

    def matrix(self, number: int) -> FloatArray:
        """From (x, y, 1) on the reference grid to (x, y) on a frame, (2, 3)."""
        row = self.frames[number]
        return np.array([[float(row[f"m{i}{j}"]) for j in range(3)] for i in range(2)])

    def places(self, number: int) -> FloatArray:
        """(x, y) of all stars on a frame [pixels], (2, n)."""
        x, y = (np.asarray(self.stars[axis], dtype=np.float64) for axis in "xy")
        found: FloatArray = self.matrix(number) @ np.array([x, y, np.ones(len(x))])
        return found

    def light_curve(self, star: int, numbers: list[int]) -> FloatArray:
        """Flux at scale 1 of a variable star in frames of these numbers [ADU], (n,)."""
        rows = self.light_curves[self.light_curves["star"] == star]
        flux = dict(zip(rows["frame"].tolist(), rows["flux"].tolist(), strict=True))
        return np.array([flux[number] for number in numbers])


def read_truth(folder: Path | str) -> Truth:
    """The truth that :func:`~pytorchdia.simulate.season.write_season` wrote into ``folder``/truth.

    Raises
    ------
    ReadError
        There is none, or it cannot be read.
    """
    place = Path(folder) / "truth"
    try:
        stars, frames, curves = (
            Table.read(place / f"{name}.ecsv", format="ascii.ecsv")
            for name in ("stars", "frames", "light_curves")
        )
        given = dict(stars.meta["season"])
    except (OSError, ValueError, KeyError) as error:
        raise ReadError(f"{place} holds no truth of a simulated season ({error}).") from error
    given["shape"] = tuple(given["shape"])
    given["troubles"] = {int(k): Trouble(name) for k, name in given["troubles"].items()}
    known = {f.name for f in fields(Season)}
    season = Season(**{name: value for name, value in given.items() if name in known})
    return Truth(season, stars, frames, curves)
