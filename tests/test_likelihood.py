"""The pixel likelihoods (eq 8, 11-14)."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pytorchdia import Gaussian, Huber, InputError, StudentT
from pytorchdia.elementwise import derivatives
from pytorchdia.testing import check_likelihood

LIKELIHOODS = [
    Gaussian(),
    Huber(),
    Huber(0.5),
    Huber(4.0),
    StudentT(),
    StudentT(1.0),
    StudentT(30.0),
]


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=repr)
def test_contract(likelihood):
    check_likelihood(likelihood)


def test_gaussian_nll_is_the_normal_log_density():
    residual = torch.tensor([1.5, -0.3, 0.0], dtype=torch.float64)
    variance = torch.tensor([4.0, 0.25, 9.0], dtype=torch.float64)
    expected = -torch.distributions.Normal(0.0, variance.sqrt()).log_prob(residual)
    torch.testing.assert_close(Gaussian().nll(residual, variance), expected)


def test_student_t_nll_is_the_student_log_density():
    residual = torch.tensor([1.5, -7.0, 0.0], dtype=torch.float64)
    variance = torch.tensor([4.0, 0.25, 9.0], dtype=torch.float64)
    reference = torch.distributions.StudentT(3.5, 0.0, variance.sqrt())
    expected = -reference.log_prob(residual)
    torch.testing.assert_close(StudentT(3.5).nll(residual, variance), expected)


@given(c=st.floats(0.2, 6.0), z=st.floats(-50, 50))
def test_huber_is_quadratic_inside_and_linear_outside(c, z):
    rho = float(Huber(c).rho(torch.tensor(z, dtype=torch.float64)))
    expected = 0.5 * z**2 if abs(z) <= c else c * (abs(z) - 0.5 * c)
    assert rho == pytest.approx(expected, rel=1e-12)


def test_huber_loss_and_slope_are_continuous_at_c():
    c = 1.345
    z = torch.tensor([c - 1e-9, c + 1e-9], dtype=torch.float64, requires_grad=True)
    rho = Huber(c).rho(z)
    (slope,) = torch.autograd.grad(rho.sum(), z)
    assert float((rho[1] - rho[0]).detach()) == pytest.approx(2e-9 * c, rel=1e-3)
    assert float(slope[1]) == pytest.approx(float(slope[0]), abs=1e-8)


def test_huber_becomes_gaussian_as_c_grows():
    assert Huber(20.0).log_norm == pytest.approx(0.5 * math.log(2 * math.pi), rel=1e-14)
    z = torch.linspace(-10, 10, 51, dtype=torch.float64)
    torch.testing.assert_close(Huber(20.0).rho(z), Gaussian().rho(z))


def test_student_becomes_gaussian_as_nu_grows():
    z = torch.linspace(-5, 5, 51, dtype=torch.float64)
    torch.testing.assert_close(StudentT(1e7).rho(z), Gaussian().rho(z), rtol=1e-5, atol=1e-5)
    assert StudentT(1e7).log_norm == pytest.approx(Gaussian().log_norm, abs=1e-6)


@pytest.mark.parametrize("make", [lambda: Huber(0.0), lambda: Huber(-1.0), lambda: StudentT(0.0)])
def test_thresholds_out_of_range_are_refused(make):
    with pytest.raises(InputError, match="needs a finite"):
        make()


@pytest.mark.parametrize("make", [lambda: Huber(tolerance=-0.1), lambda: StudentT(tolerance=1.0)])
def test_tolerances_out_of_range_are_refused(make):
    with pytest.raises(InputError, match="share of the light"):
        make()


@pytest.mark.parametrize(
    ("likelihood", "wider"),
    [
        (Huber(1.0), lambda by: Huber(1.0 + by)),
        (StudentT(3.0), lambda by: StudentT(3.0 + by**2)),
        (Gaussian(), lambda by: Gaussian()),
    ],
)
def test_loosened_pixel_by_pixel(likelihood, wider):
    by = torch.tensor([0.0, 0.5, 20.0], dtype=torch.float64)
    residual = torch.tensor([4.0, -1.4, 9.0], dtype=torch.float64)
    variance = torch.tensor([1.0, 4.0, 0.5], dtype=torch.float64)
    found = likelihood.loosened(by)
    values = found.nll(residual, variance)
    derivatives_found = found.derivatives(residual, 2)
    for i in range(3):
        one = wider(float(by[i]))
        assert float(values[i]) == pytest.approx(float(one.nll(residual[i], variance[i])))
        for mine, theirs in zip(derivatives_found, one.derivatives(residual[i], 2), strict=True):
            mine = torch.as_tensor(mine, dtype=torch.float64).expand(3)[i]
            assert float(mine) == pytest.approx(float(theirs))


@pytest.mark.parametrize("likelihood", [Gaussian(), Huber(), StudentT()])
def test_derivatives_written_out_are_those_of_automatic_differentiation(likelihood):
    z = torch.linspace(-4.0, 5.0, 12, dtype=torch.float64)
    expected = derivatives(likelihood.rho, z, 2)
    for mine, theirs in zip(likelihood.derivatives(z, 2), expected, strict=True):
        mine, theirs = (torch.as_tensor(t, dtype=torch.float64).expand(12) for t in (mine, theirs))
        torch.testing.assert_close(mine, theirs, rtol=1e-14, atol=0.0)
