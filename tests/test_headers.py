"""What is read from headers, in which order, and what is refused."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits
from hypothesis import given
from hypothesis import strategies as st

import pytorchdia as dia
from pytorchdia.errors import InputError
from pytorchdia.headers import KEYWORDS, detector_from_header, parse_unit, unit_from_header

NUMBERS = sorted(KEYWORDS)


def read(header, unit="", **given_numbers):
    return detector_from_header(header, given_numbers, unit)


def codes(findings):
    return [finding.code for finding in findings]


@pytest.mark.parametrize("name", NUMBERS)
def test_every_keyword_is_known_by_itself(name):
    for group in KEYWORDS[name]:
        for keyword in group:
            detector, findings = read({keyword: 3.5})
            assert getattr(detector, name) == 3.5
            assert detector.sources[name] == keyword
            assert findings == ()


@pytest.mark.parametrize("name", NUMBERS)
def test_of_two_keywords_the_first_in_the_table_wins_whatever_the_order_in_the_header(name):
    groups = KEYWORDS[name]
    for first, second in pairwise(groups):
        for order in ((first, second), (second, first)):
            header = {key: 2.0 if group is first else 9.0 for group in order for key in group}
            assert getattr(read(header)[0], name) == 2.0


def test_egain_is_preferred_to_the_dial_setting_in_gain():
    assert read({"GAIN": 100.0, "EGAIN": 1.3})[0].gain == 1.3


@pytest.mark.parametrize(
    ("name", "header", "expected"),
    [
        ("gain", {"GAIN1": 1.0, "GAIN2": 2.0, "GAIN3": 3.0, "GAIN4": 4.0}, 2.5),
        ("gain", {"GAINA": 1.0, "GAINB": 4.0}, 2.5),
        ("gain", {"GAINA": 0.0, "GAINB": 4.0}, 4.0),
        ("read_noise", {"RDNOISEA": 4.0, "RDNOISEB": 6.0}, 5.0),
        ("saturation", {"SATURATA": 5e4, "SATURATB": 4e4}, 4e4),
    ],
)
def test_amplifiers_of_one_chip_are_combined(name, header, expected):
    assert getattr(read(header)[0], name) == expected


def test_amplifiers_that_differ_by_more_than_a_tenth_are_told():
    findings = read({"GAINA": 1.0, "GAINB": 4.0, "RDNOISEA": 4.9, "RDNOISEB": 5.1})[1]
    assert codes(findings) == ["amplifiers-differ"]
    assert "GAINA = 1, GAINB = 4" in findings[0].message
    assert "2.5" in findings[0].message
    assert "60 %" in findings[0].message
    noises = {"RDNOISEA": 4.0, "RDNOISEB": 6.0}
    assert codes(read(noises)[1]) == ["amplifiers-differ"]
    assert codes(read({"GAINA": 4.05, "GAINB": 3.95})[1]) == []


def test_gains_that_do_not_apply_are_not_compared():
    assert codes(read({"GAINA": 1.0, "GAINB": 4.0}, "electron")[1]) == ["gain-unit"]
    assert codes(read({"GAINA": 1.0, "GAINB": 4.0}, gain=2.0)[1]) == []


@pytest.mark.parametrize("value", ["high", "", 0, 0.0, -1.5, True, False, None, math.nan, math.inf])
@pytest.mark.parametrize("name", ["gain", "read_noise", "exposure"])
def test_an_unusable_value_is_reported_and_the_next_keyword_taken(name, value):
    if name == "read_noise" and value == 0 and value is not False:
        assert read({"RDNOISE": value})[0].read_noise == 0.0  # a camera may have none
        return
    first, second = KEYWORDS[name][0][0], KEYWORDS[name][1][0]
    detector, findings = read({first: value, second: 7.0})
    assert getattr(detector, name) == 7.0
    assert codes(findings) == [f"{name.replace('_', '-')}-unusable"]
    assert first in findings[0].message
    assert findings[0].level == "warning"


def test_a_number_written_as_text_is_a_number():
    assert read({"GAIN": " 1.7 "})[0].gain == 1.7


def test_an_undefined_card_is_as_good_as_none(write_fits):
    header = fits.Header({"GAIN": None, "CCDGAIN": 2.0})
    frame = dia.as_frame(write_fits("u.fits", np.eye(8), header))
    assert frame.detector.gain == 2.0
    assert "gain-unusable" not in codes(frame.findings)


def test_hierarch_keywords_of_eso_are_read(write_fits):
    header = fits.Header()
    header["HIERARCH ESO DET OUT1 CONAD"] = 2.2
    header["HIERARCH ESO DET OUT1 RON"] = 3.3
    detector = dia.as_frame(write_fits("eso.fits", np.eye(8), header)).detector
    assert (detector.gain, detector.read_noise) == (2.2, 3.3)


def test_given_numbers_win_over_the_header():
    detector, findings = read({"GAIN": -1, "RDNOISE": 3.0}, gain=2.0, read_noise=0.0)
    assert (detector.gain, detector.read_noise) == (2.0, 0.0)
    assert detector.sources["gain"] == "given"
    assert findings == ()


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_a_given_gain_is_taken_as_it_is_or_refused(value):
    if value > 0 and math.isfinite(value):
        assert read({}, gain=value)[0].gain == value
    else:
        with pytest.raises(InputError, match="gain must be greater than 0"):
            read({}, gain=value)


def test_saturation_may_be_infinite():
    assert read({"SATURATE": 5e4}, saturation=math.inf)[0].saturation == math.inf


@pytest.mark.parametrize("unit", ["electron", "e-", "ELECTRONS", "photon", "electron / s", "e-/s"])
def test_data_in_electrons_have_gain_one_times_the_exposure_of_a_rate(unit):
    detector, findings = read({"GAIN": 2.0, "EXPTIME": 30.0}, unit)
    assert detector.gain == (30.0 if "s" in unit.split("/")[-1] and "/" in unit else 1.0)
    assert codes(findings) == ["gain-unit"]
    assert "GAIN = 2" in findings[0].message


@pytest.mark.parametrize("unit", ["", "adu", "ADU", "DN", "counts", "ct"])
def test_data_in_counts_keep_the_gain(unit):
    detector, findings = read({"GAIN": 2.0, "EXPTIME": 30.0}, unit)
    assert (detector.gain, findings) == (2.0, ())


@pytest.mark.parametrize("unit", ["adu/s", "ADU / s", "DN/sec", "counts s-1", "ct.s**-1"])
def test_a_count_rate_multiplies_the_gain_by_the_exposure_time(unit):
    detector, findings = read({"GAIN": 2.0, "EXPTIME": 30.0}, unit)
    assert (detector.gain, findings) == (60.0, ())
    assert "30" in detector.sources["gain"]


@pytest.mark.parametrize("unit", ["adu/s", "electron/s"])
def test_a_count_rate_without_exposure_time_has_no_gain_and_says_so(unit):
    detector, findings = read({"GAIN": 2.0}, unit)
    assert detector.gain is None
    assert codes(findings)[-1] == "rate-without-exposure"


def test_a_saturation_level_in_counts_is_none_of_a_rate():
    detector, findings = read({"SATURATE": 60000.0, "EXPTIME": 30.0}, "adu/s")
    assert (detector.saturation, findings) == (2000.0, ())
    assert "30 s" in detector.sources["saturation"]
    for header, unit in (({"SATURATE": 6e4}, "adu/s"), ({"SATURATE": 6e4, "EXPTIME": 3.0}, "e/s")):
        detector, findings = read(header, unit)
        assert detector.saturation is None
        assert codes(findings) == ["saturation-unit"]
    assert read({"SATURATE": 6e4, "EXPTIME": 30.0}, "adu/s", saturation=9.0)[0].saturation == 9.0


@pytest.mark.parametrize("unit", ["Jy", "MJy/sr", "nanomaggy"])
def test_data_in_other_units_have_no_gain_and_say_so(unit):
    detector, findings = read({"GAIN": 2.0, "EXPTIME": 30.0}, unit)
    assert detector.gain is None
    assert codes(findings) == ["unit-not-counts"]


def test_a_given_gain_is_per_unit_of_the_data_whatever_that_is():
    assert read({"EXPTIME": 30.0}, "Jy", gain=5.0)[0].gain == 5.0
    assert read({"EXPTIME": 30.0}, "adu/s", gain=5.0)[0].gain == 5.0


def test_bunit_is_stripped_and_may_be_missing_or_undefined():
    assert unit_from_header({"BUNIT": " adu "}) == "adu"
    assert unit_from_header({"BUNIT": None}) == ""
    assert unit_from_header({}) == ""


def test_an_undefined_bunit_card_is_no_unit(write_fits):
    frame = dia.as_frame(write_fits("u.fits", np.eye(8), fits.Header({"BUNIT": None, "GAIN": 2.0})))
    assert (frame.unit, frame.detector.gain) == ("", 2.0)


@pytest.mark.parametrize(
    ("text", "unit"),
    [("", u.adu), ("ADU", u.adu), ("counts", u.adu), ("ct", u.ct), ("e-", u.electron),
     ("Electrons/s", u.electron / u.s), ("Jy", u.Jy), ("some flux", u.dimensionless_unscaled)],
)  # fmt: skip
def test_units_are_understood_in_the_spellings_of_headers(text, unit):
    assert parse_unit(text) == unit


def test_keywords_of_the_primary_header_serve_an_extension_that_lacks_them(tmp_path):
    primary = fits.PrimaryHDU(header=fits.Header({"GAIN": 2.0, "RDNOISE": 6.0, "EXPTIME": 9.0}))
    image = fits.ImageHDU(np.eye(8), fits.Header({"GAIN": 3.0}), name="SCI")
    fits.HDUList([primary, image]).writeto(tmp_path / "m.fits")
    detector = dia.as_frame(tmp_path / "m.fits").detector
    assert (detector.gain, detector.read_noise, detector.exposure) == (3.0, 6.0, 9.0)
