"""The result on disk: one multi-extension FITS file, and the same as CCDData."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from astropy.io import fits
from astropy.io.fits.verify import VerifyError
from astropy.nddata import CCDData, VarianceUncertainty
from astropy.table import Table
from astropy.utils.exceptions import AstropyWarning
from astropy.wcs import WCS

from .errors import ReadError, WriteError
from .frame import Flag
from .headers import parse_unit

if TYPE_CHECKING:
    from .subtraction import Subtraction

__all__ = ["Summary", "check_writable", "replacing", "summarise", "to_ccddata", "write"]

# Keywords that describe how the target's file stored its pixels, not what they are.
_STORAGE = (
    "SIMPLE", "XTENSION", "EXTEND", "BITPIX", "NAXIS", "NAXIS1", "NAXIS2", "NAXIS3", "NAXIS4",
    "PCOUNT", "GCOUNT", "GROUPS", "BSCALE", "BZERO", "BLANK", "DATAMIN", "DATAMAX", "CHECKSUM",
    "DATASUM", "EXTNAME", "EXTVER", "EXTLEVEL", "INHERIT", "ZIMAGE", "ZCMPTYPE", "ZQUANTIZ",
    "ZDITHER0", "FZQVALUE", "FZQMETHD", "FZALGOR", "NEXTEND",
)  # fmt: skip


def write(result: Subtraction, path: Path, overwrite: bool = False) -> Path:
    """Write ``result`` to ``path``; see :meth:`pytorchdia.Subtraction.write`.

    The HDUs are the difference (primary), VARIANCE, MASK, MODEL, KERNEL, KERNEL_COV, PARAMETERS,
    DIAGNOSTICS and FINDINGS.
    """
    check_writable(path, overwrite)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)  # long keywords of the target's metadata
        hdus = _hdus(result)
    suffix = "".join(s for s in path.suffixes if s in (".fits", ".fit", ".gz", ".fz")) or ".fits"
    with replacing(path, suffix) as partial:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AstropyWarning)  # long cards of the target's header
            hdus.writeto(partial, overwrite=True, output_verify="silentfix+ignore", checksum=True)
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
    return path


@contextmanager
def replacing(path: Path, suffix: str = "") -> Iterator[Path]:
    """A temporary name beside ``path`` to write to; it becomes ``path`` when all went well.

    Raises
    ------
    WriteError
        Writing or renaming failed; nothing is left behind.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.part{suffix}")
    try:
        yield partial
        os.replace(partial, path)
    except (OSError, VerifyError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise WriteError(
            f"{path} could not be written ({reason}); nothing was left behind. "
            "Check the free space and the permissions of the folder."
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def check_writable(path: Path, overwrite: bool) -> None:
    """Raise a WriteError now if ``path`` cannot be written later."""
    try:
        exists = path.exists()
    except (OSError, ValueError) as error:
        raise WriteError(
            f"{str(path)[:60]!r} cannot be the name of a file ({error.args[-1]}); choose another."
        ) from error
    if path.is_dir():
        raise WriteError(f"{path} is a folder; give the name of a file in it.")
    if exists and not path.is_file():
        raise WriteError(f"{path} is a device or a pipe; give the name of a plain file.")
    if exists and not overwrite:
        raise WriteError(
            f"{path} exists already; choose another name or allow overwriting (--overwrite)."
        )
    folder = path.parent
    if not folder.is_dir():
        raise WriteError(f"There is no folder {folder} to write {path.name} into; create it first.")
    if not os.access(folder, os.W_OK):
        raise WriteError(
            f"The folder {folder} is not writable; choose another one for {path.name}."
        )


def to_ccddata(result: Subtraction) -> CCDData:
    """The difference as CCDData; see :meth:`pytorchdia.Subtraction.to_ccddata`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)  # long keywords of the target's metadata
        meta = _clean(result.header)
    return CCDData(
        result.difference,
        unit=parse_unit(result.unit),
        uncertainty=VarianceUncertainty(result.variance),
        mask=result.mask,
        flags=result.flags,
        wcs=result.wcs if isinstance(result.wcs, WCS) else None,
        meta=meta,
    )


def _hdus(result: Subtraction) -> fits.HDUList:
    header = _clean(result.header)
    header.extend(_own_cards(result), update=True)
    for line in _history(result):
        header.add_history(line)
    # Other kinds of WCS, such as those of sliced NDData, have no FITS header.
    world = result.wcs.to_header(relax=True) if isinstance(result.wcs, WCS) else fits.Header()
    if "CTYPE1" not in header:  # CDi_j of the target and PCi_j of ``world`` exclude each other
        header.extend(world, update=True)
    variance_header = fits.Header(world, copy=True)
    unit = result.unit or "adu"
    variance_header["BUNIT"] = (
        f"{unit}2" if unit.isalpha() else f"({unit})^2",
        "infinite = no data",
    )
    mask_header = fits.Header(world, copy=True)
    for flag in Flag:
        bit = int(flag).bit_length() - 1
        mask_header[f"MSK{bit:02d}"] = (flag.name, f"bit {bit} ({int(flag)})")
        mask_header.add_history(f"bit {bit}, value {int(flag)}: {flag.meaning}")
    kernel_header = fits.Header()
    kernel_header["CENTREX"] = (result.kernel.shape[1] // 2 + 1, "FITS pixel of m = 0")
    kernel_header["CENTREY"] = (result.kernel.shape[0] // 2 + 1, "FITS pixel of l = 0")
    kernel_header.add_history("M(i,j) = sum K(l,m) R(i+l,j+m) + B(i,j), i and l along y")
    covariance = []
    if result.kernel_covariance is not None:
        covariance = [fits.ImageHDU(result.kernel_covariance, name="KERNEL_COV")]
    return fits.HDUList(
        [
            fits.PrimaryHDU(result.difference, header),
            fits.ImageHDU(result.variance, variance_header, name="VARIANCE"),
            fits.ImageHDU(result.flags, mask_header, name="MASK"),
            fits.ImageHDU(result.model, fits.Header(world, copy=True), name="MODEL"),
            fits.ImageHDU(result.kernel, kernel_header, name="KERNEL"),
            *covariance,
            fits.BinTableHDU(_parameters(result), name="PARAMETERS"),
            fits.BinTableHDU(_diagnostics(result), name="DIAGNOSTICS"),
            fits.BinTableHDU(_findings(result), name="FINDINGS"),
        ]
    )


def _clean(header: Mapping[str, Any]) -> fits.Header:
    """The target's header without the keywords of its storage."""
    if isinstance(header, fits.Header):
        clean = header.copy(strip=True)
    else:
        clean = fits.Header()
        for key, value in header.items():
            if isinstance(value, (str, bool, int, float, np.number)) or value is None:
                try:
                    clean[str(key)] = value
                except ValueError:
                    continue  # NaN, or text that no FITS card can hold
    for key in _STORAGE:
        clean.remove(key, ignore_missing=True, remove_all=True)
    return clean


def _own_cards(result: Subtraction) -> list[tuple[str, Any, str]]:
    d = result.diagnostics
    cards: list[tuple[str, Any, str]] = [
        ("DIAVERS", version("pytorchdia"), "pytorchdia version"),
        ("DIASTAT", result.status.name, "how the fit ended"),
        ("DIATARG", _ascii(result.settings["target"]), "target"),
        ("DIAREF", _ascii(result.settings["reference"]), "reference"),
        ("DIAP", result.scale, "photometric scale P, sum of the kernel"),
        ("DIAPERR", result.scale_error, "error of P"),
        ("DIAB0", float(result.background.coefficients[0]), "background B_0"),
        ("DIAB0ERR", float(result.background.errors[0]), "error of B_0"),
        ("DIARBKG", d.reference_background, "level taken off the reference"),
        ("DIARNOIS", d.reference_noise, "VARIANCE, errors hold noise of reference"),
        ("DIANPIX", d.n_pixels, "pixels used by the fit"),
        ("DIANEFF", d.n_effective, "parameters that the data determine"),
        ("DIALOSS", d.loss, "negative ln likelihood (+ penalty)"),
        ("DIARCHI2", d.reduced_chi_square, "reduced chi-square"),
        ("DIARESID", d.residual_scale, "robust scale of D / error on the sky"),
        ("DIADRIFT", d.drift, "share of the model's light left in D"),
        ("DIADRERR", d.drift_error, "error of DIADRIFT"),
    ]
    return [(k, v, c) for k, v, c in cards if not (isinstance(v, float) and not np.isfinite(v))]


def _history(result: Subtraction) -> list[str]:
    lines = ["pytorchdia: difference = target - (reference (x) kernel + background)"]
    lines += [f"pytorchdia: {name}: {value}" for name, value in result.settings.items()]
    lines += [f"pytorchdia: {finding}" for finding in result.findings]
    return [_ascii(line) for line in lines]


def _ascii(text: str) -> str:
    """``text`` in the characters that FITS allows; others are written as backslash codes."""
    escaped = text.encode("ascii", "backslashreplace").decode()
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in escaped)


def _parameters(result: Subtraction) -> Table:
    n_y, n_x = (s // 2 for s in result.kernel.shape)
    unit = result.unit or "adu"
    b = result.background
    rows = [("P", result.scale, result.scale_error, "")]
    rows += [
        (f"b_{m}{n}", float(value), float(error), unit)
        for (m, n), value, error in zip(b.exponents, b.coefficients, b.errors, strict=True)
    ]
    if result.kernel_covariance is not None:  # a pixel without an error would be half a number
        variances = np.clip(np.diag(result.kernel_covariance), 0, None)
        errors = np.sqrt(variances).reshape(result.kernel.shape)
        rows += [
            (f"K[{i - n_y:+d},{j - n_x:+d}]", float(result.kernel[i, j]), float(errors[i, j]), "")
            for i, j in np.ndindex(result.kernel.shape)
        ]
    return Table(rows=rows, names=("NAME", "VALUE", "ERROR", "UNIT"))


def _diagnostics(result: Subtraction) -> Table:
    rows = [("status", result.status.name)]
    rows += [(name, str(value)) for name, value in result.diagnostics.as_dict().items()]
    rows += [(name, _ascii(value)) for name, value in result.settings.items()]
    return Table(rows=rows, names=("NAME", "VALUE"))


def _findings(result: Subtraction) -> Table:
    rows = [(f.level, f.code, _ascii(f.message)) for f in result.findings]
    names = ("LEVEL", "CODE", "MESSAGE")
    return Table(rows=rows or None, names=names, dtype=("U7", "U32", "U600"))


@dataclass(frozen=True)
class Summary:
    """What a result file holds, for ``pytorchdia info``.

    Attributes
    ----------
    hdus : list of (str, str, str)
        Name, shape and type of each HDU.
    parameters : list of (str, float, float, str)
        Name, value, error and unit of P and of the background.
    diagnostics : dict of str to str
    findings : list of (str, str, str)
        Level, code and message.
    flagged : dict of str to int
        Number of pixels with each flag.
    """

    hdus: list[tuple[str, str, str]]
    parameters: list[tuple[str, float, float, str]]
    diagnostics: dict[str, str]
    findings: list[tuple[str, str, str]]
    flagged: dict[str, int]


def summarise(path: Path) -> Summary:
    """Read back what :func:`write` wrote.

    Raises
    ------
    ReadError
        The file cannot be read, or is no result of this package.
    """
    if not os.path.isfile(path):
        raise ReadError(f"There is no file {path}; check the path.")
    try:
        with _opened(path) as hdus:
            names = [h.name for h in hdus]
            if "PARAMETERS" not in names or "DIAGNOSTICS" not in names or "MASK" not in names:
                raise ReadError(
                    f"{path} is not a result of pytorchdia (it holds {', '.join(names)}); results "
                    "are written by 'pytorchdia subtract'."
                )
            rows = [
                (str(r["NAME"]), float(r["VALUE"]), float(r["ERROR"]), str(r["UNIT"]))
                for r in hdus["PARAMETERS"].data
            ]
            flags = hdus["MASK"].data
            return Summary(
                hdus=[(h.name, _shape(h), _type(h)) for h in hdus],
                parameters=[row for row in rows if not row[0].startswith("K[")],
                diagnostics={str(r["NAME"]): str(r["VALUE"]) for r in hdus["DIAGNOSTICS"].data},
                findings=[
                    (str(r["LEVEL"]), str(r["CODE"]), str(r["MESSAGE"]))
                    for r in hdus["FINDINGS"].data
                ],
                flagged={flag.meaning: int(((flags & flag) != 0).sum()) for flag in Flag},
            )
    except ReadError:
        raise
    except (OSError, ValueError, TypeError, KeyError, IndexError, AstropyWarning) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ReadError(f"{path} cannot be read as FITS ({reason}); it may be damaged.") from error


@contextmanager
def _opened(path: Path) -> Iterator[fits.HDUList]:
    """A FITS file; that it is truncated is an error, other peculiarities are not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)
        warnings.filterwarnings("error", message=".*truncated.*", category=AstropyWarning)
        # Opened here, because astropy leaves damaged files open.
        with open(path, "rb") as file, fits.open(file, memmap=False) as hdus:
            yield hdus


def _shape(hdu: Any) -> str:
    if hdu.is_image:
        return " x ".join(str(n) for n in hdu.shape)
    return f"{len(hdu.data)} rows"


def _type(hdu: Any) -> str:
    return str(hdu.data.dtype.name) if hdu.is_image else "table"
