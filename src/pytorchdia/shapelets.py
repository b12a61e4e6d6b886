"""The root of a Gaussian process' covariance in shapelets, and its derivatives.

A component of the covariance of kernel pixels is ::

    C(r, r') = a^2 e(r) e(r') exp(-|r - r'|^2 / 2 l^2),   e(r) = exp(-|r|^2 / 2 s^2).

In one dimension, with g = sqrt(1 + 2 s^2 / l^2), rho = (g - 1) / (g + 1) and z = x sqrt(g) / s,
C = sum_n t_n(x) t_n(x') where t_n = (1 - rho^2)^(1/4) rho^(n/2) h_n(z) and h_n is the n-th Hermite
function times pi^(1/4) (Mehler's formula). In two the columns of the root are their products.
"""

from __future__ import annotations

import math
from functools import cached_property, lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from .arrays import Basis

__all__ = ["Shapelets"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.integer]

_TAIL = 1e-4  # share of a component's variance in the orders that are left out
_MAX_ORDER = 14


class Shapelets:
    """F with F F' = C, of one or several components with a common centre and elliptical metric.

    Parameters
    ----------
    x : ndarray
        Centre (x0, y0), ellipse (plus, cross), then ln a, ln l and ln s of each component.
    shape : (int, int)
        (ky, kx) of the kernel's box.

    Attributes
    ----------
    rows : ndarray
        F', (number of shapelets, n_k).
    """

    def __init__(self, x: FloatArray, shape: tuple[int, int]) -> None:
        centre = np.array([[x[0]], [x[1]]])
        self._offsets = _pixels(shape) - centre
        plus, cross = float(x[2]), float(x[3])
        # The root of the metric is exp(E / 2), E = [[plus, cross], [cross, -plus]].
        half = 0.5 * math.sqrt(plus**2 + cross**2 + 1e-24)
        even, odd = math.cosh(half), 0.5 * math.sinh(half) / half
        ellipse = np.array([[plus, cross], [cross, -plus]])
        self._metric = even * _ROUND + odd * ellipse
        bend = (even - 2.0 * odd) / (8.0 * half**2)
        self._metric_by = [
            part * (0.5 * odd * _ROUND + bend * ellipse) + odd * unit
            for part, unit in ((plus, _PLUS), (cross, _CROSS))
        ]
        points = self._metric @ self._offsets
        triples = np.exp(x[4:]).reshape(-1, 3).tolist()
        self._components = [_Component(a, length, width, points) for a, length, width in triples]
        columns = [component.columns for component in self._components]
        self.rows: FloatArray = columns[0] if len(columns) == 1 else np.concatenate(columns)

    @property
    def root(self) -> Basis:
        """F, (n_k, number of shapelets), float64; its columns lie together in memory."""
        return torch.from_numpy(self.rows).T

    def gradient(self, slope: FloatArray) -> FloatArray:
        """The derivatives by x of a function whose derivatives by F' are ``slope`` (r, n_k)."""
        by_points, start = np.zeros_like(self._offsets), 0
        by_logs: list[float] = []
        for component in self._components:
            end = start + len(component.columns)
            by_its_points, by_its_logs = component.gradient(slope[start:end])
            by_points += by_its_points
            by_logs += by_its_logs
            start = end
        by_metric = by_points @ self._offsets.T
        by_ellipse = [(by_metric * by).sum() for by in self._metric_by]
        by_centre = -self._metric @ by_points.sum(axis=1)
        return np.array([*by_centre, *by_ellipse, *by_logs])

    def moves(self, vector: FloatArray) -> FloatArray:
        """The derivatives of C times ``vector`` (n_k,) by x, (len(x), n_k)."""
        ones = np.ones_like(vector)
        ways = np.stack(
            [-row[:, None] * ones for row in self._metric]
            + [by @ self._offsets for by in self._metric_by]
        )
        found = [component.moves(vector, ways) for component in self._components]
        return np.concatenate([sum(each[0] for each in found), *(each[1] for each in found)])


_ROUND, _PLUS, _CROSS = np.eye(2), np.diag([1.0, -1.0]), np.array([[0.0, 1.0], [1.0, 0.0]])


class _Component:
    """One component at points (2, n) of the plane in which its envelope is round.

    ``columns`` are its columns of F as rows, (r, n).
    """

    def __init__(self, amplitude: float, length: float, width: float, points: FloatArray) -> None:
        self._ratio = 2.0 * (width / length) ** 2
        self._g = math.sqrt(1.0 + self._ratio)
        self._rho = rho = self._ratio / (self._g + 1.0) ** 2
        self._stretch = math.sqrt(self._g) / width
        self._z = self._stretch * points
        # The order, not a whole number, beyond which the variance is left out.
        self._depth = min(math.log(_TAIL) / math.log(rho), float(_MAX_ORDER))
        self._most = math.ceil(self._depth)
        self._waves = self._all_waves()
        self._i, self._j, total = _orders(self._most)
        # The last order comes in gradually, or the evidence would jump.
        over = self._depth - (self._most - 1)
        last = over**2 * (3.0 - 2.0 * over)
        is_last = total == self._most
        self._share = amplitude * np.where(is_last, last, 1.0)
        self.columns: FloatArray = (
            self._share[:, None] * self._waves[0, self._i] * self._waves[1, self._j]
        )
        # ln of a column by rho.
        self._by_rho = 0.5 * total / rho - rho / (1.0 - rho**2)
        if self._depth < _MAX_ORDER and last > 0:
            depth_by_rho = -math.log(_TAIL) / (rho * math.log(rho) ** 2)
            self._by_rho[is_last] += 6.0 * over * (1.0 - over) / last * depth_by_rho
        self._rho_by_log = 2.0 / (self._g + 1.0) ** 2 * self._ratio / self._g  # of the width
        self._z_by_log = 0.5 * self._ratio / self._g**2

    def _all_waves(self) -> FloatArray:
        """t_0 to t_order along both axes, (2, order + 1, n)."""
        z, rho = self._z, self._rho
        waves = np.empty((2, self._most + 1, z.shape[1]))
        waves[:, 0] = np.exp(-0.5 * z**2) * (1.0 - rho**2) ** 0.25
        for n in range(1, self._most + 1):
            waves[:, n] = math.sqrt(2.0 * rho / n) * z * waves[:, n - 1]
            if n > 1:
                waves[:, n] -= math.sqrt((n - 1) / n) * rho * waves[:, n - 2]
        return waves

    @cached_property
    def _slopes(self) -> tuple[FloatArray, FloatArray]:
        """The derivatives of the columns by z along and across, (r, n) each."""
        (along, across), share = self._waves, self._share[:, None]
        by = -self._z[:, None] * self._waves
        lower = np.sqrt(2.0 * self._rho * np.arange(1, self._most + 1))
        by[:, 1:] += lower[:, None] * self._waves[:, :-1]
        return share * by[0, self._i] * across[self._j], share * along[self._i] * by[1, self._j]

    def gradient(self, slope: FloatArray) -> tuple[FloatArray, list[float]]:
        """Derivatives by the points (2, n), and by ln a, ln l and ln s, from those by columns."""
        each = (slope * self.columns).sum(axis=1)
        by_z = np.stack([(slope * by).sum(axis=0) for by in self._slopes])
        stretch = float((by_z * self._z).sum())
        turn = self._z_by_log * stretch + self._rho_by_log * float(each @ self._by_rho)
        return self._stretch * by_z, [float(each.sum()), -turn, turn - stretch]

    def moves(self, vector: FloatArray, ways: FloatArray) -> tuple[FloatArray, FloatArray]:
        """How C times a vector moves: with the points by some ways (m, 2, n), and with the logs."""
        size = self.columns @ vector
        ways = np.concatenate([self._stretch * ways, self._z[None]])
        along, across = self._slopes
        moved = ways[:, 0] * (size @ along) + ways[:, 1] * (size @ across)
        moved += ((ways[:, 0] * vector) @ along.T + (ways[:, 1] * vector) @ across.T) @ self.columns
        by_rho = 2.0 * (size * self._by_rho) @ self.columns
        stretch = moved[-1]
        turn = self._z_by_log * stretch + self._rho_by_log * by_rho
        return moved[:-1], np.stack([2.0 * size @ self.columns, -turn, turn - stretch])


@lru_cache(maxsize=64)
def _orders(most: int) -> tuple[IntArray, IntArray, IntArray]:
    """The orders along and across of each column, and their sum."""
    total, across = np.tril_indices(most + 1)
    return total - across, across, total


@lru_cache(maxsize=16)
def _pixels(shape: tuple[int, int]) -> FloatArray:
    """(x, y) of each pixel from the middle of the box, (2, n_k)."""
    y, x = np.indices(shape).reshape(2, -1)
    ky, kx = shape
    return np.stack([x - kx // 2, y - ky // 2]).astype(np.float64)
