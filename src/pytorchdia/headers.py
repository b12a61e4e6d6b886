"""What FITS headers say of the camera: gain, read noise, saturation, exposure and unit."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from astropy.units import Quantity, Unit

from .errors import Finding, InputError
from .frame import Detector

__all__ = [
    "KEYWORDS",
    "Keywords",
    "TimeKeyword",
    "detector_from_header",
    "filter_from_header",
    "parse_unit",
    "unit_from_header",
    "with_unit",
]

KEYWORDS: dict[str, tuple[tuple[str, ...], ...]] = {
    # In order of preference; a group of several keywords belongs to the amplifiers of one chip.
    # EGAIN comes first because camera software uses GAIN for its own dial setting beside it.
    "gain": (
        ("EGAIN",),
        ("GAIN",),
        ("CCDGAIN",),
        ("ESO DET OUT1 CONAD",),
        ("ATODGAIN",),
        ("GAINEFF",),
        ("GAINA", "GAINB"),
        ("GAIN1", "GAIN2", "GAIN3", "GAIN4"),
        ("CELL.GAIN",),
    ),
    "read_noise": (
        ("RDNOISE",),
        ("READNOIS",),
        ("READNOI",),
        ("READNOISE",),
        ("RON",),
        ("CCDRON",),
        ("ENOISE",),
        ("ESO DET OUT1 RON",),
        ("RDNOISEA", "RDNOISEB"),
        ("RDNOISE1", "RDNOISE2", "RDNOISE3", "RDNOISE4"),
        ("READNSEA", "READNSEB", "READNSEC", "READNSED"),
        ("CELL.READNOISE",),
    ),
    "saturation": (
        ("SATURATE",),
        ("SATLEVEL",),
        ("SATURVAL",),
        ("SATURATION",),
        ("MAXLIN",),
        ("SATURATA", "SATURATB"),
        ("CELL.SATURATION",),
    ),
    "exposure": (("EXPTIME",), ("EXPOSURE",), ("EXP_TIME",), ("ITIME",), ("TEXP",), ("XPOSURE",)),
}

FILTERS = ("FILTER", "FILTERS", "FILTNAM", "FILTER1", "FILTER2", "FILTNAM1", "ESO INS FILT1 NAME",
           "WFFBAND", "BAND", "INSFILTE", "FPA.FILTERID")  # fmt: skip

WCS_CARD = re.compile(
    r"(WCS|CTYPE|CUNIT|CRVAL|CRPIX|CDELT|CROTA|CD\d|PC\d|PV\d|PS\d|LONPOLE|LATPOLE|[AB]P?_)"
)
"""Keywords of world coordinates: a mixture of two systems would be none."""

_TIMES = {"d": "d", "day": "d", "days": "d", "h": "h", "hr": "h", "min": "min", "ms": "ms"}
_UNIT_OF_A_CARD = re.compile(r"\s*\[(\w+)\]")

_PER_SECOND = re.compile(r"\s*(/\s*s(ec(ond)?)?|[ .*]\s*s(\*\*|\^)?\(?-1\)?)\s*$", re.IGNORECASE)
_ELECTRONS = {"e", "e-", "electron", "electrons", "photoelectron", "photoelectrons", "photon"}
_COUNTS = {"", "adu", "adus", "dn", "count", "counts", "ct", "cts"}

_AMPLIFIERS_ALIKE = 0.1  # relative difference to their mean that is let pass without a word

# How the values of several amplifiers become one number.
_COMBINE: dict[str, Callable[[list[float]], float]] = {
    "gain": lambda values: sum(values) / len(values),
    "read_noise": lambda values: sum(values) / len(values),
    "saturation": min,
    "exposure": max,
}


@dataclass(frozen=True)
class TimeKeyword:
    """Where a header says when the exposure was taken.

    Attributes
    ----------
    keyword : str
        Holds a Julian date, a modified one, or a date (``"2013-08-02T16:41:00"``).
    when : {"start", "mid", "end"}
        The moment of the exposure that it names.
    clock : str
        Keyword of the time of day, for a keyword that holds the date alone.
    scale : str
        Time scale, such as ``"tdb"``; empty: that of TIMESYS, or UTC without it.
    barycentric : bool
        Whether the time is that of the barycentre of the solar system (BJD) or of the sun (HJD).
    """

    keyword: str
    when: Literal["start", "mid", "end"] = "start"
    clock: str = ""
    scale: str = ""
    barycentric: bool = False


@dataclass(frozen=True)
class Keywords:
    """A user's own keywords, looked up before those that the package knows (``KEYWORDS``).

    Attributes
    ----------
    gain, read_noise, saturation, exposure, filter : tuple of str
        Keywords in order of preference.
    time : tuple of TimeKeyword
    mask, variance : tuple of str
        Names (EXTNAME) of HDUs that hold the mask or the variance [ADU^2] of a file's image.
    mask_bits : tuple of int
        The bits, from 0 on, that make a pixel bad in a mask of integers; empty: those that its
        header tells, or any.
    """

    gain: tuple[str, ...] = ()
    read_noise: tuple[str, ...] = ()
    saturation: tuple[str, ...] = ()
    exposure: tuple[str, ...] = ()
    filter: tuple[str, ...] = ()
    time: tuple[TimeKeyword, ...] = ()
    mask: tuple[str, ...] = ()
    variance: tuple[str, ...] = ()
    mask_bits: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not all(isinstance(bit, int) and 0 <= bit < 63 for bit in self.mask_bits):
            raise InputError(
                f"mask_bits are numbers of bits, from 0 to 62, got {list(self.mask_bits)}."
            )

    def names(self, name: str) -> set[str]:
        """All keywords of a number of the detector."""
        return {keyword for group in self.groups(name) for keyword in group}

    def groups(self, name: str) -> tuple[tuple[str, ...], ...]:
        """All keywords of a number of the detector in order of preference."""
        own: tuple[str, ...] = getattr(self, name)
        return tuple((keyword,) for keyword in own) + KEYWORDS[name]


def with_unit(key: str, value: Any, comment: str, keywords: Keywords = Keywords()) -> Any:
    """The value of a card; of an exposure time in another unit than seconds, with its unit.

    The FITS standard (section 4.3) has the unit in square brackets where the comment begins.
    """
    unit = _UNIT_OF_A_CARD.match(comment)
    if unit is None or unit[1].lower() not in _TIMES or key not in keywords.names("exposure"):
        return value
    return value if _usable("exposure", value) is None else Quantity(value, _TIMES[unit[1].lower()])


def filter_from_header(header: Mapping[str, Any], keywords: Keywords = Keywords()) -> str:
    """Name of the filter, or an empty string; two filter wheels are joined by a plus."""
    for keyword in keywords.filter + FILTERS:
        name = str(header.get(keyword, "") or "").strip()
        if name and keyword in ("FILTER1", "FILTNAM1"):
            second = str(header.get(keyword[:-1] + "2", "") or "").strip()
            return f"{name}+{second}" if second else name
        if name:
            return name
    return ""


def detector_from_header(
    header: Mapping[str, Any],
    given: Mapping[str, float | None],
    unit: str,
    keywords: Keywords = Keywords(),
) -> tuple[Detector, tuple[Finding, ...]]:
    """The numbers in ``given`` where they are not None, else those of the header.

    Data in electrons have gain 1 whatever the header's GAIN says, and a count rate has a gain
    multiplied by the exposure time; both are reported. The header's saturation level is one of
    counts, and divided by the exposure time for a rate of them.
    """
    values: dict[str, float | None] = {}
    sources: dict[str, str] = {}
    findings: list[Finding] = []
    for name in KEYWORDS:
        number = given.get(name)
        if number is not None:
            values[name], sources[name] = _checked(name, number), "given"
        else:
            groups = keywords.groups(name)
            values[name], sources[name] = _look_up(name, header, groups, unit, findings)
    gain = None  # of the header, as it stands there
    if given.get("gain") is None:
        gain = values["gain"]
        _adapt_gain_to_unit(values, sources, unit, findings)
    if given.get("saturation") is None:
        _adapt_saturation_to_unit(values, sources, unit, gain, findings)
    known = {name: source for name, source in sources.items() if source}
    return Detector(**values, sources=known), tuple(findings)


def unit_from_header(header: Mapping[str, Any]) -> str:
    """BUNIT, stripped; empty if there is none."""
    return str(header.get("BUNIT", "") or "").strip()


def parse_unit(unit: str) -> Any:
    """The astropy unit of a BUNIT: adu if there is none, no unit if astropy knows of none."""
    try:
        return Unit(unit or "adu")
    except ValueError:
        base, _, per_second = _kind_of_unit(unit).partition("/")
    if base == "other":
        return Unit("")
    return Unit(base) / Unit("s") if per_second else Unit(base)


def _look_up(
    name: str,
    header: Mapping[str, Any],
    groups: Iterable[tuple[str, ...]],
    unit: str,
    findings: list[Finding],
) -> tuple[float | None, str]:
    for group in groups:
        present = {key: header[key] for key in group if key in header}
        good = {
            key: value for key, raw in present.items() if (value := _usable(name, raw)) is not None
        }
        if good:
            combined = _COMBINE[name](list(good.values()))
            in_electrons = name == "gain" and _kind_of_unit(unit).startswith("electron")
            if name in ("gain", "read_noise") and not in_electrons:
                _tell_of_amplifiers(name, good, combined, findings)
            for key in good:
                if isinstance(present[key], Quantity):
                    said = f"{key} = {present[key]} is an exposure time of {good[key]:g} s."
                    findings.append(Finding("exposure-unit", said))
            return combined, ", ".join(good)
        if present and name != "saturation":
            findings.append(
                Finding(
                    f"{name.replace('_', '-')}-unusable",
                    "The header has "
                    + ", ".join(f"{key} = {value!r}" for key, value in present.items())
                    + ", which cannot be used; it was ignored.",
                    "warning",
                )
            )
    return None, ""


def _tell_of_amplifiers(
    name: str, values: Mapping[str, float], mean: float, findings: list[Finding]
) -> None:
    """One number stands for all amplifiers; say so where it is far from that of one of them."""
    off = max(abs(value - mean) for value in values.values())
    if off <= _AMPLIFIERS_ALIKE * mean:
        return
    findings.append(
        Finding(
            "amplifiers-differ",
            "The header has "
            + ", ".join(f"{key} = {value:g}" for key, value in values.items())
            + f" for the amplifiers of one image; their mean, {mean:.4g}, was taken for all of it "
            f"and is off by up to {100 * off / mean:.0f} %, and the noise with it. Give a variance "
            "image, or each amplifier's part as an image of its own.",
            "warning",
        )
    )


def _usable(name: str, raw: Any) -> float | None:
    """The value as a positive number (a read noise may be 0), or None for anything else."""
    if isinstance(raw, bool):
        return None
    try:
        value = raw.to_value("s") if isinstance(raw, Quantity) else float(raw)
    except (TypeError, ValueError):  # a unit that is no time is a ValueError of astropy's
        return None
    positive = value > 0 or (name == "read_noise" and value == 0)
    return value if math.isfinite(value) and positive else None


def _checked(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise InputError(f"The {name.replace('_', ' ')} must be a number, got {value!r}.")
    limit = 0.0 if name == "read_noise" else math.nextafter(0.0, 1.0)
    if math.isnan(value) or value < limit or (math.isinf(value) and name != "saturation"):
        what = "at least 0" if name == "read_noise" else "greater than 0"
        raise InputError(f"The {name.replace('_', ' ')} must be {what}, got {value:g}.")
    return float(value)


def _adapt_gain_to_unit(
    values: dict[str, float | None],
    sources: dict[str, str],
    unit: str,
    findings: list[Finding],
) -> None:
    kind = _kind_of_unit(unit)
    if kind in ("electron", "electron/s") and values["gain"] not in (None, 1.0):
        findings.append(
            Finding(
                "gain-unit",
                f"The data are in {unit}, so the gain is 1; {sources['gain']} = "
                f"{values['gain']:g} was not used.",
            )
        )
    if kind in ("electron", "electron/s"):
        values["gain"], sources["gain"] = 1.0, f"unit {unit}"
    if kind.endswith("/s") and values["gain"] is not None:
        exposure = values["exposure"]
        if exposure is None:
            findings.append(
                Finding(
                    "rate-without-exposure",
                    f"The data are in {unit} but no exposure time is known, so the gain cannot be "
                    "used; give the exposure time.",
                    "warning",
                )
            )
            values["gain"], sources["gain"] = None, ""
        else:
            values["gain"] *= exposure
            sources["gain"] += f" x {exposure:g} s"
    if kind == "other" and values["gain"] is not None:
        findings.append(
            Finding(
                "unit-not-counts",
                f"The data are in {unit}, not in counts, so the gain of {values['gain']:g} e-/ADU "
                "does not apply and was not used; give a variance image or the gain in electrons "
                "per unit of the data.",
                "warning",
            )
        )
        values["gain"], sources["gain"] = None, ""


def _adapt_saturation_to_unit(
    values: dict[str, float | None],
    sources: dict[str, str],
    unit: str,
    gain: float | None,
    findings: list[Finding],
) -> None:
    """A level in counts is no level of a rate: divided by the exposure time, or not used.

    Nor is it one of electrons: where the header's gain is less than 1 the level would be too high,
    and is multiplied by it.
    """
    level, exposure, kind = values["saturation"], values["exposure"], _kind_of_unit(unit)
    if level is None:
        return
    if kind == "electron" and gain is not None and gain < 1.0:
        values["saturation"] = gain * level
        findings.append(
            Finding(
                "saturation-in-counts",
                f"The data are in {unit} and the header keeps a gain of {gain:g}, so "
                f"{sources['saturation']} = {level:g} is taken for counts: pixels from "
                f"{gain * level:g} on are saturated. Give the saturation level if they are not.",
            )
        )
        sources["saturation"] += f" x {gain:g}"
    if not kind.endswith("/s"):
        return
    if kind == "adu/s" and exposure is not None:
        values["saturation"] = level / exposure
        sources["saturation"] += f" / {exposure:g} s"
        return
    findings.append(
        Finding(
            "saturation-unit",
            f"The data are in {unit}; whether {sources['saturation']} = {level:g} is in the same "
            "unit is not known, and it was not used. Give the saturation level.",
            "warning",
        )
    )
    values["saturation"], sources["saturation"] = None, ""


def per_second(unit: str) -> bool:
    """Whether data in a BUNIT have been divided by the exposure time."""
    return _PER_SECOND.search(unit) is not None


def _kind_of_unit(unit: str) -> str:
    """One of adu, electron, adu/s, electron/s or other; no unit counts as ADU."""
    base = _PER_SECOND.sub("", unit).strip().lower()
    rate = "/s" if per_second(unit) else ""
    if base in _ELECTRONS:
        return "electron" + rate
    return "adu" + rate if base in _COUNTS else "other"
