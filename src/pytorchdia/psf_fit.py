"""The PSF of the reference, learnt from its stars: a Moffat profile with shapelets on top."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.spatial import cKDTree
from scipy.special import eval_hermite, factorial

from .errors import Finding
from .frame import Frame
from .measure import measure_seeing
from .psf import PSFModel, gaussian_psf, tabulated
from .stars import Catalogue, variance_of

__all__ = ["fit_psf"]

FloatArray = NDArray[np.float64]
Profile = Callable[[FloatArray, FloatArray], FloatArray]

_FWHM_PER_SIGMA = 2.3548200450309493
_ENOUGH_STARS = 5  # for the residuals from an analytic profile
_LEAST_SNR = 20.0
_ROUNDS = 4
_ORDERS = (2, 4, 6, 8, 10)
_SHAPE_ERROR = 0.01  # of the PSF, so that the brightest star does not decide alone
_HUBER = 2.0


def fit_psf(
    reference: Frame,
    catalogue: Catalogue,
    *,
    fwhm: float | None = None,
    max_stars: int = 60,
) -> PSFModel:
    """Learn the PSF from bright stars without blemish, each fitted together with its neighbours.

    An elliptical Moffat profile, then shapelets for what it leaves over, of the order that the
    Bayesian information criterion asks for. Positions, fluxes, neighbours and sky are refitted in
    every round, and stars that do not look like the others are left out.

    Parameters
    ----------
    reference : Frame
    catalogue : Catalogue
        Of its stars, faint neighbours included.
    fwhm : float, optional
        First guess [pixels]; None measures it.
    max_stars : int
        Largest number of stars to use.

    Returns
    -------
    PSFModel
        With a finding "psf-few-stars" if there was no saying more than the width and the
        ellipticity, and "psf-assumed" if no star could be used at all.
    """
    if fwhm is None:
        seen = measure_seeing(reference)
        fwhm = seen.fwhm if seen is not None else 3.0
    image = _Image(reference.data.double().numpy(), variance_of(reference))
    chosen = _choose(catalogue, fwhm, max_stars)
    stamps = [s for i in chosen if (s := _Stamp.cut(image, catalogue, int(i), fwhm)) is not None]
    if not stamps:
        finding = Finding(
            "psf-assumed",
            f"No star of {reference.name} could be used to learn the PSF; a Gaussian of FWHM "
            f"{fwhm:.2f} pixels was taken. Give a longer list of stars.",
            "warning",
        )
        return gaussian_psf(fwhm, (finding,))
    return _learn(stamps, fwhm, reference.name)


def _learn(stamps: list[_Stamp], fwhm: float, name: str) -> PSFModel:
    """Alternate between the stars, given the PSF, and the PSF, given the stars."""
    findings: tuple[Finding, ...] = ()
    if len(stamps) < _ENOUGH_STARS:
        findings = (
            Finding(
                "psf-few-stars",
                f"Only {len(stamps)} stars of {name} could be used to learn the PSF; it is a "
                "Moffat profile without corrections. Give a longer list of stars.",
                "warning",
            ),
        )
    psf = gaussian_psf(fwhm)
    for turn in range(_ROUNDS):
        looks = [stamp.fitted(psf) for stamp in stamps]
        kept = _alike(looks)
        stamps = [s for s, keep in zip(stamps, kept, strict=True) if keep]
        samples = _Samples.of([k for k, keep in zip(looks, kept, strict=True) if keep])
        profile, width = _fit_moffat(samples, psf.fwhm)
        if turn >= 1 and not findings:
            profile = _with_shapelets(samples, profile, width)
        psf = tabulated(profile, width, 4.0, findings, len(stamps))
    return psf


@dataclass(frozen=True)
class _Image:
    data: FloatArray
    variance: FloatArray


def _choose(catalogue: Catalogue, fwhm: float, max_stars: int) -> NDArray[np.intp]:
    """The brightest stars without flags whose close neighbours are faint."""
    where = np.column_stack([catalogue.x, catalogue.y])
    good = (catalogue.flags == 0) & (catalogue.flux > _LEAST_SNR * catalogue.flux_error)
    order = np.argsort(-np.where(good, catalogue.flux, -np.inf))[: int(good.sum())]
    if not len(order):
        return order
    tree = cKDTree(where)
    light = np.maximum(catalogue.flux, 0.0)
    near = [
        sum(light[j] for j in tree.query_ball_point(where[i], 2.0 * fwhm) if j != i) / light[i]
        for i in order[: 10 * max_stars]
    ]
    crowding = np.array(near)
    for limit in (0.1, 0.3, 1.0, np.inf):
        free = order[: len(crowding)][crowding <= limit]
        if len(free) >= min(max_stars, max(_ENOUGH_STARS, len(order) // 4)):
            break
    return free[:max_stars]


@dataclass
class _Stamp:
    """The pixels round a star; ``x``, ``y`` hold it and its neighbours, the star first."""

    data: FloatArray
    weight: FloatArray
    corner: tuple[int, int]
    x: FloatArray
    y: FloatArray
    moves: NDArray[np.bool_]  # whose positions are fitted
    fwhm: float

    @classmethod
    def cut(cls, image: _Image, catalogue: Catalogue, i: int, fwhm: float) -> _Stamp | None:
        """None if the stamp leaves the frame or the star's core has bad pixels."""
        half = math.ceil(3.0 * fwhm)
        ix, iy = round(catalogue.x[i]), round(catalogue.y[i])
        h, w = image.data.shape
        if min(ix, iy) < half or ix >= w - half or iy >= h - half:
            return None
        window = slice(iy - half, iy + half + 1), slice(ix - half, ix + half + 1)
        weight = np.where(np.isfinite(image.variance[window]), 1.0 / image.variance[window], 0.0)
        core = math.ceil(fwhm)
        if (weight[half - core : half + core + 1, half - core : half + core + 1] == 0).any():
            return None
        distance = np.maximum(np.abs(catalogue.x - ix), np.abs(catalogue.y - iy))
        near = np.flatnonzero(distance < half + fwhm)
        near = np.append([i], near[near != i])
        moves = catalogue.flux[near] > 0.1 * catalogue.flux[i]
        moves &= distance[near] < half
        moves[0] = True
        return cls(
            image.data[window], weight, (ix, iy), catalogue.x[near].copy(),
            catalogue.y[near].copy(), moves, fwhm,
        )  # fmt: skip

    def fitted(self, psf: PSFModel) -> _Look:
        """Fit fluxes, positions and sky by one linear step; move the stars; normalise the star."""
        half = len(self.data) // 2
        n, m = len(self.x), int(self.moves.sum())
        around = tuple(np.full(n, c) for c in self.corner)

        def at(dx: float, dy: float, which: NDArray[np.bool_] | slice) -> FloatArray:
            stamps = psf.stamps(
                self.x[which] + dx, self.y[which] + dy, half,
                (around[0][which], around[1][which]),
            )  # fmt: skip
            return stamps.reshape(len(stamps), -1).T

        d = 0.1
        stars = at(0, 0, slice(None))
        slopes_x = (at(d, 0, self.moves) - at(-d, 0, self.moves)) / (2 * d)
        slopes_y = (at(0, d, self.moves) - at(0, -d, self.moves)) / (2 * d)
        columns = np.column_stack([stars, slopes_x, slopes_y, np.ones(len(stars))])
        values, weight = self.data.ravel(), self.weight.ravel()
        gram = columns.T @ (weight[:, None] * columns)
        scale = 1.0 / np.sqrt(np.maximum(np.diag(gram), 1e-300))
        ridge = 1e-8 * np.eye(len(gram))  # against two neighbours in one place
        theta = scale * np.linalg.solve(
            gram * scale * scale[:, None] + ridge, scale * (columns.T @ (weight * values))
        )
        flux, shifts = theta[:n], theta[n : n + 2 * m].reshape(2, m)
        moved = np.clip(
            shifts / np.maximum(flux[self.moves], 1e-3 * abs(flux[0]) + 1e-30), -0.3, 0.3
        )
        others = columns[:, 1:n] @ flux[1:n] + theta[-1]
        for k, slopes in ((0, slopes_x), (1, slopes_y)):
            others += slopes[:, 1:] @ shifts[k, 1:]
        model = columns @ theta
        share = 1.0 / np.where(
            weight > 0,
            1.0 / np.where(weight > 0, weight, 1.0) + (_SHAPE_ERROR * stars[:, 0] * flux[0]) ** 2,
            np.inf,
        )
        core = stars[:, 0] > 0.1 * stars[:, 0].max()
        misfit = float((share * (values - model) ** 2)[core].mean())
        self.x[self.moves] += moved[0]
        self.y[self.moves] += moved[1]
        rows, cols = np.mgrid[-half : half + 1, -half : half + 1]
        dx = (cols + self.corner[0] - self.x[0]).ravel()
        dy = (rows + self.corner[1] - self.y[0]).ravel()
        use = (weight > 0) & (np.hypot(dx, dy) < 2.75 * self.fwhm)
        star = (values - others) / flux[0] if flux[0] > 0 else np.zeros_like(values)
        return _Look(
            dx[use], dy[use], star[use], share[use] * flux[0] ** 2,
            misfit if flux[0] > 0 else np.inf,
        )  # fmt: skip


@dataclass(frozen=True)
class _Look:
    """One star as a sampling of the PSF: offsets, values, weights; and how ill it is fitted."""

    dx: FloatArray
    dy: FloatArray
    value: FloatArray
    weight: FloatArray
    misfit: float


@dataclass(frozen=True)
class _Samples:
    dx: FloatArray
    dy: FloatArray
    value: FloatArray
    weight: FloatArray

    @classmethod
    def of(cls, looks: list[_Look]) -> _Samples:
        names = ("dx", "dy", "value", "weight")
        return cls(*(np.concatenate([getattr(look, name) for look in looks]) for name in names))


def _alike(looks: list[_Look]) -> NDArray[np.bool_]:
    """False for the stars that are fitted much worse than most: blends, galaxies, cosmic rays."""
    misfit = np.array([look.misfit for look in looks])
    kept: NDArray[np.bool_] = misfit <= 4.0 * np.median(misfit)
    return kept if kept.any() else np.ones(len(looks), dtype=bool)


def _fit_moffat(samples: _Samples, fwhm: float) -> tuple[Profile, float]:
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
    width = math.exp(best.x[1]) / (1.0 - best.x[2] ** 2 - best.x[3] ** 2) ** 0.25
    return (lambda dx, dy: profile(best.x, dx, dy)), width


def _with_shapelets(samples: _Samples, profile: Profile, fwhm: float) -> Profile:
    """Add the shapelets that the residuals ask for, of the order with the least BIC."""
    sigma = fwhm / _FWHM_PER_SIGMA
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
    samples: _Samples, residual: FloatArray, sigma: float, order: int
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
    return coefficients, _huber_sum(z2)


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
