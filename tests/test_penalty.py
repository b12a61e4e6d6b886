"""The Laplacian penalty (eq 20-21)."""

import numpy as np
import pytest
import torch

from pytorchdia import CCDNoise, DeltaKernel, Gaussian, InputError, LaplacianPenalty
from pytorchdia.background import PolynomialBackground
from pytorchdia.penalty import laplacian
from pytorchdia.solvers import Newton
from pytorchdia.testing import example_objective


def laplacian_by_loops(ky, kx):
    """Eq 21, literally, for the kernel pixels."""
    pixels = [(i, j) for i in range(ky) for j in range(kx)]
    matrix = np.zeros((len(pixels), len(pixels)))
    for u, (i, j) in enumerate(pixels):
        for v, (y, x) in enumerate(pixels):
            if abs(i - y) + abs(j - x) == 1:
                matrix[u, v] = -1
                matrix[u, u] += 1
    return matrix


@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (5, 3), (1, 7), (7, 5)])
def test_laplacian_is_equation_21(shape):
    np.testing.assert_array_equal(laplacian(shape).numpy(), laplacian_by_loops(*shape))


def test_a_flat_kernel_costs_nothing_and_a_rough_one_the_squares_of_its_steps():
    matrix = LaplacianPenalty(0.5).matrix(DeltaKernel((3, 5)))
    flat = torch.ones(15, dtype=torch.float64)
    assert float(flat @ matrix @ flat) == 0.0
    rough = torch.zeros(15, dtype=torch.float64)
    rough[7] = 2.0  # four neighbours, a step of 2 each
    assert float(rough @ matrix @ rough) == pytest.approx(0.5 * 4 * 2.0**2)


def test_objective_with_penalty_is_equation_20_and_its_derivatives_are_exact():
    plain = example_objective(CCDNoise(5.0), Gaussian())
    penalised = type(plain)(
        plain.model, plain.target, plain.use, plain.noise, plain.likelihood, LaplacianPenalty(0.3)
    )
    theta = torch.linspace(-0.2, 0.4, plain.model.n_params, dtype=torch.float64)
    theta[15:] = torch.tensor([300.0, 1.0, 2.0])
    k = theta[:15]
    extra = 0.3 * plain.n_data * float(k @ laplacian((3, 5)) @ k)
    assert float(penalised.loss(theta)) == pytest.approx(float(plain.loss(theta)) + extra)
    evaluation = penalised.evaluate(theta)
    torch.testing.assert_close(
        evaluation.gradient,
        torch.autograd.functional.jacobian(penalised.loss, theta), rtol=1e-9, atol=1e-6,
    )  # fmt: skip
    torch.testing.assert_close(
        penalised.hessian(evaluation.curvature),
        torch.autograd.functional.hessian(penalised.loss, theta), rtol=1e-9, atol=1e-6,
    )  # fmt: skip


def test_a_strong_penalty_flattens_the_kernel():
    rough = example_objective(CCDNoise(5.0), Gaussian(), background=PolynomialBackground(0))
    smooth = type(rough)(
        rough.model, rough.target, rough.use, rough.noise, rough.likelihood, LaplacianPenalty(1e6)
    )
    kernel = Newton().solve(smooth).theta[:15]
    assert float(kernel.std()) < 1e-3 * float(kernel.mean().abs())


def test_a_negative_strength_is_refused():
    with pytest.raises(InputError, match="at least 0, got -1"):
        LaplacianPenalty(-1.0)
