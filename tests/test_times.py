"""When a frame was taken, whatever the header calls it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from astropy.time import Time
from astropy.wcs import WCS
from hypothesis import given
from hypothesis import strategies as st

import pytorchdia as dia
from pytorchdia.frame import Detector, Frame
from pytorchdia.headers import Keywords, TimeKeyword, filter_from_header
from pytorchdia.preparation.times import observation_time, pointing, site

START = 56506.69514  # 2013-08-02T16:41:00.1


def frame(exposure=250.0, **header):
    header = {key.replace("_", "-"): value for key, value in header.items()}
    blank = dia.as_frame(np.zeros((4, 4)))
    return Frame(
        blank.data,
        blank.flags,
        meta=header,
        name="night.fits",
        detector=Detector(exposure=exposure),
    )


def codes(when):
    return [finding.code for finding in when.findings]


@pytest.mark.parametrize(
    ("header", "keyword"),
    [
        ({"MJD_OBS": START}, "MJD-OBS"),
        ({"JD": START + 2400000.5}, "JD"),
        ({"MJD": START + 2400000.5}, "MJD"),
        ({"MJD_OBS": str(START)}, "MJD-OBS"),
        ({"DATE_OBS": "2013-08-02T16:41:00.096"}, "DATE-OBS"),
        ({"DATE_OBS": "2013-08-02 16:41:00.096"}, "DATE-OBS"),
        ({"DATE_OBS": "2013-08-02T16:41:00.096Z"}, "DATE-OBS"),
        ({"DATE_OBS": "2013-08-02", "TIME_OBS": "16:41:00.096"}, "DATE-OBS+TIME-OBS"),
        ({"DATE_OBS": "2013-08-02", "UT": " 16:41:00.096 "}, "DATE-OBS+UT"),
        ({"DATE_OBS": "2013-08-02", "UT": 16.68336}, "DATE-OBS+UT"),
        ({"DATE_OBS": "2013/08/02", "UT": "16:41:00.096"}, "DATE-OBS+UT"),
        ({"DATE_OBS": "2013-08-02", "TIME": "16:41:00.096"}, "DATE-OBS+TIME"),
        ({"DATE_OBS": "2013-08-02T16:41:00.096+00:00"}, "DATE-OBS"),
        ({"JD_UTC": START + 2400000.5}, "JD-UTC"),
        ({"DATE_BEG": "2013-08-02T16:41:00.096"}, "DATE-BEG"),
    ],
)
def test_the_start_of_the_exposure_becomes_its_middle(header, keyword):
    when = observation_time(frame(**header))
    assert when.mjd == pytest.approx(START + 125.0 / 86400.0, abs=1e-7)
    assert (when.scale, when.keyword) == ("utc", keyword)
    assert codes(when) == []


def test_middles_and_ends_are_known_as_such():
    for header in ({"MJD_AVG": START}, {"DATE_AVG": "2013-08-02T16:41:00.096"}):
        assert observation_time(frame(**header)).mjd == pytest.approx(START, abs=1e-7)
    end = observation_time(frame(MJD_END=START))
    assert end.mjd == pytest.approx(START - 125.0 / 86400.0)


def test_without_exposure_the_start_is_kept_and_said():
    when = observation_time(frame(None, MJD_OBS=START))
    assert when.mjd == START
    assert codes(when) == ["exposure-unknown"]


@pytest.mark.parametrize(
    "end", [{"MJD_END": START + 300.0 / 86400.0}, {"DATE_END": "2013-08-02T16:46:00.096"}]
)
@pytest.mark.parametrize("exposure", [250.0, None])
def test_an_exposure_with_gaps_has_its_middle_between_start_and_end(end, exposure):
    """A sum of short exposures lasts longer than it exposes; so does a cadence of TESS."""
    when = observation_time(frame(exposure, MJD_OBS=START, **end))
    assert when.mjd == pytest.approx(START + 150.0 / 86400.0, abs=2e-8)
    assert codes(when) == ([] if exposure is None else ["exposure-gaps"])


def test_an_end_that_agrees_with_the_exposure_time_is_not_worth_a_word():
    when = observation_time(
        frame(250.0, DATE_OBS="2013-08-02T16:41:00", DATE_END="2013-08-02T16:45:10")
    )
    assert when.mjd == pytest.approx(Time("2013-08-02T16:43:05").mjd, abs=1e-8)
    assert codes(when) == []


@pytest.mark.parametrize("seconds", [-10.0, 0.0, 100.0])
def test_an_end_that_cannot_be_is_ignored_and_said(seconds):
    when = observation_time(frame(250.0, MJD_OBS=START, MJD_END=START + seconds / 86400.0))
    assert when.mjd == pytest.approx(START + 125.0 / 86400.0, abs=1e-8)
    assert codes(when) == ["exposure-end"]
    assert "250 s" in when.findings[0].message


def test_an_own_keyword_of_the_start_does_not_take_the_end_of_another_clock():
    own = Keywords(time=(TimeKeyword("SHUTTER"),))
    header = {"SHUTTER": START, "MJD_END": START + 1000.0 / 86400.0}
    assert observation_time(frame(250.0, **header), own).mjd == pytest.approx(
        START + 125.0 / 86400.0, abs=1e-8
    )


TESS = {
    "TIMEREF": "SOLARSYSTEM", "TIMESYS": "TDB", "BJDREFI": 2457000, "BJDREFF": 0.0,
    "TSTART": 1437.976957548360, "TSTOP": 1437.997790881693,
    "DATE_OBS": "2018-11-15T11:25:39.948Z", "DATE_END": "2018-11-15T11:55:39.948Z",
    "RA": 81.5, "DEC": -70.1,
}  # fmt: skip


def test_times_at_the_barycentre_are_those_of_tstart_and_tstop():
    """DATE-OBS of these frames is at the barycentre too, 69.184 s of TDB - UTC earlier."""
    when = observation_time(frame(1425.6, **TESS))
    middle = 2457000 + 0.5 * (1437.976957548360 + 1437.997790881693)
    assert when.bjd_tdb == pytest.approx(middle, abs=1e-9)
    assert when.mjd == pytest.approx(middle - 2400000.5, abs=1e-9)
    assert (when.scale, when.keyword, codes(when)) == ("tdb bary", "TSTART+TSTOP", [])
    utc = Time("2018-11-15T11:40:39.948", scale="utc").tdb.jd
    assert when.bjd_tdb == pytest.approx(utc, abs=2e-8)


@pytest.mark.parametrize(
    "broken",
    [
        {"TSTART": "n/a"},
        {"TSTOP": math.nan},
        {"TSTOP": 1437.9},
        {"BJDREFI": 0},
        {"TIMEREF": "LOCAL"},
    ],
)
def test_without_a_pair_at_the_barycentre_the_date_is_taken(broken):
    when = observation_time(frame(1425.6, **{**TESS, **broken}))
    assert when.keyword == "DATE-OBS"
    assert when.scale == "tdb"  # TIMESYS stands in the header


@pytest.mark.parametrize(
    ("timesys", "scale"), [("UTC", "utc"), ("TDB", "tdb"), ("tt", "tt"), ("TAI", "tai")]
)
def test_the_scale_is_that_of_timesys(timesys, scale):
    assert observation_time(frame(MJD_OBS=START, TIMESYS=timesys)).scale == scale


def test_an_unknown_scale_is_said():
    when = observation_time(frame(MJD_OBS=START, TIMESYS="LOCAL"))
    assert (when.scale, codes(when)) == ("utc", ["time-scale-unknown"])


def test_no_keyword_gives_no_time_and_a_finding():
    when = observation_time(frame(OBJECT="field 7"))
    assert when.mjd is None
    assert codes(when) == ["time-unknown"]


@pytest.mark.parametrize(
    "value", ["yesterday", 0.0, -1.0, math.nan, True, "2013-13-45T00:00:00", ""]
)
def test_what_is_no_date_is_ignored_and_said(value):
    when = observation_time(frame(MJD_OBS=value, JD=START + 2400000.5))
    assert when.keyword == "JD"
    assert codes(when) == ["time-unusable"]


def test_own_keywords_come_first():
    own = Keywords(time=(TimeKeyword("SHUTTER", "mid", scale="tt"),), filter=("COLOUR",))
    when = observation_time(frame(MJD_OBS=START, SHUTTER=START + 1.0), own)
    assert (when.mjd, when.scale, when.keyword) == (START + 1.0, "tt", "SHUTTER")
    assert filter_from_header({"FILTER": "R", "COLOUR": "I"}, own) == "I"


def test_bjd_agrees_with_an_independent_sum_over_the_orbit():
    # PHJDMID of this very exposure, by its observers: heliocentric, in UTC.
    when = observation_time(frame(250.037, MJD_OBS=START, RA=" 18:15:29", DEC="-25:17:06"))
    heliocentric = 2456507.2012729472
    tdb_minus_utc = 67.184  # s, 35 leap seconds
    assert when.bjd_tdb is not None
    # The barycentre lies within 5 s of light of the sun.
    assert abs((when.bjd_tdb - heliocentric) * 86400 - tdb_minus_utc) < 5.0


def test_bjd_follows_the_site_by_at_most_the_size_of_the_earth():
    place = {"SITELAT": "-31 35 48", "SITELONG": "-64 32 56", "RA": "18:15:29", "DEC": "-25:17:06"}
    with_site = observation_time(frame(MJD_OBS=START, **place)).bjd_tdb
    del place["SITELAT"]
    without = observation_time(frame(MJD_OBS=START, **place)).bjd_tdb
    assert 0.0 < abs(with_site - without) * 86400 < 0.022


def test_a_bjd_in_the_header_is_taken_as_it_is():
    when = observation_time(frame(BJD_TDB=2456507.2, RA=10.0, DEC=20.0))
    assert when.mjd is not None
    # Frame headers spell it with an underscore.
    header = {"BJD_TDB": 2456507.2}
    blank = frame()
    when = observation_time(Frame(blank.data, blank.flags, meta=header))
    assert when.bjd_tdb == pytest.approx(2456507.2, abs=1e-9)
    assert when.scale == "tdb bary"
    sun = observation_time(frame(HJD=2456507.2, TIMESYS="TDB"))
    assert (sun.scale, sun.bjd_tdb) == ("tdb bary", None)


@pytest.mark.parametrize(
    ("ra", "dec"),
    [("18:15:29", "-25:17:06"), ("18 15 29", "-25 17 06"), (273.870833, -25.285)],
)
def test_pointing_reads_sexagesimal_hours_and_degrees(ra, dec):
    for names in (("RA", "DEC"), ("OBJCTRA", "OBJCTDEC")):
        where = pointing(frame(**dict(zip(names, (ra, dec), strict=True))))
        assert where.ra.deg == pytest.approx(273.870833, abs=1e-5)
        assert where.dec.deg == pytest.approx(-25.285, abs=1e-5)
    assert pointing(frame(RA="nowhere", DEC=5.0)) is None
    assert pointing(frame()) is None


def with_wcs(ra, dec, **header):
    plain = frame(MJD_OBS=START, **header)
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [ra, dec]
    wcs.wcs.cdelt = [-1e-4, 1e-4]
    return replace(plain, wcs=wcs)


def test_a_wcs_that_nobody_filled_in_is_not_believed():
    told = observation_time(frame(MJD_OBS=START, RA=150.0, DEC=-20.0))
    empty = observation_time(with_wcs(0.0, 0.0, RA=150.0, DEC=-20.0))
    assert empty.bjd_tdb == pytest.approx(told.bjd_tdb, abs=1e-9)
    assert codes(empty) == []
    assert observation_time(with_wcs(0.0, 0.0)).bjd_tdb is None


def test_a_header_that_points_elsewhere_than_its_wcs_is_said():
    near = observation_time(with_wcs(150.0, -20.0, RA=150.4, DEC=-20.3))
    assert codes(near) == []
    far = observation_time(with_wcs(150.0, -20.0, RA=10.0, DEC=-20.0))
    assert codes(far) == ["pointing-disagrees"]
    assert far.bjd_tdb == pytest.approx(near.bjd_tdb, abs=1e-9)


def test_site_from_geocentric_coordinates():
    place = site({"OBSGEO-X": 1838554.0, "OBSGEO-Y": -5258914.0, "OBSGEO-Z": -3099898.0})
    assert place.lat.deg == pytest.approx(-29.26, abs=0.01)
    assert site({"OBSGEO-X": 0.0, "OBSGEO-Y": 0.0, "OBSGEO-Z": 0.0}) is None
    assert site({}) is None


@given(mjd=st.floats(45000.0, 61000.0), exposure=st.floats(0.0, 1e4))
def test_dates_and_numbers_agree(mjd, exposure):
    text = Time(mjd, format="mjd", scale="utc").isot
    a = observation_time(frame(exposure, DATE_OBS=text)).mjd
    b = observation_time(frame(exposure, MJD_OBS=mjd)).mjd
    assert a == pytest.approx(b, abs=2e-8)
