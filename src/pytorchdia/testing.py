"""Contracts for authors of plug-ins: one call tells whether a new likelihood or noise model works.

Each check raises an AssertionError that says what is wrong.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.integrate import quad

from .background import PolynomialBackground
from .image_model import ImageModel
from .kernel import DeltaKernel
from .likelihood import Gaussian, Likelihood
from .noise import CCDNoise, NoiseModel
from .objective import Objective
from .simulate import simulate_pair
from .solvers import Newton

__all__ = ["check_likelihood", "check_noise", "check_objective", "example_objective"]


def check_likelihood(likelihood: Likelihood) -> None:
    """Check a likelihood: rho, its constant, its derivatives, and a fit.

    Raises
    ------
    AssertionError
        rho(0) is not 0, or rho is negative; exp(-rho - log_norm) does not integrate to one; the
        derivatives are not those of automatic differentiation of the whole loss; or Newton does
        not converge.
    """
    z = torch.linspace(-30.0, 30.0, 241, dtype=torch.float64)
    rho = likelihood.rho(z)
    assert rho.shape == z.shape, "rho must keep the shape of z: it works on each element by itself."
    assert torch.isfinite(rho).all(), "rho must be finite for |z| <= 30."
    assert float(likelihood.rho(torch.zeros(1, dtype=torch.float64))) == 0.0, "rho(0) must be 0."
    assert (rho >= 0).all(), "rho must not be negative."
    total = _integral(likelihood)
    assert abs(total - 1.0) < 1e-6, (
        f"exp(-rho(z) - log_norm) integrates to {total:.8g}, not to one: check log_norm."
    )
    check_objective(CCDNoise(5.0), likelihood)


def check_noise(noise: NoiseModel, shape: tuple[int, int] = (24, 20)) -> None:
    """Check a noise model: positive and finite everywhere, pixel by pixel, and fit for a fit.

    Parameters
    ----------
    noise : NoiseModel
    shape : (int, int)
        Size of the images to try, (h, w): that of the model's own flat-field or variance image.

    Raises
    ------
    AssertionError
        A variance is not positive and finite, depends on another pixel's value, or the derivatives
        of the loss are wrong.
    """
    rng = np.random.default_rng(0)
    for low, high in ((-1e3, 1e3), (0.0, 1e5)):
        model = torch.from_numpy(rng.uniform(low, high, shape))
        variance = noise.variance(model)
        assert variance.shape == model.shape, "variance must keep the shape of the model."
        good = torch.isfinite(variance) & (variance > 0)
        assert good.all(), (
            f"{int((~good).sum())} of {good.numel()} variances are not positive and finite for "
            f"models between {low:g} and {high:g} ADU: state a floor."
        )
        changed = model.clone()
        changed[0, 0] += 100.0
        others = noise.variance(changed)
        others[0, 0] = variance[0, 0]
        assert torch.equal(others, variance), "a pixel's variance must depend on that pixel alone."
    check_objective(noise, Gaussian(), shape)


def check_objective(
    noise: NoiseModel, likelihood: Likelihood, shape: tuple[int, int] = (24, 20)
) -> None:
    """Check that gradient and Hessian equal those of automatic differentiation through everything.

    Raises
    ------
    AssertionError
        They differ, or Newton does not reach its goal within 20 steps.
    """
    objective = example_objective(noise, likelihood, shape)
    solution = Newton(max_steps=20).solve(objective)
    assert solution.status.ok, f"Newton did not converge: {solution.status.value}"
    generator = torch.Generator().manual_seed(0)
    noise_of_theta = torch.randn(solution.theta.shape, generator=generator, dtype=torch.float64)
    theta = solution.theta * (1.0 + 0.01 * noise_of_theta)
    evaluation = objective.evaluate(theta)
    assert evaluation.curvature is not None
    full = torch.autograd.functional
    gradient = full.jacobian(objective.loss, theta)  # type: ignore[no-untyped-call]
    hessian = full.hessian(objective.loss, theta)  # type: ignore[no-untyped-call]
    for name, ours, theirs in (
        ("gradient", evaluation.gradient, gradient),
        ("Hessian", objective.hessian(evaluation.curvature), hessian),
    ):
        error = float((ours - theirs).abs().max() / theirs.abs().max())
        assert error < 1e-9, (
            f"The {name} differs from automatic differentiation by {error:.1e} of its largest "
            "element: rho and variance must act on each element by itself, without detach()."
        )


def example_objective(
    noise: NoiseModel,
    likelihood: Likelihood,
    shape: tuple[int, int] = (24, 20),
    kernel: DeltaKernel = DeltaKernel((3, 5)),
    background: PolynomialBackground = PolynomialBackground(1),
) -> Objective:
    """A small simulated pair with two masked pixels as an objective, float64."""
    pair = simulate_pair(3, shape, phi_r=1.0, phi_k=0.8)
    reference = torch.from_numpy(pair.reference - np.median(pair.reference))
    model = ImageModel(reference, kernel, background)
    use = model.valid.clone()
    use[shape[0] // 2, shape[1] // 2 : shape[1] // 2 + 2] = False
    return Objective(model, torch.from_numpy(pair.target), use, noise, likelihood)


def _integral(likelihood: Likelihood) -> float:
    """The integral of exp(-rho - log_norm) over the whole line."""

    def density(z: float) -> float:
        rho = float(likelihood.rho(torch.tensor(z, dtype=torch.float64)))
        return math.exp(-rho - likelihood.log_norm)

    inner = sum(quad(density, a, a + 5.0)[0] for a in np.arange(-50.0, 50.0, 5.0))
    outer = quad(density, 50.0, math.inf)[0] + quad(density, -math.inf, -50.0)[0]
    return float(inner + outer)
