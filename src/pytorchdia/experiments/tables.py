"""Files that are complete or not there at all."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["read_rows", "write_rows", "write_text", "written"]


def written(path: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` make a file under a temporary name, and rename it."""
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(text: str, path: Path) -> None:
    """A text file."""
    written(path, lambda temporary: temporary.write_text(text))


def write_rows(rows: Sequence[Mapping[str, Any]], path: Path, columns: Sequence[str] = ()) -> None:
    """Rows as CSV; ``columns`` are those of a table without rows."""

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]) if rows else list(columns))
            writer.writeheader()
            writer.writerows(rows)

    written(path, write)


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
