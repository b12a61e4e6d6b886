"""Artificial image pairs (section 3.1, eq 22-27)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.ndimage import correlate

from ..errors import InputError
from .psf import light_inside, render_gaussian
from .stars import FloatArray, Reading, Stars, draw_stars

__all__ = [
    "READ_NOISE",
    "SimulatedPair",
    "simulate_pair",
    "simulate_pairs",
    "simulate_with_kernel",
]

READ_NOISE = 5.0
"""sigma_0 of section 3.1 [ADU]; the gain is 1 e-/ADU and the flat-field 1."""


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


def simulate_pair(
    seed: int | np.random.Generator,
    shape: tuple[int, int] = (142, 142),
    *,
    phi_r: float | None = None,
    phi_k: float | None = None,
    reference_noise: float = 10**-0.5,
    log_density: float | None = None,
    sky: float | None = None,
    reading: Reading | str = Reading.TEXT,
) -> SimulatedPair:
    """One image pair drawn as section 3.1 prescribes.

    The large frames of section 5.2 are ``simulate_pair(seed, (4000, 4000), phi_r=1.0, phi_k=1.5,
    log_density=1.5, sky=100.0)``.

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
    log_density : float, optional
        lg of the number of stars per 100 x 100 pixels; drawn from U(0, 3) if None.
    sky : float, optional
        Sky of both images [ADU]; drawn from U(10, 1000) if None.
    reading : {"text", "notebook"}
        Of section 3.1: as it is written, or as the numbers of Table 2 were made
        (``Reading``).
    """
    if reference_noise < 0:
        raise InputError(f"reference_noise must be at least 0, got {reference_noise}.")
    rng = np.random.default_rng(seed)
    drawn_r, drawn_k = rng.uniform(0.5, 2.5, 2)
    phi_r, phi_k = drawn_r if phi_r is None else phi_r, drawn_k if phi_k is None else phi_k
    drawn_density = rng.uniform(0, 3)
    density = drawn_density if log_density is None else log_density
    stars = draw_stars(rng, shape, density, reading)
    as_made = reading == Reading.NOTEBOOK
    sky_r, sky_i = rng.uniform(10, 1000, 2)
    if as_made:
        sky_i = sky_r
    if sky is not None:
        sky_r = sky_i = sky
    dx, dy = rng.uniform(-0.5, 0.5, 2)
    phi_i = float(np.hypot(phi_r, phi_k))

    reference, target = (
        render_gaussian(_kept_inside(placed, shape, phi) if as_made else placed, shape, phi)
        for placed, phi in ((stars, phi_r), (stars.shifted(dx, dy), phi_i))
    )
    reference += sky_r
    target += sky_i
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


def _kept_inside(stars: Stars, shape: tuple[int, int], phi: float) -> Stars:
    """The stars so bright that what the pixels of the image catch of each is its flux."""
    return replace(stars, flux=stars.flux / light_inside(stars, shape, phi))


def _observed(
    rng: np.random.Generator, reference: FloatArray, target: FloatArray, reference_noise: float
) -> dict[str, Any]:
    """Images with noise drawn as in eq 22, 23, 25 and 26, and their truth."""
    reference_sigma = reference_noise * np.sqrt(READ_NOISE**2 + reference)
    target_sigma = np.sqrt(READ_NOISE**2 + np.maximum(target, 0.0))
    return {
        "reference": _noisy(rng, reference, reference_sigma),
        "target": _noisy(rng, target, target_sigma),
        "reference_noiseless": reference,
        "target_noiseless": target,
        "reference_sigma": reference_sigma,
        "target_sigma": target_sigma,
    }


def _noisy(rng: np.random.Generator, image: FloatArray, sigma: FloatArray) -> FloatArray:
    """``image`` with normal noise (eq 23, 26); made in place, for large frames."""
    noise = rng.standard_normal(image.shape)
    noise *= sigma
    noise += image
    return noise


def simulate_pairs(
    seeds: Iterable[int],
    shape: tuple[int, int] = (142, 142),
    *,
    phi_r: float | None = None,
    phi_k: float | None = None,
    reference_noise: float = 10**-0.5,
    log_density: float | None = None,
    sky: float | None = None,
    reading: Reading | str = Reading.TEXT,
) -> Iterator[SimulatedPair]:
    """A stream of pairs, one for each seed, of which only one is held at a time.

    Each is what :func:`simulate_pair` gives for its seed, so that a stream can be cut, continued
    or shared among processes.
    """
    for seed in seeds:
        yield simulate_pair(
            seed, shape, phi_r=phi_r, phi_k=phi_k, reference_noise=reference_noise,
            log_density=log_density, sky=sky, reading=reading,
        )  # fmt: skip


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
