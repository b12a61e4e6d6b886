"""What a run has done: one small JSON file for each unit of work, written after its products.

A unit is one step for one frame, or one step for the whole season. Its digest covers everything
that its result depends on: the contents of its inputs, the settings it uses, and the version of
this package. A unit whose state file holds the same digest, and whose products are there, is done.
"""

from __future__ import annotations

import enum
import errno
import hashlib
import json
import math
import os
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from itertools import starmap
from pathlib import Path
from typing import Any

import torch

from ..errors import Finding, PyTorchDIAError, WriteError
from ..product import replacing

__all__ = ["Made", "Outcome", "State", "Unit", "carry_out", "digest_of", "file_digest", "is_done"]

_FOLDER = "states"

# What an OSError is that says nothing about the file: permissions, disks, servers, open files.
_MAY_PASS = (
    errno.EACCES, errno.EPERM, errno.ENOENT, errno.EIO, errno.ENXIO, errno.ENODEV, errno.EBUSY,
    errno.EAGAIN, errno.EINTR, errno.ENFILE, errno.EMFILE, errno.ENOMEM, errno.ENOLCK,
    errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH,
)  # fmt: skip


class Outcome(enum.StrEnum):
    """How a unit of work ended."""

    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True)
class Made:
    """What the work of a unit gives back.

    Attributes
    ----------
    products : tuple of Path
        The files it wrote, inside the run folder.
    values : Mapping
        Numbers and words for the state file, as JSON can hold them.
    findings : tuple of Finding
    """

    products: tuple[Path, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Unit:
    """One piece of work: a function of the package, its arguments, and the digest of all inputs.

    Attributes
    ----------
    step, name : str
        ``name`` is that of the frame, or of the product of a step for the whole season.
    digest : str
        See :func:`digest_of`.
    work : callable
        Of module level, so that other processes can call it; returns a :class:`Made`.
    arguments : tuple
    """

    step: str
    name: str
    digest: str
    work: Callable[..., Made] = field(compare=False)
    arguments: tuple[Any, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class State:
    """How a unit ended.

    Attributes
    ----------
    step, name, digest : str
        Those of the unit.
    outcome : Outcome
    reason : str
        Why it failed; empty if it did not.
    products : Mapping of str to (int, str)
        Path inside the run folder -> size in bytes and SHA-256 of each file written.
    values : Mapping
        What the work gave back.
    findings : tuple of Finding
    retry : bool
        Whether a rerun tries again although nothing changed: the disk or the memory was full, a
        worker was lost, a file could not be opened.
    details : str
        The traceback of what this package did not raise itself, for the log.
    seconds : float
        Time taken, for the log; not in the file, which is the same however long it took.
    """

    step: str
    name: str
    digest: str
    outcome: Outcome
    reason: str = ""
    products: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    retry: bool = False
    details: str = field(default="", compare=False)
    seconds: float = field(default=0.0, compare=False)

    @property
    def trouble(self) -> str:
        """What failed, and why."""
        return f"{self.step} {self.name}: {self.reason}"

    @property
    def content(self) -> str:
        """SHA-256 of all that was made: what a later step depends on."""
        return digest_of({"products": dict(self.products), "values": dict(self.values)})

    @staticmethod
    def path(run: Path, step: str, name: str) -> Path:
        """Where the state of a unit lies."""
        return run / _FOLDER / step / f"{name}.json"

    @classmethod
    def read(cls, run: Path, step: str, name: str) -> State | None:
        """The state of a unit; None if it has none, or one that cannot be read."""
        try:
            text = json.loads(cls.path(run, step, name).read_text())
            return cls(
                step, name, text["digest"], Outcome(text["outcome"]), text["reason"],
                {path: (size, sha) for path, (size, sha) in text["products"].items()},
                text["values"], tuple(starmap(Finding, text["findings"])), text["retry"],
            )  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def write(self, run: Path) -> None:
        """Write the state file, whole or not at all.

        Raises
        ------
        WriteError
            It cannot be written.
        """
        path = self.path(run, self.step, self.name)
        text = {
            "digest": self.digest,
            "outcome": self.outcome.value,
            "reason": self.reason,
            "products": {name: list(entry) for name, entry in self.products.items()},
            "values": dict(self.values),
            "findings": [[f.code, f.message, f.level] for f in self.findings],
            "retry": self.retry,
        }
        write_text(path, json.dumps(text, indent=1, sort_keys=True, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path``, whole or not at all; folders are made as needed.

    Raises
    ------
    WriteError
        It cannot be written.
    """
    with replacing(path) as partial:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())


def digest_of(parts: Mapping[str, Any]) -> str:
    """SHA-256 of ``parts`` and of the version of this package.

    Parameters
    ----------
    parts : Mapping
        As JSON can hold it; the order of keys does not matter.
    """
    whole = {"pytorchdia": version("pytorchdia"), **parts}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of the contents of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_done(run: Path, unit: Unit, state: State | None) -> bool:
    """Whether ``state`` is that of ``unit`` as it stands, with its products in place."""
    if state is None or state.digest != unit.digest or state.retry:
        return False
    return all(_size(run / path) == size for path, (size, _) in state.products.items())


def carry_out(run: Path, unit: Unit) -> State:
    """Do the work of a unit and write its state; whatever goes wrong with it is its state.

    Raises
    ------
    WriteError
        The disk is full or not writable: the run must stop. The reason is in the state file if
        that much could be written.
    """
    started = time.perf_counter()
    # First of all, so that no state ever speaks of products that are not its own.
    clear(run, unit.step, unit.name)
    try:
        made = unit.work(*unit.arguments)
        products = {
            str(path.relative_to(run)): (path.stat().st_size, file_digest(path))
            for path in made.products
        }
        values = finite(made.values)
        state = State(
            unit.step, unit.name, unit.digest, Outcome.DONE, "", products, values, made.findings
        )
    except WriteError as error:
        _try_to_write(failed(unit, str(error), retry=True), run)
        raise
    except Exception as error:  # whatever it is, it must not end the night
        state = _failed_by(unit, error)
    state.write(run)
    return replace(state, seconds=time.perf_counter() - started)


def failed(unit: Unit, reason: str, retry: bool = False) -> State:
    """The state of a unit that gave nothing."""
    return State(unit.step, unit.name, unit.digest, Outcome.FAILED, reason, retry=retry)


def _failed_by(unit: Unit, error: Exception) -> State:
    """The state of a unit that was stopped by an error."""
    passing = next(filter(None, map(_passing, _causes(error))), "")
    if passing:
        reason = f"{passing}; a rerun tries again."
    elif isinstance(error, PyTorchDIAError):
        reason = str(error)
    else:
        reason = f"This is a defect of pytorchdia ({type(error).__name__}: {error})."
    expected = isinstance(error, PyTorchDIAError)
    details = "" if expected else "".join(traceback.format_exception(error))
    return replace(failed(unit, reason, retry=bool(passing)), details=details)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__


def _passing(error: BaseException) -> str:
    """What an error says if it may pass by itself, or by other means than another frame."""
    text = " ".join(str(error).split())
    out_of_memory = isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in text
    )  # what torch raises on a CPU
    if out_of_memory:
        return f"There was not enough memory ({text})"
    if isinstance(error, OSError) and error.errno in _MAY_PASS:
        return f"A file could not be used ({text})"
    return ""


def forget(run: Path, step: str, keep: Iterable[str]) -> list[str]:
    """Remove the states of ``step`` and their products, but for those of the names to keep.

    Returns the names removed: of frames that were taken out of the season.
    """
    names = {path.name.removesuffix(".json") for path in (run / _FOLDER / step).glob("*.json")}
    gone = sorted(names - set(keep))
    for name in gone:
        clear(run, step, name)
    return gone


def clear(run: Path, step: str, name: str) -> None:
    """Remove the products of a unit, then its state.

    Raises
    ------
    WriteError
        They cannot be removed.
    """
    path = State.path(run, step, name)
    state = State.read(run, step, name)
    try:
        for product in state.products if state is not None else ():
            (run / product).unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    except OSError as error:
        raise WriteError(
            f"{error.filename} cannot be removed ({error.strerror}); check the permissions of "
            f"{run}."
        ) from error


def remove_partial_files(run: Path) -> int:
    """Remove what writers that were killed left behind; how many files that were."""
    left = [path for path in run.rglob(".*.part*") if path.is_file()]
    for path in left:
        path.unlink(missing_ok=True)
    return len(left)


def finite(value: Any) -> Any:
    """``value`` with None for infinity and NaN, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _try_to_write(state: State, run: Path) -> None:
    with suppress(WriteError):  # as full as it was for the product; that error is on its way
        state.write(run)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
