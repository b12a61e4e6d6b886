"""Pairs whose noiseless reference is a stamp of a real frame, and whose truth is still known.

The frame, smoothed by a Gaussian of one pixel to quieten its own noise, counts as the noiseless
reference. What noise is left in it is structure of the truth and enters both images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, correlate, gaussian_filter

from ..errors import InputError
from ..frame import Frame
from ..io import as_frame
from ..measure import measure_seeing
from ..metrics import FWHM_PER_SIGMA
from ..noise import CCDNoise
from ..simulate import SimulatedPair, Stars, render_gaussian
from .scenarios import Case, Scenario, ScenarioName, lopsided_kernel

__all__ = ["real_frame_scenario"]

FloatArray = NDArray[np.float64]

SIDE, KERNEL = 142, 19
WIDE = SIDE + KERNEL - 1
SMOOTHING = 1.0  # pixels


def real_frame_scenario(path: Path, saturation: float | None = None) -> Scenario:
    """Stamps of a frame, with noise at its own gain and read noise (eq 22 to 26).

    Raises
    ------
    InputError
        The frame does not say its gain and read noise, has no stars to measure, or no stamp of
        160 x 160 pixels is free of masked pixels.
    ReadError
        The file cannot be read.
    """
    field = _field(path.resolve(), saturation)
    return Scenario(
        f"{ScenarioName.REAL_FRAME}-{path.name.split('.')[0]}",
        f"Stamps of {path.name}, correlated with Gaussian and lopsided kernels, P from 0.03 to 1.",
        partial(_case, path.resolve(), saturation),
        kernel=KERNEL,
        noise=CCDNoise(field.read_noise, field.gain),
    )


@dataclass(frozen=True)
class _Field:
    """A smoothed frame [ADU], its sky [ADU], corners of clean stamps (n, 2), and its camera."""

    image: FloatArray
    sky: float
    corners: NDArray[np.int64]
    phi: float
    read_noise: float
    gain: float


@cache
def _field(path: Path, saturation: float | None) -> _Field:
    frame = as_frame(path, saturation=saturation)
    gain, read_noise = frame.detector.gain, frame.detector.read_noise
    if gain is None or read_noise is None:
        raise InputError(
            f"{frame.name} does not say its gain and read noise, so no noise can be drawn for it; "
            "use a frame with both in its header."
        )
    data, bad = frame.data.double().numpy(), frame.mask.numpy()
    image = gaussian_filter(np.where(bad, np.median(data[~bad]), data), SMOOTHING)
    smooth = Frame(torch.from_numpy(image), frame.flags)
    seeing = measure_seeing(smooth)
    if seeing is None:
        raise InputError(f"No three stars of {frame.name} can be measured; use a sharper frame.")
    spoilt = binary_dilation(bad, iterations=math.ceil(4 * SMOOTHING))
    corners = _clean_corners(spoilt)
    if not len(corners):
        raise InputError(
            f"No stamp of {WIDE} x {WIDE} pixels of {frame.name}, {frame.shape[0]} x "
            f"{frame.shape[1]}, is free of masked pixels; use a larger or a cleaner frame."
        )
    sky = float(np.percentile(image[~spoilt], 1.0))
    return _Field(image, sky, corners, seeing.fwhm / FWHM_PER_SIGMA, read_noise / gain, gain)


def _clean_corners(bad: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(top, left) of every stamp without a bad pixel, (n, 2)."""
    if min(bad.shape) < WIDE:
        return np.zeros((0, 2), dtype=np.int64)
    total = np.pad(bad.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    count = total[WIDE:, WIDE:] - total[:-WIDE, WIDE:] - total[WIDE:, :-WIDE]
    return np.argwhere(count + total[:-WIDE, :-WIDE] == 0)


def _case(path: Path, saturation: float | None, seed: int) -> Case:
    """A stamp, a kernel, P and a sky drawn for the seed.

    Even seeds have a Gaussian kernel of phi_K from U(0.5, 2.5), shifted by up to half a pixel, odd
    ones a lopsided kernel; lg P is from U(-1.5, 0) and the sky from U(10, 1000) as in section 3.1.
    """
    field, rng = _field(path, saturation), np.random.default_rng([seed, 4])
    top, left = field.corners[rng.integers(len(field.corners))]
    kernel, phi_k = lopsided_kernel(rng) if seed % 2 else _gaussian_kernel(rng)
    scale = float(10 ** rng.uniform(-1.5, 0.0))
    sky_i = float(rng.uniform(10.0, 1000.0))
    wide, half = field.image[top : top + WIDE, left : left + WIDE], KERNEL // 2
    reference = wide[half:-half, half:-half].copy()
    light = correlate(wide - field.sky, kernel, mode="constant")[half:-half, half:-half]
    target = scale * light + sky_i
    reference_sigma = math.sqrt(0.1) * _sigma(reference, field)
    target_sigma = _sigma(target, field)
    pair = SimulatedPair(
        reference=reference + rng.standard_normal(reference.shape) * reference_sigma,
        target=target + rng.standard_normal(target.shape) * target_sigma,
        reference_noiseless=reference,
        target_noiseless=target,
        reference_sigma=reference_sigma,
        target_sigma=target_sigma,
        stars=_brightest(reference - field.sky, round(4.5 * math.hypot(field.phi, 2.5))),
        phi_r=field.phi,
        phi_k=phi_k,
        phi_i=math.hypot(field.phi, phi_k),
        shift=(0.0, 0.0),
        sky_r=field.sky,
        sky_i=sky_i,
    )
    return Case(pair, scale, scale * kernel)


def _sigma(image: FloatArray, field: _Field) -> FloatArray:
    """Eq 6 at the gain and the read noise of the frame."""
    sigma: FloatArray = np.sqrt(field.read_noise**2 + np.maximum(image, 0.0) / field.gain)
    return sigma


def _gaussian_kernel(rng: np.random.Generator) -> tuple[FloatArray, float]:
    phi_k = float(rng.uniform(0.5, 2.5))
    x, y = KERNEL // 2 + rng.uniform(-0.5, 0.5, 2)
    spot = Stars(np.array([x]), np.array([y]), np.ones(1))
    kernel = render_gaussian(spot, (KERNEL, KERNEL), phi_k)
    return kernel / kernel.sum(), phi_k


def _brightest(light: FloatArray, margin: int) -> Stars:
    """The brightest peak away from the edges, at the centroid of its 5 x 5 pixels."""
    inner = light[margin:-margin, margin:-margin]
    y, x = (int(i) + margin for i in np.unravel_index(inner.argmax(), inner.shape))
    box = light[y - 2 : y + 3, x - 2 : x + 3]
    above = box - box.min()
    dy, dx = np.mgrid[-2:3, -2:3]
    total = above.sum()
    return Stars(
        np.array([x + (dx * above).sum() / total]),
        np.array([y + (dy * above).sum() / total]),
        np.array([float(box.sum())]),
    )
