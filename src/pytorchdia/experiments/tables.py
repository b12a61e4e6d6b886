"""Text and CSV files that are complete or not there at all."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..product import replacing

__all__ = ["read_rows", "write_rows", "write_text"]


def write_text(text: str, path: Path) -> None:
    """A text file; a WriteError if it cannot be written."""
    with replacing(path) as partial:
        partial.write_text(text)


def write_rows(rows: Sequence[Mapping[str, Any]], path: Path, columns: Sequence[str] = ()) -> None:
    """Rows as CSV; ``columns`` are those of a table without rows."""
    with replacing(path) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else list(columns))
        writer.writeheader()
        writer.writerows(rows)


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
