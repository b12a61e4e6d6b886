"""The SAAO series from its raw frames to light curves, without registration by anybody else."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest

from pytorchdia import LightCurves, reduce
from pytorchdia.run.frames_table import read_frames

from .conftest import DATA
from .test_saao_variable import KNOWN, X, Y

CONFIG = f"""
[frames]
files = ["{DATA}/saao_bulge_series/*.fits.fz"]
[camera]
saturation = 45000  # ADU, where these frames leave linearity
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saao")
    (folder / "config.toml").write_text(CONFIG)
    reduce(folder / "config.toml")
    return folder / "run"


@pytest.fixture(scope="module")
def lens(run):
    """Where the lens lies on the reference: known on frame 20, whose registration says the rest."""
    row = next(row for row in read_frames(run) if row["name"] == "AKB13475I0020")
    return X - row["shift_x"], Y - row["shift_y"]


def test_all_frames_go_through(run):
    table = read_frames(run)
    assert len(table) == 12
    assert set(table["status"]) == {"done"}
    assert len(LightCurves(run)) > 800


def test_the_lens_is_the_best_candidate(run, lens):
    best = pq.read_table(run / "candidates.parquet").to_pylist()[0]
    assert best["kind"] == "variable star"
    assert np.hypot(best["x"] - lens[0], best["y"] - lens[1]) < 1.5


def test_the_caustic_exit_is_in_its_light_curve(run, lens):
    curve = LightCurves(run).at(*lens)
    assert np.hypot(curve.x - lens[0], curve.y - lens[1]) < 1.5
    flux = {str(r["frame"])[-4:]: float(r["flux"]) for r in curve.epochs}
    table = read_frames(run)
    scale = float(table["scale"][table["name"] == "AKB13475I0020"][0])
    relative = {e: scale * (flux[e] - flux["0020"]) for e in KNOWN}
    known = np.array([1e3 * KNOWN[epoch] for epoch in KNOWN])
    ours = np.array([relative[epoch] for epoch in KNOWN])
    # An aperture of 9 x 9 pixels holds its neighbours' residuals as well; the shape must agree.
    slope = (ours * known).sum() / (known**2).sum()
    assert slope == pytest.approx(1.0, abs=0.2)
    assert np.abs(ours - slope * known).max() < 0.15 * np.ptp(known)
    assert relative["0097"] - relative["0167"] > 5e4  # the fall of the caustic exit, within 0.28 d
