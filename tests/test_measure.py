"""What a frame shows of itself."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

import pytorchdia as dia
from pytorchdia.errors import FlatImageError, InputError, TooFewPixelsError
from pytorchdia.measure import (
    choose_kernel,
    default_noise,
    measure_seeing,
    measure_sky,
    reference_level,
)
from pytorchdia.noise import CCDNoise, FixedVariance
from pytorchdia.simulate import Stars, render_gaussian

SHAPE = (96, 108)
# The scatter is a robust scale of 2000 correlated values: known to about 4 %.
SCATTER = 0.12


def sky_image(seed, level=900.0, sigma=None, shape=SHAPE):
    rng = np.random.default_rng(seed)
    sigma = math.sqrt(level) if sigma is None else sigma
    return level + sigma * rng.standard_normal(shape)


def star_field(seed, phi, sky=900.0, read_noise=5.0, gain=1.0):
    """A grid of isolated stars at random places within their pixels; photon and read noise."""
    rng = np.random.default_rng(seed)
    y, x = (a.ravel().astype(float) for a in np.mgrid[14:96:22, 14:108:22])
    stars = Stars(
        x + rng.uniform(-0.5, 0.5, x.size), y + rng.uniform(-0.5, 0.5, x.size), np.full(x.size, 6e4)
    )
    image = sky + render_gaussian(stars, SHAPE, phi)
    sigma = np.sqrt((read_noise / gain) ** 2 + image / gain)
    return image + sigma * rng.standard_normal(SHAPE)


def codes(findings):
    return [finding.code for finding in findings]


def test_reference_level_is_the_median_of_the_good_pixels():
    image = sky_image(1)
    mask = image > 930
    assert reference_level(dia.as_frame(image, mask=mask)) == np.median(image[~mask])


def test_reference_level_of_nothing_is_refused_with_the_count():
    with pytest.raises(TooFewPixelsError, match=f"All {SHAPE[0] * SHAPE[1]} pixels"):
        reference_level(dia.as_frame(np.full(SHAPE, np.nan)))


@pytest.mark.parametrize("phi", [None, 1.3])
def test_sky_level_and_scatter_are_measured_under_stars_and_a_gradient(phi):
    image = sky_image(2) if phi is None else star_field(2, phi)
    expected = math.sqrt(900.0) if phi is None else math.sqrt(925.0)
    image = image + np.linspace(-10, 10, SHAPE[1])
    sky = measure_sky(dia.as_frame(image))
    assert sky.scatter == pytest.approx(expected, rel=SCATTER)
    assert sky.level == pytest.approx(900.0, abs=12)
    assert sky.dark_level <= sky.level


def test_too_few_good_pixels_for_the_sky_are_counted():
    mask = np.ones(SHAPE, bool)
    mask[10:14, 10:14] = False
    with pytest.raises(TooFewPixelsError, match=r"Only [1-4] good sky pixels"):
        measure_sky(dia.as_frame(sky_image(3), mask=mask))


def test_the_own_variance_of_a_frame_comes_first():
    frame = dia.as_frame(sky_image(4), variance=np.full(SHAPE, 7.0), gain=3.0)
    noise, findings = default_noise(frame)
    assert isinstance(noise, FixedVariance)
    assert float(noise.variance(frame.data)[3, 4]) == 7.0
    assert findings == ()


def test_gain_and_read_noise_give_eq_6_with_the_read_noise_in_adu():
    frame = dia.as_frame(sky_image(5, sigma=math.sqrt(3.0**2 + 450)), gain=2.0, read_noise=6.0)
    noise, findings = default_noise(frame)
    assert isinstance(noise, CCDNoise)
    assert (noise.read_noise, noise.gain, noise.offset) == (3.0, 2.0, 0.0)
    assert findings == ()


def test_an_unknown_read_noise_counts_as_zero_and_is_noted():
    noise, findings = default_noise(dia.as_frame(sky_image(6), gain=1.0))
    assert (noise.read_noise, codes(findings)) == (0.0, ["read-noise-unknown"])


def test_a_subtracted_sky_is_restored_from_its_scatter():
    frame = dia.as_frame(sky_image(7) - 900.0, gain=1.0, read_noise=0.0)
    noise, findings = default_noise(frame)
    assert noise.offset == pytest.approx(900.0, rel=0.12)
    assert codes(findings) == ["sky-restored"]


def test_a_given_offset_is_used_as_it_is():
    frame = dia.as_frame(sky_image(7) - 900.0, gain=1.0, read_noise=0.0)
    noise, findings = default_noise(frame, offset=850.0)
    assert (noise.offset, findings) == (850.0, ())


def test_a_sky_quieter_than_its_photons_is_reported():
    frame = dia.as_frame(sky_image(8, sigma=10.0), gain=1.0, read_noise=0.0)
    noise, findings = default_noise(frame)
    assert (noise.offset, codes(findings)) == (0.0, ["sky-too-quiet"])


def test_without_a_gain_it_is_found_from_the_scatter_of_the_sky():
    noise, findings = default_noise(dia.as_frame(sky_image(9, sigma=math.sqrt(900 / 2.5))))
    assert noise.gain == pytest.approx(2.5, rel=0.12)
    assert codes(findings) == ["noise-estimated"]


def test_without_a_gain_and_without_a_sky_the_variance_is_constant():
    frame = dia.as_frame(sky_image(10, level=0.0, sigma=12.0))
    noise, findings = default_noise(frame)
    assert float(noise.variance(frame.data).max()) == pytest.approx(144.0, rel=0.12)
    assert codes(findings) == ["noise-constant"]


def test_a_flat_goes_into_the_noise_model_with_and_without_a_gain():
    flat = np.full(SHAPE, 0.5)
    known = default_noise(dia.as_frame(sky_image(11), gain=1.0, read_noise=0.0), flat=flat)[0]
    guessed = default_noise(dia.as_frame(sky_image(11)), flat=flat)[0]
    for noise in (known, guessed):
        assert float(noise.flat.max()) == 0.5


def test_a_sky_without_scatter_is_refused():
    image = np.full(SHAPE, 100.0)
    image[50, 50] = 500.0
    with pytest.raises(FlatImageError, match="does not scatter"):
        default_noise(dia.as_frame(image))


@pytest.mark.parametrize("phi", [1.1, 1.6, 2.2])
def test_seeing_is_the_fwhm_of_the_stars(phi):
    seeing = measure_seeing(dia.as_frame(star_field(12, phi)))
    assert seeing.fwhm == pytest.approx(2.3548 * phi, rel=0.05)
    assert seeing.n_stars >= 10


@pytest.mark.parametrize("bad", ["noise", "constant", "masked"])
def test_seeing_without_stars_is_unknown(bad):
    image = {"noise": sky_image(13), "constant": np.ones(SHAPE), "masked": np.full(SHAPE, np.nan)}
    assert measure_seeing(dia.as_frame(image[bad])) is None


def test_the_kernel_has_nine_gaussian_widths_of_the_targets_stars():
    target, reference = (dia.as_frame(star_field(14, phi)) for phi in (1.6, 1.1))
    kernel, findings = choose_kernel(target, reference)
    assert kernel.shape in ((15, 15), (17, 17))
    assert codes(findings) == ["kernel-size"]


def test_a_target_sharper_than_the_reference_is_reported():
    target, reference = (dia.as_frame(star_field(15, phi)) for phi in (1.1, 1.8))
    assert codes(choose_kernel(target, reference)[1]) == ["kernel-size", "target-sharper"]


def test_the_kernel_without_stars_is_that_of_the_paper_or_a_third_of_the_frame():
    frame = dia.as_frame(sky_image(16))
    kernel, findings = choose_kernel(frame, frame)
    assert (kernel.shape, codes(findings)) == ((19, 19), ["seeing-unknown"])
    small = dia.as_frame(sky_image(16, shape=(30, 40)))
    assert choose_kernel(small, small)[0].shape == (9, 9)


@pytest.mark.parametrize("side", range(5, 40))
def test_the_chosen_kernel_is_odd_and_leaves_pixels_to_fit(side):
    frame = dia.as_frame(sky_image(17, shape=(side, side + 3)))
    ky, kx = choose_kernel(frame, frame)[0].shape
    assert ky % 2 == kx % 2 == 1
    assert ky <= side - 2


def test_a_frame_too_small_for_any_kernel_is_refused_with_its_size():
    frame = dia.as_frame(sky_image(18, shape=(4, 9)))
    with pytest.raises(InputError, match="4 x 9 pixels is too small"):
        choose_kernel(frame, frame)


def test_measures_do_not_depend_on_the_values_of_bad_pixels():
    image = star_field(19, 1.5)
    mask = np.zeros(SHAPE, bool)
    mask[20:24, 30:35] = True
    frame = dia.as_frame(image, mask=mask)
    spoiled = replace(frame, data=frame.data.clone())
    spoiled.data[frame.mask] = 1e9
    assert measure_seeing(frame) == measure_seeing(spoiled)
    assert measure_sky(frame) == measure_sky(spoiled)


@pytest.mark.parametrize("phi", [0.5, 0.7, 1.1])
@pytest.mark.parametrize("density", [30, 300, 1000])
def test_crowded_stars_are_not_taken_for_a_subtracted_sky(density, phi):
    rng = np.random.default_rng(density)
    shape, n = (200, 210), int(density * 4.2)
    flux = rng.uniform(1e-9, 10**-4.5, n) ** (-2 / 3)
    stars = Stars(rng.uniform(0, 209, n), rng.uniform(0, 199, n), flux)
    image = 500.0 + render_gaussian(stars, shape, phi)
    image = image + np.sqrt(25.0 + image) * rng.standard_normal(shape)
    noise, findings = default_noise(dia.as_frame(image, gain=1.0, read_noise=5.0))
    assert noise == CCDNoise(5.0, 1.0)
    assert set(codes(findings)) <= {"sky-too-loud"}
