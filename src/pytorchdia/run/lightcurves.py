"""Light curves of a run, read as they are needed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from astropy.coordinates import SkyCoord
from astropy.io.fits.verify import VerifyWarning
from astropy.table import MaskedColumn, Table
from astropy.time import Time
from astropy.timeseries import TimeSeries
from numpy.typing import NDArray

from ..errors import InputError, ReadError
from ..product import check_writable, replacing
from .tables import EPOCH, FOLLOWED, describe, read_table

if TYPE_CHECKING:
    from typing import Self

__all__ = ["LightCurve", "LightCurves"]

_FORMATS = {
    ".csv": "ascii.csv",
    ".ecsv": "ascii.ecsv",
    ".fits": "fits",
    ".vot": "votable",
    ".xml": "votable",
}
_FARTHEST = 60.0  # arcsec that the nearest star may lie away


@dataclass(frozen=True)
class LightCurve:
    """One star or candidate through a season; rows in the order of time, without a time last.

    Attributes
    ----------
    star : int or None
        Number of the star; None for a candidate that is no star of the catalogue.
    x, y : float
        Position on the reference [pixels].
    ra, dec : float or None
        [degrees], where the reference has a WCS.
    reference_flux, reference_error : float or None
        PSF flux of the star on the reference, and its error [ADU]. The error belongs to all
        epochs together and is in no row.
    epochs : Table
        The columns of :data:`pytorchdia.run.tables.EPOCH`, or of
        :data:`pytorchdia.run.tables.FOLLOWED`.
    candidate : int or None
        Number of the candidate, if its flux was measured where the light changes.
    name : str or None
        Name of the star in the list of stars that the run was given.
    """

    star: int | None
    x: float
    y: float
    ra: float | None
    dec: float | None
    reference_flux: float | None
    reference_error: float | None
    epochs: Table
    candidate: int | None = None
    name: str | None = None

    @property
    def title(self) -> str:
        """What it is the light curve of."""
        if self.candidate is not None:
            return f"candidate {self.candidate}"
        return f"star {self.star}" + (f" ({self.name})" if self.name else "")

    def __len__(self) -> int:
        return len(self.epochs)

    def to_table(self, zero_point: float = 25.0) -> Table:
        """All epochs with the total flux and magnitudes, the star in the metadata.

        Parameters
        ----------
        zero_point : float
            Magnitude of one ADU per exposure of the reference.

        Returns
        -------
        Table
            The columns of ``epochs``, then ``total`` = reference_flux + flux [ADU], ``magnitude``
            and ``magnitude_error``; masked where they are not defined.
        """
        table = self.epochs.copy()
        table.meta.update(
            {key: value for key, value in self._about().items() if value is not None},
            zero_point=zero_point,
        )
        flux = np.ma.masked_invalid(np.ma.filled(table["flux"].astype(float), np.nan))
        error = np.ma.masked_invalid(np.ma.filled(table["error"].astype(float), np.nan))
        known = np.nan if self.reference_flux is None else self.reference_flux
        total = np.ma.masked_invalid(flux + known)
        bright = np.ma.masked_less_equal(total, 0.0)
        magnitude = zero_point - 2.5 * np.ma.log10(bright)
        for name, values, unit, meaning in (
            ("total", total, "adu", "reference flux + flux"),
            ("magnitude", magnitude, "mag", "zero point - 2.5 lg(total)"),
            ("magnitude_error", 2.5 / np.log(10.0) * error / bright, "mag", "from error / total"),
        ):
            table[name] = MaskedColumn(values, unit=unit, description=meaning)
        return table

    def to_timeseries(self, zero_point: float = 25.0) -> TimeSeries:
        """As an astropy TimeSeries, BJD in TDB if all epochs have it; none without a time.

        ``meta["time_scale"]`` is else that of the column: with ``bary`` in it, times are those at
        the barycentre or the sun, which astropy's scales do not tell.

        Raises
        ------
        InputError
            No epoch has a time, or they are on more than one time scale.
        """
        table = self.to_table(zero_point)
        table = table[~np.ma.getmaskarray(table["time"])]
        if len(table) and not np.ma.getmaskarray(table["bjd_tdb"]).any():
            time = Time(np.asarray(table["bjd_tdb"]), format="jd", scale="tdb")
            table.remove_columns(["time", "time_scale", "bjd_tdb"])
            return TimeSeries(table, time=time)
        scales = sorted({str(s) for s in table["time_scale"]})
        if len(scales) != 1:
            raise InputError(
                f"The epochs of {self.title} are on {len(scales)} time scales "
                f"({', '.join(scales) or 'no epoch has a time'}); a time series needs one. "
                "Use to_table()."
            )
        table.meta["time_scale"] = scales[0]
        time = Time(np.asarray(table["time"]), format="mjd", scale=scales[0].split()[0])
        table.remove_columns(["time", "time_scale"])
        return TimeSeries(table, time=time)

    def write(self, path: str | Path, overwrite: bool = False, zero_point: float = 25.0) -> Path:
        """Write :meth:`to_table` as CSV, ECSV, FITS or VOTable (.vot, .xml), by the file's ending.

        Raises
        ------
        InputError
            The ending is none of these.
        WriteError
            The file exists and ``overwrite`` is False, or it cannot be written.
        """
        path = Path(path)
        kind = _FORMATS.get(path.suffix.lower())
        if kind is None:
            raise InputError(
                f"{path.name} ends in none of {', '.join(_FORMATS)}; the ending tells the format."
            )
        check_writable(path, overwrite)
        with replacing(path, path.suffix) as partial, warnings.catch_warnings():
            warnings.simplefilter("ignore", VerifyWarning)  # long keywords become HIERARCH
            self.to_table(zero_point).write(partial, format=kind, overwrite=True)
        return path

    def _about(self) -> dict[str, float | int | str | None]:
        names = ("candidate", "star", "name", "x", "y", "ra", "dec", "reference_flux",
                 "reference_error")  # fmt: skip
        return {name: getattr(self, name) for name in names}


class LightCurves:
    """All light curves of a run, keyed by the number of the star; read from disk when asked for.

    Parameters
    ----------
    run : str or Path
        The folder of a run.

    Raises
    ------
    ReadError
        The folder holds no photometry.
    """

    def __init__(self, run: str | Path) -> None:
        self.run = Path(run)
        if not (self.run / "stars.parquet").is_file():
            raise ReadError(
                f"{self.run} holds no stars.parquet, so it is no run of 'pytorchdia reduce', or "
                "its reference is not made yet."
            )

    @classmethod
    def open(cls, run: str | Path) -> Self:
        """The same as calling the class."""
        return cls(run)

    @cached_property
    def stars(self) -> Table:
        """The catalogue: columns of :data:`pytorchdia.run.tables.STARS`."""
        return _astropy(read_table(self.run / "stars.parquet"))

    @property
    def ids(self) -> NDArray[np.int64]:
        """Numbers of all stars."""
        return np.asarray(self.stars["star"], np.int64)

    def __len__(self) -> int:
        return len(self.stars)

    def __iter__(self) -> Iterator[int]:
        return iter(self.ids.tolist())

    def __contains__(self, star: object) -> bool:
        return star in self.ids.tolist()

    @cached_property
    def dataset(self) -> Any:
        """A pyarrow Dataset over the parts of all epochs, for lazy queries over whole seasons."""
        parts = sorted(map(str, (self.run / "photometry").glob("[!.]*.parquet")))
        return ds.dataset(parts, schema=EPOCH, format="parquet")

    def __getitem__(self, star: int) -> LightCurve:
        where = np.flatnonzero(self.ids == star)
        if not len(where):
            raise KeyError(
                f"{self.run} has no star {star}; its {len(self)} stars are numbered "
                f"{self.ids.min()} to {self.ids.max()}."
                if len(self)
                else f"{self.run} has no stars at all."
            )
        row = self.stars[int(where[0])]
        epochs = self._read(self.dataset, pa.compute.field("star") == star)
        return LightCurve(
            int(star), float(row["x"]), float(row["y"]), _number(row["ra"]), _number(row["dec"]),
            _number(row["flux"]), _number(row["error"]), _astropy(epochs), name=_word(row["name"]),
        )  # fmt: skip

    @cached_property
    def candidates(self) -> Table:
        """Variables and new sources: columns of :data:`pytorchdia.run.tables.CANDIDATES`.

        Raises
        ------
        ReadError
            The run has not looked for them yet.
        """
        return _astropy(read_table(self.run / "candidates.parquet"))

    def candidate(self, number: int) -> LightCurve:
        """The light curve of a candidate, measured where its light changes.

        Raises
        ------
        KeyError
            There is no such candidate, or it is doubtful: those are not followed.
        ReadError
            The run has not followed its candidates yet.
        """
        known = np.asarray(self.candidates["candidate"])
        doubtful = np.asarray(self.candidates["kind"]) == "doubtful"
        if number not in known[~doubtful].tolist():
            what = "is doubtful, and not followed" if number in known.tolist() else "is not known"
            raise KeyError(
                f"Candidate {number} of {self.run} {what}; {int((~doubtful).sum())} are followed."
            )
        row = self.candidates[int(np.flatnonzero(known == number)[0])]
        parts = sorted(map(str, (self.run / "followed").glob("[!.]*.parquet")))
        dataset = ds.dataset(parts, schema=FOLLOWED, format="parquet")
        epochs = self._read(dataset, pa.compute.field("candidate") == number)
        star = _number(row["star"])
        return LightCurve(
            None if star is None else int(star), float(row["x"]), float(row["y"]),
            _number(row["ra"]), _number(row["dec"]), _number(row["reference_flux"]),
            _number(row["reference_error"]), _astropy(epochs), number,
        )  # fmt: skip

    def at(self, x: float, y: float) -> LightCurve:
        """The light curve of the star nearest to a pixel of the reference.

        Raises
        ------
        InputError
            There are no stars.
        """
        if not len(self):
            raise InputError(f"{self.run} has no stars.")
        distance = np.hypot(np.asarray(self.stars["x"]) - x, np.asarray(self.stars["y"]) - y)
        return self[int(self.ids[int(np.argmin(distance))])]

    def named(self, name: str) -> LightCurve:
        """The light curve of a star by its name in the list of stars that the run was given.

        Raises
        ------
        KeyError
            No star has that name, or several have.
        """
        found = np.flatnonzero((np.ma.filled(self.stars["name"], "") == name) & (name != ""))
        if len(found) != 1:
            raise KeyError(
                f"{self.run} has {len(found)} stars of the name {name!r}, which needs one. Names "
                f"come from the list of stars that a run is given; its {len(self)} stars have "
                "numbers, from 1 on."
            )
        return self[int(self.ids[found[0]])]

    def near(self, ra: float, dec: float) -> LightCurve:
        """The light curve of the star nearest to a direction.

        Parameters
        ----------
        ra, dec : float
            [degrees], in the frame of the reference's WCS.

        Raises
        ------
        InputError
            The reference has no WCS, or no star lies within an arc minute.
        """
        known = ~(np.ma.getmaskarray(self.stars["ra"]) | np.ma.getmaskarray(self.stars["dec"]))
        if not known.any():
            raise InputError(
                f"The stars of {self.run} have no RA and Dec, since its reference has no WCS; give "
                "a pixel instead."
            )
        there = SkyCoord(self.stars["ra"][known], self.stars["dec"][known], unit="deg")
        apart = there.separation(SkyCoord(ra, dec, unit="deg")).arcsec
        nearest = int(np.argmin(apart))
        if apart[nearest] > _FARTHEST:
            raise InputError(
                f"The star nearest to RA {ra:.5f}, Dec {dec:.5f} is {apart[nearest]:.0f} arcsec "
                f"away; {self.run} has none within {_FARTHEST:.0f}."
            )
        return self[int(self.ids[known][nearest])]

    def _read(self, dataset: Any, condition: Any) -> Any:
        """Rows of a dataset, in the order of time."""
        try:
            rows = dataset.to_table(filter=condition)
            return rows.sort_by([("time", "ascending"), ("frame", "ascending")])
        except (OSError, pa.ArrowException) as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise ReadError(f"The photometry in {self.run} cannot be read ({reason}).") from error


def _astropy(table: Any) -> Table:
    """A pyarrow table as an astropy one: nulls masked, units and meanings kept."""
    about = describe(table.schema)
    columns = []
    for name, column in zip(table.column_names, table.columns, strict=True):
        column = column.combine_chunks()
        missing = np.asarray(column.is_null())
        kind = column.type
        if pa.types.is_string(kind):
            values = np.array([v or "" for v in column.to_pylist()], dtype=str)
        else:
            values = np.asarray(column.fill_null(pa.scalar(0).cast(kind)))
        unit, meaning = about[name]
        columns.append(
            MaskedColumn(values, name, mask=missing, unit=unit or None, description=meaning)
        )
    return Table(columns)


def _word(value: Any) -> str | None:
    return None if np.ma.is_masked(value) else str(value) or None


def _number(value: Any) -> float | None:
    return None if np.ma.is_masked(value) else float(value)
