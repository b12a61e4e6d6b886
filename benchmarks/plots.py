"""Draw the scaling plots of docs/performance.md from the recorded results, and print its tables.

python benchmarks/plots.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
from harness import HERE, RESULTS

matplotlib.use("Agg")
IMAGE = HERE.parent / "docs" / "images" / "scaling.png"
STYLES = {
    "pytorchdia, float32": "o-",
    "B08 by BLAS, 3 rounds": "s--",
    "sfft": "^--",
    "cuphoton": "v--",
}


def rows_of(name: str) -> list[dict[str, Any]]:
    path: Path = RESULTS / f"{name}.json"
    return json.loads(path.read_text())["rows"] if path.exists() else []


def table(rows: list[dict[str, Any]], columns: dict[str, str]) -> None:
    """One Markdown table: title -> format of a row."""
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for row in rows:
        cells = []
        for form in columns.values():
            try:
                cells.append(form.format(**row))
            except KeyError:
                cells.append("")
        print("| " + " | ".join(cells) + " |")
    print()


def main() -> None:
    sizes, kernels = rows_of("image-sizes"), rows_of("kernel-sizes")
    sizes += [r for r in rows_of("image-sizes-cuphoton") if r["contender"] == "cuphoton"]
    stamps, memory = rows_of("stamps"), rows_of("memory")
    threads = rows_of("threads")
    figure, panels = plt.subplots(2, 2, figsize=(9, 7.4), layout="constrained")
    (left, middle), (right, last) = panels
    for name, style in STYLES.items():
        mine = [r for r in sizes if r["contender"] == name]
        if mine:
            times = [r["median_s"] for r in mine]
            left.loglog([r["image"] for r in mine], times, style, label=name)
    left.set(xlabel="side of the image [pixels]", ylabel="median time [s]", title="19 x 19 kernel")
    left.set_xticks(sorted({r["image"] for r in sizes}))
    left.xaxis.set_major_formatter("{x:.0f}")
    left.minorticks_off()
    left.legend(fontsize=8)
    middle.plot([r["kernel"] for r in kernels], [r["median_s"] for r in kernels], "o-")
    middle.set(xlabel="side of the kernel [pixels]", title="1000 x 1000 image")
    middle.set_ylim(bottom=0)
    for name in ("own references", "one reference", "loop"):
        mine = [r for r in stamps if r["contender"] == name]
        speed = [r["pairs_per_second"] for r in mine]
        right.plot([r["pairs"] for r in mine], speed, "o-", label=name)
    right.set(xlabel="pairs in the stack", ylabel="pairs per second", title="142 x 142 pairs")
    right.set_ylim(bottom=0)
    right.legend(fontsize=8)
    for n in sorted({r["image"] for r in threads}):
        mine = [r for r in threads if r["image"] == n]
        speed = [r["speed_over_first"] for r in mine]
        last.plot([r["threads"] for r in mine], speed, "o-", label=f"{n} x {n}")
    last.set(xlabel="threads", ylabel="speed over one thread", title="19 x 19 kernel")
    last.set_xticks(sorted({r["threads"] for r in threads}))
    last.set_ylim(bottom=0)
    last.legend(fontsize=8)
    figure.savefig(IMAGE, dpi=110)
    times = {"Median": "{median_s:.3f} s", "Least to most": "{min_s:.3f} to {max_s:.3f} s"}
    table(
        sizes,
        {"Image": "{image}", "Contender": "{contender}", **times,
         "Over ours": "{over_pytorchdia:.1f}", "ns per pixel": "{ns_per_pixel:.0f}",
         "Loss above float64": "{loss_above_float64:.0e}",
         "Error of P": "{scale_error_against_float64:.0e}", "Steps": "{steps}"},
    )  # fmt: skip
    table(kernels, {"Kernel": "{kernel}", **times, "Over 19": "{over_19:.2f}"})
    table(
        stamps,
        {"Pairs": "{pairs}", "How": "{contender}", **times,
         "Pairs per second": "{pairs_per_second:.0f}"},
    )  # fmt: skip
    table(
        memory,
        {"Image": "{image}", "Kernel": "{kernel}", "Limit": "{max_memory}",
         "Beside the input": "{extra_GB:.2f} GB", "In float32 images": "{float32_images:.1f}",
         "Time": "{seconds:.1f} s", "ns per pixel": "{ns_per_pixel:.0f}"},
    )  # fmt: skip
    table(
        threads,
        {"Image": "{image}", "Threads": "{threads}", **times,
         "Speed over one": "{speed_over_first:.2f}"},
    )  # fmt: skip
    table(
        rows_of("paper-algorithm"),
        {"Solver": "{contender}", **times, "Evaluations": "{evaluations}", "Status": "{status}",
         "Loss above Newton": "{loss_above_newton:.2g}"},
    )  # fmt: skip


if __name__ == "__main__":
    main()
