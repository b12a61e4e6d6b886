"""The shape of the PSF from samples of it: a Moffat profile, and shapelets for what it leaves."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.special import eval_hermite, factorial

from ..metrics import FWHM_PER_SIGMA

__all__ = ["Samples", "fit_moffat", "with_shapelets"]

FloatArray = NDArray[np.float64]
Profile = Callable[[FloatArray, FloatArray], FloatArray]

_ORDERS = (2, 4, 6, 8, 10)
_HUBER = 2.0


@dataclass(frozen=True)
class Samples:
    """Pixels as samples of the PSF, (n,) each.

    Attributes
    ----------
    dx, dy : ndarray
        Offset of the pixel from its star [pixels].
    value : ndarray
        Light in the pixel over that of the star.
    weight : ndarray
        1 / variance of the value.
    """

    dx: FloatArray
    dy: FloatArray
    value: FloatArray
    weight: FloatArray

    @classmethod
    def joined(cls, parts: list[Samples]) -> Samples:
        """All samples of several stars."""
        names = ("dx", "dy", "value", "weight")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def fit_moffat(samples: Samples, fwhm: float) -> tuple[Profile, float]:
    """An elliptical Moffat profile of free amplitude, and its FWHM."""
    root = np.sqrt(samples.weight)
    scale = max(float(np.median(root)), 1e-300)

    def profile(p: FloatArray, dx: FloatArray, dy: FloatArray) -> FloatArray:
        amplitude, width, plus, cross, beta = np.exp(p[0]), np.exp(p[1]), p[2], p[3], p[4]
        alpha = width / (2.0 * math.sqrt(2.0 ** (1.0 / beta) - 1.0))
        r2 = ((1 + plus) * dx**2 + (1 - plus) * dy**2 + 2 * cross * dx * dy) / alpha**2
        values: FloatArray = amplitude * (1.0 + r2) ** -beta
        return values

    def misfit(p: FloatArray) -> FloatArray:
        residual: FloatArray = root * (samples.value - profile(p, samples.dx, samples.dy)) / scale
        return residual

    start = np.array([math.log(0.8 / fwhm**2), math.log(fwhm), 0.0, 0.0, 3.0])
    low, high = [-20.0, math.log(0.4), -0.65, -0.65, 1.3], [2.0, math.log(60.0), 0.65, 0.65, 30.0]
    best = least_squares(
        misfit, np.clip(start, low, high), bounds=(low, high), loss="huber",
        f_scale=_HUBER / scale, x_scale=[0.1, 0.1, 0.1, 0.1, 1.0], max_nfev=60,
    )  # fmt: skip
    width = float(math.exp(best.x[1]) / (1.0 - best.x[2] ** 2 - best.x[3] ** 2) ** 0.25)
    return (lambda dx, dy: profile(best.x, dx, dy)), width


def with_shapelets(samples: Samples, profile: Profile, fwhm: float) -> Profile:
    """Add the shapelets that the residuals ask for, of the order with the least BIC."""
    sigma = fwhm / FWHM_PER_SIGMA
    residual = samples.value - profile(samples.dx, samples.dy)
    solutions = [(order, *_fit_shapelets(samples, residual, sigma, order)) for order in _ORDERS]
    # Per degree of freedom of the best fit, because the pixels of one star share its errors.
    floor = min(chi2 for *_, chi2 in solutions) / len(residual)
    floor = max(floor, 1.0)
    plain = _huber_sum(samples.weight * residual**2)
    best, best_bic = None, plain / floor
    for order, coefficients, chi2 in solutions:
        bic = chi2 / floor + len(coefficients) * math.log(len(residual))
        if bic < best_bic:
            best, best_bic = (order, coefficients), bic
    if best is None:
        return profile
    order, coefficients = best

    def corrected(dx: FloatArray, dy: FloatArray) -> FloatArray:
        basis = _shapelets(dx.ravel(), dy.ravel(), sigma, order)
        values: FloatArray = profile(dx, dy) + (basis @ coefficients).reshape(dx.shape)
        return values

    return corrected


def _fit_shapelets(
    samples: Samples, residual: FloatArray, sigma: float, order: int
) -> tuple[FloatArray, float]:
    """Coefficients by reweighted least squares, and the robust sum of squares that is left."""
    basis = _shapelets(samples.dx, samples.dy, sigma, order)
    weight = samples.weight
    for _ in range(3):
        gram = basis.T @ (weight[:, None] * basis)
        gram += 1e-8 * np.diag(np.diag(gram))
        coefficients = np.linalg.solve(gram, basis.T @ (weight * residual))
        z2 = samples.weight * (residual - basis @ coefficients) ** 2
        weight = samples.weight * np.minimum(1.0, _HUBER / np.sqrt(np.maximum(z2, 1e-300)))
    return np.asarray(coefficients, dtype=np.float64), _huber_sum(z2)


def _huber_sum(z2: FloatArray) -> float:
    z = np.sqrt(z2)
    return float(np.where(z < _HUBER, z2, 2 * _HUBER * z - _HUBER**2).sum())


def _shapelets(dx: FloatArray, dy: FloatArray, sigma: float, order: int) -> FloatArray:
    """Gauss-Hermite functions of two coordinates up to a total order, (n, k)."""
    u, v = dx / sigma, dy / sigma
    along = [_hermite(k, u) for k in range(order + 1)]
    across = [_hermite(k, v) for k in range(order + 1)]
    columns = [along[i] * across[k - i] for k in range(order + 1) for i in range(k + 1)]
    return np.column_stack(columns)


def _hermite(k: int, u: FloatArray) -> FloatArray:
    norm = 1.0 / math.sqrt(2.0**k * float(factorial(k)) * math.sqrt(math.pi))
    values: FloatArray = norm * eval_hermite(k, u) * np.exp(-0.5 * u**2)
    return values
