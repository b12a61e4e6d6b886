"""What the prior adds to the time of a call.

The claim: at most 0.1 s on a 142 x 142 pair and a fifth of the time on a 1000 x 1000 pair.

    python benchmarks/prior_cost.py
"""

from __future__ import annotations

from functools import partial

from harness import clocked, make_pair, options, ours, record, show, statistics_of, take_turns

from pytorchdia import GaussianProcessPrior


def main() -> None:
    parser = options(__doc__, kernel=19, repeat=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=[142, 512, 1000])
    arguments = parser.parse_args()
    rows = []
    for n in arguments.sizes:
        images = make_pair(n)
        named = {
            name: clocked(partial(ours, images, arguments.kernel, penalty=penalty))
            for name, penalty in (("plain", None), ("prior", GaussianProcessPrior()))
        }
        times = take_turns(named, arguments.repeat)
        plain = statistics_of(times["plain"])["median_s"]
        for name, each in times.items():
            row = {"image": n, "kernel": arguments.kernel, "contender": name}
            row |= statistics_of(each)
            row["added_s"] = row["median_s"] - plain
            rows.append(row)
            show(row)
    record("prior-cost", rows, arguments.output)


if __name__ == "__main__":
    main()
