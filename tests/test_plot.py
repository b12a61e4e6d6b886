"""The picture of a subtraction."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest
from matplotlib.image import imread

import pytorchdia as dia
from pytorchdia import plot
from pytorchdia.errors import WriteError

from .conftest import make_pair


@pytest.fixture(scope="module")
def drawn():
    made = make_pair(1)
    target = made.target.copy()
    target[20, 30] = np.nan
    frames = dia.as_frame(target, gain=1.0, read_noise=5.0), dia.as_frame(made.reference)
    return dia.subtract(*frames, kernel=dia.DeltaKernel((5, 7))), *frames


def test_five_panels_show_images_kernel_and_histogram(drawn):
    result = drawn[0]
    axes = {a.get_title().split(",")[0]: a for a in plot.draw(*drawn).axes}
    shown = axes["Difference in sigma (grey: no data)"].images[0].get_array()
    good = np.isfinite(result.variance)
    np.testing.assert_array_equal(np.ma.getmaskarray(shown), ~good)
    np.testing.assert_allclose(shown[good], (result.difference / result.error)[good])
    np.testing.assert_array_equal(axes["Kernel"].images[0].get_array(), result.kernel)
    assert axes["Kernel"].images[0].get_extent() == [-3.5, 3.5, -2.5, 2.5]
    heights = [
        p.get_height() for p in axes["Residuals of the fitted pixels (ends: beyond)"].patches
    ]
    assert sum(heights) == result.diagnostics.n_pixels
    assert bool(np.ma.getmaskarray(axes["Target I"].images[0].get_array())[20, 30])


def test_the_file_is_a_png_with_something_on_it(drawn, tmp_path):
    path = plot.save(*drawn, tmp_path / "a.png")
    image = imread(path)
    assert image.shape[0] > 500
    assert image[..., :3].std() > 0.05
    assert os.listdir(tmp_path) == ["a.png"]


def test_an_existing_picture_is_kept_unless_overwriting_is_allowed(drawn, tmp_path):
    path = tmp_path / "a.png"
    path.write_text("precious")
    with pytest.raises(WriteError, match="exists already"):
        plot.save(*drawn, path)
    assert path.read_text() == "precious"


def test_a_failing_write_leaves_nothing_and_the_older_picture_intact(drawn, tmp_path, monkeypatch):
    def fail(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "a.png"
    path.write_text("precious")
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(WriteError, match=r"a.png could not be written \(No space left"):
        plot.save(*drawn, path, overwrite=True)
    assert os.listdir(tmp_path) == ["a.png"]
    assert path.read_text() == "precious"
