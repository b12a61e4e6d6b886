"""B08 without its normal matrices against its slow twin with them, on pairs of section 3.1.

The claim: the equations of B08 are solved to well below 1e-8 of an error bar of any kernel pixel.
``kernel`` is the largest difference of a pixel in units of its error, ``P`` that of P, over the
pairs of a block of seeds; seconds are those of the whole subtraction with its covariance.

    python benchmarks/normal_equations.py --blocks 0 5
"""

from __future__ import annotations

import argparse
import warnings
from functools import partial

import numpy as np
from harness import clocked, record, show

from pytorchdia import (
    DeltaKernel,
    NormalEquations,
    PyTorchDIAWarning,
    SubtractionStack,
    subtract,
)
from pytorchdia.experiments.cells import SNR_REGIMES
from pytorchdia.experiments.scenarios import SCENARIOS
from pytorchdia.experiments.table2 import BLOCK

TEXT = SCENARIOS["text"]  # section 3.1 as it is written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, nargs="+", default=[0, 5])
    parser.add_argument("--output")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", PyTorchDIAWarning)
    rows = [compared(block) for block in arguments.blocks]
    record("normal-equations", rows, arguments.output)


def compared(block: int) -> dict[str, float]:
    """The two ways on the pairs of one block of seeds that have an SNR within the table."""
    cases = [TEXT.case(seed) for seed in range(block * BLOCK, (block + 1) * BLOCK)]
    pairs = [c.pair for c in cases if SNR_REGIMES[0][0] < c.pair.snr < SNR_REGIMES[-1][1]]
    targets, references = (
        np.stack([getattr(p, n) for p in pairs]) for n in ("target", "reference")
    )
    found: dict[bool, SubtractionStack] = {}

    def fit(matrix_free: bool) -> None:
        found[matrix_free] = subtract(
            targets, references, kernel=DeltaKernel(TEXT.kernel),
            noise=TEXT.noise, penalty=None,
            solver=NormalEquations(3, matrix_free=matrix_free),
        )  # fmt: skip

    with_matrices, without = (clocked(partial(fit, free))() for free in (False, True))
    kernel = scale = 0.0
    for one, two in zip(found[True], found[False], strict=True):
        error = np.sqrt(np.diag(two.kernel_covariance)).reshape(two.kernel.shape)
        kernel = max(kernel, float((np.abs(one.kernel - two.kernel) / error).max()))
        scale = max(scale, abs(one.scale - two.scale) / two.scale_error)
    row = {
        "block": block, "pairs": len(pairs), "kernel": kernel, "P": scale,
        "with_matrices": with_matrices, "without": without,
    }  # fmt: skip
    show(row)
    return row


if __name__ == "__main__":
    main()
