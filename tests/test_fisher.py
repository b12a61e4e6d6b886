"""Uncertainties (eq 15-17): the algebra, the validity tests, and their coverage."""

import numpy as np
import pytest
import torch

from pytorchdia import CCDNoise, DeltaKernel, FixedVariance, Gaussian, StudentT, subtract
from pytorchdia.background import PolynomialBackground
from pytorchdia.fisher import fisher_information, uncertainty, validity_findings
from pytorchdia.image_model import ImageModel
from pytorchdia.kernel import gaussian_kernel
from pytorchdia.objective import Objective
from pytorchdia.simulate import READ_NOISE, simulate_pair
from pytorchdia.solvers import Newton
from pytorchdia.testing import example_objective


@pytest.mark.parametrize("likelihood", [Gaussian(), StudentT()], ids=repr)
def test_information_is_minus_the_second_derivative_of_ln_p(likelihood):
    o = example_objective(CCDNoise(5.0), likelihood)
    theta = Newton().solve(o).theta
    hessian = torch.autograd.functional.hessian(o.loss, theta)
    torch.testing.assert_close(fisher_information(o, theta), hessian, rtol=1e-9, atol=1e-9)


def test_covariance_is_its_inverse_and_error_of_scale_has_all_covariances():
    o = example_objective(CCDNoise(5.0), Gaussian())
    theta = Newton().solve(o).theta
    result = uncertainty(o, theta)
    identity = result.covariance @ fisher_information(o, theta)
    torch.testing.assert_close(
        identity, torch.eye(len(theta), dtype=torch.float64), atol=1e-7, rtol=0
    )
    kernel = result.covariance[:15, :15]
    assert result.scale == pytest.approx(float(kernel.sum().sqrt()), rel=1e-9)
    background = result.covariance.diagonal()[15:].sqrt()
    assert result.background == pytest.approx(background.tolist(), rel=1e-9)
    assert result.valid


def test_a_covariance_that_is_not_positive_definite_is_found():
    good = torch.diag(torch.tensor([1.0, 4.0, 1e-8], dtype=torch.float64))
    assert validity_findings(good) == ()
    one_negative = torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=torch.float64)
    codes = [f.code for f in validity_findings(one_negative)]
    assert codes == ["covariance-determinant", "covariance-eigenvalues"]
    two_negative = torch.block_diag(one_negative, one_negative)  # the determinant is positive
    assert [f.code for f in validity_findings(two_negative)] == ["covariance-eigenvalues"]


@pytest.mark.parametrize("degree", [0, 2])
@pytest.mark.parametrize("likelihood", [Gaussian(), StudentT()], ids=repr)
def test_errors_without_the_matrix_equal_those_of_its_inverse(likelihood, degree):
    background = PolynomialBackground(degree)
    o = example_objective(CCDNoise(5.0), likelihood, (60, 54), background=background)
    theta = Newton().solve(o).theta
    quick, slow = uncertainty(o, theta, full=False), uncertainty(o, theta)
    assert quick.covariance is None
    assert quick.scale == pytest.approx(slow.scale, rel=1e-6)
    assert quick.background == pytest.approx(slow.background, rel=1e-6)


def test_errors_of_a_singular_fit_come_from_the_matrix_after_all():
    pair = simulate_pair(21, (90, 84), phi_r=4.0, phi_k=1.0, reference_noise=0.0)
    reference = torch.from_numpy(pair.reference - np.median(pair.reference))
    model = ImageModel(reference, DeltaKernel(15), PolynomialBackground())
    target = torch.from_numpy(pair.target)
    o = Objective(model, target, model.valid, CCDNoise(5.0), Gaussian())
    result = uncertainty(o, Newton().solve(o).theta, full=False)
    assert result.covariance is None
    assert "fisher-singular" in [f.code for f in result.findings]


def draw_pair(seed, shape=(72, 64), size=7):
    """Target, reference, and the true kernel and B_0, for a noise-free reference."""
    rng = np.random.default_rng(seed)
    pair = simulate_pair(rng, shape, reference_noise=0.0)
    kernel = rng.uniform(0.5, 1.5) * gaussian_kernel((size, size), min(pair.phi_k, 1.5))
    level = np.median(pair.reference)
    model = ImageModel(
        torch.from_numpy(pair.reference - level), DeltaKernel(size), PolynomialBackground()
    )
    truth = torch.cat([kernel.reshape(-1), torch.tensor([pair.sky_i], dtype=torch.float64)])
    noiseless = model.mv(truth).numpy()
    sigma = np.sqrt(READ_NOISE**2 + np.maximum(noiseless, 1.0))
    target = noiseless + sigma * rng.standard_normal(shape)
    return target, pair.reference, kernel.numpy(), pair.sky_i


def pulls_of_pairs(seeds, size=7):
    """(P, B_0, a random kernel pixel): (fitted - true) / error, for each pair."""
    targets, references, kernels, skies = zip(*map(draw_pair, seeds), strict=True)
    results = subtract(
        np.stack(targets), np.stack(references), kernel=DeltaKernel(size),
        noise=CCDNoise(READ_NOISE), reference_noise=FixedVariance(1e-12), penalty=None,
        covariance=True, dtype=torch.float64,
    )  # fmt: skip
    rng = np.random.default_rng(seeds[0])
    pulls = []
    for result, kernel, sky in zip(results, kernels, skies, strict=True):
        assert result.status.ok
        i, j = rng.integers(0, size, 2)
        error = np.sqrt(result.kernel_covariance[i * size + j, i * size + j])
        pulls.append((
            (result.scale - kernel.sum()) / result.scale_error,
            (result.background.coefficients[0] - sky) / result.background.errors[0],
            (result.kernel[i, j] - kernel[i, j]) / error,
        ))  # fmt: skip
    return pulls


def test_pulls_of_400_simulated_pairs_have_unit_variance():
    # PSFs, crowding, sky and fluxes as in section 3.1; the model is exact, the noise that of eq 6.
    # The standard deviation of 400 pulls is known to 3.5 %, so 0.9 to 1.1 is a test.
    pulls = np.concatenate([pulls_of_pairs(range(i, i + 40)) for i in range(0, 400, 40)])
    spread = pulls.std(axis=0, ddof=1)
    assert ((spread > 0.9) & (spread < 1.1)).all(), spread
    assert (np.abs(pulls.mean(axis=0)) < 4 / np.sqrt(len(pulls))).all(), pulls.mean(axis=0)
