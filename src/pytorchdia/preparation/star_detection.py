"""Stars of a single frame: where they are, how bright, how wide."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import sep
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation
from scipy.spatial import cKDTree

from ..errors import TooFewPixelsError
from ..frame import Frame
from ..metrics import FWHM_PER_SIGMA

__all__ = ["DetectedStars", "detect_stars", "star_shapes"]

FloatArray = NDArray[np.float64]

_MESH = 64  # pixels of the background's mesh
_SHARP = 0.4  # of a star's peak is left by the 3 x 3 filter; of a single hot pixel, a quarter is
_STAMP = 15  # half-width [pixels] of the stamps on which stars are measured


@dataclass(frozen=True)
class DetectedStars:
    """Stars found in a frame, brightest first, and the sky under them.

    Attributes
    ----------
    x, y : ndarray
        (n,), windowed centroids [pixels].
    flux : ndarray
        (n,), sum of the pixels above the threshold [ADU].
    clean : ndarray of bool
        (n,), False where a bad or saturated pixel touches the star.
    sky : ndarray
        (h, w), background [ADU].
    scatter : float
        Scatter of the frame about it [ADU].
    """

    x: FloatArray
    y: FloatArray
    flux: FloatArray
    clean: NDArray[np.bool_]
    sky: FloatArray
    scatter: float

    def __len__(self) -> int:
        return len(self.x)

    @property
    def positions(self) -> FloatArray:
        """(n, 2), x and y."""
        return np.column_stack([self.x, self.y])


def detect_stars(frame: Frame, threshold: float = 4.0) -> DetectedStars:
    """Find the stars of a frame; single hot pixels and cosmic rays are left out where they show.

    Parameters
    ----------
    frame : Frame
    threshold : float
        Height above the sky in units of its scatter, after smoothing by 3 x 3 pixels.

    Raises
    ------
    TooFewPixelsError
        No good pixel is left.
    """
    bad = frame.mask.numpy()
    if bad.all():
        raise TooFewPixelsError(
            f"All {bad.size} pixels of {frame.name} are masked, saturated or not finite."
        )
    data = np.ascontiguousarray(frame.data.numpy(), dtype=np.float64)
    mesh = max(8, min(_MESH, min(data.shape) // 4))
    background = sep.Background(data, mask=bad, bw=mesh, bh=mesh, fw=3, fh=3)
    sky, scatter = background.back(), float(background.globalrms)
    if not scatter > 0:
        return DetectedStars(*_nothing(), sky, 0.0)
    flat = np.where(bad, 0.0, data - sky)
    found = _extract(flat, threshold * scatter, bad)
    found = found[(found["cpeak"] > _SHARP * found["peak"]) & (found["flux"] > 0)]
    found = found[np.argsort(-found["flux"], kind="stable")]
    if not len(found):
        return DetectedStars(*_nothing(), sky, scatter)
    # The window is that of a star of the typical size of this frame.
    width = float(np.median(np.sqrt(found["a"] * found["b"])))
    x, y, failed = sep.winpos(flat, found["x"], found["y"], max(width, 0.5), mask=bad)
    strayed = (failed != 0) | (np.hypot(x - found["x"], y - found["y"]) > 2.0)
    x, y = np.where(strayed, found["x"], x), np.where(strayed, found["y"], y)
    near_bad = binary_dilation(bad, np.ones((3, 3)), iterations=max(2, math.ceil(width)))
    row = np.clip(np.rint(y).astype(int), 0, bad.shape[0] - 1)
    column = np.clip(np.rint(x).astype(int), 0, bad.shape[1] - 1)
    return DetectedStars(x, y, found["flux"], ~near_bad[row, column], sky, scatter)


def _nothing() -> tuple[FloatArray, FloatArray, FloatArray, NDArray[np.bool_]]:
    none = np.zeros(0)
    return none, none, none, none.astype(bool)


def _extract(flat: FloatArray, threshold: float, bad: NDArray[np.bool_]) -> NDArray[Any]:
    """Objects above the threshold; its own limits on memory are lifted for crowded frames."""
    sep.set_extract_pixstack(max(300_000, flat.size))
    sep.set_sub_object_limit(max(1024, flat.size // 256))
    found: NDArray[Any] = sep.extract(flat, threshold, mask=bad, minarea=5)
    return found


def star_shapes(
    frame: Frame, stars: DetectedStars, max_stars: int = 60
) -> tuple[float | None, float | None]:
    """Median FWHM [pixels] and ellipticity 1 - b/a of the brightest isolated stars.

    From moments under an elliptical Gaussian window that adapts itself to each star (Bernstein &
    Jarvis 2002). Returns None for both if fewer than two stars can be measured.
    """
    chosen = _isolated(stars, frame.shape)[:max_stars]
    if len(chosen) < 2:
        return None, None
    data = frame.data.double().numpy() - stars.sky
    data = np.where(frame.mask.numpy(), 0.0, data)
    xx, yy, xy, measured = _adaptive_moments(data, stars.x[chosen], stars.y[chosen])
    if measured.sum() < 2:
        return None, None
    mean, half = (xx + yy) / 2.0, np.hypot((xx - yy) / 2.0, xy)
    major, minor = mean + half, mean - half
    fwhm = FWHM_PER_SIGMA * (major * minor) ** 0.25
    # Cosmic rays and blends are outliers among the widths; the shape is that of the mean star.
    size = float(np.median(fwhm[measured]))
    typical = measured & (np.abs(fwhm - size) < 0.4 * size)
    x2, y2, z2 = (float(np.median(m[typical])) for m in (xx, yy, xy))
    mean2, half2 = (x2 + y2) / 2.0, math.hypot((x2 - y2) / 2.0, z2)
    ellipticity = 1.0 - math.sqrt(max(mean2 - half2, 0.0) / (mean2 + half2))
    return float(np.median(fwhm[typical])), ellipticity


def _isolated(stars: DetectedStars, shape: tuple[int, int]) -> NDArray[np.int_]:
    """Indices of clean stars whose neighbours are far away, or faint; brightest first."""
    h, w = shape
    inside = (stars.x > 8) & (stars.y > 8) & (stars.x < w - 9) & (stars.y < h - 9)
    usable = np.flatnonzero(stars.clean & inside)
    if len(stars) < 2 or not len(usable):
        return usable
    tree = cKDTree(stars.positions)
    nearest, index = tree.query(stars.positions[usable], k=min(5, len(stars)))
    rival = np.where(nearest[:, 1:] < 12.0, stars.flux[index[:, 1:]], 0.0).max(axis=1)
    alone = usable[rival < 0.1 * stars.flux[usable]]
    return alone if len(alone) >= 5 else usable


def _adaptive_moments(
    data: FloatArray, x: FloatArray, y: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray, NDArray[np.bool_]]:
    """Second moments (n,) each [pixels^2], and which of them can be believed."""
    padded = np.pad(data, _STAMP)
    columns, rows = np.rint(x).astype(int), np.rint(y).astype(int)
    steps = np.arange(-_STAMP, _STAMP + 1)
    stamps = padded[
        (rows[:, None] + steps + _STAMP)[:, :, None], (columns[:, None] + steps + _STAMP)[:, None]
    ]
    dx = steps[None, None, :] - (x - columns)[:, None, None]
    dy = steps[None, :, None] - (y - rows)[:, None, None]
    xx, yy, xy = (np.full(len(x), v) for v in (3.0, 3.0, 0.0))
    alive = np.ones(len(x), dtype=bool)
    for _ in range(30):
        det = np.where(alive, xx * yy - xy**2, 1.0)
        weight = yy[:, None, None] * dx**2 + xx[:, None, None] * dy**2
        weight = weight - 2.0 * xy[:, None, None] * dx * dy
        light = stamps * np.exp(-0.5 * weight / det[:, None, None])
        total = light.sum(axis=(1, 2))
        alive &= total > 0
        total = np.where(alive, total, 1.0)
        new = [2.0 * (light * m).sum(axis=(1, 2)) / total for m in (dx**2, dy**2, dx * dy)]
        sound = (new[0] > 0.1) & (new[1] > 0.1) & (new[0] < 100) & (new[1] < 100)
        alive &= sound & (new[0] * new[1] > new[2] ** 2 + 1e-3)
        xx, yy, xy = (np.where(alive, n, v) for n, v in zip(new, (1.0, 1.0, 0.0), strict=True))
    return xx, yy, xy, alive
