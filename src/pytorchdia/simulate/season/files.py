"""A simulated season on disk: FITS frames as a telescope writes them, and tables of the truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.table import Table
from astropy.time import Time

from ...errors import InputError, WriteError
from ...product import check_writable, replacing
from .model import START, Season, SeasonFrame

__all__ = [
    "as_hdus",
    "frame_name",
    "frame_number",
    "require_same_season",
    "truth_tables",
    "write_season",
]

_TABLES = ("stars", "frames", "light_curves")


def frame_name(number: int) -> str:
    """Name of the file of a frame."""
    return f"season_{number:04d}.fits"


def frame_number(name: str) -> int:
    """Number of a frame, from its name without the ending: the inverse of :func:`frame_name`."""
    digits = name.rsplit("_", 1)[-1]
    if not digits.isdigit():
        raise InputError(f"{name} is no frame of a simulated season, such as season_0003.")
    return int(digits)


def as_hdus(season: Season, number: int, frame: SeasonFrame | None = None) -> fits.HDUList:
    """Frame ``number`` as a FITS file has it; :func:`pytorchdia.as_frame` takes it as it is.

    The image is 16-bit integers (BZERO 32768), with time, exposure, gain, read noise, filter and
    saturation in its header; a MASK image shows the dead column.
    """
    frame = season.frame(number) if frame is None else frame
    camera = season.camera
    pixels = np.clip(np.rint(frame.exposure.image), 0, 65535).astype(np.uint16)
    header = fits.Header() if frame.wcs is None else frame.wcs.to_header()
    start = START + frame.epoch.time - 0.5 * frame.epoch.exposure / 86400.0
    cards = {
        "OBJECT": ("simulated field", f"season with seed {season.seed}"),
        "DATE-OBS": (Time(start, format="mjd", scale="utc").isot, "UTC, start of the exposure"),
        "MJD-OBS": (start, "UTC, start of the exposure"),
        "TIMESYS": ("UTC", "time scale"),
        "EXPTIME": (frame.epoch.exposure, "[s]"),
        "FILTER": ("I", ""),
        "GAIN": (camera.gain, "[e-/ADU]"),
        "RDNOISE": (camera.read_noise, "[e-]"),
        "SATURATE": (camera.saturation, "[ADU]"),
        "BUNIT": ("adu", ""),
        "TELESCOP": ("simulation", "made by pytorchdia simulate"),
    }
    header.update(cards)
    mask = fits.ImageHDU(frame.exposure.mask.astype(np.uint8), name="MASK")
    return fits.HDUList([fits.PrimaryHDU(pixels, header), mask])


def truth_tables(season: Season, n_frames: int) -> dict[str, Table]:
    """The truth about the first ``n_frames`` frames.

    Returns
    -------
    dict of str to Table
        ``stars``: all constant and variable stars on the reference grid (x, y) with their flux at
        scale 1 and time 0; ``frames``: time, scale, seeing, sky and the matrix from the reference
        grid to each frame; ``light_curves``: flux at scale 1 of the variable stars in each frame.
    """
    epochs = [season.epoch(number) for number in range(n_frames)]
    field = season.field
    kinds = np.full(field.stars.x.size, "constant", dtype="U16")
    for variable in field.variables:
        kinds[variable.star] = variable.kind
    ra, dec = season.wcs().all_pix2world(field.stars.x, field.stars.y, 0)
    stars = Table(
        {
            "star": np.arange(kinds.size), "x": field.stars.x, "y": field.stars.y,
            "ra": ra, "dec": dec, "flux": field.stars.flux, "kind": kinds,
            "inside": field.inside(season.shape),
        }
    )  # fmt: skip
    stars.meta["curves"] = {str(v.star): {"kind": v.kind, **_numbers(v.curve)}
                            for v in field.variables}  # fmt: skip
    matrices = np.array([e.conditions.matrix(season.shape) for e in epochs]).reshape(-1, 6)
    frames = Table(
        {
            "frame": [e.number for e in epochs],
            "file": [frame_name(e.number) for e in epochs],
            "time": [START + e.time for e in epochs],
            "exposure": [e.exposure for e in epochs],
            "scale": [e.conditions.scale for e in epochs],
            "sky": [e.conditions.sky[0] for e in epochs],
            "fwhm": [e.fwhm for e in epochs],
            "ellipticity": [e.ellipticity for e in epochs],
            "shift_x": [e.conditions.shift[0] for e in epochs],
            "shift_y": [e.conditions.shift[1] for e in epochs],
            "rotation": [e.conditions.rotation for e in epochs],
            "trail": [e.conditions.trail is not None for e in epochs],
            "trouble": [e.trouble.value for e in epochs],
            **{f"m{i}{j}": matrices[:, 3 * i + j] for i in range(2) for j in range(3)},
        }
    )
    times = np.array([e.time for e in epochs])
    n = len(field.variables)
    curves = Table(
        {
            "star": np.repeat([v.star for v in field.variables], n_frames).astype(int),
            "frame": np.tile(np.arange(n_frames), n),
            "time": np.tile(START + times, n),
            "flux": np.concatenate([np.zeros(0), *(v.curve.flux(times) for v in field.variables)]),
        }
    )
    tables = dict(zip(_TABLES, (stars, frames, curves), strict=True))
    for table in tables.values():
        table.meta["season"] = _settings(season)
    _give_units(tables)
    return tables


def write_season(
    season: Season,
    folder: Path | str,
    n_frames: int,
    *,
    first: int = 0,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write frames into ``folder``/frames and the tables of their truth into ``folder``/truth.

    Parameters
    ----------
    season : Season
    folder : Path or str
        Made if it does not exist.
    n_frames : int
        Number of frames of the whole season.
    first : int
        Frames before this one are there already: a season is continued.
    overwrite : bool
        Replace files that exist.
    progress : callable, optional
        Called with the number of frames done and their total.

    Returns
    -------
    list of Path
        The frames that were written.

    Raises
    ------
    InputError
        ``first`` is not below ``n_frames``, or the folder holds a season with other settings.
    WriteError
        A file exists, or cannot be written. Nothing is left half written.
    """
    folder = Path(folder)
    if not 0 <= first < n_frames:
        raise InputError(
            f"There is no frame to write: the season has {n_frames}, the first one is {first}."
        )
    paths = {i: folder / "frames" / frame_name(i) for i in range(first, n_frames)}
    tables = {name: folder / "truth" / f"{name}.ecsv" for name in _TABLES}
    _make_folders(folder)
    if first:
        require_same_season(season, _begun_with(tables["stars"]), folder)
    for path in (*paths.values(), *(() if first else tables.values())):
        check_writable(path, overwrite)
    for name, table in truth_tables(season, n_frames).items():
        with replacing(tables[name], ".ecsv") as partial:
            table.write(partial, format="ascii.ecsv")
    for done, (number, path) in enumerate(paths.items()):
        if progress is not None:
            progress(done, len(paths))
        with replacing(path, ".fits") as partial:
            as_hdus(season, number).writeto(partial)
    if progress is not None:
        progress(len(paths), len(paths))
    return list(paths.values())


def _make_folders(folder: Path) -> None:
    for name in ("frames", "truth"):
        try:
            (folder / name).mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            raise WriteError(
                f"The folder {folder / name} cannot be made "
                f"({getattr(error, 'strerror', None) or error}); choose another one."
            ) from error


def _begun_with(path: Path) -> Mapping[str, object]:
    """The settings of the season whose truth is in a table."""
    try:
        return Table.read(path, format="ascii.ecsv").meta.get("season") or {}
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path.parent.parent} holds no season to continue: {path} cannot be read."
        ) from error


def require_same_season(season: Season, found: Mapping[str, object], folder: Path) -> None:
    """A season is continued with the settings that it was begun with.

    Parameters
    ----------
    season : Season
    found : Mapping
        Settings of the one in ``folder``, as they are in the metadata of its tables.
    folder : Path

    Raises
    ------
    InputError
        They are others.
    """
    wanted = _settings(season)
    names = [name for name in wanted if found.get(name) != wanted[name]]
    if names:
        each = (f"{n} {_shown(found.get(n))} there, {_shown(wanted[n])} asked for" for n in names)
        raise InputError(
            f"The season in {folder} was made with other settings ({', '.join(names)}): "
            f"{'; '.join(each)}. Give the same ones, or write to another folder."
        )


def _shown(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _settings(season: Season) -> dict[str, object]:
    """The fields of a season in types that ECSV keeps."""
    values = {f.name: getattr(season, f.name) for f in fields(season)}
    values["shape"] = list(season.shape)
    values["troubles"] = {str(k): trouble.value for k, trouble in (season.troubles or {}).items()}
    return values


def _numbers(curve: object) -> dict[str, float]:
    return {name: float(value) for name, value in asdict(curve).items()}  # type: ignore[call-overload]


def _give_units(tables: dict[str, Table]) -> None:
    units = {
        "x": "pix", "y": "pix", "ra": "deg", "dec": "deg", "flux": "adu", "time": "d",
        "exposure": "s", "sky": "adu", "fwhm": "pix", "shift_x": "pix", "shift_y": "pix",
        "rotation": "deg",
    }  # fmt: skip
    for table in tables.values():
        for name in table.colnames:
            if name in units:
                table[name].unit = units[name]
        if "time" in table.colnames:
            table["time"].description = "MJD (UTC), middle of the exposure"
