"""How far a fit moves if its target is disturbed by rounding.

The claim: the search for the hyperparameters ends where the data, not rounding, say; a target
disturbed by 1e-7 of its values gives the same kernel to a small part of its errors. ``kernel`` is
the largest move of a pixel of the kernel in units of its error, ``P`` that of P, each the largest
and the median over pairs.

    python benchmarks/repeatability.py
"""

from __future__ import annotations

import warnings

import numpy as np
from harness import NOISE, options, record, show

from pytorchdia import GaussianProcessPrior, PyTorchDIAWarning, subtract
from pytorchdia.experiments.cells import SNR_REGIMES
from pytorchdia.penalty import Penalty
from pytorchdia.prior import KernelPrior
from pytorchdia.simulate import SimulatedPair, simulate_pair

DISTURBANCE = 1e-7  # relative


def main() -> None:
    parser = options(__doc__, pairs=40)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", PyTorchDIAWarning)
    moves: dict[str, list[tuple[float, float]]] = {"plain": [], "prior": []}
    seed = 0
    while len(moves["prior"]) < arguments.pairs:
        pair = simulate_pair(seed)
        if SNR_REGIMES[0][0] < pair.snr < SNR_REGIMES[-1][1]:
            moves["plain"].append(moved(pair, seed, None))
            moves["prior"].append(moved(pair, seed, GaussianProcessPrior()))
            show({"seed": seed, "kernel": moves["prior"][-1][0], "P": moves["prior"][-1][1]})
        seed += 1
    rows = []
    for how, values in moves.items():
        kernel, scale = np.array(values).T
        rows.append({
            "how": how, "pairs": len(values), "disturbance": DISTURBANCE,
            "kernel_largest": float(kernel.max()), "kernel_median": float(np.median(kernel)),
            "P_largest": float(scale.max()), "P_median": float(np.median(scale)),
        })  # fmt: skip
        show(rows[-1])
    record("repeatability", rows, arguments.output)


def moved(
    pair: SimulatedPair, seed: int, penalty: Penalty | KernelPrior | None
) -> tuple[float, float]:
    """The largest move of a kernel pixel, and that of P, in units of their errors."""
    noise = np.random.default_rng([seed, 4]).standard_normal(pair.target.shape)
    first, second = (
        subtract(target, pair.reference, noise=NOISE, penalty=penalty)
        for target in (pair.target, pair.target * (1.0 + DISTURBANCE * noise))
    )
    errors = np.sqrt(np.diag(first.kernel_covariance)).reshape(first.kernel.shape)
    kernel = np.abs((second.kernel - first.kernel) / errors).max()
    return float(kernel), abs(second.scale - first.scale) / first.scale_error


if __name__ == "__main__":
    main()
