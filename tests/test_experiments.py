"""The paper's simulated image tests, on a few pairs."""

import csv
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from astropy.io import fits
from scipy.ndimage import correlate, gaussian_filter
from scipy.optimize import minimize_scalar

from pytorchdia import CCDNoise, DeltaKernel, Huber, InputError, subtract
from pytorchdia.experiments import (
    SCENARIOS,
    ScenarioName,
    real_frame_scenario,
    real_summary,
    report,
    run_real,
    table2,
)
from pytorchdia.experiments.bias import run_bias
from pytorchdia.experiments.cells import CELLS, CellValue
from pytorchdia.experiments.empirical import robust_flux
from pytorchdia.experiments.paper import (
    PAPER,
    PAPER_COUNTS,
    PAPER_TABLE3,
    PAPER_TABLE3_COUNTS,
)
from pytorchdia.experiments.scenarios import PAPER_SCENARIO, PLAIN, Case, Method
from pytorchdia.experiments.series import whole_pixel_shift
from pytorchdia.experiments.summary import summarise
from pytorchdia.experiments.tables import read_rows, write_rows
from pytorchdia.simulate import Stars, draw_stars, render_gaussian, simulate_pair
from pytorchdia.simulate.psf import light_inside

from .conftest import camera_header

PLAIN_PAPER = replace(PAPER_SCENARIO, methods=(PLAIN,))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("table2")
    seen = []
    table2.run_table2(folder, 20, PLAIN_PAPER, 1, lambda done, total: seen.append((done, total)))
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
    assert list(rows[0])[-1] == "flux"  # as in runs of earlier versions, which go on
    page = (folder / "table2.md").read_text()
    assert "[0.9793]" in page  # the paper's number beside ours
    assert "## Agreement with the paper" in page


def test_agreement_is_counted_in_errors():
    cell = CELLS[0]
    ours = PAPER["plain", "mpb"][0] + 0.3
    values = [CellValue("plain", "mpb", cell, ours, ours, ours, 0.1, PAPER_COUNTS[0])]
    (apart,) = report._apart(values, "plain", "mpb")
    assert apart == pytest.approx(0.3 / np.hypot(0.1 * np.sqrt(2), 0.001 / np.sqrt(12)))
    lines = report._agreement(values, PLAIN_PAPER)
    assert lines[-1].endswith("| 1 |  |  |  |  | 4.5 (+2.1) |  |")


def test_a_second_run_computes_only_what_is_missing(folder, monkeypatch):
    before = (folder / "blocks" / "plain-00000.csv").stat().st_mtime_ns
    monkeypatch.setattr(table2, "_run_block", None)  # would fail if it were called
    summaries = table2.run_table2(folder, 32, PLAIN_PAPER, 1)
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
    assert abs(table2.normalised_flux(Case(pair), difference)) < 4
    brighter = difference.difference + 0.5 * pair.target_noiseless * (pair.target_noiseless > 0)
    changed = type(difference)(**{**vars(difference), "difference": brighter})
    assert table2.normalised_flux(Case(pair), changed) > 10


def test_summaries_are_medians_and_moments():
    rows = [
        {"method": "plain", "snr": "20", "phi_r": "1.5", "phi_k": "2", "P": str(p), "mse": "1",
         "mse_noisy": "2", "mfb": "0", "mfv": "1", "flux": str(f), "seed": "0"}
        for p, f in zip([0.9, 1.0, 1.2, 1.0], [0.0, 1.0, 2.0, 3.0], strict=True)
    ]  # fmt: skip
    found = {s.metric: s for s in summarise(rows)}
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


@pytest.fixture(scope="module")
def crowded(tmp_path_factory):
    """A file with a crowded field of 200 x 220 pixels and a saturated corner."""
    rng = np.random.default_rng(8)
    stars = draw_stars(rng, (200, 220), 2.0)
    image = 300.0 + render_gaussian(stars, (200, 220), 1.4)
    image += rng.standard_normal(image.shape) * np.sqrt(9.0 + image / 2.0)
    image[:8, :8] = 60000.0
    path = tmp_path_factory.mktemp("frame") / "crowded.fits"
    header = fits.Header({"GAIN": 2.0, "RDNOISE": 6.0})
    fits.PrimaryHDU(image.astype(np.float32), header).writeto(path)
    return path


@pytest.fixture(scope="module", params=list(ScenarioName))
def scenario(request, crowded):
    if request.param is ScenarioName.REAL_FRAME:
        return real_frame_scenario(crowded, 50000.0)
    return SCENARIOS[request.param]


def test_the_truth_of_a_scenario_holds_together(scenario):
    for seed in (3, 4):
        case = scenario.case(seed)
        pair = case.pair
        assert pair.target.shape == pair.reference.shape == (142, 142)
        variance = scenario.noise.variance(torch.from_numpy(pair.target_noiseless))
        np.testing.assert_allclose(pair.target_sigma**2, variance.numpy())
        clean = np.ones(pair.target.shape, bool) if case.hit is None else ~case.hit
        z = ((pair.target - pair.target_noiseless) / pair.target_sigma)[clean]
        assert abs(z.mean()) < 4 / np.sqrt(z.size)
        assert z.std() == pytest.approx(1.0, abs=4 / np.sqrt(2 * z.size))
        z = (pair.reference - pair.reference_noiseless) / pair.reference_sigma
        assert z.std() == pytest.approx(1.0, abs=4 / np.sqrt(2 * z.size))
        single = scenario.noise.variance(torch.from_numpy(pair.reference_noiseless)).numpy()
        np.testing.assert_allclose(10 * pair.reference_sigma**2, single)
        inner = (slice(9, -9),) * 2
        if case.kernel is None:
            stars = pair.stars.shifted(*pair.shift)
            if scenario.is_the_papers:  # each star keeps its flux in the image
                share = light_inside(stars, (142, 142), pair.phi_i)
                stars = replace(stars, flux=stars.flux / share)
            light = case.scale * render_gaussian(stars, (142, 142), pair.phi_i)
        else:
            assert case.kernel.sum() == pytest.approx(case.scale)
            light = correlate(pair.reference_noiseless - pair.sky_r, case.kernel, mode="constant")
        np.testing.assert_allclose(
            pair.target_noiseless[inner], (light + pair.sky_i)[inner], rtol=1e-9, atol=1e-6
        )


def test_a_fit_of_a_scenario_recovers_p(scenario):
    case = next(c for c in map(scenario.case, range(50)) if 150 < c.pair.snr < 1000)
    errors = {}
    for method in scenario.methods:
        result = subtract(
            case.pair.target, case.pair.reference, kernel=DeltaKernel(scenario.kernel),
            noise=scenario.noise, likelihood=method.likelihood, penalty=method.penalty,
            solver=method.solver, covariance=False,
        )  # fmt: skip
        row = table2.measure(case, result)
        errors[method.name] = row["mse"]
        if method.name == "gaussian":  # it does not bear with cosmic rays
            continue
        # The noise of the reference lowers P by more than its error where stars are few.
        assert abs(result.scale - case.scale) < 5 * result.scale_error + 0.01 * case.scale
        assert 0.93 < row["mfv"] < 1.1
        assert row["mse"] < 0.2 * (case.pair.target_sigma**2).mean()
        assert abs(row["flux"]) < 5
    if "gaussian" in errors:
        assert errors["gaussian"] > 3 * errors["huber"]


def test_scenarios_are_what_they_say():
    assert [SCENARIOS[name].case(1).scale for name in ("faint", "bright")] == [0.3, 3.0]
    box = SCENARIOS["large-box"]
    assert (box.kernel, box.case(1).pair.phi_r, box.case(1).pair.phi_k) == (31, 1.0, 1.0)
    kernel = SCENARIOS["asymmetric"].case(1).kernel
    assert np.abs(kernel - kernel[::-1, ::-1]).sum() > 0.2
    hit = np.mean([SCENARIOS["cosmic-rays"].case(seed).hit for seed in range(10)])
    assert 0.01 <= hit < 0.0105
    names = [m.name for m in SCENARIOS["cosmic-rays"].methods]
    assert names[0] == "b08-clip"
    assert len(names) == len(set(names)) == 6


def test_a_scenario_has_a_folder_of_its_own(tmp_path):
    scenario = replace(SCENARIOS["faint"], methods=(PLAIN,))
    summaries = table2.run_table2(tmp_path, 32, scenario, 1)
    home = tmp_path / "faint"
    assert sorted(p.name for p in home.iterdir()) == [
        "blocks", "figure3.png", "table2.csv", "table2.md",
    ]  # fmt: skip
    rows = read_rows(home / "blocks" / "plain-00000.csv")
    assert {row["P_true"] for row in rows} == {"0.3"}
    medians = [s.value for s in summaries if s.metric == "P"]
    assert all(0.9 < value < 1.1 for value in medians)
    page = (home / "table2.md").read_text()
    assert "Pull of P" in page
    assert "[" not in page  # the paper has no numbers for it


def test_pulls_and_ratios_of_a_cell():
    plain = Method("plain", "plain")
    prior = Method("prior", "prior", against="plain")
    rows = [
        {"method": method, "seed": str(i), "snr": "20", "phi_r": "1.5", "phi_k": "2",
         "P": str(2.0 + pull * 0.1), "P_true": "2.0", "P_error": "0.1", "mse": str(mse),
         "mse_noisy": "2", "mfb": "0", "mfv": "1", "flux": "0"}
        for method, mse in (("plain", 4.0), ("prior", 1.0))
        for i, pull in enumerate([-2.5, -1.5, -0.5, 0.0, 0.5])
    ]  # fmt: skip
    found = {(s.method, s.metric): s.value for s in summarise(rows, (plain, prior))}
    assert found["prior", "ratio"] == found["prior", "worst_ratio"] == 0.25
    assert ("plain", "ratio") not in found
    assert found["plain", "P"] == pytest.approx(0.975)
    assert found["plain", "pull"] == pytest.approx(-0.5)
    assert found["plain", "pull_scale"] == pytest.approx(1.4826)
    assert found["plain", "within_1"] == pytest.approx(0.6)
    assert found["plain", "within_2"] == pytest.approx(0.8)


def test_a_frame_that_cannot_be_the_truth_is_refused(tmp_path, crowded, run_cli):
    image = fits.getdata(crowded)
    path = tmp_path / "bare.fits"
    fits.PrimaryHDU(image).writeto(path)
    with pytest.raises(InputError, match="gain and read noise"):
        real_frame_scenario(path)
    small = tmp_path / "small.fits"
    fits.PrimaryHDU(image[20:150], fits.Header({"GAIN": 2.0, "RDNOISE": 6.0})).writeto(small)
    with pytest.raises(InputError, match="No stamp of 160 x 160"):
        real_frame_scenario(small)
    for arguments, words in (
        (("--scenario", "real-frame"), "--frame FILE"),
        (("--frame", crowded), "--scenario real-frame only"),
    ):
        refused = run_cli("experiment", "table2", tmp_path, *arguments)
        assert refused.code == 3
        assert words in refused.err


def test_pairs_outside_the_table_are_said_to_be(tmp_path):
    nothing = replace(PLAIN_PAPER, case=lambda seed: Case(replace(simulate_pair(1), sky_i=1e9)))
    table2._run_block((nothing, 0, PLAIN, tmp_path / "x.csv"))
    assert read_rows(tmp_path / "x.csv") == []
    (tmp_path / "blocks").mkdir()
    (tmp_path / "x.csv").rename(tmp_path / "blocks" / "plain-00000.csv")
    with pytest.raises(InputError, match="None of the 32 pairs of paper"):
        table2.run_table2(tmp_path, 32, nothing, 1)


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
    assert outcome.code == 2
    assert "--frames" in outcome.err


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
