"""Detections in a difference and in the stack, merged over epochs and ranked."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from pytorchdia.changes.candidates import (
    Kind,
    cut_outs,
    merge_detections,
    stack_detections,
)
from pytorchdia.changes.detections import (
    DetectionFlag,
    Detections,
    filter_difference,
    find_in_difference,
    systematic_share,
)
from pytorchdia.changes.stack import Stack, gaussian_equivalent
from pytorchdia.errors import ShapeError
from pytorchdia.frame import Flag
from pytorchdia.io import as_frame
from pytorchdia.simulate import Stars, render_gaussian
from pytorchdia.stars.catalogue import Catalogue, catalogue_from_list
from pytorchdia.stars.matched_filter import Filtered
from pytorchdia.stars.psf import gaussian_psf

SHAPE = (110, 120)
FWHM = 3.4
SIGMA = FWHM / 2.3548200450309493
PSF = gaussian_psf(FWHM)
NOISE = 3.0
# The error of a flux under white noise, the pixels being fine: 2 sigma sqrt(pi) each way.
FLUX_ERROR = NOISE * 2.0 * np.sqrt(np.pi) * SIGMA


def image(x, y, flux, shape=SHAPE):
    stars = Stars(*(np.atleast_1d(np.asarray(v, dtype=float)) for v in (x, y, flux)))
    return render_gaussian(stars, shape, SIGMA)


def noise(seed: int):
    return np.random.default_rng(seed).standard_normal(SHAPE) * NOISE


def search(difference, flags=None, variance=None, **options):
    variance = np.full(SHAPE, NOISE**2) if variance is None else variance
    filtered = filter_difference(difference, variance, flags, PSF, **options)
    return find_in_difference(difference, variance, flags, PSF, filtered), filtered


def catalogue_of(x, y) -> Catalogue:
    frame = as_frame(100.0 + noise(99), variance=np.full(SHAPE, NOISE**2), saturation=np.inf)
    return catalogue_from_list(frame, x=x, y=y, fwhm=FWHM)


def test_sources_of_both_signs_are_found_with_their_fluxes() -> None:
    x, y, flux = [30.3, 80.6, 60.1], [40.2, 70.4, 20.9], np.array([12.0, -30.0, 8.0]) * FLUX_ERROR
    found, _ = search(image(x, y, flux) + noise(1), scale=0.8)
    assert len(found) == 3
    assert (np.diff(np.abs(found.significance)) <= 0).all()
    for a, b, f in zip(x, y, flux, strict=True):
        i = int(np.hypot(found.x - a, found.y - b).argmin())
        assert np.hypot(found.x[i] - a, found.y[i] - b) < 0.5
        assert found.flux[i] == pytest.approx(f / 0.8, abs=4 * FLUX_ERROR / 0.8)
        assert found.error[i] == pytest.approx(FLUX_ERROR / 0.8, rel=0.05)
    assert (found.flags == 0).all()


def test_noise_alone_makes_at_most_one_detection_in_a_frame() -> None:
    assert sum(len(search(noise(seed))[0]) for seed in range(20)) <= 1


def test_a_star_that_moved_is_a_dipole_and_a_faded_one_is_not() -> None:
    moved = image([40.0], [50.0], [8000.0]) - image([40.25], [50.15], [8000.0])
    found, _ = search(moved + noise(2))
    assert len(found) == 2
    assert ((found.flags & DetectionFlag.DIPOLE) != 0).all()
    pair, _ = search(image([40.0, 45.0], [50.0, 50.0], [3000.0, -3000.0]) + noise(3))
    assert len(pair) == 2
    assert ((pair.flags & DetectionFlag.DIPOLE) == 0).all()


def test_cosmic_rays_and_neighbours_of_bad_pixels_are_flagged() -> None:
    difference, flags = image([80.0], [30.0], [3000.0]) + noise(4), np.zeros(SHAPE, dtype=np.int16)
    difference[60, 40] += 1000.0
    flags[31, 82] = Flag.SATURATED
    found, _ = search(difference, flags)
    ray, star = (int(np.hypot(found.x - a, found.y - b).argmin()) for a, b in ((40, 60), (80, 30)))
    assert found.flags[ray] == DetectionFlag.ILL_SHAPED
    assert found.flags[star] == DetectionFlag.NEAR_BAD_PIXELS
    assert all(flag.meaning for flag in DetectionFlag)


def trail(slope: float, height: float):
    """Light along a line through the middle, of the width of the PSF [ADU a pixel]."""
    y, x = np.indices(SHAPE) - np.array([SHAPE[0] / 2, SHAPE[1] / 2])[:, None, None]
    across = (y - slope * x) / np.hypot(1.0, slope)
    return height * np.exp(-0.5 * (across / SIGMA) ** 2)


@pytest.mark.parametrize("slope", [0.0, 0.4, -3.0, 1e6])
@pytest.mark.parametrize("height", [4.5, 10.0, -10.0])
def test_trails_of_any_slope_are_flagged_and_sources_on_faint_ones_are_not(
    slope: float, height: float
) -> None:
    difference = trail(slope, height) + noise(11)
    found, _ = search(difference)
    assert len(found) >= 5
    flagged = (found.flags & (DetectionFlag.TRAIL_OR_HALO | DetectionFlag.ILL_SHAPED)) != 0
    assert flagged.mean() > 0.9
    if abs(height) < 5:
        star, _ = search(difference + image([60.0], [55.0], [30 * FLUX_ERROR]))
        assert np.hypot(star.x[0] - 60.0, star.y[0] - 55.0) < 1.0
        assert not star.flags[0] & DetectionFlag.TRAIL_OR_HALO


def test_the_halo_of_a_masked_star_is_flagged() -> None:
    y, x = np.indices(SHAPE)
    distance = np.hypot(y - 50, x - 60)
    flags = np.where(distance < 10, Flag.SATURATED, 0).astype(np.int16)
    halo, apart = 14.0 * np.exp(-(distance - 10) / 10), []
    for seed in range(20):
        found, _ = search(halo + noise(500 + seed), flags)
        apart += list(found.flags[np.hypot(found.x - 60, found.y - 50) > 10 + FWHM + 1])
    assert len(apart) > 20
    assert (np.array(apart) & DetectionFlag.TRAIL_OR_HALO != 0).mean() > 0.9


def test_faint_sources_in_a_crowd_of_changes_are_not_taken_for_a_trail() -> None:
    rng = np.random.default_rng(13)
    flagged = []
    for seed in range(30):
        x, y = (v.ravel() for v in np.meshgrid(np.arange(15, 110, 16.0), np.arange(15, 100, 16.0)))
        x, y = x + rng.uniform(-3, 3, x.shape), y + rng.uniform(-3, 3, y.shape)
        flux = rng.uniform(6.5, 30.0, x.shape) * FLUX_ERROR * rng.choice([-1, 1], x.shape)
        found, _ = search(image(x, y, flux) + noise(300 + seed))
        near = [int(np.hypot(found.x - a, found.y - b).argmin()) for a, b in zip(x, y, strict=True)]
        flagged += list((found.flags[near] & DetectionFlag.TRAIL_OR_HALO) != 0)
    assert len(flagged) == 30 * 36
    assert np.mean(flagged) < 0.02


def test_a_trail_that_only_the_stack_shows_is_doubtful() -> None:
    stack, epochs = Stack(), []
    for k in range(12):
        found, filtered = search(trail(0.0, 2.0 * (-1) ** k) + noise(400 + k))
        stack.add(filtered)
        epochs.append(found)
    only = stack_detections(stack, FWHM)
    assert len(only) >= 5
    assert ((only.flags & DetectionFlag.TRAIL_OR_HALO) != 0).mean() > 0.9
    merged = merge_detections(epochs, only, catalogue_of([], []), fwhm=FWHM, shape=SHAPE)
    assert sum(c.kind is not Kind.DOUBTFUL for c in merged) <= 1


def test_a_spoilt_epoch_does_not_pull_a_candidate_off_its_star() -> None:
    stack, epochs = Stack(), []
    for k in range(12):
        change = image([60.0], [50.0], [(-1) ** k * 25.0 * FLUX_ERROR])
        if k == 4:  # something bright and not of the PSF's shape, two pixels from the star
            change[46:49, 54:67] += 60.0 * FLUX_ERROR / FWHM**2
        found, filtered = search(noise(500 + k) + change)
        stack.add(filtered)
        epochs.append(found)
    alone = stack_detections(stack, FWHM)
    near = np.hypot(alone.x - 60.0, alone.y - 50.0) < 4.0
    assert np.hypot(alone.x[near] - 60.0, alone.y[near] - 50.0).min() > 0.5  # the stack is off
    found = merge_detections(epochs, alone, catalogue_of([60.0], [50.0]), fwhm=FWHM, shape=SHAPE)
    star = [c for c in found if c.kind is not Kind.DOUBTFUL and c.star == 1]
    assert len(star) == 1
    assert (star[0].x, star[0].y) == pytest.approx((60.0, 50.0), abs=0.15)


def test_noise_beyond_the_error_map_raises_the_bar() -> None:
    found, filtered = search(2.0 * noise(5))
    assert len(found) <= 1
    assert np.median(filtered.error[20:-20, 20:-20]) == pytest.approx(2 * FLUX_ERROR, rel=0.1)


def test_the_share_of_light_by_which_bright_stars_scatter() -> None:
    rng = np.random.default_rng(6)
    reference = 10 ** rng.uniform(3, 6, 400)
    error = np.sqrt(100 + reference)
    quiet = rng.standard_normal(400) * error
    assert systematic_share(quiet, error, reference) < 1e-3
    loud = quiet + 0.01 * reference * rng.standard_normal(400)
    assert systematic_share(loud, error, reference) == pytest.approx(0.01, rel=0.25)
    assert systematic_share(loud[:5], error[:5], reference[:5]) == 0.0
    # An epoch that is wrong altogether has a share too, whatever its size.
    flux, error, reference = np.full(20, 2e9), np.full(20, 10.0), np.full(20, 1e6)
    assert systematic_share(flux, error, reference) == pytest.approx(1.4826 * 2000, rel=1e-6)


def test_what_bright_stars_scatter_is_not_detected() -> None:
    light = image([50.0], [50.0], [1e6]) * 2 * np.pi * SIGMA**2
    difference = image([50.0], [50.0], [30 * FLUX_ERROR]) + noise(7)
    assert len(search(difference)[0]) == 1
    share = 10 * FLUX_ERROR / 1e6
    assert len(search(difference, light=light, share=share)[0]) == 0


@settings(max_examples=30, deadline=None)
@given(z=st.floats(0.5, 30.0), freedom=st.integers(1, 60))
def test_a_chi_square_has_the_sigma_of_its_chance(z: float, freedom: int) -> None:
    from scipy.stats import chi2

    square = chi2.isf(norm.sf(z), freedom)
    got = gaussian_equivalent(np.array([square]), np.array([float(freedom)]))[0]
    assert got == pytest.approx(z, rel=1e-3)


def test_beyond_the_range_of_chances_sigma_goes_on_growing() -> None:
    square = np.geomspace(1000, 1e6, 200)
    z = gaussian_equivalent(square, np.full(200, 11.0))
    assert (np.diff(z) > 0).all()
    assert (np.diff(z) < 1.05 * np.diff(np.sqrt(square)) + 0.1).all()
    assert z[-1] == pytest.approx(1000, rel=0.01)


def test_the_stack_finds_what_no_epoch_shows_and_ignores_the_references_noise() -> None:
    common = noise(100)  # of the reference, the same in all differences
    stack, epochs = Stack(), []
    for k in range(24):
        flux = 4.0 * FLUX_ERROR * np.sin(2 * np.pi * k / 7.3)
        found, filtered = search(image([70.0], [60.0], [flux]) + noise(200 + k) + 0.5 * common)
        stack.add(filtered)
        epochs.append(found)
    alone = stack_detections(stack, FWHM)
    assert len(alone) == 1
    assert (alone.x[0], alone.y[0]) == pytest.approx((70, 60), abs=1.0)
    assert alone.significance[0] > 6.0
    found = merge_detections(
        epochs, alone, catalogue_of([69.8, 20.0], [60.1, 20.0]), fwhm=FWHM, shape=SHAPE
    )
    assert found[0].in_stack
    assert found[0].kind is Kind.VARIABLE
    assert found[0].star == 1
    assert sum(c.kind is not Kind.DOUBTFUL for c in found) <= 2


def test_what_one_epoch_alone_puts_into_the_stack_is_doubtful() -> None:
    stack, epochs = Stack(), []
    for k in range(12):
        trail = np.zeros(SHAPE)
        if k == 4:  # a bright line: nothing in it has the shape of the PSF
            trail[:, 60:63] = 30.0 * FLUX_ERROR / FWHM
        found, filtered = search(noise(300 + k) + trail)
        stack.add(filtered)
        epochs.append(found)
    alone = stack_detections(stack, FWHM)
    on_it = np.abs(alone.x - 61.0) < 3.0
    assert on_it.any()
    both = DetectionFlag.ONE_EPOCH | DetectionFlag.TRAIL_OR_HALO
    assert (alone.flags[on_it] == both).all()
    merged = merge_detections(epochs, alone, catalogue_of([20.0], [20.0]), fwhm=FWHM, shape=SHAPE)
    assert sum(c.kind is not Kind.DOUBTFUL for c in merged) <= 1


def test_a_place_that_one_epoch_alone_covers_is_left_to_that_epoch() -> None:
    stack, epochs = Stack(), []
    for k in range(3):
        found, filtered = search(image([70.0], [60.0], [40 * FLUX_ERROR]) + noise(400 + k))
        unseen = np.zeros(SHAPE, dtype=bool)
        unseen[:, 40:] = k > 0
        error, total = (np.where(unseen, np.inf, e) for e in (filtered.error, filtered.total_error))
        stack.add(Filtered(np.where(unseen, 0.0, filtered.flux), error, total))
        epochs.append(found if k == 0 else found.chosen(found.x < 40))
    alone = stack_detections(stack, FWHM)
    assert not (np.hypot(alone.x - 70, alone.y - 60) < 3).any()
    merged = merge_detections(epochs, alone, catalogue_of([20.0], [20.0]), fwhm=FWHM, shape=SHAPE)
    assert merged[0].epochs == (0,)
    assert (merged[0].x, merged[0].y) == pytest.approx((70, 60), abs=0.2)
    # Nor is there a candidate if the epoch's own detection was lost.
    none = [each.chosen(np.zeros(len(each), dtype=bool)) for each in epochs]
    merged = merge_detections(none, alone, catalogue_of([20.0], [20.0]), fwhm=FWHM, shape=SHAPE)
    assert all(np.hypot(c.x - 70, c.y - 60) > 3 for c in merged)


def test_the_stack_is_the_weighted_mean_and_the_chi_square_about_it() -> None:
    rng = np.random.default_rng(8)
    flux, error = rng.standard_normal((5, 6, 7)), rng.uniform(0.5, 2.0, (5, 6, 7))
    error[2, 3, 4] = np.inf
    flux[2, 3, 4] = 0.0
    stack = Stack()
    for f, e in zip(flux, error, strict=True):
        stack.add(Filtered(f, e))
    w = 1 / error**2
    mean = (w * flux).sum(0) / w.sum(0)
    assert stack.mean_flux().flux == pytest.approx(mean)
    assert stack.total.n[3, 4] == 4
    square = (w * (flux - mean) ** 2).sum(0)
    sums = stack.noise  # no systematic error was given
    assert sums.squares - sums.weighted**2 / sums.weight == pytest.approx(square)
    assert np.array_equal(sums.squares, stack.total.squares)
    one, other = Stack(), Stack()
    for k, (f, e) in enumerate(zip(flux, error, strict=True)):
        (one if k < 2 else other).add(Filtered(f, e))
    joined = Stack().joined(one).joined(other)
    for name, image in vars(stack.total).items():
        assert vars(joined.total)[name] == pytest.approx(image), name


def test_a_varying_bright_star_is_found_where_it_is() -> None:
    # The systematic error is largest on the star, and must not push the detection off it.
    light = image([50.3], [49.8], [1e6]) * 2 * np.pi * SIGMA**2
    stack = Stack()
    for k in range(6):
        difference = image([50.3], [49.8], [300 * FLUX_ERROR * (-1) ** k]) + noise(400 + k)
        found, filtered = search(difference, light=light, share=20 * FLUX_ERROR / 1e6)
        assert (found.x[0], found.y[0]) == pytest.approx((50.3, 49.8), abs=0.15)
        assert 10 < abs(found.significance[0]) < 16
        stack.add(filtered)
    alone = stack_detections(stack, FWHM)
    assert (alone.x[0], alone.y[0]) == pytest.approx((50.3, 49.8), abs=0.3)


def season():
    """Twelve epochs: a variable of the catalogue, a nova from the sixth on, dipoles all along."""
    epochs, stack = [], Stack()
    for k in range(12):
        flux = [25 * FLUX_ERROR * np.cos(k), 15 * FLUX_ERROR * (k >= 6)]
        difference = image([30.2, 90.4], [40.1, 80.7], flux) + noise(300 + k)
        difference += image([70.0], [20.0], [9000.0]) - image([70.25], [20.0], [9000.0])
        found, filtered = search(difference)
        epochs.append(found)
        stack.add(filtered)
    catalogue = catalogue_of([30.0, 70.1, 50.0], [40.0, 20.0, 100.0])
    alone = stack_detections(stack, FWHM)
    return merge_detections(epochs, alone, catalogue, fwhm=FWHM, shape=SHAPE)


def test_detections_of_a_season_are_merged_named_and_ranked() -> None:
    found = season()
    variable, nova = found[:2]
    assert (variable.kind, variable.star) == (Kind.VARIABLE, 1)
    assert (variable.x, variable.y) == pytest.approx((30.2, 40.1), abs=0.2)
    assert len(variable.epochs) >= 9
    assert variable.best_epoch in {0, 3, 6, 9}  # where |cos k| is largest
    assert (nova.kind, nova.star) == (Kind.NEW, None)
    assert nova.epochs == (6, 7, 8, 9, 10, 11)
    assert (nova.x, nova.y) == pytest.approx((90.4, 80.7), abs=0.2)
    assert nova.flux == pytest.approx(15 * FLUX_ERROR, abs=4 * FLUX_ERROR)
    assert nova.false_alarms < 1e-6
    rest = found[2:]
    doubtful = [c for c in rest if c.kind is Kind.DOUBTFUL]
    assert len(doubtful) >= 1
    assert all(np.hypot(c.x - 70, c.y - 20) < 5 for c in doubtful)
    assert len(rest) - len(doubtful) <= 1


def detection(x: float, significance: float, flags: int = 0) -> Detections:
    one = np.ones(1)
    return Detections(
        x * one, 50.0 * one, significance * one, one, significance * one, np.array([flags])
    )


def test_a_star_is_one_candidate_though_a_spoilt_epoch_divides_its_detections() -> None:
    """The spoilt one takes some of them and the stack; without these it lies where the rest do."""
    spoilt = detection(52.0, 100.0, int(DetectionFlag.NEAR_BAD_PIXELS))
    epochs = [spoilt, detection(50.05, 80.0), detection(49.95, 60.0)]
    stack = detection(53.9, 90.0)
    (found,) = merge_detections(epochs, stack, catalogue_of([50.0], [50.0]), fwhm=4.0, shape=SHAPE)
    assert (found.x, found.y) == pytest.approx((50.0, 50.0), abs=0.1)
    assert found.epochs == (0, 1, 2)
    assert found.in_stack


def test_nothing_found_is_an_empty_list() -> None:
    empty, _ = search(np.zeros(SHAPE))
    assert merge_detections([empty], None, catalogue_of([], []), fwhm=FWHM, shape=SHAPE) == []


def test_cut_outs_are_windows_padded_with_zeros() -> None:
    a = np.arange(30.0 * 40).reshape(30, 40)
    cuts = cut_outs([a, -a], [10.2, 0.0], [20.4, 29.0], half=3)
    assert cuts.shape == (2, 2, 7, 7)
    assert np.array_equal(cuts[0, 0], a[17:24, 7:14])
    assert np.array_equal(cuts[0, 1], -a[17:24, 7:14])
    assert np.array_equal(cuts[1, 0, :4, 3:], a[26:30, 0:4])
    assert (cuts[1, 0, 4:] == 0).all()
    assert cut_outs([a], [], [], half=3).shape == (0, 1, 7, 7)
    with pytest.raises(ShapeError, match="must be one"):
        cut_outs([a, a[1:]], [1.0], [1.0])
