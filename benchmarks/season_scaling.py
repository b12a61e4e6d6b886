"""How the time and the memory of `pytorchdia reduce` grow with the frames and the workers.

    python benchmarks/season_scaling.py --size 512 --frames 10 20 40 --workers 1 2

Simulated seasons, each reduced in a process of its own, then continued by ten more frames, as
after another night. Prints and records seconds, seconds of each step (the sum over its pieces of
work) and the largest memory of any process.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from harness import record

from pytorchdia.config import parse_frame_size
from pytorchdia.simulate.season import Season, write_season

# A child of its own, so that the peak is that of this run and of its workers.
_MEASURED = """
import resource, sys
from pytorchdia.cli.main import main
try:
    main()
finally:
    whose = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
    print("PEAK", max(resource.getrusage(w).ru_maxrss for w in whose), file=sys.stderr)
"""
_UNIT = re.compile(r" INFO (\w+) \S+: done in ([\d.]+) s")
NIGHT = 10  # frames that a season is continued by


def command(*words: str) -> int:
    """Run `pytorchdia` in a process of its own; its largest memory [bytes]."""
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return int(done.stderr.split("PEAK")[-1]) * 1024


def reduce(folder: Path, workers: int | None) -> dict[str, object]:
    """Run `pytorchdia reduce` on a folder that has its settings; None lets it choose processes."""
    log = folder / "run" / "log.txt"
    before = log.stat().st_size if log.exists() else 0
    started = time.perf_counter()
    given = () if workers is None else ("--workers", str(workers))
    peak = command("reduce", str(folder / "config.toml"), "--quiet", *given)
    seconds = time.perf_counter() - started
    steps: Counter[str] = Counter()
    with open(log, encoding="utf-8") as file:
        file.seek(before)
        for step, taken in _UNIT.findall(file.read()):
            steps[step] += float(taken)
    return {"seconds": seconds, "steps": dict(steps), "peak_bytes": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="512", help="side, or HEIGHTxWIDTH [pixels]")
    parser.add_argument("--frames", type=int, nargs="+", default=[10, 20, 40])
    parser.add_argument("--workers", type=int, nargs="*", default=[], help="beside one process")
    parser.add_argument("--stars", type=int, help="constant stars; 1000 on 512 x 512 if absent")
    parser.add_argument("--output")
    arguments = parser.parse_args()
    season = Season(shape=parse_frame_size(arguments.size), n_stars=arguments.stars)
    rows = []
    for n in arguments.frames:
        for workers in (1, *arguments.workers):
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                write_season(season, folder, n)
                frames = folder / "frames"
                command("init", str(frames))
                row = {
                    "size": arguments.size,
                    "frames": n,
                    "workers": workers,
                }
                row |= reduce(frames, workers)
                write_season(season, folder, n + NIGHT, first=n, overwrite=True)
                row["ten_more"] = reduce(frames, workers)
                rows.append(row)
                print(json.dumps(row), flush=True)
    record("season-scaling", rows, arguments.output)


if __name__ == "__main__":
    main()
