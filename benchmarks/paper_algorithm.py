"""The paper's own algorithm, Adam then L-BFGS, with each of its options, against Newton.

python benchmarks/paper_algorithm.py --image 142
"""

from __future__ import annotations

import torch
from harness import clocked, make_pair, options, ours, record, show, statistics_of, take_turns

from pytorchdia import AdamLBFGS, Newton
from pytorchdia.solvers import ConvolutionLayer


def main() -> None:
    parser = options(__doc__, image=142, kernel=19, seed=3, repeat=3, device="cpu")
    parser.add_argument("--compile", action="store_true", help="also torch.compile")
    arguments = parser.parse_args()
    images = make_pair(arguments.image, arguments.seed)
    solvers = {
        "Newton": Newton(),
        "transforms": AdamLBFGS(),
        "layer": AdamLBFGS(layer=ConvolutionLayer()),
        "layer, autocast bfloat16": AdamLBFGS(layer=ConvolutionLayer(autocast=torch.bfloat16)),
    }
    if arguments.device.startswith("cuda"):
        solvers["layer, benchmark"] = AdamLBFGS(layer=ConvolutionLayer(benchmark=True))
        solvers["layer, deterministic"] = AdamLBFGS(layer=ConvolutionLayer(deterministic=True))
        solvers["layer, autocast float16"] = AdamLBFGS(
            layer=ConvolutionLayer(autocast=torch.float16)
        )
    if arguments.compile:
        solvers["layer, compiled"] = AdamLBFGS(layer=ConvolutionLayer(compile=True))
    results = {}

    def run(name: str) -> None:
        results[name] = ours(
            images, arguments.kernel, solver=solvers[name], device=arguments.device
        )

    times = take_turns(
        {name: clocked(lambda name=name: run(name)) for name in solvers}, arguments.repeat
    )
    rows = []
    for name, each in times.items():
        d = results[name].diagnostics
        row = {"image": arguments.image, "kernel": arguments.kernel, "contender": name}
        row |= statistics_of(each)
        row |= {"evaluations": d.evaluations, "status": results[name].status.name}
        row["loss_above_newton"] = d.loss - results["Newton"].diagnostics.loss
        rows.append(row)
        show(row)
    record("paper-algorithm", rows, arguments.output)


if __name__ == "__main__":
    main()
