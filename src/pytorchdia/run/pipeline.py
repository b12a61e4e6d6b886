"""A season's run: which units of work there are, which of them are done, and what became of each.

Every unit is named by a digest of all that it depends on (:mod:`pytorchdia.run.state`). Later
steps depend on what earlier ones made, not on how: a frame that is added, or a setting that
changes nothing, has no more done again than it must.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from ..errors import InputError
from ..preparation.quality import FrameQuality, Grade, Limits, grade
from ..preparation.reference import choose_reference_frames
from .difference_steps import follow_candidates, photometry_of_frame, subtract_frame
from .folder import folder_in_use, log
from .frame_list import own_reference, sources_of, unused_exclusions
from .frame_steps import (
    Source,
    measure_frame,
    quality_from,
    register_frame,
    registration_from,
)
from .frames_table import FrameRow, write_frames
from .report import make_report, report_digest
from .season_steps import find_variables, make_reference, read_star_list, stack_differences
from .settings import Settings
from .state import (
    Outcome,
    State,
    Unit,
    carry_out,
    digest_of,
    file_digest,
    forget,
    is_done,
)
from .tables import EPOCH

__all__ = ["STEPS", "Executor", "Progress", "RunSummary", "in_this_process", "run_season"]

STEPS = ("register", "reference", "subtract", "photometry", "report")
"""Names of the steps for people, in order."""

_STEP_OF = {
    "measure": "register", "stack": "photometry", "variables": "photometry", "follow": "photometry",
}  # fmt: skip
_AFTER_PHOTOMETRY = ("stack", "variables", "follow", "report")
_PART = 50  # frames of one part of the stack, by their names: a night changes the last ones only

Progress = Callable[[str, int, int], None]
"""Called with the step, the number of units done, and that of all."""


class Executor(Protocol):
    """Carries out units and gives their states back, in any order."""

    def __call__(self, run: Path, units: Iterable[Unit]) -> Iterator[State]: ...


def in_this_process(run: Path, units: Iterable[Unit]) -> Iterator[State]:
    """One unit after the other, here."""
    return (carry_out(run, unit) for unit in units)


@dataclass(frozen=True)
class RunSummary:
    """What a run did, or would do.

    Attributes
    ----------
    run : Path
        Its folder.
    rows : tuple of FrameRow
        One for each frame: what became of it and why.
    planned : tuple of (str, int, int)
        Step, units done before, units to do (done since, unless it was a dry run).
    troubles : tuple of State
        What failed after the photometry, and is in no row: the search for variables, the fluxes at
        their places, the report.
    """

    run: Path
    rows: tuple[FrameRow, ...]
    planned: tuple[tuple[str, int, int], ...]
    troubles: tuple[State, ...] = ()

    @property
    def failed(self) -> tuple[FrameRow, ...]:
        """The frames that failed."""
        return tuple(row for row in self.rows if row.status == "failed")


class _PlanEnds(Exception):  # noqa: N818  # no error: a dry run has said all it can
    """What comes next depends on what a dry run does not do."""


def run_season(
    settings: Settings,
    executor: Executor,
    *,
    only: str | None = None,
    until: str | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> RunSummary:
    """Do what is missing of a run; see :func:`pytorchdia.reduce`.

    Raises
    ------
    InputError, ReadError, WriteError
        As :func:`pytorchdia.reduce`.
    """
    for name in (only, until):
        if name is not None and name not in STEPS:
            raise InputError(f"There is no step {name!r}; the steps are {', '.join(STEPS)}.")
    if only and until:
        raise InputError("Give one of the two, the only step or the last one.")
    sources = sources_of(settings)
    stars = settings.path(settings.stars.list)
    if stars is not None:
        read_star_list(stars)  # a mistake in it is told before hours of work
    run = settings.run_folder
    season = _Season(settings, run, sources, executor, progress, dry_run, only)
    if dry_run:
        return season.through(until or only)
    with folder_in_use(run, settings):
        for pattern in unused_exclusions(settings):
            log.warning("frames.exclude names %r, and no file is called so", pattern)
        try:
            return season.through(until or only)
        finally:
            season.write_table()


class _Season:
    """The steps in order, each built on the states of the one before."""

    def __init__(
        self, settings: Settings, run: Path, sources: list[Source], executor: Executor,
        progress: Progress | None, dry_run: bool, only: str | None,
    ) -> None:  # fmt: skip
        self.settings, self.run, self.sources = settings, run, sources
        self._by_name = {source.name: source for source in sources}
        self._own_reference = own_reference(settings)
        self._executor, self._progress = executor, progress
        self._dry_run, self._only = dry_run, only
        self._planned: list[tuple[str, int, int]] = []
        self._states: dict[str, dict[str, State]] = {}
        self._seen: dict[str, dict[str, State]] = {}
        self._grades: dict[str, Grade] = {}
        self._used: list[str] = []
        self._troubles: list[State] = []

    def through(self, last: str | None) -> RunSummary:
        """All steps up to ``last``."""
        end = STEPS.index(last) if last is not None else len(STEPS)
        work = (
            self._register, self._make_reference, self._subtract, self._measure_fluxes,
            self._report,
        )  # fmt: skip
        with suppress(_PlanEnds):
            for do in work[: end + 1]:
                do()
        planned = tuple(self._planned)
        self._dry_run = True  # of what comes after: is it of a run before, and still good?
        with suppress(_PlanEnds, InputError):
            for do in work[end + 1 : STEPS.index("photometry") + 1]:
                do()
        return RunSummary(self.run, self._rows(), planned, tuple(self._troubles))

    def write_table(self) -> None:
        """The table of frames; what is known so far."""
        write_frames(self.run / "frames.ecsv", self._rows())

    # The steps.

    def _register(self) -> None:
        measured = self._advance("measure", [self._measure_unit(s) for s in self.sources])
        good = self._graded({name: quality_from(s.values) for name, s in measured.items()})
        self.grid = grid = self._grid(good)
        units = [
            Unit(
                "register", source.name,
                digest_of({
                    "frame": measured[source.name].values["sha256"],
                    "grid": self._grid_digest,
                    "settings": self._of("frames", "camera", "keywords", "registration", "run"),
                    "files": self._companions(),
                }),
                register_frame, (source, grid, self.settings, self.run),
            )
            for source in self.sources if source.name in good
        ]  # fmt: skip
        laid = self._advance("register", units)
        self._graded({
            name: quality_from(measured[name].values, state.values["transparency"])
            for name, state in laid.items()
        })  # fmt: skip

    def _make_reference(self) -> None:
        laid = self._accepted()
        names = [] if self.grid.made_elsewhere else self._reference_names(laid)
        self._used = names
        chosen = [(self._by_name[name], laid[name].values) for name in names]
        stars = self.settings.path(self.settings.stars.list)
        digest = digest_of({
            "frames": [
                (name, self._states["measure"][name].values["sha256"], dict(laid[name].values))
                for name in names
            ],
            "settings": self._of("frames", "camera", "keywords", "stars"),
            "max_frames": self.settings.reference.max_frames,
            "files": [*self._companions(), _digest_if(stars)],
            "grid": self._grid_digest,
        })  # fmt: skip
        arguments = (chosen, self.grid, self.settings, self.run)
        unit = Unit("reference", "reference", digest, make_reference, arguments)
        if not self._advance("reference", [unit]):
            state = State.read(self.run, "reference", "reference")
            why = "" if state is None else f": {state.reason}"
            raise InputError(f"The reference could not be made{why}")

    def _subtract(self) -> None:
        products = self._states["reference"]["reference"].products
        made = [products[name] for name in ("reference.fits", "psf.fits")]
        units = [
            Unit(
                "subtract", name,
                digest_of({
                    "frame": self._states["measure"][name].values["sha256"],
                    "fwhm": self._states["measure"][name].values["fwhm"],
                    "registration": dict(state.values),
                    "reference": made,
                    "settings": self._of("frames", "camera", "keywords", "subtract"),
                    "files": self._companions(),
                }),
                subtract_frame,
                (
                    self._by_name[name], registration_from(state.values),
                    self._states["measure"][name].values["fwhm"], self.settings, self.run,
                ),
            )
            for name, state in self._accepted().items()
        ]  # fmt: skip
        self._advance("subtract", units)

    def _measure_fluxes(self) -> None:
        units = [
            Unit(
                "photometry", name,
                digest_of({
                    **self._epoch_inputs(name),
                    "settings": self._of("photometry", "variables"),
                    "columns": EPOCH.names,
                }),
                photometry_of_frame,
                (name, self._states["measure"][name].values, self.settings, self.run),
            )
            for name in self._states["subtract"]
        ]  # fmt: skip
        measured = self._advance("photometry", units)
        if not measured:
            raise InputError(
                f"None of the {len(self.sources)} frames could be used to the end; the table of "
                f"frames says why: pytorchdia status {self.run}."
            )
        self._find_candidates(measured)
        self._follow(measured)

    def _find_candidates(self, measured: Mapping[str, State]) -> None:
        reference = self._states["reference"]["reference"].content
        names = list(measured)
        parts = [names[i : i + _PART] for i in range(0, len(names), _PART)]
        stacked = self._advance(
            "stack", [self._stack_unit(i, part) for i, part in enumerate(parts)]
        )
        in_time = sorted(names, key=self._when)
        digest = digest_of({
            "epochs": [(name, measured[name].content) for name in in_time],
            "stack": [state.content for state in stacked.values()],
            "reference": reference,
            "settings": self._of("variables"),
        })  # fmt: skip
        values = {name: state.values for name, state in stacked.items()}
        arguments = (in_time, values, self.settings, self.run)
        unit = Unit("variables", "candidates", digest, find_variables, arguments)
        self._advance("variables", [unit] if len(stacked) == len(parts) else [])

    def _stack_unit(self, number: int, names: list[str]) -> Unit:
        shares = [self._states["photometry"][n].values["systematic_share"] for n in names]
        digest = digest_of({
            "epochs": [(name, self._states["subtract"][name].content) for name in names],
            "shares": shares,
            "reference": self._states["reference"]["reference"].content,
        })  # fmt: skip
        name = f"{number:04d}"
        arguments = (name, list(zip(names, shares, strict=True)), self.run)
        return Unit("stack", name, digest, stack_differences, arguments)

    def _follow(self, measured: Mapping[str, State]) -> None:
        found = self._states["variables"]
        self._advance("follow", [
            Unit(
                "follow", name,
                digest_of({
                    **self._epoch_inputs(name),
                    "candidates": found["candidates"].values["followed"],
                    "drift": [measured[name].values[key] for key in ("drift", "drift_error")],
                    "settings": self._of("photometry"),
                }),
                follow_candidates,
                (name, self._states["measure"][name].values, measured[name].values, self.settings,
                 self.run),
            )
            for name in (measured if found else ())
        ])  # fmt: skip

    def _epoch_inputs(self, name: str) -> dict[str, str]:
        """What is measured in, for the digest of a measurement."""
        return {
            "difference": self._states["subtract"][name].content,
            "reference": self._states["reference"]["reference"].content,
            "quality": self._states["measure"][name].content,
        }

    def _report(self) -> None:
        whole = {
            f"{step}/{name}": state.content
            for step in ("reference", "subtract", "photometry", "variables", "follow")
            for name, state in self._states[step].items()
        }
        rows = self._rows()
        troubles = [state.trouble for state in self._troubles]
        digest = report_digest(rows, self.settings, self.run, whole, troubles)
        arguments = (rows, self.sources, self.settings, self.run, troubles)
        self._advance("report", [Unit("report", "report", digest, make_report, arguments)])

    # What they have in common.

    def _advance(self, step: str, units: list[Unit]) -> dict[str, State]:
        """Do what is not done of a step; the states of the units that are done."""
        known = {unit.name: State.read(self.run, step, unit.name) for unit in units}
        to_do = [unit for unit in units if not is_done(self.run, unit, known[unit.name])]
        missing = {unit.name for unit in to_do}
        states = {n: s for n, s in known.items() if s is not None and n not in missing}
        self._states[step], self._seen[step] = _done(states), states
        self._planned.append((step, len(states), len(to_do)))
        if self._dry_run:
            if to_do and step == "reference":
                self._seen |= {"subtract": {}, "photometry": {}}  # none is of the next one
            if to_do:
                raise _PlanEnds
            return self._states[step]
        public = _STEP_OF.get(step, step)
        if to_do and self._only not in (None, public):
            raise InputError(
                f"{len(to_do)} of {len(units)} pieces of the step {public!r} are not done, and "
                f"{self._only!r} needs them; do that step first."
            )
        for name in forget(self.run, step, [unit.name for unit in units]):
            log.info("%s %s: no longer part of the run; its products were removed", step, name)
        if to_do:
            log.info("%s: %d to do, %d done already", step, len(to_do), len(states))
            self._tell(step, len(states), len(units))
        for state in self._executor(self.run, to_do):
            states[state.name] = state
            self._tell(step, len(states), len(units))
            _log_state(state)
        self._states[step] = _done(states)
        if step in _AFTER_PHOTOMETRY:
            failed = (states[n] for n in sorted(states) if states[n].outcome is Outcome.FAILED)
            self._troubles += failed
        return self._states[step]

    def _tell(self, step: str, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(step, done, total)

    def _measure_unit(self, source: Source) -> Unit:
        try:
            about = source.path.stat()
        except OSError as error:
            raise InputError(f"{source.path} has gone ({error.strerror}).") from error
        digest = digest_of({
            "file": [source.name, about.st_size, about.st_mtime_ns],
            "settings": self._of("frames", "camera", "keywords"),
            "files": self._companions(),
        })  # fmt: skip
        return Unit("measure", source.name, digest, measure_frame, (source, self.settings))

    def _graded(self, qualities: Mapping[str, FrameQuality]) -> dict[str, FrameQuality]:
        """Those that are accepted; the grades of all are kept for the table."""
        grades = grade(list(qualities.values()), self._limits())
        self._grades |= dict(zip(qualities, grades, strict=True))
        return {n: q for (n, q), g in zip(qualities.items(), grades, strict=True) if g.accepted}

    def _limits(self) -> Limits:
        chosen = self.settings.quality.model_dump()
        return Limits(**chosen, filter=self.settings.frames.filter)

    @cached_property
    def _grid_digest(self) -> Any:
        """Changes with the file whose grid is used."""
        if self.grid.made_elsewhere:
            own = self.settings.reference.model_dump(exclude={"frames", "max_frames", "keep"})
            return [_digest_if(self.grid.path), own]
        return self._states["measure"][self.grid.name].values["sha256"]

    def _grid(self, good: Mapping[str, FrameQuality]) -> Source:
        asked = self.settings.registration.onto
        if asked is not None:
            found = [s for s in self.sources if asked in (s.name, s.path.name)]
            if not found or found[0].name not in self._states["measure"]:
                raise InputError(
                    f"register.onto = {asked!r} is none of the {len(self.sources)} frames that "
                    "can be read."
                )
            return found[0]
        if not good:
            reasons = dict.fromkeys(g.reason for g in self._grades.values() if g.reason)
            failures = [s for s in self._all("measure") if s.outcome is Outcome.FAILED]
            why = "; ".join([*reasons, *dict.fromkeys(s.reason for s in failures)][:5])
            raise InputError(f"None of the {len(self.sources)} frames can be used: {why}")
        if self._own_reference is not None:
            return self._own_reference
        if self._kept is not None and self._kept["grid"] in good:
            return self._by_name[self._kept["grid"]]
        names = list(good)
        best = choose_reference_frames(list(good.values()), self._limits())[0]
        return self._by_name[names[best]]

    def _accepted(self) -> dict[str, State]:
        """Registered frames whose grade is good."""
        laid = self._states["register"]
        return {name: state for name, state in laid.items() if self._grades[name].accepted}

    def _reference_names(self, laid: Mapping[str, State]) -> list[str]:
        asked = self.settings.reference.frames
        if asked:
            by_any = {s.path.name: s.name for s in self.sources} | {n: n for n in self._by_name}
            missing = [name for name in asked if by_any.get(name) not in self._states["register"]]
            if missing:
                raise InputError(
                    f"reference.frames names {', '.join(missing)}, which could not be registered "
                    "or is no frame of the season."
                )
            return [by_any[name] for name in asked]
        qualities = {
            name: quality_from(self._states["measure"][name].values, state.values["transparency"])
            for name, state in laid.items()
        }
        best = choose_reference_frames(
            list(qualities.values()), self._limits(), n_frames=self.settings.reference.max_frames
        )
        names = [list(qualities)[i] for i in best]
        kept = self._kept
        if kept is None or self.grid.name != kept["grid"] or not set(kept["frames"]) <= set(laid):
            return names
        if set(names) != set(kept["frames"]):
            log.info(
                "reference: the frames of the last run are kept; reference.keep = false would take "
                "%s", ", ".join(names),
            )  # fmt: skip
        return list(kept["frames"])

    @cached_property
    def _kept(self) -> Mapping[str, Any] | None:
        """What the last run made its reference of, if this one may hold on to it."""
        wanted, made = self.settings.reference, State.read(self.run, "reference", "reference")
        if not wanted.keep or made is None or made.outcome is not Outcome.DONE:
            return None
        if not made.values.get("chosen_by_rank", True):  # named before, and no more
            return None
        return made.values if made.values.get("max_frames") == wanted.max_frames else None

    def _of(self, *sections: str) -> dict[str, Any]:
        """The settings that a step uses, for its digest."""
        whole = {name: getattr(self.settings, name).model_dump(mode="json") for name in sections}
        for section, keys in {"frames": ("files", "exclude", "filter"), "run": ("folder",)}.items():
            for key in keys if section in whole else ():
                del whole[section][key]  # which frames, and where to: not what is made of one
        return whole

    def _companions(self) -> list[str | None]:
        """Digests of the mask and of the flat-field."""
        if not hasattr(self, "_companion_digests"):
            chosen = self.settings.frames
            paths = [self.settings.path(name) for name in (chosen.mask, chosen.flat)]
            self._companion_digests = [_digest_if(path) for path in paths]
        return self._companion_digests

    def _when(self, name: str) -> tuple[bool, float, str]:
        time = self._states["measure"][name].values["time"]
        return time is None, time or 0.0, name

    def _all(self, step: str) -> list[State]:
        states = (State.read(self.run, step, source.name) for source in self.sources)
        return [state for state in states if state is not None]

    def _state_of(self, step: str, name: str) -> State | None:
        """Of a frame, if it is still good; of steps not reached, as the last run left it."""
        if step in self._seen:
            return self._seen[step].get(name)
        return State.read(self.run, step, name)

    def _rows(self) -> tuple[FrameRow, ...]:
        steps = ("measure", "register", "subtract", "photometry")
        return tuple(
            FrameRow.of(
                source.name, str(os.path.relpath(source.path, self.settings.base)),
                {step: self._state_of(step, source.name) for step in steps},
                self._grades.get(source.name), source.name in self._used,
            )
            for source in self.sources
        )  # fmt: skip


def _done(states: Mapping[str, State]) -> dict[str, State]:
    """In the order of names, whatever order they ended in."""
    return {n: states[n] for n in sorted(states) if states[n].outcome is Outcome.DONE}


def _digest_if(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return file_digest(path)
    except OSError as error:
        raise InputError(
            f"{path}, named in the settings, cannot be read ({error.strerror})."
        ) from error


def _log_state(state: State) -> None:
    level = logging.WARNING if state.outcome is Outcome.FAILED else logging.INFO
    text = f": {state.reason}" if state.reason else ""
    log.log(level, "%s %s: %s in %.2f s%s", state.step, state.name, state.outcome.value,
             state.seconds, text)  # fmt: skip
    for finding in state.findings:
        log.info("%s %s: %s", state.step, state.name, finding)
    if state.details:
        log.error("%s", state.details)
