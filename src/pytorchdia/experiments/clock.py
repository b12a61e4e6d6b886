"""Honest seconds: settled before they count, synchronised, and with the machine they belong to."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

__all__ = ["clocked", "machine", "settled", "take_turns"]


def clocked(function: Callable[[], Any]) -> Callable[[], float]:
    """``function`` as a contender, which answers its seconds; a CUDA device is waited for."""

    def run() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        started = time.perf_counter()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - started

    return run


def settled(
    run: Callable[[], float | None], pause: float = 0.3, enough: float = math.inf
) -> float | None:
    """Seconds of the second of two runs; of the first if that took ``enough`` seconds already.

    Memory and threads that another contender has let go cold slow a first run, by an amount that
    is nothing beside seconds. The pause lets the threads of the one before go to sleep. A run that
    answers None has dropped out.
    """
    time.sleep(pause)
    first = run()
    return first if first is not None and first >= enough else run()


def take_turns(
    contenders: dict[str, Callable[[], float | None]], repeat: int, pause: float = 0.3
) -> dict[str, list[float]]:
    """Seconds of each contender, round by round; one that answers None has dropped out.

    Contenders take turns, so that a machine whose speed drifts treats them alike. Each runs twice
    in each of its turns (:func:`settled`), and the first round is not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    out: set[str] = set()
    for turn in range(repeat + 1):
        for name, run in contenders.items():
            if name in out:
                continue
            taken = settled(run, pause)
            if taken is None:
                out.add(name)
            elif turn:
                seconds[name].append(taken)
    return {name: times for name, times in seconds.items() if times}


def machine() -> dict[str, Any]:
    """What the numbers belong to."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            s.split(":")[1].strip() for s in info.read_text().splitlines() if "model name" in s
        ]
        cpu = names[0] if names else cpu
    return {
        "pytorchdia": version("pytorchdia"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
