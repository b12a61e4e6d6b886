"""Variables and new sources: the detections of all epochs and of their stack, merged and ranked."""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree
from scipy.stats import norm

from ..errors import ShapeError
from ..stars.catalogue import Catalogue
from ..stars.matched_filter import find_peaks
from .detections import DetectionFlag, Detections
from .stack import Stack
from .surroundings import part_of_trail_or_halo

__all__ = [
    "Candidate",
    "Kind",
    "cut_outs",
    "merge_detections",
    "stack_detections",
]

FloatArray = NDArray[np.float64]

# Of the place of a source: its error in units of half a FWHM over the significance, how many of
# these a pull of the stack must have to be doubted, and how much of half a FWHM.
_PLACE_ERROR, _DOUBTS, _LEAST_PULL = 1.2, 4.0, 0.1
_RIPPLE = 1.0 / 3.0  # of the significance of a source, that of what belongs to it


class Kind(enum.StrEnum):
    """What a candidate is."""

    VARIABLE = "variable star"
    NEW = "new source"
    DOUBTFUL = "doubtful"


@dataclass(frozen=True)
class Candidate:
    """One place of the sky that changed.

    Attributes
    ----------
    x, y : float
        On the reference [pixels]: mean of its detections, weighted by their significance.
    kind : Kind
        A star of the catalogue, a source where there is none, or doubtful: then every detection
        has flags, and the stack does not vouch for it; or only the stack shows it, because of a
        single epoch.
    star : int or None
        Id of the star of the catalogue.
    separation : float
        From the nearest star of the catalogue [pixels]; infinite if the catalogue is empty.
    significance : float
        The largest of those of its epochs and of the stack [sigma].
    false_alarms : float
        Sources of this significance that noise alone would make in the season.
    epochs : tuple of int
        The epochs in which it was found, in order.
    best_epoch : int or None
        That of the greatest significance; None if only the stack shows it.
    flux, error : float
        On that epoch, or the mean of the stack [ADU of the reference].
    in_stack : bool
        Whether the stack shows it.
    flags : int
        Bits of :class:`~pytorchdia.changes.detections.DetectionFlag` that all its detections share.
    """

    x: float
    y: float
    kind: Kind
    star: int | None
    separation: float
    significance: float
    false_alarms: float
    epochs: tuple[int, ...]
    best_epoch: int | None
    flux: float
    error: float
    in_stack: bool
    flags: int


def stack_detections(stack: Stack, fwhm: float, *, threshold: float = 5.0) -> Detections:
    """Sources that scatter over the epochs, or whose mean is not that of the reference.

    Their significance is that without their strongest epoch. One that a single epoch makes is
    flagged: what is real there is found in that epoch itself. So is what is part of a trail. Where
    the other epochs show nothing at all, or there are none, the stack has no source.

    Parameters
    ----------
    stack : Stack
    fwhm : float
        Typical of the differences [pixels].
    threshold : float
        Least significance.
    """
    z = stack.total.significance()
    sharp = stack.noise.significance()
    x, y = find_peaks(sharp, threshold, max(1.0, 0.5 * fwhm))
    iy, ix = np.rint(y).astype(int), np.rint(x).astype(int)
    left = stack.total.without_the_largest()
    strong = (z[iy, ix] >= threshold) & (left[iy, ix] > 0)
    x, y, iy, ix = x[strong], y[strong], iy[strong], ix[strong]
    order = np.argsort(-z[iy, ix])
    x, y, iy, ix = x[order], y[order], iy[order], ix[order]
    average, left = stack.mean_flux(), left[iy, ix]
    wide = part_of_trail_or_halo(sharp, stack.noise.n > 0, x, y, fwhm)
    flags = np.where(left < threshold, int(DetectionFlag.ONE_EPOCH), 0)
    flags |= np.where(wide, int(DetectionFlag.TRAIL_OR_HALO), 0)
    return Detections(
        x, y, average.flux[iy, ix], average.error[iy, ix], np.minimum(z[iy, ix], left), flags
    )


def merge_detections(
    epochs: Sequence[Detections],
    stack: Detections | None,
    catalogue: Catalogue,
    *,
    fwhm: float,
    shape: tuple[int, int],
) -> list[Candidate]:
    """Detections within half a FWHM of each other become one candidate; the best come first.

    Detections whose flags speak against them count only where nothing better is there. Near the
    flagged ones the stack is not believed either, because what spoils an epoch spoils the stack.

    Parameters
    ----------
    epochs : sequence of Detections
        One for each difference, in order.
    stack : Detections, optional
        :func:`stack_detections`.
    catalogue : Catalogue
        The stars of the reference.
    fwhm : float
        Typical of the differences [pixels].
    shape : (int, int)
        (h, w) of the frames, for the number of false alarms.
    """
    sets = [*epochs, stack] if stack is not None else list(epochs)
    if not sum(map(len, sets)):
        return []
    pool = _Pool.of(sets, None if stack is None else len(epochs))
    trials = max(len(sets), 1) * shape[0] * shape[1] / max(fwhm, 1.0) ** 2
    stars = cKDTree(np.column_stack([catalogue.x, catalogue.y])) if len(catalogue) else None
    radius = max(1.0, 0.5 * fwhm)
    made = [
        _candidate(pool, group, place, stars, catalogue, radius, trials)
        for group, place in pool.groups(radius)
    ]
    return sorted(made, key=lambda c: (c.kind is Kind.DOUBTFUL, -c.significance))


def cut_outs(
    images: Sequence[NDArray[np.floating]], x: ArrayLike, y: ArrayLike, half: int = 15
) -> FloatArray:
    """Stamps of several images about positions: (n, images, 2 half + 1, 2 half + 1).

    Parameters
    ----------
    images : sequence of ndarray
        Reference, target and difference, for instance, (h, w) each.
    x, y : array_like
        [pixels], (n,).
    half : int
        Half-width of the stamps. Beyond the images they are 0.

    Raises
    ------
    ShapeError
        The images differ in shape.
    """
    planes = [np.asarray(image, dtype=np.float64) for image in images]
    if len({plane.shape for plane in planes}) > 1:
        raise ShapeError(
            f"The images of a cut-out have shapes {[p.shape for p in planes]}; they must be one."
        )
    padded = np.pad(np.stack(planes), ((0, 0), (half, half), (half, half)))
    ix, iy = (np.rint(np.atleast_1d(np.asarray(v, np.float64))).astype(int) for v in (x, y))
    h, w = planes[0].shape
    ix, iy = np.clip(ix, 0, w - 1), np.clip(iy, 0, h - 1)
    size = 2 * half + 1
    return (
        np.stack([padded[:, b : b + size, a : a + size] for a, b in zip(ix, iy, strict=True)])
        if len(ix)
        else np.empty((0, len(planes), size, size))
    )


@dataclass(frozen=True)
class _Pool:
    """All detections of a season in one table; ``epoch`` is that of the stack for its own."""

    x: FloatArray
    y: FloatArray
    flux: FloatArray
    error: FloatArray
    strength: FloatArray
    flags: NDArray[np.int64]
    epoch: NDArray[np.int64]
    stack: int | None

    @classmethod
    def of(cls, sets: Sequence[Detections], stack: int | None) -> _Pool:
        names = ("x", "y", "flux", "error", "significance", "flags")
        x, y, flux, error, significance, flags = (
            np.concatenate([getattr(s, name) for s in sets]) for name in names
        )
        epoch = np.repeat(np.arange(len(sets)), [len(s) for s in sets])
        return cls(x, y, flux, error, np.abs(significance), flags, epoch, stack)

    def groups(self, radius: float) -> list[tuple[NDArray[np.int64], FloatArray]]:
        """Disjoint groups about the most significant detections, and the place (x, y) of each.

        Within twice the radius what is much weaker belongs to them too: their own ripples, and
        what poor seeing makes of their place.
        """
        where = np.column_stack([self.x, self.y])
        tree = cKDTree(where)
        near = tree.query_ball_point(where, 2.0 * radius)
        free = np.ones(len(where), dtype=bool)
        groups = []
        for i in np.argsort(-self.strength):
            if free[i]:
                around = np.array([j for j in near[i] if free[j]], dtype=np.int64)
                apart = np.hypot(*(where[around] - where[i]).T)
                weak = self.strength[around] < _RIPPLE * self.strength[i]
                members = around[(apart <= radius) | weak]
                free[members] = False
                groups.append(members)
        return self._joined(groups, radius)

    def told_by(self, group: NDArray[np.int64]) -> _Witnesses:
        """Which detections of a group tell what and where the source is."""
        from_stack = np.isin(self.epoch[group], [] if self.stack is None else [self.stack])
        seen, stacked = group[~from_stack], group[from_stack]
        clean = seen[self.flags[seen] == 0]
        believed = clean if len(clean) else seen
        if len(clean) or not len(seen):
            believed = np.append(believed, stacked)
        return _Witnesses(seen, clean, believed, stacked)

    def place(self, group: NDArray[np.int64], radius: float) -> FloatArray:
        """(x, y) of a group's source: the mean of its detections, weighted by their significance.

        The stack holds the epochs that are flagged as well. Where it pulls the place from that of
        the clean ones by more than their errors, these are believed alone.
        """
        _, clean, believed, _ = self.told_by(group)
        place = self._mean_place(believed)
        if len(clean):
            error = _PLACE_ERROR * radius / math.sqrt(float((self.strength[clean] ** 2).sum()))
            alone = self._mean_place(clean)
            if np.hypot(*(place - alone)) > max(_DOUBTS * error, _LEAST_PULL * radius):
                return alone
        return place

    def _mean_place(self, members: NDArray[np.int64]) -> FloatArray:
        where = np.column_stack([self.x[members], self.y[members]])
        mean: FloatArray = np.average(where, axis=0, weights=self.strength[members] ** 2)
        return mean

    def _joined(
        self, groups: list[NDArray[np.int64]], radius: float
    ) -> list[tuple[NDArray[np.int64], FloatArray]]:
        """The groups, those in one whose places lie within the radius of a stronger one's."""
        joined: list[NDArray[np.int64]] = []
        places = np.empty((0, 2))
        for members in groups:
            place = self.place(members, radius)
            near = np.flatnonzero(np.hypot(*(places - place).T) <= radius)
            if len(near):
                first = near[0]
                joined[first] = np.append(joined[first], members)
                places[first] = self.place(joined[first], radius)
            else:
                joined.append(members)
                places = np.vstack([places, place])
        return list(zip(joined, places, strict=True))


class _Witnesses(NamedTuple):
    """Detections of a group: in epochs, those without flags, what is believed, in the stack."""

    seen: NDArray[np.int64]
    clean: NDArray[np.int64]
    believed: NDArray[np.int64]
    stacked: NDArray[np.int64]


def _candidate(
    pool: _Pool,
    group: NDArray[np.int64],
    place: FloatArray,
    stars: cKDTree | None,
    catalogue: Catalogue,
    radius: float,
    trials: float,
) -> Candidate:
    seen, clean, believed, stacked = pool.told_by(group)
    strength = pool.strength[believed]
    x, y = (float(v) for v in place)
    best = int(believed[strength.argmax()])
    single = clean if len(clean) else seen
    shown = int(single[pool.strength[single].argmax()]) if len(single) else best
    separation, star = math.inf, None
    if stars is not None:
        separation, i = (float(v) for v in stars.query([x, y]))
        star = int(catalogue.id[int(i)]) if separation <= max(0.5 * radius, 0.5) else None
    told = seen if len(seen) else group
    common = int(np.bitwise_and.reduce(pool.flags[told]))
    doubtful = not (pool.flags[told] == 0).any()
    kind = Kind.DOUBTFUL if doubtful else Kind.VARIABLE if star is not None else Kind.NEW
    return Candidate(
        x=x,
        y=y,
        kind=kind,
        star=star,
        separation=separation,
        significance=float(pool.strength[best]),
        false_alarms=float(2.0 * trials * norm.sf(pool.strength[best])),
        epochs=tuple(sorted({int(e) for e in pool.epoch[seen]})),
        best_epoch=int(pool.epoch[shown]) if len(seen) else None,
        flux=float(pool.flux[shown]),
        error=float(pool.error[shown]),
        in_stack=len(stacked) > 0,
        flags=common,
    )
