"""Pairs per second for stacks of small pairs, against a loop over the same pairs.

The claim: at least 60 pairs of 142 x 142 pixels per second on two CPU cores with a 19 x 19 kernel,
each pair with its own reference.

    python benchmarks/stamps.py
"""

from __future__ import annotations

import numpy as np
from harness import (
    Images,
    clocked,
    make_pair,
    options,
    ours,
    record,
    show,
    statistics_of,
    take_turns,
)


def main() -> None:
    parser = options(__doc__, image=142, kernel=19, repeat=3, device="cpu")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16, 64])
    arguments = parser.parse_args()
    rows = []
    for count in arguments.batches:
        pairs = [make_pair(arguments.image, 100 + i % 64) for i in range(count)]
        references = np.stack([p.reference for p in pairs])
        targets = np.stack([p.target for p in pairs])
        named = {
            "own references": lambda t=targets, r=references: ours(
                Images(r, t), arguments.kernel, device=arguments.device
            ),
            "one reference": lambda t=targets, r=references: ours(
                Images(r[0], np.broadcast_to(t[:1], t.shape)),
                arguments.kernel,
                device=arguments.device,
            ),
        }
        if count <= 64:
            named["loop"] = lambda p=pairs: [
                ours(i, arguments.kernel, device=arguments.device) for i in p
            ]
        times = take_turns({name: clocked(run) for name, run in named.items()}, arguments.repeat)
        for name, each in times.items():
            row = {"pairs": count, "image": arguments.image, "contender": name}
            row |= statistics_of(each)
            row["pairs_per_second"] = count / row["median_s"]
            rows.append(row)
            show(row)
    record("stamps", rows, arguments.output)


if __name__ == "__main__":
    main()
