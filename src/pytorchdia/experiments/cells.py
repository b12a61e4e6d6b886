"""The twelve cells of Table 2, and a number in one of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["CELLS", "SNR_REGIMES", "Cell", "CellValue"]

SNR_REGIMES = ((8.0, 40.0), (40.0, 200.0), (200.0, 1000.0))

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Cell:
    """One of the twelve cells of Table 2."""

    regime: int
    wide_reference: bool
    wide_kernel: bool

    @property
    def name(self) -> str:
        """As the head of the paper's table."""
        signs = (">" if wide else "<" for wide in (self.wide_reference, self.wide_kernel))
        return "phi_R {} 1, phi_K {} 1".format(*signs)

    def holds(self, snr: FloatArray, phi_r: FloatArray, phi_k: FloatArray) -> NDArray[np.bool_]:
        """Which simulations fall into it."""
        low, high = SNR_REGIMES[self.regime - 1]
        held: NDArray[np.bool_] = (snr > low) & (snr < high)
        held &= (phi_r > 1) == self.wide_reference
        held &= (phi_k > 1) == self.wide_kernel
        return held


CELLS = tuple(
    Cell(regime, wide_reference, wide_kernel)
    for regime in (1, 2, 3)
    for wide_reference in (True, False)
    for wide_kernel in (True, False)
)


@dataclass(frozen=True)
class CellValue:
    """One metric of one method in one cell.

    ``value`` is a median with its 16th and 84th percentiles, or a single number of the cell such as
    MPB, with itself for both; ``error`` is its standard error.
    """

    method: str
    metric: str
    cell: Cell
    value: float
    low: float
    high: float
    error: float
    n: int
