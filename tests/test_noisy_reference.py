"""The noise of the reference in the fit under a prior."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate

from pytorchdia import (
    CCDNoise,
    DeltaKernel,
    FixedVariance,
    Gaussian,
    GaussianProcessPrior,
    Huber,
    Newton,
    NormalEquations,
    PolynomialBackground,
    subtract,
)
from pytorchdia.errors import Status
from pytorchdia.image_model import ImageModel
from pytorchdia.objective import Objective
from pytorchdia.prior import Component, Posterior
from pytorchdia.regularise import _Quadratic, attenuation
from pytorchdia.simulate import odd_kernels, simulate_pair, simulate_with_kernel

from .test_influence import change_of_score

NOISE = CCDNoise(5.0)
OF_REFERENCE = CCDNoise(5.0 * 10**-0.5, gain=10.0)  # a tenth of the variance, as in eq 22
PRIOR = GaussianProcessPrior(
    (Component(0.1, 2.0, 2.0),), (0.2, -0.1), (0.3, 0.1), noisy_reference=True
)
AWARE = GaussianProcessPrior(noisy_reference=True)
UNAWARE = GaussianProcessPrior()


def objective(pair, size=9, noise=NOISE, background=0):
    reference = torch.from_numpy(pair.reference - np.median(pair.reference))
    model = ImageModel(reference, DeltaKernel(size), PolynomialBackground(background))
    return Objective(model, torch.from_numpy(pair.target), model.valid, noise, Gaussian())


def dense_attenuation(h, sigma2, half):
    """The sum as it is written, by shifts."""
    rows, columns = (n - 2 * half for n in h.shape)
    inner = np.abs(h[half:-half, half:-half])
    n = range(2 * half + 1)
    return np.array([(inner * sigma2[y : y + rows, x : x + columns]).sum() for y in n for x in n])


@pytest.mark.parametrize("shape", [(70, 62), (300, 280)])
def test_the_attenuation_is_the_sum_over_the_image(shape):
    o = objective(simulate_pair(5, shape))
    use = o.use.clone()
    use[30:34, 20:24] = False
    o = dataclasses.replace(o, use=use)
    solution = Newton().solve(o)
    curvature = o.evaluate(solution.theta).curvature
    sigma2 = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    dense = dense_attenuation(o.model.assembled(curvature).numpy(), sigma2.numpy(), 4)
    np.testing.assert_allclose(attenuation(o.model, curvature, sigma2), dense, rtol=1e-10)


def test_the_attenuation_is_what_noise_adds_to_the_normal_matrix():
    pair = simulate_pair(5, (60, 60))
    o = objective(dataclasses.replace(pair, reference=pair.reference_noiseless), size=5)
    curvature = o.model.valid.to(torch.float64) / torch.from_numpy(pair.target_sigma**2)
    sigma = torch.from_numpy(pair.reference_sigma)
    tiled = [o.model.padded_part(curvature, i) for i in range(len(o.model.chunks))]
    added = attenuation(o.model, tiled, sigma**2)
    generator = torch.Generator().manual_seed(2)
    clean, sample = o.model.gram(curvature), []
    for _ in range(100):
        noise = torch.randn(sigma.shape, dtype=torch.float64, generator=generator) * sigma
        both = [
            dataclasses.replace(o.model, reference=o.model.reference + sign * noise)
            for sign in (1, -1)  # what is linear in the noise cancels
        ]
        sample.append((sum(m.gram(curvature) for m in both) / 2 - clean)[:25, :25])
    mean, least = torch.stack(sample).mean(dim=0), float(added.min())
    assert least > 0
    torch.testing.assert_close(mean.diagonal(), added, rtol=0.03, atol=0.0)
    assert float((mean - torch.diag(mean.diagonal())).abs().max()) < 0.03 * least


def quadratic():
    pair = simulate_pair(5, (70, 62))
    o = objective(pair, background=1)
    theta = Newton().solve(o).theta
    curvature = o.evaluate(theta).curvature
    c = attenuation(o.model, curvature, torch.from_numpy(pair.reference_sigma**2))
    matrix = o.hessian(curvature)
    lower = torch.linalg.cholesky(matrix[:81, :81])
    half = torch.linalg.solve_triangular(lower, c.sqrt().diag(), upper=False)
    most = float(torch.linalg.matrix_norm(half, 2)) ** 2
    return o, matrix, theta, 0.5 * c / most  # so that no mode is lost by chance


def test_the_quadratic_is_that_of_the_kernel_between_noiseless_images():
    o, matrix, theta, c = quadratic()
    plain = _Quadratic(matrix, theta, 81)
    aware = _Quadratic(matrix, theta, 81, c)
    h = plain.information
    a = torch.eye(81, dtype=torch.float64) - torch.linalg.solve(h, torch.diag(c))
    root = PRIOR.root(o.model.kernel)
    torch.testing.assert_close(aware.seen(root), a @ root, rtol=1e-8, atol=1e-9)
    scale = float(h.diagonal().max())
    torch.testing.assert_close(aware.information, a.T @ h @ a, rtol=1e-8, atol=1e-9 * scale)
    torch.testing.assert_close(aware.projected, a.T @ h @ theta[:81], rtol=1e-7, atol=1e-8 * scale)
    # The fitted kernel scatters about A K with covariance H^-1: the same evidence.
    one = Posterior.of(aware.information, aware.projected, root)
    other = Posterior.of(h, h @ theta[:81], a @ root)
    torch.testing.assert_close(one.coefficients, other.coefficients)
    assert one.evidence == pytest.approx(other.evidence)
    assert plain.seen(root) is root


@pytest.mark.parametrize("solver", [Newton(), NormalEquations()], ids=repr)
def test_kernel_and_errors_are_those_of_the_dense_posterior(solver):
    # With a fixed variance everything is linear.
    pair = simulate_pair(5, (70, 62))
    noise = FixedVariance(torch.from_numpy(pair.target_sigma**2))
    o, size = objective(pair, noise=noise), DeltaKernel(9)
    options = {
        "kernel": size, "noise": noise, "penalty": PRIOR, "dtype": torch.float64,
        "reference_noise": FixedVariance(pair.reference_sigma**2), "solver": solver,
    }  # fmt: skip
    r = subtract(pair.target, pair.reference, **options)
    plain = Newton().solve(o)
    curvature = o.evaluate(plain.theta).curvature
    c = attenuation(o.model, curvature, torch.from_numpy(pair.reference_sigma**2))
    given = _Quadratic(o.hessian(curvature), plain.theta, 81, c)
    root = PRIOR.root(size)
    one = torch.ones(1, 1, dtype=torch.float64)
    shown, true = (torch.block_diag(each, one) for each in (given.seen(root), root))
    matrix = shown.T @ o.hessian(curvature) @ shown
    matrix.diagonal()[:-1] += 1.0
    weight = torch.where(o.use, 1.0 / noise.variance(o.target), 0.0)
    best = torch.linalg.solve(matrix, shown.T @ o.model.rmv(weight * o.target))
    peak = r.kernel.max()
    np.testing.assert_allclose(r.kernel.ravel(), (true @ best)[:-1], atol=1e-5 * peak)
    np.testing.assert_allclose(r.model[~r.mask], o.model.mv(shown @ best)[o.use], rtol=1e-6)
    moved = torch.linalg.solve(matrix, shown.T @ change_of_score(o, shown @ best).T)
    moved = moved * torch.from_numpy(pair.reference_sigma).reshape(-1)
    dense = true @ (torch.linalg.inv(matrix) + moved @ moved.T) @ true.T
    np.testing.assert_allclose(r.covariance, dense, rtol=1e-5, atol=1e-6 * float(dense.max()))
    assert r.scale == pytest.approx(r.kernel.sum())
    assert r.scale_error == pytest.approx(float(dense[:-1, :-1].sum().sqrt()), rel=1e-5)
    quick = subtract(pair.target, pair.reference, **options, covariance=False)
    assert quick.scale_error == pytest.approx(r.scale_error, rel=1e-3)


def test_the_variance_of_the_difference_is_that_of_the_kernel_in_the_model():
    pair = simulate_pair(5, (70, 62))
    fixed = FixedVariance(pair.reference_sigma**2)
    r = subtract(pair.target, pair.reference, kernel=DeltaKernel(9), noise=NOISE, penalty=PRIOR,
                 reference_noise=fixed, dtype=torch.float64)  # fmt: skip
    through = (r.variance - NOISE.variance(torch.from_numpy(r.model)).numpy())[~r.mask]
    upper = correlate(pair.reference_sigma**2, r.kernel**2)[~r.mask]
    assert (through > 0).all()
    assert np.median(through / upper) < 1.1


def test_a_delta_function_is_seen_as_one_through_a_noisy_reference():
    kernel = odd_kernels()["delta"]
    errors, ratios, worst = [], [], []
    for seed in range(2002, 2012):
        pair = simulate_with_kernel(seed, kernel)
        if not 20 < pair.snr < 1000:
            continue
        found = []
        for penalty in (UNAWARE, AWARE):
            r = subtract(pair.target, pair.reference, noise=NOISE, reference_noise=OF_REFERENCE,
                         penalty=penalty, covariance=False)  # fmt: skip
            mse = ((r.model - pair.target_noiseless)[~r.mask] ** 2).mean()
            found.append((np.sqrt(((r.kernel - kernel) ** 2).sum()), mse))
        errors.append(found[1][0])
        ratios.append(found[1][0] / found[0][0])
        worst.append(found[1][1] / found[0][1])
    assert np.median(ratios) < 0.5
    assert np.median(errors) < 0.3
    assert np.median(worst) < 1.05


def test_a_faint_pair_keeps_its_photometric_scale():
    # Few faint stars, a sharp kernel: where the noise of the reference counts.
    pairs = [simulate_pair(seed, phi_r=1.6, phi_k=0.7) for seed in range(300, 520)]
    pairs = [pair for pair in pairs if 8 < pair.snr < 40]
    targets, references = (
        np.stack([getattr(pair, name) for pair in pairs]) for name in ("target", "reference")
    )
    before, after = (
        np.array([
            (r.scale - 1.0) / r.scale_error
            for r in subtract(
                targets, references, noise=NOISE, reference_noise=OF_REFERENCE,
                kernel=DeltaKernel(13), penalty=penalty, covariance=False,
            )
        ])
        for penalty in (UNAWARE, AWARE)
    )  # fmt: skip
    assert len(after) >= 40
    assert abs(after.mean()) < abs(before.mean())
    assert (after**2).mean() < (before**2).mean()
    assert np.sqrt((after**2).mean()) < 2.0


def test_without_the_switch_or_without_noise_nothing_changes():
    pair = simulate_pair(4, (60, 66))
    options = {"noise": NOISE, "kernel": DeltaKernel(7), "dtype": torch.float64}
    unknown = subtract(pair.target, pair.reference, penalty=AWARE, **options)
    off = subtract(pair.target, pair.reference, reference_noise=OF_REFERENCE, penalty=UNAWARE,
                   **options)  # fmt: skip
    np.testing.assert_array_equal(unknown.kernel, off.kernel)
    np.testing.assert_array_equal(unknown.model, off.model)
    known = subtract(pair.target, pair.reference, penalty=PRIOR, **options)
    faint = subtract(pair.target, pair.reference, reference_noise=FixedVariance(1e-9),
                     penalty=PRIOR, **options)  # fmt: skip
    np.testing.assert_allclose(faint.kernel, known.kernel, atol=1e-6 * known.kernel.max())


def test_a_reference_said_to_be_all_noise_leaves_a_finite_fit():
    pair = simulate_pair(4, (60, 66))
    for variance in (1e3, 1e8):
        r = subtract(pair.target, pair.reference, noise=NOISE, kernel=DeltaKernel(7),
                     reference_noise=FixedVariance(variance),
                     penalty=AWARE)  # fmt: skip
        assert r.status is Status.CONVERGED
        assert np.isfinite(r.kernel).all()
        assert np.isfinite(r.model).all()


@pytest.mark.parametrize("likelihood", [Gaussian(), Huber()], ids=repr)
def test_a_stack_equals_a_loop_in_both_precisions(likelihood):
    pairs = [simulate_pair(seed, (60, 66)) for seed in (4, 5, 7)]
    options = {
        "noise": NOISE, "reference_noise": OF_REFERENCE, "kernel": DeltaKernel(7),
        "penalty": AWARE, "likelihood": likelihood,
    }  # fmt: skip
    stack = subtract([p.target for p in pairs], [p.reference for p in pairs], **options)
    for pair, one in zip(pairs, stack, strict=True):
        alone = subtract(pair.target, pair.reference, **options, dtype=torch.float64)
        errors = np.sqrt(np.diag(alone.kernel_covariance)).reshape(alone.kernel.shape)
        assert (np.abs(one.kernel - alone.kernel) < 0.15 * errors).all()
        assert one.scale == pytest.approx(alone.scale, abs=0.1 * alone.scale_error)
        assert one.scale_error == pytest.approx(alone.scale_error, rel=0.05)
        assert one.scale == pytest.approx(one.kernel.sum())


def test_one_pair_of_a_stack_whose_reference_has_no_noise():
    pair = simulate_pair(4, (60, 66))
    images = np.stack([pair.reference_sigma**2, np.full((60, 66), 1e-12)])
    stack = subtract(np.stack([pair.target] * 2), pair.reference, noise=NOISE,
                     reference_noise=FixedVariance(images), kernel=DeltaKernel(7),
                     penalty=PRIOR)  # fmt: skip
    unaware = subtract(pair.target, pair.reference, noise=NOISE, kernel=DeltaKernel(7),
                       penalty=PRIOR)  # fmt: skip
    np.testing.assert_allclose(stack[1].kernel, unaware.kernel, atol=1e-5 * unaware.kernel.max())
    assert abs(stack[0].kernel - unaware.kernel).max() > 1e-4 * unaware.kernel.max()
