"""How much memory a fit may take, and what is kept in it."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from .errors import InputError

__all__ = ["MemoryPlan", "parse_memory", "plan_memory"]

_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_GROUP = {"cpu": 2**19}  # pixels of the pairs that are fitted side by side: what caches hold
_GROUP_ELSEWHERE = 2**26
# Bytes per pixel: of the images that a fit needs where it computes, of what it always holds beside
# them, and of the transforms of the reference, by the dtype of the fit.
_IMAGES, _HELD = 17, 16
_SPECTRA = {torch.float32: 6, torch.float64: 12}
_BATCH = 2**27  # bytes of the tiles that are worked on at a time


@dataclass(frozen=True)
class MemoryPlan:
    """What a fit does with its memory.

    Attributes
    ----------
    keep : int
        Bytes of transforms that are kept from one pass over the pixels to the next.
    images_on_device : bool
        False leaves the images in main memory; their tiles travel to the device as needed.
    pairs : int
        Pairs that are fitted side by side.
    """

    keep: int
    images_on_device: bool
    pairs: int


def parse_memory(text: str | float | None) -> int | None:
    """Bytes of "4 GB", "500M" or a number; None stays None.

    Raises
    ------
    InputError
        It is not understood, or not positive.
    """
    if text is None:
        return None
    match = re.fullmatch(r"\s*([\d.]+(?:e\d+)?)\s*([kmgt]?)i?b?\s*", str(text).lower())
    try:
        size = float(match[1]) * _UNITS[match[2]] if match else 0.0
    except ValueError:
        size = 0.0
    if not 0.0 < size < 2.0**60:
        raise InputError(
            f"The memory limit {text!r} is not understood; give bytes, or a size such as 4GB."
        )
    return int(size)


def plan_memory(
    shape: tuple[int, int], dtype: torch.dtype, device: torch.device, limit: int | None
) -> MemoryPlan:
    """The fastest plan for frames of ``shape`` (h, w) within ``limit`` bytes on ``device``.

    On a CUDA device no limit means nine tenths of what is free.

    Raises
    ------
    InputError
        Not even the slowest plan fits.
    """
    pixels = shape[0] * shape[1]
    if limit is None and device.type == "cuda":
        limit = int(0.9 * torch.cuda.mem_get_info(device)[0])
    pairs = max(1, _GROUP.get(device.type, _GROUP_ELSEWHERE) // pixels)
    images = _IMAGES * pixels if device.type != "cpu" else 0
    held, spectra = _HELD * pixels, _SPECTRA[dtype] * pixels
    if limit is None:
        return MemoryPlan(max(2**26, spectra * pairs), True, pairs)
    for count in (pairs, 1):
        if _BATCH + count * (images + held + spectra) <= limit:
            return MemoryPlan(count * spectra, True, count)
    least = _BATCH + held
    for on_device in (True, False):
        if least + (images if on_device else 0) <= limit:
            return MemoryPlan(max(0, limit - least - images * on_device), on_device, 1)
    raise InputError(
        f"A fit of {shape[0]} x {shape[1]} pixels needs at least {least / 2**30:.2g} GB of working "
        f"memory, more than the limit of {limit / 2**30:.2g} GB; raise it or cut the frame."
    )
