"""DECam exposures as a season: a distorted WCS from the header to the light curves."""

from __future__ import annotations

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord

from pytorchdia import LightCurves, as_frame, reduce
from pytorchdia.run.frames_table import read_frames

from .conftest import DATA

CONFIG = f"""
[frames]
files = ["{DATA}/decam_stacks/DEC-OBS18?.mini.fits.fz"]
[quality]
need_time = false  # all headers bear the same copied date
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("decam")
    (folder / "config.toml").write_text(CONFIG)
    reduce(folder / "config.toml")
    return folder / "run"


def test_the_exposures_go_through(run):
    table = read_frames(run)
    assert len(table) == 5
    assert set(table["status"]) == {"done"}
    assert np.ptp(np.asarray(table["scale"], float)) < 0.2


def test_stars_lie_where_the_header_of_a_frame_says(run):
    curves = LightCurves(run)
    table = read_frames(run)
    grid = next(row for row in table if row["shift_x"] == 0 and row["shift_y"] == 0)
    frame = as_frame(f"{DATA}/decam_stacks/{grid['name']}.fits.fz")
    assert len(curves) >= 4
    for star in curves:
        curve = curves[star]
        here = SkyCoord(curve.ra * u.deg, curve.dec * u.deg)
        there = frame.wcs.pixel_to_world(curve.x, curve.y)
        assert here.separation(there).arcsec < 0.01
