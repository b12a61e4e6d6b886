"""Section 5.3: the convolution as a network layer, with the library for it on and off (Figure 9).

On a CUDA device the library is cuDNN, as in the paper. On a machine without one it is oneDNN
("mkldnn" in torch), its analogue for CPUs; the page says which of them was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..solvers.base import gaussian_start
from .layers_page import draw_layers, write_layers
from .rounds import Contender, Job, Point, Timing, run_rounds
from .scenes import Scene, ccd_scene

__all__ = ["TILES", "contenders_here", "run_layers"]

TILES = "Fourier tiles"
KERNELS = (3, 5, 9, 13, 17, 19, 21, 23, 25, 27, 31, 35, 41, 47)
_COLUMN_BYTES = 2**30  # without a library a layer on a CPU unfolds the image: k^2 copies of it


def run_layers(
    folder: Path,
    quick: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Timing]:
    """Seconds of the model image, and of loss and gradient, against the size of the kernel.

    The image has 1000 x 1000 pixels as in the paper with a CUDA device, 512 x 512 without one.
    Leaves ``cudnn.csv``, ``cudnn.md`` and ``cudnn.png`` in ``folder``.
    """
    image = 1000 if torch.cuda.is_available() else 512
    kernels: tuple[int, ...]
    if quick:
        image, kernels, rounds, budget = image // 2, (5, 9, 13, 19, 25, 31), 3, 3.0
    else:
        kernels, rounds, budget = KERNELS, 7, 5.0
    points = [
        Point(what, image, m, rounds, budget) for what in ("model", "gradient") for m in kernels
    ]
    return time_layers(folder, points, progress)


def time_layers(
    folder: Path,
    points: list[Point],
    progress: Callable[[int, int], None] = lambda done, total: None,
    pause: float = 0.3,
) -> list[Timing]:
    """Time every contender at these points, and leave table, page and picture in ``folder``."""
    timings = run_rounds(folder, points, contenders_here(), _job, _warm_up, progress, pause)
    write_layers(timings, folder)
    draw_layers(timings, folder / "cudnn.png")
    return timings


def contenders_here() -> list[Contender]:
    """The layer with each setting of the library of this machine, and the tiles."""
    settings = ["layer, oneDNN on", "layer, oneDNN off"]
    device = "cpu"
    if torch.cuda.is_available():
        settings = ["layer, cuDNN on", "layer, cuDNN deterministic", "layer, cuDNN off"]
        device = "cuda"
    layers = [Contender(name, device, (2.0, 2.0)) for name in settings]
    return [*layers, Contender(TILES, device, (2.0, 1.0))]


@contextmanager
def _library(method: str) -> Iterator[None]:
    """The setting of the library while a contender runs."""
    name, _, state = method.removeprefix("layer, ").partition(" ")
    if name == "cuDNN":
        deterministic = state == "deterministic"
        with torch.backends.cudnn.flags(state != "off", False, deterministic=deterministic):
            yield
        return
    before = torch.backends.mkldnn.enabled  # its flags() would warn of Intel GPUs
    torch.backends.mkldnn.enabled = state != "off"  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before


def _job(point: Point, contender: Contender, number: int) -> Job | str:
    if contender.method == "layer, oneDNN off":
        unfolded = 4 * point.kernel**2 * (point.image - point.kernel + 1) ** 2
        if unfolded > _COLUMN_BYTES:
            return f"would unfold the image to {unfolded / 2**30:.1f} GB"
    return _product(ccd_scene(point.image), point, contender)


def _product(scene: Scene, point: Point, contender: Contender) -> Job:
    """One product: the reference, its transforms and the parameters are on the device already."""
    objective = scene.objective(point.kernel, contender.device)
    theta = gaussian_start(objective, scene.phi_k).float()
    if contender.method == TILES:
        if point.scene == "model":
            return partial(_run, contender, lambda: objective.model.mv(theta))
        exact = theta.double()
        return partial(
            _run, contender, lambda: objective.evaluate(exact, torch.float32, curvature=False)
        )
    if point.scene == "model":
        return partial(_run, contender, lambda: objective.model.mv_direct(theta))
    variable = theta.requires_grad_(True)

    def gradient() -> tuple[Tensor, ...]:
        return torch.autograd.grad(objective.loss(variable), variable)

    return partial(_run, contender, gradient)


def _run(contender: Contender, product: Callable[[], Any]) -> dict[str, object]:
    with _library(contender.method):
        product()
    return {"status": "CONVERGED", "evaluations": 1}


def _warm_up(contender: Contender) -> None:
    scene = ccd_scene(48)
    for what in ("model", "gradient"):
        _product(scene, Point(what, 48, 5, 1, 1.0), contender)()
