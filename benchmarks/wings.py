"""Stars with wings (Moffat profiles): error of the model and of P, with and without the prior.

The claims: a kernel that has wings keeps its light under the prior, P is off by what its error bar
says, and the error of the model is a third of the plain fit's.

    python benchmarks/wings.py

The truth is the fit to the noiseless images: a box of pixels holds less than all of a Moffat
profile's light, and no fit can know what lies beyond. ``components`` is the prior without what it
adds for light that its components miss. Kernels are 2.2 FWHM of the target to either side.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
from harness import options, record, show
from numpy.typing import NDArray

from pytorchdia import (
    CCDNoise,
    DeltaKernel,
    FixedVariance,
    GaussianProcessPrior,
    PyTorchDIAWarning,
    subtract,
)
from pytorchdia.prior import Missed, _Evidence
from pytorchdia.simulate import draw_stars, render_moffat

GAIN, READ_NOISE, SIZE = 1.6, 6.0, 256
EXPOSURES = 8  # of the reference
HOW = ("plain", "components", "prior")
FloatArray = NDArray[np.float64]


def main() -> None:
    arguments = options(__doc__, fields=60).parse_args()
    warnings.simplefilter("ignore", PyTorchDIAWarning)
    rows = []
    for seed in range(arguments.fields):
        rows.append(measure(seed))
        show(rows[-1])
    summary = [summary_of(how, rows) for how in HOW]
    for row in summary:
        show(row)
    record("wings", summary + rows, arguments.output)


def measure(seed: int) -> dict[str, Any]:
    """One field: mean squared error against the noiseless target, P and its error."""
    images, sigma, scale, width = field(seed)
    kernel = DeltaKernel(2 * math.ceil(2.2 * width) + 1)
    given = {"kernel": kernel, "noise": CCDNoise(READ_NOISE, GAIN), "covariance": False}
    truth = subtract(images["target"], images["reference"], penalty=None, **given)
    given["reference_noise"] = FixedVariance(sigma**2)
    row: dict[str, Any] = {"seed": seed, "target_fwhm": width, "box": kernel.shape[0]}
    row["P_of_box"] = truth.scale / scale
    for how in HOW:
        penalty = None if how == "plain" else GaussianProcessPrior()
        with components_alone(how == "components"):
            r = subtract(
                images["noisy_target"], images["noisy_reference"], penalty=penalty, **given
            )
        row[f"mse_{how}"] = float(((r.model - images["target"])[~r.mask] ** 2).mean())
        row[f"off_{how}"] = (r.scale - truth.scale) / scale
        row[f"pull_{how}"] = (r.scale - truth.scale) / r.scale_error
    return row


def field(seed: int) -> tuple[dict[str, FloatArray], FloatArray, float, float]:
    """Images with and without noise, sigma of the reference, P, and the target's FWHM."""
    rng = np.random.default_rng([41, seed])
    shape, beta, scale = (SIZE, SIZE), rng.uniform(2.5, 4.5), rng.uniform(0.5, 1.2)
    sharp = rng.uniform(2.4, 4.0)
    wide = sharp * rng.uniform(1.1, 1.7)
    stars = draw_stars(rng, shape, log_density=rng.uniform(1.5, 2.5))
    reference = 350.0 + render_moffat(
        stars, shape, sharp, rng.uniform(0.0, 0.1), rng.uniform(0, 180), beta=beta
    )
    target = 620.0 + scale * render_moffat(
        stars.shifted(*rng.uniform(-0.5, 0.5, 2)), shape, wide, rng.uniform(0.0, 0.2),
        rng.uniform(0, 180), rng.uniform(0.0, 0.1), beta,
    )  # fmt: skip
    images = {"reference": reference, "target": target}
    noise = {}
    for name, exposures in (("reference", EXPOSURES), ("target", 1)):
        variance = ((READ_NOISE / GAIN) ** 2 + images[name] / GAIN) / exposures
        noise[name] = np.sqrt(variance)
        images[f"noisy_{name}"] = images[name] + noise[name] * rng.standard_normal(shape)
    return images, noise["reference"], scale, wide


@contextmanager
def components_alone(really: bool) -> Iterator[None]:
    """The prior without its column for light that the components miss."""
    if not really:
        yield
        return
    nothing = lambda self, x: Missed.nothing(len(self.projected))  # noqa: E731
    with patch.object(_Evidence, "missed_light", nothing):
        yield


def summary_of(how: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Over all fields."""
    ratio = np.array([row[f"mse_{how}"] / row["mse_plain"] for row in rows])
    off, pull = (np.array([row[f"{name}_{how}"] for row in rows]) for name in ("off", "pull"))
    return {
        "how": how, "fields": len(rows), "ratio": float(np.exp(np.log(ratio).mean())),
        "worst_ratio": float(ratio.max()), "off": float(off.mean()),
        "off_error": float(off.std(ddof=1) / math.sqrt(len(off))),
        "rms_off": float(np.sqrt((off**2).mean())), "rms_pull": float(np.sqrt((pull**2).mean())),
    }  # fmt: skip


if __name__ == "__main__":
    main()
