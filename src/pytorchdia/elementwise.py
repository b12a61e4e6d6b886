"""Functions of single pixels and their derivatives, by automatic differentiation."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from .arrays import Pixels

__all__ = ["Derivatives", "derivatives"]


class Derivatives(NamedTuple):
    """A function of each pixel, and its derivatives by it; a number stands for a constant one."""

    value: Pixels
    first: Pixels | float
    second: Pixels | float


def derivatives(function: Callable[[Pixels], Pixels], x: Pixels, order: int) -> Derivatives:
    """An elementwise function of ``x`` and its derivatives up to ``order`` (1 or 2).

    Derivatives beyond ``order`` are given as 0.
    """
    x = x.detach().requires_grad_(True)
    with torch.enable_grad():
        y = function(x)
        if not y.requires_grad:
            return Derivatives(y, 0.0, 0.0)
        (first,) = torch.autograd.grad(y, x, torch.ones_like(y), create_graph=order > 1)
        second = None
        if order > 1 and first.requires_grad:
            (second,) = torch.autograd.grad(first, x, torch.ones_like(first), allow_unused=True)
    return Derivatives(y.detach(), first.detach(), 0.0 if second is None else second)
