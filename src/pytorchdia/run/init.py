"""A first CONFIG.toml for a folder of frames, from what their headers say."""

from __future__ import annotations

import json
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError, ReadError, WriteError
from ..headers import detector_from_header, filter_from_header, unit_from_header
from ..io import as_frame, chips_of, read_header
from .settings import Settings, describe_settings
from .state import write_text

__all__ = ["HeaderLine", "init_chips", "init_config", "read_headers"]

_CALIBRATIONS = ("bias", "dark", "flat", "zero", "focus", "lamp", "acquisition")
_KINDS = ("IMAGETYP", "OBSTYPE", "EXPTYPE", "FRAME", "ESO DPR TYPE")
_Found = dict[tuple[str, str], tuple[Any, str]]  # values of settings and where they come from
_EXAMPLES = {("keywords", "time"): '{ keyword = "JDMID", when = "mid", scale = "utc" }'}


@dataclass(frozen=True)
class HeaderLine:
    """What the header of one file says.

    Attributes
    ----------
    path : Path
    problem : str
        Why it is no frame of a season; empty if it is one.
    shape : tuple of int
    filter, object : str
    numbers : tuple of (str, float)
        Gain, read noise, saturation and exposure that are known, by name.
    sources : tuple of (str, str)
        The keyword that each came from.
    """

    path: Path
    problem: str = ""
    shape: tuple[int, ...] = ()
    filter: str = ""
    object: str = ""
    numbers: tuple[tuple[str, float], ...] = ()
    sources: tuple[tuple[str, str], ...] = ()


def read_headers(folder: Path, hdu: str | int | None = None) -> list[HeaderLine]:
    """One line for each file in ``folder`` that may be FITS, in the order of names.

    The image is that of ``hdu``, or the first.

    Raises
    ------
    InputError
        There is no such folder, or no such file in it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; give the one that holds the frames.")
    patterns = Settings().frames.files
    paths = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    if not paths:
        raise InputError(
            f"{folder} holds no file that ends in .fits, .fit, .fts, .fits.gz or .fits.fz; give "
            "the folder that holds the frames."
        )
    return [_line(path, hdu) for path in paths]


def init_config(folder: Path, path: Path | None = None, overwrite: bool = False) -> Path:
    """Write a commented CONFIG.toml for the frames in ``folder``.

    Parameters
    ----------
    folder : Path
    path : Path, optional
        Where to; ``folder/config.toml`` if absent. Names in it start from its own folder.
    overwrite : bool

    Raises
    ------
    InputError
        There are no frames.
    WriteError
        The file exists, or cannot be written.
    """
    folder = Path(folder)
    path = folder / "config.toml" if path is None else Path(path)
    text = _settings(path, folder, read_headers(folder))
    _write([(path, text)], overwrite)
    return path


def init_chips(folder: Path, path: Path | None = None, overwrite: bool = False) -> tuple[Path, ...]:
    """Write a CONFIG.toml for each chip of a mosaic, each with a run folder of its own.

    Parameters
    ----------
    folder : Path
    path : Path, optional
        As in :func:`init_config`; the name of the chip comes behind its stem.
    overwrite : bool

    Returns
    -------
    tuple of Path
        In the order of the chips in the first file that is a frame.

    Raises
    ------
    InputError
        There are no frames, or they have one image each.
    WriteError
        A file exists, or cannot be written; then none is.
    """
    folder = Path(folder)
    path = folder / "config.toml" if path is None else Path(path)
    lines = read_headers(folder)
    first = next((line.path for line in lines if not line.problem), lines[0].path)
    chips = chips_of(first)
    if len(chips) < 2:
        raise InputError(
            f"{first.name} holds one image that may be a chip's, not several; leave --chips out."
        )
    files = []
    for chip in chips:
        name = re.sub(r"[^\w.-]+", "_", str(chip))
        own = path.with_name(f"{path.stem}_{name}{path.suffix}")
        files.append((own, _settings(own, folder, read_headers(folder, chip), chip, f"run_{name}")))
    _write(files, overwrite)
    return tuple(own for own, _ in files)


def _write(files: list[tuple[Path, str]], overwrite: bool) -> None:
    for path, _ in files:
        if path.exists() and not overwrite:
            raise WriteError(f"{path} exists already; choose another name or allow overwriting.")
    for path, text in files:
        write_text(path, text)


def _settings(
    path: Path, folder: Path, lines: list[HeaderLine], chip: str | int | None = None,
    run: str | None = None,
) -> str:  # fmt: skip
    """The text of the settings for the filter and the size that most frames have."""
    usable = [line for line in lines if not line.problem]
    if not usable:
        problems = "; ".join(f"{line.path.name}: {line.problem}" for line in lines[:3])
        raise InputError(f"None of the {len(lines)} files in {folder} is a frame ({problems}).")
    kinds = Counter((line.filter, line.shape) for line in usable)
    (chosen, shape), _ = kinds.most_common(1)[0]
    season = [line for line in usable if (line.filter, line.shape) == (chosen, shape)]
    left_out = [line for line in lines if line not in season]
    found = _found(season)
    if chosen:
        found["frames", "filter"] = (chosen, "headers")
    if chip is not None:
        found |= {("frames", "hdu"): (chip, ""), ("run", "folder"): (run, "")}
    return "\n".join(_text(path, folder, season, left_out, found)) + "\n"


def _line(path: Path, hdu: str | int | None) -> HeaderLine:
    try:
        header, shape = read_header(path, hdu)
    except Exception as error:  # whatever is wrong with one file is its line
        return HeaderLine(path, " ".join(str(error).split())[:160])
    kind = next((str(header[k]) for k in _KINDS if k in header), "").strip().lower()
    detector, _ = detector_from_header(header, {}, unit_from_header(header))
    numbers = {
        name: value
        for name in ("gain", "read_noise", "saturation", "exposure")
        if (value := getattr(detector, name)) is not None
    }
    return HeaderLine(
        path, f"a calibration frame ({kind})" if _is_calibration(kind) else "", shape,
        filter_from_header(header), str(header.get("OBJECT", "")).strip(),
        tuple(numbers.items()), tuple(detector.sources.items()),
    )  # fmt: skip


def _other_images(path: Path) -> str:
    """What to say of images in a file that are not read, if there are any."""
    try:
        findings = as_frame(path).findings
        chips = len(chips_of(path))
    except (InputError, ReadError):  # `reduce` will say so of this frame
        return ""
    told = next((f.message for f in findings if f.code == "file-images-unused"), "")
    advice = " For settings of each chip: pytorchdia init FOLDER --chips."
    return told + advice if told and chips > 1 else told


def _is_calibration(kind: str) -> bool:
    """Whether one of the words begins or ends as a kind of calibration does: ``skyflat``."""
    return any(
        word in ("arc", "arcs") or word.startswith(_CALIBRATIONS) or word.endswith(_CALIBRATIONS)
        for word in re.findall("[a-z]+", kind)
    )


def _text(
    path: Path, folder: Path, season: list[HeaderLine], left_out: list[HeaderLine], found: _Found
) -> Iterator[str]:
    yield "# Settings of a season's reduction: pytorchdia reduce " + path.name
    yield "# Lines that begin with # show what holds if nothing is said."
    yield "#"
    shape = " x ".join(map(str, season[0].shape))
    objects = ", ".join(sorted({line.object for line in season if line.object})) or "not named"
    yield f"# {len(season)} frames of {shape} pixels, filter {season[0].filter or 'not named'}."
    yield f"# Object: {objects}."
    if ("frames", "hdu") not in found:
        yield from textwrap.wrap(
            _other_images(season[0].path), 100, initial_indent="# ", subsequent_indent="#     "
        )
    for line in left_out[:50]:
        why = (
            line.problem
            or f"filter {line.filter or 'not named'}, {' x '.join(map(str, line.shape))} pixels"
        )
        yield f"# Left out: {line.path.name} ({why})"
    if len(left_out) > 50:
        yield f"# Left out: {len(left_out) - 50} more files"
    found = {**found, ("frames", "files"): (_patterns(path, folder, season), "")}
    excluded = _excluded(season, left_out)
    if excluded:
        found["frames", "exclude"] = (excluded, "")
    section = ""
    for name, key, default, meaning in describe_settings():
        if name != section:
            section = name
            yield f"\n[{section}]"
        example = _EXAMPLES.get((section, key), "")
        yield from _entry(key, default, meaning, found.get((section, key)), example)


def _entry(
    key: str, default: Any, meaning: str, value: tuple[Any, str] | None, example: str
) -> Iterator[str]:
    yield f"# {meaning}"
    if example:
        yield f"# {key} = {example}  # an example"
        return
    if value is None:
        yield f"# {key} =" if default is None else f"# {key} = {_toml(default)}"
        return
    seen, source = value
    active = source in ("", "headers")
    comment = f"  # {source}" if source else ""
    yield f"{'' if active else '# '}{key} = {_toml(seen)}{comment}"


def _found(season: list[HeaderLine]) -> _Found:
    """What the headers say of the camera, as comments: it is read from each frame anyway."""
    found: _Found = {}
    for key in ("gain", "read_noise", "saturation"):
        values = [dict(line.numbers)[key] for line in season if key in dict(line.numbers)]
        if values:
            source = next(dict(line.sources)[key] for line in season if key in dict(line.numbers))
            span = "" if min(values) == max(values) else f", {min(values):g} to {max(values):g}"
            missing = (
                f", not in {len(season) - len(values)} frames" if len(values) < len(season) else ""
            )
            found["camera", key] = (values[0], f"{source} of each frame{span}{missing}")
    return found


def _patterns(path: Path, folder: Path, season: list[HeaderLine]) -> tuple[str, ...]:
    try:
        base = folder.resolve().relative_to(path.resolve().parent)
        prefix = "" if str(base) == "." else f"{base}/"
    except ValueError:
        prefix = f"{folder.resolve()}/"
    endings = sorted({_ending(line.path) for line in season})
    return tuple(f"{prefix}*{ending}" for ending in endings)


def _ending(path: Path) -> str:
    return "".join(s for s in path.suffixes[-2:] if s in (".fits", ".fit", ".fts", ".gz", ".fz"))


def _excluded(season: Iterable[HeaderLine], left_out: Iterable[HeaderLine]) -> tuple[str, ...]:
    """Files that the patterns take in and that are no frames of the season.

    Frames of another filter need not be named, since ``filter`` keeps them out.
    """
    names = {line.filter for line in season}
    return tuple(
        line.path.name
        for line in left_out
        if line.problem or line.filter in names or not line.filter
    )


def _toml(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(str(value))
    return f"{value}"
