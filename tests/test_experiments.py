"""The paper's simulated image tests, on a few pairs."""

import csv
import re

import numpy as np
import pytest
import torch
from astropy.io import fits
from scipy.ndimage import gaussian_filter
from scipy.optimize import minimize_scalar

from pytorchdia import CCDNoise, Huber, subtract
from pytorchdia.errors import InputError
from pytorchdia.experiments import real_summary, run_real, table2
from pytorchdia.experiments.bias import run_bias
from pytorchdia.experiments.cells import CELLS
from pytorchdia.experiments.empirical import robust_flux
from pytorchdia.experiments.paper import (
    PAPER,
    PAPER_COUNTS,
    PAPER_TABLE3,
    PAPER_TABLE3_COUNTS,
)
from pytorchdia.experiments.series import whole_pixel_shift
from pytorchdia.experiments.tables import read_rows, write_rows
from pytorchdia.simulate import Stars, render_gaussian, simulate_pair

from .conftest import camera_header


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("table2")
    seen = []
    table2.run_table2(folder, 20, ("plain",), 1, lambda done, total: seen.append((done, total)))
    assert seen == [(0, 1), (1, 1)]
    return folder


def test_a_run_leaves_table_page_picture_and_blocks(folder):
    names = sorted(p.name for p in folder.iterdir())
    assert names == ["blocks", "figure3.png", "table2.csv", "table2.md"]
    rows = read_rows(folder / "blocks" / "plain-00000.csv")
    assert len(rows) > 16
    assert all(row["status"] == "CONVERGED" for row in rows)
    with (folder / "table2.csv").open() as file:
        table = list(csv.DictReader(file))
    value = next(r for r in table if r["metric"] == "mfv" and float(r["n"]) > 5)
    assert 0.95 < float(value["value"]) < 1.0
    page = (folder / "table2.md").read_text()
    assert "[0.9793]" in page  # the paper's number beside ours


def test_a_second_run_computes_only_what_is_missing(folder, monkeypatch):
    before = (folder / "blocks" / "plain-00000.csv").stat().st_mtime_ns
    monkeypatch.setattr(table2, "_run_block", None)  # would fail if it were called
    summaries = table2.run_table2(folder, 32, ("plain",), 1)
    assert (folder / "blocks" / "plain-00000.csv").stat().st_mtime_ns == before
    assert summaries


def test_a_block_that_fails_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match="dict contains fields"):
        write_rows([{"a": 1}, {"a": 2, "b": 3}], tmp_path / "x.csv")
    assert not list(tmp_path.iterdir())


def test_each_simulation_falls_into_one_cell_at_most():
    rng = np.random.default_rng(1)
    numbers = rng.uniform(1, 1200, 500), rng.uniform(0.5, 2.5, 500), rng.uniform(0.5, 2.5, 500)
    held = np.array([cell.holds(*numbers) for cell in CELLS])
    within = (numbers[0] > 8) & (numbers[0] < 1000)
    assert (held.sum(axis=0) == within).all()


def test_the_flux_of_a_constant_star_is_zero_and_of_a_brighter_one_is_not():
    pair = simulate_pair(3)
    difference = subtract(pair.target, pair.reference, noise=CCDNoise(5.0), covariance=False)
    assert abs(table2.normalised_flux(pair, difference)) < 4
    brighter = difference.difference + 0.5 * pair.target_noiseless * (pair.target_noiseless > 0)
    changed = type(difference)(**{**vars(difference), "difference": brighter})
    assert table2.normalised_flux(pair, changed) > 10


def test_summaries_are_medians_and_moments():
    rows = [
        {"method": "plain", "snr": "20", "phi_r": "1.5", "phi_k": "2", "P": str(p), "mse": "1",
         "mse_noisy": "2", "mfb": "0", "mfv": "1", "flux": str(f)}
        for p, f in zip([0.9, 1.0, 1.2, 1.0], [0.0, 1.0, 2.0, 3.0], strict=True)
    ]  # fmt: skip
    found = {s.metric: s for s in table2.summarise(rows)}
    assert found["P"].value == 1.0
    assert found["mpb"].value == 1.5
    assert found["mpb"].error == pytest.approx(np.sqrt(5 / 3 / 4))
    assert found["mpv"].value == pytest.approx(5 / 3)
    assert all(s.cell == CELLS[0] for s in found.values())


def test_the_paper_has_a_number_for_each_cell():
    assert len(PAPER_COUNTS) == len(CELLS) == 12
    assert sum(PAPER_COUNTS) == table2.PAPER_PAIRS
    assert all(len(numbers) == 12 for numbers in PAPER.values())


def test_command(folder, run_cli):
    outcome = run_cli("experiment", "table2", folder, "--quick", "--pairs", 5)
    assert outcome.code == 3
    assert "--quick" in outcome.err


def test_there_is_no_algorithmic_bias(tmp_path):
    tests = run_bias(tmp_path / "bias")
    assert len(tests) == 8
    for t in tests:
        limit = 1.0 if t.dtype == "float32" else 1e-3
        assert t.scale_error <= limit * t.paper_scale_error
        assert t.background_error <= limit * t.paper_background_error
        assert t.kernel_error < 1e-6
    assert sorted(p.name for p in (tmp_path / "bias").iterdir()) == ["bias.csv", "bias.md"]


def test_photometry_of_a_known_star():
    from pytorchdia.metrics import least_flux_error, psf_flux, within_robust_cut

    y, x = np.mgrid[-7:8, -7:8]
    psf = torch.from_numpy(np.exp(-0.5 * (x**2 + y**2) / 1.5**2))
    psf = psf / psf.sum()
    variance = torch.full_like(psf, 9.0)
    fit = psf_flux(300.0 * psf + 4.0, psf, variance)
    assert fit.flux == pytest.approx(300.0)
    assert fit.level == pytest.approx(4.0)
    assert fit.error > least_flux_error(psf, variance)  # the constant costs something
    assert least_flux_error(psf, variance) == pytest.approx(3.0 / float((psf**2).sum()) ** 0.5)
    values = torch.tensor([0.0, 0.1, -0.1, 0.2, 50.0])
    assert within_robust_cut(values).tolist() == [True, True, True, True, False]


SHIFTS = {"b": (3, -5), "c": (-4, 2), "d": (0, 6)}  # (dy, dx) of the targets
SCALES = {"b": 0.8, "c": 1.0, "d": 1.25}
CHANGES = {"b": 2000.0, "c": 0.0, "d": -3000.0}  # of the variable star [ADU of the reference]
BRIGHT = [(50.3, 50.6), (55.7, 150.1), (150.4, 100.3)]  # (y, x); the second one is variable
NEIGHBOUR = (
    60.2,
    178.0,
)  # outshines the variable star in its stamp; too near the edge to be chosen


@pytest.fixture(scope="module")
def sky(tmp_path_factory):
    """A reference and three targets, shifted by whole pixels, of a field with one variable star."""
    folder = tmp_path_factory.mktemp("sky")
    rng = np.random.default_rng(7)
    shape = (206, 212)
    y, x = rng.uniform(0, shape[0], 200), rng.uniform(0, shape[1], 200)
    flux = 10 ** rng.uniform(2.9, 3.5, 200)
    y[:4], x[:4] = np.transpose([*BRIGHT, NEIGHBOUR])
    flux[:4] = 9e4, 2e4, 8e4, 1.2e5

    def write(name, phi, dy, dx, scale, change, noise=1.0):
        changed = flux.copy()
        changed[1] += change
        stars = Stars(x + dx, y + dy, scale * changed)
        clean = render_gaussian(stars, shape, phi) + 300.0
        data = clean + noise * rng.standard_normal(shape) * np.sqrt(25.0 + clean)
        header = camera_header()
        header["MJD-OBS"] = 56000.0 + ord(name)
        fits.PrimaryHDU(data.astype(np.float32), header).writeto(folder / f"{name}.fits")

    write("a", 1.3, 0, 0, 1.0, 0.0, noise=0.2)
    for name, phi in (("b", 1.7), ("c", 1.9), ("d", 2.2)):
        write(name, phi, *SHIFTS[name], SCALES[name], CHANGES[name])
    flat = rng.normal(300.0, 17.0, shape).astype(np.float32)
    fits.PrimaryHDU(flat, camera_header()).writeto(folder / "empty.fits")
    return folder


@pytest.fixture(scope="module")
def real(sky, tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    return run_real(folder, sky, stars=3, stamp=90, workers=1), folder


def test_a_series_finds_its_reference_and_its_shifts(real):
    series = real[0].series
    assert series.reference.name == "a"
    assert {e.name: e.shift for e in series.epochs} == SHIFTS
    assert [name for name, _ in series.rejected] == ["empty"]


def test_the_bright_stars_of_a_series_are_chosen(real):
    found = {(r.y, r.x) for r in real[0].rows}
    assert found == {(round(y), round(x)) for y, x in BRIGHT}


@pytest.mark.parametrize("method", real_summary.REAL_METHODS)
def test_a_series_gives_back_scales_and_the_flux_of_the_variable_star(real, method):
    rows = [r for r in real[0].rows if r.method == method]
    assert len(rows) == 9
    for row in rows:
        assert row.status == "CONVERGED"
        assert row.P / SCALES[row.epoch] == pytest.approx(1.0, abs=0.03)
        truth = CHANGES[row.epoch] if (row.y, row.x) == (56, 150) else 0.0
        # A peak between pixels is not the flux, so the empirical PSF is a little off; and P of the
        # stamp bends towards the star that changed.
        assert abs(row.flux - truth) < 0.15 * abs(truth) + 4.0 * row.sigma_min / row.P


def test_a_series_leaves_a_page_beside_the_paper_and_a_picture(real):
    folder = real[1]
    names = sorted(p.name for p in folder.iterdir())
    assert names == [
        "blocks", "lightcurves.csv", "real.csv", "real.md", "real.png", "scatter.csv", "stars.csv"
    ]  # fmt: skip
    page = (folder / "real.md").read_text()
    assert re.search(r"\[(0.9649|1.0200)\]", page)  # the paper's MFV of B08
    assert "empty" in page


def test_an_interrupted_series_goes_on_and_another_one_is_not_mixed_in(real, sky, monkeypatch):
    summary, folder = real
    monkeypatch.setattr("pytorchdia.experiments.real._run_epoch", None)  # would fail if called
    assert run_real(folder, sky, stars=3, stamp=90, workers=1).cells == summary.cells
    with pytest.raises(InputError, match="another folder"):
        run_real(folder, sky, stars=2, stamp=90, workers=1)


def test_frames_that_are_not_there_are_named(tmp_path, run_cli):
    outcome = run_cli("experiment", "real", tmp_path / "out", "--frames", tmp_path / "none")
    assert outcome.code == 3
    assert "There is no folder" in outcome.err
    outcome = run_cli("experiment", "real", tmp_path / "out")
    assert outcome.code == 3
    assert "--frames" in outcome.err
    assert run_cli("experiment", "bias", tmp_path / "out", "--stars", 3).code == 3


def test_robust_flux_is_the_minimum_of_the_huber_loss():
    rng = np.random.default_rng(2)
    y, x = np.mgrid[-5:6, -5:6]
    psf = np.exp(-0.5 * (x**2 + y**2) / 1.5**2)
    psf /= psf.sum()
    difference = 500.0 * psf + rng.normal(0.0, 3.0, psf.shape)
    difference[2, 3] += 400.0
    variance = np.full(psf.shape, 9.0)
    variance[8, 8], difference[8, 8] = np.inf, 1e6

    def loss(flux):
        z = torch.from_numpy((difference - flux * psf) / np.sqrt(variance))
        return float(Huber().rho(z).sum())

    twin = minimize_scalar(loss, (0.0, 1000.0), tol=1e-10).x
    assert robust_flux(difference, psf, variance) == pytest.approx(twin, rel=1e-5)


@pytest.mark.parametrize("shift", [(0, 0), (7, -31), (-40, 12)])
def test_whole_pixel_shifts_are_found_by_cross_correlation(shift):
    rng = np.random.default_rng(3)
    field = np.zeros((260, 260))
    field[rng.integers(0, 260, 150), rng.integers(0, 260, 150)] = rng.uniform(50, 5000, 150)
    field = gaussian_filter(field, 1.5) + rng.normal(0.0, 1.0, field.shape)
    reference, target = (field[60 - dy :][:150, 60 - dx :][:, :160] for dy, dx in ((0, 0), shift))
    assert whole_pixel_shift(target, reference) == shift


def test_stars_that_share_nothing_have_no_shift():
    noise = np.random.default_rng(4).normal(size=(2, 128, 128))
    assert whole_pixel_shift(noise[0], noise[1]) is None


def test_the_paper_has_table_3():
    assert sum(PAPER_TABLE3_COUNTS) == 6989
    assert all(len(numbers) == 4 for numbers in PAPER_TABLE3.values())
