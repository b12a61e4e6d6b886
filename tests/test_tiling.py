"""Tiles: they cover a frame once, and products by tiles are those of the whole frame."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pytorchdia import DeltaKernel, PolynomialBackground, tiling
from pytorchdia.correlate import Correlator
from pytorchdia.image_model import ImageModel
from pytorchdia.tiling import Cut, Tiling


@pytest.fixture(autouse=True)
def many_small_tiles(monkeypatch):
    monkeypatch.setattr(tiling, "_SHORTEST", 12)
    monkeypatch.setattr(tiling, "_LONGEST", 24)
    monkeypatch.setattr("pytorchdia.correlate.elements_at_a_time", lambda _: 5 * 16 * 16)


SHAPES = st.tuples(st.integers(9, 70), st.integers(9, 70))
HALVES = st.tuples(st.integers(0, 4), st.integers(0, 4))
ALL = slice(None)


@settings(max_examples=50, deadline=None)
@given(shape=SHAPES, half=HALVES)
def test_every_valid_pixel_belongs_to_one_tile(shape, half):
    tiles = Tiling(shape, half)
    image = torch.arange(1.0, 1 + shape[0] * shape[1]).reshape(shape)
    cut = tiles.cut(image, ALL)
    owned = tiles.disown(torch.ones_like(cut), ALL)
    mine = cut[owned == 1]
    inner = image[half[0] : shape[0] - half[0], half[1] : shape[1] - half[1]]
    assert sorted(mine.tolist()) == inner.reshape(-1).tolist()
    back = torch.zeros(shape)
    tiles.paste(cut, ALL, back)
    assert torch.equal(back[half[0] : shape[0] - half[0], half[1] : shape[1] - half[1]], inner)
    assert float(back.sum()) == float(inner.sum())


def test_chunks_hold_all_tiles_in_order():
    tiles = Tiling((70, 60), (2, 3))
    chunks = tiles.chunks(3 * 16 * 16)
    assert len(chunks) > 3
    assert [i for c in chunks for i in range(len(tiles))[c]] == list(range(len(tiles)))


def test_a_cut_never_leaves_the_axis():
    for length in (20, 33, 64, 200):
        for half in (0, 1, 4, 9):
            cut = Cut.of(length, half)
            assert cut.starts[0] == 0
            assert cut.starts[-1] + cut.core + cut.halo == length
            assert cut.fft >= cut.core + cut.halo


@pytest.mark.parametrize("keep", [0, 10**9])
@pytest.mark.parametrize(("shape", "size", "degree"), [((61, 75), (5, 9), 2), ((40, 90), 7, 0)])
def test_products_by_tiles_equal_those_of_the_whole_frame(shape, size, degree, keep):
    rng = np.random.default_rng(1)
    reference = torch.from_numpy(rng.normal(50.0, 10.0, shape))
    model = ImageModel(reference, DeltaKernel(size), PolynomialBackground(degree), keep)
    assert len(model.chunks) > 2
    theta = torch.from_numpy(rng.normal(size=model.n_params))
    torch.testing.assert_close(model.mv(theta), model.mv_direct(theta), rtol=1e-12, atol=1e-9)
    image = torch.from_numpy(rng.normal(size=shape))
    adjoint = float((model.mv_direct(theta) * image).sum())
    assert float(theta @ model.rmv(image)) == pytest.approx(adjoint, rel=1e-11)
    weight = torch.where(model.valid, torch.from_numpy(rng.uniform(0.5, 2.0, shape)), 0.0)
    tiled = [model.padded_part(weight, i) for i in range(len(model.chunks))]
    assert torch.equal(model.assembled(tiled), weight)
    expected = model.gram(weight) @ theta
    for form in (weight, tiled):
        torch.testing.assert_close(model.gram_product(form, theta), expected, rtol=1e-10, atol=1e-7)


def test_a_stack_of_parameters_and_references_gives_what_a_loop_gives():
    rng = np.random.default_rng(2)
    references = torch.from_numpy(rng.normal(50.0, 10.0, (3, 40, 50)))
    kernel, background = DeltaKernel((3, 5)), PolynomialBackground(1)
    model = ImageModel(references, kernel, background)
    shared = ImageModel(references[0], kernel, background)
    theta = torch.from_numpy(rng.normal(size=(3, model.n_params)))
    images = torch.from_numpy(rng.normal(size=(3, 40, 50)))
    for i in range(3):
        one = ImageModel(references[i], kernel, background)
        torch.testing.assert_close(model.mv(theta)[i], one.mv(theta[i]))
        torch.testing.assert_close(model.rmv(images)[i], one.rmv(images[i]))
        torch.testing.assert_close(shared.mv(theta)[i], shared.mv(theta[i]))
        weight = images[i] ** 2
        torch.testing.assert_close(model.gram(images**2)[i], one.gram(weight))
        torch.testing.assert_close(
            model.gram_toeplitz(images**2)[i], one.gram_toeplitz(weight), rtol=1e-9, atol=1e-6
        )


def test_transforms_are_kept_as_far_as_memory_goes():
    image = torch.ones(60, 60)
    kernel = torch.ones(5, 5)
    results = []
    for keep in (0, 6000, 10**9):
        correlator = Correlator(image, (2, 2), keep)
        spectrum = correlator.kernel_spectrum(kernel)
        results.append([correlator.forward(spectrum, t) for t in correlator.chunks])
        held = sum(s.numel() * s.element_size() for s in correlator._kept.values())
        assert held <= keep
        assert (held > 0) == (keep > 0)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_the_toeplitz_matrix_by_tiles_has_the_exact_diagonal_and_is_close():
    rng = np.random.default_rng(3)
    reference = torch.from_numpy(rng.normal(50.0, 10.0, (50, 61)))
    model = ImageModel(reference, DeltaKernel((5, 3)), PolynomialBackground(1))
    weight = torch.where(model.valid, torch.from_numpy(rng.uniform(0.5, 2.0, (50, 61))), 0.0)
    gram, close = model.gram(weight), model.gram_toeplitz(weight)
    torch.testing.assert_close(close.diagonal(), gram.diagonal(), rtol=1e-10, atol=1e-9)
    assert float((close - gram).abs().max()) < 0.2 * float(gram.abs().max())
    assert float(torch.linalg.eigvalsh(close).min()) > 0.0
    some = torch.randperm(50 * 61)[:200]
    some = some[weight.reshape(-1)[some] > 0]
    only = torch.zeros_like(weight).reshape(-1)
    only[some] = weight.reshape(-1)[some]
    torch.testing.assert_close(
        model.gram_of_pixels(weight, some), model.gram(only.reshape(50, 61)), rtol=1e-10, atol=1e-6
    )
