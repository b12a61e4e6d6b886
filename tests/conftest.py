"""Fixtures of all tests: a small pair of frames, a writer of FITS files, a runner of the CLI."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from numpy.typing import NDArray
from scipy.ndimage import correlate

from pytorchdia.cli import main as cli
from pytorchdia.simulate import Stars, draw_stars, render_gaussian


def pytest_configure(config: pytest.Config) -> None:
    """Warnings are errors in the tests, but for those that the package gives on purpose."""
    ours = "ignore::pytorchdia.errors.PyTorchDIAWarning"
    config.addinivalue_line("filterwarnings", ours)


FloatArray = NDArray[np.float64]

SHAPE = (64, 72)
GAIN, READ_NOISE = 1.0, 5.0  # e-/ADU, e-


@dataclass(frozen=True)
class SmallPair:
    """A reference, a target made of it by an asymmetric kernel, and their truth."""

    target: FloatArray
    reference: FloatArray
    kernel: FloatArray
    background: float


@dataclass(frozen=True)
class Outcome:
    """What a run of the command line gave back."""

    code: int
    out: str
    err: str


def asymmetric_kernel() -> FloatArray:
    """(5, 7), sum 0.8, without any symmetry."""
    y, x = np.mgrid[-2:3, -3:4]
    kernel = np.exp(-0.5 * (((y - 0.8) / 0.8) ** 2 + ((x + 1.2) / 1.1) ** 2 + 0.3 * x * y))
    return 0.8 * kernel / kernel.sum()


def make_pair(seed: int, shape: tuple[int, int] = SHAPE) -> SmallPair:
    rng = np.random.default_rng(seed)
    stars = draw_stars(rng, shape, log_density=2.5)
    stars = Stars(stars.x, stars.y, 30.0 * np.minimum(stars.flux, 3e3))  # none outshines the rest
    clean = render_gaussian(stars, shape, phi=1.1)
    kernel = asymmetric_kernel()
    target = correlate(clean, kernel, mode="nearest") + 500.0
    target = target + rng.standard_normal(shape) * np.sqrt(READ_NOISE**2 + target)
    reference = clean + 300.0
    reference = reference + 0.2 * rng.standard_normal(shape) * np.sqrt(READ_NOISE**2 + reference)
    return SmallPair(target, reference, kernel, 500.0)


@pytest.fixture(scope="session")
def pair() -> SmallPair:
    return make_pair(1)


def camera_header(wcs: WCS | None = None) -> fits.Header:
    """GAIN and RDNOISE of the simulated camera, and OBJECT."""
    header = wcs.to_header() if wcs is not None else fits.Header()
    header["GAIN"] = (GAIN, "e-/ADU")
    header["RDNOISE"] = (READ_NOISE, "e-")
    header["OBJECT"] = "field 7"
    return header


@pytest.fixture
def header() -> fits.Header:
    return camera_header()


@pytest.fixture(scope="session")
def wcs() -> WCS:
    """A tangential projection, rotated and not square."""
    world = WCS(naxis=2)
    world.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    world.wcs.crval = [273.87, -25.285]
    world.wcs.crpix = [30.0, 41.5]
    world.wcs.cd = [[-8e-5, 2e-5], [1.5e-5, 7e-5]]
    return world


WriteFits = Callable[..., Path]


@pytest.fixture
def write_fits(tmp_path: Path) -> WriteFits:
    """Write an array as the primary image of a new file; return its path."""

    def write(name: str, data: NDArray[np.generic], header: fits.Header | None = None) -> Path:
        path = tmp_path / name
        fits.PrimaryHDU(data, header).writeto(path, overwrite=True)
        return path

    return write


@dataclass(frozen=True)
class Files:
    """The pair on disk, and an empty folder for results."""

    target: Path
    reference: Path
    out: Path

    @property
    def result(self) -> Path:
        return self.out / "difference.fits"

    def left_behind(self) -> list[str]:
        return sorted(p.name for p in self.out.iterdir())


@pytest.fixture
def files(pair: SmallPair, write_fits: WriteFits, header: fits.Header, tmp_path: Path) -> Files:
    out = tmp_path / "out"
    out.mkdir()
    return Files(
        write_fits("target.fits", pair.target.astype(np.float32), header),
        write_fits("reference.fits", pair.reference.astype(np.float32)),
        out,
    )


RunCli = Callable[..., Outcome]


@pytest.fixture
def run_cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunCli:
    """Call the command line in this process, as a shell would."""

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["pytorchdia", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return Outcome(int(stop.value.code or 0), captured.out, captured.err)

    return run
