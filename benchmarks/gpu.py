"""Everything that is to be measured on a GPU, in one call.

The claims to test: 4096 x 4096 in 0.05 s, and 10,000 pairs of 142 x 142 per second. The results go
to results/gpu-*.json. With --device cpu it is a rehearsal.

    python benchmarks/gpu.py
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="small sizes only")
    arguments = parser.parse_args()
    sizes = ["142", "512"] if arguments.quick else ["142", "512", "1024", "2048", "4096", "8192"]
    batches = ["4", "16"] if arguments.quick else ["1", "64", "1000", "10000"]
    image = "142" if arguments.quick else "1000"
    for script, options in (
        ("image_sizes", ["--sizes", *sizes]),
        ("kernel_sizes", ["--image", image]),
        ("stamps", ["--batches", *batches]),
        ("paper_algorithm", ["--image", image, "--repeat", "2"]),
    ):
        output = HERE / "results" / f"gpu-{script.replace('_', '-')}.json"
        subprocess.run(
            [sys.executable, str(HERE / f"{script}.py"), "--device", arguments.device, *options,
             "--output", str(output)],
            check=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
