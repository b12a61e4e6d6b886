"""Seconds against the size of the image: this package, B08 by BLAS, and the rivals at hand.

The claims: the whole subtraction (solution, difference, variance; float32; images in memory) is at
least 15 times faster than B08's three rounds by BLAS, which stop at the solution, and at least
twice as fast as the fastest rival at every size; the loss is within 1e-3 of the float64 optimum
and P within 1e-6; the cost per pixel stays flat.

    python benchmarks/image_sizes.py --rivals benchmarks/rivals/.venv/bin/python
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from harness import (
    Images,
    Rivals,
    clocked,
    least_squares_by_blas,
    make_pair,
    options,
    ours,
    record,
    show,
    statistics_of,
    take_turns,
)

BASELINE = "B08 by BLAS, 3 rounds"
# The largest image for each contender: beyond, it takes minutes or more memory than is sensible.
LARGEST = {BASELINE: 1000, "sfft": 4000, "ois": 512}


def main() -> None:
    parser = options(__doc__, kernel=19, seed=3, repeat=5, device="cpu")
    parser.add_argument("--sizes", type=int, nargs="+", default=[142, 512, 1000, 2000, 4000])
    parser.add_argument("--rivals", type=Path, help="the interpreter of the rivals' environment")
    parser.add_argument("--only", nargs="+", default=["sfft"], help="rivals to run")
    parser.add_argument("--no-baseline", action="store_true", help="leave out B08 by BLAS")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for n in arguments.sizes:
        images = make_pair(n, arguments.seed)
        rows += measure(images, n, arguments)
        for row in rows:
            if row["image"] == n:
                show(row)
        record("image-sizes", rows, arguments.output)  # after each size: nothing is lost


def measure(images: Images, n: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each contender at one size."""
    size, device = arguments.kernel, arguments.device
    named = {"pytorchdia, float32": clocked(lambda: ours(images, size, device=device))}
    if n <= LARGEST[BASELINE] and not arguments.no_baseline:
        named[BASELINE] = clocked(lambda: least_squares_by_blas(images, size))
    rivals = None
    if arguments.rivals:
        rivals = Rivals(arguments.rivals)
        rivals.load(images, size)
        for name in arguments.only:
            if n <= LARGEST.get(name, n):
                named[name] = lambda name=name: rivals.ask(run=name, save=None).get("seconds")
    times = take_turns(named, arguments.repeat if n <= 2000 else min(arguments.repeat, 3))
    if rivals is not None:
        rivals.close()
    first = statistics_of(times["pytorchdia, float32"])["median_s"]
    rows = []
    for name, each in times.items():
        row = {"image": n, "kernel": size, "seed": arguments.seed, "contender": name}
        row |= statistics_of(each)
        row |= {
            "over_pytorchdia": row["median_s"] / first,
            "ns_per_pixel": 1e9 * row["median_s"] / n**2,
        }
        rows.append(row)
    if n <= 2000:
        exact = ours(images, size, dtype=torch.float64)
        quick = ours(images, size, device=device)
        rows[0]["loss_above_float64"] = quick.diagnostics.loss - exact.diagnostics.loss
        rows[0]["scale_error_against_float64"] = abs(quick.scale / exact.scale - 1.0)
        rows[0]["steps"] = quick.diagnostics.steps
    return rows


if __name__ == "__main__":
    main()
