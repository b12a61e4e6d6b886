"""A small season on disk: shifted frames of changing seeing, with one star that varies."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from pytorchdia.simulate import Stars, render_gaussian

SHAPE = (96, 100)
GAIN, READ_NOISE = 1.5, 5.0  # e-/ADU, e-
EXPOSURE = 60.0
VARIABLE = (48.3, 45.6)  # x, y on the grid without a shift
AMPLITUDE = 6000.0  # ADU

CONFIG = """
[run]
folder = "run"
[frames]
files = ["*.fits"]
[subtract]
kernel = 9
background = 0
"""


@dataclass(frozen=True)
class Epoch:
    """One frame of the small season and its truth."""

    name: str
    mjd: float
    shift: tuple[float, float]
    phi: float
    scale: float
    flux: float  # of the variable star, relative to its mean


def sky_stars(seed: int = 5, n: int = 45) -> Stars:
    """Stars of a field somewhat larger than a frame, none too close to the variable."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(-8, SHAPE[1] + 8, 4 * n), rng.uniform(-8, SHAPE[0] + 8, 4 * n)
    keep = [0]
    for i in range(1, len(x)):
        apart = np.hypot(x[keep] - x[i], y[keep] - y[i]).min()
        if apart > 7 and np.hypot(x[i] - VARIABLE[0], y[i] - VARIABLE[1]) > 9:
            keep.append(i)
    keep = keep[:n]
    return Stars(x[keep], y[keep], 10 ** rng.uniform(3.6, 4.9, len(keep)))


def image(
    epoch: Epoch, rng: np.random.Generator, stars: Stars, shape: tuple[int, int] = SHAPE
) -> NDArray[np.float32]:
    dx, dy = epoch.shift
    moved = Stars(
        np.append(stars.x, VARIABLE[0]) + dx,
        np.append(stars.y, VARIABLE[1]) + dy,
        epoch.scale * np.append(stars.flux, 20000.0 + epoch.flux),
    )
    clean = render_gaussian(moved, shape, phi=epoch.phi) + 400.0
    noise = np.sqrt(np.maximum(clean, 0.0) / GAIN + (READ_NOISE / GAIN) ** 2)
    return (clean + noise * rng.standard_normal(shape)).astype(np.float32)


def header_of(epoch: Epoch) -> fits.Header:
    header = fits.Header()
    header["GAIN"], header["RDNOISE"], header["EXPTIME"] = GAIN, READ_NOISE, EXPOSURE
    header["FILTER"], header["MJD-OBS"], header["SATURATE"] = "I", epoch.mjd, 60000.0
    return header


def epochs(n: int) -> list[Epoch]:
    rng = np.random.default_rng(11)
    return [
        Epoch(
            f"frame{i:03d}",
            59000.0 + 0.7 * i,
            (float(rng.uniform(-4, 4)), float(rng.uniform(-4, 4))) if i else (0.0, 0.0),
            1.2 if i == 0 else float(rng.uniform(1.3, 1.7)),
            float(rng.uniform(0.8, 1.1)) if i else 1.0,
            AMPLITUDE * float(np.sin(2.0 * i)),
        )
        for i in range(n)
    ]


def write_frame(
    folder: Path, epoch: Epoch, seed: int = 0, stars: Stars | None = None, **cards: object
) -> Path:
    rng = np.random.default_rng([seed, *epoch.name.encode()])
    header = header_of(epoch)
    for key, value in cards.items():
        if value is None:
            del header[key.replace("_", "-")]
        else:
            header[key.replace("_", "-")] = value
    path = folder / f"{epoch.name}.fits"
    data = image(epoch, rng, sky_stars() if stars is None else stars)
    fits.PrimaryHDU(data, header).writeto(path, overwrite=True)
    return path


def write_season(folder: Path, n: int = 6, config: str = CONFIG) -> list[Epoch]:
    """``n`` frames and ``config.toml`` in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    season = epochs(n)
    for epoch in season:
        write_frame(folder, epoch)
    (folder / "config.toml").write_text(config)
    return season


def products(run: Path) -> dict[str, str]:
    """Digest of every file of a run, but for its log and its lock."""
    return {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(run.rglob("*"))
        if path.is_file() and path.name not in ("log.txt", ".lock")
    }
