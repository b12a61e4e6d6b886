"""Tables of a run on disk: Parquet parts, one for each epoch, and the catalogue of stars."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .errors import ReadError
from .product import replacing

__all__ = ["EPOCH", "STARS", "describe", "read_table", "write_table"]


def _field(name: str, kind: Any, unit: str, meaning: str) -> Any:
    return pa.field(name, kind, metadata={"unit": unit, "meaning": meaning})


EPOCH = pa.schema(
    [
        _field("star", pa.int64(), "", "number of the star in stars.parquet"),
        _field("frame", pa.string(), "", "name of the frame"),
        _field("time", pa.float64(), "d", "middle of the exposure, MJD; null if not known"),
        _field("time_scale", pa.string(), "", "scale of the time, such as utc or tdb"),
        _field("bjd_tdb", pa.float64(), "d", "middle of the exposure, BJD in TDB; null if not known"),
        _field("flux", pa.float64(), "adu", "flux in the difference, in ADU of the reference"),
        _field("error", pa.float64(), "adu", "1-sigma error of flux, without that of scale"),
        _field("chi_square", pa.float64(), "", "sum of squared normalised residuals of the fit"),
        _field("n_pixels", pa.int32(), "", "pixels used by the fit"),
        _field("scale", pa.float64(), "", "photometric scale P of the frame at the star"),
        _field("scale_error", pa.float64(), "", "1-sigma error of scale, common to the epoch"),
        _field("fwhm", pa.float64(), "pix", "seeing of the frame"),
        _field("flags", pa.int32(), "", "bits of pytorchdia.photometry.FluxFlag; 0 is good"),
    ]
)
"""Columns of ``photometry/NAME.parquet``: one row for each star, in the order of the catalogue."""

STARS = pa.schema(
    [
        _field("star", pa.int64(), "", "number of the star"),
        _field("x", pa.float64(), "pix", "column on the reference, centre of the first pixel 0"),
        _field("y", pa.float64(), "pix", "row on the reference, centre of the first pixel 0"),
        _field("ra", pa.float64(), "deg", "right ascension; null without a WCS"),
        _field("dec", pa.float64(), "deg", "declination; null without a WCS"),
        _field("flux", pa.float64(), "adu", "PSF flux on the reference"),
        _field("error", pa.float64(), "adu", "1-sigma error of flux"),
        _field("flags", pa.int32(), "", "bits of pytorchdia.photometry.FluxFlag; 0 is good"),
        _field("name", pa.string(), "", "name in the list given, if there was one"),
    ]
)
"""Columns of ``stars.parquet``."""


def write_table(path: Path, schema: Any, columns: Mapping[str, Any]) -> Path:
    """Write columns as one Parquet file, whole or not at all, the same bytes for the same values.

    Parameters
    ----------
    path : Path
    schema : pyarrow.Schema
    columns : Mapping
        An array, or one value for all rows, for each name of the schema. NaN becomes null.

    Raises
    ------
    WriteError
        The file cannot be written.
    """
    arrays = {name: np.asarray(columns[name]) for name in schema.names}
    n = max((len(a) for a in arrays.values() if a.ndim), default=1)
    table = pa.table(
        [_column(arrays[f.name], n, f.type) for f in schema], schema=schema
    ).replace_schema_metadata(schema.metadata)
    with replacing(path) as partial:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            pq.write_table(table, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
    return path


def read_table(path: Path) -> Any:
    """A Parquet file as a pyarrow Table.

    Raises
    ------
    ReadError
        It is not there, or cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return pq.read_table(file)
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ReadError(f"{path} cannot be read as Parquet ({reason}).") from error


def describe(schema: Any) -> dict[str, tuple[str, str]]:
    """Unit and meaning of each column."""
    return {
        f.name: ((f.metadata or {}).get(b"unit", b"").decode(),
                 (f.metadata or {}).get(b"meaning", b"").decode())
        for f in schema
    }  # fmt: skip


def _column(values: np.ndarray[Any, Any], n: int, kind: Any) -> Any:
    if values.ndim == 0:
        values = np.full(n, values.item(), dtype=object)
    if values.dtype == object:
        values = np.array([None if v is None else v for v in values], dtype=object)
        nothing = np.array([v is None or v != v for v in values], dtype=bool)
        return pa.array(np.where(nothing, None, values), type=kind)
    missing = ~np.isfinite(values) if values.dtype.kind == "f" else None
    native = values.astype(values.dtype.newbyteorder("="), copy=False)
    return pa.array(native, type=kind, mask=missing)
