"""Section 3.1: the simulated pairs, and Newton's method on them."""

import numpy as np
import pytest
import torch

from pytorchdia import (
    CCDNoise,
    DeltaKernel,
    EMCCDNoise,
    FixedVariance,
    Gaussian,
    Huber,
    Newton,
    PolynomialBackground,
    Status,
    StudentT,
)
from pytorchdia.errors import InputError
from pytorchdia.image_model import ImageModel
from pytorchdia.objective import Objective
from pytorchdia.simulate import Reading, simulate_pair

LIKELIHOODS = [Gaussian(), Huber(), StudentT()]
NOISES = {
    "eq 6": lambda p: CCDNoise(5.0),
    "eq 7": lambda p: EMCCDNoise(1.0),
    "fixed": lambda p: FixedVariance(p.target_sigma**2),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make_noise", NOISES.values(), ids=NOISES)
@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=repr)
def test_newton_needs_at_most_8_steps_from_a_flat_kernel(likelihood, make_noise, dtype):
    for seed in (101, 102, 103, 104):
        pair = simulate_pair(seed)
        reference = torch.from_numpy(pair.reference - np.median(pair.reference))
        model = ImageModel(reference, DeltaKernel(19), PolynomialBackground(0))
        target = torch.from_numpy(pair.target)
        objective = Objective(model, target, model.valid, make_noise(pair), likelihood, None, dtype)
        solution = Newton().solve(objective)
        assert solution.status is Status.CONVERGED
        assert solution.steps <= 8
        assert solution.decrement < 1e-6
        assert objective.n_data == 15376  # section 3.3


def test_draws_follow_the_stated_distributions():
    pairs = [simulate_pair(seed, (40, 36)) for seed in range(300)]
    for values, low, high in (
        ([p.phi_r for p in pairs], 0.5, 2.5),
        ([p.phi_k for p in pairs], 0.5, 2.5),
        ([p.sky_r for p in pairs], 10, 1000),
        ([p.sky_i for p in pairs], 10, 1000),
        ([p.shift[0] for p in pairs], -0.5, 0.5),
        ([p.shift[1] for p in pairs], -0.5, 0.5),
    ):
        assert low <= min(values)
        assert max(values) <= high
        sigma_of_mean = (high - low) / np.sqrt(12 * len(values))
        assert np.mean(values) == pytest.approx((low + high) / 2, abs=4 * sigma_of_mean)
    fluxes = np.concatenate([p.stars.flux for p in pairs])
    assert fluxes.min() >= 1e3 * (1 - 1e-12)
    assert fluxes.max() <= 1e6 * (1 + 1e-12)
    u = (fluxes**-1.5 - 1e-9) / (10**-4.5 - 1e-9)
    assert u.mean() == pytest.approx(0.5, abs=4 / np.sqrt(12 * u.size))


def test_equations_22_to_27():
    pair = simulate_pair(7)
    np.testing.assert_allclose(
        pair.reference_sigma, 10**-0.5 * np.sqrt(25 + pair.reference_noiseless)
    )
    np.testing.assert_allclose(pair.target_sigma, np.sqrt(25 + pair.target_noiseless))
    assert pair.phi_i**2 == pytest.approx(pair.phi_r**2 + pair.phi_k**2)
    for noisy, noiseless, sigma in (
        (pair.reference, pair.reference_noiseless, pair.reference_sigma),
        (pair.target, pair.target_noiseless, pair.target_sigma),
    ):
        z = (noisy - noiseless) / sigma
        assert z.mean() == pytest.approx(0.0, abs=4 / 142)
        assert z.std() == pytest.approx(1.0, abs=4 / 142)
    signal = (pair.target_noiseless - pair.sky_i).sum()
    assert pair.snr == pytest.approx(signal / np.sqrt((pair.target_sigma**2).sum()))


def test_the_brightest_star_sits_in_the_centre_and_seeds_repeat():
    pair, again = simulate_pair(8), simulate_pair(8)
    brightest = int(np.argmax(pair.stars.flux))
    assert (pair.stars.x[brightest], pair.stars.y[brightest]) == (70.5, 70.5)
    np.testing.assert_array_equal(pair.target, again.target)
    assert not np.array_equal(pair.target, simulate_pair(9).target)


def test_the_notebooks_reading_has_one_sky_and_keeps_the_light_in_the_image():
    for seed in range(20):
        shape = (100, 142) if seed % 2 else (142, 142)
        pair = simulate_pair(seed, shape, phi_r=0.5, reading="notebook")
        assert 10 <= pair.sky_r == pair.sky_i <= 1000
        stars = pair.stars
        assert stars.x.size == int(10 ** _log_density(seed) * shape[0] * shape[1] / 1e4)
        brightest = int(np.argmax(stars.flux))
        assert (stars.x[brightest], stars.y[brightest]) == (71, shape[0] // 2)
        for image in (pair.reference_noiseless, pair.target_noiseless):
            assert (image - pair.sky_r).sum() == pytest.approx(stars.flux.sum(), rel=1e-9)


def _log_density(seed):
    rng = np.random.default_rng(seed)
    rng.uniform(size=2)
    return rng.uniform(0, 3)


def test_an_undersampled_star_catches_the_same_wherever_it_stands_in_one_reading_only():
    caught = {}
    for reading in Reading:
        pair = simulate_pair(11, phi_r=0.5, log_density=1.8, sky=100.0, reading=reading)
        stars, light = pair.stars, pair.reference_noiseless - 100.0
        y, x = np.rint(stars.y).astype(int), np.rint(stars.x).astype(int)
        apart = np.hypot(stars.x - stars.x[:, None], stars.y - stars.y[:, None])
        np.fill_diagonal(apart, np.inf)
        inside = (x > 3) & (x < 138) & (y > 3) & (y < 138)
        alone = np.flatnonzero(inside & (apart.min(0) > 8.0))
        caught[reading] = [
            light[y[i] - 3 : y[i] + 4, x[i] - 3 : x[i] + 4].sum() / stars.flux[i] for i in alone
        ]
        assert len(alone) > 5
    assert caught[Reading.NOTEBOOK] == pytest.approx(np.ones(len(caught["notebook"])), abs=1e-6)
    assert np.ptp(caught[Reading.TEXT]) > 0.01


def test_a_reading_that_is_none_is_refused():
    with pytest.raises(InputError, match="reading must be one of text, notebook, got 'word'"):
        simulate_pair(1, reading="word")


def test_rendered_stars_keep_their_flux_and_place():
    pair = simulate_pair(10, (142, 142), phi_r=1.5)
    inside = (np.abs(pair.stars.x - 70) < 55) & (np.abs(pair.stars.y - 70) < 55)
    total = (pair.reference_noiseless - pair.sky_r).sum()
    assert 0.9 * pair.stars.flux[inside].sum() < total <= 1.001 * pair.stars.flux.sum()
