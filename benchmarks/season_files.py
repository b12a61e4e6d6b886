"""How long `pytorchdia reduce` takes from the raw frames of a telescope to the report.

    python benchmarks/season_files.py "saao_bulge_series/*.fits.fz" --saturation 45000

Each run begins from nothing, in a process of its own that starts others as it sees fit. Prints and
records seconds, seconds of each step (the sum over its pieces of work) and the largest memory of
any process; the median and the extremes over the runs come last.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from harness import record
from season_scaling import reduce


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", help="pattern of the frames")
    parser.add_argument("--saturation", type=float, help="[ADU], if the headers do not say it")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--output")
    arguments = parser.parse_args()
    pattern = Path(arguments.files).absolute()
    config = f"[frames]\nfiles = [{json.dumps(str(pattern))}]\n"
    if arguments.saturation is not None:
        config += f"[camera]\nsaturation = {arguments.saturation}\n"
    rows: list[dict[str, object]] = []
    for _ in range(arguments.repeat):
        with tempfile.TemporaryDirectory() as name:
            (Path(name) / "config.toml").write_text(config)
            rows.append({"files": pattern.name, **reduce(Path(name), None)})
            print(json.dumps(rows[-1]), flush=True)
    seconds = [float(str(row["seconds"])) for row in rows]
    spread = {"median": statistics.median(seconds), "least": min(seconds), "most": max(seconds)}
    print(json.dumps(spread))
    record("season-files", [*rows, spread], arguments.output)


if __name__ == "__main__":
    main()
