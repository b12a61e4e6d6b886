"""How the noise of the reference moves the fit: algebra, routes, and coverage."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pytorchdia import (
    CCDNoise,
    DeltaKernel,
    FixedVariance,
    Gaussian,
    GaussianProcessPrior,
    Huber,
    StudentT,
    subtract,
)
from pytorchdia.background import PolynomialBackground
from pytorchdia.fisher import fisher_information, uncertainty, with_reference_noise
from pytorchdia.influence import ReferenceInfluence
from pytorchdia.kernel import BasisKernel
from pytorchdia.simulate import simulate_pair
from pytorchdia.solvers import Newton
from pytorchdia.testing import example_objective

NOISE = CCDNoise(5.0)


def sigma2_of(objective):
    shape = objective.model.shape
    rng = np.random.default_rng(5)
    return torch.from_numpy(rng.uniform(0.0, 300.0, shape).clip(50.0, None) - 50.0)


def change_of_score(objective, theta):
    """s(p), (pixels of R, p): what a change of the model image by R does to the gradient."""
    model, reference = objective.model, objective.model.reference

    def moved(changed):
        return replace(model, reference=changed).mv_direct(theta)

    of_model = torch.autograd.functional.jacobian(moved, reference).flatten(2).flatten(0, 1)
    unit = torch.eye(len(theta), dtype=torch.float64)
    design = torch.stack([model.mv(row).flatten() for row in unit], dim=1)
    h = model.assembled(objective.evaluate(theta).curvature).flatten()
    return (of_model.T * h) @ design


@pytest.mark.parametrize("basis", [False, True], ids=["pixels", "basis"])
@pytest.mark.parametrize("degree", [0, 2])
@pytest.mark.parametrize("likelihood", [Gaussian(), Huber(), StudentT()], ids=repr)
def test_change_of_the_score_is_its_derivative_by_the_reference(likelihood, degree, basis):
    o = example_objective(NOISE, likelihood, background=PolynomialBackground(degree))
    if basis:
        phi = torch.from_numpy(np.random.default_rng(8).normal(size=(15, 6)))
        o = replace(o, model=o.model.with_kernel(BasisKernel((3, 5), phi)))
    theta, sigma2 = Newton().solve(o).theta, sigma2_of(o)
    s = change_of_score(o, theta)
    slow = s.T @ (sigma2.reshape(-1, 1) * s)
    fast = ReferenceInfluence.of(o, theta, sigma2)
    matrix = fast.matrix()
    torch.testing.assert_close(matrix, slow, rtol=1e-8, atol=1e-8 * float(slow.abs().max()))
    x = torch.from_numpy(np.random.default_rng(9).normal(size=len(theta)))
    assert float(fast.variance_of(x)) == pytest.approx(float(x @ slow @ x), rel=1e-8)


@pytest.mark.parametrize("shape", [(40, 300), (150, 40)])
def test_frames_of_several_tiles_add_up(shape):
    o = example_objective(NOISE, Gaussian(), shape)
    theta, sigma2 = Newton().solve(o).theta, sigma2_of(o)
    fast = ReferenceInfluence.of(o, theta, sigma2)
    matrix = fast.matrix()
    for x in torch.eye(len(theta), dtype=torch.float64)[[0, 7, -1]]:
        # The two routes cut the frame alike, but only one goes pixel by pixel of the kernel.
        assert float(fast.variance_of(x)) == pytest.approx(float(x @ matrix @ x), rel=1e-9)
    low = ReferenceInfluence.of(replace(o, dtype=torch.float32), theta, sigma2)
    torch.testing.assert_close(
        low.matrix(), matrix, rtol=1e-4, atol=1e-5 * float(matrix.abs().max())
    )


def test_a_quiet_reference_changes_nothing_and_a_noisy_one_adds_to_every_error():
    o = example_objective(NOISE, Gaussian(), (60, 54))
    theta, sigma2 = Newton().solve(o).theta, sigma2_of(o)
    plain = uncertainty(o, theta)
    quiet = with_reference_noise(o, theta, plain, torch.zeros_like(sigma2))
    torch.testing.assert_close(quiet.covariance, plain.covariance)
    noisy = with_reference_noise(o, theta, plain, sigma2)
    inverse = torch.linalg.inv(fisher_information(o, theta))
    s = change_of_score(o, theta) @ inverse
    expected = inverse + s.T @ (sigma2.reshape(-1, 1) * s)
    torch.testing.assert_close(noisy.covariance, expected, rtol=1e-6, atol=1e-12)
    assert noisy.scale == pytest.approx(float(expected[:15, :15].sum().sqrt()), rel=1e-6)
    quick = with_reference_noise(o, theta, uncertainty(o, theta, full=False), sigma2)
    assert quick.scale == pytest.approx(noisy.scale, rel=1e-5)
    assert quick.background == pytest.approx(noisy.background, rel=1e-5)
    assert quick.scale > 1.01 * plain.scale


def pair_of(seed, shape=(60, 52)):
    return simulate_pair(seed, shape, phi_r=1.4, phi_k=1.0)


@pytest.mark.parametrize("penalty", [None, GaussianProcessPrior()], ids=["plain", "prior"])
@pytest.mark.parametrize("likelihood", [Gaussian(), StudentT()], ids=repr)
def test_pairs_of_a_stack_have_the_errors_of_pairs_alone(penalty, likelihood):
    pairs = [pair_of(seed) for seed in (3, 4, 5)]
    variances = [k * pair.reference_sigma**2 for k, pair in enumerate(pairs, 1)]
    options = {
        "kernel": DeltaKernel((5, 7)), "noise": NOISE, "penalty": penalty,
        "likelihood": likelihood, "dtype": torch.float64,
    }  # fmt: skip
    targets, references = [pair.target for pair in pairs], [pair.reference for pair in pairs]
    noise = FixedVariance(np.stack(variances))
    stack = subtract(targets, references, reference_noise=noise, covariance=False, **options)
    for one, pair, variance in zip(stack, pairs, variances, strict=True):
        alone, silent = (
            subtract(pair.target, pair.reference, reference_noise=FixedVariance(v), **options)
            for v in (variance, 1e-12)
        )
        assert one.scale_error == pytest.approx(alone.scale_error, rel=2e-3)
        assert one.background.errors == pytest.approx(alone.background.errors, rel=2e-3)
        ones = np.ones(35)
        whole = np.sqrt(ones @ alone.kernel_covariance @ ones)
        assert whole == pytest.approx(alone.scale_error, rel=1e-9)
        assert alone.scale_error > 1.02 * silent.scale_error


@pytest.mark.parametrize("penalty", [None, GaussianProcessPrior()], ids=["plain", "prior"])
def test_fits_scatter_with_the_noise_of_both_images_as_their_errors_say(penalty):
    # A reference three times noisier than a single exposure, sixty draws of both images; a
    # standard deviation is known to 9 %. The errors without the noise of the reference are too
    # small by a third. With the prior its hyperparameters are found anew each time.
    pair, draws = simulate_pair(3, (60, 52), phi_r=1.0, phi_k=1.0), 60
    rng = np.random.default_rng(1)
    sigma = 3.0 * pair.reference_sigma
    shape = (draws, *sigma.shape)
    references = pair.reference_noiseless + sigma * rng.standard_normal(shape)
    targets = pair.target_noiseless + pair.target_sigma * rng.standard_normal(shape)
    options = {
        "kernel": DeltaKernel(5), "noise": NOISE, "penalty": penalty, "dtype": torch.float64,
        "reference_noise": FixedVariance(sigma**2),
    }  # fmt: skip
    found = subtract(targets, references, **options)
    level = np.array([one.background.coefficients[0] for one in found])
    level_error = np.array([one.background.errors[0] for one in found])
    pixels = found.kernel.reshape(draws, -1).T
    pixel_errors = np.sqrt([np.diag(one.kernel_covariance) for one in found]).T

    def spread(values, errors):
        return float(((values - values.mean()) / errors).std(ddof=1))

    assert spread(found.scale, found.scale_error) == pytest.approx(1.0, abs=0.25)
    assert spread(level, level_error) == pytest.approx(1.0, abs=0.25)
    assert np.median(list(map(spread, pixels, pixel_errors))) == pytest.approx(1.0, abs=0.15)
    quiet = subtract(
        targets[0], references[0], **{**options, "reference_noise": FixedVariance(1e-12)}
    )
    assert quiet.scale_error < 0.75 * found[0].scale_error
