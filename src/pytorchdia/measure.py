"""What a frame shows of itself: its sky, its noise, its seeing, and the kernel size to use."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from astropy.stats import mad_std, sigma_clip
from numpy.typing import NDArray
from photutils.background import Background2D, MedianBackground
from photutils.detection import find_peaks
from photutils.psf import fit_fwhm
from scipy.ndimage import binary_dilation, convolve, uniform_filter

from .errors import Finding, FlatImageError, InputError, TooFewPixelsError
from .frame import Frame
from .kernel import DeltaKernel
from .metrics import FWHM_PER_SIGMA, sample
from .noise import CCDNoise, FixedVariance, NoiseModel

__all__ = [
    "Seeing",
    "Sky",
    "background_mesh",
    "choose_kernel",
    "default_noise",
    "flattened",
    "kernel_size",
    "measure_seeing",
    "measure_sky",
    "reference_level",
]

FloatArray = NDArray[np.float64]

# Ratios of measured to expected variance beyond which the sky contradicts the noise model. Crowded
# undersampled stars raise the measured one as well, so a known gain is only overridden where the
# level itself says that the sky is gone: below this many times its scatter.
_SKY_GONE = 0.25
_SKY_TOO_QUIET, _SKY_TOO_LOUD = 1.0 / 1.5, 2.0
_DARK_SHARE = 0.2  # of the frame, where the noise of the sky is measured: far from crowded stars,
_DARK_PIXELS = 2000  # but this many pixels, up to half the frame


@dataclass(frozen=True)
class Sky:
    """The darkest fifth of a frame.

    Attributes
    ----------
    level : float
        Median of all good pixels [ADU].
    dark_level : float
        Median of the darkest fifth of the frame [ADU], where the scatter was measured.
    scatter : float
        Standard deviation of the noise from pixel to pixel [ADU], with gradients and stars taken
        out by a second difference. Lower than the true noise where the image was resampled.
    """

    level: float
    dark_level: float
    scatter: float


@dataclass(frozen=True)
class Seeing:
    """Width of the stars.

    Attributes
    ----------
    fwhm : float
        Median full width at half maximum [pixels].
    spread : float
        Scatter of single stars about it [pixels].
    n_stars : int
        Number of stars measured.
    """

    fwhm: float
    spread: float
    n_stars: int


def reference_level(frame: Frame) -> float:
    """Median of the good pixels [ADU], the background taken off the reference (section 2.9).

    Of a large frame a regular sample is taken (:func:`~pytorchdia.metrics.sample`).
    """
    good = sample(frame.data)[~sample(frame.mask)]
    if not len(good):
        good = frame.data[~frame.mask]
    if not len(good):
        raise TooFewPixelsError(
            f"All {frame.mask.numel()} pixels of {frame.name} are masked, saturated or not finite; "
            "check the mask and the saturation level."
        )
    return float(np.median(good.numpy().astype(np.float64)))


def measure_sky(frame: Frame) -> Sky:
    """Level and scatter of the sky.

    Raises
    ------
    TooFewPixelsError
        Fewer than 20 good pixels lie together.
    """
    level = reference_level(frame)
    data, bad = frame.data.double().numpy(), frame.mask.numpy()
    mask = np.array([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]])
    # The response of this second difference to white noise of unit variance is 6 (Immerkaer 1996).
    second = convolve(data, mask, mode="nearest") / 6.0
    good = ~binary_dilation(bad, np.ones((3, 3)))
    good[[0, -1], :] = good[:, [0, -1]] = False
    # Chosen on a smoothed image, so that the choice does not clip the noise it is to measure.
    smooth = uniform_filter(np.where(bad, level, data), 9)
    share = np.clip(_DARK_PIXELS / max(good.sum(), 1), _DARK_SHARE, 0.5)
    dark = good & (smooth <= np.quantile(smooth[good], share)) if good.any() else good
    if dark.sum() < 20:
        raise TooFewPixelsError(
            f"Only {int(dark.sum())} good sky pixels of {frame.name} lie together, too few to "
            "measure its noise; give the noise model (gain and read noise, or a variance)."
        )
    return Sky(level, float(np.median(data[dark])), float(mad_std(second[dark])))


def default_noise(
    frame: Frame, *, flat: Any = None, offset: float | None = None
) -> tuple[NoiseModel, tuple[Finding, ...]]:
    """The noise model of a frame from what is known of it, checked against its own sky.

    In order: the frame's variance; eq 6 with the header's gain and read noise; eq 6 with the gain
    that explains the scatter of the sky; a constant variance. Whatever had to be guessed is a
    finding of level "warning".

    If the sky scatters clearly more than the gain and the read noise allow, its light has been
    subtracted and its noise has not: eq 6 then gets the ``offset`` that restores it.

    Parameters
    ----------
    frame : Frame
    flat : array_like, optional
        Master flat-field of eq 6, (h, w).
    offset : float, optional
        Level [ADU] known to have been taken off the frame; None finds out as said above.

    Raises
    ------
    FlatImageError, TooFewPixelsError
        There is no gain and the sky cannot be measured.
    """
    if frame.variance is not None:
        return FixedVariance(frame.variance), ()
    if frame.detector.gain is not None:
        return _noise_from_detector(frame, flat, offset)
    noise, findings = _noise_from_sky(frame, measure_sky(frame))
    if isinstance(noise, CCDNoise):
        noise = replace(noise, flat=flat)
    return noise, findings


def _noise_from_detector(
    frame: Frame, flat: Any, offset: float | None
) -> tuple[NoiseModel, tuple[Finding, ...]]:
    gain, read_noise = frame.detector.gain, frame.detector.read_noise
    assert gain is not None
    findings: list[Finding] = []
    if read_noise is None:
        read_noise = 0.0
        findings.append(
            Finding(
                "read-noise-unknown",
                f"{frame.name} gives no read noise; 0 was taken, which is harmless where the sky "
                "is bright. Give the read noise if it is not.",
            )
        )
    noise = CCDNoise(read_noise / gain, gain, flat, offset or 0.0)
    if offset is not None:
        return noise, tuple(findings)
    try:
        sky = measure_sky(frame)
    except TooFewPixelsError:
        return noise, tuple(findings)  # known from the header; only the check is not possible
    bare = CCDNoise(noise.read_noise, gain)  # a flat-field averages one
    expected = float(bare.variance(torch.tensor(sky.dark_level, dtype=torch.float64)))
    ratio = sky.scatter**2 / expected
    if ratio > _SKY_TOO_LOUD and sky.dark_level < _SKY_GONE * sky.scatter:
        offset = gain * (sky.scatter**2 - noise.read_noise**2) - sky.dark_level
        noise = replace(noise, offset=offset)
        findings.append(
            Finding(
                "sky-restored",
                f"The sky of {frame.name} (level {sky.dark_level:.4g} ADU) scatters by "
                f"{sky.scatter:.4g} ADU where gain and read noise allow {math.sqrt(expected):.4g}; "
                f"a subtracted sky of {offset:.5g} ADU was added to the noise model. If the sky "
                "was not subtracted, the gain or the unit is wrong: give the gain.",
                "warning",
            )
        )
    elif ratio > _SKY_TOO_LOUD:
        findings.append(
            Finding(
                "sky-too-loud",
                f"The sky of {frame.name} (level {sky.dark_level:.4g} ADU) scatters by "
                f"{sky.scatter:.4g} ADU from pixel to pixel where gain and read noise predict "
                f"{math.sqrt(expected):.4g}: faint sharp stars are crowded, or part of the sky was "
                "subtracted (give the sky offset), or the gain is wrong. Gain and read noise were "
                "used as they are.",
                "warning",
            )
        )
    elif ratio < _SKY_TOO_QUIET:
        findings.append(
            Finding(
                "sky-too-quiet",
                f"The sky of {frame.name} scatters by {sky.scatter:.4g} ADU from pixel to pixel "
                f"where gain and read noise predict {math.sqrt(expected):.4g}: the frame was "
                "resampled (its noise is correlated, and the error bars do not know) or the gain "
                "is wrong.",
                "warning",
            )
        )
    return noise, tuple(findings)


def _noise_from_sky(frame: Frame, sky: Sky) -> tuple[NoiseModel, tuple[Finding, ...]]:
    if not sky.scatter > 0:
        raise FlatImageError(
            f"The sky of {frame.name} does not scatter at all, so its noise cannot be measured; "
            "give the noise model (gain and read noise, or a variance)."
        )
    gain = sky.dark_level / sky.scatter**2
    if sky.dark_level > 3.0 * sky.scatter:
        finding = Finding(
            "noise-estimated",
            f"{frame.name} gives no gain; {gain:.3g} e-/ADU and no read noise explain the scatter "
            f"of {sky.scatter:.4g} ADU of its sky of {sky.dark_level:.5g} ADU and were used. This "
            "is wrong if part of the sky was subtracted: give gain and read noise.",
            "warning",
        )
        return CCDNoise(0.0, gain), (finding,)
    finding = Finding(
        "noise-constant",
        f"{frame.name} gives no gain and its sky level of {sky.dark_level:.4g} ADU does not tell "
        f"one; the scatter of the sky, {sky.scatter:.4g} ADU, was used for all pixels. The noise "
        "of bright stars is underestimated: give gain and read noise.",
        "warning",
    )
    return FixedVariance(sky.scatter**2), (finding,)


def measure_seeing(frame: Frame, max_stars: int = 40) -> Seeing | None:
    """FWHM of the brightest isolated stars by Gaussian fits; None if fewer than 3 can be fitted.

    Parameters
    ----------
    frame : Frame
    max_stars : int
        Largest number of stars to fit.
    """
    bad = frame.mask.numpy()
    data = flattened(frame)
    noise = mad_std(data[~bad]) if (~bad).any() else 0.0
    if not noise > 0:
        return None
    size = 11
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "no peaks found" is an answer here
        peaks = find_peaks(
            data, threshold=8.0 * noise, box_size=size, mask=bad, border_width=size // 2
        )
    if peaks is None or not len(peaks):
        return None
    peaks.sort("peak_value", reverse=True)
    x, y = np.asarray(peaks["x_peak"]), np.asarray(peaks["y_peak"])
    clean = ~binary_dilation(bad, np.ones((size, size)))[y, x]
    positions = np.column_stack([x, y])[clean][:max_stars]
    widths = np.array([])
    for shape in (size, None):
        if len(positions) < 3:
            return None
        fit_size = shape or _odd(3.0 * float(np.median(widths)), least=5)
        widths, kept = _fit_widths(data, positions, bad, fit_size)
        positions = positions[kept]
        widths = widths[kept]
    if len(widths) < 3:
        return None
    return Seeing(float(np.median(widths)), float(mad_std(widths)), len(widths))


def _fit_widths(
    data: FloatArray, positions: NDArray[np.int_], bad: NDArray[np.bool_], size: int
) -> tuple[FloatArray, NDArray[np.bool_]]:
    """FWHM at each position, and which of them are believable."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # single fits may fail: they are dropped below
        widths = np.atleast_1d(
            fit_fwhm(data, xypos=positions, fwhm=size / 3.0, fit_shape=size, mask=bad)
        ).astype(np.float64)
    kept = np.isfinite(widths) & (widths > 0.5) & (widths < 2.0 * size)
    if kept.any():
        clipped = sigma_clip(widths[kept], sigma=3, maxiters=5, cenfunc="median", stdfunc="mad_std")
        kept[np.flatnonzero(kept)[np.ma.getmaskarray(clipped)]] = False
    return widths, kept


def flattened(frame: Frame) -> FloatArray:
    """The frame without its slowly varying background [ADU], (h, w); 0 at bad pixels."""
    bad, data = frame.mask.numpy(), frame.data.double().numpy()
    box = max(16, min(64, min(data.shape) // 4))
    flat: FloatArray = np.where(bad, 0.0, data - background_mesh(data, bad, box))
    return flat


def background_mesh(data: FloatArray, bad: NDArray[np.bool_], box: int) -> FloatArray:
    """The slowly varying background [ADU], (h, w): medians in boxes of ``box`` pixels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of boxes with few pixels, which the mesh fills in
        try:
            background = Background2D(
                data, box, mask=bad, bkg_estimator=MedianBackground(), exclude_percentile=80.0
            ).background
        except ValueError:  # too little is left unmasked for a mesh
            level = np.median(data[~bad]) if (~bad).any() else 0.0
            return np.full(data.shape, float(level))
    return np.asarray(background, dtype=np.float64)


def choose_kernel(target: Frame, reference: Frame) -> tuple[DeltaKernel, tuple[Finding, ...]]:
    """A square delta kernel of 9 Gaussian widths of the target's PSF (section 3.3).

    Falls back to 19 x 19, the size of section 3, if the seeing cannot be measured. Never larger
    than a third of the frame. Says so if the target is the sharper image of the two, because a
    convolution cannot sharpen the reference.
    """
    limit = _largest_kernel(target.shape)
    if min(target.shape) < limit + 2:
        raise InputError(
            f"An image of {target.shape[0]} x {target.shape[1]} pixels is too small to choose a "
            "kernel for; give the kernel size."
        )
    seen, sharp = measure_seeing(target), measure_seeing(reference)
    if seen is None:
        size = kernel_size(None, target.shape)
        return DeltaKernel(size), (
            Finding(
                "seeing-unknown",
                f"Too few stars of {target.name} could be measured to choose a kernel size; "
                f"{size} x {size} was taken. Give the kernel size if the seeing is wide.",
            ),
        )
    size = kernel_size(seen.fwhm, target.shape)
    findings = [
        Finding(
            "kernel-size",
            f"A kernel of {size} x {size} pixels was chosen: 9 Gaussian widths of the target's "
            f"stars (FWHM {seen.fwhm:.2f} pixels, {seen.n_stars} stars).",
        )
    ]
    if sharp is not None and seen.fwhm + seen.spread / math.sqrt(seen.n_stars) < 0.95 * sharp.fwhm:
        findings.append(
            Finding(
                "target-sharper",
                f"The target (FWHM {seen.fwhm:.2f} pixels) is sharper than the reference "
                f"({sharp.fwhm:.2f}); the kernel would have to sharpen it, which amplifies noise. "
                "Use a sharper reference, or swap the two images.",
                "warning",
            )
        )
    return DeltaKernel(size), tuple(findings)


def kernel_size(fwhm: float | None, shape: tuple[int, int]) -> int:
    """Side [pixels] of a kernel of 9 Gaussian widths (section 3.3), 19 if the width is not known.

    Never larger than a third of a frame of ``shape`` (h, w).
    """
    wanted = 19 if fwhm is None else _odd(9.0 * fwhm / FWHM_PER_SIGMA, least=7)
    return min(wanted, _largest_kernel(shape))


def _largest_kernel(shape: tuple[int, int]) -> int:
    return _odd(min(shape) / 3.0 - 2.0, least=3)


def _odd(size: float, least: int) -> int:
    """The next odd whole number from ``size`` on, at least ``least``."""
    return max(least, 2 * math.ceil((size - 1.0) / 2.0) + 1)
