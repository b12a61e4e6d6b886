"""The files of a run that hold images: the reference, its PSF, registered frames, differences.

They are written whole or not at all, with nothing in them that a second run would not write again
byte by byte (no dates, no times taken).
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from astropy.io import fits
from astropy.table import Table
from astropy.utils.exceptions import AstropyWarning
from astropy.wcs import WCS

from ..changes.stack import Stack, Sums
from ..errors import ReadError
from ..frame import Flag, Frame
from ..io import as_frame
from ..product import replacing
from ..regions import FrameDifference, Region, RegionFit
from ..stars.psf import PSFModel

__all__ = [
    "read_difference",
    "read_frame",
    "read_psf",
    "read_stack",
    "write_difference",
    "write_frame",
    "write_psf",
    "write_stack",
]


def write_frame(path: Path, frame: Frame, cards: Mapping[str, Any]) -> Path:
    """Write data, VARIANCE (if there is one) and FLAGS of a frame, with its WCS and ``cards``."""
    world = _world(frame.wcs)
    header = _header(world, cards)
    for name, key in (("gain", "GAIN"), ("read_noise", "RDNOISE"), ("exposure", "EXPTIME")):
        value = getattr(frame.detector, name)
        if value is not None:
            header[key] = value
    hdus = [fits.PrimaryHDU(frame.data.numpy().astype(np.float32), header)]
    if frame.variance is not None:
        bad = (frame.flags.numpy() & int(Flag.BAD_VARIANCE)) != 0
        variance = np.where(bad, np.inf, frame.variance.numpy()).astype(np.float32)
        hdus.append(fits.ImageHDU(variance, world.copy(), name="VARIANCE"))
    hdus.append(fits.ImageHDU(frame.flags.numpy(), _flag_header(world), name="FLAGS"))
    return _write(path, hdus)


def read_frame(path: Path, name: str) -> Frame:
    """What :func:`write_frame` wrote.

    Raises
    ------
    ReadError
        It cannot be read.
    """
    frame = as_frame(path, saturation=math.inf)
    with _opened(path) as hdus:
        flags = torch.from_numpy(hdus["FLAGS"].data.astype(np.int16))
    return replace(frame, flags=flags, name=name, findings=())


def write_psf(path: Path, psf: PSFModel) -> Path:
    """Write the table of a PSF."""
    header = fits.Header()
    header["OVERSAMP"] = (psf.oversampling, "samples per pixel")
    header["FWHM"] = (psf.fwhm, "[pix]")
    header["NSTARS"] = (psf.n_stars, "stars it was learnt from")
    return _write(path, [fits.PrimaryHDU(np.asarray(psf.table), header)])


def read_psf(path: Path) -> PSFModel:
    """What :func:`write_psf` wrote.

    Raises
    ------
    ReadError
        It cannot be read.
    """
    with _opened(path) as hdus:
        header = hdus[0].header
        table = np.array(hdus[0].data, dtype=np.float64)
        return PSFModel(table, int(header["OVERSAMP"]), n_stars=int(header["NSTARS"]))


def write_difference(
    path: Path, result: FrameDifference, wcs: Any, cards: Mapping[str, Any]
) -> Path:
    """Write a difference with VARIANCE, MASK, KERNELS and REGIONS.

    Parameters
    ----------
    path : Path
    result : FrameDifference
    wcs : object
        The reference's.
    cards : Mapping
        Keywords of the primary header.
    """
    world = _world(wcs)
    kernels = np.stack([fit.kernel for fit in result.fits])
    names = ("X", "Y", "ROW0", "ROW1", "COLUMN0", "COLUMN1", "P", "P_ERROR", "BACKGROUND",
             "RCHI2", "STATUS")  # fmt: skip
    rows = [
        (*fit.region.centre, fit.region.rows.start, fit.region.rows.stop,
         fit.region.columns.start, fit.region.columns.stop, fit.scale, fit.scale_error,
         fit.background, fit.reduced_chi_square, fit.status)
        for fit in result.fits
    ]  # fmt: skip
    hdus = [
        fits.PrimaryHDU(result.difference, _header(world, cards)),
        fits.ImageHDU(result.variance, world.copy(), name="VARIANCE"),
        fits.ImageHDU(result.flags, _flag_header(world), name="MASK"),
        fits.ImageHDU(kernels, name="KERNELS"),
        fits.BinTableHDU(Table(rows=rows, names=names), name="REGIONS"),
    ]
    return _write(path, hdus)


def read_difference(path: Path) -> FrameDifference:
    """What :func:`write_difference` wrote.

    Raises
    ------
    ReadError
        It cannot be read.
    """
    with _opened(path) as hdus:
        kernels = np.array(hdus["KERNELS"].data, dtype=np.float64)
        regions = []
        for row, kernel in zip(hdus["REGIONS"].data, kernels, strict=True):
            rows = slice(int(row["ROW0"]), int(row["ROW1"]))
            columns = slice(int(row["COLUMN0"]), int(row["COLUMN1"]))
            place = Region(rows, columns, rows, columns)
            scale, error, level, chi2 = (
                float(row[name]) for name in ("P", "P_ERROR", "BACKGROUND", "RCHI2")
            )
            regions.append(RegionFit(place, kernel, scale, error, level, chi2, str(row["STATUS"])))
        return FrameDifference(
            np.array(hdus[0].data, np.float32), np.array(hdus["VARIANCE"].data, np.float32),
            np.array(hdus["MASK"].data, np.int16), tuple(regions),
        )  # fmt: skip


def write_stack(path: Path, stack: Stack) -> Path:
    """Write the sums of a stack, those of the total errors and those of the noise alone."""
    hdus: list[Any] = [fits.PrimaryHDU()]
    for kind, sums in vars(stack).items():
        hdus += [fits.ImageHDU(image, name=f"{kind} {of}") for of, image in vars(sums).items()]
    return _write(path, hdus)


def read_stack(path: Path) -> Stack:
    """What :func:`write_stack` wrote.

    Raises
    ------
    ReadError
        It cannot be read.
    """
    with _opened(path) as hdus:
        parts = [
            Sums(
                *(np.array(hdus[f"{kind.name} {of.name}"].data, np.float64) for of in fields(Sums))
            )
            for kind in fields(Stack)
        ]
    return Stack(*parts)


class _opened:  # noqa: N801  # reads like a function
    """An open FITS file whose damage is a ReadError."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Any:
        try:
            self._file = open(self._path, "rb")  # closed in __exit__
        except OSError as error:
            raise ReadError(f"{self._path} cannot be read ({error.strerror}).") from error
        try:
            self._hdus = fits.open(self._file, memmap=False)
        except Exception as error:
            self._file.close()
            raise ReadError(f"{self._path} cannot be read as FITS ({error}).") from error
        return self._hdus

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._hdus.close()
        self._file.close()
        if isinstance(error, (OSError, KeyError, ValueError, TypeError)):
            raise ReadError(
                f"{self._path} cannot be read ({error}); remove it, and run again."
            ) from error


def _write(path: Path, hdus: list[Any]) -> Path:
    with replacing(path, ".fits") as partial:
        path.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AstropyWarning)
            fits.HDUList(hdus).writeto(partial, overwrite=True, output_verify="silentfix+ignore")
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
    return path


def _world(wcs: Any) -> fits.Header:
    if not isinstance(wcs, WCS):
        return fits.Header()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)
        return wcs.to_header(relax=True)


def _header(world: fits.Header, cards: Mapping[str, Any]) -> fits.Header:
    header = world.copy()
    for key, value in cards.items():
        if value is not None and not (isinstance(value, float) and not math.isfinite(value)):
            header[key] = value
    return header


def _flag_header(world: fits.Header) -> fits.Header:
    header = world.copy()
    for flag in Flag:
        bit = int(flag).bit_length() - 1
        header[f"MSK{bit:02d}"] = (flag.name, f"bit {bit} ({int(flag)})")
    return header
