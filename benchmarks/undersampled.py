"""How far P is off where stars are undersampled, by the loss.

    python benchmarks/undersampled.py

No kernel of pixels turns one undersampled star into another at a different place within its pixel.
What is left at bright stars is no noise, and the losses differ in what they make of it. Fields of
constant stars, P = 1, the target shifted by a part of a pixel: the mean of P - 1 over the fields,
and its error, for widths of reference and target.
"""

from __future__ import annotations

import argparse
import math
import warnings

import numpy as np
from harness import record

import pytorchdia as dia
from pytorchdia.simulate import Stars, render_gaussian

SIZE, STARS, SKY, READ_NOISE = 160, 150, 200.0, 3.0
FWHM = 2.0 * math.sqrt(2.0 * math.log(2.0))
WIDTHS = (1.5, 1.75, 2.0, 2.5, 3.0, 4.0)  # FWHM of the reference [pixels]
RATIOS = (0.9, 1.0, 1.25)  # of the target's to it
LOSSES = {"gaussian": dia.Gaussian(), "huber": dia.Huber(), "student": dia.StudentT()}


def field(seed: int, reference: float, target: float) -> tuple[np.ndarray, np.ndarray]:
    """Reference and target of constant stars [electrons], (h, w)."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(8, SIZE - 9, (2, STARS))
    flux = 10.0 ** rng.uniform(3.5, 5.0, STARS)
    dx, dy = rng.uniform(-0.5, 0.5, 2)
    images = []
    for width, at in ((reference, (x, y)), (target, (x + dx, y + dy))):
        light = render_gaussian(Stars(*at, flux), (SIZE, SIZE), width / FWHM) + SKY
        images.append(rng.poisson(light) + rng.normal(0.0, READ_NOISE, light.shape))
    return images[0], images[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fields", type=int, default=10)
    parser.add_argument("--output")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", dia.PyTorchDIAWarning)
    noise = dia.CCDNoise(read_noise=READ_NOISE, gain=1.0)
    rows = []
    for width in WIDTHS:
        for ratio in RATIOS:
            row: dict[str, object] = {"reference_fwhm": width, "target_over_reference": ratio}
            pairs = [field(seed, width, ratio * width) for seed in range(arguments.fields)]
            for name, loss in LOSSES.items():
                off = [
                    dia.subtract(
                        target, reference, kernel=dia.DeltaKernel(11), noise=noise,
                        likelihood=loss, covariance=None,
                    ).scale - 1.0
                    for reference, target in pairs
                ]  # fmt: skip
                row[name] = float(np.mean(off))
                row[f"{name}_error"] = float(np.std(off, ddof=1) / math.sqrt(len(off)))
            rows.append(row)
            print(row, flush=True)
    record("undersampled", rows, arguments.output)


if __name__ == "__main__":
    main()
