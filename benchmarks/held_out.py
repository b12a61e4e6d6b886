"""Real frames: how well a fit describes pixels beside those it has seen, with and without a prior.

Stamps of 142 x 142 are fitted on their left two thirds. The mean squared normalised residual of
the right third (values beyond 5 sigma clipped to 5) tells which kernel is closer to the truth.

    python benchmarks/held_out.py reference.fits target1.fits target2.fits ...
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from harness import options, record, show

from pytorchdia import (
    DeltaKernel,
    GaussianProcessPrior,
    Huber,
    PyTorchDIAWarning,
    as_frame,
    subtract,
)
from pytorchdia.frame import Frame

SIDE, SEEN = 142, 98  # pixels of a stamp, and columns of it that the fit sees


def main() -> None:
    parser = options(__doc__, kernel=25)
    parser.add_argument("reference")
    parser.add_argument("targets", nargs="+")
    parser.add_argument("--saturation", type=float, default=45000.0)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", PyTorchDIAWarning)
    reference = as_frame(arguments.reference, saturation=arguments.saturation)
    rows = []
    for path in arguments.targets:
        target = as_frame(path, saturation=arguments.saturation)
        names = {"target": Path(path).name, "reference": Path(arguments.reference).name}
        rows.append(
            names | {"kernel": arguments.kernel} | measure(target, reference, arguments.kernel)
        )
        show(rows[-1])
    record("held-out", rows, arguments.output)


def measure(target: Frame, reference: Frame, size: int) -> dict[str, Any]:
    """Medians over the stamps of one pair."""
    scores: dict[str, list[float]] = {"plain": [], "prior": []}
    h, w = target.shape
    for top in range(0, h - SIDE + 1, SIDE):
        for left in range(0, w - SIDE + 1, SIDE):
            part = slice(top, top + SIDE), slice(left, left + SIDE)
            images = target.data[part].numpy(), reference.data[part].numpy()
            hidden = target.mask[part].numpy().copy()
            bad = reference.mask[part].numpy()
            images = images[0], np.where(bad, np.nan, images[1])
            fresh = ~hidden
            hidden[:, SEEN:] = True
            if (~hidden).sum() < 6000:
                continue
            found = {}
            for how, penalty in (("plain", None), ("prior", GaussianProcessPrior())):
                frame = as_frame(images[0], gain=target.detector.gain,
                                 read_noise=target.detector.read_noise, mask=hidden)  # fmt: skip
                other = as_frame(images[1], gain=reference.detector.gain,
                                 read_noise=reference.detector.read_noise)  # fmt: skip
                r = subtract(frame, other, kernel=DeltaKernel(size), penalty=penalty,
                             likelihood=Huber(tolerance=0.0), covariance=False)  # fmt: skip
                unseen = np.isfinite(r.variance) & fresh
                unseen[:, : SEEN + size] = False  # no pixel of the reference in common
                z = r.difference[unseen] / np.sqrt(r.variance[unseen])
                found[how] = float(np.mean(np.clip(z, -5, 5) ** 2))
            for how, value in found.items():
                scores[how].append(value)
    plain, prior = (np.array(scores[how]) for how in ("plain", "prior"))
    return {
        "stamps": len(plain),
        "plain": float(np.median(plain)),
        "prior": float(np.median(prior)),
        "ratio": float(np.median(prior / plain)),
        "worst_ratio": float((prior / plain).max()),
    }


if __name__ == "__main__":
    main()
