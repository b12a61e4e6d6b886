"""Seconds against the size of the kernel, on one image.

The claim: at 1000 x 1000, a 25 x 25 kernel costs at most 1.5 times as much as 19 x 19, and 47 x 47
at most 4 times.

    python benchmarks/kernel_sizes.py
"""

from __future__ import annotations

from harness import clocked, make_pair, options, ours, record, show, statistics_of, take_turns


def main() -> None:
    parser = options(__doc__, image=1000, seed=3, repeat=5, device="cpu")
    parser.add_argument("--kernels", type=int, nargs="+", default=[7, 13, 19, 25, 35, 47])
    arguments = parser.parse_args()
    images = make_pair(arguments.image, arguments.seed)
    times = take_turns(
        {
            str(size): clocked(lambda size=size: ours(images, size, device=arguments.device))
            for size in arguments.kernels
        },
        arguments.repeat,
    )
    base = statistics_of(times.get("19", next(iter(times.values()))))["median_s"]
    rows = []
    for size, each in times.items():
        row = {"image": arguments.image, "kernel": int(size), **statistics_of(each)}
        row["over_19"] = row["median_s"] / base
        rows.append(row)
        show(row)
    record("kernel-sizes", rows, arguments.output)


if __name__ == "__main__":
    main()
