"""What a frame of a season shows of itself, and whether it is good enough to use."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import Finding, TooFewPixelsError
from ..frame import Flag, Frame
from ..headers import Keywords, filter_from_header, per_second
from ..measure import measure_sky
from .star_detection import DetectedStars, detect_stars, star_shapes
from .times import observation_time

__all__ = ["FrameQuality", "Grade", "Limits", "grade", "measure_quality"]


@dataclass(frozen=True)
class FrameQuality:
    """One row of the table of frames; what could not be measured is None.

    Attributes
    ----------
    name : str
    time : float, optional
        Middle of the exposure, MJD in ``time_scale``.
    time_scale, time_keyword : str
    bjd_tdb : float, optional
        Middle of the exposure at the barycentre of the solar system.
    filter : str
        Empty if the header names none.
    exposure : float, optional
        [s].
    shape : (int, int)
        (h, w).
    gain, read_noise, saturation : float, optional
        [e-/ADU], [e-], [ADU].
    sky, sky_scatter : float, optional
        Level, and its noise from pixel to pixel [ADU].
    sky_range : float, optional
        Highest minus lowest level of the smooth background [ADU].
    fwhm, ellipticity : float, optional
        Of the isolated stars [pixels]; 1 - b/a.
    n_stars : int
    masked_share, saturated_share : float
        Share of all flagged pixels, and of the saturated ones.
    transparency : float, optional
        Flux of matched stars per second, over that of the reference: known after registration.
    digest : str
        Of the pixels, to know a frame that comes twice.
    findings : tuple of Finding
    per_second : bool
        Whether the data, and with them sky and scatter, are counts per second.
    """

    name: str
    time: float | None
    time_scale: str
    time_keyword: str
    bjd_tdb: float | None
    filter: str
    exposure: float | None
    shape: tuple[int, int]
    gain: float | None
    read_noise: float | None
    saturation: float | None
    sky: float | None
    sky_scatter: float | None
    sky_range: float | None
    fwhm: float | None
    ellipticity: float | None
    n_stars: int
    masked_share: float
    saturated_share: float
    transparency: float | None = None
    digest: str = ""
    findings: tuple[Finding, ...] = ()
    per_second: bool = False


def measure_quality(
    frame: Frame, keywords: Keywords = Keywords(), stars: DetectedStars | None = None
) -> FrameQuality:
    """Measure a frame. Never raises on a bad one: what cannot be measured is None.

    Parameters
    ----------
    frame : Frame
    keywords : Keywords
        The user's own keywords of the time and the filter.
    stars : DetectedStars, optional
        What :func:`~pytorchdia.preparation.star_detection.detect_stars` found, to save time.
    """
    when = observation_time(frame, keywords)
    sky = scatter = sky_range = fwhm = ellipticity = None
    n_stars = 0
    try:
        stars = detect_stars(frame) if stars is None else stars
        n_stars = len(stars)
        fwhm, ellipticity = star_shapes(frame, stars)
        sky, sky_range = float(np.median(stars.sky)), float(np.ptp(stars.sky))
        scatter = measure_sky(frame).scatter
    except TooFewPixelsError:
        pass  # the shares below say it
    detector = frame.detector
    saturation = detector.saturation
    return FrameQuality(
        name=frame.name,
        time=when.mjd,
        time_scale=when.scale,
        time_keyword=when.keyword,
        bjd_tdb=when.bjd_tdb,
        filter=filter_from_header(frame.meta, keywords),
        exposure=detector.exposure,
        shape=frame.shape,
        gain=detector.gain,
        read_noise=detector.read_noise,
        saturation=saturation if saturation is not None and math.isfinite(saturation) else None,
        sky=sky,
        sky_scatter=scatter,
        sky_range=sky_range,
        fwhm=fwhm,
        ellipticity=ellipticity,
        n_stars=n_stars,
        masked_share=float(frame.mask.double().mean()),
        saturated_share=float(((frame.flags & Flag.SATURATED) != 0).double().mean()),
        digest="" if bool(frame.mask.all()) else _digest(frame),
        findings=frame.findings + when.findings,
        per_second=per_second(frame.unit),
    )


@dataclass(frozen=True)
class Limits:
    """What a frame must keep to; a limit of None is not applied.

    "Of the median" is that of all frames of the season that have a value, and applies from three
    frames on.

    Attributes
    ----------
    max_masked : float, optional
        Share of flagged pixels.
    min_stars : int, optional
        Stars found.
    min_star_share : float, optional
        Stars found, of the median: cloud, or another field.
    max_fwhm : float, optional
        [pixels].
    max_fwhm_ratio : float, optional
        Of the median.
    max_ellipticity : float, optional
    max_noise_ratio : float, optional
        Noise of the sky per second of exposure, of the median: twilight, or moonlit cloud.
    max_sky_range : float, optional
        Unevenness of the sky, as a share of its level; not by default, since it may be fitted.
    min_transparency : float, optional
        Of the median: cloud.
    filter : str, optional
        The filter of the season: frames that name another one, or none, are rejected. None takes
        that of most frames, and those that name none with them.
    need_time : bool
        Whether a frame without a time is rejected.
    """

    max_masked: float | None = 0.6
    min_stars: int | None = 3
    min_star_share: float | None = 0.1
    max_fwhm: float | None = None
    max_fwhm_ratio: float | None = 3.0
    max_ellipticity: float | None = 0.6
    max_noise_ratio: float | None = 10.0
    max_sky_range: float | None = None
    min_transparency: float | None = 0.2
    filter: str | None = None
    need_time: bool = True


@dataclass(frozen=True)
class Grade:
    """Whether a frame is used; ``reason`` is a sentence if it is not, and empty if it is."""

    name: str
    accepted: bool
    reason: str = ""


@dataclass(frozen=True)
class _Season:
    """What is usual: medians, the filter of most; and whether any frame tells its exposure."""

    stars: float | None
    fwhm: float | None
    noise: float | None
    transparency: float | None
    filter: str
    timed: bool


def _digest(frame: Frame) -> str:
    """What tells that two frames hold the same pixels."""
    return hashlib.sha256(frame.data.numpy().tobytes()).hexdigest()[:16]


def grade(qualities: Sequence[FrameQuality], limits: Limits = Limits()) -> list[Grade]:
    """Accept or reject each frame by what is usual in its season, in the order given.

    The order of the frames in time does not matter. Of frames with the same pixels the first that
    is good is kept.
    """
    season = _usual(qualities, limits)
    seen: dict[str, str] = {}
    grades = []
    for quality in qualities:
        twin = seen.get(quality.digest) if quality.digest else None
        reason = (
            f"{quality.name} holds the same pixels as {twin}: it was given twice."
            if twin is not None
            else _reason(quality, season, limits)
        )
        if not reason:  # a copy with a mended header may do where this one does not
            seen[quality.digest] = quality.name
        grades.append(Grade(quality.name, not reason, reason))
    return grades


def _usual(qualities: Sequence[FrameQuality], limits: Limits) -> _Season:
    def median(value: Callable[[FrameQuality], float | None]) -> float | None:
        known = [v for q in qualities if (v := value(q)) is not None]
        return float(np.median(known)) if len(known) >= 3 else None

    timed = any(q.exposure for q in qualities)
    filters = Counter(q.filter for q in qualities if q.filter)
    most = filters.most_common(1)[0][0] if filters else ""
    return _Season(
        stars=median(lambda q: q.n_stars or None),
        fwhm=median(lambda q: q.fwhm),
        noise=median(lambda q: _noise(q, timed)),
        timed=timed,
        transparency=median(lambda q: q.transparency),
        filter=limits.filter if limits.filter is not None else most,
    )


def _noise(quality: FrameQuality, timed: bool) -> float | None:
    """Scatter of the sky per second, or per exposure if no frame of the season tells its time."""
    if quality.sky_scatter is None or quality.per_second or not timed:
        return quality.sky_scatter
    return quality.sky_scatter / quality.exposure if quality.exposure else None


def _reason(q: FrameQuality, season: _Season, limits: Limits) -> str:
    """The first limit that a frame breaks, as a sentence with the numbers; empty if none."""
    if q.masked_share == 1.0:
        return f"All pixels of {q.name} are masked, saturated or not finite."
    if limits.max_masked is not None and q.masked_share > limits.max_masked:
        return (
            f"{100 * q.masked_share:.0f} % of the pixels of {q.name} are masked, saturated or not "
            f"finite; at most {100 * limits.max_masked:.0f} % are allowed."
        )
    if limits.need_time and q.time is None:
        return f"{q.name} does not say when it was taken: no known time keyword holds a date."
    if limits.filter and not q.filter:
        return (
            f"{q.name} does not name its filter, and {limits.filter} was asked for; name the "
            "keyword that holds it, or ask for no filter."
        )
    if q.filter and season.filter and q.filter != season.filter:
        return f"{q.name} was taken through filter {q.filter}, the season through {season.filter}."
    return _reason_stars(q, season, limits) or _reason_sky(q, season, limits)


def _reason_stars(q: FrameQuality, season: _Season, limits: Limits) -> str:
    if limits.min_stars is not None and q.n_stars < limits.min_stars:
        found = {0: "no star", 1: "only one star"}.get(q.n_stars, f"only {q.n_stars} stars")
        return f"{q.name} shows {found}; {limits.min_stars} are needed."
    if _above(limits.min_star_share, season.stars, q.n_stars, below=True):
        return (
            f"{q.name} shows {q.n_stars} stars where {season.stars:.0f} are usual: cloud, bad "
            "seeing, or another field."
        )
    if limits.max_fwhm is not None and q.fwhm is not None and q.fwhm > limits.max_fwhm:
        return (
            f"The stars of {q.name} are {q.fwhm:.2f} pixels wide (FWHM); at most "
            f"{limits.max_fwhm:g} are allowed."
        )
    if _above(limits.max_fwhm_ratio, season.fwhm, q.fwhm):
        return (
            f"The stars of {q.name} are {q.fwhm:.2f} pixels wide (FWHM) where {season.fwhm:.2f} "
            "are usual: bad seeing, or out of focus."
        )
    limit = limits.max_ellipticity
    if limit is not None and q.ellipticity is not None and q.ellipticity > limit:
        return (
            f"The stars of {q.name} are trailed: ellipticity {q.ellipticity:.2f}, at most "
            f"{limit:g} is allowed."
        )
    if _above(limits.min_transparency, season.transparency, q.transparency, below=True):
        return (
            f"The stars of {q.name} give {q.transparency:.3f} of the reference's light per second "
            f"where {season.transparency:.3f} is usual: cloud."
        )
    return ""


def _reason_sky(q: FrameQuality, season: _Season, limits: Limits) -> str:
    noise = _noise(q, season.timed)
    if _above(limits.max_noise_ratio, season.noise, noise):
        return (
            f"The sky of {q.name} ({q.sky:.0f} ADU) scatters by {noise:.3g} ADU per second of "
            f"exposure where {season.noise:.3g} is usual: twilight, moon or cloud."
        )
    limit, sky, span = limits.max_sky_range, q.sky or 0.0, q.sky_range or 0.0
    if limit is not None and sky > 0 and span > limit * sky:  # a subtracted sky has no level
        return (
            f"The sky of {q.name} varies by {q.sky_range:.0f} ADU over the frame, more than "
            f"{limit:g} of its level of {q.sky:.0f} ADU."
        )
    return ""


def _above(
    ratio: float | None, usual: float | None, value: float | None, below: bool = False
) -> bool:
    """Whether a value is beyond ``ratio`` times what is usual, or below it."""
    if ratio is None or usual is None or value is None:
        return False
    return value < ratio * usual if below else value > ratio * usual
