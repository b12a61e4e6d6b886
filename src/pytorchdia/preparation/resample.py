"""A frame on the reference's grid: whole pixels taken out where that will do, else resampled."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from astropy.io import fits
from astropy.wcs import WCS
from numpy.typing import NDArray
from scipy.ndimage import (
    affine_transform,
    binary_dilation,
    distance_transform_edt,
    spline_filter1d,
)
from scipy.ndimage import (
    shift as spline_shift,
)

from ..errors import Finding, FlatImageError, TooFewPixelsError
from ..frame import Detector, Flag, Frame
from ..headers import WCS_CARD
from ..measure import default_noise
from ..noise import CCDNoise
from .register import Registration

__all__ = ["apply_registration", "variance_factor"]

FloatArray = NDArray[np.float64]


def apply_registration(
    frame: Frame, registration: Registration, shape: tuple[int, int], wcs: Any = None
) -> Frame:
    """The frame on the grid of the reference.

    A "shift" moves whole pixels: no value changes. A "resampled" frame is interpolated by cubic
    splines, bad pixels filled from their neighbours before and all that they touch flagged after;
    its values are scaled by the area of a pixel, so that the flux of a star stays. Its variance is
    that of each pixel by itself; that neighbouring pixels are correlated is a finding. Without a
    variance and a gain that tell its noise, that is measured before the frame is resampled, and
    given to it as a gain or as a variance.

    Parameters
    ----------
    frame : Frame
    registration : Registration
    shape : (int, int)
        (h, w) of the reference.
    wcs : object, optional
        That of the reference. Without it a shifted frame keeps its own, shifted along, and a
        resampled one loses it.

    Returns
    -------
    Frame
        Pixels that the frame does not cover are 0 and flagged OUTSIDE.
    """
    if registration.how == "shift":
        moved, step = _shifted(frame, registration, shape)
        text = f"shifted by {step[0]:+d}, {step[1]:+d} whole pixels in x, y; not resampled"
    else:
        moved, step = _resampled(frame, registration, shape), None
        text = "resampled by cubic splines"
    finding = Finding(
        "registered",
        f"{frame.name} was {text} (by {registration.by}, {registration.n_matched} stars, rms "
        f"{registration.residual:.3f} pixels).",
    )
    world, meta = _world(frame, wcs, step)
    findings = moved.findings + registration.findings + (finding,)
    return replace(moved, wcs=world, meta=meta, findings=findings)


def _shifted(
    frame: Frame, registration: Registration, shape: tuple[int, int]
) -> tuple[Frame, tuple[int, int]]:
    """Whole pixels: the nearest shift to that of the middle of the reference."""
    middle = np.array([(shape[1] - 1) / 2.0, (shape[0] - 1) / 2.0])
    moved = registration.matrix[:, :2] @ middle + registration.matrix[:, 2]
    dx, dy = (int(v) for v in np.rint(moved - middle))
    if (dx, dy) == (0, 0) and frame.shape == shape:
        return frame, (0, 0)
    (h, w), (height, width) = frame.shape, shape
    rows = slice(max(0, -dy), max(0, min(height, h - dy)))
    columns = slice(max(0, -dx), max(0, min(width, w - dx)))
    source = (
        slice(rows.start + dy, rows.stop + dy),
        slice(columns.start + dx, columns.stop + dx),
    )

    def cut(image: torch.Tensor, fill: float) -> torch.Tensor:
        out = torch.full(shape, fill, dtype=image.dtype)
        if rows.stop > rows.start and columns.stop > columns.start:
            out[rows, columns] = image[source]
        return out

    variance = None if frame.variance is None else cut(frame.variance, 1.0)
    flags = cut(frame.flags, int(Flag.OUTSIDE))
    return replace(frame, data=cut(frame.data, 0.0), flags=flags, variance=variance), (dx, dy)


def _resampled(frame: Frame, registration: Registration, shape: tuple[int, int]) -> Frame:
    """Cubic splines through the pixels, with everything that travels along."""
    # scipy takes (y, x) of the output to (y, x) of the input.
    matrix = registration.matrix[::-1, 1::-1]
    offset = registration.matrix[::-1, 2]
    area = abs(float(np.linalg.det(matrix)))
    bad = frame.mask.numpy()
    had_variance = frame.variance is not None
    frame = frame if had_variance else _with_measured_noise(frame)

    def move(image: NDArray[Any], order: int) -> FloatArray:
        moved: FloatArray = affine_transform(
            image, matrix, offset, output_shape=shape, order=order, mode="mirror"
        )
        return moved

    data = area * move(_filled(frame.data.double().numpy(), bad), 3)
    flags, outside = _moved_flags(frame, matrix, offset, shape, move)
    data[outside] = 0.0
    variance, note = None, ""
    phase_y, phase_x = _phases(matrix, offset, shape)
    factor = variance_factor(phase_y) * variance_factor(phase_x)
    if frame.variance is not None:
        moved = area**2 * move(_filled(frame.variance.double().numpy(), bad), 1)
        if had_variance:
            moved *= factor
            note = "; its variance is that of single pixels"
        moved[outside] = 1.0
        variance = torch.from_numpy(moved)
    finding = Finding(
        "noise-correlated",
        f"{frame.name} was resampled: the variance of a pixel falls to {factor.mean():.2f} of what "
        f"it was on average, and neighbouring pixels share noise{note}. Errors of fluxes from many "
        f"pixels that take them as independent are too small, by up to a factor of "
        f"{1.0 / math.sqrt(float(factor.mean())):.2f}.",
    )
    return replace(
        frame,
        data=torch.from_numpy(data).to(frame.data.dtype),
        flags=flags,
        variance=variance,
        detector=_scaled(frame.detector, area),
        findings=(*frame.findings, finding),
    )


def _with_measured_noise(frame: Frame) -> Frame:
    """With a gain or a variance, if the sky had to be measured to tell the noise.

    The sky of a resampled frame scatters less than its noise, which neighbouring pixels share.
    """
    try:
        noise, findings = default_noise(frame)
    except (FlatImageError, TooFewPixelsError):
        return frame  # whoever needs the noise is told
    findings = frame.findings + findings
    if not isinstance(noise, CCDNoise) or noise.offset:
        return replace(frame, variance=noise.variance(frame.data.double()), findings=findings)
    if frame.detector.gain is not None:
        return frame
    said = dict.fromkeys(("gain", "read_noise"), "scatter of the sky before it was resampled")
    detector = replace(
        frame.detector, gain=noise.gain, read_noise=noise.read_noise * noise.gain,
        sources={**frame.detector.sources, **said},
    )  # fmt: skip
    return replace(frame, detector=detector, findings=findings)


def _filled(image: FloatArray, bad: NDArray[np.bool_]) -> FloatArray:
    """Bad pixels take the value of the nearest good one, so that they do not ring."""
    if not bad.any() or bad.all():
        return image
    nearest = distance_transform_edt(bad, return_distances=False, return_indices=True)
    filled: FloatArray = image[tuple(nearest)]
    return filled


def _moved_flags(
    frame: Frame, matrix: FloatArray, offset: FloatArray, shape: tuple[int, int], move: Any
) -> tuple[torch.Tensor, NDArray[np.bool_]]:
    """Each flag wherever a bad pixel counts for much, and OUTSIDE; and where that is."""
    old = frame.flags.numpy()
    new = np.zeros(shape, dtype=np.int16)
    for flag in Flag:
        where = (old & flag) != 0
        if where.any():
            # The nearest four pixels of each axis carry nearly all weight of a cubic spline.
            wide = binary_dilation(where, np.ones((3, 3)))
            new |= np.where(move(wide.astype(np.float64), 1) > 1e-6, int(flag), 0).astype(np.int16)
    y, x = _positions(matrix, offset, shape)
    h, w = frame.shape
    outside = (y < -1e-6) | (x < -1e-6) | (y > h - 1 + 1e-6) | (x > w - 1 + 1e-6)
    new[outside] = int(Flag.OUTSIDE)
    return torch.from_numpy(new), outside


def _positions(
    matrix: FloatArray, offset: FloatArray, shape: tuple[int, int]
) -> tuple[FloatArray, FloatArray]:
    """Where on the frame, y and x, lies each pixel of the output."""
    row, column = np.arange(shape[0])[:, None], np.arange(shape[1])[None, :]
    return (
        matrix[0, 0] * row + matrix[0, 1] * column + offset[0],
        matrix[1, 0] * row + matrix[1, 1] * column + offset[1],
    )


def _phases(
    matrix: FloatArray, offset: FloatArray, shape: tuple[int, int]
) -> tuple[FloatArray, FloatArray]:
    y, x = _positions(matrix, offset, shape)
    return y - np.floor(y), x - np.floor(x)


def variance_factor(phase: FloatArray) -> FloatArray:
    """Variance of a value interpolated from white noise at ``phase`` between pixels, one axis.

    The sum of the squared weights of the cubic spline through all pixels: 1 at the pixels, less
    between them.
    """
    impulse = np.zeros(41)
    impulse[20] = 1.0
    steps = np.linspace(0.0, 1.0, 65)
    coefficients = spline_filter1d(impulse, 3, mode="mirror")
    table = [
        float((spline_shift(coefficients, -p, order=3, mode="mirror", prefilter=False) ** 2).sum())
        for p in steps
    ]
    factor: FloatArray = np.interp(phase, steps, table)
    return factor


def _scaled(detector: Detector, area: float) -> Detector:
    """Gain and saturation in the units of values multiplied by ``area``."""
    return replace(
        detector,
        gain=None if detector.gain is None else detector.gain / area,
        saturation=None if detector.saturation is None else detector.saturation * area,
    )


def _world(frame: Frame, wcs: Any, step: tuple[int, int] | None) -> tuple[Any, Mapping[str, Any]]:
    """The WCS of the registered frame, and its header with the cards of that and of no other."""
    if step == (0, 0) and wcs is None:
        return frame.wcs, frame.meta
    world = wcs
    if wcs is None and step is not None and isinstance(frame.wcs, WCS):
        world = frame.wcs.deepcopy()
        world.wcs.crpix = world.wcs.crpix - np.array(step, dtype=float)
        if world.sip is not None:
            world.sip.crpix[:] = world.sip.crpix - np.array(step, dtype=float)
    kept = [key for key in frame.meta if not WCS_CARD.match(key)]
    if not isinstance(frame.meta, fits.Header):
        return world, {key: frame.meta[key] for key in kept}
    header = frame.meta.copy()
    for key in {key for key in frame.meta if WCS_CARD.match(key)}:
        header.remove(key, remove_all=True)
    if isinstance(world, WCS):
        header.update(world.to_header(relax=True))
    return world, header
