"""What the prior brings where the kernel is not a Gaussian, and whether its error bars are right.

The claims: on kernels of any form the model is closer to the noiseless target than without a
prior, in no case much further; and the errors of P and of kernel pixels are those that are seen.

    python benchmarks/priors.py --seeds 30
    python benchmarks/priors.py --seeds 15 --oracle    # what a prior that knows the truth would do
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from harness import NOISE, options, record, show
from numpy.typing import NDArray
from oracle import medians, oracle

from pytorchdia import DeltaKernel, FixedVariance, GaussianProcessPrior, subtract
from pytorchdia.simulate import SimulatedPair, odd_kernels, simulate_with_kernel


def main() -> None:
    parser = options(__doc__, seeds=24)
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0], help="values of P")
    parser.add_argument("--size", type=int, default=19, help="side of the fitted box")
    parser.add_argument("--oracle", action="store_true", help="priors chosen by the true error")
    parser.add_argument("--kernels", nargs="+", help="names; all if absent")
    arguments = parser.parse_args()
    rows = []
    kernels = odd_kernels(min(19, arguments.size))
    for scale in arguments.scales:
        for name in arguments.kernels or kernels:
            kernel = scale * kernels[name]
            if arguments.oracle:
                rows.append({"kernel": name, "P": float(kernel.sum()), "box": arguments.size})
                rows[-1] |= measure_oracle(np.pad(kernel, (arguments.size - len(kernel)) // 2),
                                           arguments.seeds)  # fmt: skip
            else:
                rows.append(measure(name, kernel, arguments.size, arguments.seeds))
            show(rows[-1])
            record("priors-oracle" if arguments.oracle else "priors", rows, arguments.output)


def pairs_with(kernel: NDArray[np.float64], seeds: int) -> Iterator[SimulatedPair]:
    """Those of the seeds whose SNR lies within the table."""
    for seed in range(2000, 2000 + seeds):
        pair = simulate_with_kernel(seed, kernel)
        if 8 < pair.snr < 1000:
            yield pair


def measure_oracle(kernel: NDArray[np.float64], seeds: int) -> dict[str, Any]:
    """Medians over seeds for one kernel, in units of the floor."""
    rows = [oracle(pair, kernel) for pair in pairs_with(kernel, seeds)]
    return {"pairs": len(rows), **medians(rows)}


def measure(name: str, kernel: NDArray[np.float64], size: int, seeds: int) -> dict[str, Any]:
    """Medians over seeds for one kernel."""
    pad = (size - len(kernel)) // 2
    truth = np.pad(kernel, pad)
    collected: dict[str, list[float]] = {}
    for pair in pairs_with(kernel, seeds):
        numbers = {"floor": float((pair.reference_sigma**2).mean() * (kernel**2).sum())}
        for how, penalty in (("plain", None), ("prior", GaussianProcessPrior())):
            r = subtract(
                pair.target, pair.reference, kernel=DeltaKernel(size), noise=NOISE,
                reference_noise=FixedVariance(pair.reference_sigma**2), penalty=penalty,
            )  # fmt: skip
            use = ~r.mask
            numbers[f"mse_{how}"] = float(((r.model - pair.target_noiseless)[use] ** 2).mean())
            numbers[f"pull_{how}"] = (r.scale - kernel.sum()) / r.scale_error
            errors = np.sqrt(np.diag(r.kernel_covariance)).reshape(r.kernel.shape)
            core = truth > 0.1 * truth.max()
            pulls = (r.kernel - truth)[core] / errors[core]
            numbers[f"pixels_{how}"] = float(np.sqrt((pulls**2).mean()))
        numbers["ratio"] = numbers["mse_prior"] / numbers["mse_plain"]
        numbers["over_floor"] = numbers["mse_prior"] / numbers["floor"]
        for key, value in numbers.items():
            collected.setdefault(key, []).append(value)
    row = {"kernel": name, "P": float(kernel.sum()), "box": size, "pairs": len(collected["ratio"])}
    for key in ("floor", "mse_plain", "mse_prior", "over_floor", "ratio"):
        row[key] = float(np.median(collected[key]))
    row["worst_ratio"] = max(collected["ratio"])
    for how in ("plain", "prior"):
        pulls = np.array(collected[f"pull_{how}"])
        row[f"rms_pull_of_P_{how}"] = math.sqrt(float((pulls**2).mean()))
        row[f"rms_pull_of_pixels_{how}"] = float(np.median(collected[f"pixels_{how}"]))
    return row


if __name__ == "__main__":
    main()
