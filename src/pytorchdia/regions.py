"""The subtraction of one frame region by region, for a PSF that varies over the field.

Until the kernel itself can vary, a frame is cut into regions that overlap by the kernel, each is
fitted with a kernel, a P and a background of its own, and their differences are put together. The
regions meet without a gap; a P of its own for each lets the light curves be measured with the
kernel and the scale of the place.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import Finding, InputError, PyTorchDIAWarning, TooFewPixelsError
from .frame import Flag, Frame
from .kernel import DeltaKernel
from .noise import NoiseModel
from .subtract import subtract
from .subtraction import Subtraction

__all__ = ["FrameDifference", "Region", "RegionFit", "grid_of_regions", "subtract_by_regions"]

REGION_SIZE = 512  # pixels; the size of the frames for which one kernel is known to do


@dataclass(frozen=True)
class Region:
    """A rectangle of the frame, and the larger one that is fitted for it.

    Attributes
    ----------
    rows, columns : slice
        The pixels that the region gives to the whole; regions do not overlap in these.
    fit_rows, fit_columns : slice
        The pixels that are fitted: the same with a margin of the kernel's half-width.
    """

    rows: slice
    columns: slice
    fit_rows: slice
    fit_columns: slice

    @property
    def centre(self) -> tuple[float, float]:
        """(x, y) [pixels]."""
        return (
            0.5 * (self.columns.start + self.columns.stop - 1),
            0.5 * (self.rows.start + self.rows.stop - 1),
        )


@dataclass(frozen=True)
class RegionFit:
    """What was fitted in one region.

    Attributes
    ----------
    region : Region
    kernel : ndarray
        K, (ky, kx).
    scale, scale_error : float
        P and its error.
    background : float
        B_0 [ADU].
    reduced_chi_square : float
    status : str
        Name of the :class:`~pytorchdia.errors.Status`.
    """

    region: Region
    kernel: NDArray[np.float64]
    scale: float
    scale_error: float
    background: float
    reduced_chi_square: float
    status: str


@dataclass(frozen=True)
class FrameDifference:
    """The difference of a whole frame from its regions.

    Attributes
    ----------
    difference : ndarray
        (h, w) [ADU of the target], 0 where there is no data.
    variance : ndarray
        (h, w) [ADU^2], infinite where there is no data.
    flags : ndarray of int16
        (h, w), bits of :class:`~pytorchdia.frame.Flag`.
    fits : tuple of RegionFit
        Those of the regions that could be fitted.
    findings : tuple of Finding
    """

    difference: NDArray[np.floating[Any]]
    variance: NDArray[np.floating[Any]]
    flags: NDArray[np.int16]
    fits: tuple[RegionFit, ...]
    findings: tuple[Finding, ...] = ()

    @property
    def scale(self) -> float:
        """Mean P of the regions."""
        return float(np.mean([fit.scale for fit in self.fits]))

    @property
    def scale_error(self) -> float:
        """Error of the mean P, those of the regions being independent."""
        errors = [fit.scale_error for fit in self.fits]
        return float(np.sqrt(np.sum(np.square(errors))) / len(errors))

    def region_of(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.int64]:
        """The region, as an index into ``fits``, in which (or nearest to which) positions lie."""
        distance = [
            np.maximum(
                _outside(np.asarray(x), fit.region.columns),
                _outside(np.asarray(y), fit.region.rows),
            )
            for fit in self.fits
        ]
        nearest: NDArray[np.int64] = np.argmin(distance, axis=0)
        return nearest


def _outside(values: NDArray[np.float64], span: slice) -> NDArray[np.float64]:
    """How far positions lie outside a span of pixels [pixels], 0 inside."""
    distance: NDArray[np.float64] = np.maximum(
        np.maximum(span.start - 0.5 - values, values - (span.stop - 0.5)), 0.0
    )
    return distance


def grid_of_regions(
    shape: tuple[int, int], half_shape: tuple[int, int], regions: int | None = None
) -> list[Region]:
    """The frame cut into a grid of regions that are fitted on rectangles of one common size.

    Parameters
    ----------
    shape : (int, int)
        (h, w) of the frame.
    half_shape : (int, int)
        Half-widths (n_y, n_x) of the kernel.
    regions : int, optional
        Along each axis; None takes as many as make regions of about 512 pixels.

    Raises
    ------
    InputError
        The regions would be smaller than the kernel.
    """
    cuts = [
        _cuts(size, half, regions or max(1, round(size / REGION_SIZE)))
        for size, half in zip(shape, half_shape, strict=True)
    ]
    return [
        Region(rows, columns, fit_rows, fit_columns)
        for rows, fit_rows in cuts[0]
        for columns, fit_columns in cuts[1]
    ]


def _cuts(size: int, half: int, n: int) -> list[tuple[slice, slice]]:
    edges = [round(i * size / n) for i in range(n + 1)]
    core = max(b - a for a, b in pairwise(edges))
    length = min(size, core + 2 * half)
    if core <= 2 * half:
        raise InputError(
            f"{n} regions along an axis of {size} pixels are {core} pixels wide, too small for a "
            f"kernel of {2 * half + 1}; use fewer regions or a smaller kernel."
        )
    found = []
    for a, b in pairwise(edges):
        start = min(max(0, a - half), size - length)
        found.append((slice(a, b), slice(start, start + length)))
    return found


def subtract_by_regions(
    target: Frame,
    reference: Frame,
    *,
    kernel: DeltaKernel,
    regions: int | None = None,
    noise: NoiseModel | None = None,
    start: FrameDifference | None = None,
    covariance: bool | None = False,
    fit: Callable[..., Any] = subtract,
) -> FrameDifference:
    """Subtract ``reference`` from ``target`` with a kernel, a P and a background for each region.

    A region that cannot be fitted (all of it masked, no structure) is flagged MASKED without data,
    with a finding; the others are not touched by it.

    Parameters
    ----------
    target, reference : Frame
        On one pixel grid.
    kernel, noise
        As :func:`pytorchdia.subtract`.
    regions : int, optional
        As :func:`grid_of_regions`.
    start : FrameDifference, optional
        An earlier one of the same frames: the fits start from its kernels.
    covariance : bool or None
        As :func:`pytorchdia.subtract`.
    fit : callable
        :func:`pytorchdia.subtract`, or a partial of it with further arguments.

    Raises
    ------
    InputError
        No region could be fitted; the message is that of the first.
    """
    cuts = grid_of_regions(target.shape, kernel.half_shape, regions)
    starts = {} if start is None else {f.region.centre: f.kernel for f in start.fits}
    results: list[Subtraction | InputError] = []
    for region in cuts:
        try:
            _require_pixels(target, region)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", PyTorchDIAWarning)  # they are findings as well
                fitted = fit(
                    part_of(target, region), part_of(reference, region), kernel=kernel,
                    noise=_noise_of(noise, target.shape, region), covariance=covariance,
                    start=starts.get(region.centre),
                )  # fmt: skip
            assert isinstance(fitted, Subtraction)
            results.append(fitted)
        except InputError as error:
            results.append(error)
    if all(isinstance(result, InputError) for result in results):
        assert isinstance(results[0], InputError)
        raise results[0]
    return _together(target, cuts, results)


def _require_pixels(target: Frame, region: Region) -> None:
    """The margin alone must not decide on a kernel of which nothing is used."""
    if bool(target.mask[region.rows, region.columns].all()):
        raise TooFewPixelsError(f"All of its pixels are masked on {target.name}.")


def part_of(frame: Frame, region: Region) -> Frame:
    """The rectangle of ``frame`` that is fitted for ``region``; views, not copies."""
    where = (region.fit_rows, region.fit_columns)
    if (frame.data[where]).shape == frame.data.shape:
        return frame
    variance = None if frame.variance is None else frame.variance[where].clone()
    return replace(
        frame, data=frame.data[where].clone(), flags=frame.flags[where].clone(), variance=variance
    )


def _noise_of(
    noise: NoiseModel | None, shape: tuple[int, int], region: Region
) -> NoiseModel | None:
    """The noise model with its images (flat-field, variance) cut to the region."""
    if noise is None:
        return None

    def cut(image: Any) -> Any:
        whole = tuple(image.shape[-2:]) == shape
        return image[..., region.fit_rows, region.fit_columns] if whole else image

    return noise.rearranged(cut)


def _together(
    target: Frame, cuts: list[Region], results: list[Subtraction | InputError]
) -> FrameDifference:
    h, w = target.shape
    difference = np.zeros((h, w), np.float32)
    variance = np.full((h, w), np.inf, np.float32)
    flags = target.flags.numpy().astype(np.int16)
    fits: list[RegionFit] = []
    findings: dict[str, Finding] = {}
    for region, result in zip(cuts, results, strict=True):
        here = (region.rows, region.columns)
        if isinstance(result, InputError):
            flags[here] |= int(Flag.MASKED)
            x, y = region.centre
            finding = Finding(
                "region-failed",
                f"The region round x = {x:.0f}, y = {y:.0f} of {target.name} could not be fitted "
                f"and has no data: {result}",
                "warning",
            )
            findings.setdefault(f"region-failed {x} {y}", finding)
            continue
        inside = tuple(
            slice(core.start - fit.start, core.stop - fit.start)
            for core, fit in (
                (region.rows, region.fit_rows),
                (region.columns, region.fit_columns),
            )
        )
        difference[here] = result.difference[inside]
        variance[here] = result.variance[inside]
        flags[here] = result.flags[inside]
        fits.append(
            RegionFit(
                region,
                result.kernel,
                result.scale,
                result.scale_error,
                float(result.background.coefficients[0]),
                result.diagnostics.reduced_chi_square,
                result.status.name,
            )
        )
        for finding in result.findings:
            findings.setdefault(finding.code, finding)
    return FrameDifference(difference, variance, flags, tuple(fits), tuple(findings.values()))
