"""A simulated season through the whole chain, against its truth (what a run must show)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pytorchdia.errors import InputError, ReadError
from pytorchdia.recovery import Recovery, recover, run_season_experiment
from pytorchdia.simulate.season import Season, frame_number, read_truth, truth_tables, write_season
from pytorchdia.threads import one_thread

pytestmark = pytest.mark.xdist_group("recovery")  # the season is made once

FRAMES = 12
SEASON = Season(seed=3, shape=(200, 210), n_stars=190, n_saturated=1, n_variables=4, max_shift=9.0)


@pytest.fixture(scope="module")
def season(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recovery]:
    folder = tmp_path_factory.mktemp("season")
    with one_thread():
        return folder, run_season_experiment(folder, SEASON, FRAMES)


def test_the_truth_is_read_back(tmp_path: Path) -> None:
    write_season(SEASON, tmp_path, 2)
    truth = read_truth(tmp_path)
    assert replace(truth.season, troubles=None) == SEASON
    tables = truth_tables(SEASON, 2)
    star = int(tables["light_curves"]["star"][0])
    expected = tables["light_curves"]["flux"][tables["light_curves"]["star"] == star]
    np.testing.assert_allclose(truth.light_curve(star, [1, 0]), expected[[1, 0]], rtol=1e-12)
    moved = truth.matrix(1) @ np.array([10.0, 20.0, 1.0])
    np.testing.assert_allclose(moved, SEASON.epoch(1).conditions.matrix(SEASON.shape) @ [10, 20, 1])
    with pytest.raises(ReadError, match="no truth"):
        read_truth(tmp_path / "frames")


def test_constant_stars_scatter_by_their_errors(season: tuple[Path, Recovery]) -> None:
    found = season[1]
    rows = [row for row in found.pulls if row.points > 110]
    assert len(rows) >= 3
    for row in rows:
        # 0.95 to 1.10, and what the scale of so many pulls may be off by.
        slack = 3.0 * 1.17 / np.sqrt(2.0 * row.points)
        assert 0.95 - slack < row.pulls_with_scale < 1.10 + slack, row
    assert 0.9 < found.photon_limit.error < 1.2
    assert found.photon_limit.scatter < 1.2


def test_injected_light_curves_come_back_whole(season: tuple[Path, Recovery]) -> None:
    seen = [row for row in season[1].curves if row.significance > 10.0]
    assert len(seen) >= 3
    for row in seen:
        assert row.candidate is not None, row
        assert abs(row.slope - 1.0) < 4.0 * row.slope_error + 0.01, row
        assert row.pulls < 2.0, row


def test_at_most_one_false_source_a_frame(season: tuple[Path, Recovery]) -> None:
    found = season[1]
    assert len(found.false) <= found.epochs
    assert found.epochs >= FRAMES - 2


def test_the_page_says_it(season: tuple[Path, Recovery]) -> None:
    folder, found = season
    text = (folder / "season.md").read_text()
    assert f"{found.matched} of {found.stars} stars" in text
    assert "not found" not in text or any(row.candidate is None for row in found.curves)
    assert len((folder / "pulls.csv").read_text().splitlines()) == len(found.pulls) + 1
    assert run_season_experiment(folder, SEASON, FRAMES) == found  # nothing is done again


def test_another_season_in_the_folder_is_refused(season: tuple[Path, Recovery]) -> None:
    folder = season[0]
    page = (folder / "season.md").read_text()
    other = replace(SEASON, seed=4, shape=(200, 200))
    with pytest.raises(InputError, match=r"seed 3 there, 4 asked for; shape \(200, 210\) there"):
        run_season_experiment(folder, other, FRAMES)
    assert (folder / "season.md").read_text() == page


def test_the_page_counts_the_frames_that_are_there(season: tuple[Path, Recovery]) -> None:
    folder, found = season
    with one_thread():
        assert run_season_experiment(folder, SEASON, FRAMES - 4) == found
    assert f"\n{FRAMES} frames of 200 x 210 pixels, seed 3;" in (folder / "season.md").read_text()


def test_what_is_no_season(season: tuple[Path, Recovery], tmp_path: Path) -> None:
    with pytest.raises(ReadError):
        recover(season[0], tmp_path)
    with pytest.raises(InputError, match="no frame of a simulated season"):
        frame_number("m31_night1")
