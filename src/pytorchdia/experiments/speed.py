"""Sections 5.1 and 5.2: seconds of a fit against the sizes of image and kernel (Figures 6 to 8)."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch

from ..likelihood import Huber
from ..solvers import AdamLBFGS, ConvolutionLayer, Newton, NormalEquations, Solver, Step
from .rounds import Contender, Job, Point, StoppedError, Timing, run_rounds
from .scenes import FRAME, Scene, ccd_scene, emccd_scene
from .speed_page import draw_speed, write_speed

__all__ = ["METHODS", "devices", "run_speed_image", "run_speed_kernel"]

METHODS: dict[str, tuple[float, float]] = {
    "Newton": (2.0, 1.0),
    "Adam, L-BFGS; flat start": (1.0, 1.0),
    "Adam, L-BFGS; Gaussian start": (1.0, 1.0),
    "Adam, L-BFGS; layer": (1.0, 1.0),
    "B08": (2.0, 4.0),
}
"""Methods, and the powers of n and m by which the next time is guessed from the last.

Descents take fewer steps on larger images, and are stopped where they take too long after all.
"""

KERNEL = 19
B08_CLIP = 5.0  # sigma, on EMCCD images (section 5.1)
Progress = Callable[[int, int], None]


def run_speed_image(
    folder: Path, quick: bool = False, progress: Progress = lambda done, total: None
) -> list[Timing]:
    """Figures 6, 7 and 8: seconds against the size of the image; kernel 19 x 19, if quick 7 x 7."""
    if quick:
        points = [Point("ccd", n, 7, 3, 5.0) for n in (100, 200, 400)]
        points += [Point("emccd", n, 7, 3, 5.0) for n in (100, 200)]
    else:
        points = [
            Point("ccd", n, KERNEL, 5, 30.0) for n in (100, 142, 200, 300, 500, 1000, 2000, 4000)
        ]
        many = FRAME if torch.cuda.is_available() else 142  # the size of Figure 7
        points += [
            Point("emccd", n, KERNEL, 16, 45.0) if n == many else Point("emccd", n, KERNEL, 5, 15.0)
            for n in (142, 242, FRAME)
        ]
    return time_points(folder, "speed-image", points, progress)


def run_speed_kernel(
    folder: Path, quick: bool = False, progress: Progress = lambda done, total: None
) -> list[Timing]:
    """Seconds against the size of the kernel: 200 x 200 pixels; 1000 x 1000 with a CUDA device."""
    if quick:
        points = [Point("ccd", 100, m, 3, 4.0) for m in (7, 13, 19, 25)]
    else:
        image = 1000 if torch.cuda.is_available() else 200
        points = [Point("ccd", image, m, 5, 15.0) for m in (7, 13, 19, 25, 31, 37, 47)]
    return time_points(folder, "speed-kernel", points, progress)


def time_points(
    folder: Path, name: str, points: list[Point], progress: Progress, pause: float = 0.3
) -> list[Timing]:
    """Time every method at these points; leave ``name`` as .csv, .md and .png in ``folder``."""
    contenders = [Contender(m, d, METHODS[m]) for d in devices() for m in METHODS]
    timings = run_rounds(folder, points, contenders, _job, _warm_up, progress, pause)
    against = "kernel" if name == "speed-kernel" else "image"
    write_speed(timings, folder, name, against)
    draw_speed(timings, folder / f"{name}.png", against)
    return timings


def devices() -> list[str]:
    """The CPU, and the CUDA device where there is one."""
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def _job(point: Point, contender: Contender, number: int) -> Job | str:
    if point.scene == "emccd":  # every round has a target of its own, as in the paper
        if contender.method == "Adam, L-BFGS; layer":
            return "timed on the CCD images only"
        scene = emccd_scene(point.image, number)
    else:
        scene = ccd_scene(point.image)
    return partial(_fit, scene, point.kernel, contender, point.limit(number))


def _fit(scene: Scene, kernel: int, contender: Contender, limit: float) -> dict[str, object]:
    """From images in main memory to the solution: no errors, no difference image."""
    started = time.perf_counter()

    def on_step(step: Step) -> None:
        if time.perf_counter() - started > limit:
            raise StoppedError

    robust = contender.method != "B08"
    objective = scene.objective(kernel, contender.device, robust)
    solution = _solver(contender.method, scene).solve(objective, on_step=on_step)
    return {
        "status": solution.status.name, "evaluations": solution.evaluations,
        "phi_i": scene.phi_i, "snr": scene.snr,
    }  # fmt: skip


def _solver(method: str, scene: Scene) -> Solver:
    match method:
        case "Newton":
            return Newton()
        case "B08":
            return NormalEquations(3, B08_CLIP if isinstance(scene.likelihood, Huber) else None)
        case "Adam, L-BFGS; Gaussian start":
            return AdamLBFGS(start_sigma=scene.phi_k)
        case "Adam, L-BFGS; layer":
            return AdamLBFGS(layer=ConvolutionLayer())
        case _:
            return AdamLBFGS()


def _warm_up(contender: Contender) -> None:
    with suppress(StoppedError):
        _fit(ccd_scene(48), 5, contender, 0.5)
