"""The one call: what it returns, and what it does with noise, masks and levels."""

import dataclasses

import numpy as np
import pytest
import torch

import pytorchdia
from pytorchdia import (
    AdamLBFGS,
    CCDNoise,
    DeltaKernel,
    FixedVariance,
    Flag,
    Huber,
    InputError,
    LaplacianPenalty,
    NormalEquations,
    PolynomialBackground,
    Status,
    subtract,
)
from pytorchdia.errors import (
    ConvergenceWarning,
    CovarianceWarning,
    NoiseWarning,
    TooFewPixelsError,
)
from pytorchdia.simulate import simulate_pair
from pytorchdia.subtraction import with_error

NOISE = CCDNoise(5.0)
QUIET = FixedVariance(1e-12)


@pytest.fixture(scope="module")
def pair():
    return simulate_pair(50, (80, 66), phi_r=1.1, phi_k=0.9)


def run(pair, **options):
    options = {"kernel": DeltaKernel((7, 9)), "noise": NOISE, "reference_noise": QUIET, **options}
    return subtract(pair.target, pair.reference, **options)


def test_difference_is_target_minus_model_at_full_size(pair):
    result = run(pair, dtype=torch.float64)
    assert result.difference.shape == result.model.shape == result.variance.shape == (80, 66)
    inside = (slice(3, -3), slice(4, -4))
    np.testing.assert_allclose(
        result.difference[inside], (pair.target - result.model)[inside], atol=1e-9
    )
    border = np.ones((80, 66), bool)
    border[inside] = False
    np.testing.assert_array_equal(result.mask, border)
    np.testing.assert_array_equal(result.flags, np.where(border, int(Flag.BORDER), 0))
    assert (result.difference[border] == 0).all()
    assert np.isinf(result.variance[border]).all()


def test_kernel_scale_background_and_errors_fit_together(pair):
    result = run(pair, background=PolynomialBackground(1))
    assert result.kernel.shape == (7, 9)
    assert result.scale == pytest.approx(result.kernel.sum())
    ones = np.ones(63)
    assert result.scale_error == pytest.approx(np.sqrt(ones @ result.kernel_covariance @ ones))
    assert result.covariance.shape == (66, 66)
    assert len(result.background.coefficients) == len(result.background.errors) == 3
    eta = (np.arange(66) - 32.5) / 66
    b = dict(zip(result.background.exponents, result.background.coefficients, strict=True))
    np.testing.assert_allclose(
        result.background.image[40] - result.background.image[40, 0],
        b[1, 0] * (eta - eta[0]), atol=1e-3,
    )  # fmt: skip


def test_a_look_without_error_bars_is_no_cause_for_alarm(pair):
    look = run(pair, covariance=None)
    assert look.scale_error == np.inf
    assert "scale-uncertain" not in {finding.code for finding in look.findings}


def test_diagnostics_are_those_of_the_residuals(pair):
    result = run(pair, dtype=torch.float64)
    z = (result.significance)[~result.mask]
    d = result.diagnostics
    assert d.n_pixels == z.size == 74 * 58
    assert d.n_parameters == 64
    assert d.mfb == pytest.approx(z.mean(), abs=1e-9)
    assert d.mfv == pytest.approx(z.var(ddof=1), rel=1e-9)
    assert d.reduced_chi_square == pytest.approx((z**2).sum() / (z.size - 64), rel=1e-9)
    assert d.reference_background == np.median(pair.reference)
    assert (d.dtype, d.device) == ("float64", "cpu")
    assert d.seconds > 0


def test_variance_holds_the_noise_of_the_reference_through_the_kernel(pair):
    sigma2 = pair.reference_sigma**2
    with_it = run(pair, reference_noise=FixedVariance(sigma2), dtype=torch.float64)
    without = run(pair, dtype=torch.float64)
    expected = np.zeros_like(sigma2)
    for dy in range(-3, 4):
        for dx in range(-4, 5):
            k = with_it.kernel[3 + dy, 4 + dx]
            expected += k**2 * np.roll(sigma2, (-dy, -dx), axis=(0, 1))
    inside = ~with_it.mask
    np.testing.assert_allclose(
        with_it.variance[inside] - without.variance[inside], expected[inside], rtol=1e-6
    )
    assert with_it.diagnostics.reference_noise


def test_error_map_is_right_on_average():
    # With both noises in it, the difference of a fresh pair scatters as its variance says.
    values = []
    for seed in range(6):
        p = simulate_pair(seed, (90, 90), phi_r=1.2, phi_k=0.6)
        r = subtract(
            p.target, p.reference, kernel=DeltaKernel(7), noise=NOISE,
            reference_noise=FixedVariance(p.reference_sigma**2),
        )  # fmt: skip
        values.append((r.significance**2)[~r.mask].mean())
    # Above one by the fit's own error, below by the parameters it used up: both under 1 %.
    assert np.mean(values) == pytest.approx(1.0, abs=0.02)


def test_level_taken_off_the_reference_moves_only_the_background(pair):
    default, given = (
        run(pair, penalty=None, reference_background=level) for level in (None, 100.0)
    )
    np.testing.assert_allclose(given.kernel, default.kernel, atol=1e-6)
    moved = default.scale * (np.median(pair.reference) - 100.0)
    assert default.background.coefficients[0] - given.background.coefficients[0] == pytest.approx(
        moved, abs=0.01
    )
    assert given.diagnostics.reference_background == 100.0


def test_a_fit_may_start_from_an_earlier_kernel(pair):
    options = {"penalty": None, "dtype": torch.float64}
    cold = run(pair, **options)
    warm = run(pair, start=cold.kernel, **options)
    np.testing.assert_allclose(warm.kernel, cold.kernel, atol=1e-6)
    assert warm.scale == pytest.approx(cold.scale, abs=1e-3 * cold.scale_error)
    assert warm.diagnostics.steps < cold.diagnostics.steps
    flat = np.full((7, 9), 1.0 / 63)
    for start in (flat, 0.0 * flat):
        other = run(pair, start=start, **options)
        np.testing.assert_allclose(other.kernel, cold.kernel, atol=1e-5)
    stack = subtract(
        [pair.target, 1.1 * pair.target], pair.reference, kernel=DeltaKernel((7, 9)), noise=NOISE,
        reference_noise=QUIET, start=cold.kernel, **options,
    )  # fmt: skip
    np.testing.assert_allclose(stack[0].kernel, cold.kernel, atol=1e-5)
    for wrong in (np.ones((9, 7)), np.full((7, 9), np.nan)):
        with pytest.raises(InputError, match="start must be a finite kernel of 7 x 9"):
            run(pair, start=wrong)


def test_a_bad_reference_pixel_takes_out_the_footprint_and_nothing_more(pair):
    reference = pair.reference.copy()
    reference[40, 30] = np.nan
    result = subtract(
        pair.target, reference, kernel=DeltaKernel((7, 9)), noise=NOISE, reference_noise=QUIET
    )
    hit = (result.flags & Flag.REFERENCE) != 0
    expected = np.zeros_like(hit)
    expected[37:44, 26:35] = True
    np.testing.assert_array_equal(hit, expected)


def test_masked_target_pixels_have_no_influence(pair):
    mask = np.zeros(pair.target.shape, bool)
    mask[20:25, 30:33] = True
    results = []
    for value in (np.nan, 1e30, -5.0):
        target = pair.target.copy()
        target[mask] = value
        results.append(
            subtract(target, pair.reference, mask=mask, kernel=DeltaKernel(7), noise=NOISE,
                     reference_noise=QUIET, dtype=torch.float64)
        )  # fmt: skip
    for other in results[1:]:
        np.testing.assert_allclose(other.kernel, results[0].kernel, atol=1e-10)
        assert other.scale == pytest.approx(results[0].scale, rel=1e-12)
    assert np.isfinite(results[0].difference).all()


def test_clipped_pixels_are_flagged(pair):
    target = pair.target.copy()
    target[33, 44] += 1e5
    noise = FixedVariance(pair.target_sigma**2)
    result = subtract(
        target, pair.reference, kernel=DeltaKernel(7), noise=noise, reference_noise=QUIET,
        solver=NormalEquations(4, k_sigma=6.0),
    )  # fmt: skip
    assert result.flags[33, 44] == Flag.CLIPPED
    assert result.mask[33, 44]
    assert result.difference[33, 44] == pytest.approx(1e5, rel=0.01)


def test_stars_that_vanish_give_a_negative_difference_of_the_right_flux(pair):
    # Sign and scale: the convention of numpy.subtract.
    star = np.zeros(pair.target.shape)
    star[50, 30] = -4000.0
    changed = dataclasses.replace(pair, target=pair.target + star)
    before, after = run(pair, likelihood=Huber()), run(changed, likelihood=Huber())
    assert (after.difference - before.difference)[50, 30] == pytest.approx(-4000.0, rel=0.01)


@pytest.mark.parametrize("solver", [AdamLBFGS(), NormalEquations()], ids=repr)
def test_other_solvers_and_a_penalty_through_the_one_call(pair, solver):
    result = run(pair, solver=solver, penalty=LaplacianPenalty(1e-3), dtype=torch.float64)
    newton = run(pair, penalty=LaplacianPenalty(1e-3), dtype=torch.float64)
    assert result.status is Status.CONVERGED
    assert result.scale == pytest.approx(newton.scale, abs=0.2 * newton.scale_error)
    assert "LaplacianPenalty" in result.settings["penalty"]


def test_float32_agrees_with_float64(pair):
    single, double = (run(pair, penalty=None, dtype=t) for t in (torch.float32, torch.float64))
    assert single.difference.dtype == np.float32
    assert double.difference.dtype == np.float64
    assert single.scale == pytest.approx(double.scale, abs=1e-9)
    inside = ~single.mask
    np.testing.assert_allclose(single.difference[inside], double.difference[inside], atol=1e-3)


def test_guessed_noise_warns_and_known_noise_does_not(pair, recwarn):
    with pytest.warns(NoiseWarning, match=r"gives no gain; 1\.\d+ e-/ADU|gives no gain; 0\.\d+"):
        subtract(pair.target, pair.reference, kernel=DeltaKernel(7), reference_noise=QUIET)
    recwarn.clear()
    run(pair)
    assert not recwarn.list


def test_a_fit_that_does_not_converge_returns_with_a_warning(pair):
    with pytest.warns(ConvergenceWarning, match="ran out of steps"):
        result = run(pair, solver=AdamLBFGS(max_adam=3, max_lbfgs=1))
    assert result.status is Status.MAX_STEPS
    assert "max-steps" in [f.code for f in result.findings]
    assert np.isfinite(result.difference).all()


def test_error_bars_of_an_undetermined_kernel_come_with_a_warning():
    p = simulate_pair(21, (90, 84), phi_r=4.0, phi_k=1.0, reference_noise=0.0)
    options = {"kernel": DeltaKernel(15), "noise": NOISE, "reference_noise": QUIET}
    with pytest.warns(CovarianceWarning, match="singular to working precision"):
        result = subtract(p.target, p.reference, penalty=None, **options)
    assert {"jitter", "fisher-singular"} <= {f.code for f in result.findings}
    determined = subtract(p.target, p.reference, **options)  # the prior says what the data do not
    assert not {"jitter", "fisher-singular"} & {f.code for f in determined.findings}


def test_under_the_default_prior_rounding_does_not_move_the_kernel(pair):
    one, two = run(pair), run(pair, dtype=torch.float64)
    errors = np.sqrt(np.diag(one.kernel_covariance)).reshape(one.kernel.shape)
    np.testing.assert_array_less(np.abs(two.kernel - one.kernel), 1e-3 * errors)
    assert abs(two.scale - one.scale) < 1e-3 * one.scale_error


def test_too_few_pixels_are_refused_with_the_numbers(pair):
    mask = np.ones(pair.target.shape, bool)
    mask[30:36, 30:36] = False
    with pytest.raises(TooFewPixelsError, match=r"Only 36 of 5280 pixels .* 50 parameters"):
        run(pair, mask=mask, kernel=DeltaKernel(7))


def test_unknown_device_and_dtype_are_refused(pair):
    with pytest.raises(InputError, match="'nonsense' cannot be used"):
        run(pair, device="nonsense")
    with pytest.raises(InputError, match=r"float32 or torch\.float64"):
        run(pair, dtype=torch.float16)


def test_the_inputs_are_left_as_they_were(pair):
    target, reference = pair.target.copy(), pair.reference.copy()
    reference[5, 5] = np.nan
    before = target.copy(), reference.copy()
    subtract(target, reference, kernel=DeltaKernel(7), noise=NOISE, reference_noise=QUIET)
    np.testing.assert_array_equal(target, before[0])
    np.testing.assert_array_equal(reference, before[1])


def test_public_names():
    assert sorted(pytorchdia.__all__) == [
        "AdamLBFGS", "CCDNoise", "DeltaKernel", "EMCCDNoise", "Finding", "FixedVariance", "Flag",
        "Frame", "Gaussian", "GaussianProcessPrior", "Huber", "InputError", "LaplacianPenalty",
        "LightCurve", "LightCurves", "Likelihood", "Newton",
        "NoiseModel", "NormalEquations", "PolynomialBackground", "PyTorchDIAError",
        "PyTorchDIAWarning", "Status", "StudentT", "Subtraction", "SubtractionStack",
        "as_frame", "choose_kernel", "reduce", "subtract",
    ]  # fmt: skip
    for name in pytorchdia.__all__:
        assert getattr(pytorchdia, name).__doc__


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.796938, 0.00149, "0.7969 ± 0.0015"),
        (0.796938, 0.000996, "0.7969 ± 0.0010"),
        (-12.3456, 0.5, "-12.35 ± 0.50"),
        (1234.5, 27.4, "1234 ± 27"),
        (1234567.0, 2740.0, "1234567 ± 2.7e+03"),
        (1.0, 0.0, "1 ± 0"),
        (0.7969387, float("nan"), "0.796939 ± nan"),
        (1.5e-20, 2e-21, "1.5e-20 ± 2e-21"),
    ],
)
def test_a_value_has_as_many_places_as_two_digits_of_its_error(value, error, text):
    assert with_error(value, error) == text
