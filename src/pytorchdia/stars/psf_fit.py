"""The PSF of the reference, learnt from its stars: a Moffat profile with shapelets on top."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from ..errors import Finding
from ..frame import Frame
from ..measure import measure_seeing
from .catalogue import Catalogue, variance_of
from .psf import PSFModel, gaussian_psf, tabulated
from .psf_shape import Samples, fit_moffat, with_shapelets

__all__ = ["fit_psf"]

FloatArray = NDArray[np.float64]

_ENOUGH_STARS = 5  # for the residuals from an analytic profile
_LEAST_SNR = 20.0
_ROUNDS = 4
_SHAPE_ERROR = 0.01  # of the PSF, so that the brightest star does not decide alone


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
        kept = np.flatnonzero(_alike([misfit for _, misfit in looks]))
        stamps = [stamps[i] for i in kept]
        samples = Samples.joined([looks[i][0] for i in kept])
        profile, width = fit_moffat(samples, psf.fwhm)
        if turn >= 1 and not findings:
            profile = with_shapelets(samples, profile, width)
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
    centre: tuple[int, int]  # the central pixel (x, y)
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

    def fitted(self, psf: PSFModel) -> tuple[Samples, float]:
        """Fit fluxes, positions and sky by one linear step, and move the stars.

        Returns
        -------
        (Samples, float)
            The star less its neighbours and sky, over its flux; and how ill its core is fitted.
        """
        stars, slopes_x, slopes_y = self._stars(psf)
        columns = np.column_stack([stars, slopes_x, slopes_y, np.ones(len(stars))])
        values, weight = self.data.ravel(), self.weight.ravel()
        theta = _least_squares(columns, weight, values)
        n, m = len(self.x), int(self.moves.sum())
        flux, shifts = theta[:n], theta[n : n + 2 * m].reshape(2, m)
        least = 1e-3 * abs(flux[0]) + 1e-300
        self.x[self.moves] += np.clip(shifts[0] / np.maximum(flux[self.moves], least), -0.3, 0.3)
        self.y[self.moves] += np.clip(shifts[1] / np.maximum(flux[self.moves], least), -0.3, 0.3)
        if not flux[0] > 0:
            nothing = np.empty(0)
            return Samples(nothing, nothing, nothing, nothing), math.inf
        good, light = weight > 0, stars[:, 0]
        variance = 1.0 / np.where(good, weight, 1.0) + (_SHAPE_ERROR * light * flux[0]) ** 2
        core = good & (light > 0.1 * light.max())
        misfit = float(((values - columns @ theta)[core] ** 2 / variance[core]).mean())
        own = np.zeros(len(theta), dtype=bool)
        own[[0, n, n + m]] = True  # the star itself and its two slopes
        others = columns[:, ~own] @ theta[~own]
        dx, dy = self._offsets()
        use = good & (np.hypot(dx, dy) < 2.75 * self.fwhm)
        samples = Samples(
            dx[use], dy[use], ((values - others) / flux[0])[use], (flux[0] ** 2 / variance)[use]
        )
        return samples, misfit

    def _stars(self, psf: PSFModel) -> tuple[FloatArray, FloatArray, FloatArray]:
        """The PSF of each star, and the slopes along x and y of those that move, as columns."""
        half, d = len(self.data) // 2, 0.1

        def at(x: FloatArray, y: FloatArray) -> FloatArray:
            ix, iy = (np.full(len(x), c) for c in self.centre)
            return psf.stamps(x, y, half, (ix, iy)).reshape(len(x), -1).T

        x, y = self.x[self.moves], self.y[self.moves]
        slopes_x = (at(x + d, y) - at(x - d, y)) / (2 * d)
        slopes_y = (at(x, y + d) - at(x, y - d)) / (2 * d)
        return at(self.x, self.y), slopes_x, slopes_y

    def _offsets(self) -> tuple[FloatArray, FloatArray]:
        """Of the pixels from the star [pixels]."""
        half = len(self.data) // 2
        rows, columns = np.mgrid[-half : half + 1, -half : half + 1]
        dx = columns + self.centre[0] - self.x[0]
        dy = rows + self.centre[1] - self.y[0]
        return dx.ravel(), dy.ravel()


def _least_squares(columns: FloatArray, weight: FloatArray, values: FloatArray) -> FloatArray:
    gram = columns.T @ (weight[:, None] * columns)
    unit = 1.0 / np.sqrt(np.maximum(np.diag(gram), 1e-300))
    ridge = 1e-8 * np.eye(len(gram))  # against two neighbours in one place
    right = unit * (columns.T @ (weight * values))
    return np.asarray(unit * np.linalg.solve(gram * unit * unit[:, None] + ridge, right))


def _alike(misfits: list[float]) -> NDArray[np.bool_]:
    """False for the stars that are fitted much worse than most: blends, galaxies, cosmic rays."""
    misfit = np.array(misfits)
    kept = np.asarray(misfit <= 4.0 * np.median(misfit))
    return kept if kept.any() else np.ones(len(misfits), dtype=bool)
