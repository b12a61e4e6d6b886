"""The demo: its frames, and the whole command in a temporary folder."""

from __future__ import annotations

import re

import numpy as np
import pytest
from astropy.io import fits

from pytorchdia.cli.demo import make_field
from pytorchdia.product import summarise


def test_the_same_seed_gives_the_same_field_and_another_one_does_not():
    first, again, other = make_field(1), make_field(1), make_field(2)
    np.testing.assert_array_equal(first.target, again.target)
    np.testing.assert_array_equal(first.reference, again.reference)
    assert np.median(np.abs(first.target - other.target)) > 1.0


def test_the_field_has_the_flaws_that_it_promises():
    field = make_field(3)
    assert field.target.shape == (300, 360)
    assert field.target.max() == 65535
    assert (field.target[:, 300] == 65535).all()
    assert field.target_mask.sum() == 300
    assert np.isnan(field.reference).sum() == 7
    assert 0.93 * 16000 < field.brightening < 16000  # the wings reach beyond 8 pixels


def test_the_demo_finds_the_brightening_that_it_simulated(run_cli, tmp_path):
    folder = tmp_path / "new" / "demo"
    outcome = run_cli("demo", folder, "--seed", 4)
    assert outcome.code == 0, outcome.err
    assert outcome.out == ""
    names = sorted(p.name for p in folder.iterdir())
    assert names == ["difference.fits", "difference.png", "reference.fits", "target.fits"]
    summary = summarise(folder / "difference.fits")
    name, scale, error, _ = summary.parameters[0]
    assert name == "P"
    assert scale == pytest.approx(0.8, abs=max(5 * error, 0.01))
    told = re.search(r"brighter by (\d+) ADU .* difference holds (-?\d+) ± (\d+) ADU", outcome.err)
    truth, flux, flux_error = map(float, told.groups())
    assert truth == round(make_field(4).brightening)
    assert abs(flux - truth) < 4 * flux_error
    assert fits.getheader(folder / "target.fits")["GAIN"] == 1.6
    assert f"pytorchdia info {folder / 'difference.fits'}" in outcome.err


def test_the_demo_cannot_write_below_a_file(run_cli, tmp_path):
    (tmp_path / "file").write_text("x")
    outcome = run_cli("demo", tmp_path / "file" / "demo")
    assert outcome.code == 4
    assert "cannot write into" in outcome.err
    assert "Not a directory" in outcome.err


def test_a_negative_seed_is_a_wrong_command_line(run_cli, tmp_path):
    outcome = run_cli("demo", tmp_path / "d", "--seed", -1)
    assert outcome.code == 2
    assert "--seed" in outcome.err
    assert not (tmp_path / "d").exists()
