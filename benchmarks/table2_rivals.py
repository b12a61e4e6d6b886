"""Other packages on the pairs of section 3.1: error against the truth, fit quality and photometry.

The question: whose model is closest to the noiseless target on the pairs of section 3.1, and whose
photometry is least biased.

    pytorchdia experiment table2 FOLDER --pairs 200 --scenario text
    python benchmarks/table2_rivals.py FOLDER --pairs 200 \\
        --python benchmarks/rivals/.venv/bin/python benchmarks/rivals/.venv312/bin/python

The settings are those of rivals/README.md. All see the same pairs, a box of 19 x 19 pixels, a
constant kernel and a flat background (``ois-adaptive`` takes a plane), and the reference less its
median. Pixels nearer to an edge than half a box do not count for anybody. MPB needs a kernel, so
that packages which report none are left out. Pairs are worked on in blocks, as in the run of the
experiment, and rows are kept in FOLDER/rivals, so that a run that was interrupted goes on.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from harness import Rivals, options, record, show
from numpy.typing import NDArray

from pytorchdia import Status
from pytorchdia.experiments.cells import SNR_REGIMES
from pytorchdia.experiments.scenarios import SCENARIOS, Case
from pytorchdia.experiments.table2 import BLOCK, measure, run_table2
from pytorchdia.experiments.tables import read_rows, write_rows
from pytorchdia.simulate import READ_NOISE

TEXT = SCENARIOS["text"]  # section 3.1 as it is written
BOX = 19
NAMES = ("sfft", "ois", "ois-adaptive", "ois-alard-lupton", "cuphoton", "cuphoton-told")
Row = dict[str, Any]


@dataclass(frozen=True)
class Found:
    """What a rival found, as far as the metrics ask."""

    difference: NDArray[np.float64]
    model: NDArray[np.float64]
    mask: NDArray[np.bool_]
    kernel: NDArray[np.float64]
    scale: float
    scale_error: float = float("nan")
    status: Status = Status.CONVERGED


def main() -> None:
    parser = options(__doc__, pairs=200)
    parser.add_argument("folder", type=Path, help="of pytorchdia experiment table2")
    parser.add_argument("--python", nargs="*", default=[], help="interpreters with rivals")
    parser.add_argument("--rivals", nargs="+", default=NAMES)
    arguments = parser.parse_args()
    blocks = range(math.ceil(arguments.pairs / BLOCK))
    run_table2(arguments.folder, BLOCK * len(blocks), TEXT, workers=1)
    home = arguments.folder / "rivals"
    home.mkdir(exist_ok=True)
    versions: dict[str, str] = {}
    started = [Rivals(Path(python).absolute()) for python in arguments.python]
    for block in blocks:
        for rivals in started:
            known = rivals.ask(list=True)["rivals"]
            for name in arguments.rivals:
                if known[name]["ok"]:
                    versions[name] = known[name]["version"]
                    theirs(rivals, name, block, home / f"{name}-{block:05d}.csv")
    for rivals in started:
        rivals.close()
    report(arguments.folder, versions, blocks, arguments.output)


def report(folder: Path, versions: dict[str, str], blocks: range, output: str | None) -> None:
    """Summarise the rows of everybody."""
    measured = {
        name: gather(folder / TEXT.name / "blocks", name, blocks)
        for name in (method.name for method in TEXT.methods)
    }
    for name in versions:
        measured[name] = gather(folder / "rivals", name, blocks)
    rows = []
    for name, values in measured.items():
        for regime in range(1, len(SNR_REGIMES) + 1):
            rows.append({"method": name, "version": versions.get(name)})
            rows[-1] |= summary(regime, values, measured["prior"])
            show(rows[-1])
    record("table2-rivals", rows, output)


def gather(folder: Path, name: str, blocks: range) -> dict[int, Row]:
    """Rows of one method by seed."""
    rows = [row for block in blocks for row in read_rows(folder / f"{name}-{block:05d}.csv")]
    return {int(row["seed"]): dict(row) for row in rows}


def theirs(rivals: Rivals, name: str, block: int, path: Path) -> None:
    """Write a rival's metrics for each pair of a block that it did not refuse."""
    if path.exists():
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        loaded, saved = Path(folder) / "pair.npz", Path(folder) / "found.npz"
        for seed in range(BLOCK * block, BLOCK * (block + 1)):
            case = TEXT.case(seed)
            pair = case.pair
            if not SNR_REGIMES[0][0] < pair.snr < SNR_REGIMES[-1][1]:
                continue
            np.savez(
                loaded, reference=pair.reference - np.median(pair.reference), target=pair.target,
                read_noise=READ_NOISE, gain=1.0, saturation=np.inf, phi_k=pair.phi_k,
            )  # fmt: skip
            rivals.ask(load=str(loaded), kernel=BOX)
            answer = rivals.ask(run=name, save=str(saved))
            if "error" in answer:
                print(f"{name}, pair {seed}: {answer['error']}", flush=True)
                continue
            with np.load(saved) as arrays:
                found = metrics(case, arrays["difference"], arrays["kernel"])
            rows.append({"seed": seed} | found)
    write_rows(rows, path, ("seed",))


def metrics(case: Case, difference: NDArray[np.float64], kernel: NDArray[np.float64]) -> Row:
    """The metrics of Table 1; pixels nearer to an edge than half a box do not count."""
    mask = np.ones(difference.shape, dtype=bool)
    half = BOX // 2
    mask[half:-half, half:-half] = False
    difference = np.where(mask, 0.0, difference)  # some packages leave NaN at the edges
    found: Any = Found(difference, case.pair.target - difference, mask, kernel, float(kernel.sum()))
    return measure(case, found)


def summary(regime: int, values: dict[int, Row], prior: dict[int, Row]) -> Row:
    """Medians in one SNR regime, with standard errors; ``ratio`` is the prior's MSE over theirs."""
    low, high = SNR_REGIMES[regime - 1]
    inside = [seed for seed, row in prior.items() if low < float(row["snr"]) < high]
    seeds = [seed for seed in inside if seed in values]
    row: Row = {"regime": regime, "pairs": len(seeds), "refused": len(inside) - len(seeds)}
    if len(seeds) < 3:
        return row
    columns = {
        name: np.array([float(values[s][name]) for s in seeds])
        for name in ("P", "mse", "mfb", "mfv", "flux")
    }
    columns["ratio"] = np.array([float(prior[s]["mse"]) for s in seeds]) / columns["mse"]
    for name in ("P", "mse", "mfb", "mfv", "ratio"):
        p16, median, p84 = np.percentile(columns[name], [16, 50, 84])
        row[name] = float(median)
        row[f"{name}_error"] = float(1.2533 * 0.5 * (p84 - p16) / np.sqrt(len(seeds)))
    row["worst_ratio"] = float(columns["ratio"].max())
    flux = columns["flux"]
    row["mpb"] = float(flux.mean())
    row["mpb_error"] = float(flux.std(ddof=1) / np.sqrt(len(flux)))
    row["mpv"] = float(flux.var(ddof=1))
    return row


if __name__ == "__main__":
    main()
