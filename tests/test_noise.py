"""The noise models (eq 6 and 7)."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pytorchdia import CCDNoise, EMCCDNoise, FixedVariance
from pytorchdia.elementwise import derivatives
from pytorchdia.errors import NoiseModelError
from pytorchdia.testing import check_noise

SHAPE = (24, 20)
FLAT = np.random.default_rng(1).uniform(0.7, 1.3, SHAPE)
MODELS = {
    "ccd": CCDNoise(5.0),
    "ccd with gain and flat": CCDNoise(3.0, 1.9, FLAT),
    "ccd without read noise": CCDNoise(0.0, 2.0),
    "ccd with offset": CCDNoise(3.0, 1.5, offset=800.0),
    "emccd": EMCCDNoise(25.8 / 300),
    "emccd with flat": EMCCDNoise(25.8 / 300, 2.0, FLAT),
    "fixed image": FixedVariance(40.0 + FLAT),
    "fixed number": FixedVariance(30.0),
    "sum": CCDNoise(5.0) + FixedVariance(FLAT),
}


@pytest.mark.parametrize("noise", MODELS.values(), ids=MODELS)
def test_contract(noise):
    check_noise(noise, SHAPE)


@given(
    m=st.floats(1.0, 1e5), read=st.floats(0, 50), gain=st.floats(1.0, 10), flat=st.floats(0.1, 3)
)
def test_ccd_noise_is_equation_6(m, read, gain, flat):
    model = torch.full((2, 3), m, dtype=torch.float64)
    variance = CCDNoise(read, gain, np.full((2, 3), flat)).variance(model)
    expected = read**2 / flat**2 + m / (gain * flat)
    np.testing.assert_allclose(variance.numpy(), expected, rtol=1e-12)


@given(m=st.floats(20.0, 1e5), excess=st.floats(1, 3), flat=st.floats(0.1, 3))
def test_emccd_noise_is_equation_7(m, excess, flat):
    gain = 25.8 / 300
    model = torch.full((2, 3), m, dtype=torch.float64)
    variance = EMCCDNoise(gain, excess, np.full((2, 3), flat)).variance(model)
    np.testing.assert_allclose(variance.numpy(), excess * m / (gain * flat), rtol=1e-12)


def test_fewer_than_one_photoelectron_counts_as_one():
    model = torch.tensor([[-1e6, -1.0, 0.0, 0.4]], dtype=torch.float64)
    np.testing.assert_allclose(CCDNoise(3.0, 2.0).variance(model).numpy(), 9.0 + 0.25)
    np.testing.assert_allclose(EMCCDNoise(2.0).variance(model).numpy(), 2 * 0.25)


def test_the_offset_restores_the_noise_of_a_subtracted_sky():
    model = torch.tensor([[100.0, 250.0]], dtype=torch.float64)
    whole = CCDNoise(4.0, 1.5).variance(model + 500.0)
    torch.testing.assert_close(CCDNoise(4.0, 1.5, offset=500.0).variance(model), whole)


def test_variances_add_up():
    model = torch.full((2, 2), 100.0, dtype=torch.float64)
    total = CCDNoise(3.0) + FixedVariance(7.0) + EMCCDNoise(1.0)
    np.testing.assert_allclose(total.variance(model).numpy(), 109.0 + 7.0 + 200.0)


def test_precision_follows_the_model():
    noise = CCDNoise(3.0, 2.0, FLAT) + FixedVariance(FLAT)
    assert noise.variance(torch.zeros(SHAPE, dtype=torch.float32)).dtype == torch.float32


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: CCDNoise(-1.0), "read_noise .* at least 0, got -1"),
        (lambda: CCDNoise(1.0, 0.0), "gain .* greater than 0, got 0"),
        (lambda: CCDNoise(1.0, float("nan")), "gain .* finite"),
        (lambda: CCDNoise(1.0, 1.0, np.zeros((2, 2))), "flat has 4 of 4 values"),
        (lambda: EMCCDNoise(0.0), "total_gain"),
        (lambda: FixedVariance(0.0), "variance .* greater than 0"),
        (lambda: FixedVariance(np.array([[1.0, -2.0]])), "1 of 2 .* least is -2"),
        (lambda: FixedVariance(np.array([[1.0, np.nan]])), "variance has 1 of 2"),
    ],
)
def test_numbers_out_of_range_are_refused(make, words):
    with pytest.raises(NoiseModelError, match=words):
        make()


def test_a_flat_of_another_shape_is_refused():
    with pytest.raises(NoiseModelError, match=r"\(24, 20\).*\(5, 5\)"):
        CCDNoise(1.0, 1.0, FLAT).variance(torch.zeros(5, 5))


@pytest.mark.parametrize(
    "noise",
    [
        CCDNoise(5.0, 1.7, offset=3.0),
        CCDNoise(5.0, 1.7, flat=np.linspace(0.8, 1.2, 12).reshape(3, 4)),
        FixedVariance(np.linspace(1.0, 9.0, 12).reshape(3, 4)),
        CCDNoise(5.0) + FixedVariance(2.0),
        CCDNoise(5.0) + EMCCDNoise(0.1),
    ],
)
def test_derivatives_written_out_are_those_of_automatic_differentiation(noise):
    model = torch.linspace(-20.0, 60.0, 12, dtype=torch.float64).reshape(3, 4)
    expected = derivatives(noise.variance, model, 2)
    for mine, theirs in zip(noise.derivatives(model, 2), expected, strict=True):
        mine, theirs = (torch.as_tensor(t, dtype=torch.float64) for t in (mine, theirs))
        torch.testing.assert_close(mine.expand(3, 4), theirs.expand(3, 4), rtol=1e-14, atol=0.0)
