"""The image pairs of the speed tests (sections 5.1 and 5.2), simulated at the size asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from ..background import PolynomialBackground
from ..image_model import ImageModel
from ..kernel import DeltaKernel
from ..likelihood import Gaussian, Huber, Likelihood
from ..noise import CCDNoise, EMCCDNoise, NoiseModel
from ..objective import Objective
from ..simulate import READ_NOISE, Stars, draw_stars, render_gaussian, render_moffat

__all__ = ["FIELD", "FRAME", "Scene", "ccd_scene", "emccd_scene"]

FloatArray = NDArray[np.float64]

FIELD = 4000  # side of the synthetic field of section 5.2 [pixels]
FRAME = 482  # side of the largest crop of section 5.1 whose size the paper states [pixels]
LOG_DENSITY = 1.5  # lg of the stars per 100 x 100 pixels (section 5.2)
SKY = 100.0  # ADU (section 5.2)

EM_PHI_R, EM_PHI_I = 1.82, 3.18  # width of the reference, median width of the targets (section 5.1)
EM_GAIN = 25.8 / 300.0  # photoelectrons per ADU of that camera
EM_SKY = 1000.0  # ADU; with this flux scale the SNR (eq 27) is a few hundred
EM_FLUX = 30.0

_SIGMA = 2.0 * np.sqrt(2.0 * np.log(2.0))  # FWHM of a Gaussian in units of its width


@dataclass(frozen=True)
class Scene:
    """A reference and a target in main memory, and what is known of them.

    Attributes
    ----------
    reference : torch.Tensor
        R [ADU] less its median, (n, n), float32.
    target : torch.Tensor
        I [ADU], (n, n), float32.
    noise : NoiseModel
    likelihood : Likelihood
        Of the maximum likelihood fits.
    phi_k, phi_i : float
        Widths [pixels] of the kernel, sqrt(phi_I^2 - phi_R^2), and of the target's PSF.
    snr : float
        Of the target (eq 27).
    """

    reference: torch.Tensor
    target: torch.Tensor
    noise: NoiseModel
    likelihood: Likelihood
    phi_k: float
    phi_i: float
    snr: float

    def objective(self, kernel: int, device: str, robust: bool = True) -> Objective:
        """The fit of a kernel of this size in float32; least squares unless ``robust``."""
        model = ImageModel(self.reference.to(device), DeltaKernel(kernel), PolynomialBackground(0))
        likelihood = self.likelihood if robust else Gaussian()
        return Objective(
            model, self.target.to(device), model.valid, self.noise, likelihood,
            dtype=torch.float32,
        )  # fmt: skip


@lru_cache(maxsize=1)
def ccd_scene(n: int, seed: int = 5) -> Scene:
    """The central n x n pixels of the field of section 5.2."""
    rng = np.random.default_rng(seed)
    stars = draw_stars(rng, (FIELD, FIELD), LOG_DENSITY)
    corner = (FIELD - n) // 2
    stars = stars.shifted(-corner, -corner)
    phi_r, phi_k = 1.0, 1.5
    phi_i = float(np.hypot(phi_r, phi_k))
    images = [_render(stars, n, phi) + SKY for phi in (phi_r, phi_i)]
    noise = CCDNoise(READ_NOISE)
    rng = np.random.default_rng([seed, n])
    return _observed(rng, images, SKY, 10**-0.5, noise, Gaussian(), phi_k, phi_i)


@lru_cache(maxsize=1)
def emccd_scene(n: int, number: int = 0, seed: int = 6) -> Scene:
    """The central n x n pixels of one of the targets of a campaign like that of section 5.1.

    Moffat profiles with wings, elongated and lopsided, each target with its own; photon noise of
    an EMCCD (eq 7), the same for the reference; the brightest star has changed by half. Widths of
    targets are drawn from U(2.18, 4.18) pixels, so that their median is the paper's.
    """
    rng = np.random.default_rng(seed)
    stars = draw_stars(rng, (FRAME, FRAME), LOG_DENSITY)
    stars = replace(stars, flux=EM_FLUX * stars.flux)
    reference = _irregular(np.random.default_rng([seed, 0]), stars, EM_PHI_R)
    rng = np.random.default_rng([seed, 1, number])
    phi_i = rng.uniform(EM_PHI_I - 1.0, EM_PHI_I + 1.0)
    flux = rng.uniform(0.7, 1.1) * stars.flux
    flux[int(np.argmax(flux))] *= 1.5
    target = _irregular(rng, replace(stars, flux=flux), phi_i)
    corner = (FRAME - n) // 2
    inner = slice(corner, corner + n)
    images = [image[inner, inner] + EM_SKY for image in (reference, target)]
    phi_k = float(np.sqrt(phi_i**2 - EM_PHI_R**2))
    noise = EMCCDNoise(EM_GAIN)
    return _observed(rng, images, EM_SKY, 1.0, noise, Huber(tolerance=0.0), phi_k, float(phi_i))


def _irregular(rng: np.random.Generator, stars: Stars, phi: float) -> FloatArray:
    return render_moffat(
        stars, (FRAME, FRAME), _SIGMA * phi, rng.uniform(0.0, 0.2), rng.uniform(0.0, 180.0),
        rng.uniform(0.05, 0.2),
    )  # fmt: skip


def _observed(
    rng: np.random.Generator,
    images: list[FloatArray],
    sky: float,
    reference_noise: float,
    noise: NoiseModel,
    likelihood: Likelihood,
    phi_k: float,
    phi_i: float,
) -> Scene:
    """Noise for a noiseless reference and target; ``reference_noise`` as in eq 22."""
    exact = [torch.from_numpy(np.ascontiguousarray(image)) for image in images]
    sigmas = [noise.variance(image).sqrt() for image in exact]
    snr = float((exact[1] - sky).sum() / (sigmas[1] ** 2).sum().sqrt())
    reference, target = (
        image + scale * sigma * torch.from_numpy(rng.standard_normal(image.shape))
        for image, sigma, scale in zip(exact, sigmas, (reference_noise, 1.0), strict=True)
    )
    return Scene(
        (reference - reference.median()).float(), target.float(), noise, likelihood,
        phi_k, phi_i, snr,
    )  # fmt: skip


def _render(stars: Stars, n: int, phi: float, block: int = 250) -> FloatArray:
    """As :func:`render_gaussian`, block by block, each with the stars within 9 ``phi`` of it."""
    image = np.empty((n, n))
    reach = 9.0 * phi
    for top in range(0, n, block):
        for left in range(0, n, block):
            bottom, right = min(top + block, n), min(left + block, n)
            near = (stars.y > top - reach) & (stars.y < bottom + reach)
            near &= (stars.x > left - reach) & (stars.x < right + reach)
            some = Stars(stars.x[near] - left, stars.y[near] - top, stars.flux[near])
            image[top:bottom, left:right] = render_gaussian(some, (bottom - top, right - left), phi)
    return image
