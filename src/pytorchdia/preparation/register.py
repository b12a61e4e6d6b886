"""Where a frame lies on the reference's grid: by its stars, or by its WCS."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import Finding, RegistrationError
from ..frame import Frame
from .matching import Match, affine, match_stars, refine
from .star_detection import DetectedStars, detect_stars

__all__ = [
    "MAX_DRIFT",
    "Registration",
    "find_transform",
    "measure_flux_ratio",
    "measure_transparency",
]

FloatArray = NDArray[np.float64]

MAX_DRIFT = 0.05
"""Pixels that a star may stray from a whole-frame shift before a frame is resampled."""

_SAME_GRID = 0.05  # pixels within which two grids are one
_WCS_SEARCH = 20.0  # pixels within which the stars are looked for where the WCS puts them
_ENOUGH = 12  # stars in both frames, among which a match must be found where a WCS promises one
_OVERLAP = 0.05  # share of the smaller of two images that must lie on the other


@dataclass(frozen=True)
class Registration:
    """How the reference's grid lies on a frame.

    Attributes
    ----------
    matrix : ndarray
        (2, 3), takes (x, y) of the reference to (x, y) of the frame.
    how : {"shift", "resampled"}
        Whether whole pixels will do, the kernel doing the rest, or the frame must be resampled.
    by : {"stars", "wcs", "same grid"}
        What it rests upon.
    n_matched : int
        Number of stars that match.
    residual : float
        rms distance of a matched star in one coordinate [pixels]; of the fit, if by WCS.
    drift : float
        Farthest that a pixel strays from the shift that all have in common [pixels].
    findings : tuple of Finding
    """

    matrix: FloatArray
    how: Literal["shift", "resampled"]
    by: Literal["stars", "wcs", "same grid"]
    n_matched: int
    residual: float
    drift: float = 0.0
    findings: tuple[Finding, ...] = ()

    @property
    def shift(self) -> tuple[float, float]:
        """Where the reference's pixel (0, 0) lies on the frame, (x, y) [pixels]."""
        return float(self.matrix[0, 2]), float(self.matrix[1, 2])

    @property
    def rotation(self) -> float:
        """From the reference's x axis to the frame's, towards y [degrees]."""
        a, b = self.matrix[0], self.matrix[1]
        return math.degrees(math.atan2(b[0] - a[1], a[0] + b[1]))

    @property
    def scale(self) -> float:
        """Pixels of the frame per pixel of the reference."""
        return math.sqrt(abs(float(np.linalg.det(self.matrix[:, :2]))))

    def exact(self, shape: tuple[int, int], within: float = 0.05) -> Registration:
        """The same, resampling unless whole pixels are exact to ``within`` a pixel everywhere.

        Parameters
        ----------
        shape : (int, int)
            (h, w) of the reference.
        within : float
            [pixels].
        """
        points = _grid(shape)
        moved = affine(self.matrix, points) - points
        if _farthest(moved - np.rint(moved.mean(axis=0))) <= within:
            return replace(self, how="shift")
        return replace(self, how="resampled")


def find_transform(
    frame: Frame,
    onto: Frame,
    *,
    max_shift: float | None = None,
    max_drift: float = MAX_DRIFT,
    frame_stars: DetectedStars | None = None,
    onto_stars: DetectedStars | None = None,
) -> Registration:
    """Lay a frame onto the grid of another by the stars that both show.

    The stars decide where enough of them match; a WCS in both frames is a first guess, and the
    answer where there are too few stars to check it.

    Parameters
    ----------
    frame : Frame
        The frame to be registered.
    onto : Frame
        The reference.
    max_shift : float, optional
        Largest shift to look for [pixels]; None for any that leaves an overlap.
    max_drift : float
        Farthest that a pixel may stray from one shift for all before the frame is to be resampled
        [pixels].
    frame_stars, onto_stars : DetectedStars, optional
        Stars found before, to save time.

    Raises
    ------
    RegistrationError
        The stars do not match, or there are too few and no WCS; the message gives the numbers.
    """
    mine = detect_stars(frame) if frame_stars is None else frame_stars
    theirs = detect_stars(onto) if onto_stars is None else onto_stars
    world = _by_wcs(frame, onto)
    guesses = [np.eye(3)[:2]] + ([world[0]] if world is not None else [])
    a, b = _usable(theirs), _usable(mine)
    match = match_stars(theirs.positions[a], mine.positions[b], guesses, max_shift)
    if match is not None and match.significant:
        found = _from_stars(match, frame, onto, world, max_drift)
    elif world is not None:
        _require_no_contradiction(match, len(b), theirs.positions[a], frame, onto, world[0])
        found = _from_wcs(world, frame, onto, max_drift)
    else:
        raise RegistrationError(_why_not(match, len(b), len(a), frame, onto))
    _require_overlap(found, frame, onto, max_shift)
    return found


def _usable(stars: DetectedStars) -> NDArray[np.int_]:
    """Stars to match: the clean ones, or all where these are few."""
    clean = np.flatnonzero(stars.clean)
    return clean if len(clean) >= 10 else np.arange(len(stars))


def _from_stars(
    match: Match, frame: Frame, onto: Frame, world: tuple[FloatArray, float] | None, limit: float
) -> Registration:
    findings: list[Finding] = []
    corners = _grid(onto.shape)
    if world is not None:
        apart = _farthest(affine(world[0], corners) - affine(match.matrix, corners))
        if apart > max(1.0, 5.0 * match.residual):
            findings.append(
                Finding(
                    "wcs-disagrees",
                    f"The WCS of {frame.name} and {onto.name} differ by up to {apart:.1f} pixels "
                    f"from what {len(match)} stars say; the stars were followed.",
                    "warning",
                )
            )
    if frame.shape == onto.shape:
        error = 3.0 * match.residual / math.sqrt(len(match)) * math.sqrt(3.0)
        if _farthest(affine(match.matrix, corners) - corners) < max(_SAME_GRID, min(error, 0.3)):
            identity = np.eye(3)[:2]
            return Registration(
                identity, "shift", "same grid", len(match), match.residual, 0.0, tuple(findings)
            )
    return _registration(match.matrix, onto, "stars", len(match), match.residual, limit, findings)


def _from_wcs(
    world: tuple[FloatArray, float], frame: Frame, onto: Frame, limit: float
) -> Registration:
    matrix, residual = world
    corners = _grid(onto.shape)
    same = frame.shape == onto.shape and _farthest(affine(matrix, corners) - corners) < _SAME_GRID
    finding = Finding(
        "registered-by-wcs",
        f"Too few stars of {frame.name} match those of {onto.name} to check its position; the WCS "
        "of both was believed.",
        "warning",
    )
    if same:
        return Registration(np.eye(3)[:2], "shift", "same grid", 0, residual, 0.0, (finding,))
    return _registration(matrix, onto, "wcs", 0, residual, limit, [finding])


def _registration(
    matrix: FloatArray,
    onto: Frame,
    by: Literal["stars", "wcs"],
    n_matched: int,
    residual: float,
    limit: float,
    findings: list[Finding],
) -> Registration:
    corners = _grid(onto.shape)
    moved = affine(matrix, corners) - corners
    drift = _farthest(moved - moved.mean(axis=0))
    how: Literal["shift", "resampled"] = "shift" if drift <= limit else "resampled"
    return Registration(matrix, how, by, n_matched, residual, drift, tuple(findings))


def _grid(shape: tuple[int, int], n: int = 5) -> FloatArray:
    """(n^2, 2), points (x, y) over an image, corners included."""
    y, x = np.meshgrid(np.linspace(0, shape[0] - 1, n), np.linspace(0, shape[1] - 1, n))
    return np.column_stack([x.ravel(), y.ravel()])


def _farthest(offsets: FloatArray) -> float:
    return float(np.hypot(offsets[:, 0], offsets[:, 1]).max())


def _by_wcs(frame: Frame, onto: Frame) -> tuple[FloatArray, float] | None:
    """The matrix that both WCS give together and the rms of its fit [pixels], or None."""
    if not (_celestial(frame.wcs) and _celestial(onto.wcs)):
        return None
    points = _grid(onto.shape, 12)
    try:
        sky = onto.wcs.pixel_to_world(points[:, 0], points[:, 1])
        moved = np.column_stack(frame.wcs.world_to_pixel(sky))
    except Exception:  # astropy.wcs raises many kinds; the stars may do without it
        return None
    if not np.isfinite(moved).all():
        return None
    design = np.column_stack([points, np.ones(len(points))])
    matrix = np.linalg.lstsq(design, moved, rcond=None)[0].T
    left = affine(matrix, points) - moved
    return matrix, math.sqrt(float((left**2).sum(axis=1).mean()) / 2.0)


def _celestial(wcs: Any) -> bool:
    return bool(getattr(wcs, "has_celestial", False))


def _require_no_contradiction(
    match: Match | None,
    n_frame: int,
    theirs: FloatArray,
    frame: Frame,
    onto: Frame,
    matrix: FloatArray,
) -> None:
    """A WCS is not believed where many stars are seen and do not stand where it says."""
    expected = affine(matrix, theirs)
    h, w = frame.shape
    inside = ((expected >= 0) & (expected <= [w - 1, h - 1])).all(axis=1)
    if min(n_frame, int(inside.sum())) >= _ENOUGH:
        raise RegistrationError(_why_not(match, n_frame, len(theirs), frame, onto))


def _require_overlap(
    found: Registration, frame: Frame, onto: Frame, max_shift: float | None
) -> None:
    back = np.linalg.inv(np.vstack([found.matrix, [0.0, 0.0, 1.0]]))[:2]
    # Of the smaller one, since a small frame covers little of a large reference.
    share = max(
        _share_inside(found.matrix, onto.shape, frame.shape),
        _share_inside(back, frame.shape, onto.shape),
    )
    if share < _OVERLAP:
        raise RegistrationError(
            f"{frame.name} and {onto.name} have {100 * share:.0f} % of the smaller one in common "
            f"(by {found.by}): they show different fields."
        )
    points = _grid(onto.shape)
    middle = points.mean(axis=0)
    shift = float(np.hypot(*(affine(found.matrix, middle[None])[0] - middle)))
    if max_shift is not None and shift > max_shift:
        raise RegistrationError(
            f"{frame.name} is shifted by {shift:.0f} pixels against {onto.name}, more than the "
            f"{max_shift:g} allowed."
        )


def _share_inside(matrix: FloatArray, shape: tuple[int, int], other: tuple[int, int]) -> float:
    """The share of an image whose pixels a matrix takes into another one."""
    moved = affine(matrix, _grid(shape, 41))
    h, w = other
    return float(((moved >= 0) & (moved <= [w - 1, h - 1])).all(axis=1).mean())


def _why_not(match: Match | None, n_frame: int, n_onto: int, frame: Frame, onto: Frame) -> str:
    few = min(n_frame, n_onto)
    if few < 3:
        which, n = (frame.name, n_frame) if n_frame <= n_onto else (onto.name, n_onto)
        number = "no star was" if n == 0 else "only one star was" if n == 1 else f"{n} stars were"
        return (
            f"{frame.name} cannot be registered onto {onto.name}: {number} found in {which} and 3 "
            "are needed; give both frames a WCS if they show so little."
        )
    best = 0 if match is None else len(match)
    chance = 0.0 if match is None else match.by_chance
    return (
        f"{frame.name} cannot be registered onto {onto.name}: of its {n_frame} stars at most "
        f"{best} match one of the {n_onto} there, and {chance:.1f} would by chance at one position "
        "alone. It shows another field, or too few stars in common."
    )


def measure_flux_ratio(
    frame: Frame,
    onto: Frame,
    registration: Registration,
    frame_stars: DetectedStars | None = None,
    onto_stars: DetectedStars | None = None,
) -> tuple[float, int] | None:
    """Median ratio of the fluxes of matched stars, frame over reference, and their number.

    None with fewer than 3 matched stars. From the light above the detection threshold, so good to
    some per cent: it tells clouds, it does not calibrate.
    """
    mine = detect_stars(frame) if frame_stars is None else frame_stars
    theirs = detect_stars(onto) if onto_stars is None else onto_stars
    if len(mine) < 3 or len(theirs) < 3:
        return None
    match = refine(theirs.positions, mine.positions, registration.matrix)
    if match is None:
        return None
    both = theirs.clean[match.onto] & mine.clean[match.frame]
    i, j = match.onto[both], match.frame[both]
    if len(i) < 3:
        return None
    bright = np.argsort(-theirs.flux[i], kind="stable")[: max(20, len(i) // 4)]
    return float(np.median(mine.flux[j[bright]] / theirs.flux[i[bright]])), len(bright)


def measure_transparency(
    frame: Frame,
    onto: Frame,
    registration: Registration,
    frame_stars: DetectedStars | None = None,
    onto_stars: DetectedStars | None = None,
) -> float | None:
    """Light of matched stars per second of exposure, over that of the reference.

    For ``FrameQuality.transparency``. None with fewer than 3 stars. Frames
    without an exposure time count as equally long.
    """
    found = measure_flux_ratio(frame, onto, registration, frame_stars, onto_stars)
    if found is None:
        return None
    mine, theirs = frame.detector.exposure, onto.detector.exposure
    return found[0] * (theirs / mine if mine and theirs else 1.0)
