"""Seconds against the number of threads, one pair at a time.

The claim: what a second core brings, and from which size of frame on.

    python benchmarks/threads.py --threads 1 2
"""

from __future__ import annotations

import os

import torch
from harness import clocked, make_pair, options, ours, record, show, statistics_of, take_turns


def main() -> None:
    parser = options(__doc__, kernel=19, repeat=5)
    default = sorted({1, os.cpu_count() or 1})
    parser.add_argument("--threads", type=int, nargs="+", default=default)
    parser.add_argument("--sizes", type=int, nargs="+", default=[142, 512, 1000, 2000])
    arguments = parser.parse_args()
    rows = []
    for n in arguments.sizes:
        images = make_pair(n)

        def run(count: int, images: object = images) -> float:
            torch.set_num_threads(count)
            return clocked(lambda: ours(images, arguments.kernel))()

        named = {str(count): lambda count=count: run(count) for count in arguments.threads}
        times = take_turns(named, arguments.repeat)
        alone = statistics_of(times[str(arguments.threads[0])])["median_s"]
        for count, each in times.items():
            row = {"image": n, "kernel": arguments.kernel, "threads": int(count)}
            row |= statistics_of(each)
            row["speed_over_first"] = alone / row["median_s"]
            rows.append(row)
            show(row)
    record("threads", rows, arguments.output)


if __name__ == "__main__":
    main()
