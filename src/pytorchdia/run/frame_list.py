"""The frames that the settings name."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from pathlib import Path

from ..errors import InputError
from ..io import stem
from .frame_steps import Source
from .settings import Settings

__all__ = ["sources_of"]


def sources_of(settings: Settings) -> list[Source]:
    """The frames that the settings name, each with a name of its own, in the order of names.

    Raises
    ------
    InputError
        There are none.
    """
    base, chosen = settings.base, settings.frames
    companions = {settings.path(n) for n in (chosen.mask, chosen.flat, settings.stars.list)}
    paths = sorted(
        {path for pattern in chosen.files for path in _matching(base, pattern) if path.is_file()}
        - {path for path in companions if path is not None}
    )
    run = settings.run_folder.resolve()
    paths = [
        path
        for path in paths
        if run not in path.resolve().parents
        and not any(fnmatch.fnmatch(path.name, p) for p in chosen.exclude)
    ]
    if not paths:
        raise InputError(
            f"No file in {base} matches {', '.join(map(repr, chosen.files))} (frames.files); check "
            "the patterns, which start from the folder of the settings."
        )
    stems = [stem(path) for path in paths]
    return [
        Source(name if stems.count(name) == 1 else f"{path.parent.name}_{name}", path)
        for name, path in zip(stems, paths, strict=True)
    ]


def _matching(base: Path, pattern: str) -> Iterator[Path]:
    path = Path(pattern)
    if path.is_absolute():
        root = Path(path.anchor)
        return root.glob(str(path.relative_to(root)))
    parts = path.parts
    while parts and parts[0] == "..":
        base, parts = base.parent, parts[1:]
    return base.glob(str(Path(*parts)))
