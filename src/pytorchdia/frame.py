"""A frame: an image with everything that travels with it, and the flags of its bad pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from .arrays import Flags, Image, Mask
from .errors import Finding, ShapeError
from .flags import DescribedFlag

__all__ = ["Detector", "Flag", "Frame", "grow"]


class Flag(DescribedFlag):
    """Why a pixel took no part in the fit: the bits of the MASK plane. Zero is a good pixel."""

    NON_FINITE = (1, "target is NaN or infinite")
    SATURATED = (2, "target is at or above saturation")
    MASKED = (4, "masked by the user or by the file")
    BAD_VARIANCE = (8, "variance is not positive and finite")
    REFERENCE = (16, "kernel footprint meets a bad reference pixel")
    BORDER = (32, "kernel footprint leaves the frame")
    CLIPPED = (64, "rejected by sigma clipping")
    OUTSIDE = (128, "outside the frame before its registration")
    CHANGED = (256, "left out of the fit because a source has changed")

    @classmethod
    def no_model(cls) -> int:
        """Bits of the pixels at which the model image cannot be computed."""
        return cls.REFERENCE | cls.BORDER

    @classmethod
    def no_data(cls) -> int:
        """Bits of the pixels that hold no measurement."""
        return cls.NON_FINITE | cls.BAD_VARIANCE | cls.OUTSIDE


@dataclass(frozen=True)
class Detector:
    """What is known of the camera, each number with the place it came from.

    Attributes
    ----------
    gain : float, optional
        Electrons per unit of the data (e-/ADU, for data in ADU).
    read_noise : float, optional
        Read noise in **electrons**, as headers give it.
    saturation : float, optional
        Pixels at or above this value [ADU] are flagged; infinite if nothing saturates.
    exposure : float, optional
        Exposure time [s].
    sources : Mapping
        From the name of each number to the keyword or rule that gave it.
    """

    gain: float | None = None
    read_noise: float | None = None
    saturation: float | None = None
    exposure: float | None = None
    sources: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Frame:
    """One image, cleaned: finite everywhere, with flags that say where not to believe it.

    Made by :func:`pytorchdia.io.as_frame`, which knows about files and array types.

    Attributes
    ----------
    data : Image
        (h, w), float64 [ADU] (or float32, to save memory); 0 at pixels that were not finite (they
        are flagged).
    flags : Flags
        (h, w), int16, bits of :class:`Flag`; 0 is good.
    variance : Image, optional
        sigma^2 [ADU^2]; 1 at pixels flagged BAD_VARIANCE.
    wcs : object, optional
        World coordinates, carried along unread.
    meta : Mapping
        The FITS header or the user's metadata, carried along.
    unit : str
        Unit of ``data`` as the input gave it; empty if it gave none.
    name : str
        Where the frame came from, for messages.
    detector : Detector
        What the header says of the camera.
    findings : tuple of Finding
        What was noticed while the frame was read.
    """

    data: Image
    flags: Flags
    variance: Image | None = None
    wcs: Any = field(default=None, repr=False)
    meta: Mapping[str, Any] = field(default_factory=dict, repr=False)
    unit: str = ""
    name: str = "array"
    detector: Detector = field(default_factory=Detector)
    findings: tuple[Finding, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        """(h, w)."""
        return self.data.shape[0], self.data.shape[1]

    @property
    def mask(self) -> Mask:
        """True where a pixel is to be ignored."""
        return self.flags != 0

    def flagged(self, where: Mask, flag: Flag) -> Frame:
        """The same frame with ``flag`` set where ``where`` is True."""
        return replace(self, flags=with_flag(self.flags, where, flag))


def with_flag(flags: Flags, where: Mask, flag: Flag) -> Flags:
    """``flags`` with the bit of ``flag`` set where ``where`` is True."""
    return flags | (where.to(flags.dtype) * int(flag))


def grow(mask: Mask, half_shape: tuple[int, int]) -> Mask:
    """Pixels whose kernel footprint of half-widths (n_y, n_x) meets a True pixel of ``mask``."""
    if not bool(mask.any()):
        return mask
    n_y, n_x = half_shape
    padded = torch.nn.functional.pad(mask.to(torch.int32), (n_x, n_x, n_y, n_y))
    return footprint_sum(padded, half_shape) > 0


def footprint_sum(image: torch.Tensor, half_shape: tuple[int, int]) -> torch.Tensor:
    """The sum over the footprint of each pixel of (..., h, w) whose footprint lies in the image.

    From differences of running sums, so that its cost does not depend on the footprint.
    """
    total = image
    for axis, n in zip((-2, -1), half_shape, strict=True):
        zero = torch.zeros_like(total.narrow(axis, 0, 1))
        sums = torch.cat([zero, total], axis).cumsum(axis)
        size = total.shape[axis] - 2 * n
        total = sums.narrow(axis, 2 * n + 1, size) - sums.narrow(axis, 0, size)
    return total


def strips(height: int, rows: int = 256) -> list[slice]:
    """An image of ``height`` rows in strips, for work without whole copies of it."""
    return [slice(top, min(top + rows, height)) for top in range(0, height, rows)]


def outside(shape: tuple[int, int], half_shape: tuple[int, int]) -> Mask:
    """The border of half-widths (n_y, n_x) in which eq 2 is undefined (section 2.1), (h, w)."""
    (h, w), (n_y, n_x) = shape, half_shape
    if h <= 2 * n_y or w <= 2 * n_x:
        raise ShapeError(
            f"A {2 * n_y + 1} x {2 * n_x + 1} kernel does not fit into an image of {h} x {w} "
            "pixels; use a kernel smaller than the image."
        )
    border = torch.ones(shape, dtype=torch.bool)
    border[n_y : h - n_y, n_x : w - n_x] = False
    return border
