"""Artificial image pairs (section 3.1, eq 22-27)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import correlate, gaussian_filter

from .errors import InputError

__all__ = [
    "SimulatedPair",
    "Stars",
    "draw_stars",
    "odd_kernels",
    "render_gaussian",
    "render_moffat",
    "simulate_pair",
    "simulate_with_kernel",
]

FloatArray = NDArray[np.float64]

READ_NOISE = 5.0
"""sigma_0 of section 3.1 [ADU]; the gain is 1 e-/ADU and the flat-field 1."""


@dataclass(frozen=True)
class Stars:
    """Positions [pixels] and fluxes [ADU] of stars, (n,) each."""

    x: FloatArray
    y: FloatArray
    flux: FloatArray

    def shifted(self, dx: float, dy: float) -> Stars:
        """The same stars moved by (dx, dy) pixels."""
        return Stars(self.x + dx, self.y + dy, self.flux)


@dataclass(frozen=True)
class SimulatedPair:
    """A reference and a target of the same stars, with their truth.

    Attributes
    ----------
    reference, target : ndarray
        Noisy images [ADU], (h, w).
    reference_noiseless, target_noiseless : ndarray
    reference_sigma, target_sigma : ndarray
        Standard deviations of the noise [ADU] (eq 22, 25).
    stars : Stars
        On the reference; the brightest one sits in the centre.
    phi_r, phi_k, phi_i : float
        Gaussian widths [pixels] of the reference's PSF, the kernel and the target's PSF (eq 24).
    shift : (float, float)
        (dx, dy) of the target's stars [pixels].
    sky_r, sky_i : float
        S_R and S_I [ADU].
    """

    reference: FloatArray
    target: FloatArray
    reference_noiseless: FloatArray
    target_noiseless: FloatArray
    reference_sigma: FloatArray
    target_sigma: FloatArray
    stars: Stars
    phi_r: float
    phi_k: float
    phi_i: float
    shift: tuple[float, float]
    sky_r: float
    sky_i: float

    @property
    def snr(self) -> float:
        """SNR of the target (eq 27)."""
        signal = (self.target_noiseless - self.sky_i).sum()
        return float(signal / np.sqrt((self.target_sigma**2).sum()))


def draw_stars(rng: np.random.Generator, shape: tuple[int, int], log_density: float) -> Stars:
    """Stars as in section 3.1 (ii)-(iii), the brightest one moved to the centre.

    Parameters
    ----------
    rng : numpy.random.Generator
    shape : (int, int)
        (h, w).
    log_density : float
        lg of the number of stars per 100 x 100 pixels.
    """
    h, w = shape
    n = max(1, round(10**log_density * h * w / 1e4))
    flux = rng.uniform(1e-9, 10**-4.5, n) ** (-2.0 / 3.0)
    x, y = rng.uniform(0, w - 1, n), rng.uniform(0, h - 1, n)
    brightest = int(np.argmax(flux))
    x[brightest], y[brightest] = 0.5 * (w - 1), 0.5 * (h - 1)
    return Stars(x, y, flux)


def render_gaussian(stars: Stars, shape: tuple[int, int], phi: float) -> FloatArray:
    """Image [ADU] of unit Gaussian PSFs of width ``phi`` [pixels], sampled at pixel centres."""
    y, x = (np.arange(n, dtype=np.float64)[:, None] for n in shape)
    norm = 1.0 / np.sqrt(2 * np.pi * phi**2)
    profile_y = norm * np.exp(-0.5 * ((y - stars.y) / phi) ** 2)
    profile_x = norm * np.exp(-0.5 * ((x - stars.x) / phi) ** 2)
    image: FloatArray = (profile_y * stars.flux) @ profile_x.T
    return image


def render_moffat(
    stars: Stars,
    shape: tuple[int, int],
    fwhm: float,
    ellipticity: float = 0.0,
    angle: float = 0.0,
    coma: float = 0.0,
    beta: float = 3.0,
) -> FloatArray:
    """Image [ADU] of Moffat PSFs, elongated and lopsided at will, that sum to one on their stamp.

    Parameters
    ----------
    stars : Stars
    shape : (int, int)
        (h, w).
    fwhm : float
        Geometric mean of the full widths at half maximum along both axes [pixels].
    ellipticity : float
        1 - b/a of the isophotes.
    angle : float
        Of the long axis, from +x towards +y [degrees].
    coma : float
        Share of the flux that lies in a second profile, one FWHM away along the long axis.
    beta : float
        Slope of the wings.
    """
    half = int(np.ceil(6.0 * fwhm))
    offsets = np.arange(-half, half + 1)
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    ratio = np.sqrt(1.0 - ellipticity)
    alpha = fwhm / (2.0 * np.sqrt(2.0 ** (1.0 / beta) - 1.0))
    image = np.zeros((shape[0] + 2 * half, shape[1] + 2 * half))
    for x, y, flux in zip(stars.x, stars.y, stars.flux, strict=True):
        ix, iy = round(x), round(y)
        if not (-half <= ix < shape[1] + half and -half <= iy < shape[0] + half):
            continue
        stamp = np.zeros((offsets.size, offsets.size))
        for share, shift in ((1.0 - coma, 0.0), (coma, fwhm)):
            dx = offsets[None, :] + (ix - x) - shift * cos
            dy = offsets[:, None] + (iy - y) - shift * sin
            along, across = dx * cos + dy * sin, dy * cos - dx * sin
            r2 = (along * ratio) ** 2 + (across / ratio) ** 2
            profile = (1.0 + r2 / alpha**2) ** -beta
            stamp += share * profile / profile.sum()
        y0, x0 = iy, ix  # corner of the stamp in the padded image
        top, left = max(0, -y0), max(0, -x0)
        bottom = min(stamp.shape[0], image.shape[0] - y0)
        right = min(stamp.shape[1], image.shape[1] - x0)
        image[y0 + top : y0 + bottom, x0 + left : x0 + right] += (
            flux * stamp[top:bottom, left:right]
        )
    return image[half : half + shape[0], half : half + shape[1]]


def simulate_pair(
    seed: int | np.random.Generator,
    shape: tuple[int, int] = (142, 142),
    *,
    phi_r: float | None = None,
    phi_k: float | None = None,
    reference_noise: float = 10**-0.5,
) -> SimulatedPair:
    """One image pair drawn as section 3.1 prescribes.

    Parameters
    ----------
    seed : int or numpy.random.Generator
    shape : (int, int)
        (h, w); 142 x 142 in the paper.
    phi_r, phi_k : float, optional
        Widths [pixels] of the reference's PSF and of the kernel; drawn from U(0.5, 2.5) if None.
    reference_noise : float
        Standard deviation of the reference's noise relative to a single exposure; 10^-1/2 in
        eq 22, and 0 for a reference without noise.
    """
    if reference_noise < 0:
        raise InputError(f"reference_noise must be at least 0, got {reference_noise}.")
    rng = np.random.default_rng(seed)
    drawn_r, drawn_k = rng.uniform(0.5, 2.5, 2)
    phi_r, phi_k = drawn_r if phi_r is None else phi_r, drawn_k if phi_k is None else phi_k
    stars = draw_stars(rng, shape, rng.uniform(0, 3))
    sky_r, sky_i = rng.uniform(10, 1000, 2)
    dx, dy = rng.uniform(-0.5, 0.5, 2)
    phi_i = float(np.hypot(phi_r, phi_k))

    reference = render_gaussian(stars, shape, phi_r) + sky_r
    target = render_gaussian(stars.shifted(dx, dy), shape, phi_i) + sky_i
    return SimulatedPair(
        **_observed(rng, reference, target, reference_noise),
        stars=stars,
        phi_r=float(phi_r),
        phi_k=float(phi_k),
        phi_i=phi_i,
        shift=(float(dx), float(dy)),
        sky_r=float(sky_r),
        sky_i=float(sky_i),
    )


def _observed(
    rng: np.random.Generator, reference: FloatArray, target: FloatArray, reference_noise: float
) -> dict[str, Any]:
    """Images with noise drawn as in eq 22, 23, 25 and 26, and their truth."""
    reference_sigma = reference_noise * np.sqrt(READ_NOISE**2 + reference)
    target_sigma = np.sqrt(READ_NOISE**2 + np.maximum(target, 0.0))
    return {
        "reference": reference + rng.standard_normal(reference.shape) * reference_sigma,
        "target": target + rng.standard_normal(target.shape) * target_sigma,
        "reference_noiseless": reference,
        "target_noiseless": target,
        "reference_sigma": reference_sigma,
        "target_sigma": target_sigma,
    }


def simulate_with_kernel(
    seed: int,
    kernel: FloatArray,
    shape: tuple[int, int] = (142, 142),
    reference_noise: float = 10**-0.5,
) -> SimulatedPair:
    """An image pair whose kernel is exactly the given one, of any form and sum.

    The reference is that of section 3.1; the noiseless target is its correlation with the kernel
    (eq 2) plus a sky.

    Parameters
    ----------
    seed : int
        Two calls with one seed give the same reference.
    kernel : ndarray
        K_lm, (ky, kx), odd; its sum is P.
    shape : (int, int)
        (h, w).
    reference_noise : float
        As for :func:`simulate_pair`.
    """
    kernel = np.asarray(kernel, dtype=np.float64)
    if kernel.ndim != 2 or any(n % 2 == 0 for n in kernel.shape) or not np.isfinite(kernel).all():
        raise InputError(
            f"The kernel must be a finite array with two odd sides, got shape {kernel.shape}."
        )
    n_y, n_x = (n // 2 for n in kernel.shape)
    wide = simulate_pair(seed, (shape[0] + 2 * n_y, shape[1] + 2 * n_x))
    rng = np.random.default_rng([seed, 1])
    inner = slice(n_y, n_y + shape[0]), slice(n_x, n_x + shape[1])
    stars = wide.stars.shifted(-n_x, -n_y)
    reference = wide.reference_noiseless[inner]
    light = correlate(wide.reference_noiseless - wide.sky_r, kernel, mode="constant")[inner]
    return replace(
        wide,
        **_observed(rng, reference, light + wide.sky_i, reference_noise),
        stars=stars,
        phi_k=float("nan"),
        phi_i=float("nan"),
        shift=(0.0, 0.0),
    )


def odd_kernels(size: int = 19) -> dict[str, FloatArray]:
    """Kernels that are not round Gaussians, by name, (size, size) each with sum 1."""
    half = size // 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float64)
    r, angle = np.hypot(x, y), np.arctan2(y, x)

    def spot(x0: float, y0: float, sigma: float) -> FloatArray:
        blob: FloatArray = np.exp(-0.5 * ((x - x0) ** 2 + (y - y0) ** 2) / sigma**2)
        blob /= blob.sum()
        return blob

    triangle = np.ones_like(x)
    for degrees in (90.0, 210.0, 330.0):
        a = np.radians(degrees)
        triangle *= x * np.cos(a) + y * np.sin(a) < 2.5
    along = x * np.cos(0.5) + y * np.sin(0.5)
    across = y * np.cos(0.5) - x * np.sin(0.5)
    ring = np.exp(-0.5 * ((r - 5.0) / 0.7) ** 2)
    kernels = {
        "triangle": gaussian_filter(triangle, 0.7),
        "trefoil": np.exp(-0.5 * (r / (2.0 * (1.0 + 0.4 * np.cos(3.0 * angle)))) ** 2),
        "double": 0.65 * spot(-3.5, 1.0, 1.2) + 0.35 * spot(3.5, -1.0, 1.2),
        "edge": spot(6.0, -5.0, 1.5),
        "streak": np.exp(-0.5 * ((along / 4.0) ** 2 + (across / 0.8) ** 2)),
        "delta": (r == 0).astype(np.float64),
        "ring": 0.8 * spot(0.0, 0.0, 1.2) + 0.2 * ring / ring.sum(),
    }
    return {name: kernel / kernel.sum() for name, kernel in kernels.items()}
