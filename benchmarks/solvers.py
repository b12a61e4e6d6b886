"""Time of the fit by each solver, beside iterated least squares by plain BLAS, in one process.

The claim: Newton's method without the normal matrix takes a fraction of the time of Bramich's
(2008) normal equations by dense matrix products, at the same or a lower loss.

    python benchmarks/solvers.py --sizes 142 512 1000 --repeat 5 --output solvers.json

The baseline, `least_squares_by_blas`, is written out below with NumPy alone: three rounds, float64,
the design matrix in blocks of rows, the normal matrix by one matrix product for each block. Medians
and the extremes of the repeats are printed; the rounds of the rivals alternate, so that a machine
whose speed drifts treats them alike.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable

import numpy as np
import torch

from pytorchdia import (
    AdamLBFGS,
    CCDNoise,
    DeltaKernel,
    Gaussian,
    Newton,
    PolynomialBackground,
    __version__,
)
from pytorchdia.image_model import ImageModel
from pytorchdia.objective import Objective
from pytorchdia.simulate import READ_NOISE, SimulatedPair, simulate_pair

BASELINE = "B08 by BLAS, 3 rounds, float64"


def least_squares_by_blas(pair: SimulatedPair, size: int, rounds: int = 3) -> np.ndarray:
    """Kernel pixels and B_0 by iterated weighted least squares: the baseline."""
    n = size // 2
    reference = pair.reference - np.median(pair.reference)
    windows = np.lib.stride_tricks.sliding_window_view(reference, (size, size))
    target = pair.target[n:-n, n:-n]
    model = target
    p = size * size + 1
    for _ in range(rounds):
        weight = 1.0 / (READ_NOISE**2 + np.maximum(model, 1.0))
        matrix, rhs = np.zeros((p, p)), np.zeros(p)
        for rows in _blocks(*windows.shape[:2], p):
            block = np.ones((windows[rows].shape[0] * windows.shape[1], p))
            block[:, :-1] = windows[rows].reshape(len(block), -1)
            w = weight[rows].reshape(-1, 1)
            matrix += block.T @ (block * w)
            rhs += block.T @ (w[:, 0] * target[rows].ravel())
        theta = np.linalg.solve(matrix, rhs)
        model = np.empty_like(target)
        for rows in _blocks(*windows.shape[:2], p):
            part = windows[rows].reshape(-1, p - 1) @ theta[:-1] + theta[-1]
            model[rows] = part.reshape(model[rows].shape)
    return theta


def _blocks(height: int, width: int, p: int, elements: int = 8_000_000) -> list[slice]:
    step = max(1, elements // (width * p))
    return [slice(top, top + step) for top in range(0, height, step)]


def objective_of(pair: SimulatedPair, size: int, dtype: torch.dtype) -> Objective:
    """The same problem for our solvers; nothing is cached from one repeat to the next."""
    reference = torch.from_numpy(pair.reference - np.median(pair.reference))
    model = ImageModel(reference, DeltaKernel(size), PolynomialBackground(0))
    target = torch.from_numpy(pair.target)
    return Objective(model, target, model.valid, CCDNoise(READ_NOISE), Gaussian(), None, dtype)


def contenders(
    pair: SimulatedPair, size: int, paper: bool
) -> dict[str, Callable[[], torch.Tensor]]:
    """Functions that solve the problem from scratch and return theta."""

    def ours(solver: Newton | AdamLBFGS, dtype: torch.dtype) -> Callable[[], torch.Tensor]:
        return lambda: solver.solve(objective_of(pair, size, dtype)).theta

    named = {
        BASELINE: lambda: torch.from_numpy(least_squares_by_blas(pair, size)),
        "Newton, float32": ours(Newton(), torch.float32),
        "Newton, float64": ours(Newton(), torch.float64),
        "Newton with the matrix, float32": ours(Newton(matrix_free=False), torch.float32),
    }
    if paper:
        named["Adam then L-BFGS (the paper's), float32"] = ours(AdamLBFGS(), torch.float32)
    return named


def measure(n: int, size: int, seed: int, repeat: int, paper: bool) -> list[dict[str, object]]:
    """One row for each contender at one image and kernel size."""
    pair = simulate_pair(seed, (n, n))
    judge = objective_of(pair, size, torch.float64)
    named = contenders(pair, size, paper)
    seconds: dict[str, list[float]] = {name: [] for name in named}
    losses: dict[str, float] = {}
    for turn in range(repeat + 1):
        for name, solve in named.items():
            started = time.perf_counter()
            theta = solve()
            if turn:  # the first round warms up
                seconds[name].append(time.perf_counter() - started)
            losses[name] = float(judge.loss(theta))
    base, best = statistics.median(seconds[BASELINE]), min(losses.values())
    return [
        {
            "image": n,
            "kernel": size,
            "seed": seed,
            "solver": name,
            "median_s": statistics.median(times),
            "min_s": min(times),
            "max_s": max(times),
            "baseline_over_this": base / statistics.median(times),
            "loss_above_best": losses[name] - best,
        }
        for name, times in seconds.items()
    ]


def machine() -> dict[str, object]:
    """What the numbers belong to."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "pytorchdia": __version__,
        "commit": commit,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[142, 512, 1000])
    parser.add_argument("--kernel", type=int, default=19)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--paper-up-to", type=int, default=512, help="largest size for Adam/L-BFGS")
    parser.add_argument("--output", help="JSON file for the results")
    arguments = parser.parse_args()
    rows = []
    for n in arguments.sizes:
        measured = measure(
            n, arguments.kernel, arguments.seed, arguments.repeat, n <= arguments.paper_up_to
        )
        rows += measured
        for row in measured:
            print(
                f"{row['image']:>5} {row['kernel']:>3}  {row['solver']:<40} "
                f"{row['median_s']:8.3f} s ({row['min_s']:.3f} to {row['max_s']:.3f})  "
                f"x {row['baseline_over_this']:6.1f}  loss + {row['loss_above_best']:.1e}",
                flush=True,
            )
    if arguments.output:
        with open(arguments.output, "w") as file:
            json.dump({"machine": machine(), "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
