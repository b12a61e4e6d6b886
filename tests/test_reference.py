"""Many frames made into one reference: deep, clean, sharp, and with an honest variance."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

import pytorchdia as dia
from pytorchdia.errors import InputError, ShapeError
from pytorchdia.frame import Detector
from pytorchdia.preparation.combining import combine, measure_scaling
from pytorchdia.preparation.outliers import changed_stars
from pytorchdia.preparation.reference import make_reference
from pytorchdia.preparation.register import Registration
from pytorchdia.preparation.resample import apply_registration
from pytorchdia.preparation.star_detection import detect_stars, star_shapes
from pytorchdia.preparation.trails import trails
from pytorchdia.simulate import Stars, render_gaussian

SHAPE = (220, 240)
GAIN, READ_NOISE = 1.5, 5.0
HALF = np.array([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5]])  # onto the corners between pixels


def stars(seed=1, n=150):
    rng = np.random.default_rng([3, seed])
    return Stars(rng.uniform(-20, 259, n), rng.uniform(-20, 239, n), rng.uniform(2e3, 6e4, n))


def clean(scale=1.0, sky=500.0, phi=1.5, shift=(0.0, 0.0)):
    return sky + scale * render_gaussian(stars().shifted(*shift), SHAPE, phi)


def frame(seed, noisy=True, spoil=None, **options):
    image = clean(**options)
    if noisy:
        sigma = np.sqrt((READ_NOISE / GAIN) ** 2 + image / GAIN)
        image = image + sigma * np.random.default_rng([8, seed]).standard_normal(SHAPE)
    if spoil is not None:
        spoil(image)
    return dia.as_frame(image, gain=GAIN, read_noise=READ_NOISE, saturation=np.inf)


def test_mean_of_equal_frames_has_the_variance_that_it_claims():
    combined = combine([frame(seed) for seed in range(6)])
    residual = (combined.data.numpy() - clean()) / np.sqrt(combined.variance.numpy())
    assert not combined.mask.any()
    assert np.mean(residual**2) == pytest.approx(1.0, abs=0.03)
    assert np.median(combined.variance) == pytest.approx(500.0 / GAIN / 6, rel=0.1)
    assert combined.detector.gain == pytest.approx(6 * GAIN, rel=0.01)


def test_frames_of_other_scale_and_sky_are_brought_to_the_first():
    frames = [frame(0), frame(1, scale=0.6, sky=900.0), frame(2, scale=1.7, sky=200.0)]
    combined = combine(frames)
    residual = combined.data.numpy() - clean()
    # The scales are known to some 0.1 per cent.
    limit = 0.005 * (clean() - 500.0) + 6 * np.sqrt(combined.variance.numpy()) + 2.0
    assert (np.abs(residual) < limit).mean() > 0.999
    assert abs(np.median(residual)) < 2.0
    # A weight is the inverse variance of the sky: 0.6^2/900, 1.7^2/200, in terms of 1/500.
    expected = 1.0 / (GAIN * sum(s**2 / (v + 16.7) for s, v in ((1, 500), (0.6, 900), (1.7, 200))))
    assert np.median(combined.variance) == pytest.approx(expected, rel=0.15)


def test_scaling_is_that_of_the_simulation():
    first, other = frame(0), frame(1, scale=0.6, sky=900.0, phi=1.8)
    found = measure_scaling(other, first, detect_stars(first), 5.5)
    assert found.scale == pytest.approx(0.6, rel=0.01)
    assert found.sky == pytest.approx(900.0, abs=10.0)


def hit(image):
    """A cosmic ray, a satellite and a hot pixel on a star."""
    image[60, 40:52] += 2500.0
    image[:, 130] += 800.0
    image[180, 200] += 4e4


@pytest.mark.parametrize("n", [2, 3, 5])
def test_outliers_are_rejected(n):
    frames = [frame(0), frame(1, spoil=hit), *(frame(seed) for seed in range(2, n))]
    combined, plain = combine(frames), combine(frames, reject=False)
    struck = np.zeros(SHAPE, dtype=bool)
    hit(struck_by := np.zeros(SHAPE))
    struck = struck_by > 0
    sigma = np.sqrt(combined.variance.numpy())
    flat = clean() < 560.0  # on stars the limit is wider by what the seeing may do
    error = np.abs(combined.data.numpy() - clean())
    assert (error < 5 * sigma)[struck & flat].all()
    assert (np.abs(plain.data.numpy() - clean()) > 5 * sigma)[struck].mean() > 0.95


def test_stars_of_another_seeing_are_no_outliers():
    frames = [frame(seed, phi=phi) for seed, phi in enumerate((1.5, 1.6, 1.7, 1.8))]
    combined, plain = combine(frames), combine(frames, reject=False)
    peaks = clean() > 2000.0
    np.testing.assert_allclose(combined.data.numpy()[peaks], plain.data.numpy()[peaks], rtol=0.02)


@pytest.mark.parametrize("factors", [(1.25, 1, 0.75, 0.8), (1, 1, 9, 1), (1, 1, 1, 0.05)])
def test_a_star_that_changes_keeps_its_whole_image(factors):
    """Mild changes with the seeing's, an outburst, an eclipse: none loses its core."""
    at = Stars(np.array([90.3]), np.array([110.4]), np.array([2e4]))
    phis = (1.27, 1.4, 1.55, 1.7)

    def changed(factor, phi):
        return lambda image: np.add(image, factor * render_gaussian(at, SHAPE, phi), out=image)

    frames = [
        frame(seed, phi=phi, spoil=changed(factor, phi))
        for seed, (factor, phi) in enumerate(zip(factors, phis, strict=True))
    ]
    combined, plain = combine(frames), combine(frames, reject=False)
    near = render_gaussian(at, SHAPE, 1.5) > 5.0
    np.testing.assert_array_equal(combined.data.numpy()[near], plain.data.numpy()[near])


def ray(image):
    image[110, 90:92] += 8000.0


def long_ray(image):
    """Two pixels wide, as long as the star, and its light spread a little by resampling."""
    track = np.zeros(SHAPE)
    track[107:114, 90:92] = 8000.0 * np.array([0.1, 0.4, 0.9, 1.0, 0.8, 0.3, 0.1])[:, None]
    image += gaussian_filter(track, 0.35)


def trail(image):
    image[:, 89:92] += 8000.0 * np.array([0.6, 1.0, 0.6])


@pytest.mark.parametrize("spoil", [ray, long_ray, trail])
def test_what_crosses_a_star_is_no_change_of_the_star(spoil):
    at = Stars(np.array([90.3]), np.array([110.4]), np.array([2e4]))
    star = render_gaussian(at, SHAPE, 1.5)

    def with_star(image):
        image += star

    def spoilt(image):
        image += star
        spoil(image)

    good = [frame(seed, spoil=with_star) for seed in range(1, 4)]
    combined, clipped = combine([frame(0, spoil=spoilt), *good]), combine(good)
    hit_by = np.zeros(SHAPE)
    spoil(hit_by)
    use = (hit_by > 7000) & (star > 100)
    assert use.sum() >= 2
    error = (combined.data - clipped.data).numpy()[use]
    assert (np.abs(error) < 5 * np.sqrt(combined.variance.numpy())[use]).all()


@pytest.mark.parametrize("angle", [0.0, 0.6, math.pi / 2, 2.2])
def test_a_trail_is_followed_across_the_stars_that_hide_it(angle):
    """It is as bright as what another seeing does to bright stars, three of which it crosses."""
    far = np.array([-60.0, 0.0, 45.0])
    hit = Stars(120.3 + far * math.cos(angle), 110.2 + far * math.sin(angle), np.full(3, 4e4))
    y, x = np.indices(SHAPE)
    beside = (x - 120.0) * math.sin(angle) - (y - 110.0) * math.cos(angle)
    light = 700.0 * np.exp(-0.5 * (beside / 2.5) ** 2)

    def sky(seed, phi, trail):
        def add(image):
            image += render_gaussian(hit, SHAPE, phi) + trail

        return frame(seed, phi=phi, spoil=add)

    phis = (1.4, 1.55, 1.5, 1.45)
    good = [sky(seed, phi, 0.0) for seed, phi in enumerate(phis)]
    spoilt, right = combine([good[0], sky(1, phis[1], light), *good[2:]]), combine(good)
    off = np.abs((spoilt.data - right.data).numpy())
    on_stars = (light > 400.0) & (render_gaussian(hit, SHAPE, 1.5) > 300.0)
    assert on_stars.sum() > 50
    # One of four frames, each of another seeing, is left out; its trail would add 100 to 180.
    assert off[on_stars].mean() < 40.0
    error = off / np.sqrt(right.variance.numpy())
    assert error[(light > 1.0) & (right.data.numpy() < 530.0)].mean() < 1.0
    assert (error[light < 1e-3] < 0.1).mean() > 0.99  # the scale of the frame moves a little


def rows_of(*pixels):
    image = np.zeros((100, 120), dtype=bool)
    for rows, columns in pixels:
        image[rows, columns] = True
    return image


def test_the_pixels_of_a_trail():
    whole = rows_of((slice(48, 53), slice(0, 120)))
    pieces = rows_of((slice(48, 53), slice(10, 50)), (slice(49, 52), slice(62, 100)))
    found = trails(pieces, 3.1)
    assert (found | ~whole).all()  # to both edges: what is left is no longer than the gap
    assert found.sum() <= 120 * 10  # half a FWHM and half a pixel on either side
    short = rows_of((slice(48, 53), slice(10, 50)), (slice(49, 52), slice(80, 88)))
    ends = np.flatnonzero(trails(short, 3.1).any(axis=0))
    assert ends[0] == 0
    assert 50 <= ends[-1] < 60  # 30 pixels are too far to go on
    assert np.array_equal(trails(pieces.T, 3.1), found.T)


@pytest.mark.parametrize(
    "pixels",
    [
        [(slice(40, 60), slice(40, 62))],  # a star
        [(slice(20, 80), slice(20, 50))],  # broad
        [(slice(50, 52), slice(20, 80)), (slice(20, 80), slice(50, 52))],  # the spikes of a star
        [(50, slice(10, 30))],  # a cosmic ray, shorter than 10 FWHM
    ],
)
def test_what_is_no_trail(pixels):
    assert not trails(rows_of(*pixels), 3.0).any()
    assert not trails(rows_of(), 3.0).any()


def test_a_change_beside_the_middle_of_a_star_is_one_and_a_track_is_none():
    """The image of a blend that has changed is broad, with its peak at one end of it."""
    y, x = np.indices((21, 21))

    def spot(at, height, phi, row=10.0):
        return height * np.exp(-0.5 * ((y - row) ** 2 + (x - at) ** 2) / phi**2)

    star = spot(10.0, 2000.0, 1.7)
    blend = spot(8.8, 1500.0, 0.9, 10.3) + spot(10.7, 1600.0, 0.9, 10.3)
    track = np.where((np.abs(x - 9.5) < 1.0) & (np.abs(y - 10) < 3), spot(9.5, 3000.0, 1.7), 0.0)
    for excess, changed in ((blend, True), (-blend, True), (track, False), (-track, False)):
        outlying = np.abs(excess) > 0.98 * np.abs(excess).max()
        kept = changed_stars(outlying, excess, star, 10.0, 4.0)
        assert kept.any() == changed


def test_pixels_of_no_frame_are_flagged_and_those_of_one_are_filled():
    def left(image):
        image[:, :30] = np.nan

    def lower(image):
        image[:20, :] = np.nan

    combined = combine([frame(0, spoil=left), frame(1, spoil=lower)])
    lost = np.zeros(SHAPE, dtype=bool)
    lost[:20, :30] = True
    np.testing.assert_array_equal(combined.mask.numpy(), lost)
    filled = combined.data.numpy()[100:, :30] - clean()[100:, :30]
    assert np.abs(filled).max() < 6 * np.sqrt(clean()[100:, :30].max() / GAIN)
    sky = clean() < 520.0
    sky[:20] = False
    variance = combined.variance.numpy()
    one, both = np.median(variance[:, :30][sky[:, :30]]), np.median(variance[:, 30:][sky[:, 30:]])
    assert one / both == pytest.approx(2.0, rel=0.1)


def test_a_reference_of_shifted_frames_is_as_sharp_as_the_frames():
    shifts = [(0.0, 0.0), (12.5, -7.5), (-4.4, 3.5), (8.5, 8.5)]
    frames = [frame(seed, shift=shift) for seed, shift in enumerate(shifts)]
    reference = make_reference(frames)
    width, _ = star_shapes(reference, detect_stars(reference))
    single, _ = star_shapes(frames[0], detect_stars(frames[0]))
    assert width == pytest.approx(single, rel=0.02)
    inner = (slice(20, -20), slice(20, -20))
    residual = (reference.data.numpy() - clean())[inner]
    assert np.std(residual[clean()[inner] < 560.0]) < 0.6 * math.sqrt(500.0 / GAIN)
    assert {f.code for f in reference.findings} == {"reference-combined", "reference-resampled"}


def test_a_frame_of_another_field_is_left_out_and_named():
    rng = np.random.default_rng(0)
    other = Stars(rng.uniform(0, 239, 150), rng.uniform(0, 219, 150), rng.uniform(2e3, 6e4, 150))
    image = 500.0 + render_gaussian(other, SHAPE, 1.5) + 18 * rng.standard_normal(SHAPE)
    reference = make_reference([frame(0), frame(1), dia.as_frame(image, gain=GAIN)])
    left_out = [f for f in reference.findings if f.code == "reference-frame-left-out"]
    assert len(left_out) == 1
    assert "another field" in left_out[0].message
    assert (
        "2 frames" in next(f for f in reference.findings if f.code == "reference-combined").message
    )


def test_one_frame_is_its_own_reference():
    one = frame(0)
    reference = make_reference([one])
    np.testing.assert_allclose(reference.data.numpy(), one.data.numpy(), atol=1e-9)
    assert reference.variance is not None


def test_warnings_about_the_frames_are_kept_once_each_with_their_number():
    frames = [replace(frame(i), detector=Detector()) for i in range(3)]
    frames[2] = frame(2)
    warnings = [f for f in combine(frames).findings if f.level == "warning"]
    assert [f.code for f in warnings] == ["noise-estimated"]
    assert "2 of 3 frames combined" in warnings[0].message
    assert not [f for f in combine([frame(0), frame(1)]).findings if f.level == "warning"]
    turned = Registration(HALF, "resampled", "stars", 9, 0.1)
    moved = apply_registration(frames[0], turned, SHAPE)
    warnings = [f.code for f in combine([frames[1], moved]).findings if f.level == "warning"]
    assert warnings == ["noise-estimated"]  # nor that a resampled sky is quiet


def test_a_resampled_frame_without_a_gain_counts_with_the_noise_that_it_had():
    turned = Registration(HALF, "resampled", "stars", 9, 0.1)
    for known in (frame(0), frame(0, sky=0.0)):
        unknown = replace(known, detector=Detector())
        here, there = (combine([apply_registration(f, turned, SHAPE)]) for f in (known, unknown))
        good = ((here.flags == 0) & (there.flags == 0)).numpy()
        true, measured = (np.quantile(f.variance.numpy()[good], 0.1) for f in (here, there))
        assert measured == pytest.approx(true, rel=0.1)


def test_strips_make_no_difference():
    from pytorchdia.preparation import combining as module

    frames = [frame(0), frame(1, spoil=hit), frame(2)]
    whole = combine(frames)
    original = module.strips
    try:
        module.strips = lambda height, rows: original(height, 17)
        narrow = combine(frames)
    finally:
        module.strips = original
    np.testing.assert_array_equal(whole.data.numpy(), narrow.data.numpy())
    np.testing.assert_array_equal(whole.variance.numpy(), narrow.variance.numpy())


def test_what_cannot_be_combined_is_refused():
    with pytest.raises(InputError, match="no frames"):
        combine([])
    with pytest.raises(InputError, match="no frames"):
        make_reference([])
    with pytest.raises(ShapeError, match="register"):
        combine([frame(0), dia.as_frame(np.ones((5, 5)))])
