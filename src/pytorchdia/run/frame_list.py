"""The frames that the settings name."""

from __future__ import annotations

import fnmatch
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import InputError
from ..io import stem
from .frame_steps import Source
from .settings import Settings

__all__ = ["own_reference", "sources_of", "unused_exclusions"]


def sources_of(settings: Settings) -> list[Source]:
    """The frames that the settings name, each with a name of its own, in the order of names.

    Raises
    ------
    InputError
        There are none, or two cannot be told apart by any name.
    """
    base, chosen = settings.base, settings.frames
    others = chosen.mask, chosen.flat, settings.stars.list, settings.reference.file
    companions = {settings.path(name) for name in others}
    paths = sorted(
        {path for pattern in chosen.files for path in _matching(base, pattern) if path.is_file()}
        - {path for path in companions if path is not None}
    )
    run = settings.run_folder.resolve()
    paths = [
        path
        for path in paths
        if run not in path.resolve().parents
        and not any(_fits(path, base, pattern) for pattern in chosen.exclude)
    ]
    if not paths:
        raise InputError(
            f"No file in {base} matches {', '.join(map(repr, chosen.files))} (frames.files); check "
            "the patterns, which start from the folder of the settings."
        )
    return [Source(name, path) for name, path in zip(_names(paths), paths, strict=True)]


def own_reference(settings: Settings) -> Source | None:
    """The reference that was made elsewhere, if the settings name one.

    Raises
    ------
    InputError
        There is no such file.
    """
    path = settings.path(settings.reference.file)
    if path is None:
        return None
    if not path.is_file():
        raise InputError(f"There is no file {path} (reference.file); check the name.")
    return Source(stem(path), path, made_elsewhere=True)


def unused_exclusions(settings: Settings) -> list[str]:
    """What ``frames.exclude`` names and no file is called."""
    base, chosen = settings.base, settings.frames
    paths = {path for pattern in chosen.files for path in _matching(base, pattern)}
    return [p for p in chosen.exclude if not any(_fits(path, base, p) for path in paths)]


def _fits(path: Path, base: Path, pattern: str) -> bool:
    """Whether the name of a file fits a pattern, or its path as ``frames.files`` would have it."""
    pattern = os.path.normpath(pattern)
    ways = path.name, os.path.relpath(path, base), str(path)
    return any(way == pattern or fnmatch.fnmatch(way, pattern) for way in ways)


def _names(paths: Sequence[Path]) -> list[str]:
    """A name for each file: its stem, made longer where that is the stem of another file, too."""
    names = [stem(path) for path in paths]
    count = Counter(names)
    longer = {i: _longer_names(paths[i]) for i, name in enumerate(names) if count[name] > 1}
    while twins := [i for i in longer if count[names[i]] > 1]:
        for i in twins:
            name = next(longer[i], None)
            if name is None:
                same = [str(p) for p, its in zip(paths, names, strict=True) if its == names[i]]
                raise InputError(
                    f"{' and '.join(same)} would both be called {names[i]!r} in the run; rename "
                    "one of them, or leave it out (frames.exclude)."
                )
            names[i] = name
        count = Counter(names)
    return names


def _longer_names(path: Path) -> Iterator[str]:
    """The stem, with ever more of its folders before it, then the same with its ending."""
    folders = path.absolute().parent.parts[1:]
    for name in (stem(path), path.name):
        for start in range(len(folders), -1, -1):
            yield "_".join((*folders[start:], name))


def _matching(base: Path, pattern: str) -> Iterator[Path]:
    """Files that a name or a pattern means; what is there under just this name is no pattern."""
    path = Path(pattern)
    if path.is_absolute():
        base, path = Path(path.anchor), path.relative_to(path.anchor)
    parts = path.parts
    while len(parts) > 1 and (parts[0] == ".." or (base / parts[0]).is_dir()):
        base, parts = (base.parent if parts[0] == ".." else base / parts[0]), parts[1:]
    if len(parts) == 1 and (base / parts[0]).is_file():
        return iter([base / parts[0]])
    return base.glob(str(Path(*parts)))
