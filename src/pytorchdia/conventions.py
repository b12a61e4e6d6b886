"""What pixels mean in the files of some surveys and cameras.

Scales that are not linear, the bits of masks, and colour filters over the pixels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from astropy.stats import mad_std
from numpy.typing import NDArray

from .errors import Finding

__all__ = ["ASINH_CARDS", "bad_pixels", "colour_mosaic", "linear_scale"]

FloatArray = NDArray[np.float64]

ASINH_CARDS = ("BSOFTEN", "BOFFSET")
"""Keywords of a file whose pixels are an inverse hyperbolic sine of the counts."""

_POGSON = 2.5 / math.log(10.0)
# Planes of an LSST mask, as its cards MP_... name them, that say what was found in a good pixel.
_HARMLESS_PLANES = ("DETECTED", "DETECTED_NEGATIVE", "DEBLENDED", "NOT_DEBLENDED", "INEXACT_PSF")
_COLOURS = re.compile(r"[RGBCMYW]{4}")
_COLOUR_KEYWORDS = ("BAYERPAT", "COLORTYP")
_MOST = 2.0**62  # of what an integer holds
# By how much the colours' medians differ: of the scatter of pixels, and of the error of the
# difference of two medians (the root of pi for one pixel each).
_MOSAIC_CONTRAST, _MOSAIC_ERRORS = 0.1, 5.0 * math.sqrt(math.pi)


def linear_scale(
    values: FloatArray, header: Mapping[str, Any], name: str
) -> tuple[FloatArray, Finding | None]:
    """Counts, from pixels that a survey has compressed by an inverse hyperbolic sine, and a note.

    The stacks of Pan-STARRS hold C = a asinh((L - BOFFSET) / (2 BSOFTEN)), a = 2.5 log10(e), in
    place of the counts L (the documentation of its Image Processing Pipeline, "asinh compression").

    Parameters
    ----------
    values : ndarray
        (h, w).
    header : Mapping
    name : str
        Of the image, for the note.
    """
    softening, offset = (header.get(keyword) for keyword in ASINH_CARDS)
    if not isinstance(softening, (int, float)) or not isinstance(offset, (int, float)):
        return values, None
    if not softening > 0 or not math.isfinite(softening + offset):
        return values, None
    with np.errstate(over="ignore"):  # a pixel beyond all numbers becomes infinite, and is masked
        counts = offset + 2.0 * softening * np.sinh(values / _POGSON)
    note = Finding(
        "asinh-scale",
        f"The pixels of {name} are an inverse hyperbolic sine of the counts (BSOFTEN = "
        f"{softening:g}, BOFFSET = {offset:g}); they were turned into counts.",
    )
    return counts, note


def bad_pixels(
    values: NDArray[Any], header: Mapping[str, Any], bits: tuple[int, ...] = ()
) -> NDArray[np.bool_]:
    """Where a mask says that a pixel is bad; what has no value is bad.

    In a mask of whole numbers the bits that count are those given; else those that its header
    tells (the planes of LSST, the MASK.VALUE of Pan-STARRS, and the lowest one, DO_NOT_USE, of
    JWST); else any.
    """
    known = np.isfinite(values)
    whole = np.where(known, values, 0)
    if whole.dtype.kind == "f":
        if not bits and not (whole == np.rint(whole)).all():
            return np.asarray(~known | (whole != 0))
        whole = np.clip(whole, -_MOST, _MOST)
    word = _word(bits) if bits else _word_told(header)
    return np.asarray(~known | (whole.astype(np.int64) & word != 0))


def _word_told(header: Mapping[str, Any]) -> int:
    """The bits that make a pixel bad, by the header of a mask or its file."""
    if str(header.get("TELESCOP", "")).strip().upper() == "JWST":
        return 1
    for number in range(100):
        if str(header.get(f"MSKNAM{number:02d}", "")).strip() == "MASK.VALUE":
            value = header.get(f"MSKVAL{number:02d}")
            return value if isinstance(value, int) and value > 0 else ~0
    harmless = [header.get(f"MP_{plane}") for plane in _HARMLESS_PLANES]
    return ~_word(bit for bit in harmless if isinstance(bit, int) and 0 <= bit < 31)


def _word(bits: Iterable[int]) -> int:
    """The integer in which these bits, from 0 on, are set."""
    return sum(1 << bit for bit in set(bits))


def colour_mosaic(values: FloatArray, header: Mapping[str, Any], name: str) -> Finding | None:
    """A warning if neighbouring pixels lie under filters of different colours.

    The header must say so, and the medians of the four interleaved images must differ.
    """
    named = [key for key in _COLOUR_KEYWORDS if _COLOURS.match(str(header.get(key, "")).upper())]
    if not named or min(values.shape) < 4:
        return None
    parts = [values[i::2, j::2] for i in (0, 1) for j in (0, 1)]
    parts = [part[np.isfinite(part)] for part in parts]
    if not all(part.size for part in parts):
        return None
    medians = [float(np.median(part)) for part in parts]
    scatter = float(np.median([mad_std(part) for part in parts]))
    fewest = min(part.size for part in parts)
    least = max(_MOSAIC_CONTRAST, _MOSAIC_ERRORS / math.sqrt(fewest)) * scatter
    if not max(medians) - min(medians) > least:
        return None
    return Finding(
        "colour-mosaic",
        f"Neighbouring pixels of {name} lie under filters of different colours ({named[0]} = "
        f"{header[named[0]]}): their medians are {', '.join(f'{m:g}' for m in medians)}. No kernel "
        "can match them; take one colour, such as every second pixel of every second row, from "
        "both frames first.",
        "warning",
    )
