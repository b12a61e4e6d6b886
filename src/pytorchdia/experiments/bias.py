"""Section 3.4: no algorithmic bias. Known transformations of an image, without new noise.

The weights are fixed here. With a variance that follows the model, data without noise are not a
draw from the model, and the most likely background lies half an electron off (docs/model.md).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import correlate, shift

from ..errors import NoiseWarning
from ..kernel import DeltaKernel, gaussian_kernel
from ..noise import FixedVariance
from ..simulate import simulate_pair
from ..subtract import subtract
from ..subtraction import Subtraction
from .tables import write_rows, write_text

__all__ = ["TRANSFORMATIONS", "BiasTest", "run_bias"]

FloatArray = NDArray[np.float64]

SIZE = 19  # side of the kernel
SEED = 34  # of the image


def _copy(image: FloatArray) -> FloatArray:
    return image


def _blur(image: FloatArray) -> FloatArray:
    blurred: FloatArray = correlate(image, gaussian_kernel((SIZE, SIZE), 1.5).numpy(), mode="wrap")
    return blurred


def _shift_by_one(image: FloatArray) -> FloatArray:
    return np.roll(image, (1, 1), axis=(0, 1))  # content moves to larger x and y


def _shift_by_half(image: FloatArray) -> FloatArray:
    # Without pre-filtering (footnote 10 of the paper) the spline is a kernel of 4 x 4 pixels.
    moved: FloatArray = shift(image, (0.5, 0.5), order=3, mode="grid-wrap", prefilter=False)
    return moved


TRANSFORMATIONS: dict[str, tuple[Callable[[FloatArray], FloatArray], float, float]] = {
    "(i) a copy": (_copy, 4e-7, 1e-8),
    "(ii) a Gaussian of 1.5 pixels": (_blur, 3e-7, 1e-8),
    "(iii) a shift by one pixel": (_shift_by_one, 4e-7, 1e-8),
    "(iv) a shift by half a pixel": (_shift_by_half, 4e-7, 1e-8),
}
"""What is done to the image, and the paper's fractional errors of P and B_0, in float32."""


@dataclass(frozen=True)
class BiasTest:
    """Fractional errors of P and B_0, and the largest error of a kernel pixel over its peak."""

    transformation: str
    dtype: str
    scale_error: float
    background_error: float
    kernel_error: float
    paper_scale_error: float
    paper_background_error: float


def run_bias(
    folder: Path, progress: Callable[[int, int], None] = lambda done, total: None
) -> list[BiasTest]:
    """Run the four tests in both precisions; leave ``bias.csv`` and ``bias.md`` in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    image = simulate_pair(SEED).reference
    level = float(np.median(image))
    point = np.zeros((3 * SIZE, 3 * SIZE))
    point[3 * SIZE // 2, 3 * SIZE // 2] = 1.0
    found: list[BiasTest] = []
    total = 2 * len(TRANSFORMATIONS)
    for name, (transform, paper_p, paper_b) in TRANSFORMATIONS.items():
        target = transform(image - level) + level
        # Eq 2 is a correlation: its kernel is the response to a point, turned by half a turn.
        middle = slice(SIZE, 2 * SIZE)
        kernel = transform(point)[middle, middle][::-1, ::-1]
        for dtype in (torch.float32, torch.float64):
            progress(len(found), total)
            result = _fit(target, image, dtype)
            found.append(
                BiasTest(
                    name,
                    str(dtype).removeprefix("torch."),
                    abs(result.scale / kernel.sum() - 1.0),
                    abs(float(result.background.coefficients[0]) / level - 1.0),
                    float(np.abs(result.kernel - kernel).max() / kernel.max()),
                    paper_p,
                    paper_b,
                )
            )
    progress(total, total)
    write_rows([vars(test) for test in found], folder / "bias.csv")
    write_text(_page(found), folder / "bias.md")
    return found


def _fit(target: FloatArray, reference: FloatArray, dtype: torch.dtype) -> Subtraction:
    noise = FixedVariance(25.0 + np.clip(target, 1.0, None))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoiseWarning)  # there is no noise, on purpose
        result = subtract(
            target, reference, kernel=DeltaKernel(SIZE), dtype=dtype, covariance=False,
            noise=noise, reference_noise=FixedVariance(1.0), penalty=None,
        )  # fmt: skip
    assert isinstance(result, Subtraction)  # two images make one pair
    return result


def _page(tests: list[BiasTest]) -> str:
    lines = [
        "# Section 3.4, rerun", "",
        "Fractional errors of P and of B_0, and the largest error of a kernel pixel over its peak;",
        "in square brackets those of the paper (float32).", "",
        "| Target | Precision | P | B_0 | Kernel pixel |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for t in tests:
        lines.append(
            f"| {t.transformation} | {t.dtype} | {t.scale_error:.0e} [{t.paper_scale_error:.0e}] | "
            f"{t.background_error:.0e} [{t.paper_background_error:.0e}] | {t.kernel_error:.0e} |"
        )
    return "\n".join([*lines, ""])
