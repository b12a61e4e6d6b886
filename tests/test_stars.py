"""The catalogue: stars found on the reference, or taken from a list."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from astropy.nddata import NDDataRef
from astropy.wcs import WCS

from pytorchdia.errors import InputError
from pytorchdia.frame import Flag
from pytorchdia.io import as_frame
from pytorchdia.simulate import Stars, render_gaussian
from pytorchdia.stars.catalogue import StarFlag, catalogue_from_list, find_stars
from pytorchdia.stars.matched_filter import find_peaks, matched_filter
from pytorchdia.stars.photometry import refine_positions
from pytorchdia.stars.psf import gaussian_psf

from .season_field import make_field, matched


def test_all_stars_are_found_and_nothing_else() -> None:
    field = make_field()
    found = find_stars(field.frame)
    _, distance = matched(found, field.stars)
    assert (distance < 0.5).all()
    assert len(found) == len(field.stars.x)
    assert list(found.id) == list(range(1, len(found) + 1))


def test_the_brightest_come_first_and_may_be_kept_alone() -> None:
    field = make_field()
    found = find_stars(field.frame)
    assert (np.diff(found.flux) <= 0).all()
    few = find_stars(field.frame, max_stars=5)
    assert np.array_equal(few.x, found.x[:5])


def test_matched_filter_is_a_least_squares_fit_at_each_pixel() -> None:
    rng = np.random.default_rng(5)
    y, x = np.mgrid[-3:4, -2:3]
    psf = np.exp(-0.5 * ((x - 0.4) ** 2 + (y / 1.7) ** 2 + 0.3 * x * y))
    psf /= psf.sum()
    image, variance = rng.standard_normal((20, 23)), rng.uniform(1, 4, (20, 23))
    variance[8, 9] = np.inf
    image[8, 9] = 1e9
    filtered = matched_filter(image, variance, psf)
    for iy, ix in ((10, 10), (6, 12), (0, 1)):
        top, left = iy - 3, ix - 2
        rows = [j for j in range(7) if 0 <= top + j < 20]
        columns = [i for i in range(5) if 0 <= left + i < 23]
        p = psf[np.ix_(rows, columns)]
        window = np.ix_([top + j for j in rows], [left + i for i in columns])
        w = 1.0 / variance[window]
        flux = np.where(w > 0, w * p * image[window], 0).sum() / (w * p**2).sum()
        if (p**2).sum() > 0.5 * (psf**2).sum():
            assert filtered.flux[iy, ix] == pytest.approx(flux, rel=1e-8)
            assert filtered.error[iy, ix] == pytest.approx((w * p**2).sum() ** -0.5, rel=1e-8)
        else:
            assert filtered.error[iy, ix] == np.inf
            assert filtered.flux[iy, ix] == 0.0


def test_peaks_are_placed_between_pixels() -> None:
    star = Stars(np.array([12.3]), np.array([9.6]), np.array([100.0]))
    x, y = find_peaks(render_gaussian(star, (20, 25), 2.0), 1.0, 2.0)
    assert x == pytest.approx([12.3], abs=0.05)
    assert y == pytest.approx([9.6], abs=0.05)


def test_a_saturated_star_is_one_star_and_flagged() -> None:
    field = make_field()
    brightest = int(field.stars.flux.argmax())
    level = 0.3 * float(field.frame.data.max())
    frame = as_frame(field.frame.data, variance=field.frame.variance, saturation=level)
    found = find_stars(frame)
    near = np.hypot(found.x - field.stars.x[brightest], found.y - field.stars.y[brightest]) < 4
    assert near.sum() == 1
    assert found.flags[near][0] & StarFlag.SATURATED
    n_bright = sum((frame.flags.numpy() & Flag.SATURATED)[round(y), round(x)] > 0
                   for x, y in zip(field.stars.x, field.stars.y, strict=True))  # fmt: skip
    assert ((found.flags & StarFlag.SATURATED) != 0).sum() >= n_bright > 0


def test_a_list_keeps_its_order_and_its_names() -> None:
    field = make_field()
    taken = catalogue_from_list(
        field.frame, x=[50.0, -40.0, 3.0], y=[60.0, 10.0, 90.0], names=("a", "b", "c")
    )
    assert list(taken.x) == [50.0, -40.0, 3.0]
    assert taken.names == ("a", "b", "c")
    assert taken.flags[1] & StarFlag.OUTSIDE
    assert taken.flux_error[1] == np.inf
    assert taken.flags[2] & StarFlag.EDGE
    assert taken.to_table().colnames[:2] == ["id", "name"]


def test_a_list_in_ra_and_dec_goes_through_the_wcs(wcs) -> None:
    field = make_field()
    frame = as_frame(field.frame.data.numpy(), gain=1.5, read_noise=6.0, saturation=np.inf)
    frame = type(frame)(**{**vars(frame), "wcs": wcs})
    ra, dec = wcs.all_pix2world([50.0, 20.25], [60.0, 31.5], 0)
    taken = catalogue_from_list(frame, ra=ra, dec=dec)
    assert taken.x == pytest.approx([50.0, 20.25], abs=1e-6)
    assert taken.y == pytest.approx([60.0, 31.5], abs=1e-6)
    assert taken.ra == pytest.approx(ra)


def with_sip(wcs: WCS) -> WCS:
    header = wcs.to_header(relax=True)
    header["CTYPE1"], header["CTYPE2"] = "RA---TAN-SIP", "DEC--TAN-SIP"
    header["A_ORDER"] = header["B_ORDER"] = 3
    header["A_2_0"], header["B_0_2"], header["A_3_0"] = 1e-4, 1e-4, 1e-7
    return WCS(header)


@pytest.mark.parametrize("distorted", [False, True])
def test_stars_that_the_wcs_cannot_place_are_outside_and_harm_no_other(wcs, distorted) -> None:
    wcs = with_sip(wcs) if distorted else wcs
    field = make_field()
    frame = replace(field.frame, wcs=wcs)
    ra, dec = (np.append(v, v[0]) for v in wcs.all_pix2world([50.0, 20.25], [60.0, 31.5], 0))
    ra[2], dec[2] = (ra[2] + 1.0, dec[2] + 1.0) if distorted else (ra[2] + 180.0, -dec[2])
    taken = catalogue_from_list(frame, ra=ra, dec=dec, names=("a", "b", "far"))
    assert taken.x[:2] == pytest.approx([50.0, 20.25], abs=1e-3)
    assert taken.y[:2] == pytest.approx([60.0, 31.5], abs=1e-3)
    assert ((taken.flags & StarFlag.OUTSIDE) != 0).tolist() == [False, False, True]
    refined = refine_positions(frame, gaussian_psf(3.0), taken)
    assert refined.ra == pytest.approx(ra, abs=1e-3)
    assert refined.dec == pytest.approx(dec, abs=1e-3)
    assert np.isinf(refined.flux_error).tolist() == [False, False, True]


def test_the_wcs_of_a_slice_is_used(wcs) -> None:
    field = make_field()
    whole = NDDataRef(field.frame.data.numpy(), wcs=wcs)
    frame = as_frame(whole[4:, 7:], gain=1.5, read_noise=6.0, saturation=np.inf)
    found = find_stars(frame)
    ra, dec = wcs.all_pix2world(found.x + 7, found.y + 4, 0)
    assert found.ra == pytest.approx(ra)
    assert found.dec == pytest.approx(dec)
    taken = catalogue_from_list(frame, ra=ra, dec=dec)
    assert taken.x == pytest.approx(found.x, abs=1e-6)
    assert taken.y == pytest.approx(found.y, abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "as x and y, or as ra and dec"),
        ({"x": [1.0]}, "as x and y"),
        ({"x": [1.0], "y": [1.0, 2.0]}, "one length"),
        ({"x": [1.0], "y": [np.nan]}, "not finite"),
        ({"ra": [1.0], "dec": [1.0]}, "no world coordinates"),
        ({"x": [1.0], "y": [1.0], "names": ("a", "b")}, "1 stars but 2 names"),
    ],
)
def test_lists_that_cannot_be_used_are_refused(arguments, message) -> None:
    with pytest.raises(InputError, match=message):
        catalogue_from_list(make_field().frame, **arguments)


def test_a_frame_without_measurable_stars_says_so() -> None:
    rng = np.random.default_rng(2)
    frame = as_frame(rng.normal(100, 3, (60, 60)), variance=np.full((60, 60), 9.0))
    found = find_stars(frame, threshold=6.0)
    assert len(found) == 0
    assert [f.code for f in found.findings] == ["star-width-unknown"]
    with pytest.raises(InputError, match="fwhm"):
        find_stars(frame, fwhm=-1.0)
