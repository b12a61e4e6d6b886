"""Peak memory beside the input pair, in float32 images of the frame's size.

The claim: at most 8 of them, at any kernel size, and 16384 x 16384 pixels on a machine of 24 GiB.
Each frame is fitted in a process of its own; the peak is the operating system's count of resident
memory after the images were made, less that before the call.

    python benchmarks/memory.py --sizes 2000 4000
    python benchmarks/memory.py --sizes 16384
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np
from harness import make_pair, options, ours, record, show


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2000, 4000])
    parser.add_argument("--kernels", type=int, nargs="+", default=[19])
    parser.add_argument("--max-memory", help="limit handed to subtract, such as 2GB")
    parser.add_argument("--one", type=int, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(*arguments.one, arguments.max_memory)))
        return
    rows = []
    for n in arguments.sizes:
        for size in arguments.kernels:
            command = [sys.executable, __file__, "--one", str(n), str(size)]
            if arguments.max_memory:
                command += ["--max-memory", arguments.max_memory]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            rows.append(json.loads(done.stdout))
            show(rows[-1])
    record("memory", rows, arguments.output)


def measure(n: int, size: int, limit: str | None) -> dict[str, object]:
    """Fit one frame here."""
    ours(make_pair(142), 5)  # what a first call loads is not the frame's
    images = make_pair(n, dtype=np.float32)
    before = current_bytes()
    reset_peak()
    started = time.perf_counter()
    result = ours(images, size, max_memory=limit)
    seconds = time.perf_counter() - started
    extra = peak_bytes() - before
    return {
        "image": n,
        "kernel": size,
        "max_memory": limit,
        "extra_GB": extra / 1e9,
        "float32_images": extra / (4.0 * n * n),
        "seconds": seconds,
        "ns_per_pixel": 1e9 * seconds / n**2,
        "status": result.status.name,
        "scale": result.scale,
    }


def reset_peak() -> None:
    """Let the operating system's peak start anew (Linux)."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def current_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def peak_bytes() -> int:
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
