"""What the prior brings where the kernel is not a Gaussian, and whether its error bars are right.

The claims: on kernels of any form the model is closer to the noiseless target than without a
prior, in no case much further; and the errors of P and of kernel pixels are those that are seen.

    python benchmarks/priors.py --seeds 24
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from harness import NOISE, options, record, show
from numpy.typing import NDArray

from pytorchdia import DeltaKernel, GaussianProcessPrior, subtract
from pytorchdia.simulate import odd_kernels, simulate_with_kernel


def main() -> None:
    parser = options(__doc__, seeds=24)
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0], help="values of P")
    parser.add_argument("--size", type=int, default=19, help="side of the fitted box")
    arguments = parser.parse_args()
    rows = []
    for scale in arguments.scales:
        for name, kernel in odd_kernels(min(19, arguments.size)).items():
            rows.append(measure(name, scale * kernel, arguments.size, arguments.seeds))
            show(rows[-1])
    record("priors", rows, arguments.output)


def measure(name: str, kernel: NDArray[np.float64], size: int, seeds: int) -> dict[str, Any]:
    """Medians over seeds for one kernel."""
    pad = (size - len(kernel)) // 2
    truth = np.pad(kernel, pad)
    collected: dict[str, list[float]] = {}
    for seed in range(2000, 2000 + seeds):
        pair = simulate_with_kernel(seed, kernel)
        if not 8 < pair.snr < 1000:
            continue
        numbers = {"floor": float((pair.reference_sigma**2).mean() * (kernel**2).sum())}
        for how, penalty in (("plain", None), ("prior", GaussianProcessPrior())):
            r = subtract(
                pair.target, pair.reference, kernel=DeltaKernel(size), noise=NOISE, penalty=penalty
            )
            use = ~r.mask
            numbers[f"mse_{how}"] = float(((r.model - pair.target_noiseless)[use] ** 2).mean())
            numbers[f"pull_{how}"] = (r.scale - kernel.sum()) / r.scale_error
            errors = np.sqrt(np.diag(r.kernel_covariance)).reshape(r.kernel.shape)
            core = truth > 0.1 * truth.max()
            pulls = ((r.kernel - truth) / errors)[core]
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
