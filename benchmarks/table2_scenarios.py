"""The scenarios of Table 2 in short: one line for each method and SNR regime, ratios by cell.

    pytorchdia experiment table2 FOLDER --pairs 256 --scenario faint      # and the others
    python benchmarks/table2_scenarios.py FOLDER

Only blocks that every method of a scenario has finished count, so that all lines of a scenario are
about the same pairs. Regime 0 is all three together. Columns: n, the pairs; the median MSE of
eq 28; ``ratio``, the median over pairs of that MSE over the same loss's without a prior, and
``worst``, the largest of its medians in a cell of at least eight pairs; the median MFV; MPB;
``mpb_more``, the mean over pairs of F_measured / sigma_min less that of B08 (or of clipped B08);
the median and the robust scale (1.4826 MAD) of the pulls of P, and the shares within 1 and 2.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from harness import options, record
from numpy.typing import NDArray

from pytorchdia.experiments.cells import CELLS, SNR_REGIMES
from pytorchdia.experiments.scenarios import METHODS, ROBUST
from pytorchdia.experiments.tables import read_rows

AGAINST = {m.name: m.against for m in (*METHODS, *ROBUST)}
LEAST = 8  # pairs of a cell
Values = dict[str, NDArray[np.float64]]
NUMBERS = ("seed", "snr", "phi_r", "phi_k", "P", "mse", "mfv", "flux", "P_true", "P_error")


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    rows = []
    for folder in sorted({p.parents[1] for p in arguments.folder.glob("*/blocks/*.csv")}):
        rows += lines(folder)
    record("table2-scenarios", rows, arguments.output)
    for table in (medians_table(rows), cells_table(rows), pulls_table(rows)):
        print("\n".join(table), end="\n\n")


def lines(folder: Path) -> list[dict[str, Any]]:
    """A row for each method and regime of a scenario."""
    values, pairs = read(folder / "blocks")
    rows = []
    base = next((values[name] for name in ("b08", "b08-clip", "plain") if name in values), None)
    for name, mine in values.items():
        other = values.get(AGAINST[name] or "")
        for regime in range(len(SNR_REGIMES) + 1):
            low, high = (8.0, 1000.0) if regime == 0 else SNR_REGIMES[regime - 1]
            held = (mine["snr"] > low) & (mine["snr"] < high)
            row = {"scenario": folder.name, "pairs": pairs, "method": name, "regime": regime}
            row["n"] = int(held.sum())
            if row["n"] >= LEAST:
                row |= numbers_of(mine, other, base, held)
            rows.append(row)
    return rows


def read(blocks: Path) -> tuple[dict[str, Values], int]:
    """Columns of each method over the blocks that all have, and how many pairs were simulated."""
    files: dict[str, dict[str, Path]] = {}
    for path in sorted(blocks.glob("*.csv")):
        name, block = path.stem.rsplit("-", 1)
        files.setdefault(name, {})[block] = path
    common = sorted(set.intersection(*(set(of) for of in files.values())))
    order = [m.name for m in (*METHODS, *ROBUST) if m.name in files]
    values = {}
    for name in order:
        rows = [row for block in common for row in read_rows(files[name][block])]
        values[name] = {key: np.array([float(row[key]) for row in rows]) for key in NUMBERS}
    return values, 32 * len(common)


def numbers_of(
    mine: Values, other: Values | None, base: Values | None, held: NDArray[np.bool_]
) -> dict[str, Any]:
    """The columns of one row, with standard errors where they are not plain shares."""
    row: dict[str, Any] = {}
    row["mse"], row["mse_error"] = median(mine["mse"][held])
    if other is not None:
        ratio = mine["mse"] / other["mse"]
        row["ratio"], row["ratio_error"] = median(ratio[held])
        row["worst_pair"] = float(ratio[held].max())
        row["cells"] = by_cell(mine, ratio, held)
        row["worst"] = max((cell["ratio"] for cell in row["cells"]), default=None)
    row["mfv"], row["mfv_error"] = median(mine["mfv"][held])
    row["mpb"], row["mpb_error"] = mean(mine["flux"][held])
    row["mpv"] = float(mine["flux"][held].var(ddof=1))
    if base is not None and base is not mine:
        row["mpb_more"], row["mpb_more_error"] = mean((mine["flux"] - base["flux"])[held])
    pull = ((mine["P"] - mine["P_true"]) / mine["P_error"])[held]
    if np.isfinite(pull).all():
        row["pull"], row["pull_error"] = median(pull)
        row["pull_scale"] = float(1.4826 * np.median(np.abs(pull - np.median(pull))))
        row["pull_scale_error"] = row["pull_scale"] / (0.74 * len(pull)) ** 0.5
        for sigmas in (1, 2):
            row[f"within_{sigmas}"] = float((np.abs(pull) < sigmas).mean())
    return row


def by_cell(mine: Values, ratio: NDArray[np.float64], held: NDArray[np.bool_]) -> list[Any]:
    """Median ratio in each cell with enough pairs."""
    found = []
    for cell in CELLS:
        inside = held & cell.holds(mine["snr"], mine["phi_r"], mine["phi_k"])
        if inside.sum() >= LEAST:
            value, error = median(ratio[inside])
            found.append({
                "regime": cell.regime, "cell": cell.name, "n": int(inside.sum()),
                "ratio": value, "error": error, "worst_pair": float(ratio[inside].max()),
            })  # fmt: skip
    return found


def median(values: NDArray[np.float64]) -> tuple[float, float]:
    """A median and its standard error."""
    low, middle, high = np.percentile(values, [16, 50, 84])
    return float(middle), float(1.2533 * 0.5 * (high - low) / np.sqrt(len(values)))


def mean(values: NDArray[np.float64]) -> tuple[float, float]:
    """A mean and its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


TITLES = {
    "b08": "B08", "plain": "plain", "prior": "prior", "b08-clip": "B08, clipped",
    "gaussian": "Gaussian", "huber": "Huber", "student-t": "Student t",
    "huber-prior": "Huber, prior", "student-t-prior": "Student t, prior",
}  # fmt: skip
SCENARIOS = ("coverage", "faint", "bright", "asymmetric", "large-box", "real-frame", "cosmic-rays")
Rows = list[dict[str, Any]]


def of(rows: Rows, scenario: str, method: str, regime: int) -> dict[str, Any]:
    """One row; a folder of ``real-frame`` has the name of the frame behind it."""
    same = (
        r for r in rows
        if (r["method"], r["regime"]) == (method, regime)
        and (r["scenario"] == scenario or r["scenario"].startswith(f"{scenario}-"))
    )  # fmt: skip
    return next(same, {})


def methods_of(rows: Rows) -> list[tuple[str, str]]:
    """Scenario and method of each line of the tables."""
    return [(s, m) for s in SCENARIOS for m in TITLES if of(rows, s, m, 0)]


def cell(row: dict[str, Any], name: str, digits: int) -> str:
    """A value with its error in parentheses; empty if there is none."""
    if row.get(name) is None:
        return ""
    digits = 0 if abs(row[name]) >= 1000 else digits
    error = row.get(f"{name}_error")
    return f"{row[name]:.{digits}f}" + ("" if error is None else f" ({error:.{digits}f})")


def medians_table(rows: Rows) -> list[str]:
    """MSE, MFV and MPB of each scenario and method."""
    lines = [
        "| Scenario | Method | n | MSE, SNR 1 | MSE, SNR 2 | MSE, SNR 3 | MSE ratio | Worst cell | "
        "MFV | MPB | MPB less B08's |",
        "|" + "---|" * 11,
    ]
    for scenario, method in methods_of(rows):
        every = of(rows, scenario, method, 0)
        mse = [cell(of(rows, scenario, method, regime), "mse", 2) for regime in (1, 2, 3)]
        more = [cell(every, "ratio", 3), cell(every, "worst", 2), cell(every, "mfv", 3),
                cell(every, "mpb", 2), cell(every, "mpb_more", 3)]  # fmt: skip
        lines.append(f"| {scenario} | {TITLES[method]} | {every['n']} | {' | '.join(mse + more)} |")
    return lines


def cells_table(rows: Rows) -> list[str]:
    """The ratio with a prior to without in each of the twelve cells."""
    columns = [(s, "prior") for s in SCENARIOS[:-1]]
    columns += [("cosmic-rays", "huber-prior"), ("cosmic-rays", "student-t-prior")]
    heads = [*SCENARIOS[:-1], "cosmic-rays, Huber", "cosmic-rays, Student t"]
    lines = [f"| SNR | Cell | {' | '.join(heads)} |", "|" + "---|" * (2 + len(heads))]
    for box in CELLS:
        found = []
        for scenario, method in columns:
            cells = of(rows, scenario, method, 0).get("cells", ())
            same = (c for c in cells if (c["regime"], c["cell"]) == (box.regime, box.name))
            one = next(same, None)
            found.append("" if one is None else
                         f"{one['ratio']:.2f} ({one['error']:.2f}; {one['n']})")  # fmt: skip
        lines.append(f"| {box.regime} | {box.name} | {' | '.join(found)} |")
    return lines


def pulls_table(rows: Rows) -> list[str]:
    """How the errors of P hold."""
    lines = [
        "| Scenario | Method | SNR | n | Median | Scale | Within 1 | Within 2 |", "|" + "---|" * 8,
    ]  # fmt: skip
    for scenario, method in methods_of(rows):
        for regime in (1, 2, 3):
            row = of(rows, scenario, method, regime)
            if "pull" in row:
                values = [cell(row, "pull", 2), cell(row, "pull_scale", 2),
                          cell(row, "within_1", 2), cell(row, "within_2", 2)]  # fmt: skip
                lines.append(
                    f"| {scenario} | {TITLES[method]} | {regime} | {row['n']} | "
                    f"{' | '.join(values)} |"
                )
    return lines


if __name__ == "__main__":
    main()
