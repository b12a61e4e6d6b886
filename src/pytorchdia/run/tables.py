"""Tables of a run on disk: Parquet parts, one for each epoch, and the catalogue of stars."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import ReadError
from ..product import replacing

__all__ = [
    "CANDIDATES",
    "DETECTIONS",
    "EPOCH",
    "FOLLOWED",
    "STARS",
    "describe",
    "read_table",
    "write_table",
]


def _field(name: str, kind: Any, unit: str, meaning: str) -> Any:
    return pa.field(name, kind, metadata={"unit": unit, "meaning": meaning})


EPOCH = pa.schema(
    [
        _field("star", pa.int64(), "", "number of the star in stars.parquet"),
        _field("frame", pa.string(), "", "name of the frame"),
        _field("time", pa.float64(), "d", "middle of the exposure, MJD; null if not known"),
        _field("time_scale", pa.string(), "", "scale of the time, such as utc or tdb"),
        _field(
            "bjd_tdb", pa.float64(), "d", "middle of the exposure, BJD in TDB; null if not known"
        ),
        _field("flux", pa.float64(), "adu", "flux in the difference, in ADU of the reference"),
        _field("error", pa.float64(), "adu", "1-sigma error of flux, without that of scale"),
        _field("chi_square", pa.float64(), "", "sum of squared normalised residuals of the fit"),
        _field("n_pixels", pa.int32(), "", "pixels used by the fit"),
        _field("scale", pa.float64(), "", "photometric scale P of the frame at the star"),
        _field("scale_error", pa.float64(), "", "1-sigma error of scale, common to the epoch"),
        _field(
            "drift",
            pa.float64(),
            "",
            "share of its light that each star seemed to have gained, taken off; 0 if none was",
        ),
        _field("fwhm", pa.float64(), "pix", "seeing of the frame"),
        _field("flags", pa.int32(), "", "bits of pytorchdia.stars.photometry.FluxFlag; 0 is good"),
    ]
)
"""Columns of ``photometry/NAME.parquet``: one row for each star, in the order of the catalogue."""

FOLLOWED = pa.schema(
    [
        _field("candidate", pa.int64(), "", "number of the candidate in candidates.parquet"),
        *list(EPOCH)[1:],
    ]
)
"""Columns of ``followed/NAME.parquet``: one row for each candidate that is not doubtful."""

STARS = pa.schema(
    [
        _field("star", pa.int64(), "", "number of the star"),
        _field("x", pa.float64(), "pix", "column on the reference, centre of the first pixel 0"),
        _field("y", pa.float64(), "pix", "row on the reference, centre of the first pixel 0"),
        _field("ra", pa.float64(), "deg", "right ascension; null without a WCS"),
        _field("dec", pa.float64(), "deg", "declination; null without a WCS"),
        _field("flux", pa.float64(), "adu", "PSF flux on the reference"),
        _field("error", pa.float64(), "adu", "1-sigma error of flux"),
        _field("flags", pa.int32(), "", "bits of pytorchdia.stars.photometry.FluxFlag; 0 is good"),
        _field("name", pa.string(), "", "name in the list given, if there was one"),
    ]
)
"""Columns of ``stars.parquet``."""

DETECTIONS = pa.schema(
    [
        _field("x", pa.float64(), "pix", "column on the reference"),
        _field("y", pa.float64(), "pix", "row on the reference"),
        _field("flux", pa.float64(), "adu", "in ADU of the reference; negative if it faded"),
        _field("error", pa.float64(), "adu", "1-sigma error of flux"),
        _field("significance", pa.float64(), "", "flux over error"),
        _field("flags", pa.int32(), "", "bits of pytorchdia.changes.detections.DetectionFlag"),
    ]
)
"""Columns of ``detections/NAME.parquet``: sources in one difference."""

CANDIDATES = pa.schema(
    [
        _field("candidate", pa.int64(), "", "number, from 1 on; the best are first"),
        _field("x", pa.float64(), "pix", "column on the reference"),
        _field("y", pa.float64(), "pix", "row on the reference"),
        _field("ra", pa.float64(), "deg", "right ascension; null without a WCS"),
        _field("dec", pa.float64(), "deg", "declination; null without a WCS"),
        _field("kind", pa.string(), "", "variable star, new source, or doubtful"),
        _field("star", pa.int64(), "", "number of the star in stars.parquet; null if none"),
        _field("separation", pa.float64(), "pix", "from the nearest star"),
        _field("significance", pa.float64(), "", "of the best epoch, or of the stack"),
        _field("false_alarms", pa.float64(), "", "as significant that noise alone would make"),
        _field("n_epochs", pa.int32(), "", "epochs in which it was found"),
        _field("best_frame", pa.string(), "", "where it is most significant; null: the stack"),
        _field("flux", pa.float64(), "adu", "there, in ADU of the reference"),
        _field("error", pa.float64(), "adu", "1-sigma error of flux"),
        _field(
            "reference_flux",
            pa.float64(),
            "adu",
            "of the star, or what is at the place on the reference; null if it cannot be measured",
        ),
        _field("reference_error", pa.float64(), "adu", "1-sigma error of reference_flux"),
        _field("in_stack", pa.bool_(), "", "whether the stack of all epochs shows it"),
        _field("flags", pa.int32(), "", "bits of DetectionFlag that all its detections share"),
    ]
)
"""Columns of ``candidates.parquet``, the most significant first."""


def write_table(
    path: Path, schema: Any, columns: Mapping[str, Any], rows: int | None = None
) -> Path:
    """Write columns as one Parquet file, whole or not at all, the same bytes for the same values.

    Parameters
    ----------
    path : Path
    schema : pyarrow.Schema
    columns : Mapping
        An array, or one value for all rows, for each name of the schema. What is NaN or infinite
        becomes null.
    rows : int, optional
        Their number; that of the longest column if absent.

    Raises
    ------
    WriteError
        The file cannot be written.
    """
    arrays = {name: np.asarray(columns[name]) for name in schema.names}
    n = max((len(a) for a in arrays.values() if a.ndim), default=1) if rows is None else rows
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
        kept = [None if isinstance(v, float) and not math.isfinite(v) else v for v in values]
        return pa.array(kept, type=kind)
    missing = ~np.isfinite(values) if values.dtype.kind == "f" else None
    native = values.astype(values.dtype.newbyteorder("="), copy=False)
    return pa.array(native, type=kind, mask=missing)
