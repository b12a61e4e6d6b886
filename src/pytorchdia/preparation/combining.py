"""Registered frames averaged: scaled, weighted, without outliers, with the variance of the mean."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import sep
import torch
from numpy.typing import NDArray

from ..errors import Finding, InputError, ShapeError
from ..frame import Detector, Flag, Frame, strips
from ..measure import default_noise
from ..noise import NoiseModel
from .outliers import beyond_the_limit, changed_stars, lower_median
from .star_detection import DetectedStars, detect_stars, star_shapes
from .trails import trails

__all__ = ["Scaling", "combine", "measure_scaling"]

FloatArray = NDArray[np.float64]

_SCALING_STARS = 100  # brightest clean stars


@dataclass(frozen=True)
class Scaling:
    """A frame in terms of the first one: frame = scale * first + sky.

    Attributes
    ----------
    scale : float
    error : float
        Standard error of ``scale``.
    sky, first_sky : float
        Median levels of both frames [ADU].
    n_stars : int
    """

    scale: float
    error: float
    sky: float
    first_sky: float
    n_stars: int


def measure_scaling(
    frame: Frame, first: Frame, stars: DetectedStars, radius: float
) -> Scaling | None:
    """Scale and sky of a registered frame against the first one, from apertures on its stars.

    Parameters
    ----------
    frame, first : Frame
        On one grid.
    stars : DetectedStars
        Of ``first``.
    radius : float
        Of the aperture [pixels].

    Returns
    -------
    Scaling, or None with fewer than 3 usable stars
    """
    chosen = np.flatnonzero(stars.clean)[:_SCALING_STARS]
    x, y = stars.x[chosen], stars.y[chosen]
    fluxes, usable = [], np.ones(len(x), dtype=bool)
    skies = []
    for image in (first, frame):
        bad = image.mask.numpy()
        data = np.ascontiguousarray(image.data.numpy(), dtype=np.float64)
        if bad.all():
            return None
        mesh = max(8, min(64, min(data.shape) // 4))
        sky = sep.Background(data, mask=bad, bw=mesh, bh=mesh).back()
        flux, _, _ = sep.sum_circle(data - sky, x, y, radius)
        spoilt, _, off = sep.sum_circle(bad.astype(np.float64), x, y, radius)
        usable &= (spoilt == 0) & ((off & sep.APER_TRUNC) == 0)
        fluxes.append(flux)
        skies.append(float(np.median(sky[~bad])))
    usable &= fluxes[0] > 0
    if usable.sum() < 3:
        return None
    return _robust_ratio(fluxes[1][usable], fluxes[0][usable], skies[1], skies[0])


def _robust_ratio(flux: FloatArray, first: FloatArray, sky: float, first_sky: float) -> Scaling:
    """The ratio weighted by flux, without the variable stars and the blends."""
    ratio = flux / first
    keep = np.ones(len(ratio), dtype=bool)
    for _ in range(5):
        middle = float(np.median(ratio[keep]))
        spread = 1.4826 * float(np.median(np.abs(ratio[keep] - middle)))
        again = np.abs(ratio - middle) <= 3.0 * spread + 1e-12
        if np.array_equal(again, keep):
            break
        keep = again
    n = int(keep.sum())
    weight = np.sqrt(first[keep])
    scale = float((weight * ratio[keep]).sum() / weight.sum())
    error = float(np.std(ratio[keep])) / math.sqrt(max(n - 1, 1))
    return Scaling(scale, error, sky, first_sky, n)


def combine(frames: Sequence[Frame], *, reject: bool = True, name: str = "reference") -> Frame:
    """One deep frame of several registered ones, in the counts of the first.

    Each frame is brought to the scale and the sky of the first, weighted by the inverse variance
    of its sky (one weight for a frame, so that the PSF is the same at faint and at bright stars),
    and averaged without the outliers. A pixel is an outlier where it differs from the median by
    more than 5 standard deviations plus 0.7 times the steepest step to its neighbours plus half of
    the light there: stars of another seeing stay, cosmic rays go. Outliers that together look like
    a star which has changed (:func:`~.outliers.changed_stars`) stay as well: its mean is that of
    the frames, its image whole. Trails go whole (:func:`~.trails.trails`), also where they cross
    stars. Of two frames the lower one is believed.

    Parameters
    ----------
    frames : sequence of Frame
        On one grid, the sharpest first; at most some tens.
    reject : bool
        Whether outliers are rejected.
    name : str
        Of the result.

    Returns
    -------
    Frame
        With its variance, from that of the frames or from their noise models; for a frame that
        :func:`~pytorchdia.preparation.resample.apply_registration` resampled without a variance of
        its own it is the noise before resampling, which is right for sums over many pixels, such as
        a convolution with a kernel. Pixels that no frame covers well are flagged as they were in
        the first one. WCS and header are the first's. Its findings hold each kind of warning about
        the frames once.

    Raises
    ------
    InputError
        No frames.
    ShapeError
        They differ in size.
    """
    if not frames:
        raise InputError("There are no frames to combine into a reference; give at least one.")
    for frame in frames:
        if frame.shape != frames[0].shape:
            raise ShapeError(
                f"{frame.name} has shape {frame.shape} but {frames[0].name} has {frames[0].shape}; "
                "register the frames onto the first one before they are combined."
            )
    kept, scalings, fwhm, findings = _scalings(frames)
    noises, warnings = _noises(kept)
    findings += warnings
    weights = np.array(
        [1.0 / _sky_variance(*each) for each in zip(kept, scalings, noises, strict=True)]
    )
    data, variance, flags, rejected = _average(
        kept, scalings, noises, weights, fwhm if reject and len(kept) > 1 else None
    )
    first = frames[0]
    share = rejected / max(data.numel() * len(kept), 1)
    findings.append(
        Finding(
            "reference-combined",
            f"{name} was made of {len(kept)} frames ({', '.join(f.name for f in kept)}); "
            f"{100 * share:.3f} % of their pixels were rejected as outliers.",
        )
    )
    return replace(
        first,
        data=data,
        flags=flags,
        variance=variance,
        name=name,
        detector=_detector_of_mean(first, weights),
        findings=tuple(findings),
    )


def _scalings(
    frames: Sequence[Frame],
) -> tuple[list[Frame], list[Scaling], float, list[Finding]]:
    """The frames that can be scaled to the first, and how; the largest FWHM [pixels]."""
    first = frames[0]
    stars = detect_stars(first)
    widths = [star_shapes(first, stars)[0] or 3.0]
    widths += [star_shapes(f, detect_stars(f))[0] or 3.0 for f in frames[1:]]
    radius = 1.2 * max(widths)
    level = float(np.median(stars.sky))
    kept, scalings, findings = [first], [Scaling(1.0, 0.0, level, level, len(stars))], []
    for frame in frames[1:]:
        scaling = measure_scaling(frame, first, stars, radius)
        if scaling is None or not scaling.scale > 0:
            findings.append(
                Finding(
                    "reference-frame-left-out",
                    f"{frame.name} has fewer than 3 usable stars in common with {first.name}; its "
                    "scale is not known, and it was left out of the reference.",
                    "warning",
                )
            )
            continue
        kept.append(frame)
        scalings.append(scaling)
    return kept, scalings, max(widths), findings


def _noises(frames: Sequence[Frame]) -> tuple[list[NoiseModel], list[Finding]]:
    """The noise model of each frame; and each kind of warning about them, or it, once."""
    noises, warnings = [], list[Finding]()
    for frame in frames:
        noise, findings = default_noise(frame)
        noises.append(noise)
        known = {f.code for f in frame.findings}
        about = {f.code: f for f in (*findings, *frame.findings) if f.level == "warning"}
        if "noise-correlated" in known:
            about.pop("sky-too-quiet", None)  # as resampling makes it
        warnings += about.values()
    counts = Counter(warning.code for warning in warnings)
    firsts = {warning.code: warning for warning in reversed(warnings)}
    return noises, [
        replace(
            firsts[code],
            message=f"{n} of {len(frames)} frames combined; the first: {firsts[code].message}",
        )
        for code, n in counts.items()
    ]


def _sky_variance(frame: Frame, scaling: Scaling, noise: NoiseModel) -> float:
    """Of the sky of a frame, in the counts of the first."""
    if frame.variance is not None:
        level = float(np.median(frame.variance[~frame.mask].numpy()))
    else:
        level = float(noise.variance(torch.full((1, 1), scaling.sky, dtype=torch.float64)))
    return level / scaling.scale**2


def _average(
    frames: Sequence[Frame],
    scalings: Sequence[Scaling],
    noises: Sequence[NoiseModel],
    weights: FloatArray,
    fwhm: float | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """Data, variance and flags, strip by strip; and how many pixels were rejected.

    ``fwhm`` is that of the stars [pixels]; None stands for no rejection.
    """
    shape = frames[0].shape
    data = torch.zeros(shape, dtype=torch.float64)
    variance = torch.ones(shape, dtype=torch.float64)
    flags = torch.zeros(shape, dtype=torch.int16)
    median, rejected = _median_and_outliers(frames, scalings, noises, fwhm is not None)
    if fwhm is not None:
        for each in zip(frames, scalings, weights, rejected, strict=True):
            _stars_and_trails(*each, median, fwhm)
    for rows in strips(shape[0], 128):
        cut = [_cut(f, rows) for f in frames]
        values, good = _scaled(cut, scalings)
        variances = _variances(cut, scalings, noises, median[rows])
        weight = weights[:, None, None] * (good & ~rejected[:, rows])
        total = weight.sum(axis=0)
        covered = total > 0
        safe = np.where(covered, total, 1.0)
        mean = (weight * values).sum(axis=0) / safe + scalings[0].first_sky
        spread = (weight**2 * variances).sum(axis=0) / safe**2
        data[rows] = torch.from_numpy(np.where(covered, mean, cut[0].data.double().numpy()))
        variance[rows] = torch.from_numpy(np.where(covered, spread, 1.0))
        flags[rows] = _flags_left(cut, covered)
    return data, variance, flags, int(rejected.sum())


def _median_and_outliers(
    frames: Sequence[Frame],
    scalings: Sequence[Scaling],
    noises: Sequence[NoiseModel],
    reject: bool,
) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Median of the frames, (h, w), and their outliers, (n, h, w): none without ``reject``."""
    shape = frames[0].shape
    median, outlying = np.zeros(shape), np.zeros((len(frames), *shape), dtype=bool)
    for rows in strips(shape[0], 128):
        top, bottom = max(rows.start - 1, 0), min(rows.stop + 1, shape[0])
        inner = slice(rows.start - top, rows.stop - top)
        cut = [_cut(f, slice(top, bottom)) for f in frames]
        values, good = _scaled(cut, scalings)
        middle = np.nan_to_num(lower_median(values, good))
        median[rows] = middle[inner]
        if reject:
            variances = _variances(cut, scalings, noises, middle)
            outlying[:, rows] = beyond_the_limit(values, variances, middle, good)[:, inner]
    return median, outlying


def _stars_and_trails(
    frame: Frame,
    scaling: Scaling,
    weight: float,
    outlying: NDArray[np.bool_],
    median: FloatArray,
    fwhm: float,
) -> None:
    """Take stars that have changed out of a frame's outliers, and whole trails in; in place."""
    if outlying.any():
        good = ~frame.mask.numpy()
        crossed = trails(outlying, fwhm) & good
        excess = np.where(good, _on_scale(frame, scaling) - median, 0.0)
        outlying &= ~changed_stars(outlying, excess, median, 1.0 / math.sqrt(weight), fwhm)
        outlying |= crossed


def _on_scale(frame: Frame, scaling: Scaling) -> FloatArray:
    """Pixels in the counts of the first frame, without sky."""
    values: FloatArray = (frame.data.double().numpy() - scaling.sky) / scaling.scale
    return values


def _scaled(
    frames: Sequence[Frame], scalings: Sequence[Scaling]
) -> tuple[FloatArray, NDArray[np.bool_]]:
    """:func:`_on_scale` of all frames, (n, h, w), and which of the pixels are good."""
    values = np.stack([_on_scale(*each) for each in zip(frames, scalings, strict=True)])
    return values, np.stack([~frame.mask.numpy() for frame in frames])


def _variances(
    frames: Sequence[Frame], scalings: Sequence[Scaling], noises: Sequence[NoiseModel],
    median: FloatArray,
) -> FloatArray:  # fmt: skip
    each = zip(frames, scalings, noises, strict=True)
    return np.stack([_variance(*one, median) for one in each])


def _cut(frame: Frame, rows: slice) -> Frame:
    variance = None if frame.variance is None else frame.variance[rows]
    return replace(frame, data=frame.data[rows], flags=frame.flags[rows], variance=variance)


def _variance(frame: Frame, scaling: Scaling, noise: NoiseModel, median: FloatArray) -> FloatArray:
    """Of a frame's pixels in the counts of the first, at what the median expects there."""
    if frame.variance is not None:
        own = frame.variance.double()
    else:
        expected = torch.from_numpy(scaling.scale * median + scaling.sky)
        own = noise.variance(expected)
    scaled: FloatArray = own.numpy() / scaling.scale**2
    return scaled


def _flags_left(cut: Sequence[Frame], covered: NDArray[np.bool_]) -> torch.Tensor:
    """Flags of the pixels that no frame covers: those of the first frame, or of all together."""
    every = torch.zeros_like(cut[0].flags)
    for frame in cut:
        every = every | frame.flags
    own = torch.where(cut[0].flags != 0, cut[0].flags, every)
    own = torch.where(own != 0, own, torch.full_like(own, int(Flag.CLIPPED)))
    return torch.where(torch.from_numpy(covered), torch.zeros_like(own), own)


def _detector_of_mean(first: Frame, weights: FloatArray) -> Detector:
    """Gain and read noise of a weighted mean of frames like the first."""
    n = float(weights.sum() ** 2 / (weights**2).sum())
    detector = first.detector
    sources = dict(detector.sources)
    for key in ("gain", "read_noise"):
        if key in sources:
            sources[key] = f"{sources[key]}, mean of {n:.1f} frames"
    return replace(
        detector,
        gain=None if detector.gain is None else n * detector.gain,
        read_noise=None if detector.read_noise is None else math.sqrt(n) * detector.read_noise,
        sources=sources,
    )
