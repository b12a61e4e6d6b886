"""The PSF of the reference and that of an epoch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import correlate, map_coordinates

from pytorchdia.errors import InputError
from pytorchdia.io import as_frame
from pytorchdia.simulate import Stars, render_gaussian, render_moffat
from pytorchdia.stars.catalogue import catalogue_from_list, find_stars
from pytorchdia.stars.psf import RegionalPSF, gaussian_psf
from pytorchdia.stars.psf_fit import fit_psf

from .conftest import asymmetric_kernel
from .season_field import REFERENCE_PSF, SHAPE, make_field, moffat_psf


@settings(max_examples=25, deadline=None)
@given(x=st.floats(-3, 3), y=st.floats(-3, 3), fwhm=st.floats(2.0, 8.0))
def test_stamps_sum_to_one_wherever_the_star_lies(x: float, y: float, fwhm: float) -> None:
    assert gaussian_psf(fwhm).at(x, y).sum() == pytest.approx(1.0, abs=2e-3)


def test_a_gaussian_is_that_of_the_simulation() -> None:
    fwhm = 3.0
    star = Stars(np.array([20.3]), np.array([19.6]), np.array([1.0]))
    truth = render_gaussian(star, (41, 41), fwhm / 2.3548200450309493)
    stamp = gaussian_psf(fwhm).stamps([20.3], [19.6], 20, ([20], [20]))[0]
    assert stamp == pytest.approx(truth, abs=2e-4 * truth.max())
    assert gaussian_psf(fwhm).fwhm == pytest.approx(fwhm, rel=0.01)


@pytest.mark.parametrize("fwhm", [1.2, 3.3, 6.0])
def test_stamps_are_the_cubic_spline_through_the_table(fwhm: float) -> None:
    rng = np.random.default_rng(5)
    psf = moffat_psf(fwhm)
    x, y = rng.uniform(0, 90, (2, 40))
    around = np.rint(x) + rng.integers(-3, 4, 40), np.rint(y)
    half, middle, last = psf.half + 2, len(psf.table) // 2, len(psf.table) - 1
    stamps = psf.stamps(x, y, half, around)
    for k, stamp in enumerate(stamps):
        dy, dx = np.mgrid[-half : half + 1, -half : half + 1].astype(float)
        at = [(dy + around[1][k] - y[k]), (dx + around[0][k] - x[k])]
        at = [v * psf.oversampling + middle for v in at]
        slow = map_coordinates(psf.table, at, order=3, mode="mirror")
        inside = np.logical_and(*((v >= 0) & (v <= last) for v in at))
        assert stamp == pytest.approx(np.where(inside, slow, 0.0), abs=1e-13)


@pytest.mark.parametrize(("x", "y"), [(30.0, 30.0), (30.4, 29.55), (29.5, 30.5)])
def test_the_convolved_psf_is_a_star_through_the_kernel_of_eq_2(x: float, y: float) -> None:
    psf, kernel = moffat_psf(3.0), asymmetric_kernel()
    star = np.zeros((61, 61))
    stamp = psf.at(x, y)
    iy, ix, half = round(y), round(x), psf.half
    star[iy - half : iy + half + 1, ix - half : ix + half + 1] = stamp
    truth = correlate(star, kernel / kernel.sum(), mode="constant")
    through = psf.convolved(kernel)
    cut = through.stamps([x], [y], 8, ([30], [30]))[0]
    assert cut == pytest.approx(truth[22:39, 22:39], abs=1e-6)  # of the ends of the table
    assert through.table.sum() / through.oversampling**2 == pytest.approx(1.0, abs=5e-3)


def test_kernels_that_are_none_are_refused() -> None:
    psf = gaussian_psf(3.0)
    with pytest.raises(InputError, match="two odd sides"):
        psf.convolved(np.ones((4, 5)))
    with pytest.raises(InputError, match="leave it out"):
        psf.convolved(-np.ones((3, 3)))
    with pytest.raises(InputError, match="leave it out"):
        psf.convolved(np.full((3, 3), np.nan))


def test_a_regional_psf_is_that_of_each_region() -> None:
    models = [gaussian_psf(3.0), gaussian_psf(5.0)]
    psf = RegionalPSF(models, lambda x, y: (x > 50).astype(np.int64))
    x, y = np.array([10.2, 80.7, 49.0]), np.array([5.0, 5.4, 5.1])
    stamps = psf.stamps(x, y, 6)
    for i, model in enumerate([models[0], models[1], models[0]]):
        assert np.array_equal(stamps[i], model.stamps(x[i], y[i], 6)[0])
    assert psf.half == models[1].half
    assert psf.fwhm == pytest.approx(4.0, rel=0.01)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()))


def test_the_psf_is_learnt_from_the_reference() -> None:
    field = make_field()
    one = Stars(np.array([20.3]), np.array([20.45]), np.array([1.0]))
    truth = render_moffat(one, (41, 41), **REFERENCE_PSF)
    stamp = field.psf.stamps([20.3], [20.45], 20, ([20], [20]))[0]
    assert overlap(stamp, truth) > 0.9999
    assert (stamp * truth).sum() / (stamp**2).sum() == pytest.approx(1.0, abs=0.01)
    assert field.psf.n_stars >= 20
    assert field.psf.findings == ()


def test_a_lopsided_psf_is_learnt_up_to_its_centre() -> None:
    field = make_field()
    rng = np.random.default_rng(8)
    shape = {"fwhm": 3.2, "ellipticity": 0.2, "angle": 60.0, "beta": 3.0, "coma": 0.12}
    clean = render_moffat(field.stars, SHAPE, **shape) + 300
    variance = clean / 10
    data = clean + rng.standard_normal(SHAPE) * np.sqrt(variance)
    frame = as_frame(data, variance=variance, saturation=np.inf)
    psf = fit_psf(frame, find_stars(frame))
    one = Stars(np.array([20.3]), np.array([20.45]), np.array([1.0]))
    truth = render_moffat(one, (41, 41), **shape)
    shifts = np.arange(-0.5, 0.51, 0.1)
    best = max(
        overlap(psf.stamps([20.3 + a], [20.45 + b], 20, ([20], [20]))[0], truth)
        for a in shifts
        for b in shifts
    )
    assert best > 0.999
    # The kind of formula it starts from cannot do that.
    assert overlap(moffat_psf(psf.fwhm).stamps([20.3], [20.45], 20)[0], truth) < 0.999


def test_undersampled_stars_are_learnt_too() -> None:
    field = make_field()
    rng = np.random.default_rng(9)
    clean = render_gaussian(field.stars, SHAPE, 0.7) + 300
    data = clean + rng.standard_normal(SHAPE) * np.sqrt(clean / 10)
    frame = as_frame(data, variance=clean / 10, saturation=np.inf)
    psf = fit_psf(frame, find_stars(frame))
    for x, y in ((20.0, 20.0), (20.5, 20.0), (19.8, 20.3)):
        one = Stars(np.array([x]), np.array([y]), np.array([1.0]))
        truth = render_gaussian(one, (41, 41), 0.7)
        assert overlap(psf.stamps([x], [y], 20, ([20], [20]))[0], truth) > 0.999


def test_few_stars_and_none_are_reported() -> None:
    field = make_field()
    bright = np.argsort(-field.stars.flux)[:3]
    few = catalogue_from_list(field.frame, x=field.stars.x[bright], y=field.stars.y[bright])
    psf = fit_psf(field.frame, few)
    assert [f.code for f in psf.findings] == ["psf-few-stars"]
    assert psf.fwhm == pytest.approx(3.2, rel=0.05)
    none = fit_psf(field.frame, few.chosen(np.zeros(3, dtype=bool)))
    assert [f.code for f in none.findings] == ["psf-assumed"]
    assert none.n_stars == 0
