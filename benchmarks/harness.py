"""What the benchmarks share: pairs, a baseline, the rivals' process, clock, options and record.

Contenders take turns, round by round, so that a machine whose speed drifts treats them alike.
Medians are quoted, with the extremes; the first round warms up and is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pytorchdia import CCDNoise, DeltaKernel, Subtraction, subtract
from pytorchdia.experiments import clock
from pytorchdia.experiments.clock import clocked, take_turns
from pytorchdia.simulate import READ_NOISE, simulate_pair

__all__ = [
    "Images", "Rivals", "clocked", "least_squares_by_blas", "machine", "make_pair", "options",
    "ours", "record", "show", "statistics_of", "take_turns",
]  # fmt: skip

HERE = Path(__file__).parent
RESULTS = HERE / "results"
NOISE = CCDNoise(READ_NOISE)
# The reference of section 3.1 is ten exposures: its noise is 10^-1/2 of a single one's.
REFERENCE_NOISE = CCDNoise(READ_NOISE / 10**0.5, 10.0)
BASE = 1000  # larger frames repeat a field of this size, with fresh noise


@dataclass(frozen=True)
class Images:
    """A reference and a target, (n, n), float32 or float64."""

    reference: np.ndarray
    target: np.ndarray


def options(doc: str, **defaults: int | str) -> argparse.ArgumentParser:
    """What all scripts take: ``--output``, and an option with its default for each keyword."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--output", help="JSON file for the results")
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    return parser


def make_pair(n: int, seed: int = 3, dtype: Any = np.float64) -> Images:
    """A pair as in section 3.1; beyond 1000 pixels one field is repeated, with fresh noise."""
    if n <= BASE:
        pair = simulate_pair(seed, (n, n))
        return Images(pair.reference.astype(dtype), pair.target.astype(dtype))
    pair = simulate_pair(seed, (BASE, BASE))
    rng = np.random.default_rng(seed)
    repeats = -(-n // BASE)
    images = []
    for image, sigma in (
        (pair.reference_noiseless, pair.reference_sigma),
        (pair.target_noiseless, pair.target_sigma),
    ):
        whole = np.tile(image.astype(dtype), (repeats, repeats))[:n, :n].copy()
        for top in range(0, n, BASE):  # by strips: no second copy of a large frame
            strip = whole[top : top + BASE]
            scale = np.tile(sigma.astype(np.float32), (1, repeats))[: len(strip), :n]
            strip += scale * rng.standard_normal(strip.shape, dtype=np.float32)
        images.append(whole)
    return Images(*images)


def ours(images: Images, size: int, **options: Any) -> Subtraction:
    """The public call without a prior: solution, difference, variance with the noise of both."""
    options = {
        "noise": NOISE, "reference_noise": REFERENCE_NOISE, "covariance": False, "penalty": None,
        **options,
    }  # fmt: skip
    return subtract(images.target, images.reference, kernel=DeltaKernel(size), **options)


def least_squares_by_blas(images: Images, size: int, rounds: int = 3) -> np.ndarray:
    """Kernel pixels and B_0 by iterated weighted least squares: the B08 baseline, NumPy alone."""
    n = size // 2
    reference = images.reference - np.median(images.reference)
    windows = np.lib.stride_tricks.sliding_window_view(reference, (size, size))
    target = images.target[n:-n, n:-n]
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


class Rivals:
    """The rivals' own process, which keeps a pair in its memory (see rivals/README.md)."""

    def __init__(self, python: Path) -> None:
        self._process = subprocess.Popen(
            [str(python), str(HERE / "rivals" / "worker.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """One request and its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        return json.loads(line) if line else {"error": "the rivals' process ended"}

    def load(self, images: Images, size: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "pair.npz"
            np.savez(
                path,
                reference=images.reference.astype(np.float64),
                target=images.target.astype(np.float64),
                read_noise=READ_NOISE, gain=1.0, saturation=np.inf,
            )  # fmt: skip
            answer = self.ask(load=str(path), kernel=size)
        if "error" in answer:
            raise RuntimeError(answer["error"])

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def statistics_of(times: list[float]) -> dict[str, float]:
    """Median and extremes."""
    return {"median_s": statistics.median(times), "min_s": min(times), "max_s": max(times)}


def machine() -> dict[str, Any]:
    """What the numbers belong to, with the commit."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True, text=True, check=False, cwd=HERE,
    ).stdout.strip()  # fmt: skip
    return {"commit": commit, **clock.machine()}


def record(name: str, rows: list[dict[str, Any]], output: str | None) -> None:
    """Write rows with the machine they were measured on to results/NAME.json, or to ``output``."""
    path = Path(output) if output else RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    print(f"wrote {path}", file=sys.stderr)


def show(row: dict[str, Any]) -> None:
    """One line for a row."""
    parts = [f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()]
    print("  ".join(parts), flush=True)
