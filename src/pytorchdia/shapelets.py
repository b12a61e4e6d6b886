"""The root of a Gaussian process' covariance in shapelets, and its derivatives.

A component of the covariance of kernel pixels is ::

    C(r, r') = a^2 e(r) e(r') exp(-|r - r'|^2 / 2 l^2),   e(r) = exp(-|r|^2 / 2 s^2).

In one dimension, with g = sqrt(1 + 2 s^2 / l^2), rho = (g - 1) / (g + 1) and z = x sqrt(g) / s,
C = sum_n t_n(x) t_n(x') where t_n = (1 - rho^2)^(1/4) rho^(n/2) h_n(z) and h_n is the n-th Hermite
function times pi^(1/4) (Mehler's formula). In two the columns of the root are their products.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Shapelets:
    """F with F F' = C, of one or several components with a common centre and elliptical metric.

    Attributes
    ----------
    x : ndarray
        Centre (x0, y0), ellipse (plus, cross), then ln a, ln l and ln s of each component.
    shape : (int, int)
        (ky, kx) of the kernel's box.
    """

    x: FloatArray
    shape: tuple[int, int]

    @cached_property
    def root(self) -> Basis:
        """F, (n_k, number of shapelets), float64; its columns lie together in memory."""
        return torch.from_numpy(np.concatenate([c.columns for c in self._components])).T

    def gradient(self, slope: Basis) -> FloatArray:
        """The derivatives by x of a function whose derivatives by F are ``slope`` (n_k, r)."""
        ends = np.cumsum([len(component.columns) for component in self._components])
        parts = np.split(slope.T.numpy(), ends[:-1])
        found = [c.gradient(part) for c, part in zip(self._components, parts, strict=True)]
        by_points = sum((each[0] for each in found), np.zeros_like(self._offsets))
        return np.concatenate([self._by_frame(by_points), *(each[1] for each in found)])

    @cached_property
    def _offsets(self) -> FloatArray:
        """(dx, dy) of each pixel from the centre, (2, n_k)."""
        y, x = np.indices(self.shape).reshape(2, -1)
        ky, kx = self.shape
        return np.stack([x - (kx // 2 + self.x[0]), y - (ky // 2 + self.x[1])])

    @cached_property
    def _metric(self) -> FloatArray:
        """The root of the metric, exp([[plus, cross], [cross, -plus]] / 2), (2, 2)."""
        plus, cross = self.x[2:4]
        _, even, odd = self._hyperbolic()
        return np.array([[even + odd * plus, odd * cross], [odd * cross, even - odd * plus]])

    def _hyperbolic(self) -> tuple[float, float, float]:
        half = 0.5 * math.sqrt(self.x[2] ** 2 + self.x[3] ** 2 + 1e-24)
        return half, math.cosh(half), 0.5 * math.sinh(half) / half

    @cached_property
    def _components(self) -> list[_Component]:
        points = self._metric @ self._offsets
        triples = np.exp(self.x[4:]).reshape(-1, 3).tolist()
        return [_Component(a, length, width, points) for a, length, width in triples]

    def _by_frame(self, by_points: FloatArray) -> FloatArray:
        """Derivatives by centre and ellipse from those by the points, (2, n_k)."""
        plus, cross = self.x[2:4]
        half, even, odd = self._hyperbolic()
        by_centre = -self._metric @ by_points.sum(axis=1)
        (xx, xy), (yx, yy) = by_points @ self._offsets.T  # by the elements of the metric
        by_odd = plus * (xx - yy) + cross * (xy + yx)
        by_half = (xx + yy) * math.sinh(half) + by_odd * 0.5 * (even - 2.0 * odd) / half
        along = by_half / (4.0 * half)
        by_plus, by_cross = odd * (xx - yy) + along * plus, odd * (xy + yx) + along * cross
        return np.array([*by_centre, by_plus, by_cross])


@dataclass(frozen=True)
class _Component:
    """One component at points (2, n) of the plane in which its envelope is round."""

    amplitude: float
    length: float
    width: float
    points: FloatArray

    @cached_property
    def columns(self) -> FloatArray:
        """Its columns of F, as rows, (r, n)."""
        (i, j), (along, across) = self._orders, self._waves
        columns: FloatArray = self._share[:, None] * along[i] * across[j]
        return columns

    def gradient(self, slope: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Derivatives by the points (2, n), and by ln a, ln l and ln s, from those by columns."""
        (along, across), rho, g = self._waves, self._rho, self._g
        scaled = np.zeros((*(self._order + 1,) * 2, slope.shape[1]))
        scaled[self._orders] = slope * self._share[:, None]
        by_along, by_across = (scaled * across).sum(axis=1), (scaled * along[:, None]).sum(axis=0)
        # All of t_n dE/dt_n: of the waves along, across and, in their sum, of the amplitude.
        each = np.stack([by_along * along, by_across * across])
        lower = np.stack([by_along[1:] * along[:-1], by_across[1:] * across[:-1]])
        n = np.arange(self._order + 1)
        by_z = np.tensordot(lower, np.sqrt(2.0 * rho * n[1:]), (1, 0)) - self._z * each.sum(axis=1)

        by_n = each.sum(axis=(0, 2))
        by_rho = by_n @ (0.5 * n / rho - 0.5 * rho / (1.0 - rho**2))
        by_rho += self._by_last(slope) * self._last_by_rho()
        stretch = (by_z * self._z).sum()
        turn = (0.5 * stretch / g + 2.0 * by_rho / (g + 1.0) ** 2) * self._ratio / g
        by_logs = np.array([each[0].sum(), -turn, turn - stretch])
        return by_z * (math.sqrt(g) / self.width), by_logs

    @cached_property
    def _ratio(self) -> float:
        return 2.0 * (self.width / self.length) ** 2

    @cached_property
    def _g(self) -> float:
        return math.sqrt(1.0 + self._ratio)

    @cached_property
    def _rho(self) -> float:
        return self._ratio / (self._g + 1.0) ** 2

    @cached_property
    def _depth(self) -> float:
        """The order, not a whole number, beyond which the variance is left out."""
        return min(math.log(_TAIL) / math.log(self._rho), float(_MAX_ORDER))

    @cached_property
    def _order(self) -> int:
        return math.ceil(self._depth)

    @cached_property
    def _z(self) -> FloatArray:
        return self.points * (math.sqrt(self._g) / self.width)

    @cached_property
    def _waves(self) -> FloatArray:
        """t_0 to t_order along both axes, (2, order + 1, n)."""
        z, rho = self._z, self._rho
        waves = np.empty((2, self._order + 1, z.shape[1]))
        waves[:, 0] = np.exp(-0.5 * z**2) * (1.0 - rho**2) ** 0.25
        for n in range(1, self._order + 1):
            waves[:, n] = math.sqrt(2.0 * rho / n) * z * waves[:, n - 1]
            if n > 1:
                waves[:, n] -= math.sqrt((n - 1) / n) * rho * waves[:, n - 2]
        return waves

    @cached_property
    def _orders(self) -> tuple[IntArray, IntArray]:
        """The orders along and across of each column."""
        return _orders(self._order)

    @cached_property
    def _is_last(self) -> NDArray[np.bool_]:
        return np.asarray(self._orders[0] + self._orders[1] == self._order)

    @cached_property
    def _share(self) -> FloatArray:
        """What each column is multiplied by."""
        over = self._depth - (self._order - 1)
        # The last order comes in gradually, or the evidence would jump.
        last = over**2 * (3.0 - 2.0 * over)
        return self.amplitude * np.where(self._is_last, last, 1.0)

    def _by_last(self, slope: FloatArray) -> float:
        """The derivative by the share of the last order."""
        along, across = self._waves
        i, j = (orders[self._is_last] for orders in self._orders)
        return self.amplitude * float((slope[self._is_last] * along[i] * across[j]).sum())

    def _last_by_rho(self) -> float:
        if self._depth >= _MAX_ORDER:
            return 0.0
        over = self._depth - (self._order - 1)
        return 6.0 * over * (1.0 - over) * -math.log(_TAIL) / (self._rho * math.log(self._rho) ** 2)


@lru_cache(maxsize=64)
def _orders(most: int) -> tuple[IntArray, IntArray]:
    both, across = np.tril_indices(most + 1)
    return both - across, across
