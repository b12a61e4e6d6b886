"""The folder of a run while a run is at work in it: locked, cleaned, and with a log."""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import WriteError
from .settings import Settings
from .state import remove_partial_files, write_text

__all__ = ["folder_in_use", "log"]

log = logging.getLogger("pytorchdia.run")
"""What a run does; :func:`folder_in_use` writes it to ``log.txt``."""


@contextmanager
def folder_in_use(run: Path, settings: Settings) -> Iterator[None]:
    """Make the run folder, lock it, log into it.

    Raises
    ------
    WriteError
        It cannot be made or written, or another run is at work in it.
    """
    with _writable(run):
        run.mkdir(parents=True, exist_ok=True)
        lock = open(run / ".lock", "w")  # noqa: SIM115  # held open as long as the run lasts
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise WriteError(
                f"Another run is at work in {run}; wait until it has ended."
            ) from error
        except OSError:
            pass  # a file system without locks; two runs at once then only do work twice
        with _writable(run):
            handler = logging.FileHandler(run / "log.txt", encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        level = log.level
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        try:
            left = remove_partial_files(run)
            log.info("run begins; %d files left by a run that was killed were removed", left)
            write_text(
                run / "settings.json", settings.model_dump_json(indent=1, by_alias=True) + "\n"
            )
            yield
            log.info("run ends")
        except BaseException as error:
            log.warning("run stopped: %s: %s", type(error).__name__, error)
            raise
        finally:
            log.removeHandler(handler)
            log.setLevel(level)
            handler.close()


@contextmanager
def _writable(run: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WriteError(
            f"The run folder {run} cannot be written ({error.filename}: {error.strerror}); choose "
            "another one (run.folder)."
        ) from error
