"""The reduction of a season, from raw frames to light curves."""

from __future__ import annotations

import importlib.util
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

from ..errors import InputError
from ..threads import one_thread
from .folder import log
from .pipeline import STEPS, Executor, Progress, RunSummary, in_this_process, run_season
from .settings import Settings, load_settings
from .state import State, Unit

__all__ = ["STEPS", "reduce"]

_WORTH = 3.0  # seconds of work from which it pays to start processes
_SHARE = 0.7  # of the free memory that they may fill


def reduce(
    config: str | Path | Settings,
    *,
    only: str | None = None,
    until: str | None = None,
    workers: int | Literal["auto"] | None = None,
    scheduler: str | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> RunSummary:
    """Reduce a season of frames: register, reference, subtract, photometry, report.

    What a run that was interrupted, or one with other settings or more frames, has done already is
    not done again.

    Parameters
    ----------
    config : str, Path or Settings
        CONFIG.toml, or what :func:`~pytorchdia.run.settings.load_settings` made of it.
    only : str, optional
        Do this step alone; those before it must have been done.
    until : str, optional
        Stop after this step.
    workers : int or "auto", optional
        Processes on this machine, with Dask; None or 1 works in this process. "auto" takes one for
        each thread of torch, as far as memory allows, or for each GPU, once there is enough to do;
        without Dask, or where it cannot start, it works in this process. A script that uses more
        than one must protect its main code by ``if __name__ == "__main__"``.
    scheduler : str, optional
        Address of a running Dask scheduler, in place of ``workers``.
    dry_run : bool
        Only say what there is to do.
    progress : callable, optional
        Called as ``progress(step, done, total)``.

    Returns
    -------
    RunSummary
        What became of each frame.

    Raises
    ------
    InputError
        A setting is wrong, there are no frames, or none can be used.
    ReadError
        CONFIG.toml cannot be read.
    WriteError
        The run folder cannot be written, or the disk is full.
    """
    settings = config if isinstance(config, Settings) else load_settings(config)
    with _executor(workers, scheduler, dry_run, settings.subtract.device) as executor:
        return run_season(
            settings, executor, only=only, until=until, dry_run=dry_run, progress=progress
        )


@contextmanager
def _executor(
    workers: int | Literal["auto"] | None, scheduler: str | None, dry_run: bool, device: str
) -> Iterator[Executor]:
    if isinstance(workers, int) and workers < 1:
        raise InputError(f"workers = {workers} does no work; give 1 or more, or 'auto'.")
    if dry_run or (workers in (None, 1) and scheduler is None):
        yield in_this_process
        return
    if workers == "auto":
        if importlib.util.find_spec("distributed") is None:
            yield in_this_process
            return
        with one_thread() as threads, ExitStack() as stack:  # as in the other processes
            yield _AsMuchAsPays(stack, threads, device)
        return
    from .cluster import dask_executor  # Dask is an extra

    with dask_executor(workers, scheduler) as executor:
        yield executor


class _AsMuchAsPays:
    """Works in this process, and in more from when a unit has shown that these would pay.

    They start while the work goes on here.
    """

    def __init__(self, stack: ExitStack, most: int, device: str) -> None:
        self._stack, self._most, self._device = stack, most, device
        self._starting: Future[Executor] | None = None

    def __call__(self, run: Path, units: Iterable[Unit]) -> Iterator[State]:
        waiting = deque(units)
        while waiting:
            if (executor := self._started()) is not None:
                yield from executor(run, waiting)
                return
            started = time.perf_counter()
            yield from in_this_process(run, [waiting.popleft()])
            if (time.perf_counter() - started) * len(waiting) > _WORTH:
                self._start()

    def _started(self) -> Executor | None:
        if self._starting is None or not self._starting.done():
            return None
        error = self._starting.exception()
        if error is None:
            return self._starting.result()
        log.warning("no more processes, for Dask does not start: %s: %s",
                    type(error).__name__, error)  # fmt: skip
        self._starting, self._most = None, 1
        return None

    def _start(self) -> None:
        if self._starting is not None or self._most < 2:
            return
        from .cluster import dask_executor, useful_workers  # Dask is an extra

        self._most = useful_workers(self._most, _SHARE, self._device)
        if self._most > 1:
            thread = self._stack.enter_context(ThreadPoolExecutor(1))
            workers = dask_executor(self._most, None, here_too=True)
            self._starting = thread.submit(self._stack.enter_context, workers)
