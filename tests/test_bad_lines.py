"""Columns and rows that no mask shows are found, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from pytorchdia.frame import Flag
from pytorchdia.io import as_frame
from pytorchdia.preparation.bad_lines import find_bad_lines, without_bad_lines
from pytorchdia.simulate import Stars, render_gaussian

SHAPE = (240, 300)


def image(seed: int = 1, stars: int = 150) -> np.ndarray:
    rng = np.random.default_rng(seed)
    field = Stars(
        rng.uniform(0, SHAPE[1], stars), rng.uniform(0, SHAPE[0], stars),
        10 ** rng.uniform(3, 5.3, stars),
    )  # fmt: skip
    clean = 400.0 + render_gaussian(field, SHAPE, 1.6)
    return clean + np.sqrt(clean) * rng.standard_normal(SHAPE)


def found(data: np.ndarray) -> np.ndarray:
    return find_bad_lines(as_frame(data, saturation=np.inf))


@pytest.mark.parametrize("seed", range(6))
def test_a_crowded_field_has_none(seed: int) -> None:
    assert not found(image(seed)).any()


def test_weak_and_hot_columns_and_rows_are_found() -> None:
    data = image()
    data[:, 77] *= 0.9  # 40 ADU, two sigma of the sky
    data[:, 200:202] += 25.0  # two side by side
    data[31] -= 25.0
    expected = np.zeros(SHAPE, bool)
    expected[:, [77, 200, 201]] = True
    expected[31] = True
    np.testing.assert_array_equal(found(data), expected)


def test_a_column_that_is_bad_from_a_trap_on() -> None:
    rng = np.random.default_rng(4)
    data = 400.0 + 20.0 * rng.standard_normal((480, 200))
    data[300:, 60] -= 60.0
    bad = found(data)
    assert bad[360:, 60].all()
    bad[:, 60] = False
    assert not bad.any()


def test_a_pattern_of_the_readout_is_left_alone() -> None:
    data = image()
    data[:, ::4] += 30.0
    assert not found(data).any()


def test_masked_pixels_and_nan_do_not_count() -> None:
    data = image()
    data[:, 10] = np.nan
    data[50:60] = 60000.0
    mask = np.zeros(SHAPE, bool)
    mask[50:60] = True
    assert not find_bad_lines(as_frame(data, mask=mask, saturation=np.inf)).any()
    data[:, 120] -= 30.0
    bad = find_bad_lines(as_frame(data, mask=mask, saturation=np.inf))
    assert bad[:, 120].all()
    assert bad.sum() == SHAPE[0]


@pytest.mark.parametrize("shape", [(5, 400), (400, 5), (20, 20)])
def test_small_and_flat_frames(shape: tuple[int, int]) -> None:
    assert not found(np.full(shape, 7.0)).any()


def test_they_are_masked_with_a_finding() -> None:
    data = image()
    frame = as_frame(data, saturation=np.inf)
    assert without_bad_lines(frame) is frame
    data[:, 77] -= 40.0
    masked = without_bad_lines(as_frame(data, saturation=np.inf))
    assert (masked.flags[:, 77] == int(Flag.MASKED)).all()
    assert [f.code for f in masked.findings] == ["bad-lines"]
    assert "1 whole columns" in masked.findings[0].message
