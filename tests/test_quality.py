"""What frames show, and the reasons for which they are turned away."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from astropy.io import fits

import pytorchdia as dia
from pytorchdia.errors import InputError
from pytorchdia.headers import Keywords
from pytorchdia.preparation.quality import Limits, grade, measure_quality
from pytorchdia.preparation.reference import choose_reference_frames
from pytorchdia.simulate import Stars, render_gaussian, render_moffat

SHAPE = (200, 220)


def image(seed=0, n=120, sky=900.0, phi=1.6, gain=1.5):
    rng = np.random.default_rng(4)
    stars = Stars(rng.uniform(0, 219, n), rng.uniform(0, 199, n), rng.uniform(3e3, 6e4, n))
    clean = sky + render_gaussian(stars, SHAPE, phi)
    return clean + np.sqrt(clean / gain) * np.random.default_rng([5, seed]).standard_normal(SHAPE)


def measured(data, name="night.fits", **cards):
    header = fits.Header()
    header["GAIN"], header["RDNOISE"], header["EXPTIME"] = 1.5, 5.0, 100.0
    header["FILTER"], header["MJD-OBS"] = "I", 60000.0
    for key, value in cards.items():
        if value is None:
            del header[key.replace("_", "-")]
        else:
            header[key.replace("_", "-")] = value
    frame = dia.as_frame(fits.PrimaryHDU(np.asarray(data, np.float32), header))
    return measure_quality(replace(frame, name=name))


@pytest.fixture(scope="module")
def season():
    return [measured(image(seed), f"n{seed}.fits", MJD_OBS=60000.0 + seed) for seed in range(5)]


def verdict(season, bad, limits=Limits()):
    """Grade of a bad frame among good ones, which must all be kept."""
    grades = grade([*season[:2], bad, *season[2:]], limits)
    assert [g.accepted for g in grades if g.name != bad.name] == [True] * len(season)
    return grades[2]


def test_numbers_of_a_good_frame(season):
    q = season[1]
    assert q.sky == pytest.approx(900.0, rel=0.02)
    assert q.sky_scatter == pytest.approx(np.sqrt(900.0 / 1.5), rel=0.1)
    assert q.fwhm == pytest.approx(2.3548 * 1.6, rel=0.04)
    assert q.ellipticity < 0.06
    assert 80 <= q.n_stars <= 125
    assert (q.gain, q.read_noise, q.exposure, q.filter) == (1.5, 5.0, 100.0, "I")
    assert q.time == pytest.approx(60001.0 + 50 / 86400)
    assert (q.time_scale, q.time_keyword) == ("utc", "MJD-OBS")
    assert q.masked_share == 0.0


def test_own_keywords_are_used_throughout():
    hdu = fits.PrimaryHDU(image().astype(np.float32))
    hdu.header["MYGAIN"], hdu.header["GAIN"], hdu.header["COLOUR"] = 2.5, 1.0, "z"
    own = Keywords(gain=("MYGAIN",), filter=("COLOUR",))
    q = measure_quality(dia.as_frame(hdu, keywords=own), own)
    assert (q.gain, q.filter) == (2.5, "z")


SKY = np.random.default_rng(9).normal(900.0, 25.0, SHAPE)
ONE = SKY + render_gaussian(Stars(*(np.array([v]) for v in (99.0, 80.0, 5e4))), SHAPE, 1.6)
HALF = image(7)
HALF[: SHAPE[0] * 2 // 3] = np.nan
TRAILED = 900.0 + render_moffat(
    Stars(*np.random.default_rng(3).uniform([[10], [10], [1e4]], [[210], [190], [5e4]], (3, 60))),
    SHAPE, 4.0, ellipticity=0.75, angle=30.0,
) + np.random.default_rng(8).normal(0, 25, SHAPE)  # fmt: skip

BAD = {
    "no stars": (SKY, {}, r"shows no star; 3 are needed"),
    "one star": (ONE, {}, r"shows only one star; 3 are needed"),
    "NaN": (np.full(SHAPE, np.nan), {}, r"All pixels of bad.fits are masked"),
    "two thirds NaN": (HALF, {}, r"66 % of the pixels .* at most 60 %"),
    "no time": (image(8), {"MJD_OBS": None}, r"does not say when it was taken"),
    "another filter": (image(9), {"FILTER": "V"}, r"through filter V, the season through I"),
    "out of focus": (image(10, phi=5.5, n=40), {}, r"1\d\.\d+ pixels wide \(FWHM\) where 3\.\d+"),
    "trailed": (TRAILED, {}, r"trailed: ellipticity 0\.\d+, at most 0\.6"),
    "cloud": (image(11, n=6), {}, r"shows \d stars where \d+ are usual"),
    "daylight": (image(12, sky=2e5, n=300), {}, r"twilight, moon or cloud|stars where"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_frames_are_rejected_with_the_numbers(season, name):
    data, cards, reason = BAD[name]
    bad = verdict(season, measured(data, "bad.fits", **cards))
    assert not bad.accepted
    assert re.search(reason, bad.reason), bad.reason
    assert "bad.fits" in bad.reason


def test_a_frame_given_twice_is_used_once(season):
    twin = replace(season[3], name="copy.fits")
    grades = grade([*season, twin])
    assert [g.accepted for g in grades] == [True] * 5 + [False]
    assert "n3.fits" in grades[-1].reason


def test_a_copy_with_a_mended_header_takes_the_place_of_the_first(season):
    without = replace(season[3], name="raw.fits", time=None)
    grades = grade([*season[:3], without, season[3]])
    assert [g.accepted for g in grades] == [True] * 3 + [False, True]
    assert "when it was taken" in grades[3].reason


def test_a_frame_without_a_filter_is_rejected_where_one_was_asked_for(season):
    nameless = replace(season[0], name="bad.fits", digest="other", filter="")
    bad = verdict(season, nameless, Limits(filter="I"))
    assert not bad.accepted
    assert re.search(r"bad\.fits does not name its filter, and I was asked for", bad.reason)
    assert verdict(season, nameless).accepted


def test_order_in_time_does_not_matter(season):
    backwards = grade(season[::-1])
    assert [g.name for g in backwards] == [q.name for q in season[::-1]]
    assert all(g.accepted for g in backwards)


def test_a_dimmed_frame_is_rejected_once_its_transparency_is_known(season):
    known = [replace(q, transparency=1.0) for q in season]
    bad = verdict(known, replace(known[0], name="bad.fits", digest="other", transparency=0.1))
    assert "cloud" in bad.reason


def test_limits_can_be_taken_off(season):
    free = Limits(None, None, None, None, None, None, None, None, None, "", need_time=False)
    frames = [*season, measured(SKY, "bad.fits", MJD_OBS=None, FILTER="V")]
    assert all(g.accepted for g in grade(frames, free))


def test_a_twilight_frame_with_all_its_stars_is_kept(season):
    # 16 times the light of the sky is 4 times its noise: the stars are still worth measuring.
    assert verdict(season, measured(image(13, sky=14677.0), "twilight.fits")).accepted


@pytest.mark.parametrize("limit", [None, 0.5, np.inf])
def test_a_sky_that_was_subtracted_has_no_level_to_be_uneven_by(season, limit):
    subtracted = [
        replace(q, sky=level) for q, level in zip(season, (-9, -1, 0, -4, -2), strict=True)
    ]
    assert all(g.accepted for g in grade(subtracted, replace(Limits(), max_sky_range=limit)))
    uneven = replace(season[0], name="uneven.fits", digest="other", sky_range=700.0)
    reason = verdict(season, uneven, replace(Limits(), max_sky_range=0.5)).reason
    assert "more than 0.5 of its level" in reason


def test_two_frames_are_enough_for_a_season_and_none_is_no_error(season):
    assert all(g.accepted for g in grade(season[:2]))
    assert grade([]) == []


def test_cosmic_rays_are_not_counted_as_stars(season):
    data = image(1)
    rng = np.random.default_rng(6)
    data[rng.integers(0, 200, 300), rng.integers(0, 220, 300)] += 2000.0
    assert measured(data).n_stars < season[1].n_stars + 15


def test_a_reference_half_masked_is_said_to_be(season):
    data = image(14)
    data[:110] = np.nan
    half = measured(data, "half.fits")
    assert half.masked_share == pytest.approx(0.55)
    assert verdict(season, half).accepted  # as a target; as a part of the reference it is not
    assert 2 not in choose_reference_frames([*season[:2], half, *season[2:]])


def test_the_sharpest_frames_make_the_reference(season):
    widths = [4.0, 3.0, 3.1, 3.7, 6.0]
    known = [replace(q, fwhm=w) for q, w in zip(season, widths, strict=True)]
    assert choose_reference_frames(known) == [1, 2, 3]
    assert choose_reference_frames(known, n_frames=1) == [1]
    blurred = [replace(q, ellipticity=0.5) if q.name == "n1.fits" else q for q in known]
    assert choose_reference_frames(blurred) == [2, 3]


def test_noise_is_compared_in_the_units_of_the_data(season):
    rates = [
        replace(q, per_second=True, exposure=t)
        for q, t in zip(season, (100.0, 100.0, 20.0, 600.0, 100.0), strict=True)
    ]
    assert all(g.accepted for g in grade(rates))
    silent = [replace(q, exposure=None) if i == 1 else q for i, q in enumerate(season)]
    assert all(g.accepted for g in grade(silent))
    never = [replace(q, exposure=None) for q in season]
    bright = replace(never[2], sky_scatter=20 * never[2].sky_scatter)
    assert [g.accepted for g in grade([*never[:2], bright, *never[3:]])].count(False) == 1
    rate = measured(image() / 100.0, BUNIT="adu/s")
    assert rate.per_second
    assert not measured(image()).per_second


def test_a_binned_frame_is_not_the_sharpest(season):
    known = [replace(q, fwhm=3.0) for q in season]
    binned = replace(known[2], fwhm=1.5, shape=(100, 110))
    assert choose_reference_frames([*known[:2], binned, *known[3:]]) == [0, 1, 3, 4]
    halves = [replace(q, shape=(100, 110)) if i else q for i, q in enumerate(known[:2])]
    assert choose_reference_frames(halves) == [0]


def test_no_good_frame_is_an_error_with_the_reasons(season):
    none = [replace(q, n_stars=1) for q in season]
    with pytest.raises(InputError, match="only one star"):
        choose_reference_frames(none)
    with pytest.raises(InputError, match="no frames"):
        choose_reference_frames([])


def test_frames_without_one_pixel_are_no_twins():
    empty = [measured(np.full(SHAPE, value)) for value in (np.nan, np.nan)]
    assert [g.reason.split(" of ")[0] for g in grade(empty)] == ["All pixels"] * 2
