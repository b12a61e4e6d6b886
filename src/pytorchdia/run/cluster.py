"""The units of a run over many processes: a Dask cluster made here, or one that is there already.

The same functions as in one process run on the workers, and they write their results themselves;
only the small state of each unit comes back. Workers must see the frames and the run folder under
the same paths.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..checks import usable_device
from ..errors import InputError, WriteError
from .pipeline import Executor
from .state import State, Unit, carry_out, failed

__all__ = ["dask_executor", "useful_workers"]

PATIENCE = 30.0
"""Seconds that a scheduler has to answer."""

# Dask has its workers give freed memory back to the system at once. Images are freed and asked for
# all the time here: getting their pages anew took half of a worker's time.
_KEEP = {
    "MALLOC_TRIM_THRESHOLD_": 2**30,
    "MALLOC_MMAP_THRESHOLD_": 2**28,
    "MALLOC_ARENA_MAX": 1,
}

_AHEAD = 3  # units in hand for each worker, so that none waits; memory stays flat in their number


@contextmanager
def dask_executor(
    workers: int | None, scheduler: str | None, *, here_too: bool = False
) -> Iterator[Executor]:
    """An executor over Dask workers.

    Parameters
    ----------
    workers : int, optional
        Processes to work on this machine, one torch thread each, and one GPU where there are any.
    scheduler : str, optional
        Address of a running scheduler, such as ``tcp://host:8786``, in place of ``workers``.
    here_too : bool
        This process is one of the workers.

    Raises
    ------
    InputError
        Dask is not installed, or the scheduler does not answer or has no workers.
    """
    try:
        from dask import distributed
    except ImportError as error:
        raise InputError(
            "More than one process needs Dask, which is not installed; "
            'python -m pip install ".[cluster]" in the folder of pytorchdia, or leave out '
            "--workers and --scheduler."
        ) from error
    cluster = None if scheduler is not None else _local_cluster(workers or 1, here_too)
    try:
        try:
            client = distributed.Client(
                cluster or scheduler, timeout=PATIENCE, set_as_default=False
            )
        except (OSError, ValueError, TimeoutError) as error:
            raise InputError(
                f"The scheduler {scheduler} does not answer ({error}); check its address."
            ) from error
        with client:
            if scheduler is not None:
                _wait_for_workers(client, scheduler)
            client.register_plugin(_plugin())
            yield _DaskExecutor(client)
    finally:
        if cluster is not None:
            cluster.close()


def _wait_for_workers(client: Any, scheduler: str) -> None:
    try:
        client.wait_for_workers(1, timeout=PATIENCE)
    except TimeoutError as error:
        raise InputError(
            f"The scheduler {scheduler} has no workers, nor did one come in {PATIENCE:g} s; start "
            f"some with 'dask worker {scheduler}'."
        ) from error


def _local_cluster(workers: int, here_too: bool) -> Any:
    from dask import config, distributed

    address = {"host": "127.0.0.1", "protocol": "tcp://"}
    options = address | {
        "nthreads": 1, "dashboard": False, "memory_limit": 0, "silence_logs": logging.ERROR,
    }  # fmt: skip
    here = {"cls": distributed.Worker, "options": options}
    gpus = _gpus()
    each = [{"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if gpus else {} for i in range(workers)]
    elsewhere = [{"cls": distributed.Nanny, "options": options | {"env": env}} for env in each]
    specification = dict(enumerate([here, *elsewhere[1:]] if here_too else elsewhere))
    scheduler = {"cls": distributed.Scheduler, "options": address | {"dashboard_address": ":0"}}
    settings: dict[str, Any] = {"distributed.worker.profile.enabled": False}
    settings |= {f"distributed.nanny.pre-spawn-environ.{name}": v for name, v in _KEEP.items()}
    with config.set(settings):
        return distributed.SpecCluster(
            workers=specification, scheduler=scheduler, silence_logs=logging.ERROR
        )


def _gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if not torch.cuda.is_available():
        return []
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",") if given else [str(i) for i in range(torch.cuda.device_count())]


def useful_workers(most: int, share: float, device: str = "auto") -> int:
    """Processes that this machine bears: one for each GPU, or at most ``most`` on its cores.

    On a CPU each may take as much memory as this process has now, all of them ``share`` of what is
    free.

    Parameters
    ----------
    most : int
    share : float
    device : str
        That of the subtractions, as ``subtract.device`` names it.
    """
    import psutil  # comes with Dask

    if usable_device(device).type == "cuda":
        return torch.cuda.device_count()
    mine = psutil.Process().memory_info().rss
    bearable = int(share * psutil.virtual_memory().available / mine)
    return max(1, min(most, bearable))


class _DaskExecutor:
    """Units in, states out, in the order in which they end."""

    def __init__(self, client: Any) -> None:
        self.client = client

    def __call__(self, run: Path, units: Iterable[Unit]) -> Iterator[State]:
        from dask import distributed

        waiting = iter(units)
        running: dict[Any, Unit] = {}
        try:
            while True:
                room = _AHEAD * max(1, len(self.client.nthreads())) - len(running)
                for _, unit in zip(range(room), waiting, strict=False):
                    running[self._submit(run, unit)] = unit
                if not running:
                    return
                with self.client.as_current():
                    done, _ = distributed.wait(list(running), return_when="FIRST_COMPLETED")
                for future in done:
                    yield self._result(run, future, running.pop(future))
        finally:
            self.client.cancel(list(running))

    def _submit(self, run: Path, unit: Unit) -> Any:
        # Pure means that Dask keeps results by their arguments; files may have gone since.
        return self.client.submit(carry_out, run, unit, pure=False, retries=2)

    def _result(self, run: Path, future: Any, unit: Unit) -> State:
        from dask import distributed

        try:
            state: State = future.result()
        except WriteError:
            raise
        except (distributed.KilledWorker, asyncio.CancelledError, CancelledError) as error:
            reason = f"The workers that had it were lost ({type(error).__name__}); run it again."
            state = failed(unit, reason, retry=True)
            state.write(run)
        return state


def _plugin() -> Any:
    from dask import distributed

    class OneThread(distributed.WorkerPlugin):
        """One torch thread for each worker."""

        name = "pytorchdia"

        def setup(self, worker: Any) -> None:
            importlib.import_module("pytorchdia.run.pipeline")  # now, not with the first unit
            torch.set_num_threads(1)

    return OneThread()
