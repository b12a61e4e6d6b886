"""Section 4 on the SAAO series, as shipped: the unregistered frames, a few stars and epochs."""

import csv

import numpy as np

from .conftest import DATA


def test_a_quick_run_of_section_4(run_cli, tmp_path):
    frames = DATA / "saao_bulge_series"
    command = ("experiment", "real", tmp_path, "--frames", frames, "--quick", "--workers", 1)
    outcome = run_cli(*command)
    assert outcome.code == 0, outcome.err
    with (tmp_path / "lightcurves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["status"] for row in rows} == {"CONVERGED"}
    assert len(rows) >= 4 * 12  # four methods; some stamps lie partly outside their frames
    for method in ("b08", "huber", "plain", "prior"):
        mine = [row for row in rows if row["method"] == method]
        # The reference is a single frame: its own noise comes on top of the target's.
        assert 0.9 < np.median([float(row["mfv"]) for row in mine]) < 2.0
        # The frames were exposed for 200 to 500 s, the reference for 200 s.
        assert all(0.5 < float(row["P"]) < 3.5 for row in mine)
    with (tmp_path / "scatter.csv").open() as file:
        scatter = list(csv.DictReader(file))
    relative = [float(row["robust"]) / float(row["flux"]) for row in scatter]
    assert 0.0 < np.median(relative) < 0.02  # bright isolated stars, on a night of photometry
