"""The reduction of a season, from raw frames to light curves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .pipeline import STEPS, Executor, Progress, RunSummary, in_this_process, run_season
from .settings import Settings, load_settings

__all__ = ["STEPS", "reduce"]


def reduce(
    config: str | Path | Settings,
    *,
    only: str | None = None,
    until: str | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> RunSummary:
    """Reduce a season of frames: register, reference, subtract, photometry.

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
    workers : int, optional
        Processes on this machine, with Dask; None works in this process. A script that uses it
        must protect its main code by ``if __name__ == "__main__"``.
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
    with _executor(workers, scheduler, dry_run) as executor:
        return run_season(
            settings, executor, only=only, until=until, dry_run=dry_run, progress=progress
        )


@contextmanager
def _executor(workers: int | None, scheduler: str | None, dry_run: bool) -> Iterator[Executor]:
    if dry_run or (workers is None and scheduler is None):
        yield in_this_process
        return
    from .cluster import dask_executor  # Dask is an extra

    with dask_executor(workers, scheduler) as executor:
        yield executor
