"""The linear image model against slow twins: eq 2 by loops, and the dense matrix A."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pytorchdia import DeltaKernel, PolynomialBackground
from pytorchdia.errors import ShapeError
from pytorchdia.image_model import ImageModel


def random_model(seed, shape, size, degree):
    rng = np.random.default_rng(seed)
    reference = torch.from_numpy(rng.normal(100.0, 30.0, shape))
    model = ImageModel(reference, DeltaKernel(size), PolynomialBackground(degree))
    theta = torch.from_numpy(rng.normal(size=model.n_params))
    return model, theta, rng


def model_by_loops(model, theta):
    """Eq 2 and eq 18, literally."""
    kernel = model.kernel_image(theta).numpy()
    coefficients = model.split(theta)[1].numpy()
    reference = model.reference.numpy()
    (h, w), (n_y, n_x) = model.shape, model.kernel.half_shape
    image = np.zeros((h, w))
    for i in range(n_y, h - n_y):
        for j in range(n_x, w - n_x):
            for dy in range(-n_y, n_y + 1):
                for dx in range(-n_x, n_x + 1):
                    image[i, j] += kernel[n_y + dy, n_x + dx] * reference[i + dy, j + dx]
            eta, xi = (j - (w - 1) / 2) / w, (i - (h - 1) / 2) / h
            for b, (m, n) in zip(coefficients, model.background.exponents, strict=True):
                image[i, j] += b * eta**m * xi**n
    return image


def dense_matrix(model):
    """A, one column for each parameter, restricted to nothing: (h w, p)."""
    unit = torch.eye(model.n_params, dtype=torch.float64)
    return torch.stack([model.mv(e).reshape(-1) for e in unit], dim=1)


SIZES = st.sampled_from([1, 3, 5, (3, 5), (5, 1), (1, 7), (7, 3)])
SHAPES = st.tuples(st.integers(8, 17), st.integers(8, 17))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), shape=SHAPES, size=SIZES, degree=st.integers(0, 3))
def test_model_equals_equation_2_by_loops(seed, shape, size, degree):
    model, theta, _ = random_model(seed, shape, size, degree)
    np.testing.assert_allclose(model.mv(theta).numpy(), model_by_loops(model, theta), atol=1e-10)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), shape=SHAPES, size=SIZES, degree=st.integers(0, 3))
def test_rmv_is_the_adjoint_of_mv(seed, shape, size, degree):
    model, theta, rng = random_model(seed, shape, size, degree)
    image = torch.from_numpy(rng.normal(size=shape))
    left, right = float((model.mv(theta) * image).sum()), float(theta @ model.rmv(image))
    assert left == pytest.approx(right, rel=1e-10, abs=1e-8)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), shape=SHAPES, size=SIZES, degree=st.integers(0, 2))
def test_gram_equals_the_dense_product(seed, shape, size, degree):
    model, _, rng = random_model(seed, shape, size, degree)
    weight = torch.from_numpy(rng.normal(size=shape))  # negative weights as well
    a = dense_matrix(model)
    dense = a.T @ (weight.reshape(-1, 1) * a)
    scale = float(dense.abs().max())
    np.testing.assert_allclose(model.gram(weight).numpy(), dense.numpy(), atol=1e-12 * scale)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), shape=SHAPES, size=SIZES, degree=st.integers(0, 2))
def test_gram_product_is_the_gram_times_a_vector(seed, shape, size, degree):
    model, theta, rng = random_model(seed, shape, size, degree)
    weight = torch.where(model.valid, torch.from_numpy(rng.normal(size=shape)), 0.0)
    expected = model.gram(weight) @ theta
    scale = float(expected.abs().max())
    np.testing.assert_allclose(
        model.gram_product(weight, theta).numpy(), expected.numpy(), atol=1e-9 * scale + 1e-9
    )


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), shape=SHAPES, size=SIZES, degree=st.integers(0, 2))
def test_gram_toeplitz_is_positive_and_close_to_the_gram_of_uniform_weights(
    seed, shape, size, degree
):
    model, theta, rng = random_model(seed, shape, size, degree)
    weight = torch.where(model.valid, torch.from_numpy(rng.uniform(0.5, 2, shape)), 0.0)
    toeplitz = model.gram_toeplitz(weight)
    np.testing.assert_allclose(toeplitz, toeplitz.T, rtol=1e-9, atol=1e-6)
    assert float(theta @ toeplitz @ theta) > 0
    assert float(toeplitz[-1, -1]) == pytest.approx(float(model.gram(weight)[-1, -1]))
    centre = model.kernel.n_params // 2  # no shift, no approximation
    assert float(toeplitz[centre, centre]) == pytest.approx(
        float(model.gram(weight)[centre, centre])
    )


def test_gram_by_small_blocks_equals_gram_at_once(monkeypatch):
    model, _, rng = random_model(5, (40, 31), (3, 5), 1)
    weight = torch.from_numpy(rng.uniform(size=(40, 31)))
    whole = model.gram(weight)
    monkeypatch.setattr("pytorchdia.image_model._GRAM_ELEMENTS", 31 * model.n_params * 3)
    torch.testing.assert_close(model.gram(weight), whole, rtol=1e-12, atol=0)


def test_float32_products_agree_with_float64():
    model, theta, rng = random_model(7, (64, 48), 5, 1)
    image = torch.from_numpy(rng.normal(size=(64, 48)))
    assert model.mv(theta.float()).dtype == torch.float32
    scale = float(model.mv(theta).abs().max())
    np.testing.assert_allclose(model.mv(theta.float()), model.mv(theta), atol=2e-6 * scale)
    exact = model.rmv(image)
    np.testing.assert_allclose(model.rmv(image.float()), exact, atol=2e-6 * float(exact.norm()))
    gram = model.gram(image**2)
    np.testing.assert_allclose(
        model.gram(image.float() ** 2), gram, atol=2e-6 * float(gram.abs().max())
    )


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), dy=st.integers(-2, 2), dx=st.integers(-3, 3))
def test_a_shifted_delta_shifts_the_reference(seed, dy, dx):
    model, _, _ = random_model(seed, (15, 18), (5, 7), 0)
    kernel = torch.zeros(5, 7, dtype=torch.float64)
    kernel[2 + dy, 3 + dx] = 1.0  # K_lm with l = dy, m = dx
    image = model.mv(torch.cat([kernel.reshape(-1), torch.zeros(1, dtype=torch.float64)]))
    expected = model.reference[2 + dy : 13 + dy, 3 + dx : 15 + dx]
    torch.testing.assert_close(image[2:13, 3:15], expected)


def test_only_pixels_that_the_kernel_can_reach_are_valid():
    model, _, _ = random_model(0, (20, 30), (5, 9), 0)
    assert int(model.valid.sum()) == (20 - 4) * (30 - 8)  # N_data of section 2.1
    assert not model.valid[:2].any()
    assert not model.valid[:, -4:].any()


def test_background_has_all_terms_in_normalised_coordinates():
    background = PolynomialBackground(3)
    assert background.n_params == 10
    assert set(background.exponents) == {(m, n) for m in range(4) for n in range(4 - m)}
    assert background.exponents[0] == (0, 0)
    unit = torch.eye(10, dtype=torch.float64)
    terms = background.image(unit, (7, 11))
    x_term = terms[background.exponents.index((1, 0))]
    y_term = terms[background.exponents.index((0, 1))]
    assert float(x_term[0, 10]) == pytest.approx(5 / 11)
    assert float(y_term[6, 0]) == pytest.approx(3 / 7)
    assert float(x_term[:, 5].abs().max()) == 0.0


def test_scale_gradient_is_one_for_each_kernel_pixel():
    model, theta, _ = random_model(1, (12, 12), (3, 5), 1)
    assert float(model.scale_gradient() @ theta) == pytest.approx(float(model.scale(theta)))


def test_a_kernel_larger_than_the_image_is_refused():
    with pytest.raises(ShapeError, match="9 x 9 kernel does not fit into an image of 8 x 20"):
        ImageModel(torch.zeros(8, 20), DeltaKernel(9), PolynomialBackground())


@pytest.mark.parametrize("size", [2, 0, -3, (3, 4), (5, -1)])
def test_even_or_odd_shaped_kernels_are_refused(size):
    with pytest.raises(ShapeError, match="odd positive side lengths"):
        DeltaKernel(size)
