"""The objective: its value, its derivatives, and pixels that must not count."""

import dataclasses

import pytest
import torch

from pytorchdia import CCDNoise, EMCCDNoise, FixedVariance, Gaussian, Huber, StudentT
from pytorchdia.likelihood import Likelihood
from pytorchdia.testing import check_objective, example_objective

NOISES = [
    CCDNoise(5.0),
    CCDNoise(3.0, 1.9),
    EMCCDNoise(0.5),
    FixedVariance(40.0),
    CCDNoise(5.0) + FixedVariance(9.0),
]
LIKELIHOODS = [Gaussian(), Huber(), StudentT()]


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=repr)
@pytest.mark.parametrize("noise", NOISES, ids=repr)
def test_gradient_and_hessian_equal_full_automatic_differentiation(noise, likelihood):
    check_objective(noise, likelihood)


def test_loss_is_equation_4_with_its_constant():
    o = example_objective(CCDNoise(5.0, 2.0), Gaussian())
    theta = torch.full((o.model.n_params,), 0.07, dtype=torch.float64)
    theta[15] = 200.0
    model = o.model.mv(theta)[o.use]
    sigma = torch.sqrt(25.0 + model / 2.0)
    expected = -torch.distributions.Normal(model, sigma).log_prob(o.target[o.use]).sum()
    assert float(o.loss(theta)) == pytest.approx(float(expected), rel=1e-12)


def test_masked_pixels_change_nothing_whatever_they_hold():
    o = example_objective(CCDNoise(5.0), Gaussian())
    spoilt = o.target.clone()
    spoilt[~o.use] = 1e30
    other = dataclasses.replace(o, target=spoilt)
    theta = torch.full((o.model.n_params,), 0.07, dtype=torch.float64)
    theta[15] = 200.0
    assert float(o.loss(theta)) == float(other.loss(theta))
    a, b = (x.evaluate(theta) for x in (o, other))
    assert torch.equal(a.gradient, b.gradient)
    assert all(map(torch.equal, a.curvature, b.curvature))


@dataclasses.dataclass(frozen=True)
class Poisoned(FixedVariance):
    """NaN at masked pixels, as a user's own noise model may give."""

    where: torch.Tensor = None

    def variance(self, model):
        return super().variance(model) * torch.where(self.where, 1.0, torch.nan)


def test_nan_of_the_noise_model_at_masked_pixels_stays_there():
    o = example_objective(FixedVariance(40.0), Gaussian())
    poisoned = dataclasses.replace(o, noise=Poisoned(torch.tensor(40.0), o.use))
    theta = torch.full((o.model.n_params,), 0.07, dtype=torch.float64, requires_grad=True)
    loss = poisoned.loss(theta)
    (gradient,) = torch.autograd.grad(loss, theta)
    (expected,) = torch.autograd.grad(o.loss(theta), theta)
    torch.testing.assert_close(gradient, expected)
    terms = poisoned.evaluate(theta.detach())
    assert torch.isfinite(terms.gradient).all()
    assert all(torch.isfinite(part).all() for part in terms.curvature)


class Laplace(Likelihood):
    """A density whose curvature is zero wherever it exists."""

    log_norm = 0.6931471805599453  # ln 2

    def rho(self, z):
        return z.abs()


def test_a_loss_without_curvature_gives_zeros_not_errors():
    o = example_objective(FixedVariance(40.0), Laplace())
    theta = torch.full((o.model.n_params,), 0.07, dtype=torch.float64)
    assert all(float(part.abs().max()) == 0.0 for part in o.evaluate(theta).curvature)


@pytest.mark.parametrize("likelihood", [Huber(), StudentT()], ids=repr)
def test_with_a_tolerance_gradient_and_loss_are_those_of_the_slow_twin(likelihood):
    o = example_objective(CCDNoise(5.0), likelihood)
    theta = torch.full((o.model.n_params,), 0.07, dtype=torch.float64)
    theta[o.model.kernel.n_params] = 200.0
    tolerant = o.tolerant(theta)
    assert tolerant.looser is not None
    model = o.model.mv(theta)
    light = (model - o.model.background_image(theta)).abs()
    expected = likelihood.tolerance * light / o.noise.variance(model).sqrt()
    torch.testing.assert_close(tolerant.looser[o.use], expected[o.use])

    moved = (theta * 1.02).requires_grad_(True)
    loss = tolerant.loss(moved)
    (gradient,) = torch.autograd.grad(loss, moved)
    found = tolerant.evaluate(moved.detach())
    torch.testing.assert_close(found.loss, loss.detach())
    torch.testing.assert_close(found.gradient, gradient)
    assert float(found.loss) != pytest.approx(float(o.evaluate(moved.detach()).loss), abs=1.0)
    stacked = tolerant.as_stack().evaluate(moved.detach()[None])
    torch.testing.assert_close(stacked.loss[0], found.loss)


def test_a_likelihood_without_outliers_needs_no_tolerance():
    o = example_objective(CCDNoise(5.0), Gaussian())
    assert o.tolerant(torch.zeros(o.model.n_params, dtype=torch.float64)) is o


def test_loss_in_float32_agrees_with_float64():
    o = example_objective(CCDNoise(5.0), Huber())
    theta = torch.full((o.model.n_params,), 0.07, dtype=torch.float64)
    theta[15] = 200.0
    assert float(o.loss(theta.float())) == pytest.approx(float(o.loss(theta)), rel=1e-6)
