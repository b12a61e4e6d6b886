"""Which star of one list is which of another: robust to hundreds of pixels and to false stars."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter
from scipy.spatial import cKDTree
from scipy.stats import poisson

__all__ = ["Match", "affine", "match_stars", "refine"]

FloatArray = NDArray[np.float64]

_BRIGHTEST = 250  # stars that vote for a shift, or more of the larger field
_MOST = 8000
_BIN = 3.0  # pixels, of the histogram of shifts
_CHANCE = 1e-4  # probability at which a match by chance is believed in
_FIRST_RADIUS = 5.0  # pixels within which a first guess must lie


@dataclass(frozen=True)
class Match:
    """Stars of a reference and of a frame that are the same.

    Attributes
    ----------
    matrix : ndarray
        (2, 3), takes (x, y) of the reference to (x, y) of the frame.
    onto, frame : ndarray of int
        (n,), indices of the matched stars in both lists.
    residual : float
        rms distance of matched stars in one coordinate [pixels].
    by_chance : float
        Number of stars that would match within the final radius in unrelated fields.
    probability : float
        That unrelated fields give so many, all shifts and rotations tried.
    """

    matrix: FloatArray
    onto: NDArray[np.int_]
    frame: NDArray[np.int_]
    residual: float
    by_chance: float
    probability: float

    def __len__(self) -> int:
        return len(self.onto)

    @property
    def significant(self) -> bool:
        """Whether chance is ruled out."""
        return len(self) > 0 and self.probability < _CHANCE


def affine(matrix: FloatArray, points: FloatArray) -> FloatArray:
    """(n, 2) points (x, y) through a (2, 3) matrix."""
    moved: FloatArray = points @ matrix[:, :2].T + matrix[:, 2]
    return moved


def match_stars(
    onto: FloatArray,
    frame: FloatArray,
    guesses: list[FloatArray],
    max_shift: float | None = None,
) -> Match | None:
    """The transformation under which most stars match, or None if there is no candidate at all.

    Tried are the ``guesses``, the shifts for which most pairs of bright stars vote (as the frame
    stands, and turned by 180 degrees), and, if none of these rules out chance, the triangles of
    astroalign for any rotation and scale, and at last all this for the frame's mirror image.

    Parameters
    ----------
    onto, frame : ndarray
        (n, 2) positions (x, y), brightest first.
    guesses : list of ndarray
        (2, 3) matrices to try first, from a WCS for instance.
    max_shift : float, optional
        Largest shift to look for [pixels].
    """
    if not len(onto) or not len(frame):
        return None
    candidates = [(guess, 1.0) for guess in guesses]
    span = max(float(np.ptp(onto, axis=0).max()), float(np.ptp(frame, axis=0).max()), 1.0)
    reach = min(max_shift, span) if max_shift is not None else span
    shifts = (2.0 * reach / _BIN) ** 2
    best = _best(onto, frame, candidates)
    for way in (_as_it_is(), _mirror(frame)):
        seen = affine(way, frame)
        for propose, trials in ((_voted, 2.0), (_by_triangles, 1e3)):
            tried = [(_after(way, g), trials * shifts) for g in propose(onto, seen, reach)]
            best = _best(onto, frame, tried, best)
            if best is not None and best.significant:
                return best
    return best


def _as_it_is() -> FloatArray:
    return np.eye(3)[:2]


def _mirror(points: FloatArray) -> FloatArray:
    """The matrix that turns x round within the points; it is its own inverse."""
    ends = points[:, 0].min() + points[:, 0].max()
    return np.array([[-1.0, 0.0, ends], [0.0, 1.0, 0.0]])


def _after(second: FloatArray, first: FloatArray) -> FloatArray:
    """Both transformations one after the other."""
    linear = second[:, :2] @ first
    linear[:, 2] += second[:, 2]
    return linear


def _best(
    onto: FloatArray,
    frame: FloatArray,
    candidates: list[tuple[FloatArray, float]],
    best: Match | None = None,
) -> Match | None:
    for guess, trials in candidates:
        match = refine(onto, frame, guess, trials)
        if match is not None and (best is None or _rank(match) > _rank(best)):
            best = match
    return best


def _rank(match: Match) -> tuple[bool, float]:
    return match.significant, len(match) - match.by_chance


def _voted(onto: FloatArray, frame: FloatArray, reach: float) -> Iterator[FloatArray]:
    """The shifts that most pairs of bright stars have in common, with a half turn and without."""
    for turned in (1.0, -1.0):
        yield from _most_voted(onto, frame, turned, reach)


def _most_voted(
    onto: FloatArray, frame: FloatArray, turned: float, reach: float
) -> list[FloatArray]:
    areas = [float(np.prod(np.maximum(np.ptp(points, axis=0), 1.0))) for points in (onto, frame)]
    # As many from the larger field as let the smaller one have its share of them.
    a, b = (
        points[: min(int(_BRIGHTEST * max(1.0, area / min(areas))), _MOST)]
        for points, area in zip((onto, frame), areas, strict=True)
    )
    a = turned * a
    shift = (b[:, None, :] - a[None, :, :]).reshape(-1, 2)
    if turned > 0:
        shift = shift[np.abs(shift).max(axis=1) <= reach]
    if not len(shift):
        return []
    low = shift.min(axis=0) - _BIN
    bins = np.ceil((shift.max(axis=0) + _BIN - low) / _BIN).astype(int)
    cell = np.floor((shift - low) / _BIN).astype(int)
    votes = np.bincount(cell[:, 0] * bins[1] + cell[:, 1], minlength=int(bins.prod()))
    smooth = uniform_filter(votes.reshape(bins).astype(float), 3, mode="constant") * 9.0
    # Where the fields hardly overlap few pairs are possible: judge against what is usual nearby.
    excess = smooth - uniform_filter(smooth, 31, mode="nearest")
    found = []
    for _ in range(3):
        i, j = np.unravel_index(int(np.argmax(excess)), excess.shape)
        near = (np.abs(cell - [i, j]) <= 1).all(axis=1)
        if near.any():
            dx, dy = np.median(shift[near], axis=0)
            found.append(np.array([[turned, 0.0, dx], [0.0, turned, dy]]))
        excess[max(i - 2, 0) : i + 3, max(j - 2, 0) : j + 3] = -math.inf
    return found


def _by_triangles(onto: FloatArray, frame: FloatArray, reach: float) -> Iterator[FloatArray]:
    """Similarity transformations proposed by astroalign (Beroiz et al. 2020), of any reach."""
    import astroalign  # it imports scikit-image, which takes a while

    for n in (20, 50):
        if min(len(onto), len(frame)) < 4:
            return
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found, _ = astroalign.find_transform(onto[:n], frame[:n], max_control_points=n)
        except (astroalign.MaxIterError, ValueError, TypeError, IndexError):
            continue
        yield np.asarray(found.params, dtype=np.float64)[:2]


def refine(
    onto: FloatArray, frame: FloatArray, guess: FloatArray, trials: float = 1.0
) -> Match | None:
    """Match all stars by mutual nearest neighbours near a guess, and fit again till it stands."""
    if np.linalg.det(guess[:, :2]) < 0:  # a similarity does not mirror
        way = _mirror(frame)
        match = refine(onto, affine(way, frame), _after(way, guess), trials)
        return None if match is None else replace(match, matrix=_after(way, match.matrix))
    tree, matrix, radius = cKDTree(frame), guess, _FIRST_RADIUS
    pairs: tuple[NDArray[np.int_], NDArray[np.int_]] | None = None
    for step in range(12):
        i, j, distance = _mutual(tree, affine(matrix, onto), radius)
        if len(i) < 1:
            return None
        matrix = _fit(onto[i], frame[j], guess, rough=step < 3)
        distance = np.hypot(*(affine(matrix, onto[i]) - frame[j]).T)
        settled = pairs is not None and np.array_equal(pairs[0], i) and step > 5
        pairs = i, j
        if settled:
            break
        spread = 1.4826 * float(np.median(distance))
        radius = float(np.clip(3.0 * spread, 0.7, max(_FIRST_RADIUS * 0.7 ** (step + 1), 1.5)))
    residual = math.sqrt(float((distance**2).mean()) / 2.0)
    expected = _by_chance(affine(matrix, onto), frame, radius)
    spent = 1 if len(i) < 3 else 2 if len(i) < 10 else 3
    probability = float(poisson.sf(len(i) - spent - 1, expected)) * trials
    return Match(matrix, i, j, residual, expected, min(probability, 1.0))


def _mutual(
    tree: cKDTree, predicted: FloatArray, radius: float
) -> tuple[NDArray[np.int_], NDArray[np.int_], FloatArray]:
    """Pairs that are each other's nearest neighbour within ``radius``."""
    distance, j = tree.query(predicted, distance_upper_bound=radius)
    i = np.flatnonzero(np.isfinite(distance))
    _, back = cKDTree(predicted).query(tree.data[j[i]])
    kept = back == i
    i = i[kept]
    return i, j[i], distance[i]


def _by_chance(predicted: FloatArray, frame: FloatArray, radius: float) -> float:
    """Expected number of stars within ``radius`` of another, were the lists unrelated."""
    low = np.maximum(predicted.min(axis=0), frame.min(axis=0)) - radius
    high = np.minimum(predicted.max(axis=0), frame.max(axis=0)) + radius
    area = float(np.prod(np.maximum(high - low, 1.0)))
    n = [int(((p >= low) & (p <= high)).all(axis=1).sum()) for p in (predicted, frame)]
    return n[0] * n[1] * math.pi * radius**2 / max(area, math.pi * radius**2)


def _fit(onto: FloatArray, frame: FloatArray, guess: FloatArray, rough: bool) -> FloatArray:
    """The simplest of shift, similarity and affine transformation that the stars ask for.

    By the Bayesian information criterion, with outliers left out. A ``rough`` guess is first
    turned and scaled to the stars without asking whether they insist.
    """
    keep = np.ones(len(onto), dtype=bool)
    matrix = guess
    for _ in range(3):
        matrix = _simplest(onto[keep], frame[keep], guess, rough)
        distance = np.hypot(*(affine(matrix, onto) - frame).T)
        # 3 times the median distance is 3.5 standard deviations in one coordinate.
        again = distance <= 3.0 * max(float(np.median(distance[keep])), 1e-3)
        if np.array_equal(again, keep) or again.sum() < 3:
            break
        keep = again
    return matrix


def _simplest(onto: FloatArray, frame: FloatArray, guess: FloatArray, rough: bool) -> FloatArray:
    n, linear = len(onto), guess[:, :2]
    models = [(2, np.column_stack([linear, np.mean(frame - onto @ linear.T, axis=0)]))]
    if n >= 3:
        models.append((4, _similarity(onto, frame)))
    if n >= 10 and not rough:
        design = np.column_stack([onto, np.ones(n)])
        models.append((6, np.linalg.lstsq(design, frame, rcond=None)[0].T))

    def criterion(model: tuple[int, FloatArray]) -> float:
        k, matrix = model
        squares = float(((affine(matrix, onto) - frame) ** 2).sum()) / (2 * n)
        spare = max(2.0 * n - k, 1.0)
        return 2 * n * math.log(squares * 2 * n / spare + 1e-8) + k * math.log(2 * n)

    if rough and n >= 6:
        return models[1][1]
    return min(models, key=criterion)[1]


def _similarity(onto: FloatArray, frame: FloatArray) -> FloatArray:
    """Least squares shift, rotation and scale."""
    a, b = onto.mean(axis=0), frame.mean(axis=0)
    u = (onto - a) @ np.array([1.0, 1.0j])
    v = (frame - b) @ np.array([1.0, 1.0j])
    norm = float((np.abs(u) ** 2).sum())
    z = complex((u.conj() * v).sum() / norm) if norm > 0 else 1.0 + 0.0j
    linear = np.array([[z.real, -z.imag], [z.imag, z.real]])
    return np.column_stack([linear, b - linear @ a])
