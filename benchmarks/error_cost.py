"""What error bars cost, and what the noise of the reference adds to that.

The claim: that P's and the background's errors hold the noise of the reference adds about a tenth
or less to a call; the whole covariance costs more than a plain fit, with that noise several times
more.

    python benchmarks/error_cost.py
"""

from __future__ import annotations

from functools import partial

from harness import (
    REFERENCE_NOISE,
    clocked,
    make_pair,
    options,
    ours,
    record,
    show,
    statistics_of,
    take_turns,
)

from pytorchdia import GaussianProcessPrior

CONTENDERS = (  # what errors, `covariance`, `reference_noise`
    ("none", None, None),
    ("P and B", False, None),
    ("P and B, noisy reference", False, REFERENCE_NOISE),
    ("all", True, None),
    ("all, noisy reference", True, REFERENCE_NOISE),
)


def main() -> None:
    parser = options(__doc__, kernel=19, repeat=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=[142, 1000])
    arguments = parser.parse_args()
    rows = []
    for n in arguments.sizes:
        images = make_pair(n)
        for name, penalty in (("plain", None), ("prior", GaussianProcessPrior())):
            fit = partial(ours, images, arguments.kernel, penalty=penalty)
            named = {
                contender: clocked(
                    partial(fit, covariance=covariance, reference_noise=reference_noise)
                )
                for contender, covariance, reference_noise in CONTENDERS
            }
            for contender, times in take_turns(named, arguments.repeat).items():
                row = {"image": n, "kernel": arguments.kernel, "fit": name, "errors": contender}
                rows.append(row | statistics_of(times))
                show(rows[-1])
    record("error-cost", rows, arguments.output)


if __name__ == "__main__":
    main()
