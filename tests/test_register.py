"""Frames laid onto another grid: what is found, what is moved, what is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from astropy.io import fits
from astropy.wcs import WCS, Sip

import pytorchdia as dia
from pytorchdia.errors import RegistrationError
from pytorchdia.preparation.matching import affine, match_stars, refine
from pytorchdia.preparation.register import (
    Registration,
    _require_overlap,
    find_transform,
    measure_flux_ratio,
    measure_transparency,
)
from pytorchdia.preparation.resample import apply_registration, variance_factor
from pytorchdia.preparation.star_detection import detect_stars, star_shapes
from pytorchdia.simulate import Stars, render_gaussian

SHAPE = (300, 340)
SKY, GAIN, READ_NOISE = 400.0, 1.5, 5.0


def field(seed, n, shape=SHAPE, margin=0.0):
    """Stars all over a field and ``margin`` pixels around it."""
    rng = np.random.default_rng([7, seed])
    x = rng.uniform(-margin, shape[1] - 1 + margin, n)
    y = rng.uniform(-margin, shape[0] - 1 + margin, n)
    return Stars(x, y, 1500.0 * rng.uniform(0.005, 1.0, n) ** (-1 / 0.8))


def seen(stars, matrix=None, shape=SHAPE, phi=1.5, seed=0, noise=True):
    """A noisy frame of the stars where ``matrix`` takes them."""
    if matrix is not None:
        moved = affine(matrix, np.column_stack([stars.x, stars.y]))
        stars = Stars(moved[:, 0], moved[:, 1], stars.flux)
    image = SKY + render_gaussian(stars, shape, phi)
    if noise:
        rng = np.random.default_rng([11, seed])
        sigma = np.sqrt((READ_NOISE / GAIN) ** 2 + image / GAIN)
        image = image + sigma * rng.standard_normal(shape)
    return dia.as_frame(image, gain=GAIN, read_noise=READ_NOISE, saturation=np.inf)


def turned(degrees, dx, dy, scale=1.0, shape=SHAPE):
    """A rotation about the middle of the frame, a scale and a shift of the middle, (2, 3)."""
    a = math.radians(degrees)
    linear = scale * np.array([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]])
    middle = np.array([(shape[1] - 1) / 2, (shape[0] - 1) / 2])
    return np.column_stack([linear, middle + np.array([dx, dy]) - linear @ middle])


def farthest(a, b, shape=SHAPE):
    """Largest distance between where two matrices take the corners of a frame."""
    h, w = shape
    corners = np.array([[0, 0], [w - 1, 0], [0, h - 1], [w - 1, h - 1]], dtype=float)
    return float(np.hypot(*(affine(a, corners) - affine(b, corners)).T).max())


TRANSFORMS = {
    "sub-pixel": turned(0.0, 0.37, -0.21),
    "hundreds of pixels": turned(0.0, -170.4, 95.7),
    "slightly turned": turned(0.05, 12.3, -40.1),
    "turned by 30 degrees": turned(30.0, 20.2, -11.6),
    "after the meridian": turned(180.02, 8.6, 5.1),
    "scaled": turned(2.0, -15.0, 7.0, 1.04),
}


def rms(a, b, shape=SHAPE):
    """rms distance over a frame between where two matrices take its pixels."""
    y, x = (c.ravel() for c in np.mgrid[0 : shape[0] : 10, 0 : shape[1] : 10])
    points = np.column_stack([x, y]).astype(float)
    return float(np.sqrt(((affine(a, points) - affine(b, points)) ** 2).sum(axis=1).mean()))


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("n", [400, 2000])  # of which a fifth to a half are seen in both frames
def test_known_transformation_is_recovered_to_a_twentieth_of_a_pixel(name, n):
    truth = TRANSFORMS[name]
    stars = field(n, n, margin=100.0)
    found = find_transform(seen(stars, truth, phi=1.9, seed=1), seen(stars, seed=2))
    assert found.by == "stars"
    assert rms(found.matrix, truth) < 0.05
    assert found.scale == pytest.approx(math.sqrt(np.linalg.det(truth[:, :2])), abs=1e-3)
    expected = math.degrees(math.atan2(truth[1, 0], truth[0, 0]))
    assert math.remainder(found.rotation - expected, 360.0) == pytest.approx(0.0, abs=0.05)


@pytest.mark.parametrize("degrees", [0.0, 25.0])
@pytest.mark.parametrize("max_shift", [None, 40.0])
def test_a_mirrored_frame_is_placed_and_its_light_kept(degrees, max_shift):
    mirror = np.array([[-1.0, 0.0, SHAPE[1] - 1.0], [0.0, 1.0, 0.0]])
    turn = turned(degrees, 6.3, -9.2)
    truth = np.column_stack([turn[:, :2] @ mirror[:, :2], turn[:, :2] @ mirror[:, 2] + turn[:, 2]])
    stars = field(3, 500, margin=100.0)
    frame, onto = seen(stars, truth, phi=1.9, seed=1), seen(stars, seed=2)
    found = find_transform(frame, onto, max_shift=max_shift)
    assert (found.by, found.how) == ("stars", "resampled")
    assert rms(found.matrix, truth) < 0.05
    ratio, n = measure_flux_ratio(frame, onto, found)
    assert ratio == pytest.approx(1.0, abs=0.05)
    assert n > 20
    moved = apply_registration(frame, found, onto.shape)
    plain = seen(stars, phi=1.9, seed=5)
    inside = (moved.flags == 0).numpy()
    assert inside.mean() > 0.6
    apart = (moved.data - plain.data).numpy()[inside]
    noise = np.sqrt(((READ_NOISE / GAIN) ** 2 + plain.data.numpy()[inside] / GAIN) * 2.0)
    assert np.median(np.abs(apart / noise)) < 0.8  # 0.67 were both noises white


def test_a_small_frame_finds_its_place_on_a_large_reference():
    large = (1000, 1100)
    stars = field(4, 3000, large)
    onto = seen(stars, shape=large, seed=2)
    shift = np.array([[1.0, 0.0, -700.3], [0.0, 1.0, -810.6]])
    frame = seen(stars, shift, (200, 180), seed=1)
    found = find_transform(frame, onto)
    assert farthest(found.matrix, shift, large) < 0.3
    away = np.array([[1.0, 0.0, 175.0], [0.0, 1.0, 0.0]])  # five columns in common
    with pytest.raises(RegistrationError, match="have 2 % of the smaller one"):
        _require_overlap(replace(found, matrix=away), frame, onto, None)


@pytest.mark.parametrize("n", [10, 20, 30])
def test_sparse_fields_are_registered(n):
    rng = np.random.default_rng(n)
    h, w = SHAPE
    stars = Stars(rng.uniform(20, w - 60, n), rng.uniform(40, h - 20, n), rng.uniform(4e3, 4e4, n))
    truth = turned(0.0, 31.3, -17.8)
    found = find_transform(seen(stars, truth, seed=3), seen(stars, seed=4))
    assert found.n_matched >= 0.7 * n
    assert farthest(found.matrix, truth) < 0.1


@pytest.mark.parametrize("n", [15, 60, 1000])
def test_another_field_is_refused_with_numbers(n):
    a, b = seen(field(1, n), seed=5), seen(field(2, n), seed=6)
    with pytest.raises(RegistrationError, match=r"of its \d+ stars at most \d+ match .* \d+ there"):
        find_transform(a, b)


def test_lists_of_unrelated_stars_are_hardly_ever_taken_for_a_match():
    rng = np.random.default_rng(0)
    for n in (3, 5, 10, 30, 100, 300):
        for _ in range(2):
            lists = rng.uniform(0, 500, (2, n, 2))
            match = match_stars(*lists, [np.eye(3)[:2]])
            assert match is None or not match.significant


@pytest.mark.parametrize(("n", "number"), [(0, "no star was"), (1, "only one star was")])
def test_too_few_stars_are_said_to_be_too_few(n, number):
    stars = field(3, 60)
    few = Stars(np.array([150.0])[:n], np.array([140.0])[:n], np.array([2e4])[:n])
    with pytest.raises(RegistrationError, match=number):
        find_transform(seen(few), seen(stars))


def test_false_stars_do_not_mislead():
    # Hot pixels stand still while the sky moves; cosmic rays are anywhere.
    stars = field(4, 80, margin=60.0)
    truth = turned(0.0, 24.6, 13.1)
    rng = np.random.default_rng(5)
    hot = tuple(rng.integers(5, 290, (2, 150)))
    frames = []
    for matrix, seed in ((truth, 7), (None, 8)):
        data = seen(stars, matrix, seed=seed).data.numpy()
        data[hot] += 8000.0
        for y, x in rng.integers(10, 280, (60, 2)):
            data[y : y + 2, x : x + 4] += 3000.0
        frames.append(dia.as_frame(data, saturation=np.inf))
    found = find_transform(*frames)
    assert farthest(found.matrix, truth) < 0.25


def test_the_same_grid_is_known_as_such_and_nothing_is_touched():
    stars = field(6, 200)
    frame, onto = seen(stars, seed=9, phi=2.0), seen(stars, seed=10)
    found = find_transform(frame, onto)
    assert (found.by, found.how) == ("same grid", "shift")
    moved = apply_registration(frame, found, onto.shape)
    assert torch.equal(moved.data, frame.data)
    assert not moved.mask.any()


def test_whole_pixels_or_resampling_is_decided_by_the_drift():
    stars = field(7, 1000, margin=30.0)
    onto = seen(stars, seed=11)
    for degrees, how in ((0.0, "shift"), (0.1, "resampled")):
        found = find_transform(seen(stars, turned(degrees, 3.4, 2.2), seed=12), onto)
        assert found.how == how
    found = find_transform(seen(stars, turned(0.1, 3.4, 2.2), seed=12), onto, max_drift=1.0)
    assert found.how == "shift"
    assert found.drift == pytest.approx(math.radians(0.1) * math.hypot(150, 170), abs=0.05)
    assert found.exact(SHAPE).how == "resampled"


def test_max_shift_is_kept():
    stars = field(8, 200, margin=100.0)
    with pytest.raises(RegistrationError):
        find_transform(seen(stars, turned(0.0, 60.0, 0.0)), seen(stars), max_shift=30.0)


def world(shift=(0.0, 0.0), rotation=0.0):
    a = math.radians(rotation)
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [270.0, -30.0]
    wcs.wcs.crpix = [170.5 + shift[0], 150.5 + shift[1]]
    wcs.wcs.cd = 1e-4 * np.array([[-math.cos(a), math.sin(a)], [math.sin(a), math.cos(a)]])
    wcs.wcs.set()
    return wcs


def with_wcs(frame, wcs):
    return replace(frame, wcs=wcs, meta=wcs.to_header(), name="framed")


def test_wcs_alone_places_a_frame_with_one_star_and_says_so():
    one = Stars(np.array([100.0]), np.array([90.0]), np.array([3e4]))
    frame = with_wcs(seen(one, turned(0, 7, -4)), world((7, -4)))
    found = find_transform(frame, with_wcs(seen(one), world()))
    assert found.by == "wcs"
    assert farthest(found.matrix, turned(0, 7, -4)) < 1e-3
    assert [f.code for f in found.findings] == ["registered-by-wcs"]


def test_stars_overrule_a_wrong_wcs():
    stars = field(9, 150, margin=60.0)
    truth = turned(0.0, 14.2, 3.3)
    frame = with_wcs(seen(stars, truth, seed=13), world((40.0, 3.3)))
    found = find_transform(frame, with_wcs(seen(stars, seed=14), world()))
    assert found.by == "stars"
    assert farthest(found.matrix, truth) < 0.1
    assert [f.code for f in found.findings] == ["wcs-disagrees"]


def test_a_wcs_that_many_stars_contradict_is_not_believed():
    a, b = with_wcs(seen(field(1, 200)), world()), with_wcs(seen(field(2, 200)), world())
    with pytest.raises(RegistrationError, match="another field"):
        find_transform(a, b)


def test_a_wcs_that_points_elsewhere_means_another_field():
    one = Stars(np.array([100.0]), np.array([90.0]), np.array([3e4]))
    frame = with_wcs(seen(one), world((2000.0, 0.0)))
    with pytest.raises(RegistrationError, match="0 %"):
        find_transform(frame, with_wcs(seen(one), world()))


def test_whole_pixel_shift_changes_no_value_and_carries_everything():
    data = np.arange(30.0).reshape(5, 6)
    frame = dia.as_frame(data, variance=data + 1.0, mask=data == 14.0, saturation=27.0)
    matrix = np.array([[1.0, 0.0, 1.2], [0.0, 1.0, -0.9]])
    moved = apply_registration(frame, Registration(matrix, "shift", "stars", 9, 0.1), (6, 5))
    expected = np.zeros((6, 5))
    expected[1:6, :5] = data[:5, 1:6]
    inside = np.zeros((6, 5), dtype=bool)
    inside[1:6, :5] = True
    np.testing.assert_array_equal(moved.data.numpy(), expected)
    np.testing.assert_array_equal((moved.flags.numpy() & dia.Flag.OUTSIDE) == 0, inside)
    np.testing.assert_array_equal(moved.variance.numpy()[inside], (expected + 1.0)[inside])
    assert (moved.flags[expected == 14.0] == dia.Flag.MASKED).all()
    assert (moved.flags[expected >= 27.0] == dia.Flag.SATURATED).all()


def test_a_shift_off_the_frame_leaves_nothing_but_flags():
    frame = dia.as_frame(np.ones((5, 6)))
    far = Registration(np.array([[1.0, 0, 50], [0, 1.0, 0]]), "shift", "wcs", 0, 0.0)
    assert (apply_registration(frame, far, (5, 6)).flags == dia.Flag.OUTSIDE).all()


def resampled(frame, matrix, shape=SHAPE, **more):
    return apply_registration(
        frame, Registration(matrix, "resampled", "stars", 9, 0.1), shape, **more
    )


def test_resampling_follows_the_scene_and_keeps_the_flux():
    stars = Stars(np.array([160.3, 90.8]), np.array([140.6, 201.4]), np.array([1e5, 4e4]))
    matrix = turned(17.0, 5.3, -8.4, 1.1)
    plain = seen(stars, matrix, phi=2.0, noise=False)
    moved = resampled(dia.as_frame(plain.data - SKY, saturation=np.inf), matrix)
    # A star keeps its flux and its place; its width is that of the frame over the scale.
    expected = render_gaussian(stars, SHAPE, 2.0 / 1.1)
    inside = (moved.flags & dia.Flag.OUTSIDE).numpy() == 0
    assert inside.mean() > 0.7
    assert moved.data.numpy()[inside].sum() == pytest.approx(1.4e5, rel=2e-4)
    assert np.abs(moved.data.numpy() - expected)[inside].max() < 3e-3 * expected.max()


def test_variance_of_resampled_white_noise_is_what_the_pixels_show():
    rng = np.random.default_rng(1)
    variance = np.linspace(4.0, 100.0, 400 * 400).reshape(400, 400)
    frame = dia.as_frame(np.sqrt(variance) * rng.standard_normal((400, 400)), variance=variance)
    moved = resampled(frame, turned(3.0, 0.4, 0.3, shape=(400, 400)), (400, 400))
    good = (moved.flags == 0).numpy()
    scaled = (moved.data / moved.variance.sqrt()).numpy()[good]
    assert np.mean(scaled**2) == pytest.approx(1.0, abs=0.02)
    half = resampled(frame, turned(0.0, 0.5, 0.5, shape=(400, 400)), (400, 400))
    good = (half.flags == 0).numpy()
    assert np.mean((half.data**2 / half.variance).numpy()[good]) == pytest.approx(1.0, abs=0.03)
    assert "noise-correlated" in {f.code for f in half.findings}


def test_variance_factor_is_one_at_the_pixels_and_symmetric():
    phases = np.linspace(0.0, 1.0, 33)
    factor = variance_factor(phases)
    assert factor[[0, -1]] == pytest.approx(1.0, abs=1e-6)
    np.testing.assert_allclose(factor, factor[::-1], atol=1e-6)
    assert 0.7 < factor.min() < 0.8


def test_bad_pixels_do_not_ring_and_their_footprint_is_flagged():
    stars = field(10, 100)
    clean = seen(stars, noise=False)
    data = clean.data.numpy().copy()
    mask = np.zeros(SHAPE, dtype=bool)
    mask[:, 200] = mask[50:53, 60:64] = True
    data[mask] = 6e4
    data[120, 130] = np.nan
    matrix = turned(1.0, 0.5, 0.5)
    spoilt = resampled(dia.as_frame(data, mask=mask, saturation=np.inf), matrix)
    whole = resampled(dia.as_frame(clean.data, saturation=np.inf), matrix)
    assert torch.isfinite(spoilt.data).all()
    assert set(np.unique(spoilt.flags.numpy())) == {0, 1, 4, 128}
    good = (spoilt.flags == 0).numpy()
    # Were the 60000 ADU not filled first, they would ring by thousands.
    sky_like = (whole.data.numpy() < SKY + 30.0) & good
    assert (spoilt.data - whole.data).abs().numpy()[sky_like].max() < 15.0
    assert good.mean() > 0.9


def test_wcs_and_header_of_a_shifted_frame_point_at_the_same_sky():
    header = world().to_header()
    header["OBJECT"] = "field 7"
    frame = dia.as_frame(fits.PrimaryHDU(np.ones((40, 50), np.float32), header))
    shift = Registration(np.array([[1.0, 0, 12.0], [0, 1.0, -3.0]]), "shift", "stars", 9, 0.1)
    moved = apply_registration(frame, shift, (40, 50))
    before = frame.wcs.pixel_to_world(22.0, 7.0)
    for wcs in (moved.wcs, WCS(moved.meta)):
        assert wcs.pixel_to_world(10.0, 10.0).separation(before).arcsec < 1e-6
    assert moved.meta["OBJECT"] == "field 7"
    onto = world((5.0, 5.0), 20.0)
    there = resampled(frame, turned(10.0, 1, 1, shape=(40, 50)), (40, 50), wcs=onto)
    assert (
        WCS(there.meta).pixel_to_world(9.0, 9.0).separation(onto.pixel_to_world(9.0, 9.0)).arcsec
        < 1e-6
    )
    alone = resampled(frame, turned(10.0, 1, 1, shape=(40, 50)), (40, 50))
    assert alone.wcs is None
    assert not [key for key in alone.meta if key.startswith(("CRPIX", "CTYPE", "CD"))]


def test_detector_is_in_the_units_of_the_resampled_pixels():
    frame = dia.as_frame(np.ones((60, 60)), gain=2.0, read_noise=5.0, saturation=1000.0)
    moved = resampled(frame, turned(0.0, 0.0, 0.0, 2.0, (60, 60)), (60, 60))
    assert moved.detector.gain == pytest.approx(0.5)
    assert moved.detector.saturation == pytest.approx(4000.0)


def test_flux_ratio_tells_a_cloud():
    stars = field(11, 150)
    onto = seen(stars, seed=15)
    dim = seen(Stars(stars.x, stars.y, 0.4 * stars.flux), seed=16)
    found = measure_flux_ratio(dim, onto, find_transform(dim, onto))
    assert found is not None
    assert found[0] == pytest.approx(0.4, rel=0.05)
    longer = dia.as_frame(dim, exposure=200.0)
    placed = find_transform(dim, onto)
    first = dia.as_frame(onto, exposure=100.0)
    assert measure_transparency(longer, first, placed) == pytest.approx(found[0] / 2.0)


def test_a_half_masked_reference_still_places_the_frames():
    stars = field(12, 300, margin=40.0)
    truth = turned(0.03, -11.2, 6.6)
    mask = np.zeros(SHAPE, dtype=bool)
    mask[: SHAPE[0] // 2] = True
    half = dia.as_frame(seen(stars, seed=17), mask=mask)
    found = find_transform(seen(stars, truth, seed=18), half)
    assert rms(found.matrix, truth) < 0.1


@pytest.mark.parametrize(("phi_x", "phi_y"), [(1.2, 1.2), (2.4, 1.5), (1.7, 3.0)])
def test_width_and_ellipticity_are_those_of_the_gaussian(phi_x, phi_y):
    rng = np.random.default_rng(3)
    x, y = np.meshgrid(np.arange(30, 320, 40.0), np.arange(30, 280, 40.0))
    x, y = (c.ravel() + rng.uniform(-0.5, 0.5, c.size) for c in (x, y))
    rows, columns = np.arange(SHAPE[0])[:, None], np.arange(SHAPE[1])[:, None]
    image = (np.exp(-0.5 * ((rows - y) / phi_y) ** 2) * 5000.0) @ np.exp(
        -0.5 * ((columns - x) / phi_x) ** 2
    ).T
    image += 300.0 + 8.0 * rng.standard_normal(SHAPE)
    frame = dia.as_frame(image, saturation=np.inf)
    stars = detect_stars(frame)
    assert len(stars) == x.size
    fwhm, ellipticity = star_shapes(frame, stars)
    assert fwhm == pytest.approx(2.3548 * math.sqrt(phi_x * phi_y), rel=0.02)
    assert ellipticity == pytest.approx(1 - min(phi_x, phi_y) / max(phi_x, phi_y), abs=0.02)
    order = np.lexsort((np.round(x / 40), np.round(y / 40)))
    order_found = np.lexsort((np.round(stars.x / 40), np.round(stars.y / 40)))
    error = np.hypot(stars.x[order_found] - x[order], stars.y[order_found] - y[order])
    assert np.median(error) < 0.02


def test_refinement_is_that_of_a_slow_twin():
    # The twin: all pairs by brute force, mutual nearest neighbours, plain least squares.
    rng = np.random.default_rng(2)
    onto = rng.uniform(0, 400, (120, 2))
    truth = turned(0.2, 2.0, -1.0, 1.001)
    frame = affine(truth, onto) + 0.1 * rng.standard_normal(onto.shape)
    match = refine(onto, frame, np.eye(3)[:2])
    distance = np.hypot(*(affine(truth, onto)[:, None] - frame[None]).transpose(2, 0, 1))
    mutual = distance.argmin(axis=0)[distance.argmin(axis=1)] == np.arange(120)
    assert set(match.onto) <= set(np.flatnonzero(mutual))
    np.testing.assert_array_equal(match.frame, distance.argmin(axis=1)[match.onto])
    assert match.residual == pytest.approx(0.1, rel=0.15)
    assert farthest(match.matrix, truth, (400, 400)) < 0.08


def test_a_turned_frame_is_placed_the_same_way_every_time():
    # astroalign draws its trials at random; the fit to all stars must not depend on them.
    stars = field(13, 400, margin=60.0)
    frame, onto = seen(stars, turned(30.0, 5.0, 4.0), seed=19), seen(stars, seed=20)
    first, *others = [find_transform(frame, onto).matrix for _ in range(4)]
    for other in others:
        assert rms(first, other) < 0.01


def test_a_registered_frame_is_subtracted_and_what_lies_outside_has_no_data():
    shape = (90, 100)
    stars = field(14, 60, shape, margin=20.0)
    onto = seen(stars, shape=shape, phi=1.2, seed=21)
    target = seen(stars, turned(0.0, 14.3, -9.2, shape=shape), shape, phi=1.6, seed=22)
    placed = apply_registration(target, find_transform(target, onto), shape)
    outside = ((placed.flags & dia.Flag.OUTSIDE) != 0).numpy()
    assert 0.1 < outside.mean() < 0.4
    result = dia.subtract(placed, onto, kernel=dia.DeltaKernel(11))
    assert (result.difference[outside] == 0).all()
    assert np.isinf(result.variance[outside]).all()
    assert result.scale == pytest.approx(1.0, abs=0.02)
    used = ~result.mask
    assert np.std(result.difference[used] / np.sqrt(result.variance[used])) == pytest.approx(
        1.0, abs=0.1
    )


def test_distortions_move_along_with_whole_pixels():
    wcs = world()
    wcs.wcs.ctype = ["RA---TAN-SIP", "DEC--TAN-SIP"]
    bent = np.zeros((3, 3))
    bent[2, 0] = 1e-4
    wcs.sip = Sip(bent, 0.5 * bent, None, None, wcs.wcs.crpix)
    frame = dia.as_frame(fits.PrimaryHDU(np.ones((40, 50), np.float32), wcs.to_header(relax=True)))
    shift = Registration(np.array([[1.0, 0, 12.0], [0, 1.0, -3.0]]), "shift", "stars", 9, 0.1)
    moved = apply_registration(frame, shift, (40, 50))
    before = frame.wcs.pixel_to_world(42.0, 7.0)
    for there in (moved.wcs, WCS(moved.meta)):
        assert there.pixel_to_world(30.0, 10.0).separation(before).arcsec < 1e-6
