"""Straight trails of satellites, aeroplanes and bleeding stars, followed across what hides them.

Where a trail crosses a star, another seeing would change the star by as much as the trail does. No
limit for single pixels tells the two apart; that the trail is seen on both sides does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, find_objects, label

from ..frame import strips

__all__ = ["trails"]

FloatArray = NDArray[np.float64]
Mask = NDArray[np.bool_]

_LONG = 10.0  # least length [FWHM]
_ELONGATED = 4.0  # least length over width
_GAP = 8.0  # longest stretch that is hidden [FWHM]
_ROUNDS = 3  # of the line's fit, each over all that the last one led to
_MOST = 95.0  # per cent of a trail's pixels that make its width
_WINGS = 0.5  # what is added on either side, too faint to be an outlier [FWHM]


def trails(outlying: Mask, fwhm: float) -> Mask:
    """All pixels of the trails among the outliers of a frame, also where none is an outlier.

    A trail is a row of outliers that is longer than any star, straight, and narrow. It goes on
    over stretches that stars hide, to the edge of the frame where only such a stretch is left.

    Parameters
    ----------
    outlying : ndarray of bool
        (h, w).
    fwhm : float
        Of the stars [pixels].
    """
    found = np.zeros_like(outlying)
    every = np.argwhere(outlying).astype(np.float64)
    labels, _ = label(binary_dilation(outlying, np.ones((3, 3))), structure=np.ones((3, 3)))
    for number, box in enumerate(find_objects(labels), 1):
        if max(side.stop - side.start for side in box) < _LONG * fwhm:
            continue
        member = (labels[box] == number) & outlying[box]
        if found[box][member].all():  # a piece of a trail that is known
            continue
        trail = _Trail.through(np.argwhere(member) + np.array([float(side.start) for side in box]))
        if trail.length < max(_LONG * fwhm, _ELONGATED * 2.0 * trail.half_width):
            continue
        for _ in range(_ROUNDS):
            trail = _Trail.through(trail.followed(every, _GAP * fwhm))
        found |= trail.to_the_edge(outlying.shape, _GAP * fwhm).pixels(
            outlying.shape, _WINGS * fwhm
        )
    return found


@dataclass(frozen=True)
class _Trail:
    """A straight strip: its middle (y, x), direction, ends along it, and half of its width."""

    middle: FloatArray
    along: FloatArray
    start: float
    end: float
    half_width: float

    @classmethod
    def through(cls, points: FloatArray) -> _Trail:
        """The strip of these points (y, x), (n, 2): along their longest axis."""
        middle = points.mean(axis=0)
        _, axes = np.linalg.eigh(np.cov((points - middle).T))
        t, across = ((points - middle) @ axes)[:, ::-1].T
        half_width = float(np.percentile(np.abs(across), _MOST)) + 0.5
        return cls(middle, axes[:, 1], float(t.min()), float(t.max()), half_width)

    @property
    def length(self) -> float:
        """From end to end [pixels]."""
        return self.end - self.start

    def _places(self, y: FloatArray, x: FloatArray) -> tuple[FloatArray, FloatArray]:
        """How far along the line these places lie, and how far beside it."""
        dy, dx = y - self.middle[0], x - self.middle[1]
        down, right = self.along
        return dy * down + dx * right, np.abs(dx * down - dy * right)

    def followed(self, points: FloatArray, gap: float) -> FloatArray:
        """Those of the points on the line that are reached from the strip by no longer gaps."""
        t, beside = self._places(*points.T)
        on = beside <= self.half_width
        order = np.sort(t[on])
        breaks = np.flatnonzero(np.diff(order) > gap)
        edges = np.concatenate([[-np.inf], 0.5 * (order[breaks] + order[breaks + 1]), [np.inf]])
        low = edges[np.searchsorted(edges, self.start, side="right") - 1]
        high = edges[np.searchsorted(edges, self.end, side="left")]
        reached: FloatArray = points[on & (t > low) & (t < high)]
        return reached

    def to_the_edge(self, shape: tuple[int, ...], gap: float) -> _Trail:
        """The same strip, up to the edge of the frame where no more than the gap is left."""
        along = np.where(self.along == 0.0, 1e-12, self.along)
        ends = np.array([-self.middle, np.array(shape) - 1.0 - self.middle]) / along
        first, last = float(ends.min(axis=0).max()), float(ends.max(axis=0).min())
        start = min(first, self.start) if self.start - first < gap else self.start
        end = max(last, self.end) if last - self.end < gap else self.end
        return replace(self, start=start, end=end)

    def pixels(self, shape: tuple[int, ...], wings: float) -> Mask:
        """All of them, so much wider on either side."""
        reach, inside = self.half_width + wings, np.zeros(shape, dtype=bool)
        x = np.arange(shape[1], dtype=np.float64)
        for rows in strips(shape[0], 256):
            y = np.arange(shape[0], dtype=np.float64)[rows, None]
            t, beside = self._places(y, x)
            inside[rows] = (beside <= reach) & (t >= self.start - reach) & (t <= self.end + reach)
        return inside
