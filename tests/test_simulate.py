"""Simulated images: PSFs, stamps, cameras and their defects, pairs with known changes."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import correlate

from pytorchdia.background import PolynomialBackground
from pytorchdia.errors import InputError
from pytorchdia.simulate import (
    ArrayPSF,
    Camera,
    Conditions,
    CosmicRays,
    Defect,
    Eclipse,
    GaussianPSF,
    Microlensing,
    MoffatPSF,
    Nova,
    RRLyrae,
    Stars,
    Trail,
    bleed,
    draw_stars,
    elliptical_kernel,
    expose,
    expose_pair,
    psf,
    render,
    render_gaussian,
    render_moffat,
    simulate_pair,
    simulate_pairs,
)

SHAPE = (90, 110)


def star(x: float, y: float, flux: float = 1.0) -> Stars:
    return Stars(np.array([x]), np.array([y]), np.array([flux]))


def empty() -> Stars:
    return Stars(np.zeros(0), np.zeros(0), np.zeros(0))


@pytest.fixture
def stars() -> Stars:
    drawn = draw_stars(np.random.default_rng(2), SHAPE, 2.0)
    return Stars(drawn.x * 1.2 - 10.0, drawn.y * 1.2 - 10.0, drawn.flux)  # some lie outside


# -- PSFs and stamps -----------------------------------------------------------------------------


@pytest.mark.parametrize("phi", [0.5, 1.8, 4.1])
def test_stamps_give_the_dense_image(stars: Stars, phi: float) -> None:
    dense = render_gaussian(stars, SHAPE, phi)
    for image in (psf._gaussian_stamps(stars, SHAPE, phi), render(GaussianPSF(phi), stars, SHAPE)):
        np.testing.assert_allclose(image, dense, rtol=0, atol=1e-12 * dense.max())


def test_large_dense_fields_go_by_stamps(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = simulate_pair(6, (120, 100), log_density=2.5)
    monkeypatch.setattr(psf, "_DENSE_LIMIT", 0.0)
    monkeypatch.setattr(psf, "_CHUNK", 7)
    again = simulate_pair(6, (120, 100), log_density=2.5)
    np.testing.assert_allclose(again.target, pair.target, rtol=1e-12)
    assert again.stars.x.size == round(10**2.5 * 1.2)


PSFS = [
    GaussianPSF(1.6, 0.3, 25.0),
    MoffatPSF(3.4),
    MoffatPSF(3.4, 0.3, 25.0, 0.15, 2.5),
    ArrayPSF(GaussianPSF(1.6, 0.3, 25.0).stamp(0.0, 0.0)),
]


@pytest.mark.parametrize("model", PSFS, ids=repr)
@given(x=st.floats(-0.5, 0.5), y=st.floats(-0.5, 0.5))
def test_a_star_keeps_its_flux_wherever_it_stands(model: psf.PSF, x: float, y: float) -> None:
    image = render(model, star(80.0 + x, 75.0 + y, 1234.0), (150, 160))
    assert image.sum() == pytest.approx(1234.0, rel=1e-6)


@pytest.mark.parametrize("model", [PSFS[0], PSFS[1], PSFS[3]], ids=repr)
def test_a_star_stands_where_it_should(model: psf.PSF) -> None:
    image = render(model, star(70.31, 64.78), (150, 160))
    y, x = np.indices(image.shape)
    near = np.hypot(x - 70.31, y - 64.78) < 12.5  # a stamp's edges are not centred on its star
    total = image[near].sum()
    assert (x * image)[near].sum() / total == pytest.approx(70.31, abs=0.01)
    assert (y * image)[near].sum() / total == pytest.approx(64.78, abs=0.01)


def test_the_long_axis_lies_at_its_angle() -> None:
    for model in (GaussianPSF(1.6, 0.4, 30.0), MoffatPSF(3.8, 0.4, 30.0, beta=4.0)):
        image = render(model, star(60.0, 60.0), (121, 121))
        y, x = np.indices(image.shape) - 60.0
        image = image * (np.hypot(x, y) < 15)
        moments = [(a * b * image).sum() for a, b in ((x, x), (y, y), (x, y))]
        angle = 0.5 * np.arctan2(2 * moments[2], moments[0] - moments[1])
        assert np.degrees(angle) == pytest.approx(30.0, abs=0.5)


def test_a_measured_psf_is_the_one_it_was_measured_from() -> None:
    true = GaussianPSF(1.7, 0.2, 40.0)
    side = np.arange(-48, 49) / 4  # four samples per pixel
    fine = GaussianPSF(4 * 1.7, 0.2, 40.0).stamp(0.0, 0.0)
    middle = fine.shape[0] // 2
    cut = slice(middle - 48, middle + 49)
    measured = ArrayPSF(fine[cut, cut], oversampling=4)
    assert side.size == measured.values.shape[0]
    stars = star(30.37, 28.81, 1000.0)
    image, expected = render(measured, stars, (60, 61)), render(true, stars, (60, 61))
    np.testing.assert_allclose(image, expected, atol=1e-3 * expected.max())


def test_moffat_images_are_what_they_were() -> None:
    stars = draw_stars(np.random.default_rng(3), (40, 50), 2.3)
    image = render_moffat(stars, (40, 50), 3.1, 0.2, 30.0, 0.1)
    slow = np.zeros((40, 50))
    rows, columns = np.indices(slow.shape)
    half = int(np.ceil(6 * 3.1))
    for x, y, flux in zip(*stars, strict=True):
        box_y, box_x = np.mgrid[-half : half + 1, -half : half + 1]
        for share, shift in ((0.9, 0.0), (0.1, 3.1)):

            def profile(dx, dy, shift=shift):
                dx, dy = dx - shift * np.cos(np.pi / 6), dy - shift * np.sin(np.pi / 6)
                along = dx * np.cos(np.pi / 6) + dy * np.sin(np.pi / 6)
                across = dy * np.cos(np.pi / 6) - dx * np.sin(np.pi / 6)
                alpha = 3.1 / (2 * np.sqrt(2 ** (1 / 3) - 1))
                return (1 + (along**2 * 0.8 + across**2 / 0.8) / alpha**2) ** -3.0

            norm = profile(box_x + round(x) - x, box_y + round(y) - y).sum()
            inside = (abs(rows - round(y)) <= half) & (abs(columns - round(x)) <= half)
            slow += np.where(inside, flux * share * profile(columns - x, rows - y) / norm, 0.0)
    np.testing.assert_allclose(image, slow, rtol=1e-9)


@pytest.mark.parametrize(
    "make",
    [
        lambda: GaussianPSF(0.0),
        lambda: MoffatPSF(3.0, ellipticity=1.0),
        lambda: MoffatPSF(3.0, beta=1.0),
        lambda: ArrayPSF(np.ones((4, 5))),
        lambda: elliptical_kernel(8, (1.0, 1.0)),
        lambda: Camera(gain=0.0),
        lambda: Camera(bleeding=True),
        lambda: CosmicRays(1.5),
        lambda: Conditions(GaussianPSF(1.0), sky=(1.0, 2.0)),
        lambda: Conditions(GaussianPSF(1.0), kernel=np.ones((4, 4))),
        lambda: Conditions(GaussianPSF(1.0), exposures=0),
        lambda: Microlensing(1.0, 0.0, 0.0, 0.1),
        lambda: RRLyrae(1.0, 1.0, 1.0, rise=1.0),
        lambda: Eclipse(1.0, 1.0, 0.2, 0.5),
        lambda: Camera(bad_columns=(200,)).response(SHAPE),
    ],
)
def test_what_cannot_be_is_refused(make) -> None:
    with pytest.raises(InputError, match=r"got|given|finite|do not all lie"):
        make()


# -- pairs of section 3.1 ------------------------------------------------------------------------


def test_the_draws_of_a_seed_are_those_of_earlier_versions() -> None:
    pair = simulate_pair(4)
    assert (pair.phi_r, pair.sky_r) == pytest.approx((2.3861122111447353, 966.802668518851))
    noise = (pair.target - pair.target_noiseless) / pair.target_sigma
    rng = np.random.default_rng(4)
    for draw in (lambda: rng.uniform(size=2), lambda: rng.uniform(), lambda: None):
        draw()
    n = pair.stars.x.size
    rng.uniform(size=3 * n)
    rng.uniform(size=4)
    rng.standard_normal(pair.target.shape)
    np.testing.assert_allclose(noise, rng.standard_normal(noise.shape), atol=1e-9)


def test_the_frames_of_section_5_2() -> None:
    pair = simulate_pair(1, (400, 500), phi_r=1.0, phi_k=1.5, log_density=1.5, sky=100.0)
    assert pair.stars.x.size == round(10**1.5 * 20)
    assert pair.sky_r == pair.sky_i == 100.0
    assert pair.phi_i == pytest.approx(np.hypot(1.0, 1.5))
    ratio = pair.reference_sigma[0, 0] ** 2 / (25 + pair.reference_noiseless[0, 0])
    assert ratio == pytest.approx(0.1)


def test_a_stream_gives_the_pairs_of_its_seeds() -> None:
    for seed, pair in zip((5, 9), simulate_pairs(iter((5, 9)), (40, 44)), strict=True):
        alone = simulate_pair(seed, (40, 44))
        assert hashlib.sha256(pair.target).digest() == hashlib.sha256(alone.target).digest()


# -- exposures -----------------------------------------------------------------------------------


def test_the_noise_has_the_moments_of_eq_6() -> None:
    camera = Camera(gain=2.5, read_noise=9.0)
    conditions = Conditions(GaussianPSF(1.5), sky=(240.0, 100.0, -50.0), exposures=3)
    exposure = expose(np.random.default_rng(1), empty(), (400, 400), conditions, camera)
    z = (exposure.image - exposure.noiseless) / exposure.sigma
    assert abs(z.mean()) < 5 / z.size**0.5
    assert abs(z.var() - 1) < 5 * (2 / z.size) ** 0.5
    expected = ((9.0 / 2.5) ** 2 + exposure.noiseless / 2.5) / 3
    np.testing.assert_allclose(exposure.sigma**2, expected)


def test_the_sky_is_the_polynomial_of_eq_18() -> None:
    sky = Conditions(GaussianPSF(1.0), sky=(300.0, 40.0, -20.0)).sky_image((21, 31))
    assert PolynomialBackground(1).exponents == [(0, 0), (0, 1), (1, 0)]
    assert sky[10, 15] == pytest.approx(300.0)
    assert sky[20, 15] - sky[0, 15] == pytest.approx(40.0 * 20 / 21)
    assert sky[10, 30] - sky[10, 0] == pytest.approx(-20.0 * 30 / 31)


def test_stars_move_by_the_matrix() -> None:
    conditions = Conditions(GaussianPSF(1.2), sky=(0.0,), shift=(7.4, -3.2), rotation=20.0)
    x, y = conditions.matrix(SHAPE) @ [60.0, 40.0, 1.0]
    image = conditions.light(star(60.0, 40.0), SHAPE)
    rows, columns = np.indices(SHAPE)
    assert (columns * image).sum() == pytest.approx(x, abs=1e-6)
    assert (rows * image).sum() == pytest.approx(y, abs=1e-6)
    turned = conditions.matrix(SHAPE)[:, :2]
    np.testing.assert_allclose(turned @ turned.T, np.eye(2), atol=1e-12)
    assert np.degrees(np.arctan2(turned[1, 0], turned[0, 0])) == pytest.approx(20.0)


def test_a_kernel_acts_as_in_eq_2_up_to_the_edge(stars: Stars) -> None:
    kernel = elliptical_kernel(11, (2.0, 1.0), 35.0, centre=(1.5, -0.5), total=0.7)
    plain = Conditions(GaussianPSF(1.2), scale=1.3)
    wide = plain.light(stars.shifted(5, 5), (SHAPE[0] + 10, SHAPE[1] + 10))
    expected = correlate(wide, kernel, mode="constant")[5:-5, 5:-5]
    light = replace(plain, kernel=kernel).light(stars, SHAPE)
    np.testing.assert_allclose(light, expected, atol=1e-9 * expected.max())


def test_an_elliptical_kernel_has_its_sum_centre_and_angle() -> None:
    kernel = elliptical_kernel(41, (3.0, 1.5), 60.0, centre=(2.0, -1.0), total=0.8)
    y, x = np.mgrid[-20:21, -20:21]
    assert kernel.sum() == pytest.approx(0.8)
    assert (x * kernel).sum() / 0.8 == pytest.approx(2.0, abs=1e-4)
    assert (y * kernel).sum() / 0.8 == pytest.approx(-1.0, abs=1e-4)
    cxy = ((x - 2.0) * (y + 1.0) * kernel).sum()
    cxx, cyy = ((x - 2.0) ** 2 * kernel).sum(), ((y + 1.0) ** 2 * kernel).sum()
    assert np.degrees(0.5 * np.arctan2(2 * cxy, cxx - cyy)) == pytest.approx(60.0, abs=0.1)


def test_the_changes_of_a_pair_are_what_a_perfect_difference_holds() -> None:
    rng = np.random.default_rng(8)
    stars = draw_stars(rng, SHAPE, 2.0)
    changes = Stars(
        np.array([30.2, 71.7]), np.array([40.6, 28.1]), np.array([9000.0, -6000.0])
    )  # one is new, one fades
    stars = stars.joined(star(71.7, 28.1, 8000.0))
    kernel = elliptical_kernel(15, (1.6, 1.0), 70.0, total=0.6)
    seen = Conditions(MoffatPSF(2.6, 0.1, 10.0), sky=(50.0,), scale=1.5)
    pair = expose_pair(
        3, stars, SHAPE, reference=seen, target=replace(seen, kernel=kernel, sky=(80.0,)),
        changes=changes,
    )  # fmt: skip
    assert pair.scale == pytest.approx(0.6)
    model = correlate(pair.reference.noiseless - 50.0, kernel, mode="nearest") + 80.0
    difference = pair.target.image - model
    rows, columns = np.indices(SHAPE)
    for x, y, flux in zip(*changes, strict=True):
        near = np.hypot(columns - x, rows - y) < 12
        error = np.sqrt((pair.target.sigma[near] ** 2).sum())
        truth = flux * 1.5 * pair.scale
        assert abs(difference[near].sum() - truth) < 4 * error + 0.02 * abs(truth)
    again = expose_pair(3, stars, SHAPE, reference=seen, target=seen)
    np.testing.assert_array_equal(again.reference.image, pair.reference.image)
    assert again.changes.x.size == 0


# -- defects -------------------------------------------------------------------------------------


@pytest.mark.parametrize("longest", [1, 6])
def test_cosmic_rays_hit_their_share_of_the_pixels(longest: int) -> None:
    rays = CosmicRays(0.004, (50.0, 5000.0), longest)
    conditions = Conditions(GaussianPSF(1.5), cosmic_rays=rays)
    exposure = expose(np.random.default_rng(4), empty(), (600, 500), conditions)
    hit = exposure.where(Defect.COSMIC_RAY)
    expected = 0.004 * hit.size
    spread = np.sqrt(expected * (1 + 2 * longest) / 3)  # pixels come in tracks
    assert abs(hit.sum() - expected) < 5 * spread
    energy = rays.hits(np.random.default_rng(4), (600, 500))
    logs = np.log(energy[energy > 0])
    assert logs.mean() == pytest.approx(np.log(500.0), abs=5 * logs.std() / logs.size**0.5 + 0.02)
    outside = (exposure.image - exposure.noiseless)[~hit] / exposure.sigma[~hit]
    assert abs(outside.var() - 1) < 0.02


def test_columns_lose_light_and_one_is_known() -> None:
    camera = Camera(bad_columns=(20,), hidden_columns=(50,), hidden_response=0.5)
    conditions = Conditions(GaussianPSF(1.5), sky=(400.0,))
    exposure = expose(np.random.default_rng(4), empty(), SHAPE, conditions, camera)
    assert exposure.mask.sum() == SHAPE[0]
    assert exposure.mask[:, 20].all()
    assert exposure.where(Defect.HIDDEN_COLUMN)[:, 50].all()
    assert abs(exposure.image[:, 20].mean()) < 5
    assert exposure.image[:, 50].mean() == pytest.approx(200, abs=10)
    assert exposure.image[:, 51].mean() == pytest.approx(400, abs=12)


def test_bright_stars_saturate_and_bleed_along_columns() -> None:
    conditions = Conditions(GaussianPSF(1.5), sky=(400.0,))
    shown = {}
    for bleeding in (False, True):
        camera = Camera(saturation=20000.0, bleeding=bleeding)
        exposure = expose(
            np.random.default_rng(4), star(50.0, 45.0, 1e6), SHAPE, conditions, camera
        )
        assert exposure.image.max() == 20000.0
        saturated = exposure.where(Defect.SATURATED)
        np.testing.assert_array_equal(saturated, exposure.image == 20000.0)
        shown[bleeding] = saturated
        spoilt = saturated | exposure.where(Defect.BLED)
        z = (exposure.image - exposure.noiseless)[~spoilt] / exposure.sigma[~spoilt]
        assert abs(z.mean()) < 5 / z.size**0.5
    extents = {key: [np.ptp(axis) for axis in np.nonzero(mask)] for key, mask in shown.items()}
    assert extents[False][0] == extents[False][1]  # round
    assert extents[True][0] > 2 * extents[True][1]
    assert not exposure.where(Defect.BLED)[:, [45, 55]].any()


@given(st.integers(0, 2**32 - 1))
def test_bleeding_conserves_charge_and_fills_no_pixel_beyond_full_well(seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = rng.uniform(0, 50, (60, 4))
    image[rng.integers(25, 35, 2), rng.integers(0, 4, 2)] = rng.uniform(90, 900)
    filled = bleed(image, 100.0)
    assert filled.max() <= 100.0
    assert (filled >= np.minimum(image, 100.0)).all()
    np.testing.assert_allclose(filled.sum(axis=0), image.sum(axis=0))


def test_charge_that_reaches_the_edge_is_lost() -> None:
    image = np.zeros((5, 1))
    image[2, 0] = 1e6
    np.testing.assert_array_equal(bleed(image, 10.0), np.full((5, 1), 10.0))


def test_a_trail_is_a_straight_line_of_light() -> None:
    trail = Trail(x=30.0, y=40.0, angle=30.0, peak=500.0, width=1.5)
    light = trail.light(SHAPE)
    assert light[40, 30] == 500.0
    step = 24.0
    x, y = 30 + step * np.cos(np.pi / 6), 40 + step * np.sin(np.pi / 6)
    assert light[round(y), round(x)] > 400.0
    assert light[60, 30] == 0.0
    conditions = Conditions(GaussianPSF(1.0), trail=trail)
    exposure = expose(np.random.default_rng(1), empty(), SHAPE, conditions)
    np.testing.assert_array_equal(exposure.where(Defect.TRAIL), light > 0)
    np.testing.assert_allclose(exposure.noiseless, 100.0 + light)


# -- light curves --------------------------------------------------------------------------------


def test_microlensing_peaks_at_the_magnification_of_its_impact_parameter() -> None:
    curve = Microlensing(baseline=100.0, peak=5.0, duration=10.0, impact=1.0)
    assert curve.flux(np.array(5.0)) == pytest.approx(134.164, abs=1e-3)  # 3 / sqrt(5)
    assert curve.flux(np.array(1e5)) == pytest.approx(100.0)
    np.testing.assert_allclose(curve.flux(np.array([2.0])), curve.flux(np.array([8.0])))


def test_rr_lyrae_repeats_rises_fast_and_has_its_amplitude() -> None:
    curve = RRLyrae(mean=100.0, period=0.5, amplitude=1.0, epoch=0.1)
    time = np.linspace(0.1, 0.6, 2001)
    flux = curve.flux(time)
    assert 2.5 * np.log10(flux.max() / flux.min()) == pytest.approx(1.0)
    assert time[np.argmin(flux)] == pytest.approx(0.1 + 0.8 * 0.5)
    np.testing.assert_allclose(curve.flux(time + 50.0), flux)
    assert np.abs(np.diff(flux)).max() < 1.0  # no jump


def test_eclipses_have_their_depths_and_the_rest_is_flat() -> None:
    curve = Eclipse(out=100.0, period=2.0, depth=0.6, second_depth=0.1, width=0.1, epoch=0.3)
    assert curve.flux(np.array([0.3, 2.3, 1.3, 0.8])) == pytest.approx([40, 40, 90, 100])
    lost = 1 - curve.flux(np.linspace(0, 2, 20001)[:-1]) / 100.0
    assert lost.mean() == pytest.approx(0.75 * 0.1 * (0.6 + 0.1), rel=1e-3)


def test_a_nova_is_not_there_before_it_rises() -> None:
    curve = Nova(height=1000.0, start=4.0, rise=2.0, decline=10.0)
    flux = curve.flux(np.array([0.0, 4.0, 5.0, 6.0, 16.0]))
    assert flux == pytest.approx([0, 0, 500, 1000, 1000 / np.e])
