"""When a frame was taken: mid-exposure as MJD with its scale, and as BJD where that is possible."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from astropy import units as u
from astropy.coordinates import Angle, EarthLocation, SkyCoord
from astropy.time import Time
from astropy.utils.iers import conf
from erfa import ErfaWarning

from ..errors import Finding
from ..frame import Frame
from ..headers import Keywords, TimeKeyword

__all__ = ["TIMES", "ObservationTime", "observation_time", "pointing", "site"]

_CLOCKS = (
    "TIME-OBS", "UTC-OBS", "UT", "UTC", "UTSTART", "UTCSTART", "TIME-BEG", "UT-TIME", "TIME"
)  # fmt: skip
TIMES: tuple[TimeKeyword, ...] = (
    # Middles first, since they need no exposure time; then starts, then ends.
    TimeKeyword("BJD_TDB", "mid", scale="tdb", barycentric=True),
    TimeKeyword("BJD-TDB", "mid", scale="tdb", barycentric=True),
    TimeKeyword("MJD-AVG", "mid"),
    TimeKeyword("DATE-AVG", "mid"),
    TimeKeyword("MJD-MID", "mid"),
    TimeKeyword("MJDMID", "mid"),
    TimeKeyword("DATE-MID", "mid"),
    TimeKeyword("JD-MID", "mid"),
    TimeKeyword("MJD-OBS"),
    TimeKeyword("MJD-BEG"),
    TimeKeyword("DATE-OBS"),
    *(TimeKeyword("DATE-OBS", clock=clock) for clock in _CLOCKS),
    TimeKeyword("DATE-BEG"),
    TimeKeyword("EXPSTART"),
    TimeKeyword("MJD"),
    TimeKeyword("OBSMJD"),
    TimeKeyword("JD"),
    TimeKeyword("OBSJD"),
    TimeKeyword("JD_UTC", scale="utc"),
    TimeKeyword("JD-UTC", scale="utc"),
    TimeKeyword("MJD-END", "end"),
    TimeKeyword("DATE-END", "end"),
    TimeKeyword("BJD", "mid", scale="tdb", barycentric=True),
    TimeKeyword("HJD", "mid", barycentric=True),
    TimeKeyword("JD-HELIO", "mid", barycentric=True),
)
"""Keywords of the time in order of preference; a user's own come before them."""

_ENDS = (TimeKeyword("MJD-END", "end"), TimeKeyword("DATE-END", "end"),
         TimeKeyword("EXPEND", "end"))  # fmt: skip
_GAPS = 0.01  # of the exposure time: more between start and end is worth a word
_AT_THE_BARYCENTRE = ("SOLARSYSTEM", "BARYCENTER", "BARYCENTRE")

_SCALES = {"": "utc", "utc": "utc", "ut": "utc", "gmt": "utc", "tai": "tai", "iat": "tai",
           "tt": "tt", "tdt": "tt", "et": "tt", "tdb": "tdb", "tcb": "tcb", "tcg": "tcg",
           "ut1": "ut1"}  # fmt: skip
_HELIOCENTRIC = ("HJD", "JD-HELIO")
_SLASHES = re.compile(r"\d{4}/\d\d/\d\d")  # a date as some write it; dd/mm/yy is of 1900 to 1999
_ISO_UTC = re.compile(r"([Zz]|[+-]00:?00)$")
_FAR = 5.0  # degrees between WCS and header: more than a field of view and precession
_FIRST, _LAST = 15019.5, 88068.5  # MJD of 1900 and 2100: no detector worked before
_POINTINGS = (("RA", "DEC"), ("OBJCTRA", "OBJCTDEC"), ("RA_OBS", "DEC_OBS"), ("TELRA", "TELDEC"),
              ("OBJRA", "OBJDEC"), ("RA-OBS", "DEC-OBS"), ("RA_TARG", "DEC_TARG"))  # fmt: skip
_SITES = (("SITELAT", "SITELONG"), ("LAT-OBS", "LONG-OBS"), ("LATITUDE", "LONGITUD"),
          ("OBS-LAT", "OBS-LONG"), ("GEOLAT", "GEOLON"))  # fmt: skip


@dataclass(frozen=True)
class ObservationTime:
    """The middle of an exposure.

    Attributes
    ----------
    mjd : float, optional
        Modified Julian date; None if no keyword tells.
    scale : str
        Its scale in lower case (``"utc"``), with ``" bary"`` behind it for a time that the header
        gives at the barycentre or the sun.
    keyword : str
        Where it came from.
    bjd_tdb : float, optional
        Barycentric Julian date, TDB; None where the direction is not known.
    findings : tuple of Finding
    """

    mjd: float | None
    scale: str
    keyword: str
    bjd_tdb: float | None = None
    findings: tuple[Finding, ...] = ()


def observation_time(frame: Frame, keywords: Keywords = Keywords()) -> ObservationTime:
    """The middle of the exposure of a frame, from its header; nothing is fetched from a network.

    It is the middle between start and end where the header has both, since an exposure may have
    gaps, and half an exposure time after the start where it has not. Kepler and TESS write both as
    BJD (TSTART and TSTOP, from BJDREFI and BJDREFF on), and their DATE-OBS is that of the
    barycentre too.

    Parameters
    ----------
    frame : Frame
    keywords : Keywords
        The user's own, tried before :data:`TIMES`.
    """
    findings: list[Finding] = []
    header = frame.meta
    read = _first(header, keywords.time, findings)
    if read is None and (bjd := _middle_at_the_barycentre(header)) is not None:
        scale = _scale(TimeKeyword("TSTART"), {"TIMESYS": "TDB", **header}, frame, findings)
        mjd = bjd - 2400000.5
        return ObservationTime(
            mjd, f"{scale} bary", "TSTART+TSTOP", bjd if scale == "tdb" else None, tuple(findings)
        )
    read = read or _first(header, TIMES, findings)
    if read is None:
        findings.append(
            Finding(
                "time-unknown",
                f"No keyword of {frame.name} tells when it was taken; name one in the keyword map.",
                "warning",
            )
        )
        return ObservationTime(None, "", "", None, tuple(findings))
    keyword, mjd = read
    name = keyword.keyword + (f"+{keyword.clock}" if keyword.clock else "")
    scale = _scale(keyword, header, frame, findings)
    mjd = _to_middle(mjd, keyword, frame, findings)
    if keyword.barycentric:
        at_the_sun = keyword.keyword in _HELIOCENTRIC  # up to 4 s off
        bjd = mjd + 2400000.5 if scale == "tdb" and not at_the_sun else None
        return ObservationTime(mjd, f"{scale} bary", name, bjd, tuple(findings))
    where, doubts = _direction(frame)
    bjd = None if where is None else _bjd(mjd, scale, frame, where)
    return ObservationTime(mjd, scale, name, bjd, (*findings, *doubts))


def _first(
    header: Mapping[str, Any], known: tuple[TimeKeyword, ...], findings: list[Finding]
) -> tuple[TimeKeyword, float] | None:
    """The first keyword that holds a date which can be one."""
    for keyword in known:
        if keyword.keyword not in header or (keyword.clock and keyword.clock not in header):
            continue
        raw = header[keyword.keyword]
        clock = header[keyword.clock] if keyword.clock else None
        mjd = _mjd(raw, clock)
        if mjd is not None and _FIRST < mjd < _LAST:
            return keyword, mjd
        dated_only = keyword.clock == "" and _is_date_alone(raw)
        if not dated_only:
            findings.append(
                Finding(
                    "time-unusable",
                    f"The header has {keyword.keyword} = {raw!r}"
                    + (f" and {keyword.clock} = {clock!r}" if clock is not None else "")
                    + ", which is no date between 1900 and 2100; it was ignored.",
                    "warning",
                )
            )
    return None


def _is_date_alone(raw: Any) -> bool:
    if not isinstance(raw, str) or "T" in raw or ":" in raw:
        return False
    return raw.count("-") == 2 or _SLASHES.fullmatch(raw.strip()) is not None


def _mjd(raw: Any, clock: Any) -> float | None:
    """A Julian date, a modified one or an ISO date as MJD; a date alone needs a clock."""
    if isinstance(raw, bool):
        return None
    try:
        value = float(raw)
    except (TypeError, ValueError):
        return _mjd_of_date(str(raw).strip(), clock)
    if not math.isfinite(value) or clock is not None:
        return None
    return value - 2400000.5 if value > 2_000_000 else value


def _mjd_of_date(date: str, clock: Any) -> float | None:
    date = date.replace("/", "-") if _SLASHES.match(date) else date
    if _is_date_alone(date):
        if clock is None:
            return None
        date = f"{date}T{_clock_text(clock)}"
    elif clock is not None:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ErfaWarning)  # leap seconds to come are not known
            return float(
                Time(_ISO_UTC.sub("", date.replace(" ", "T")), scale="utc", format="isot").mjd
            )
    except ValueError:
        return None


def _clock_text(clock: Any) -> str:
    """The time of day as hh:mm:ss; numbers are hours."""
    try:
        return str(Angle(float(clock), "hour").to_string(sep=":", pad=True, precision=6))
    except ValueError:
        text = str(clock).strip()
        return text.split("T")[-1]


def _scale(
    keyword: TimeKeyword, header: Mapping[str, Any], frame: Frame, findings: list[Finding]
) -> str:
    raw = (keyword.scale or str(header.get("TIMESYS", "") or "")).strip().lower()
    if raw in _SCALES:
        return _SCALES[raw]
    findings.append(
        Finding(
            "time-scale-unknown",
            f"{frame.name} says TIMESYS = {raw!r}, which is no scale known here; UTC was taken.",
            "warning",
        )
    )
    return "utc"


def _to_middle(mjd: float, keyword: TimeKeyword, frame: Frame, findings: list[Finding]) -> float:
    if keyword.when == "mid":
        return mjd
    exposure = frame.detector.exposure
    if keyword in TIMES and keyword.when == "start" and not keyword.scale:
        end = _end(mjd, keyword, frame, findings)
        if end is not None:
            return 0.5 * (mjd + end)
    if exposure is None:
        findings.append(
            Finding(
                "exposure-unknown",
                f"{frame.name} gives no exposure time, so its time is that of the {keyword.when} "
                f"of the exposure ({keyword.keyword}), not of its middle.",
                "warning",
            )
        )
        return mjd
    return mjd + (0.5 if keyword.when == "start" else -0.5) * exposure / 86400.0


def _end(start: float, keyword: TimeKeyword, frame: Frame, findings: list[Finding]) -> float | None:
    """The end of the exposure that the header gives beside its start, if the two can be right."""
    found = _first(frame.meta, _ENDS, [])
    if found is None:
        return None
    end, exposure = found[1], frame.detector.exposure
    elapsed = (end - start) * 86400.0  # s
    told = f"{frame.name} has {elapsed:.6g} s between {keyword.keyword} and {found[0].keyword}"
    if elapsed <= 0.0 or (exposure is not None and elapsed < (1.0 - _GAPS) * exposure):
        if exposure is not None:
            told += f" and an exposure time of {exposure:.6g} s"
        said = f"{told}, which cannot be; {found[0].keyword} was ignored."
        findings.append(Finding("exposure-end", said, "warning"))
        return None
    if exposure is not None and elapsed > (1.0 + _GAPS) * exposure:
        said = f"{told}, in which it was exposed for {exposure:.6g} s; its time is their middle."
        findings.append(Finding("exposure-gaps", said))
    return end


def _middle_at_the_barycentre(header: Mapping[str, Any]) -> float | None:
    """BJD of the middle between TSTART and TSTOP, days from BJDREFI + BJDREFF on."""
    if str(header.get("TIMEREF", "")).strip().upper() not in _AT_THE_BARYCENTRE:
        return None
    try:
        start, stop, whole = (float(header[key]) for key in ("TSTART", "TSTOP", "BJDREFI"))
        bjd = whole + float(header.get("BJDREFF", 0.0) or 0.0) + 0.5 * (start + stop)
    except (KeyError, TypeError, ValueError):
        return None
    return bjd if stop >= start and _FIRST < bjd - 2400000.5 < _LAST else None


def _bjd(mjd: float, scale: str, frame: Frame, where: SkyCoord) -> float:
    """BJD in TDB, with the orbit of the Earth that comes with astropy."""
    # From the centre of the Earth where the site is not known: an error below 0.022 s.
    place = site(frame.meta)
    if place is None:
        place = EarthLocation.from_geocentric(0.0, 0.0, 0.0, unit=u.m)
    with (
        warnings.catch_warnings(),
        conf.set_temp("auto_download", False),
        conf.set_temp("iers_degraded_accuracy", "ignore"),
    ):
        warnings.simplefilter("ignore", ErfaWarning)  # leap seconds to come are not known
        time = Time(mjd, format="mjd", scale=scale, location=place)
        delay = time.light_travel_time(where, "barycentric", ephemeris="builtin")
        return float((time.tdb + delay).jd)


def pointing(frame: Frame) -> SkyCoord | None:
    """The direction of a frame: the middle of its WCS, or what its header says; None if unknown.

    A WCS that nobody has filled in, with its zero point at right ascension and declination 0, is
    not believed.
    """
    return _direction(frame)[0]


def _direction(frame: Frame) -> tuple[SkyCoord | None, tuple[Finding, ...]]:
    """:func:`pointing`, and what speaks against it."""
    solved, told = _middle_of_wcs(frame), _told_by_header(frame)
    if solved is None or told is None:
        return solved if told is None else told, ()
    apart = float(solved.separation(told).deg)
    if apart < _FAR:
        return solved, ()
    finding = Finding(
        "pointing-disagrees",
        f"The WCS of {frame.name} points to RA {solved.ra.deg:.3f}, Dec {solved.dec.deg:.3f}, its "
        f"header to {told.ra.deg:.3f}, {told.dec.deg:.3f} [degrees], {apart:.1f} degrees away; BJD "
        "follows the WCS and may be wrong by up to 17 minutes. Mend the header.",
        "warning",
    )
    return solved, (finding,)


def _middle_of_wcs(frame: Frame) -> SkyCoord | None:
    if not getattr(frame.wcs, "has_celestial", False):
        return None
    zero = getattr(getattr(frame.wcs, "celestial", frame.wcs), "wcs", None)
    if zero is not None and not np.any(zero.crval):
        return None
    h, w = frame.shape
    try:
        middle = frame.wcs.pixel_to_world((w - 1) / 2.0, (h - 1) / 2.0).icrs
    except Exception:  # astropy.wcs raises many kinds; the header may do
        return None
    if np.isfinite(middle.ra.deg) and np.isfinite(middle.dec.deg):
        return SkyCoord(middle.ra, middle.dec)
    return None


def _told_by_header(frame: Frame) -> SkyCoord | None:
    for ra, dec in _POINTINGS:
        if ra in frame.meta and dec in frame.meta:
            x, y = _angle(frame.meta[ra], "hour"), _angle(frame.meta[dec], "deg")
            if x is not None and y is not None and abs(y) <= 90.0:
                return SkyCoord(x % 360.0, y, unit="deg")
    return None


def site(header: Mapping[str, Any]) -> EarthLocation | None:
    """Where the telescope stands, from OBSGEO-X, -Y, -Z or from latitude and longitude (east)."""
    try:
        xyz = [float(header[f"OBSGEO-{axis}"]) for axis in "XYZ"]
        if 6.3e6 < math.hypot(*xyz) < 6.5e6:
            return EarthLocation.from_geocentric(*xyz, unit=u.m)
    except (KeyError, TypeError, ValueError):
        pass
    for keys in _SITES:
        angles = [_angle(header.get(key), "deg") for key in keys]
        if angles[0] is not None and angles[1] is not None and abs(angles[0]) <= 90.0:
            return EarthLocation.from_geodetic(angles[1], angles[0])
    return None


def _angle(raw: Any, unit: str) -> float | None:
    """Degrees of a number in degrees, or of a sexagesimal string in ``unit``."""
    if raw is None or isinstance(raw, bool):
        return None
    try:
        value = float(raw)
    except (TypeError, ValueError):
        try:
            value = float(Angle(str(raw).strip(), unit).deg)
        except (ValueError, TypeError):
            return None
    return value if math.isfinite(value) else None
