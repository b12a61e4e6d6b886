"""Bright, isolated, unsaturated stars of a reference, roughly evenly spread (section 4.1)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from astropy.stats import mad_std
from numpy.typing import NDArray
from photutils.detection import find_peaks
from scipy.ndimage import binary_dilation

from ..errors import InputError
from ..frame import Flag, Frame
from ..measure import flattened
from ..noise import NoiseModel

__all__ = [
    "STAMP",
    "Star",
    "choose_stars",
    "cut_noise",
    "cut_stamp",
    "find_stars",
    "scene",
    "window",
]

STAMP = 142  # pixels: side of a stamp in the paper
DETECT = 10.0  # times the scatter of the reference that the peak of a star must reach
_CROWDED = 0.2  # peak of a neighbour within 3 FWHM over that of the star


@dataclass(frozen=True)
class Star:
    """The peak pixel of a star in the reference, and its height above the background [ADU]."""

    y: int
    x: int
    peak: float


def find_stars(frame: Frame, fwhm: float) -> list[Star]:
    """All peaks of a reference, from the brightest on; bad pixels are no peaks."""
    image, bad = flattened(frame), frame.mask.numpy()
    side = max(3, 2 * round(fwhm / 2.0) + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "no peaks found" is an answer here
        table = find_peaks(image, DETECT * mad_std(image[~bad]), box_size=side, mask=bad)
    if table is None:
        return []
    table.sort("peak_value", reverse=True)
    rows = zip(table["y_peak"], table["x_peak"], table["peak_value"], strict=True)
    return [Star(int(y), int(x), float(peak)) for y, x, peak in rows]


def choose_stars(
    frame: Frame, stars: Sequence[Star], fwhm: float, count: int, stamp: int = STAMP
) -> list[Star]:
    """Up to ``count`` of ``stars``: the brightest isolated ones, kept apart from each other.

    The distance kept is at first that of ``count`` stars spread evenly, and is lowered until there
    are enough. A stamp must lie in the frame, no bad pixel within 3 FWHM of the star, and no
    neighbour there of more than a fifth of its height.

    Raises
    ------
    InputError
        There is no such star.
    """
    h, w = frame.shape
    half, reach = stamp // 2, math.ceil(3.0 * fwhm)
    near_bad = binary_dilation(frame.mask.numpy(), np.ones((2 * reach + 1, 2 * reach + 1)))
    y, x, peak = (np.array([getattr(s, name) for s in stars]) for name in ("y", "x", "peak"))
    usable = [
        s
        for s in stars
        if half <= s.y <= h - half
        and half <= s.x <= w - half
        and not near_bad[s.y, s.x]
        and (peak[np.hypot(y - s.y, x - s.x) < reach] > _CROWDED * s.peak).sum() == 1
    ]
    if not usable:
        raise InputError(
            f"{frame.name} has no bright isolated star whose stamp of {stamp} x {stamp} pixels "
            f"lies within its {h} x {w} pixels; choose another reference."
        )
    spacing = math.sqrt((h - stamp + 1.0) * (w - stamp + 1.0) / count)
    chosen: list[Star] = []
    while len(chosen) < min(count, len(usable)):
        for star in usable:
            apart = all(math.hypot(star.y - c.y, star.x - c.x) >= spacing for c in chosen)
            if apart and len(chosen) < count:
                chosen.append(star)
        spacing = 0.9 * spacing if spacing > 1.0 else 0.0
    return chosen


Window = tuple[slice, slice]


def window(star: Star, shift: tuple[int, int], stamp: int = STAMP) -> Window:
    """The pixels of a stamp; the star is at (stamp // 2, stamp // 2) in it."""
    top, left = star.y + shift[0] - stamp // 2, star.x + shift[1] - stamp // 2
    return slice(top, top + stamp), slice(left, left + stamp)


def cut_stamp(frame: Frame, place: Window) -> Frame | None:
    """A stamp of a frame; None if a part of it has no data (section 4.1), more than 1 in 100."""
    if any(s.start < 0 or s.stop > n for s, n in zip(place, frame.shape, strict=True)):
        return None
    flags = frame.flags[place]
    if float(((flags & Flag.NON_FINITE) != 0).double().mean()) > 0.01:
        return None
    variance = None if frame.variance is None else frame.variance[place]
    return replace(frame, data=frame.data[place], flags=flags, variance=variance)


def cut_noise(noise: NoiseModel, places: Sequence[Window]) -> NoiseModel:
    """The noise model of a frame for a stack of its stamps."""
    return noise.rearranged(lambda image: torch.stack([image[place] for place in places]))


def scene(stars: Sequence[Star], frame: Frame, place: Window) -> NDArray[np.float64]:
    """The stars in a window as single pixels of their peak heights, 0 elsewhere (section 4.2)."""
    image = np.zeros(frame.shape)
    for star in stars:
        image[star.y, star.x] = star.peak
    return image[place]
