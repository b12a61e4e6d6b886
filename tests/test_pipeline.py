"""The run as a state machine: reruns, kills, bad nights, full disks, and the numbers at the end."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from astropy.io import fits

from pytorchdia import InputError, LightCurves, reduce
from pytorchdia.errors import ReadError, WriteError
from pytorchdia.run.frames_table import read_frames
from pytorchdia.run.pipeline import RunSummary
from pytorchdia.run.state import Made, Outcome, State, Unit, carry_out, is_done
from pytorchdia.run.tables import read_table
from pytorchdia.simulate import Stars
from pytorchdia.threads import one_thread

from .small_season import (
    CONFIG,
    EXPOSURE,
    SHAPE,
    VARIABLE,
    Epoch,
    epochs,
    products,
    sky_stars,
    write_frame,
    write_season,
)

STEPS = (
    "measure", "register", "reference", "subtract", "photometry", "stack", "variables", "follow",
    "report",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread():
    """Sums then come out the same whatever else the machine does."""
    with one_thread():
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a season that was reduced without disturbance."""
    folder = tmp_path_factory.mktemp("season")
    write_season(folder)
    reduce(folder / "config.toml")
    return folder


@pytest.fixture
def season(finished: Path, tmp_path: Path) -> Path:
    """A copy of it to change; times of files are kept."""
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    return folder


def to_do(summary: RunSummary) -> dict[str, int]:
    return {step: n for step, _, n in summary.planned}


def statuses(summary: RunSummary) -> dict[str, str]:
    return {row.name: row.status for row in summary.rows}


# The numbers.


def test_the_variable_is_followed_where_its_light_changes(finished: Path) -> None:
    curves = LightCurves(finished / "run")
    curve = curves.candidate(1)
    assert np.hypot(curve.x - VARIABLE[0], curve.y - VARIABLE[1]) < 0.3
    assert curve.title == "candidate 1"
    truth = {epoch.name: epoch.flux for epoch in epochs(6)}
    true = np.array([truth[str(name)] for name in curve.epochs["frame"]])
    flux, error = (np.asarray(curve.epochs[name], float) for name in ("flux", "error"))
    known = np.isfinite(error)
    slope = np.polyfit(true[known], flux[known], 1, w=1.0 / error[known])[0]
    assert slope == pytest.approx(1.0, abs=0.03)
    assert curve.reference_flux is not None
    assert curve.reference_flux == pytest.approx(20000.0, rel=0.4)
    assert curve.to_table().meta["candidate"] == 1
    with pytest.raises(KeyError, match="not known"):
        curves.candidate(999)


def test_the_variable_is_found_and_its_light_curve_is_the_truth(finished: Path) -> None:
    curves = LightCurves.open(finished / "run")
    curve = curves.at(*VARIABLE)
    assert np.hypot(curve.x - VARIABLE[0], curve.y - VARIABLE[1]) < 0.5
    truth = np.array([epoch.flux for epoch in epochs(6)])
    flux, error = (np.asarray(curve.epochs[name]) for name in ("flux", "error"))
    # The reference holds a mean of the star's states, so that a constant is free.
    offset = np.average(flux - truth, weights=error**-2)
    pulls = (flux - truth - offset) / error
    assert np.abs(pulls).max() < 5
    assert np.ptp(flux) > 20 * np.median(error)
    candidates = json.loads((finished / "run/states/variables/candidates.json").read_text())[
        "values"
    ]
    assert candidates["candidates"] >= 1
    assert candidates["epochs"] == 6


def test_constant_stars_scatter_as_their_errors_say(finished: Path) -> None:
    curves = LightCurves(finished / "run")
    pulls = []
    for star in curves:
        curve = curves[star]
        if np.hypot(curve.x - VARIABLE[0], curve.y - VARIABLE[1]) < 6:
            continue
        good = np.asarray(curve.epochs["flags"]) == 0
        if good.sum() >= 4:
            flux, error = (np.asarray(curve.epochs[n])[good] for n in ("flux", "error"))
            mean = np.average(flux, weights=error**-2)
            pulls += list((flux - mean) / error / np.sqrt(1 - 1 / good.sum()))
    assert len(pulls) > 50
    assert 0.7 < 1.4826 * np.median(np.abs(pulls)) < 1.4


def test_the_table_tells_of_every_frame(finished: Path) -> None:
    table = read_frames(finished / "run")
    assert list(table["status"]) == ["done"] * 6
    for row, epoch in zip(table, epochs(6), strict=True):
        assert row["time"] == pytest.approx(epoch.mjd + 0.5 * EXPOSURE / 86400)
        assert (row["shift_x"], row["shift_y"]) == pytest.approx(epoch.shift, abs=0.15)
        assert row["fwhm"] == pytest.approx(2.3548 * epoch.phi, rel=0.2)
    # P is relative to the reference, whose first frame sets the scale.
    scales = np.asarray(table["scale"]) / [epoch.scale for epoch in epochs(6)]
    assert scales == pytest.approx(np.full(6, scales.mean()), rel=0.03)


def test_steps_can_be_done_one_by_one_with_the_same_result(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("run"))
    with pytest.raises(InputError, match="do that step first"):
        reduce(folder / "config.toml", only="subtract")
    assert set(to_do(reduce(folder / "config.toml", until="reference"))) == {
        "measure", "register", "reference"
    }  # fmt: skip
    assert not (folder / "run/differences").exists()
    for step in ("subtract", "photometry", "report"):
        reduce(folder / "config.toml", only=step)
    assert products(folder / "run") == products(finished / "run")


def _changes_one_beside_the_reference(season: Path) -> list[bool]:
    table = read_frames(season / "run")
    row = table[~table["in_reference"]][0]
    with fits.open(season / row["file"], mode="update") as frame:
        frame[0].data[5, 5] += 1
    return list(table["name"] == row["name"])


@pytest.mark.parametrize("changed", ["subtract", "one frame"])
def test_the_table_holds_nothing_of_old_differences(season: Path, changed: str) -> None:
    config = season / "config.toml"
    assert statuses(reduce(config, until="register")) == {f"frame{i:03d}": "done" for i in range(6)}
    assert np.isfinite(read_frames(season / "run")["scale"]).all()
    if changed == "subtract":
        config.write_text(config.read_text().replace("kernel = 9", "kernel = 11"))
        old = [True] * 6
    else:
        old = _changes_one_beside_the_reference(season)
    reduce(config, until="register")
    table = read_frames(season / "run")
    assert list(table["status"] == "to do") == old
    assert list(np.ma.getmaskarray(table["scale"])) == old
    assert list(table["step"] == "register") == old


def test_a_flat_field_enters_the_noise(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("run"))
    fits.PrimaryHDU(np.full(SHAPE, 0.25, "f4")).writeto(folder / "flat.image")
    (folder / "config.toml").write_text(
        CONFIG.replace("[subtract]", 'flat = "flat.image"\n[subtract]')
    )
    reduce(folder / "config.toml")
    name = "run/differences/frame001_diff.fits"
    with fits.open(folder / name) as flat, fits.open(finished / name) as plain:
        good = (flat["MASK"].data == 0) & (plain["MASK"].data == 0)
        ratio = flat["VARIANCE"].data[good] / plain["VARIANCE"].data[good]
    assert np.median(ratio) > 2  # eq 6: the photons' noise grows by 1 / F


def test_a_list_of_stars_and_registered_frames(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("run"))
    (folder / "mine.csv").write_text(f"name,x,y\nV1,{VARIABLE[0]},{VARIABLE[1]}\n")
    (folder / "config.toml").write_text(
        CONFIG.replace('"run"', '"run"\nkeep_registered = true') + '[stars]\nlist = "mine.csv"\n'
    )
    reduce(folder / "config.toml")
    curves, before = LightCurves(folder / "run"), LightCurves(finished / "run")
    assert list(curves.stars["name"]) == ["V1"]
    assert curves.named("V1").title == "star 1 (V1)"
    assert curves.named("V1").to_table().meta["name"] == "V1"
    mine, found = (c.at(*VARIABLE).epochs for c in (curves, before))
    apart = np.abs(np.asarray(mine["flux"]) - np.asarray(found["flux"]))
    assert (apart < 3 * np.asarray(found["error"])).all()
    assert len(list((folder / "run/registered").glob("*.fits"))) == 6


# Reruns.


def test_a_rerun_does_nothing(season: Path) -> None:
    before = products(season / "run")
    assert set(to_do(reduce(season / "config.toml")).values()) == {0}
    assert products(season / "run") == before


def test_a_dry_run_touches_nothing(finished: Path, tmp_path: Path) -> None:
    write_season(tmp_path)
    plan = reduce(tmp_path / "config.toml", dry_run=True)
    assert plan.planned == (("measure", 0, 6),)
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == []
    assert set(to_do(reduce(finished / "config.toml", dry_run=True)).values()) == {0}


def test_a_touched_file_is_only_looked_at(season: Path) -> None:
    os.utime(season / "frame002.fits")
    work = to_do(reduce(season / "config.toml"))
    assert work == {**dict.fromkeys(STEPS, 0), "measure": 1}


@pytest.mark.parametrize(
    ("line", "steps"),
    [
        (
            "[photometry]\nsky_spacing = 16.0\n",
            {"photometry": 6, "stack": 1, "variables": 1, "follow": 6},
        ),
        ("[variables]\nthreshold = 7.0\n", {"photometry": 6, "variables": 1}),
        ("[frames]\nexclude = ['nothing*']\n", {}),
        ("[quality]\nmax_fwhm = 99.0\n", {}),
    ],
)
def test_a_changed_setting_repeats_only_what_uses_it(
    season: Path, line: str, steps: dict[str, int]
) -> None:
    config = season / "config.toml"
    text = CONFIG.replace('[frames]\nfiles = ["*.fits"]\n', "") if "[frames]" in line else CONFIG
    config.write_text(text + line)
    # The report shows all settings.
    assert to_do(reduce(config)) == {**dict.fromkeys(STEPS, 0), "report": 1, **steps}


def fails(*_: object) -> None:
    raise InputError("Not today.")


def test_without_candidates_nothing_is_followed_and_the_report_says_so(
    season: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytorchdia.run.pipeline.find_variables", fails)
    (season / "run" / "candidates.parquet").unlink()
    work = to_do(reduce(season / "config.toml"))
    assert work == {**dict.fromkeys(STEPS, 0), "variables": 1, "report": 1}
    assert not list((season / "run" / "followed").glob("*.parquet"))
    page = (season / "run" / "report.html").read_text()
    assert "The search for variables is not complete." in page
    assert "No variable or new source was found" not in page


def test_a_frame_that_is_added_and_taken_away_again(season: Path) -> None:
    before = products(season / "run")
    write_frame(season, Epoch("frame900", 59010.0, (1.0, 2.0), 1.8, 1.0, 0.0))
    work = to_do(reduce(season / "config.toml"))
    assert work["measure"] == work["register"] == work["subtract"] == work["photometry"] == 1
    assert work["reference"] == 0
    assert len(LightCurves(season / "run").at(*VARIABLE)) == 7
    (season / "frame900.fits").unlink()
    assert to_do(reduce(season / "config.toml"))["subtract"] == 0
    assert products(season / "run") == before


def test_a_better_night_does_not_change_the_earlier_ones_unless_asked(season: Path) -> None:
    config, run = season / "config.toml", season / "run"
    old = State.read(run, "reference", "reference")
    assert old is not None
    before = {k: v for k, v in products(run).items() if k.startswith("differences/")}
    for k in range(2):  # sharper than all others
        write_frame(season, Epoch(f"frame80{k}", 59012.0 + k, (2.0, 1.0), 1.0, 1.0, 0.0))
    work = to_do(reduce(config))
    assert work["reference"] == 0
    assert work["measure"] == work["register"] == work["subtract"] == work["photometry"] == 2
    assert before.items() <= products(run).items()
    assert "reference.keep = false would take frame80" in (run / "log.txt").read_text()
    (run / "reference.fits").unlink()  # made again of the same frames
    assert to_do(reduce(config))["subtract"] == 0
    (season / f"{old.values['grid']}.fits").unlink()  # a reason to choose anew
    assert to_do(reduce(config))["reference"] == 1
    new = State.read(run, "reference", "reference")
    assert new is not None
    assert new.values["grid"].startswith("frame80")


def test_the_reference_is_chosen_anew_if_asked(season: Path) -> None:
    for k in range(2):
        write_frame(season, Epoch(f"frame80{k}", 59012.0 + k, (2.0, 1.0), 1.0, 1.0, 0.0))
    (season / "config.toml").write_text(CONFIG + "[reference]\nkeep = false\n")
    work = to_do(reduce(season / "config.toml"))
    assert work["reference"] == 1
    assert work["subtract"] == 8
    made = State.read(season / "run", "reference", "reference")
    assert made is not None
    assert made.values["grid"].startswith("frame80")


def test_only_the_last_part_of_the_stack_is_summed_anew(
    season: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = read_table(season / "run/candidates.parquet")
    monkeypatch.setattr("pytorchdia.run.pipeline._PART", 2)
    assert to_do(reduce(season / "config.toml"))["stack"] == 3
    parts = read_table(season / "run/candidates.parquet")
    sums = ["x", "y", "ra", "dec", "separation", "significance"]  # as they were but for rounding
    assert parts.drop(sums).equals(whole.drop(sums))
    for name in sums:
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-9)
    write_frame(season, Epoch("frame900", 59010.0, (1.0, 2.0), 1.8, 1.0, 0.0))
    work = to_do(reduce(season / "config.toml"))
    assert work["stack"] == work["variables"] == 1


def test_a_part_of_the_stack_that_fails_leaves_no_old_candidates(
    season: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytorchdia.run.pipeline.stack_differences", fails)
    (season / "run/stack/0000.fits").unlink()
    reduce(season / "config.toml")
    assert not (season / "run/candidates.parquet").exists()
    assert not list((season / "run/followed").glob("*.parquet"))


def test_a_product_that_is_lost_is_made_again(season: Path) -> None:
    before = products(season / "run")
    (season / "run/differences/frame003_diff.fits").unlink()
    (season / "run/photometry/frame001.parquet").write_bytes(b"short")
    work = to_do(reduce(season / "config.toml"))
    assert work["subtract"] == 1
    assert work["photometry"] == 1
    assert products(season / "run") == before


# Kills.

_DRIVER = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from pytorchdia import reduce

def child(config):
    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(1)
        code = 1
        try:
            reduce(config)
            code = 0
        except BaseException:
            import traceback
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)
    return pid

undisturbed, disturbed = sys.argv[1:3]
started = time.monotonic()
assert os.waitpid(child(undisturbed), 0)[1] == 0
whole = time.monotonic() - started
kills = 0
while kills < 20:
    pid = child(disturbed)
    time.sleep(random.uniform(0.02, whole / 4))
    os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    kills += os.WIFSIGNALED(status)
    if not os.WIFSIGNALED(status):  # it had come to its end: begin anew
        import shutil
        shutil.rmtree(Path(disturbed).parent / "run")
assert os.waitpid(child(disturbed), 0)[1] == 0
"""


def test_killed_at_twenty_random_moments_the_result_is_the_same(tmp_path: Path) -> None:
    write_season(tmp_path / "a", 4)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    configs = [str(tmp_path / name / "config.toml") for name in "ab"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _DRIVER, *configs], env=environment, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert products(tmp_path / "a/run") == products(tmp_path / "b/run")
    assert not list((tmp_path / "b/run").rglob("*.part*"))


def test_interrupted_by_hand_it_goes_on(tmp_path: Path, finished: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("run"))

    def stop(step: str, done: int, total: int) -> None:
        if (step, done) == ("subtract", 3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reduce(folder / "config.toml", progress=stop)
    assert set(read_frames(folder / "run")["status"]) == {"to do"}
    assert to_do(reduce(folder / "config.toml"))["subtract"] == 3
    assert products(folder / "run") == products(finished / "run")


# Bad nights.


@pytest.fixture(scope="module")
def bad_night(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunSummary]:
    """Good frames and one of each kind that a night can spoil."""
    folder = tmp_path_factory.mktemp("bad")
    write_season(folder)
    good = epochs(6)[2]

    def as_(name: str, mjd: float = 59020.0) -> Epoch:
        return Epoch(name, mjd, good.shift, good.phi, good.scale, good.flux)

    nothing = Stars(np.array([-50.0]), np.array([-50.0]), np.array([1.0]))
    one = Stars(np.array([20.0]), np.array([70.0]), np.array([50000.0]))
    write_frame(folder, as_("b_nostars"), stars=nothing)
    path = write_frame(folder, as_("b_onestar"), stars=one)
    with fits.open(path, mode="update") as hdus:  # without the variable star, too
        hdus[0].data = (400 + 17 * np.random.default_rng(3).standard_normal(SHAPE)).astype("f4")
        hdus[0].data[68:73, 18:23] += 3000
    path = write_frame(folder, as_("b_nostars"), stars=nothing)
    with fits.open(path, mode="update") as hdus:
        hdus[0].data = (400 + 17 * np.random.default_rng(4).standard_normal(SHAPE)).astype("f4")
    write_frame(folder, as_("b_otherfield"), stars=sky_stars(seed=77))
    shutil.copy(folder / "frame001.fits", folder / "frame001_again.fits")
    write_frame(folder, as_("b_notime"), MJD_OBS=None)
    write_frame(folder, as_("b_filter"), FILTER="V")
    path = write_frame(folder, as_("b_truncated"))
    path.write_bytes(path.read_bytes()[:20000])
    path = write_frame(folder, as_("b_nan"))
    with fits.open(path, mode="update") as hdus:
        hdus[0].data[:] = np.nan
    write_frame(folder, as_("a_early", mjd=58990.0), seed=4)
    return folder, reduce(folder / "config.toml")


@pytest.mark.parametrize(
    ("name", "status", "word"),
    [
        ("b_nostars", "rejected", "star"),
        ("b_onestar", "rejected", "star"),
        ("b_otherfield", "failed", "match"),
        ("frame001_again", "rejected", "same pixels as frame001"),
        ("b_notime", "rejected", "when it was taken"),
        ("b_filter", "rejected", "filter V"),
        ("b_truncated", "failed", "truncated"),
        ("b_nan", "rejected", "not finite"),
        ("a_early", "done", ""),
    ],
)
def test_a_bad_frame_is_a_row_with_its_reason(
    bad_night: tuple[Path, RunSummary], name: str, status: str, word: str
) -> None:
    row = next(row for row in bad_night[1].rows if row.name == name)
    assert row.status == status
    assert word in row.reason
    assert bool(row.reason) == (status != "done")


def test_a_bad_night_spoils_no_good_frame(bad_night: tuple[Path, RunSummary]) -> None:
    folder, summary = bad_night
    assert [s for n, s in statuses(summary).items() if n.startswith("frame00")].count("done") == 6
    curve = LightCurves(folder / "run").at(*VARIABLE)
    times = np.asarray(curve.epochs["time"])
    assert str(curve.epochs["frame"][0]) == "a_early"  # in the order of time, not of names
    assert (np.diff(times) > 0).all()
    assert np.isfinite(np.asarray(curve.epochs["flux"])).all()


def test_a_night_without_one_good_frame_says_so(tmp_path: Path) -> None:
    for i in range(3):
        fits.PrimaryHDU(np.full((40, 40), np.nan, "f4")).writeto(tmp_path / f"f{i}.fits")
    (tmp_path / "config.toml").write_text(CONFIG)
    with pytest.raises(InputError, match="None of the 3 frames can be used"):
        reduce(tmp_path / "config.toml")
    assert set(read_frames(tmp_path / "run")["status"]) == {"rejected"}


def test_a_reference_masked_in_half(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("run"))
    mask = np.zeros(SHAPE, np.uint8)
    mask[:, : SHAPE[1] // 2 - 12] = 1
    fits.PrimaryHDU(mask).writeto(folder / "bad.mask")
    (folder / "config.toml").write_text(
        CONFIG.replace("[subtract]", 'mask = "bad.mask"\n[subtract]')
    )
    summary = reduce(folder / "config.toml")
    assert set(statuses(summary).values()) == {"done"}
    curve = LightCurves(folder / "run").at(*VARIABLE)
    whole = LightCurves(finished / "run").at(*VARIABLE)
    apart = np.asarray(curve.epochs["flux"]) - np.asarray(whole.epochs["flux"])
    assert np.abs(apart - np.median(apart)).max() < 5 * np.asarray(whole.epochs["error"]).max()


def test_a_full_disk_stops_the_run_and_leaves_nothing_half(
    finished: Path, tmp_path: Path, run_cli
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("run"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    reduce(folder / "config.toml", until="register")
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, before[1]))  # no file can grow beyond it
    try:
        outcome = run_cli("reduce", folder / "config.toml", "--quiet")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert outcome.code == 4
    assert "reference.fits could not be written" in outcome.err
    assert not list((folder / "run").rglob("*.part*"))
    state = json.loads((folder / "run/states/reference/reference.json").read_text())
    assert state["outcome"] == "failed"
    assert "could not be written" in state["reason"]
    reduce(folder / "config.toml")
    assert products(folder / "run") == products(finished / "run")


def test_a_frame_that_cannot_be_opened_for_now_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_season(tmp_path, 3)

    def refuse(path: Path, *arguments: object) -> object:
        if Path(path).name == "frame002.fits":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return open(path, *arguments)  # type: ignore[call-overload]

    with monkeypatch.context() as closed:
        closed.setattr("pytorchdia.io.open", refuse, raising=False)
        (row,) = reduce(tmp_path / "config.toml", until="register").failed
    assert row.name == "frame002"
    assert "Permission denied" in row.reason
    assert "damaged" not in row.reason
    again = reduce(tmp_path / "config.toml", until="register")
    assert again.failed == ()
    assert to_do(again) == {"measure": 1, "register": 1}


def too_much() -> Made:
    torch.empty(10**15)
    return Made()


def damaged() -> Made:
    raise ReadError("a.fits may be truncated.") from OSError("Header missing END card.")


@pytest.mark.parametrize(
    ("work", "word", "retry"),
    [(too_much, "There was not enough memory", True), (damaged, "truncated", False)],
)
def test_what_may_pass_is_tried_again(
    tmp_path: Path, work: Callable[[], Made], word: str, retry: bool
) -> None:
    unit = Unit("subtract", "a", "digest", work)
    state = carry_out(tmp_path, unit)
    assert (state.outcome, state.retry) == (Outcome.FAILED, retry)
    assert word in state.reason
    assert "defect" not in state.reason
    assert is_done(tmp_path, unit, State.read(tmp_path, "subtract", "a")) != retry


def test_a_log_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    write_season(tmp_path, 2)
    (tmp_path / "run" / "log.txt").mkdir(parents=True)
    with pytest.raises(WriteError, match=r"log\.txt: Is a directory"):
        reduce(tmp_path / "config.toml")


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    write_season(tmp_path, 2)
    (tmp_path / "file").write_text("")
    (tmp_path / "config.toml").write_text(CONFIG.replace('"run"', '"file/run"'))
    with pytest.raises(WriteError, match="cannot be written"):
        reduce(tmp_path / "config.toml")


@pytest.mark.skipif(os.geteuid() == 0, reason="the super-user may write anywhere")
def test_a_read_only_folder_is_refused_before_any_work(season: Path) -> None:
    (season / "run").chmod(0o500)
    try:
        with pytest.raises(WriteError, match="cannot be written"):
            reduce(season / "config.toml")
    finally:
        (season / "run").chmod(0o700)


def test_two_runs_at_once_are_refused(season: Path) -> None:
    def again(step: str, done: int, total: int) -> None:
        with pytest.raises(WriteError, match="Another run is at work"):
            reduce(season / "config.toml")

    os.utime(season / "frame000.fits")
    reduce(season / "config.toml", progress=again)


def test_frames_with_one_name_in_two_folders_are_told_apart(tmp_path: Path) -> None:
    for night, seed in (("night1", 0), ("night2", 1)):
        (tmp_path / night).mkdir()
        for epoch in epochs(2):
            write_frame(tmp_path / night, epoch, seed)
    (tmp_path / "config.toml").write_text(CONFIG.replace("*.fits", "night*/*.fits"))
    names = set(statuses(reduce(tmp_path / "config.toml", until="register")))
    assert names == {f"night{n}_frame00{i}" for n in (1, 2) for i in (0, 1)}


# The command line.


def write_chips(folder: Path, n: int) -> None:
    """A mosaic of two chips, the second of which lies on its side."""
    write_season(folder, n)
    (folder / "config.toml").unlink()
    for path in sorted(folder.glob("*.fits")):
        image, header = fits.getdata(path), fits.getheader(path)
        chips = [fits.ImageHDU(image[:, :96], name="A"), fits.ImageHDU(image[:, :96].T, name="B")]
        fits.HDUList([fits.PrimaryHDU(header=header), *chips]).writeto(path, overwrite=True)


def test_the_chips_of_a_mosaic_are_reduced_by_one_command(tmp_path: Path, run_cli) -> None:
    write_chips(tmp_path, 4)
    made = run_cli("init", tmp_path, "--chips")
    assert made.code == 0
    configs = [tmp_path / f"config_{chip}.toml" for chip in "AB"]
    assert f"pytorchdia reduce {configs[0]} {configs[1]}" in made.err
    bad = np.zeros((2, 96, 96), np.uint8)
    bad[0, 7, 5] = bad[1, 5, 6:9] = 1
    images = [fits.ImageHDU(mask, name=name) for mask, name in zip(bad, "AB", strict=True)]
    fits.HDUList([fits.PrimaryHDU(), *images]).writeto(tmp_path / "bad.image")
    for config in configs:
        config.write_text(config.read_text().replace("[frames]", '[frames]\nmask = "bad.image"'))
    outcome = run_cli("reduce", *configs, "--workers", 1)
    assert outcome.code == 0, outcome.err
    assert f"{tmp_path / 'run_B'} (2 of 2)" in outcome.err
    for chip, n_bad in (("A", 1), ("B", 3)):
        masked = read_frames(tmp_path / f"run_{chip}")["masked_share"]
        assert masked == pytest.approx(np.full(4, n_bad / 96**2))
    a, b = (LightCurves(tmp_path / f"run_{chip}") for chip in "AB")
    star, mirrored = a.at(*VARIABLE), b.at(*VARIABLE[::-1])
    assert len(star) == len(mirrored) == 4
    assert (mirrored.x, mirrored.y) == pytest.approx((star.y, star.x), abs=0.05)
    apart = np.abs(star.epochs["flux"] - mirrored.epochs["flux"]) / star.epochs["error"]
    assert (
        apart.max() < 0.5
    )  # the same light, but for the order of sums and the search of the prior


def test_one_run_that_cannot_be_does_not_stop_the_others(tmp_path: Path, run_cli) -> None:
    write_chips(tmp_path, 3)
    assert run_cli("init", tmp_path, "--chips").code == 0
    good, bad = tmp_path / "config_B.toml", tmp_path / "config_A.toml"
    bad.write_text(bad.read_text().replace('hdu = "A"', 'hdu = "C"'))
    outcome = run_cli("reduce", bad, good, "--until", "register", "--workers", 1)
    assert outcome.code == 3
    assert "has no HDU 'C'" in outcome.err
    assert f"1 of 2 runs could not be done, as said above: {tmp_path / 'run_A'}" in " ".join(
        outcome.err.split()
    )
    assert len(read_frames(tmp_path / "run_B")) == 3


def test_two_seasons_in_one_run_folder_are_refused(season: Path, run_cli) -> None:
    outcome = run_cli("reduce", season / "config.toml", season / "config.toml")
    assert outcome.code == 3
    assert "have the same run folder" in outcome.err


def test_commands(season: Path, run_cli) -> None:
    assert run_cli("reduce", season / "config.toml").code == 0
    assert "Nothing is left to do" in run_cli("reduce", season / "config.toml", "--dry-run").out
    shown = run_cli("status", season / "run")
    assert shown.code == 0
    assert "frame003" in shown.out
    rows = json.loads(run_cli("status", season / "run", "--json").out)
    assert [row["status"] for row in rows] == ["done"] * 6
    x, y = VARIABLE
    shown = run_cli("lightcurve", season / "run", "--x", x, "--y", y)
    assert shown.code == 0
    assert len(shown.out.splitlines()) >= 7
    done = run_cli("lightcurve", season / "run", 1, "-o", season / "a.csv",
                   "--plot", season / "a.png")  # fmt: skip
    assert done.code == 0
    assert (season / "a.png").read_bytes().startswith(b"\x89PNG")
    assert (season / "a.csv").exists()
    assert "0 stars of the name '99999'" in run_cli("lightcurve", season / "run", 99999).err
    assert "no WCS" in run_cli("lightcurve", season / "run", "--ra", 1, "--dec", 2).err
    assert run_cli("lightcurve", season / "run", "--ra", 1).code == 3
    picture = run_cli("lightcurve", season / "run", 1, "--plot", season / "a.xyz")
    assert picture.code == 3
    assert "png" in picture.err
    assert not (season / "a.xyz").exists()
    assert run_cli("lightcurve", season / "run", 99999).code == 3
    assert run_cli("lightcurve", season / "run").code == 3
    assert run_cli("reduce", season / "config.toml", "--only", "nothing").code == 3


def test_failed_frames_have_an_exit_code_of_their_own(season: Path, run_cli) -> None:
    (season / "broken.fits").write_bytes(b"SIMPLE  =                    T")
    outcome = run_cli("reduce", season / "config.toml")
    assert outcome.code == 6
    assert "broken" in outcome.err


def test_a_folder_that_is_no_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="no run of"):
        read_frames(tmp_path)
    with pytest.raises(ReadError, match="no run of"):
        LightCurves(tmp_path)


@pytest.mark.parametrize("step", ["variables", "report"])
def test_what_fails_after_the_photometry_is_told(
    season: Path, run_cli, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fails(*_: object) -> None:
        raise ZeroDivisionError("for the test")

    work = {"variables": "find_variables", "report": "make_report"}[step]
    monkeypatch.setattr(f"pytorchdia.run.pipeline.{work}", fails)
    text = (season / "config.toml").read_text()
    (season / "config.toml").write_text(text + "\n[variables]\nthreshold = 7.0\n")
    for _ in range(2):  # nothing changes: it is told again
        outcome = run_cli("reduce", season / "config.toml", "--workers", 1)
        assert outcome.code == 6
        assert f"failed {step}" in outcome.err
        assert "for the test" in outcome.err
        assert "log.txt" in outcome.err
    page = season / "run/report.html"
    if step == "variables":
        assert "The search for variables is not complete." in page.read_text()
        assert "No variable or new source was found" not in page.read_text()
    else:
        assert not page.exists()
    monkeypatch.undo()
    (season / "config.toml").write_text(text)
    summary = reduce(season / "config.toml")
    assert summary.troubles == ()
    assert "is not complete" not in page.read_text()


def test_keeping_registered_frames_makes_nothing_else_anew(season: Path) -> None:
    text = (season / "config.toml").read_text()
    (season / "config.toml").write_text(text.replace("[run]\n", "[run]\nkeep_registered = true\n"))
    assert "keep_registered = true" in (season / "config.toml").read_text()
    again = to_do(reduce(season / "config.toml"))
    assert again["register"] == 6
    assert again["reference"] == again["subtract"] == again["photometry"] == 0
    assert len(list((season / "run/registered").glob("*.fits"))) == 6
