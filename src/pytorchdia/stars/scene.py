"""Stars and sky as one sparse linear model of an image, and its robust solution."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky
from scipy.linalg.lapack import dpotri
from scipy.sparse import csc_array, csr_array, diags_array, eye_array, hstack, kron
from scipy.sparse.linalg import cg, splu

from .psf import PSF

__all__ = ["Core", "Scene", "Solved", "solve_scene"]

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]

_DENSE = 600  # unknowns up to which the errors are exact
_CELL = 150  # stars whose errors are computed together beyond that
_RIDGE = 1e-6  # relative, against two stars in one place
_HUBER, _REJECT = 3.0, 6.0  # sigma
_ROUNDS = 3
_MOST_STEPS = 500  # of conjugate gradients; a crowd that takes more is factored
_ROUNDING = 1e-12  # relative, of an entry of the normal matrix
_SHAPE_ERROR = 0.03  # of a star's light, that does not make a pixel an outlier


@dataclass(frozen=True)
class Core:
    """The pixels within half a FWHM or so of each star, (n, k): indices into the flat image."""

    pixels: IntArray
    inside: BoolArray

    @property
    def leaves_frame(self) -> BoolArray:
        """Whether some of a star's core lies outside the frame, (n,)."""
        return np.asarray(~self.inside.all(axis=1))

    def total(self, image: FloatArray) -> FloatArray:
        """Sum of an image over each core, (n,)."""
        values: FloatArray = np.where(self.inside, image.ravel()[self.pixels], 0.0).sum(axis=1)
        return values

    def count(self, image: BoolArray) -> IntArray:
        """Number of True pixels in each core, (n,)."""
        values: IntArray = (self.inside & image.ravel()[self.pixels]).sum(axis=1)
        return values


@dataclass(frozen=True, eq=False)
class Scene:
    """An image and the model that is fitted to it.

    Attributes
    ----------
    data, weight : ndarray
        [ADU], and 1/variance, 0 at pixels not to be used, (h, w).
    psf : PSF
    x, y : ndarray
        Of the stars [pixels], (n,).
    stars : csc_array
        Light of each star of unit flux, (h w, n).
    sky : csc_array
        Weight of each node of the sky, (h w, m).
    """

    data: FloatArray
    weight: FloatArray
    psf: PSF
    x: FloatArray
    y: FloatArray
    stars: csc_array
    sky: csc_array

    @classmethod
    def of(
        cls,
        data: FloatArray,
        weight: FloatArray,
        psf: PSF,
        x: FloatArray,
        y: FloatArray,
        sky_spacing: float | None,
    ) -> Scene:
        """Lay out stars and sky on the pixels of an image."""
        stars = _columns(psf.stamps(x, y), x, y, data.shape)
        return cls(data, weight, psf, x, y, stars, _sky(data.shape, sky_spacing))

    def core(self) -> Core:
        """The pixels within 0.7 FWHM of each star."""
        radius = max(0.7 * self.psf.fwhm, 1.0)
        reach = np.arange(-math.ceil(radius), math.ceil(radius) + 1)
        dy, dx = (a.ravel() for a in np.meshgrid(reach, reach, indexing="ij"))
        disc = np.hypot(dy, dx) <= radius
        return Core(*_pixels(self.x, self.y, dx[disc], dy[disc], self.data.shape))

    def shifts(self, solved: Solved) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """One Gauss-Newton step of the positions: dx, dy [pixels], flux and its error, (n,).

        From the residuals of the solution, each star taken alone.
        """
        d, around = 0.1, (np.rint(self.x), np.rint(self.y))

        def slopes(a: float, b: float) -> FloatArray:
            ahead = self.psf.stamps(self.x + a, self.y + b, around=around)
            behind = self.psf.stamps(self.x - a, self.y - b, around=around)
            return ((ahead - behind) / (2 * d)).reshape(len(self.x), -1)

        pixels, inside = _pixels_of_stamps(self.x, self.y, self.psf.half, self.data.shape)
        kept = np.where(solved.rejected, 0.0, self.weight)
        weight = np.where(inside, kept.ravel()[pixels], 0.0)
        g_x, g_y = slopes(d, 0.0), slopes(0.0, d)
        xx, yy, xy = ((weight * a * b).sum(axis=1) for a, b in ((g_x, g_x), (g_y, g_y), (g_x, g_y)))
        determinant = xx * yy - xy**2
        enough = (determinant > 1e-6 * xx * yy) & (solved.flux > 0)
        below = np.where(enough, determinant * solved.flux, 1.0)
        residual = weight * solved.residual.ravel()[pixels]
        b_x, b_y = ((g * residual).sum(axis=1) for g in (g_x, g_y))
        step_x = np.where(enough, (yy * b_x - xy * b_y) / below, 0.0)
        step_y = np.where(enough, (xx * b_y - xy * b_x) / below, 0.0)
        return step_x, step_y, solved.flux, solved.error


@dataclass(frozen=True)
class Solved:
    """The fit of a scene.

    Attributes
    ----------
    flux, error : ndarray
        [ADU of the image], (n,).
    blending : ndarray
        Error over that of each star alone, on the pixels it has, (n,).
    coverage : ndarray
        Share of the PSF's weight that lies on good pixels, (n,).
    sky_at_stars : ndarray
        [ADU], (n,).
    residual, z : ndarray
        Image minus model [ADU], and in units of the noise, (h, w).
    rejected : ndarray
        Pixels without weight because they were outliers, (h, w).
    """

    flux: FloatArray
    error: FloatArray
    blending: FloatArray
    coverage: FloatArray
    sky_at_stars: FloatArray
    residual: FloatArray
    z: FloatArray
    rejected: BoolArray


def solve_scene(scene: Scene, robust: bool) -> Solved:
    """Weighted least squares, with less weight to pixels far off if ``robust``, and then none."""
    columns = csc_array(hstack([scene.stars, scene.sky]))
    design = csr_array(columns)
    data, weight = scene.data.ravel(), scene.weight.ravel()
    n = scene.stars.shape[1]
    by_weight = columns.data * weight[columns.indices]
    weighted = csc_array((by_weight, columns.indices, columns.indptr), shape=columns.shape)
    effective, gram = weight, csr_array(weighted.T @ design)
    theta = _solve(gram, design.T @ (weight * data), np.zeros(design.shape[1]))
    for turn in range(_ROUNDS if robust else 0):
        residual = np.where(weight > 0, data - design @ theta, 0.0)
        z = np.abs(residual) / _spread(scene, weight, theta[:n])
        least = 0.0 if turn == _ROUNDS - 1 else _HUBER / np.maximum(z, _HUBER)
        factor = np.where(z > _REJECT, least, _HUBER / np.maximum(z, _HUBER))
        changed = np.flatnonzero(weight * factor != effective)
        rows = design[changed]
        change = (weight * factor)[changed] - effective[changed]
        gram = csr_array(gram + rows.T @ (diags_array(change) @ rows))
        effective = weight * factor
        theta = _solve(gram, design.T @ (effective * data), theta)
    residual = np.where(weight > 0, data - design @ theta, 0.0)
    variance = _variances(gram, scene)
    alone = np.asarray((scene.stars**2).T @ effective).ravel()
    everywhere = np.asarray((scene.stars**2).T @ (weight > 0).astype(float)).ravel()
    whole = (scene.psf.stamps(scene.x, scene.y) ** 2).sum(axis=(1, 2))
    return Solved(
        flux=theta[:n],
        error=np.sqrt(variance),
        blending=np.sqrt(np.maximum(variance * alone, 1.0)),
        coverage=everywhere / np.maximum(whole, 1e-300),
        sky_at_stars=np.asarray(scene.sky @ theta[n:]).ravel()[_nearest(scene)],
        residual=residual.reshape(scene.data.shape),
        z=(residual * np.sqrt(weight)).reshape(scene.data.shape),
        rejected=((effective == 0) & (weight > 0)).reshape(scene.data.shape),
    )


def _spread(scene: Scene, weight: FloatArray, flux: FloatArray) -> FloatArray:
    """Standard deviation by which a pixel may be off: noise, and the PSF's share of its light."""
    light = scene.stars @ np.abs(flux)
    noise = np.where(weight > 0, 1.0 / np.where(weight > 0, weight, 1.0), 1.0)
    return np.asarray(np.sqrt(noise + (_SHAPE_ERROR * light) ** 2), dtype=np.float64)


def _units(gram: csr_array) -> FloatArray:
    """Of each unknown, so that the scaled matrix has ones on its diagonal, or 0 without data."""
    diagonal = gram.diagonal()
    least = 1e-12 * (diagonal.max(initial=0.0) or 1.0)
    return np.asarray(1.0 / np.sqrt(np.maximum(diagonal, least)))


def _solve(gram: csr_array, right: FloatArray, start: FloatArray) -> FloatArray:
    """By conjugate gradients: few steps where stars hardly overlap; else by a factorisation."""
    unit = _units(gram)
    scaled = csr_array(diags_array(unit) @ gram @ diags_array(unit))
    scaled = csr_array(scaled + _RIDGE * eye_array(len(unit)))
    solution, unfinished = cg(scaled, unit * right, start / unit, rtol=1e-9, maxiter=_MOST_STEPS)
    if unfinished:
        factored = splu(
            csc_array(scaled), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0,
            options={"SymmetricMode": True},
        )  # fmt: skip
        solution = factored.solve(unit * right)
    return np.asarray(unit * solution, dtype=np.float64)


def _variances(gram: csr_array, scene: Scene) -> FloatArray:
    """Of the stars' fluxes: the diagonal of the inverse, exact for up to 600 unknowns.

    Beyond, the frame is cut into cells, and the stars of each are inverted together with all that
    they overlap and all that these overlap. What reaches a star through more than two others is
    left out.
    """
    n = len(scene.x)
    if gram.shape[0] <= _DENSE:
        return _diagonal_of_inverse(gram)[:n]
    gram = _without_rounding(gram)
    variances = np.empty(n)
    across = max(1, round(math.sqrt(n / _CELL)))
    h, w = scene.data.shape
    row, column = (
        np.clip(v * across // size, 0, across - 1) for v, size in ((scene.y, h), (scene.x, w))
    )
    cell = (row * across + column).astype(np.int64)
    for i in np.unique(cell):
        mine = np.flatnonzero(cell == i)
        near = gram[mine].indices
        near = np.union1d(near[near < n], mine)
        wider = np.union1d(gram[near].indices, near)
        inverse = _diagonal_of_inverse(csr_array(gram[wider][:, wider]))
        variances[mine] = inverse[np.searchsorted(wider, mine)]
    return variances


def _without_rounding(gram: csr_array) -> csr_array:
    """Without the entries that are nothing but what pixels taken out have left behind."""
    entries = gram.tocoo()
    unit = _units(gram)
    row, column = entries.coords
    kept = np.abs(entries.data) * unit[row] * unit[column] > _ROUNDING
    return csr_array((entries.data[kept], (row[kept], column[kept])), shape=gram.shape)


def _diagonal_of_inverse(gram: csr_array) -> FloatArray:
    unit = _units(gram)
    dense = gram.toarray() * unit * unit[:, None]
    np.fill_diagonal(dense, 1.0 + _RIDGE)
    inverse, _ = dpotri(cholesky(dense, lower=True), lower=1)
    return np.asarray(np.diag(inverse) * unit**2, dtype=np.float64)


def _columns(stamps: FloatArray, x: FloatArray, y: FloatArray, shape: tuple[int, int]) -> csc_array:
    """Stamps about the nearest pixels as the columns of a sparse matrix, (h w, n)."""
    pixels, inside = _pixels_of_stamps(x, y, stamps.shape[1] // 2, shape)
    begins = np.append(0, np.cumsum(inside.sum(axis=1)))
    values = stamps.reshape(pixels.shape)[inside]
    return csc_array((values, pixels[inside], begins), shape=(shape[0] * shape[1], len(stamps)))


def _pixels_of_stamps(
    x: FloatArray, y: FloatArray, half: int, shape: tuple[int, int]
) -> tuple[IntArray, BoolArray]:
    """Flat indices of the pixels of the stamps, row by row, 0 where not inside the frame."""
    reach = np.arange(-half, half + 1)
    dy, dx = (a.ravel() for a in np.meshgrid(reach, reach, indexing="ij"))
    return _pixels(x, y, dx, dy, shape)


def _pixels(
    x: FloatArray, y: FloatArray, dx: IntArray, dy: IntArray, shape: tuple[int, int]
) -> tuple[IntArray, BoolArray]:
    """Flat indices of the pixels at offsets from each star, 0 where not inside the frame."""
    # A position may be anything finite; far from the frame it is only kept from overflowing.
    ix = np.clip(np.rint(x), -(10**6), 10**6).astype(np.int64)[:, None] + dx
    iy = np.clip(np.rint(y), -(10**6), 10**6).astype(np.int64)[:, None] + dy
    inside = (ix >= 0) & (ix < shape[1]) & (iy >= 0) & (iy < shape[0])
    return np.where(inside, iy * shape[1] + ix, 0), inside


def _nearest(scene: Scene) -> IntArray:
    h, w = scene.data.shape
    iy = np.clip(np.rint(scene.y), 0, h - 1).astype(np.int64)
    ix = np.clip(np.rint(scene.x), 0, w - 1).astype(np.int64)
    return np.asarray(iy * w + ix)


def _sky(shape: tuple[int, int], spacing: float | None) -> csc_array:
    """Bilinear interpolation between nodes: weights of each node at each pixel, (h w, m)."""
    if spacing is None:
        return csc_array((shape[0] * shape[1], 0))
    rows, columns = (_tents(size, spacing) for size in shape)
    return csc_array(kron(rows, columns))


def _tents(size: int, spacing: float) -> csr_array:
    n = max(1, round(size / spacing)) + 1
    place = np.arange(size) * (n - 1) / max(size - 1, 1)
    left = np.minimum(place.astype(np.int64), n - 2)
    share = place - left
    return csr_array(
        (
            np.concatenate([1.0 - share, share]),
            (np.tile(np.arange(size), 2), np.concatenate([left, left + 1])),
        ),
        shape=(size, n),
    )
