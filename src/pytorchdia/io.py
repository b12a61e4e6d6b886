"""The border: whatever holds an image becomes a :class:`~pytorchdia.frame.Frame` here.

The only file that knows about paths, HDUs, CCDData, NumPy arrays and tensors on the way in.
"""

from __future__ import annotations

import errno
import math
import re
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from astropy.io import fits
from astropy.io.fits.verify import VerifyError
from astropy.nddata import NDData, StdDevUncertainty, UnknownUncertainty, VarianceUncertainty
from astropy.stats import mad_std
from astropy.units import Quantity
from astropy.utils.exceptions import AstropyWarning
from astropy.wcs import WCS, FITSFixedWarning
from numpy.typing import NDArray
from scipy.ndimage import label

from .conventions import ASINH_CARDS, bad_pixels, colour_mosaic, linear_scale
from .errors import Finding, InputError, ReadError, ShapeError
from .frame import Detector, Flag, Frame
from .headers import WCS_CARD, Keywords, detector_from_header, unit_from_header, with_unit

__all__ = ["as_frame", "as_frames", "chips_of", "read_header", "read_mask", "read_plane", "stem"]

_MASK_NAMES = ("MASK", "DQ", "BPM", "FLAGS", "BADPIX", "BPMASK", "QUALITY", "QUAL")
_VARIANCE_NAMES = ("VARIANCE", "VAR")
_SIGMA_NAMES = ("UNCERT", "ERR", "ERROR", "ERRS", "SIGMA")
_INVERSE_NAMES = ("IVAR", "INVVAR")
_NO_CHIPS = ("WHT", "WEIGHT", "WGT", "CTX", "CON", "EXP", "EXPMAP", "SKY", "BKG", "BACKGROUND")
_POWER_OF_UTYPE = {"StdDevUncertainty": 2, "VarianceUncertainty": 1, "InverseVariance": -1}
_HDU_SUFFIX = re.compile(r"^(?P<path>.+)\[(?P<hdu>[^\[\]]+)\]$")
_PLATEAU_PIXELS = 5  # pixels together at the top make a plateau; a symmetric star has up to 4
_PLATEAU_HEIGHT = 8.0  # in units of the scatter: counts of few photons share values by chance
_PLATEAU_DEPTH = 1e-3  # of the height above the median: resampling blurs a plateau that much


@dataclass(frozen=True)
class _Given:
    """What the user says of the detector, and of the keywords that tell the rest."""

    numbers: Mapping[str, float | None]
    keywords: Keywords


def as_frame(
    source: Any,
    *,
    hdu: int | str | None = None,
    mask: Any = None,
    variance: Any = None,
    gain: float | None = None,
    read_noise: float | None = None,
    saturation: float | None = None,
    exposure: float | None = None,
    keywords: Keywords = Keywords(),
    copy: bool = True,
) -> Frame:
    """Turn an image of any kind into a :class:`~pytorchdia.frame.Frame`.

    Parameters
    ----------
    source : Frame, array_like, Tensor, Quantity, NDData, HDU, HDUList, str or Path
        A 2-D image of any numeric dtype, byte order and strides; axes of length one are dropped.
        A path may name its HDU in brackets, ``"night.fits[SCI]"`` or ``"night.fits[2]"``; without
        one the first HDU that holds an image is taken. MASK, DQ, VARIANCE or UNCERT images of the
        same shape and EXTVER in the same file are used, and those whose names are in ``keywords``,
        unless the HDU was named and others of the kind leave open whose they are, which is a
        finding. Images whose meaning is not known are named by another.
    hdu : int or str, optional
        Number or name of the HDU.
    mask : array_like, optional
        (h, w), True (or not zero) = ignore; joins the masks that the source has itself.
    variance : array_like, optional
        (h, w), sigma^2 [ADU^2], in place of the uncertainty that the source has itself. Pixels
        whose variance is not positive and finite are flagged.
    gain, read_noise, saturation, exposure : float, optional
        Override the header: e-/ADU, **electrons**, ADU (infinity for none), seconds. Without a
        saturation level a plateau of equal values at the top of the image is taken for one.
    keywords : Keywords
        Keywords of gain, read noise, saturation and exposure, and names of HDUs that hold masks
        and variances, beyond those that are known.
    copy : bool
        False saves memory: the frame shares that of an array where it can, which must then not be
        written to while the frame is in use, and is float32 where that holds the values exactly.

    Raises
    ------
    ReadError
        The file or the HDU cannot be read as an image.
    ShapeError
        The image is not 2-D, or mask or uncertainty have another shape.
    InputError
        The values are not numbers, or an option is out of range.
    """
    given = _Given(
        {"gain": gain, "read_noise": read_noise, "saturation": saturation, "exposure": exposure},
        keywords,
    )
    if isinstance(source, (str, Path)):
        frame = _from_path(source, hdu, given)
    elif isinstance(source, fits.HDUList):
        frame = _from_hdus(source, hdu, "HDUList", given)
    elif isinstance(source, (fits.ImageHDU, fits.PrimaryHDU, fits.CompImageHDU)):
        frame = _from_hdus(fits.HDUList([source]), 0, source.name or "HDU", given)
    elif isinstance(source, Frame):
        frame = _regiven(source, given)
    elif isinstance(source, NDData):
        frame = _from_nddata(source, given, copy)
    else:
        frame = _from_array(source, given, copy)
    if variance is not None:
        frame = _with_variance(frame, _numbers(variance, "variance"))
    if mask is not None:
        frame = frame.flagged(_mask_like(mask, frame.shape, "mask"), Flag.MASKED)
    return frame


def read_plane(path: str | Path, chip: int | str | None = None) -> NDArray[np.float64]:
    """An auxiliary image (variance, flat-field), (h, w), with NaN at its bad pixels.

    Parameters
    ----------
    path : str or Path
    chip : int or str, optional
        The HDU of the frames that it belongs to: of a file with an image for each chip, the one
        that is called so is taken; that of a file with one image in any case.

    Raises
    ------
    ReadError
        The file cannot be read as an image, or holds several and none for this chip.
    """
    frame = as_frame(path, hdu=_hdu_of_chip(path, chip), saturation=math.inf)
    plane: NDArray[np.float64] = np.where(frame.mask.numpy(), np.nan, frame.data.numpy())
    return plane


def read_mask(
    path: str | Path, bits: tuple[int, ...] = (), chip: int | str | None = None
) -> NDArray[np.bool_]:
    """A mask from a file of its own, (h, w), True = ignore.

    Parameters
    ----------
    path : str or Path
    bits : tuple of int
        The bits, from 0 on, that make a pixel bad; empty: those that the header tells, or any.
    chip : int or str, optional
        As in :func:`read_plane`.

    Raises
    ------
    ReadError
        As :func:`read_plane`.
    """
    frame = as_frame(path, hdu=_hdu_of_chip(path, chip), saturation=math.inf)
    return bad_pixels(np.where(frame.mask.numpy(), np.nan, frame.data.numpy()), frame.meta, bits)


def _hdu_of_chip(path: str | Path, chip: int | str | None) -> int | str | None:
    """Where the image of this chip lies in an auxiliary file; None for its first image."""
    if chip is None:
        return None
    chips = chips_of(path)
    if isinstance(chip, int) and len(chips) < 2:  # its only image may have any number
        return None
    try:
        read_header(path, chip)
    except ReadError as error:
        if len(chips) < 2:
            return None
        raise ReadError(
            f"{path} has images of {len(chips)} chips ({', '.join(map(str, chips))}) and none of "
            f"{chip!r}, which the frames are of. Name them alike, or give a file with this chip's "
            "image alone."
        ) from error
    return chip


def stem(path: str | Path) -> str:
    """The name of a FITS file without its folder and endings."""
    name = Path(path).name
    for suffix in (".fz", ".gz", ".fits", ".fit", ".fts"):
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
    return name


def as_frames(source: Any, mask: Any = None) -> tuple[list[Frame], tuple[int, ...] | None]:
    """The frames of one image or of a stack, and the stack's shape (None for one image).

    A stack is an array, a Tensor or an NDData of more than two axes, the last two being those of
    the images, or a list or tuple of whatever :func:`as_frame` takes. Arrays are not copied where
    that can be helped.

    Parameters
    ----------
    source
        One image, or a stack.
    mask : array_like, optional
        (h, w), or one for each image of the stack.

    Raises
    ------
    InputError, ReadError
        As :func:`as_frame`; the message says which image it is.
    """
    if isinstance(source, (list, tuple)) and any(_is_an_image(item) for item in source):
        images, shape = list(source), (len(source),)
    else:
        axes = getattr(source, "shape", ()) if not isinstance(source, (str, Path, Frame)) else ()
        if isinstance(source, (list, tuple)):
            source = _as_array(source, "array")
            axes = source.shape
        if len(axes) < 3:
            return [as_frame(source, mask=mask, copy=False)], None
        shape = tuple(axes[:-2])
        images = [source[index] for index in np.ndindex(*shape)]
    if not images:
        raise ShapeError(f"The stack of images is empty: its shape is {shape}.")
    masks: list[Any] = [mask] * len(images)
    if mask is not None and np.ndim(mask) > 2:
        if tuple(np.shape(mask)[:-2]) != shape:
            raise ShapeError(
                f"The mask has shape {tuple(np.shape(mask))} but the stack holds {shape} images; "
                "give one mask for all, or one for each image."
            )
        masks = [mask[index] for index in np.ndindex(*shape)]
    frames = []
    for number, (image, its_mask) in enumerate(zip(images, masks, strict=True)):
        try:
            frame = as_frame(image, mask=its_mask, copy=False)
        except (InputError, ReadError) as error:
            raise type(error)(f"Image {number} of the stack: {error}") from error
        if frame.name in ("array", "NDData"):
            frame = replace(frame, name=f"{frame.name} {number}")
        frames.append(frame)
    return frames, shape


def read_header(
    path: str | Path, hdu: int | str | None = None
) -> tuple[dict[str, Any], tuple[int, int]]:
    """Keywords and shape (h, w) of the image that :func:`as_frame` would read, without its pixels.

    Raises
    ------
    ReadError
        The file or the HDU cannot be read as an image.
    """
    path = Path(path)
    with _only_headers(path) as hdus:
        chosen = hdus[_choose_hdu(hdus, hdu, path.name, _Planes.of(Keywords()))]
        shape = tuple(n for n in chosen.shape if n > 1)
        header = _with_primary(chosen.header, hdus[0].header)
    if len(shape) != 2:
        raise ReadError(f"{path} holds an image of shape {chosen.shape}, not one of two axes.")
    return header, (int(shape[0]), int(shape[1]))


def chips_of(path: str | Path) -> tuple[str | int, ...]:
    """The images of a file that may be chips of one camera, as ``hdu`` names them.

    They are of the size of the one that :func:`as_frame` reads if nothing is said, and no masks,
    variances, weights or the like by their names.

    Raises
    ------
    ReadError
        The file cannot be read, or holds no image.
    """
    path = Path(path)
    planes = _Planes.of(Keywords())
    with _only_headers(path) as hdus:
        first = hdus[_choose_hdu(hdus, None, path.name, planes)]
        chips = [
            i
            for i in _images(hdus)
            if _shape(hdus[i]) == _shape(first)
            and _name(hdus[i]) not in (*planes.names, *_NO_CHIPS)
        ]
        names = [_label(hdus, i)[1:-1] for i in chips]
        unnamed = [not hdus[i].name for i in chips]
    return tuple(i if bare else name for i, name, bare in zip(chips, names, unnamed, strict=True))


@contextmanager
def _only_headers(path: Path) -> Iterator[fits.HDUList]:
    """The HDUs of a file whose pixels nobody asks for."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AstropyWarning)
            with open(path, "rb") as file, fits.open(file, memmap=False) as hdus:
                yield hdus
    except ReadError:
        raise
    except Exception as error:  # astropy raises many kinds on damaged headers
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise ReadError(f"{path} cannot be read as FITS: {reason}.") from error


def _is_an_image(item: Any) -> bool:
    kinds = (str, Path, Frame, NDData, fits.HDUList, fits.ImageHDU, fits.PrimaryHDU,
             fits.CompImageHDU)  # fmt: skip
    return isinstance(item, kinds) or len(getattr(item, "shape", ())) >= 2


def _as_array(source: Any, name: str) -> NDArray[Any]:
    try:
        return np.asarray(source)
    except ValueError as error:
        raise ShapeError(f"The image of {name} has rows of different lengths.") from error


def _from_path(source: str | Path, hdu: int | str | None, given: _Given) -> Frame:
    path = Path(source)
    match = _HDU_SUFFIX.match(str(source))
    if match and not _exists(path) and hdu is None:
        path, hdu = Path(match["path"]), match["hdu"]
        hdu = int(hdu) if hdu.isdigit() else hdu
    if not _exists(path):
        raise ReadError(
            f"There is no file {path}; check the path (the current folder is {Path.cwd()})."
        )
    if path.is_dir():
        raise ReadError(f"{path} is a folder; give the path of one FITS file.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AstropyWarning)
            warnings.filterwarnings("error", message=".*truncated.*", category=AstropyWarning)
            # Opened here, because astropy leaves damaged files open.
            with open(path, "rb") as file, fits.open(file, memmap=False) as hdus:
                return _from_hdus(hdus, hdu, path.name, given)
    except (ReadError, InputError):
        raise
    except (OSError, ValueError, TypeError, EOFError, IndexError, KeyError, VerifyError,
            AstropyWarning, zlib.error, MemoryError) as error:  # fmt: skip
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ReadError(
            f"{path} ({path.stat().st_size} bytes) cannot be read as FITS: "
            f"{reason.rstrip('.')}; the file may be truncated, damaged, or of another format."
        ) from error


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except ValueError:  # a name that no file can have, with a zero byte
        return False
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return False
        raise ReadError(f"{path} cannot be reached: {error.strerror}.") from error


def _from_hdus(hdus: fits.HDUList, hdu: int | str | None, name: str, given: _Given) -> Frame:
    planes = _Planes.of(given.keywords)
    index = _choose_hdu(hdus, hdu, name, planes)
    chosen = hdus[index]
    header = chosen.header.copy()
    plain = chosen.name in ("", "PRIMARY", "COMPRESSED_IMAGE") and hdu is None
    label = name if plain else f"{name}[{chosen.name or index}]"
    values = _numbers(chosen.data, label)
    _blank_to_nan(values, chosen)
    merged = _with_primary(header, hdus[0].header, given.keywords)
    values, noted = linear_scale(values, merged, label)
    detector, findings = detector_from_header(
        merged, given.numbers, unit_from_header(header), given.keywords
    )
    findings += tuple(filter(None, (noted, colour_mosaic(values, merged, label))))
    frame = _assemble(
        values, label, detector, findings, None if noted else _top_of_integers(chosen),
        unit=unit_from_header(header), meta=_inherited(header, hdus[0].header),
        wcs=_celestial(header, hdus),
    )  # fmt: skip
    if _name(chosen) in planes.names and hdu is not None:
        return frame
    mates = _of_its_kind(frame, hdus, index)
    of_known_use = [other for other in mates if _name(other) in planes.names]
    main = hdu is None or _name(chosen) in ("", "PRIMARY", "SCI", "SCIENCE", "IMAGE")
    if main or len(of_known_use) == len(mates):
        frame = _with_companions(frame, of_known_use, planes, merged)
        others = [i for i in _images(hdus) if i != index and _name(hdus[i]) not in planes.names]
        if hdu is not None or not others:
            return frame
        finding = _others_finding(hdus, others, label)
    elif not of_known_use:
        return frame
    else:
        finding = Finding(
            "file-planes-unused",
            f"{name} has {', '.join(map(_name, of_known_use))} beside "
            f"{1 + len(mates) - len(of_known_use)} images of this size and EXTVER; whether they "
            f"belong to {label} is not known, so they were not used. Give the mask and the "
            "variance, or give each image and its planes an EXTVER of their own.",
            "warning",
        )
    return replace(frame, findings=(*frame.findings, finding))


def _others_finding(hdus: fits.HDUList, others: list[int], label: str) -> Finding:
    """What to say of images in the file that were not chosen and are no known planes."""
    names = [_label(hdus, i) for i in others]
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return Finding(
        "file-images-unused",
        f"{label} was read; the file holds other images that were not: {shown}. If one is another "
        "chip, name it (FILE[NAME], or hdu); if one is a mask or a variance of this image, say so "
        "(keywords).",
    )


def _label(hdus: fits.HDUList, i: int) -> str:
    """What to write in brackets behind the name of the file for the i-th HDU."""
    name, version = hdus[i].name, hdus[i].ver
    if not name:
        return f"[{i}]"
    return f"[{name}]" if version == 1 else f"[{name},{version}]"


@dataclass(frozen=True)
class _Planes:
    """Names of the HDUs that belong to an image, and what they hold.

    Attributes
    ----------
    masks : tuple of str
    powers : Mapping of str to int
        Of each uncertainty, the power that is the variance.
    bits : tuple of int
        Those that make a pixel bad, if the user says which.
    """

    masks: tuple[str, ...]
    powers: Mapping[str, int]
    bits: tuple[int, ...] = ()

    @classmethod
    def of(cls, keywords: Keywords) -> _Planes:
        own_masks, own_variances = (
            tuple(name.upper() for name in names) for names in (keywords.mask, keywords.variance)
        )
        powers = dict.fromkeys(_INVERSE_NAMES, -1) | dict.fromkeys(_SIGMA_NAMES, 2)
        powers |= dict.fromkeys((*_VARIANCE_NAMES, *own_variances), 1)
        masks = own_masks + tuple(name for name in _MASK_NAMES if name not in own_variances)
        powers = {name: power for name, power in powers.items() if name not in own_masks}
        return cls(masks, powers, keywords.mask_bits)

    @property
    def names(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.masks, *self.powers)


def _images(hdus: fits.HDUList) -> list[int]:
    return [i for i, hdu in enumerate(hdus) if hdu.is_image and len(_shape(hdu)) >= 2]


def _choose_hdu(hdus: fits.HDUList, hdu: int | str | None, name: str, planes: _Planes) -> int:
    sizes = ["x".join(map(str, h.shape)) if h.is_image and h.shape else "-" for h in hdus]
    names = [h.name or "unnamed" for h in hdus]
    listing = ", ".join(f"{i}: {names[i]} {sizes[i]}" for i in range(len(hdus)))
    if hdu is None:
        images = _images(hdus)
        if not images:
            raise ReadError(f"{name} has no image in any HDU ({listing}).")
        return next((i for i in images if _name(hdus[i]) not in planes.names), images[0])
    named = re.fullmatch(r"(.+),\s*(\d+)", hdu) if isinstance(hdu, str) else None
    try:
        index = hdus.index_of((named[1].strip(), int(named[2])) if named else hdu)
        found = hdus[index]
    except (KeyError, IndexError) as error:
        raise ReadError(f"{name} has no HDU {hdu!r}; it holds {listing}.") from error
    if not found.is_image or not found.shape:
        raise ReadError(f"HDU {hdu!r} of {name} holds no image; the file holds {listing}.")
    return int(index)


def _blank_to_nan(values: NDArray[Any], hdu: Any) -> None:
    """Integer pixels equal to BLANK are undefined; astropy marks them only in some cases."""
    blank = hdu.header.get("BLANK")
    if isinstance(blank, int) and hdu.header.get("BITPIX", -32) > 0:
        scaled = blank * hdu.header.get("BSCALE", 1) + hdu.header.get("BZERO", 0)
        values[values == scaled] = np.nan


def _with_primary(
    header: fits.Header, primary: fits.Header, keywords: Keywords = Keywords()
) -> dict[str, Any]:
    """The HDU's keywords, and those of the primary header that it does not have."""
    merged: dict[str, Any] = {}
    for cards in (primary, header):
        for key in cards:
            if key in ("", "COMMENT", "HISTORY"):
                continue
            try:
                value = cards[key]
            except VerifyError:  # a card that breaks the standard is no reason to lose the image
                continue
            if value is not None and not isinstance(value, fits.card.Undefined):
                merged[key] = with_unit(key, value, cards.comments[key], keywords)
    return merged


def _inherited(header: fits.Header, primary: fits.Header) -> fits.Header:
    """The HDU's header with the cards of the primary header, such as OBJECT, that it lacks."""
    merged: fits.Header = header.copy()
    for card in primary.copy(strip=True).cards:
        special = card.keyword in ("", "COMMENT", "HISTORY", "NEXTEND", "EXTEND")
        if not special and card.keyword not in merged and not WCS_CARD.match(card.keyword):
            merged.append(card)
    for keyword in ASINH_CARDS:  # the values are linear now
        merged.remove(keyword, ignore_missing=True)
    return merged


def _celestial(header: fits.Header, hdus: fits.HDUList) -> WCS | None:
    """The WCS if it points at the sky; a broken one is left out, the header keeps its cards."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FITSFixedWarning)
            warnings.simplefilter("ignore", AstropyWarning)
            wcs = WCS(header, hdus, naxis=2)
    except Exception:  # astropy.wcs raises many kinds; none is worth losing the image for
        return None
    return wcs if wcs.has_celestial else None


def _name(hdu: Any) -> str:
    return str(hdu.name or "").upper()


def _shape(hdu: Any) -> tuple[int, ...]:
    """Of an image, without its axes of length one."""
    return tuple(n for n in hdu.shape or () if n > 1)


def _of_its_kind(frame: Frame, hdus: fits.HDUList, index: int) -> list[Any]:
    """The other images of the same shape and EXTVER: another EXTVER is another chip's."""
    return [
        other
        for i, other in enumerate(hdus)
        if i != index
        and other.is_image
        and _shape(other) == frame.shape
        and other.ver == hdus[index].ver
    ]


def _with_companions(
    frame: Frame, others: list[Any], planes: _Planes, cards: Mapping[str, Any]
) -> Frame:
    """Mask and variance images of the same file, known by their names; ``cards`` are its own."""
    findings = list(frame.findings)
    for other in others:
        name = _name(other)
        if name in planes.masks:
            values = np.asarray(other.data).reshape(frame.shape)
            bad = bad_pixels(
                values, {**cards, **_with_primary(other.header, other.header)}, planes.bits
            )
            frame = frame.flagged(torch.from_numpy(bad), Flag.MASKED)
            said = (
                f"Used the {name} image of {frame.name}: {100 * bad.mean():.2g} % of its pixels "
                "are bad."
            )
            findings.append(Finding("file-mask", said))
        else:
            power = planes.powers[name]
            if name == "UNCERT":
                power = _POWER_OF_UTYPE.get(other.header.get("UTYPE"), power)
            values = _numbers(other.data, name).reshape(frame.shape)
            with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
                # A sigma of -1 marks "no data"; squared it would look like an error.
                variance = values if power == 1 else np.where(values > 0, values, np.nan) ** power
            frame = _with_variance(frame, variance)
            findings.append(Finding("file-variance", f"Used the {name} image of {frame.name}."))
    return replace(frame, findings=tuple(findings))


def _from_nddata(source: NDData, given: _Given, copy: bool) -> Frame:
    values = _numbers(source.data, "NDData", copy)
    meta = source.meta if isinstance(source.meta, Mapping) else {}
    unit = source.unit.to_string() if source.unit is not None else ""
    known = _with_primary(meta, meta, given.keywords) if isinstance(meta, fits.Header) else meta
    detector, findings = detector_from_header(known, given.numbers, unit, given.keywords)
    data = np.asarray(source.data)
    top = float(np.iinfo(data.dtype).max) if _is_integer_array(data) else None
    frame = _assemble(
        values, "NDData", detector, findings, top, unit=unit, meta=meta, wcs=source.wcs
    )
    if source.mask is not None and np.ndim(source.mask) > 0:
        frame = frame.flagged(_mask_like(source.mask, frame.shape, "mask"), Flag.MASKED)
    uncertainty = source.uncertainty
    if uncertainty is None or uncertainty.array is None:
        return frame
    if isinstance(uncertainty, UnknownUncertainty):
        uncertainty = StdDevUncertainty(uncertainty.array)
    if isinstance(uncertainty, StdDevUncertainty):  # squaring would hide a negative mark
        sigma = np.asarray(uncertainty.array, np.float64)
        return _with_variance(frame, np.where(sigma > 0, sigma, np.nan) ** 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = np.asarray(uncertainty.represent_as(VarianceUncertainty).array, np.float64)
    return _with_variance(frame, variance)


def _from_array(source: Any, given: _Given, copy: bool) -> Frame:
    mask, unit = None, ""
    if isinstance(source, torch.Tensor):
        source = source.detach().cpu()
        source = (source.to(torch.float32) if source.dtype == torch.bfloat16 else source).numpy()
    if isinstance(source, Quantity):
        unit, source = source.unit.to_string(), source.value
    if isinstance(source, np.ma.MaskedArray):
        mask = np.ma.getmaskarray(source)
        source = source.data
    values = _numbers(source, "array", copy)
    detector, findings = detector_from_header({}, given.numbers, unit)
    top = np.iinfo(source.dtype).max if _is_integer_array(source) else None
    frame = _assemble(values, "array", detector, findings, top, unit=unit)
    return (
        frame if mask is None else frame.flagged(_mask_like(mask, frame.shape, "mask"), Flag.MASKED)
    )


def _regiven(frame: Frame, given: _Given) -> Frame:
    if all(value is None for value in given.numbers.values()):
        return frame
    detector, _ = detector_from_header({}, given.numbers, frame.unit)
    numbers = {
        name: value for name in given.numbers if (value := getattr(detector, name)) is not None
    }
    kept = replace(
        frame.detector, **numbers, sources={**frame.detector.sources, **detector.sources}
    )
    frame = replace(frame, detector=kept)
    if given.numbers["saturation"] is not None:
        flags = frame.flags & ~int(Flag.SATURATED)
        frame = replace(frame, flags=flags)
        frame = frame.flagged(frame.data >= given.numbers["saturation"], Flag.SATURATED)
    return frame


def _assemble(
    values: NDArray[Any],
    name: str,
    detector: Detector,
    findings: tuple[Finding, ...],
    top: float | None,
    *,
    unit: str,
    meta: Mapping[str, Any] | None = None,
    wcs: Any = None,
) -> Frame:
    data = torch.from_numpy(values)
    finite = torch.isfinite(data)
    flags = torch.zeros(data.shape, dtype=torch.int16)
    all_finite = bool(finite.all())
    data = data if all_finite else torch.where(finite, data, 0.0)
    if detector.saturation is None:
        level, source, noted = _plateau(values, top, name)
        detector = replace(
            detector, saturation=level, sources={**detector.sources, "saturation": source}
        )
        findings = findings + noted
    frame = Frame(
        data, flags, None, wcs, meta if meta is not None else {}, unit, name, detector, findings
    )
    if not all_finite:
        frame = frame.flagged(~finite, Flag.NON_FINITE)
    if detector.saturation is not None and math.isfinite(detector.saturation):
        frame = frame.flagged(finite & (data >= detector.saturation), Flag.SATURATED)
    return frame


def _plateau(
    values: NDArray[Any], top: float | None, name: str
) -> tuple[float, str, tuple[Finding, ...]]:
    """The level at which the image is cut off, if several pixels share its very top value."""
    finite = values if np.isfinite(values.sum()) else values[np.isfinite(values)]
    if not finite.size:
        return float("inf"), "no finite pixel", ()
    highest, lowest = float(finite.max()), float(finite.min())
    is_top = top is not None and highest >= top
    most = (finite >= highest - _PLATEAU_DEPTH * (highest - lowest)).sum()
    if most < _PLATEAU_PIXELS and not is_top:
        return float("inf"), "none seen", ()
    median = float(np.median(finite))
    count = int((finite >= highest - _PLATEAU_DEPTH * (highest - median)).sum())
    height = _PLATEAU_HEIGHT * mad_std(finite)
    with np.errstate(invalid="ignore"):
        patches, _ = label(values >= highest - _PLATEAU_DEPTH * (highest - median), np.ones((3, 3)))
    together = int(np.bincount(patches.ravel())[1:].max(initial=0))
    seen = together >= _PLATEAU_PIXELS and highest - median > height and count <= 0.1 * finite.size
    if not is_top and not seen:
        return float("inf"), "none seen", ()
    # Interpolation and non-linearity spoil the pixels just below the plateau as well.
    level = median + 0.95 * (highest - median)
    finding = Finding(
        "saturation-estimated",
        f"{name} gives no saturation level; {count} of its pixels share the highest value of "
        f"{highest:g}, so pixels from {level:g} on are taken as saturated.",
    )
    return level, "plateau in the image", (finding,)


def _with_variance(frame: Frame, values: NDArray[Any]) -> Frame:
    if values.shape != frame.shape:
        raise ShapeError(
            f"The uncertainty has shape {values.shape} but the image of {frame.name} has shape "
            f"{frame.shape}; they must be equal."
        )
    variance = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float64))
    good = torch.isfinite(variance) & (variance > 0)
    if not good.any():
        raise InputError(
            f"None of the {good.numel()} variances of {frame.name} is positive and finite (they "
            f"lie between {values.min():g} and {values.max():g}); check what the uncertainty holds."
        )
    flags = frame.flags & ~int(Flag.BAD_VARIANCE)
    frame = replace(frame, flags=flags, variance=torch.where(good, variance, 1.0))
    return frame.flagged(~good, Flag.BAD_VARIANCE)


def _mask_like(mask: Any, shape: tuple[int, int], name: str) -> torch.Tensor:
    if isinstance(mask, torch.Tensor):
        mask = mask.detach().cpu().numpy()
    array = np.asarray(mask)
    if array.shape != shape:
        raise ShapeError(
            f"The {name} has shape {array.shape} but the image has shape {shape}; they must be "
            "equal."
        )
    return torch.from_numpy(np.ascontiguousarray(array != 0))


def _numbers(source: Any, name: str, copy: bool = True) -> NDArray[Any]:
    """Native, C-ordered, with two axes: a fresh float64 copy.

    Without ``copy`` no more than is needed is copied, and what float32 holds exactly is float32.
    """
    array = _as_array(source, name)
    if array.dtype == object or array.dtype.kind not in "biuf":
        raise InputError(f"The image of {name} has dtype {array.dtype}; it must hold real numbers.")
    if array.ndim > 2:
        array = array.squeeze()
    if array.ndim != 2 or 0 in array.shape:
        raise ShapeError(
            f"The image of {name} has shape {np.shape(source)}; one 2-D image is needed (choose a "
            "plane of a cube first)."
        )
    if copy:
        return np.array(array, dtype=np.float64, order="C")
    small = np.result_type(array.dtype, np.float32) == np.float32  # up to 16 bits, and float32
    array = np.asarray(array, dtype=np.float32 if small else np.float64, order="C")
    return array if array.flags.writeable else array.copy()


def _is_integer_array(source: Any) -> bool:
    return isinstance(source, np.ndarray) and source.dtype.kind in "iu"


def _top_of_integers(hdu: Any) -> float | None:
    """The largest value that the file's integers can hold, or None for floats."""
    dtype = np.asarray(hdu.data).dtype
    return float(np.iinfo(dtype).max) if dtype.kind in "iu" else None
