"""The paper's simulated image tests, on a few pairs."""

import csv

import numpy as np
import pytest
import torch

from pytorchdia import CCDNoise, subtract
from pytorchdia.experiments import table2
from pytorchdia.experiments.bias import run_bias
from pytorchdia.experiments.cells import CELLS
from pytorchdia.experiments.paper import PAPER, PAPER_COUNTS
from pytorchdia.experiments.tables import read_rows, write_rows
from pytorchdia.simulate import simulate_pair


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
