"""What allowing for the noise of the reference brings, cell by cell and for kernels of any form.

The claims: where the kernel is narrow the model is closer to the noiseless target, nowhere much
further, and P is less biased; a delta function comes out as one. The same pairs are fitted with and
without ``noisy_reference``. ``ratio`` is the geometric mean over pairs of the new error of eq 28
over the old one; P and MPB are means, MFV is a median, pulls of P are root mean squares.

    python benchmarks/noisy_reference.py
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from harness import NOISE, REFERENCE_NOISE, options, record, show
from numpy.typing import NDArray

from pytorchdia import GaussianProcessPrior, PyTorchDIAWarning, Subtraction, subtract
from pytorchdia.experiments.cells import CELLS, Cell
from pytorchdia.experiments.scenarios import SCENARIOS
from pytorchdia.experiments.table2 import measure
from pytorchdia.simulate import SimulatedPair, odd_kernels, simulate_pair, simulate_with_kernel

FIRST, FIRST_ODD = 1000, 2000  # seeds
TEXT = SCENARIOS["text"]  # section 3.1 as it is written
PRIORS = {
    "before": GaussianProcessPrior(),
    "after": GaussianProcessPrior(noisy_reference=True),
}
Row = dict[str, Any]


def main() -> None:
    parser = options(__doc__, pairs=14, odd=10)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", PyTorchDIAWarning)
    rows: list[Row] = []
    for cell, seeds in seeds_of_cells(arguments.pairs).items():
        rows.append({"regime": cell.regime, "cell": cell.name})
        rows[-1] |= summary([paper_pair(seed) for seed in seeds])
        show(rows[-1])
        record("noisy-reference", rows, arguments.output)  # after each cell: nothing is lost
    for name, kernel in odd_kernels().items() if arguments.odd else ():
        rows.append({"kernel": name})
        rows[-1] |= odd_summary(odd_pairs(kernel, arguments.odd), kernel)
        show(rows[-1])
        record("noisy-reference", rows, arguments.output)


def seeds_of_cells(wanted: int) -> dict[Cell, list[int]]:
    """The first seeds of pairs of section 3.1 that fall into each cell."""
    found: dict[Cell, list[int]] = {cell: [] for cell in CELLS}
    seed = FIRST
    while any(len(seeds) < wanted for seeds in found.values()):
        pair = simulate_pair(seed)
        for cell, seeds in found.items():
            if len(seeds) < wanted and cell.holds(pair.snr, pair.phi_r, pair.phi_k):
                seeds.append(seed)
        seed += 1
    return found


def fits(pair: SimulatedPair, covariance: bool) -> dict[str, Subtraction]:
    """One pair, fitted both ways."""
    return {
        how: subtract(
            pair.target, pair.reference, noise=NOISE, reference_noise=REFERENCE_NOISE,
            penalty=penalty, covariance=covariance,
        )
        for how, penalty in PRIORS.items()
    }  # fmt: skip


def paper_pair(seed: int) -> dict[str, Row]:
    """The metrics of Table 1 of one pair, both ways."""
    case = TEXT.case(seed)
    return {how: measure(case, result) for how, result in fits(case.pair, False).items()}


def summary(pairs: Sequence[dict[str, Row]]) -> Row:
    """The numbers of one cell."""
    row: Row = {"n": len(pairs)} | ratios([p["after"]["mse"] / p["before"]["mse"] for p in pairs])
    for how in PRIORS:
        columns = ("P", "P_error", "mse", "mfv", "flux")
        scale, error, mse, mfv, flux = (np.array([p[how][name] for p in pairs]) for name in columns)
        row[f"mse_{how}"] = float(np.median(mse))
        row[f"P_{how}"], row[f"P_error_{how}"] = mean(scale)
        row[f"pull_{how}"] = rms((scale - 1.0) / error)
        row[f"mfv_{how}"] = float(np.median(mfv))
        row[f"mpb_{how}"], row[f"mpb_error_{how}"] = mean(flux)
        row[f"mpv_{how}"] = float(flux.var(ddof=1))
    return row


def odd_pairs(kernel: NDArray[np.float64], wanted: int) -> list[SimulatedPair]:
    """The first pairs with this kernel and an SNR within the table."""
    found: list[SimulatedPair] = []
    seed = FIRST_ODD
    while len(found) < wanted:
        pair = simulate_with_kernel(seed, kernel)
        if 8 < pair.snr < 1000:
            found.append(pair)
        seed += 1
    return found


def odd_summary(pairs: Sequence[SimulatedPair], kernel: NDArray[np.float64]) -> Row:
    """The numbers of one kernel; pulls of pixels are those above a tenth of its peak."""
    core = kernel > 0.1 * kernel.max()
    collected: dict[str, list[float]] = {}
    for pair in pairs:
        for how, r in fits(pair, True).items():
            errors = np.sqrt(np.diag(r.kernel_covariance)).reshape(kernel.shape)
            away = r.kernel - kernel
            numbers = {
                "mse": float(((r.model - pair.target_noiseless)[~r.mask] ** 2).mean()),
                "kernel_error": float(np.sqrt((away**2).sum())),
                "pixel_pull": rms(away[core] / errors[core]),
                "pull": (r.scale - kernel.sum()) / r.scale_error,
                "P_error": r.scale_error,
            }
            for name, value in numbers.items():
                collected.setdefault(f"{name}_{how}", []).append(value)
    values = {name: np.array(each) for name, each in collected.items()}
    row = {"n": len(pairs)} | ratios(list(values["mse_after"] / values["mse_before"]))
    for how in PRIORS:
        for name in ("mse", "kernel_error", "pixel_pull", "P_error"):
            row[f"{name}_{how}"] = float(np.median(values[f"{name}_{how}"]))
        row[f"pull_{how}"] = rms(values[f"pull_{how}"])
    return row


def ratios(values: list[float]) -> Row:
    """Geometric mean, median and largest."""
    return {
        "ratio": float(np.exp(np.log(values).mean())),
        "median_ratio": float(np.median(values)),
        "worst_ratio": float(max(values)),
    }


def mean(values: NDArray[np.float64]) -> tuple[float, float]:
    """A mean and its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def rms(values: NDArray[np.float64]) -> float:
    """Root of the mean square."""
    return float(np.sqrt((values**2).mean()))


if __name__ == "__main__":
    main()
