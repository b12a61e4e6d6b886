"""The Gaussian process prior, its evidence, and the fit under it."""

import dataclasses
import math
import resource

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import minimize

from pytorchdia import (
    AdamLBFGS,
    CCDNoise,
    DeltaKernel,
    FixedVariance,
    Gaussian,
    GaussianProcessPrior,
    Huber,
    InputError,
    Newton,
    NormalEquations,
    PolynomialBackground,
    subtract,
)
from pytorchdia import prior as prior_module
from pytorchdia import shapelets as shapelets_module
from pytorchdia.image_model import ImageModel
from pytorchdia.kernel import BasisKernel
from pytorchdia.linalg import cholesky
from pytorchdia.objective import Objective
from pytorchdia.prior import Component, Posterior, _Evidence
from pytorchdia.regularise import _Quadratic, _quadratic, in_pixels, regularise
from pytorchdia.shapelets import Shapelets
from pytorchdia.simulate import draw_stars, render_moffat, simulate_pair

NOISE = CCDNoise(5.0)
POINT = np.array([0.3, -0.5, 0.4, 0.2, math.log(0.3), math.log(2.0), math.log(2.5)])


def dense_covariance(x, shape):
    """C as it is written in the module's docstring."""
    ky, kx = shape
    y, column = np.mgrid[:ky, :kx]
    dx, dy = (column - kx // 2 - x[0]).ravel(), (y - ky // 2 - x[1]).ravel()
    metric = torch.linalg.matrix_exp(torch.tensor([[x[2], x[3]], [x[3], -x[2]]])).numpy()

    def square(a, b):
        return metric[0, 0] * a * a + 2 * metric[0, 1] * a * b + metric[1, 1] * b * b

    total = 0.0
    for a, length, width in np.exp(x[4:]).reshape(-1, 3):
        envelope = np.exp(-0.5 * square(dx, dy) / width**2)
        apart = square(dx[:, None] - dx, dy[:, None] - dy)
        alike = np.exp(-0.5 * apart / length**2)
        total = total + a**2 * envelope[:, None] * alike * envelope
    return torch.from_numpy(total)


def example(seed=5, shape=(70, 62), size=9, dtype=torch.float64, noise=NOISE):
    pair = simulate_pair(seed, shape)
    reference = torch.from_numpy(pair.reference - np.median(pair.reference))
    model = ImageModel(reference, DeltaKernel(size), PolynomialBackground(1))
    if noise is None:
        noise = FixedVariance(torch.from_numpy(pair.target_sigma**2))
    target = torch.from_numpy(pair.target)
    return pair, Objective(model, target, model.valid, noise, Gaussian(), None, dtype)


@pytest.mark.parametrize("extra", [[], [math.log(0.02), math.log(1.5), math.log(3.0)]])
def test_shapelets_are_the_covariance(extra, monkeypatch):
    monkeypatch.setattr(shapelets_module, "_TAIL", 1e-9)
    monkeypatch.setattr(shapelets_module, "_MAX_ORDER", 40)
    x = np.append(POINT, extra)
    kernel = DeltaKernel((9, 13))
    root = Shapelets(x, kernel.shape).root
    dense = dense_covariance(x, (9, 13))
    torch.testing.assert_close(root @ root.T, dense, rtol=0, atol=1e-8 * float(dense.max()))


def test_orders_left_out_by_default_hold_little_of_the_variance():
    kernel = DeltaKernel(15)
    root = Shapelets(POINT, kernel.shape).root
    dense = dense_covariance(POINT, kernel.shape)
    assert float((root @ root.T - dense).abs().max()) < 1e-3 * float(dense.max())


def evidence_of_example(seed=5):
    _, o = example(seed)
    solution = Newton().solve(o)
    matrix = o.hessian(o.evaluate(solution.theta).curvature)
    n_k = o.model.kernel.n_params
    cross, corner = matrix[:n_k, n_k:], matrix[n_k:, n_k:]
    information = matrix[:n_k, :n_k] - cross @ torch.linalg.solve(corner, cross.T)
    return _Evidence(information, solution.theta[:n_k], o.model.kernel)


def test_the_evidence_is_the_marginal_likelihood():
    # The fitted kernel scatters about 0 with covariance C + H^-1; constants drop out.
    evidence = evidence_of_example()
    values = []
    for x in (POINT, POINT + 0.1):
        root = Shapelets(x, evidence.kernel.shape).root
        covariance = root @ root.T + torch.linalg.inv(evidence.information)
        fitted = torch.linalg.solve(evidence.information, evidence.projected)
        normal = torch.distributions.MultivariateNormal(torch.zeros_like(fitted), covariance)
        values.append(float(normal.log_prob(fitted)))
    difference = evidence.at(POINT + 0.1).evidence - evidence.at(POINT).evidence
    assert difference == pytest.approx(values[1] - values[0], abs=1e-4)


@pytest.mark.parametrize("length", [0.5, 1.0, 3.0, 50.0])
@pytest.mark.parametrize("ellipse", [(0.0, 0.0), (0.4, -0.7)])
def test_derivatives_of_shapelets_are_those_of_differences(length, ellipse):
    shape = (9, 13)
    x = np.append(POINT, [math.log(0.02), math.log(length), math.log(3.0)])
    x[2:4] = ellipse
    rng = np.random.default_rng(1)
    slope = rng.normal(size=Shapelets(x, shape).rows.shape)
    vector = rng.normal(size=slope.shape[1])

    def value(step):
        return float((slope * Shapelets(x + step, shape).rows).sum())

    def covariance_times_vector(step):
        rows = Shapelets(x + step, shape).rows
        return rows.T @ (rows @ vector)

    steps = 1e-6 * np.eye(len(x))
    numerical = [(value(d) - value(-d)) / 2e-6 for d in steps]
    found = Shapelets(x, shape).gradient(slope)
    np.testing.assert_allclose(found, numerical, rtol=1e-6, atol=1e-7 * abs(found).max())

    along = covariance_times_vector
    numerical = np.array([(along(d) - along(-d)) / 2e-6 for d in steps])
    moves = Shapelets(x, shape).moves(vector)
    np.testing.assert_allclose(moves, numerical, rtol=1e-5, atol=1e-6 * abs(moves).max())


def test_derivatives_of_the_evidence_are_those_of_differences():
    evidence = evidence_of_example()
    x = np.append(POINT, [math.log(0.02), math.log(1.5), math.log(3.0)])
    gradient = evidence.at(x).gradient
    steps = 1e-5 * np.eye(len(x))
    numerical = [(evidence.at(x + d).evidence - evidence.at(x - d).evidence) / 2e-5 for d in steps]
    np.testing.assert_allclose(gradient, numerical, rtol=1e-4, atol=1e-4 * abs(gradient).max())


def test_what_is_found_is_better_than_its_surroundings():
    evidence = evidence_of_example()
    solution = torch.linalg.solve(evidence.information, evidence.projected)
    found = GaussianProcessPrior().found(evidence.information, solution, evidence.kernel)
    best = prior_module._vector_of(found)
    assert found.is_known
    under = Posterior.of(evidence.information, evidence.projected, found.root(evidence.kernel))
    assert found.evidence == pytest.approx(under.evidence)
    for i in range(7):
        for sign in (-0.2, 0.2):
            beside = best.copy()
            beside[i] += sign
            assert evidence.at(beside).evidence < evidence.at(best).evidence + 0.5
    assert found.found(evidence.information, solution, evidence.kernel) is found


def test_the_average_information_is_that_of_dense_matrices():
    evidence = evidence_of_example()
    x = np.append(POINT, [math.log(0.02), math.log(1.5), math.log(3.0)])

    def covariance(step):
        root = Shapelets(x + step, evidence.kernel.shape).root
        return root @ root.T

    steps = 1e-5 * np.eye(len(x))
    derivatives = [(covariance(d) - covariance(-d)) / 2e-5 for d in steps]
    whole = covariance(0.0) + torch.linalg.inv(evidence.information)
    fitted = torch.linalg.solve(evidence.information, evidence.projected)
    moved = torch.stack([c @ torch.linalg.solve(whole, fitted) for c in derivatives])
    dense = 0.5 * (moved @ torch.linalg.solve(whole, moved.T)).numpy()
    found = evidence.at(x).curvature()
    np.testing.assert_allclose(found, dense, rtol=1e-5, atol=1e-6 * abs(dense).max())


@pytest.mark.parametrize("seed", range(4))
def test_another_search_goes_no_further_from_where_this_one_ends(seed):
    evidence = evidence_of_example(seed)
    start = evidence.start()

    def loss(x):
        point, away = evidence.at(x), x - start.x
        weak = prior_module._WEAK
        return 0.5 * weak * away @ away - point.evidence, weak * away - point.gradient

    found = evidence.maximise(start, slice(0, 7)).x
    other = minimize(
        loss, found, jac=True, method="L-BFGS-B", bounds=evidence.bounds(start.x),
        options={"maxiter": 1000, "maxfun": 5000, "ftol": 1e-15, "gtol": 1e-7},
    )  # fmt: skip
    assert loss(found)[0] < loss(start.x)[0] - 1.0
    assert loss(found)[0] == pytest.approx(other.fun, abs=1e-7)
    np.testing.assert_allclose(found, other.x, atol=1e-3)


@pytest.mark.parametrize(("seed", "sharp"), [(1183, True), (13, False)])
def test_the_second_component_is_for_what_a_smooth_one_cannot_do(seed, sharp):
    # One pair with sharp bright stars, whose pixels miss some of their form, and one without.
    pair = simulate_pair(seed, reading="notebook")
    assert (max(pair.phi_r, pair.phi_k) < 1.0) == sharp
    reference = torch.from_numpy(pair.reference - np.median(pair.reference))
    model = ImageModel(reference, DeltaKernel(19), PolynomialBackground())
    o = Objective(model, torch.from_numpy(pair.target), model.valid, NOISE, Gaussian())
    solution = Newton().solve(o)
    given = _quadratic(o, solution, None)
    evidence = _Evidence(given.information, given.kernel, model.kernel)
    main = evidence.maximise(evidence.start(), slice(0, 7))
    like = evidence.maximise(
        evidence.at(np.append(main.x, main.x[4:7] + prior_module._LIKE_THE_FIRST)), slice(7, 10)
    )
    both = evidence.with_second(main)
    if not sharp:
        np.testing.assert_array_equal(both.x, like.x)
        return
    assert like.evidence == pytest.approx(main.evidence, abs=0.1)  # a copy
    assert both.evidence > like.evidence + 5.0
    assert math.exp(both.x[8]) < 1.0  # rough


def test_a_kernel_of_basis_images_is_a_change_of_variables():
    _, o = example()
    generator = torch.Generator().manual_seed(1)
    basis = torch.randn(81, 12, generator=generator, dtype=torch.float64)
    inner = o.model.with_kernel(BasisKernel((9, 9), basis))
    t = torch.block_diag(basis, torch.eye(3, dtype=torch.float64))
    weight = torch.rand(o.model.shape, generator=generator, dtype=torch.float64) * o.use
    for method in ("gram", "gram_toeplitz"):
        torch.testing.assert_close(
            getattr(inner, method)(weight), t.T @ getattr(o.model, method)(weight) @ t
        )
    theta = torch.randn(15, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(inner.mv(theta), o.model.mv(t @ theta))
    torch.testing.assert_close(inner.rmv(weight), t.T @ o.model.rmv(weight))
    torch.testing.assert_close(inner.scale_gradient(), t.T @ o.model.scale_gradient())


PRIOR = GaussianProcessPrior((Component(0.1, 2.0, 2.0),), (0.2, -0.1), (0.3, 0.1))


@pytest.mark.parametrize("solver", [Newton(), Newton(matrix_free=False), AdamLBFGS()], ids=repr)
def test_the_fit_under_a_prior_is_the_dense_posterior(solver):
    # With a fixed variance everything is linear: theta = (H + C^-1)^-1 A' W I.
    _, o = example(noise=None)
    result = regularise(o, [solver.solve(o)], PRIOR, solver)
    theta = in_pixels(result.objective, result.solutions[0].theta)
    e = o.evaluate(theta)
    n_k = o.model.kernel.n_params
    root = PRIOR.root(o.model.kernel)
    t = torch.block_diag(root, torch.eye(3, dtype=torch.float64))
    matrix = t.T @ o.hessian(e.curvature) @ t
    matrix.diagonal()[: root.shape[1]] += 1.0
    weight = torch.where(o.use, 1.0 / o.noise.variance(o.target), 0.0)
    dense = t @ torch.linalg.solve(matrix, t.T @ o.model.rmv(weight * o.target))
    tol = 1e-3 if isinstance(solver, AdamLBFGS) else 1e-8
    torch.testing.assert_close(
        theta[:n_k], dense[:n_k], rtol=0, atol=tol * float(dense[:n_k].max())
    )
    assert 3 < result.n_effective[0] < 60


def test_covariance_under_a_prior_is_that_of_the_posterior():
    pair, o = example(noise=None)
    size = DeltaKernel(9)
    result = subtract(
        pair.target, pair.reference, kernel=size, background=PolynomialBackground(1),
        noise=o.noise, penalty=PRIOR, dtype=torch.float64,
    )  # fmt: skip
    root = PRIOR.root(size)
    theta = torch.cat([torch.from_numpy(result.kernel).flatten(), torch.zeros(3)])
    t = torch.block_diag(root, torch.eye(3, dtype=torch.float64))
    matrix = t.T @ o.hessian(o.evaluate(theta).curvature) @ t
    matrix.diagonal()[: root.shape[1]] += 1.0
    dense = t @ torch.linalg.inv(matrix) @ t.T
    np.testing.assert_allclose(result.covariance, dense, rtol=1e-6, atol=1e-9 * float(dense.max()))
    ones = torch.cat([torch.ones(81, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)])
    assert result.scale_error == pytest.approx(float((ones @ dense @ ones).sqrt()), rel=1e-6)
    quick = subtract(
        pair.target, pair.reference, kernel=size, background=PolynomialBackground(1),
        noise=o.noise, penalty=PRIOR, dtype=torch.float64, covariance=False,
    )  # fmt: skip
    assert quick.scale_error == pytest.approx(result.scale_error, rel=1e-3)


@pytest.mark.parametrize("likelihood", [None, Huber()])
def test_a_stack_under_a_prior_equals_a_loop(likelihood):
    pairs = [simulate_pair(seed, (60, 66)) for seed in (4, 5, 7)]
    options = {"noise": NOISE, "kernel": DeltaKernel(7), "penalty": GaussianProcessPrior()}
    options |= {"likelihood": likelihood} if likelihood else {}
    stack = subtract([p.target for p in pairs], [p.reference for p in pairs], **options)
    for pair, one in zip(pairs, stack, strict=True):
        alone = subtract(pair.target, pair.reference, **options)
        # Rounding moves the optimum of a flat evidence: to far less than the error bars.
        errors = np.sqrt(np.diag(alone.kernel_covariance)).reshape(alone.kernel.shape)
        assert (np.abs(one.kernel - alone.kernel) < 0.1 * errors).all()
        assert one.scale == pytest.approx(alone.scale, abs=0.05 * alone.scale_error)
        assert one.scale_error == pytest.approx(alone.scale_error, rel=0.05)


def winged_pair(seed, shape=(160, 160)):
    """Moffat stars of two widths: what makes one of the other has wings that no Gaussian has."""
    rng = np.random.default_rng([9, seed])
    stars = draw_stars(rng, shape, log_density=2.0)
    sharp = render_moffat(stars, shape, fwhm=2.8, beta=rng.uniform(2.5, 4.0))
    wide = render_moffat(
        stars.shifted(*rng.uniform(-0.5, 0.5, 2)), shape, fwhm=rng.uniform(3.5, 4.5),
        ellipticity=rng.uniform(0.0, 0.2), beta=rng.uniform(2.5, 4.0),
    )  # fmt: skip
    images = []
    for image, exposures in ((350.0 + sharp, 8), (620.0 + 0.8 * wide, 1)):
        sigma = np.sqrt((25.0 + image) / exposures)
        images += [image, image + sigma * rng.standard_normal(shape), sigma]
    return images


def test_light_in_faint_wings_is_not_taken_off_the_scale():
    pulls, without, ratios = [], [], []
    for seed in range(8):
        reference, noisy_reference, sigma, target, noisy_target, _ = winged_pair(seed)
        given = {"kernel": DeltaKernel(17), "noise": NOISE, "covariance": False}
        truth = subtract(target, reference, penalty=None, **given)
        given["reference_noise"] = FixedVariance(sigma**2)
        plain = subtract(noisy_target, noisy_reference, penalty=None, **given)
        under = subtract(noisy_target, noisy_reference, penalty=GaussianProcessPrior(), **given)
        pulls.append((under.scale - truth.scale) / under.scale_error)
        error = [float(((r.model - target)[~r.mask] ** 2).mean()) for r in (plain, under)]
        ratios.append(error[1] / error[0])
        evidence = evidence_of(noisy_target, noisy_reference, DeltaKernel(17))
        start = evidence.start()
        best = evidence.together(evidence.with_second(evidence.maximise(start, slice(7))), start)
        sums = best.root.sum(dim=0)[:, None]
        error = math.sqrt(float((sums * torch.cholesky_solve(sums, best.posterior.factor)).sum()))
        without.append((float(best.kernel.sum()) - truth.scale) / error)
    left, before = (float(np.sqrt(np.mean(np.square(each)))) for each in (pulls, without))
    assert before > 2.5  # errors of P, by the components alone
    assert left < 0.6 * before
    assert left < 2.0
    assert max(ratios) < 1.0


def evidence_of(target, reference, kernel):
    reference = torch.from_numpy(reference - np.median(reference))
    model = ImageModel(reference, kernel, PolynomialBackground())
    o = Objective(model, torch.from_numpy(target), model.valid, NOISE, Gaussian())
    given = _quadratic(o, Newton().solve(o), None)
    return _Evidence(given.information, given.kernel, model.kernel)


def test_missed_light_is_believed_by_its_posterior():
    # By dense matrices and a quadrature over ln tau, with the components' K, S and a free shift c.
    _, noisy_reference, _, _, noisy_target, _ = winged_pair(3)
    evidence = evidence_of(noisy_target, noisy_reference, DeltaKernel(17))
    here = evidence.with_second(evidence.maximise(evidence.start(), slice(7)))
    missed = evidence.missed_light(here)
    h, b = evidence.information.numpy(), evidence.projected.numpy()
    covariance = dense_covariance_of(here.x, (17, 17))
    posterior = np.linalg.inv(
        np.linalg.inv(covariance + 1e-12 * covariance.max() * np.eye(289)) + h
    )
    along = missed.column.numpy()[:, 0]
    left = b - h @ posterior @ b
    seen = h - h @ posterior @ h
    precise = along @ seen @ along
    shift, sums = along @ left / precise, (along - posterior @ h @ along).sum()
    gain, variance = shift * sums, sums**2 / precise  # D and d

    def moment(power):
        def inside(log_share):
            tau2 = (math.exp(log_share) * evidence.scale) ** 2
            density = math.exp(-0.5 * gain**2 / (tau2 + variance)) / math.sqrt(tau2 + variance)
            return density * (tau2 / (tau2 + variance)) ** power

        return quad(inside, math.log(1e-4), math.log(0.1))[0]

    believed = moment(1) / moment(0)
    scatter = moment(2) / moment(0) - believed**2
    both = torch.cat([Shapelets(here.x, (17, 17)).root, missed.column], dim=1)
    under = Posterior.of(evidence.information, evidence.projected, both)
    before = float(here.kernel.sum())
    after = float((both @ under.coefficients).sum())
    assert abs(gain) > 2.0 * math.sqrt(variance)
    assert after - before == pytest.approx(believed * gain, rel=0.02)
    assert float(missed.spread.sum()) == pytest.approx(gain * math.sqrt(scatter), rel=0.05)
    assert missed.gain == pytest.approx(under.evidence - here.evidence, abs=1e-4)


def dense_covariance_of(x, shape):
    root = Shapelets(x, shape).root.numpy()
    return root @ root.T


def test_components_are_sought_together_where_that_pays():
    _, noisy_reference, _, _, noisy_target, _ = winged_pair(1)
    evidence = evidence_of(noisy_target, noisy_reference, DeltaKernel(17))
    start = evidence.start()
    one_by_one = evidence.with_second(evidence.maximise(start, slice(7)))
    assert evidence.together(one_by_one, start).evidence > one_by_one.evidence + 5.0
    pair = simulate_pair(13, reading="notebook")  # Gaussians
    evidence = evidence_of(pair.target, pair.reference, DeltaKernel(19))
    start = evidence.start()
    one_by_one = evidence.with_second(evidence.maximise(start, slice(7)))
    assert evidence.together(one_by_one, start) is one_by_one


def test_data_that_tell_nothing_of_missed_light_add_nothing():
    kernel = DeltaKernel(7)
    nothing = torch.zeros(49, 49, dtype=torch.float64)
    evidence = _Evidence(nothing, nothing[0], kernel)
    missed = evidence.missed_light(evidence.start())
    assert missed.column.shape == missed.spread.shape == (49, 0)
    assert missed.gain == 0.0


def test_the_default_prior_lowers_the_error_of_the_model():
    ratios, pulls = [], []
    for seed in range(40, 52):
        pair = simulate_pair(seed, (142, 142))
        errors = []
        for penalty in (None, GaussianProcessPrior()):
            r = subtract(pair.target, pair.reference, noise=NOISE, penalty=penalty,
                         covariance=False)  # fmt: skip
            errors.append(float(((r.model - pair.target_noiseless)[~r.mask] ** 2).mean()))
        assert r.diagnostics.n_effective < 200
        assert "components" in r.settings["penalty"]
        ratios.append(errors[1] / errors[0])
        pulls.append((r.scale - 1.0) / r.scale_error)
    assert np.median(ratios) < 0.35
    assert np.median(np.abs(pulls)) < 1.5


def test_a_kernel_at_the_edge_of_the_box_and_another_scale_are_found():
    pair = simulate_pair(44, (120, 110), phi_k=1.0)
    shift = 4
    target = 37.0 * (np.roll(pair.target_noiseless, (shift, -shift), (0, 1)) - pair.sky_i) + 500.0
    rng = np.random.default_rng(2)
    target = target + rng.standard_normal(target.shape) * np.sqrt(25.0 + np.maximum(target, 1.0))
    r = subtract(target, pair.reference, noise=NOISE, kernel=DeltaKernel(15), covariance=False,
                 mask=border(target.shape, 8), penalty=GaussianProcessPrior())  # fmt: skip
    y, x = np.unravel_index(np.argmax(r.kernel), r.kernel.shape)
    assert abs(y - 7 + shift) <= 1
    assert abs(x - 7 - shift) <= 1
    assert r.scale == pytest.approx(37.0, rel=0.1)


def border(shape, width):
    mask = np.ones(shape, dtype=bool)
    mask[width:-width, width:-width] = False
    return mask


def test_unusable_hyperparameters_are_refused():
    with pytest.raises(InputError, match="must be positive"):
        GaussianProcessPrior((Component(0.1, -1.0, 2.0),))
    with pytest.raises(InputError, match="must be finite"):
        GaussianProcessPrior((Component(0.1, 1.0, 2.0),), centre=(math.nan, 0.0))


def test_a_prior_that_allows_everything_is_refused_with_a_reason():
    # The unit that the prior adds to a huge F' H F is lost where the data say nothing.
    matrix = torch.block_diag(torch.ones(2, 2), torch.ones(1, 1)).to(torch.float64)
    theta = torch.ones(3, dtype=torch.float64)
    root = 1e12 * torch.eye(2, dtype=torch.float64)
    assert Posterior.of(matrix[:2, :2], theta[:2], root) is None
    with pytest.raises(InputError, match="lower the amplitudes"):
        _Quadratic(matrix, theta, 2).under(root)
    assert Posterior.of(matrix[:2, :2], theta[:2], 1e-9 * root) is not None


def test_clipped_pixels_stay_out_of_the_fit_under_a_prior():
    pair = simulate_pair(5, (70, 62))
    target = pair.target.copy()
    target[30, 30] += 1e5
    options = {"noise": NOISE, "kernel": DeltaKernel(7), "solver": NormalEquations(3, k_sigma=6.0)}
    plain = subtract(target, pair.reference, **options)
    r = subtract(target, pair.reference, penalty=GaussianProcessPrior(), **options)
    assert r.mask[30, 30]
    assert plain.mask[30, 30]
    assert r.scale == pytest.approx(plain.scale, abs=3 * plain.scale_error)


def test_uncertain_hyperparameters_widen_the_error_bars():
    pair = simulate_pair(46, (100, 90))
    options = {"noise": NOISE, "kernel": DeltaKernel(11)}
    found = subtract(pair.target, pair.reference, penalty=GaussianProcessPrior(), **options)
    _, o = example(46, (100, 90), 11)
    o = dataclasses.replace(
        o, model=dataclasses.replace(o.model, background=PolynomialBackground())
    )
    prior = regularise(o, [Newton().solve(o)], GaussianProcessPrior(), Newton()).priors[0]
    given = subtract(
        pair.target, pair.reference, penalty=dataclasses.replace(prior, spread=None), **options
    )
    np.testing.assert_allclose(found.kernel, given.kernel, atol=3e-3 * given.kernel.max())
    added = np.diag(found.kernel_covariance) - np.diag(given.kernel_covariance)
    assert (added > -1e-3 * np.diag(given.kernel_covariance).max()).all()
    assert added.sum() > 0.05 * np.diag(given.kernel_covariance).sum()
    assert given.scale_error < found.scale_error < 3 * given.scale_error


def test_the_spread_is_that_of_kernels_of_likely_hyperparameters():
    # Importance sampling over the hyperparameters: the slow twin of Laplace's approximation.
    evidence = evidence_of_example()
    solution = torch.linalg.solve(evidence.information, evidence.projected)
    best = prior_module._vector_of(GaussianProcessPrior().found(
        evidence.information, solution, evidence.kernel
    ))[:7]  # fmt: skip
    place = evidence.maximise(evidence.at(best), slice(0, 7))
    best, spread = place.x, evidence.spread(place)
    rng = np.random.default_rng(1)
    slopes = evidence_hessian(evidence, best)
    values, axes = np.linalg.eigh(slopes)
    draws = best + (rng.standard_normal((300, 7)) / np.sqrt(np.maximum(values, 1.0))) @ axes.T
    kernels = torch.stack([evidence.at(x).kernel for x in draws])
    seen = float(kernels.var(dim=0).sum())
    told = float((spread**2).sum())
    assert 0.2 * told < seen < 5.0 * told


def evidence_hessian(evidence, x):
    steps = 1e-3 * np.eye(len(x))
    rows = [(evidence.at(x - d).gradient - evidence.at(x + d).gradient) / 2e-3 for d in steps]
    return 0.5 * (np.array(rows) + np.array(rows).T)


def test_a_prior_is_a_value():
    assert GaussianProcessPrior() == GaussianProcessPrior()
    assert dataclasses.replace(PRIOR, evidence=3.0) == PRIOR


def test_a_basis_for_each_pair_of_a_stack_is_not_copied_for_each_row():
    rng = np.random.default_rng(2)
    basis = torch.from_numpy(rng.standard_normal((3, 25, 4)))
    rows = torch.from_numpy(rng.standard_normal((7, 3, 5, 5)))
    found = BasisKernel((5, 5), basis).coefficients(rows)
    assert found.shape == (7, 3, 4)
    for i in range(3):
        single = BasisKernel((5, 5), basis[i])
        torch.testing.assert_close(found[:, i], single.coefficients(rows[:, i]))
    # 1000 rows of 441 pixels by 60 images for 8 pairs would be 1.7 GB, the result is 4 MB.
    wide = BasisKernel((21, 21), torch.ones(8, 441, 60))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert float(wide.coefficients(torch.ones(1000, 8, 21, 21)).min()) == 441.0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB


@pytest.mark.parametrize("seed", [1, 5])
def test_hyperparameters_are_no_more_uncertain_than_the_noise_of_the_data_lets_them(seed):
    # Three points are not a kernel of the prior's form, and the noise is low: where the evidence
    # looks flat the kernel would move by more than the data allow, J' H J above 1.
    kernel = torch.zeros(11, 11, dtype=torch.float64)
    kernel[3, 5], kernel[7, 2], kernel[6, 8] = 0.5, 0.3, 0.2
    pair = simulate_pair(seed, (80, 76), phi_r=1.0)
    reference = torch.from_numpy(pair.reference_noiseless - pair.sky_r)
    model = ImageModel(reference, DeltaKernel(11), PolynomialBackground(0))
    truth = torch.cat([kernel.flatten(), torch.full((1,), pair.sky_i, dtype=torch.float64)])
    noise = torch.from_numpy(np.random.default_rng(2).standard_normal((80, 76)))
    o = Objective(model, model.mv(truth) + noise, model.valid, FixedVariance(1.0), Gaussian())
    theta = Newton().solve(o).theta
    matrix = o.hessian(o.evaluate(theta).curvature)
    information = matrix[:121, :121] - matrix[:121, 121:] @ matrix[121:, :121] / matrix[121, 121]
    found = GaussianProcessPrior().found(information, theta[:121], DeltaKernel(11))
    spread = found.spread_of(DeltaKernel(11))
    largest = float(torch.linalg.eigvalsh(spread.T @ information @ spread)[-1])
    assert 0.01 < largest < 1.0 + 1e-6


def test_an_approximate_matrix_with_negative_modes_says_nothing_about_them():
    # What stands for H need not be positive; a prior must not gain by kernels along such modes.
    generator = torch.Generator().manual_seed(2)
    axes = torch.linalg.qr(torch.randn(26, 26, generator=generator, dtype=torch.float64)).Q
    values = torch.linspace(1.0, 1e4, 26, dtype=torch.float64)
    values[:3] = torch.tensor([-2.0, -0.1, 0.0])
    given = _Quadratic((axes * values) @ axes.T, torch.ones(26, dtype=torch.float64), 25)
    found = torch.linalg.eigvalsh(given.information)
    assert float(found.min()) > -1e-8
    torch.testing.assert_close(given.information, given.information.T, rtol=0, atol=1e-9)
    root = 1e3 * torch.eye(25, dtype=torch.float64)
    assert Posterior.of(given.information, given.projected, root) is not None


def test_the_matrix_of_a_factor_in_float32_is_positive():
    generator = torch.Generator().manual_seed(3)
    half = torch.randn(40, 40, generator=generator, dtype=torch.float64)
    values = torch.logspace(0, 6, 40, dtype=torch.float64)
    axes = torch.linalg.qr(half).Q
    factor, good = cholesky(((axes * values) @ axes.T).to(torch.float32), 1e-7)
    assert good
    matrix = factor.matrix()
    torch.testing.assert_close(matrix, matrix.T, rtol=0, atol=1e-9)
    assert float(torch.linalg.eigvalsh(matrix).min()) > 0.0
