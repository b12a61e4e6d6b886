"""Fluxes of all stars at once: exact errors, neighbours, outliers, flags, pulls."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate

import pytorchdia as dia
from pytorchdia.errors import InputError, ShapeError
from pytorchdia.frame import Flag
from pytorchdia.io import as_frame
from pytorchdia.metrics import least_flux_error
from pytorchdia.simulate import Stars, render_gaussian, render_moffat
from pytorchdia.stars.catalogue import catalogue_from_list, variance_of
from pytorchdia.stars.photometry import (
    FluxFlag,
    find_hidden_stars,
    magnitudes,
    measure_fluxes,
    reference_fluxes,
    refine_positions,
    target_variance,
)
from pytorchdia.stars.psf import gaussian_psf
from pytorchdia.stars.scene import Scene, solve_scene

from .conftest import asymmetric_kernel
from .season_field import (
    GAIN,
    READ_NOISE,
    SHAPE,
    make_field,
    matched,
    moffat_psf,
    noise_variance,
)

FWHM = 3.0
SIGMA = FWHM / 2.3548200450309493


def spread(z) -> float:
    z = np.ravel(z)
    return float(1.4826 * np.median(np.abs(z - np.median(z))))


def scene(x, y, flux, shape=(60, 70), sky=0.0):
    stars = Stars(*(np.asarray(v, dtype=float) for v in (x, y, flux)))
    return render_gaussian(stars, shape, SIGMA) + sky


def test_all_stars_at_once_is_the_dense_least_squares_fit() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.uniform(3, 66, 25), rng.uniform(3, 56, 25)  # many overlap
    variance = rng.uniform(1.0, 9.0, (60, 70))
    image = scene(x, y, rng.uniform(-200, 200, 25)) + rng.standard_normal((60, 70)) * variance**0.5
    variance[30, 20:30] = np.inf
    psf = gaussian_psf(FWHM)
    got = measure_fluxes(
        image, variance, None, psf, x, y, scale=0.7, sky_spacing=None, robust=False
    )
    half, columns = psf.half, np.zeros((60 + 200, 70 + 200, 25))
    for i, stamp in enumerate(psf.stamps(x, y)):
        iy, ix = round(y[i]) + 100, round(x[i]) + 100
        columns[iy - half : iy + half + 1, ix - half : ix + half + 1, i] = stamp
    dense = columns[100:160, 100:170].reshape(-1, 25)
    root = np.where(np.isfinite(variance), variance, np.inf).ravel() ** -0.5
    covariance = np.linalg.inv((dense * root[:, None]).T @ (dense * root[:, None]))
    flux = covariance @ (dense.T @ (root**2 * image.ravel()))
    assert got.error == pytest.approx(np.sqrt(np.diag(covariance)) / 0.7, rel=1e-4)
    assert np.abs(got.flux - flux / 0.7).max() < 1e-3 * got.error.min()


def test_errors_of_a_large_crowd_are_those_of_the_whole_covariance(monkeypatch) -> None:
    rng = np.random.default_rng(4)
    x, y = rng.uniform(0, 199, 700), rng.uniform(0, 149, 700)
    image, variance = rng.standard_normal((150, 200)), np.ones((150, 200))
    by_cells = measure_fluxes(image, variance, None, gaussian_psf(FWHM), x, y)
    monkeypatch.setattr("pytorchdia.stars.scene._DENSE", 10_000)
    exact = measure_fluxes(image, variance, None, gaussian_psf(FWHM), x, y)
    assert by_cells.flux == pytest.approx(exact.flux)
    assert np.median(by_cells.error / exact.error) == pytest.approx(1.0, abs=0.01)
    assert (by_cells.error / exact.error).min() > 0.9


def test_a_crowd_is_solved_to_the_end_however_many_steps_it_takes() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.uniform(0, 130, (2, 800))  # one in 21 pixels, of which a PSF covers 20 and more
    psf, root = gaussian_psf(5.0), 0.1
    laid = Scene.of(np.zeros((130, 130)), np.full((130, 130), root**2), psf, x, y, 32.0)
    image = (laid.stars @ 10 ** rng.uniform(2.5, 4.5, 800)).reshape(130, 130)
    image += rng.standard_normal(image.shape) / root
    variance = np.full(image.shape, root**-2)
    got = measure_fluxes(image, variance, None, psf, x, y, sky_spacing=32.0, robust=False)
    dense = root * np.hstack([laid.stars.toarray(), laid.sky.toarray()])
    gram = dense.T @ dense
    gram += 1e-6 * np.diag(np.diag(gram))  # the ridge of the fit
    flux = np.linalg.solve(gram, dense.T @ (root * image.ravel()))[:800]
    assert (np.abs(got.flux - flux) / got.error).max() < 1e-3


def test_a_fit_that_is_factored_is_the_one_that_takes_steps(monkeypatch) -> None:
    field = make_field()
    psf, (x, y) = gaussian_psf(FWHM), (field.stars.x, field.stars.y)
    images = field.frame.data.numpy(), variance_of(field.frame), None
    by_steps = measure_fluxes(*images, psf, x, y)
    monkeypatch.setattr("pytorchdia.stars.scene._MOST_STEPS", 1)
    factored = measure_fluxes(*images, psf, x, y)
    assert not np.array_equal(factored.flux, by_steps.flux)
    assert (np.abs(factored.flux - by_steps.flux) / by_steps.error).max() < 1e-3


def test_positions_move_by_the_least_squares_step_of_each_star() -> None:
    rng = np.random.default_rng(6)
    x, y = np.array([20.3, 33.1, 45.0, 68.4]), np.array([20.2, 24.8, 50.4, 1.3])
    truth = scene(x + 0.15, y - 0.1, [900.0, 500.0, 700.0, 800.0])
    variance = rng.uniform(1.0, 4.0, truth.shape)
    data = truth + rng.standard_normal(truth.shape) * variance**0.5
    psf = gaussian_psf(FWHM)
    laid = Scene.of(data, 1.0 / variance, psf, x, y, None)
    solved = solve_scene(laid, robust=False)
    step_x, step_y, flux, _ = laid.shifts(solved)
    root, half = variance.ravel() ** -0.5, psf.half
    for k, (ix, iy) in enumerate(zip(np.rint(x).astype(int), np.rint(y).astype(int), strict=True)):
        shifted = np.zeros((4, 60 + 200, 70 + 200))
        for image, dx, dy in zip(shifted, (0.1, -0.1, 0, 0), (0, 0, 0.1, -0.1), strict=True):
            image[iy + 100 - half : iy + 101 + half, ix + 100 - half : ix + 101 + half] = (
                psf.stamps(x[k] + dx, y[k] + dy, around=(ix, iy))[0]
            )
        columns = shifted[:, 100:160, 100:170].reshape(4, -1).T
        slopes = (columns[:, ::2] - columns[:, 1::2]) / 0.2
        step, *_ = np.linalg.lstsq(slopes * root[:, None], root * solved.residual.ravel())
        assert [step_x[k], step_y[k]] == pytest.approx(step / flux[k], rel=1e-6)


def test_an_isolated_star_reaches_the_photon_limit_of_eq_31() -> None:
    psf, variance = gaussian_psf(FWHM), np.full((60, 70), 4.0)
    got = measure_fluxes(np.zeros((60, 70)), variance, None, psf, [30.3], [30.2], scale=0.8)
    truth = scene([30.3], [30.2], [1.0])
    limit = least_flux_error(torch.from_numpy(truth), torch.from_numpy(variance), 0.8)
    assert limit < got.error[0] < 1.03 * limit  # the sky costs the rest


def test_blends_are_told_apart_flagged_and_never_nan() -> None:
    x, y = [30.0, 31.2, 50.0, 50.0, 12.0], [30.0, 30.1, 20.0, 20.0, 40.0]
    flux = [500, 300, 80, 0, 90]
    got = measure_fluxes(scene(x, y, flux), np.ones((60, 70)), None, gaussian_psf(FWHM), x, y)
    assert got.flux[[0, 1, 4]] == pytest.approx([500, 300, 90], rel=0.01)
    assert got.flux[2] + got.flux[3] == pytest.approx(80, rel=0.01)  # two stars in one place
    assert ((got.flags & FluxFlag.BLENDED) != 0).tolist() == [True, True, True, True, False]
    for name in ("flux", "error", "sky", "chi_square", "blending"):
        assert np.isfinite(getattr(got, name)).all()


def test_cosmic_rays_and_strangers_do_not_pull_a_star() -> None:
    rng = np.random.default_rng(3)
    x, y, flux = [30.2, 50.4], [30.4, 20.1], [400.0, 900.0]
    image = scene(x, y, flux) + rng.standard_normal((60, 70))
    image[31, 31] += 500.0
    image += scene([34.5], [33.0], [800.0])  # a variable that is not in the list
    got = measure_fluxes(image, np.ones((60, 70)), None, gaussian_psf(FWHM), x, y)
    plain = measure_fluxes(image, np.ones((60, 70)), None, gaussian_psf(FWHM), x, y, robust=False)
    assert np.abs(got.flux - flux) == pytest.approx([0, 0], abs=4 * got.error[0])
    assert abs(plain.flux[0] - flux[0]) > 20 * plain.error[0]
    assert got.flags[0] & FluxFlag.REJECTED_PIXELS
    assert got.flags[1] == 0


def test_the_light_of_a_strong_variable_is_no_outlier() -> None:
    # The PSF is known to a few per cent only; the star is a thousand sigma.
    truth = scene([30.2], [30.4], [1e5])
    psf, variance = gaussian_psf(1.03 * FWHM), np.full((60, 70), 25.0)
    got = measure_fluxes(truth, variance, None, psf, [30.2], [30.4])
    plain = measure_fluxes(truth, variance, None, psf, [30.2], [30.4], robust=False)
    assert not got.flags[0] & FluxFlag.REJECTED_PIXELS
    assert got.flux[0] == pytest.approx(plain.flux[0], rel=0.005)


def test_flags_say_what_is_wrong() -> None:
    x, y = [1.0, 30.0, 50.0, 20.0, 200.0, 60.0], [30.0, 30.0, 20.0, 45.0, 5.0, 50.0]
    flags = np.zeros((60, 70), dtype=np.int16)
    flags[30, 30], flags[20, 50], flags[44:47, 18:23] = Flag.MASKED, Flag.SATURATED, Flag.CLIPPED
    variance = np.ones((60, 70))
    variance[40:, 50:] = np.inf
    flags[40:, 50:] = Flag.BORDER
    got = measure_fluxes(np.zeros((60, 70)), variance, flags, gaussian_psf(FWHM), x, y)
    assert got.flags[0] == FluxFlag.EDGE
    assert got.flags[1] == FluxFlag.MASKED_CORE
    assert got.flags[2] == FluxFlag.MASKED_CORE | FluxFlag.SATURATED
    assert got.flags[3] == 0  # sigma clipping of the fit says nothing of a star
    assert got.flags[4] & FluxFlag.NO_DATA
    assert got.flags[5] & FluxFlag.NO_DATA
    assert got.valid.tolist() == [True, True, True, True, False, False]
    assert (got.flux[4:] == 0).all()
    assert (got.error[4:] == np.inf).all()
    assert all(flag.meaning for flag in FluxFlag)


def test_input_that_cannot_be_used_is_refused() -> None:
    image, psf = np.zeros((20, 20)), gaussian_psf(2.0)
    with pytest.raises(InputError, match="positive number"):
        measure_fluxes(image, image + 1, None, psf, [1.0], [1.0], scale=0.0)
    with pytest.raises(InputError, match="not finite"):
        measure_fluxes(image, image + 1, None, psf, [np.nan], [1.0])
    with pytest.raises(ShapeError, match="one length"):
        measure_fluxes(image, image + 1, None, psf, [1.0, 2.0], [1.0])
    with pytest.raises(ShapeError, match="must be one"):
        measure_fluxes(image, np.ones((20, 21)), None, psf, [1.0], [1.0])
    assert len(measure_fluxes(image, image + 1, None, psf, [], [])) == 0


def test_positions_are_refined_and_reference_fluxes_are_true() -> None:
    field = make_field()
    nearest, distance = matched(field.catalogue, field.stars)
    got = reference_fluxes(field.frame, field.psf, field.catalogue)
    pulls = (got.flux[nearest] - field.stars.flux) / got.error[nearest]
    assert np.median(distance) < 0.05
    assert np.median(got.flux[nearest] / field.stars.flux) == pytest.approx(1.0, abs=0.01)
    faint = field.stars.flux < 2e4  # of brighter ones the PSF's own error is larger
    assert spread(pulls[faint]) < 1.5


def test_stars_beneath_others_are_found_once_these_are_taken_off() -> None:
    rng = np.random.default_rng(6)
    x, y = np.array([30.0, 33.2, 55.0]), np.array([30.0, 31.0, 15.0])
    clean = scene(x, y, [2e4, 4e3, 1e4], sky=100.0)
    frame = as_frame(
        clean + rng.standard_normal(clean.shape) * 3.0, variance=np.full(clean.shape, 9.0),
        saturation=np.inf,
    )  # fmt: skip
    psf = gaussian_psf(FWHM)
    known = catalogue_from_list(frame, x=x[[0, 2]], y=y[[0, 2]], fwhm=FWHM)
    more = refine_positions(frame, psf, find_hidden_stars(frame, psf, known))
    assert len(more) == 3
    assert more.id.tolist() == [1, 2, 3]
    assert (more.x[2], more.y[2]) == pytest.approx((33.2, 31.0), abs=0.15)
    assert more.flux == pytest.approx([2e4, 1e4, 4e3], rel=0.05)


def test_the_targets_share_of_the_variance() -> None:
    rng = np.random.default_rng(2)
    kernel, reference = asymmetric_kernel(), rng.uniform(1, 5, (40, 50))
    own = rng.uniform(4, 9, (40, 50))
    total = own + correlate(reference, kernel**2, mode="constant")
    total[3, 4] = np.inf
    got = target_variance(total, kernel, reference)
    assert got[3, 4] == np.inf
    inner = (slice(6, -6), slice(6, -6))
    assert got[inner] == pytest.approx(own[inner], rel=1e-6)


def test_magnitudes_have_errors_and_no_infinities() -> None:
    magnitude, error = magnitudes([100.0, 1.0, -5.0], [1.0, 0.1, 1.0])
    assert magnitude[:2] == pytest.approx([20.0, 25.0])
    assert error[:2] == pytest.approx([0.010857, 0.10857], rel=1e-3)
    assert np.isnan(magnitude[2])
    assert np.isnan(error[2])


@cache
def season():
    """Eight epochs of the field with four variables, subtracted with those masked in the fit."""
    field, rng = make_field(), np.random.default_rng(11)
    n_epochs, variable = 8, np.array([10, 25, 40, 55])
    change = np.zeros((n_epochs, len(field.stars.x)))
    change[:, variable] = rng.uniform(-0.4, 0.4, (n_epochs, 4)) * field.stars.flux[variable]
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    mask = np.zeros(SHAPE, dtype=bool)
    for i in variable:
        mask |= np.hypot(columns - field.stars.x[i], rows - field.stars.y[i]) < 6
    fluxes = []
    for change_now in change:
        scale, fwhm = rng.uniform(0.7, 1.3), rng.uniform(3.6, 5.0)
        dx, dy = rng.uniform(-0.4, 0.4, 2)
        stars = Stars(
            field.stars.x + dx, field.stars.y + dy, scale * (field.stars.flux + change_now)
        )
        clean = render_moffat(stars, SHAPE, fwhm=fwhm, ellipticity=0.1, angle=70.0, beta=3.5)
        clean += rng.uniform(200, 800)
        target = clean + rng.standard_normal(SHAPE) * np.sqrt(noise_variance(clean))
        got = dia.subtract(
            target, field.frame, kernel=dia.DeltaKernel(17), mask=mask, covariance=False,
            noise=dia.CCDNoise(READ_NOISE, GAIN),
        )  # fmt: skip
        variance = target_variance(got.variance, got.kernel, variance_of(field.frame))
        flags = got.flags & ~int(Flag.MASKED)  # masked for the fit of the kernel only
        fluxes.append(
            measure_fluxes(
                got.difference, variance, flags, field.psf.convolved(got.kernel),
                field.catalogue.x, field.catalogue.y, scale=got.scale,
            )
        )  # fmt: skip
    nearest, _ = matched(field.catalogue, field.stars)
    valid = np.all([f.valid[nearest] for f in fluxes], axis=0)
    flux = np.array([f.flux[nearest] for f in fluxes])
    error = np.array([f.error[nearest] for f in fluxes])
    return field, variable, change, flux, error, valid


def test_constant_stars_scatter_as_their_errors_say() -> None:
    field, variable, _, flux, error, valid = season()
    valid[variable] = False
    flux, error, stars = flux[:, valid], error[:, valid], field.stars.flux[valid]
    weight = 1 / error**2
    mean = (weight * flux).sum(0) / weight.sum(0)
    pulls = (flux - mean) / error * np.sqrt(len(flux) / (len(flux) - 1))
    # 1.4826 MAD of n values has an error of 1.17/sqrt(n): allowed three of them.
    assert 0.95 - 3.5 / np.sqrt(pulls.size) < spread(pulls) < 1.10 + 3.5 / np.sqrt(pulls.size)
    for half in (stars < np.median(stars), stars >= np.median(stars)):
        assert 0.8 < spread(pulls[:, half]) < 1.3
    assert abs(np.mean(flux / error)) < 0.3


def test_injected_light_curves_come_back_without_bias() -> None:
    _, variable, change, flux, error, _ = season()
    truth = change[:, variable]
    weight = 1 / error[:, variable] ** 2
    variance = 1 / (weight * truth**2).sum()
    gain = (weight * truth * flux[:, variable]).sum() * variance
    assert gain == pytest.approx(1.0, abs=0.01 + 3 * np.sqrt(variance))


def test_errors_of_faint_stars_are_close_to_the_photon_limit() -> None:
    psf, rng = moffat_psf(4.0), np.random.default_rng(1)
    image = rng.standard_normal((60, 70)) * 5.0
    x, y = rng.uniform(10, 60, 12), rng.uniform(10, 50, 12)
    got = measure_fluxes(image, np.full((60, 70), 25.0), None, psf, x, y)
    stamp = torch.from_numpy(psf.at(30.0, 30.0))
    limit = least_flux_error(stamp, torch.full_like(stamp, 25.0))
    alone = got.blending < 1.1
    assert alone.sum() > 4
    assert (got.error[alone] < 1.2 * limit).all()
    assert (got.error > limit * 0.99).all()
