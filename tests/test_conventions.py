"""What surveys and cameras do to pixels: scales, bits of masks, colour filters, units of time."""

from __future__ import annotations

import math

import numpy as np
import pytest
from astropy.io import fits
from astropy.nddata import CCDData

import pytorchdia as dia
from pytorchdia.conventions import bad_pixels, linear_scale
from pytorchdia.io import read_mask

SHAPE = (40, 50)
STEP = 2.1e-4  # of the integers of a stack
COUNTS = np.random.default_rng(1).normal(100.0, 30.0, SHAPE)
COUNTS[10, 10] = 5e4


def compressed(counts):
    """As the documentation of Pan-STARRS compresses a stack."""
    alpha = 2.5 * math.log10(math.e)
    offset, softening = counts.mean(), math.sqrt(alpha) * counts.std()
    return alpha * np.arcsinh((counts - offset) / (2.0 * softening)), offset, softening


def stack(path, **cards):
    values, offset, softening = compressed(COUNTS)
    image = fits.ImageHDU(values.astype(np.float32))
    image.scale("int16", bscale=STEP, bzero=3.5)
    image.header["BSOFTEN"], image.header["BOFFSET"] = softening, offset
    image.header["HIERARCH CELL.GAIN"], image.header["HIERARCH CELL.READNOISE"] = 1.02, 8.5
    image.header["HIERARCH CELL.SATURATION"] = 49000.0
    image.header["HIERARCH FPA.FILTERID"] = "g.00000"
    image.header.update(cards)
    fits.HDUList([fits.PrimaryHDU(), image]).writeto(path, overwrite=True)
    return path


def codes(frame):
    return [finding.code for finding in frame.findings]


def test_a_stack_of_pan_starrs_becomes_counts_and_its_detector_is_known(tmp_path):
    frame = dia.as_frame(stack(tmp_path / "ps1.fits"))
    values, _, softening = compressed(COUNTS)
    alpha = 2.5 * math.log10(math.e)
    slope = 2.0 * softening / alpha * np.cosh(values / alpha)  # of the counts by the pixels
    assert (np.abs(frame.data.numpy() - COUNTS) < 0.51 * STEP * slope).all()
    assert codes(frame) == ["asinh-scale"]
    detector = frame.detector
    assert (detector.gain, detector.read_noise, detector.saturation) == (1.02, 8.5, 49000.0)
    assert frame.flags.numpy()[10, 10] == dia.Flag.SATURATED


def test_the_scale_is_taken_off_once_only(tmp_path):
    """The result of a subtraction keeps the target's header, and may be read again."""
    frame = dia.as_frame(stack(tmp_path / "ps1.fits"))
    assert not {"BSOFTEN", "BOFFSET"} & set(frame.meta)
    fits.PrimaryHDU(frame.data.numpy(), frame.meta).writeto(tmp_path / "linear.fits")
    again = dia.as_frame(tmp_path / "linear.fits")
    np.testing.assert_array_equal(again.data.numpy(), frame.data.numpy())
    assert "asinh-scale" not in codes(again)


@pytest.mark.parametrize(
    "cards", [{"BSOFTEN": "none"}, {"BSOFTEN": 0.0}, {"BSOFTEN": -3.0}, {"BOFFSET": "x"}]
)
def test_a_scale_that_is_none_is_left_alone(tmp_path, cards):
    frame = dia.as_frame(stack(tmp_path / "ps1.fits", **cards))
    np.testing.assert_allclose(frame.data.numpy(), compressed(COUNTS)[0], atol=2e-4)


def test_pixels_without_a_value_stay_so_and_those_beyond_all_numbers_are_masked():
    values = np.array([[0.0, np.nan], [1e4, -1e4]])
    counts, note = linear_scale(values, {"BSOFTEN": 2.0, "BOFFSET": 7.0}, "x")
    assert note is not None
    assert counts[0, 0] == 7.0
    assert not np.isfinite(counts.ravel()[1:]).any()


def test_an_exposure_in_days_is_one_in_seconds(tmp_path):
    """TESS gives days, and says so where the comment begins, as the standard has it."""
    cards = fits.Header([("EXPOSURE", 0.0165, "[d] time on source"), ("BUNIT", "electrons/s")])
    fits.PrimaryHDU(COUNTS, cards).writeto(tmp_path / "t.fits")
    for source in (tmp_path / "t.fits", CCDData(COUNTS, unit="electron/s", meta=cards)):
        frame = dia.as_frame(source)
        assert frame.detector.exposure == pytest.approx(1425.6)
        assert frame.detector.gain == pytest.approx(1425.6)  # of a rate of electrons
        assert "exposure-unit" in codes(frame)


@pytest.mark.parametrize(
    ("comment", "seconds"),
    [("[s] open shutter", 2.0), ("[min]", 120.0), ("[ms] per frame", 0.002), ("[h]", 7200.0),
     ("exposure [d]", 2.0), ("[sec] exposure", 2.0), ("[adu]", 2.0), ("", 2.0)],
)  # fmt: skip
def test_the_unit_of_an_exposure_stands_where_its_comment_begins(comment, seconds):
    hdu = fits.PrimaryHDU(COUNTS, fits.Header([("EXPTIME", 2.0, comment)]))
    assert dia.as_frame(hdu).detector.exposure == pytest.approx(seconds)


def test_an_exposure_that_is_none_is_told_whatever_its_unit():
    hdu = fits.PrimaryHDU(COUNTS, fits.Header([("EXPTIME", -1.0, "[d]")]))
    frame = dia.as_frame(hdu)
    assert frame.detector.exposure is None
    assert "exposure-unusable" in codes(frame)


def mosaic(contrast):
    levels = np.array([[1.0, 1.0 + contrast], [1.0 + contrast, 1.0 - contrast]])
    light = 1000.0 * np.tile(levels, (SHAPE[0] // 2, SHAPE[1] // 2))
    return np.random.default_rng(2).poisson(light).astype(np.uint16)


def test_raw_frames_of_a_colour_camera_are_told():
    header = fits.Header({"BAYERPAT": "RGGB", "EGAIN": 1.0})
    frame = dia.as_frame(fits.PrimaryHDU(mosaic(0.3), header))
    assert codes(frame) == ["colour-mosaic"]
    assert "BAYERPAT = RGGB" in frame.findings[0].message
    assert codes(dia.as_frame(fits.PrimaryHDU(mosaic(0.3)))) == []  # nothing says that it is one
    assert codes(dia.as_frame(fits.PrimaryHDU(mosaic(0.0), header))) == []  # one colour was taken
    header["BAYERPAT"] = "none"
    assert codes(dia.as_frame(fits.PrimaryHDU(mosaic(0.3), header))) == []


def test_a_frame_without_a_pixel_of_one_colour_is_no_mosaic():
    values = mosaic(0.3).astype(float)
    values[::2, ::2] = np.nan
    header = fits.Header({"BAYERPAT": "RGGB"})
    assert "colour-mosaic" not in codes(dia.as_frame(fits.PrimaryHDU(values, header)))


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint32, np.float32, np.float64])
def test_which_values_of_a_mask_are_bad(dtype):
    values = np.array([[0, 1, 4], [5, 64, 100]], dtype)
    lsst = {"MP_BAD": 0, "MP_DETECTED": 2}
    panstarrs = {"MSKNAM00": "DETECTOR", "MSKVAL00": 1, "MSKNAM07": "MASK.VALUE", "MSKVAL07": 65}
    jwst = {"TELESCOP": "JWST"}
    for header, bits, expected in (
        ({}, (), [1, 4, 5, 64, 100]), (lsst, (), [1, 5, 64, 100]), (panstarrs, (), [1, 5, 64, 100]),
        (jwst, (), [1, 5]), (jwst, (2,), [4, 5, 100]), (lsst, (6,), [64, 100]),
    ):  # fmt: skip
        assert values[bad_pixels(values, header, bits)].tolist() == expected


def test_a_mask_of_shares_masks_all_that_is_not_zero():
    values = np.array([0.0, 0.2, np.nan, 1.0, np.inf])
    assert bad_pixels(values, {}).tolist() == [False, True, True, True, True]
    huge = np.array([0.0, 1e30, -1e30])
    assert bad_pixels(huge, {}).tolist() == [False, True, True]


def test_a_mask_in_a_file_of_its_own_is_read_as_its_header_says(tmp_path):
    values = np.zeros(SHAPE, np.int32)
    values[3, 3], values[4, 4], values[5, 5] = 1, 32, 33
    cards = fits.Header({"MP_BAD": 0})
    cards["HIERARCH MP_DETECTED"] = 5
    fits.PrimaryHDU(values, cards).writeto(tmp_path / "m.fits")
    assert np.argwhere(read_mask(tmp_path / "m.fits")).tolist() == [[3, 3], [5, 5]]
    assert np.argwhere(read_mask(tmp_path / "m.fits", (5,))).tolist() == [[4, 4], [5, 5]]


def test_a_level_beside_electrons_and_a_small_gain_is_one_of_counts():
    """Else saturated stars would pass for good ones."""
    cards = fits.Header({"BUNIT": "electron", "GAIN": 0.5, "SATURATE": 6e4})
    frame = dia.as_frame(fits.PrimaryHDU(COUNTS, cards))
    assert frame.detector.saturation == 3e4
    assert codes(frame) == ["gain-unit", "saturation-in-counts"]
    assert frame.flags.numpy()[10, 10] == dia.Flag.SATURATED
    cards["GAIN"] = 2.0  # the level as it stands is the lower one
    assert dia.as_frame(fits.PrimaryHDU(COUNTS, cards)).detector.saturation == 6e4
    assert dia.as_frame(fits.PrimaryHDU(COUNTS, cards), saturation=7e4).detector.saturation == 7e4
