"""The share of their light that the stars of an epoch seem to have gained together."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import pytorchdia as dia
from pytorchdia.drift import Drift, block_drift, ensemble_drift
from pytorchdia.run import difference_steps
from pytorchdia.run.tables import read_table
from pytorchdia.simulate import Stars, render_gaussian
from pytorchdia.stars.photometry import measure_fluxes
from pytorchdia.stars.psf import gaussian_psf

from .small_season import CONFIG, write_season

RNG = np.random.default_rng(5)
LIGHT = 10.0 ** RNG.uniform(3.0, 5.5, 200)
ERROR = 2.0 * np.sqrt(LIGHT) + 20.0


def epoch(share, change=0.0, seed=1):
    """Fluxes on a difference that is off by a share, of stars that change."""
    noise = np.random.default_rng(seed).normal(size=len(LIGHT))
    return share * LIGHT + (1.0 + share) * change + ERROR * noise


@pytest.mark.parametrize("share", [0.06, -0.04, 0.015])
def test_a_drift_is_found_within_its_error_whatever_the_variables_do(share: float) -> None:
    change = np.zeros(len(LIGHT))
    change[np.argsort(-LIGHT)[:8]] = 0.7 * np.sort(LIGHT)[-8:]  # the brightest, all brighter
    for seed in range(20):
        found = ensemble_drift(epoch(share, change, seed), ERROR, LIGHT)
        assert abs(found.share - share) < 5.0 * found.error
        assert 0.0002 < found.error < 0.002
        assert found.n_stars > 100


def test_the_error_is_the_scatter_of_the_drift() -> None:
    found = [ensemble_drift(epoch(0.05, seed=seed), ERROR, LIGHT) for seed in range(300)]
    pulls = [(drift.share - 0.05) / drift.error for drift in found]
    assert np.std(pulls) == pytest.approx(1.0, abs=0.25)
    assert abs(np.mean(pulls)) < 0.2


def test_what_may_be_noise_is_no_drift() -> None:
    """Neither less than half a per cent, nor of a few stars, nor of faint ones."""
    assert all(ensemble_drift(epoch(0.0, seed=s), ERROR, LIGHT).share == 0 for s in range(100))
    assert ensemble_drift(epoch(0.003), ERROR, LIGHT).share == 0
    assert ensemble_drift(epoch(0.1)[:19], ERROR[:19], LIGHT[:19]).share == 0
    assert ensemble_drift(epoch(0.1), 1e3 * ERROR, LIGHT).share == 0
    assert ensemble_drift([], [], []) == Drift()


def test_stars_without_a_flux_do_not_count() -> None:
    flux, error, light = epoch(0.05), ERROR.copy(), LIGHT.copy()
    expected = ensemble_drift(flux[40:], error[40:], light[40:])
    flux[:10], error[10:20], light[20:30], light[30:40] = np.nan, np.inf, np.nan, -5.0
    assert ensemble_drift(flux, error, light) == expected


def test_without_the_drift_fluxes_are_what_they_were() -> None:
    change = np.linspace(-500.0, 5000.0, 200)
    measured = 1.05 * (LIGHT + change) - LIGHT
    flux, error = Drift(0.05, 0.001, 200).removed(measured, ERROR, LIGHT)
    np.testing.assert_allclose(flux, change, atol=1e-8)
    np.testing.assert_allclose(error, ERROR / 1.05)
    np.testing.assert_array_equal(Drift().removed(measured, ERROR, LIGHT)[0], measured)


def test_a_frame_sharper_than_the_reference_measures_variables_right_without_it() -> None:
    """Undersampled stars: no kernel makes them sharper. Truth: nothing changes but 12 stars."""
    rng, shape, n = np.random.default_rng(3), (160, 160), 150
    x, y = rng.uniform(8, 151, n), rng.uniform(8, 151, n)
    light = 10.0 ** rng.uniform(3.5, 5.0, n)
    change = np.where(np.arange(n) % 12 == 0, 0.5 * light, 0.0)
    images = []
    for width, flux in ((0.75, light), (0.65, light + change)):
        image = render_gaussian(Stars(x, y, flux), shape, width) + 200.0
        images.append(rng.poisson(image).astype(float))
    reference, target = images
    noise = dia.CCDNoise(read_noise=3.0, gain=1.0)
    result = dia.subtract(
        target,
        reference,
        kernel=dia.DeltaKernel(9),
        noise=noise,
        likelihood=dia.Huber(tolerance=0.0),
    )
    psf = gaussian_psf(0.75 * 2.3548).convolved(result.kernel)
    fluxes = measure_fluxes(
        result.difference,
        result.variance,
        result.flags,
        psf,
        x,
        y,
        scale=result.scale,
        robust=False,
    )
    clean = fluxes.valid
    drift = ensemble_drift(fluxes.flux[clean], fluxes.error[clean], light[clean])
    assert drift.share > 0.02
    flux, _ = drift.removed(fluxes.flux, fluxes.error, light)

    def off(measured, which):
        return float(np.median((measured[which] - change[which]) / light[which]))

    constant, variable = clean & (change == 0), clean & (change > 0)
    for which in (constant, variable):
        assert abs(off(fluxes.flux, which)) > 0.02
        assert abs(off(flux, which)) < 0.35 * abs(off(fluxes.flux, which))


@pytest.fixture
def season(tmp_path: Path) -> Path:
    write_season(tmp_path)
    (tmp_path / "config.toml").write_text(CONFIG)
    return tmp_path


def test_a_run_takes_the_drift_off_and_says_so(season: Path, monkeypatch) -> None:
    plain = dia.reduce(season / "config.toml", until="photometry")
    name = next(row.name for row in plain.rows if row.status == "done")
    where = [season / "run" / kind / f"{name}.parquet" for kind in ("photometry", "followed")]
    before = [read_table(path).to_pydict() for path in where]
    stars = read_table(season / "run" / "stars.parquet").to_pydict()
    assert set(before[0]["drift"]) == {0.0}

    monkeypatch.setattr(difference_steps, "ensemble_drift", lambda *_: Drift(0.1, 0.03, 25))
    for path in (season / "run" / "states" / "photometry").iterdir():
        path.unlink()
    dia.reduce(season / "config.toml", until="photometry")
    after = [read_table(path).to_pydict() for path in where]
    for old, new in zip(before, after, strict=True):
        assert set(new["drift"]) == {0.1}
        for error, scale, now in zip(
            old["scale_error"], old["scale"], new["scale_error"], strict=True
        ):
            assert now == pytest.approx(np.hypot(error, 0.03 * scale))
    for old, new, light in zip(before[0]["flux"], after[0]["flux"], stars["flux"], strict=True):
        if None not in (old, light):
            assert new == pytest.approx((old - 0.1 * light) / 1.1)
    said = (season / "run" / "log.txt").read_text()
    assert f"photometry {name}: warning [stars-drift]" in said
    assert "gained 10 +- 3 % of their light together (the median of 25)" in said


def undersampled_pair() -> tuple[np.ndarray, np.ndarray]:
    """Target and reference of 150 constant stars, FWHM 2 pixels, shifted by a part of a pixel."""
    rng = np.random.default_rng(11)
    x, y = rng.uniform(8, 151, (2, 150))
    flux = 10.0 ** rng.uniform(3.5, 5.0, 150)
    images = []
    for shift in (0.3, 0.0):
        light = render_gaussian(Stars(x + shift, y - shift, flux), (160, 160), 2.0 / 2.3548) + 200.0
        images.append(rng.poisson(light) + rng.normal(0.0, 3.0, light.shape))
    return images[0], images[1]


@pytest.mark.parametrize("penalty", [None, dia.GaussianProcessPrior()])
@pytest.mark.parametrize("loss", [dia.Huber, dia.StudentT])
def test_what_no_kernel_can_do_at_stars_is_no_outlier(loss, penalty) -> None:
    options = {
        "kernel": dia.DeltaKernel(11), "noise": dia.CCDNoise(read_noise=3.0, gain=1.0),
        "penalty": penalty, "covariance": None,
    }  # fmt: skip
    pair = undersampled_pair()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dia.PyTorchDIAWarning)
        of_paper, tolerant = (
            dia.subtract(*pair, likelihood=loss(tolerance=share), **options) for share in (0.0, 0.1)
        )
    assert of_paper.scale < 0.99
    assert tolerant.scale == pytest.approx(1.0, abs=0.005)
    # What is left of the light says how far off P is, and by how much to correct it.
    assert "scale-drift" in {finding.code for finding in of_paper.findings}
    assert "scale-drift" not in {finding.code for finding in tolerant.findings}
    share, error = of_paper.diagnostics.drift, of_paper.diagnostics.drift_error
    assert share > 5.0 * error
    assert of_paper.scale * (1.0 + share) == pytest.approx(1.0, abs=0.005)


def test_blocks_without_light_know_of_no_drift() -> None:
    rng = np.random.default_rng(0)
    difference = torch.from_numpy(rng.normal(size=(64, 64)))
    ones = torch.ones_like(difference)
    assert block_drift([(difference, ones, ones, ones > 0)]) == Drift(n_stars=0)


def test_a_drift_of_blocks_is_found_where_pixels_are_masked() -> None:
    rng = np.random.default_rng(1)
    light = torch.from_numpy(rng.exponential(1e4, size=(160, 160)))
    use = torch.from_numpy(rng.random((160, 160)) > 0.2)
    difference = torch.where(use, 0.03 * light + torch.from_numpy(rng.normal(size=use.shape)), 1e9)
    parts = [(difference[r], light[r], torch.ones_like(light[r]), use[r])
             for r in (slice(0, 80), slice(80, 160))]  # fmt: skip
    found = block_drift(parts)
    assert found.n_stars == 100
    assert found.share == pytest.approx(0.03, abs=1e-4)
    assert found.above(0.01, 5.0)
