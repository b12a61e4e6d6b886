"""The result on disk and as CCDData."""

from __future__ import annotations

import errno
import os
from dataclasses import replace

import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.nddata import CCDData
from astropy.wcs import WCS

import pytorchdia as dia
from pytorchdia.errors import ReadError, WriteError
from pytorchdia.product import check_writable, summarise

from .conftest import SHAPE, camera_header, make_pair

NAMES = ["PRIMARY", "VARIANCE", "MASK", "MODEL", "KERNEL", "KERNEL_COV", "PARAMETERS",
         "DIAGNOSTICS", "FINDINGS"]  # fmt: skip
KERNEL = dia.DeltaKernel((5, 7))


@pytest.fixture(scope="module")
def result(wcs):
    made = make_pair(1)
    header = camera_header(wcs)
    header["BUNIT"], header["BLANK"], header["DATAMAX"] = "ADU", -1, 7.0
    header["HIERARCH ESO TEL NAME"] = "VLT"
    header.add_history("flat-fielded")
    target = made.target.copy()
    target[20, 30] = np.nan
    reference = made.reference.copy()
    reference[40, 50] = np.nan
    source = fits.PrimaryHDU(target, header)
    background = dia.PolynomialBackground(1)
    return dia.subtract(source, reference, kernel=KERNEL, background=background)


@pytest.fixture
def path(result, tmp_path):
    return result.write(tmp_path / "o.fits")


def test_the_file_holds_the_hdus_in_order_and_every_image_unchanged(result, path):
    with fits.open(path) as hdus:
        assert [h.name for h in hdus] == NAMES
        images = (result.difference, result.variance, result.flags, result.model, result.kernel,
                  result.kernel_covariance)  # fmt: skip
        for hdu, image in zip(hdus, images, strict=False):
            np.testing.assert_array_equal(hdu.data, image)
            assert not np.isnan(hdu.data).any()


def test_checksums_are_written_and_right(path):
    with fits.open(path, checksum=True) as hdus:  # a wrong sum warns, which is an error here
        assert all(
            h._checksum_valid == 1 and h._datasum_valid == 1 for h in hdus if h.data is not None
        )


def test_the_file_keeps_the_standard(path):
    with fits.open(path) as hdus:
        hdus.verify("exception")


def test_every_image_points_at_the_same_sky_as_the_target(wcs, path):
    expected = np.array(wcs.pixel_to_world_values([0, 10, 71], [0, 33, 63]))
    with fits.open(path) as hdus:
        for name in ("PRIMARY", "VARIANCE", "MASK", "MODEL"):
            world = WCS(hdus[name].header)
            got = np.array(world.pixel_to_world_values([0, 10, 71], [0, 33, 63]))
            np.testing.assert_allclose(got, expected, rtol=0, atol=1e-10)


def test_a_cd_matrix_of_the_target_is_not_mixed_with_a_pc_matrix(tmp_path):
    header = fits.Header(
        {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 10.0, "CRVAL2": 20.0, "CRPIX1": 3.0,
         "CRPIX2": 4.0, "CD1_1": -1e-4, "CD1_2": 1e-5, "CD2_1": 2e-5, "CD2_2": 1e-4}
    )  # fmt: skip
    made = make_pair(1)
    result = dia.subtract(fits.PrimaryHDU(made.target, header), made.reference, kernel=KERNEL)
    written = fits.getheader(result.write(tmp_path / "o.fits"))
    assert written["CD2_1"] == 2e-5
    assert not [key for key in written if key.startswith(("PC", "CDELT"))]


def test_the_wcs_of_a_ccddata_gets_into_the_file_though_its_meta_has_none(wcs, tmp_path):
    made = make_pair(1)
    source = CCDData(made.target, unit="adu", wcs=wcs, meta={"GAIN": 1.0})
    path = dia.subtract(source, made.reference, kernel=KERNEL).write(tmp_path / "o.fits")
    got = WCS(fits.getheader(path)).pixel_to_world_values(5, 6)
    np.testing.assert_allclose(got, wcs.pixel_to_world_values(5, 6), rtol=0, atol=1e-10)


def test_the_targets_keywords_survive_and_those_of_its_storage_do_not(path):
    header = fits.getheader(path)
    assert (header["OBJECT"], header["GAIN"], header["BUNIT"]) == ("field 7", 1.0, "ADU")
    assert header["ESO TEL NAME"] == "VLT"
    assert header.comments["GAIN"] == "e-/ADU"
    assert "flat-fielded" in list(header["HISTORY"])
    for key in ("BLANK", "DATAMAX", "BZERO", "BSCALE"):
        assert key not in header
    assert header["BITPIX"] == -32


def test_the_primary_header_tells_how_the_result_was_made(result, path):
    header = fits.getheader(path)
    assert header["DIASTAT"] == "CONVERGED"
    assert header["DIAP"] == pytest.approx(result.scale)
    assert header["DIANPIX"] == result.diagnostics.n_pixels
    assert any("kernel: DeltaKernel" in line for line in header["HISTORY"])


def test_the_mask_documents_each_of_its_bits(path):
    header = fits.getheader(path, "MASK")
    for flag in dia.Flag:
        bit = int(flag).bit_length() - 1
        assert header[f"MSK{bit:02d}"] == flag.name
        wanted = f"value {int(flag)}: {flag.meaning}"
        assert any(wanted in line for line in header["HISTORY"])


def test_the_parameters_table_holds_p_background_and_every_kernel_pixel(result, path):
    table = fits.getdata(path, "PARAMETERS")
    values = dict(zip(table["NAME"], table["VALUE"], strict=True))
    errors = dict(zip(table["NAME"], table["ERROR"], strict=True))
    assert (values["P"], errors["P"]) == (result.scale, result.scale_error)
    assert [
        values[f"b_{mn}"] for mn in ("00", "01", "10")
    ] == result.background.coefficients.tolist()
    assert values["K[-2,-3]"] == result.kernel[0, 0]
    assert values["K[+1,+0]"] == result.kernel[3, 3]
    assert errors["K[+0,+0]"] == pytest.approx(np.sqrt(result.kernel_covariance[17, 17]))
    assert len(table) == 1 + 3 + 35


def test_findings_survive_whole(result, path):
    table = fits.getdata(path, "FINDINGS")
    got = list(zip(table["LEVEL"], table["CODE"], table["MESSAGE"], strict=True))
    assert got == [(f.level, f.code, f.message) for f in result.findings]


def test_summary_reads_back_what_was_written(result, path):
    summary = summarise(path)
    assert [name for name, _, _ in summary.hdus] == NAMES
    assert summary.hdus[2] == ("MASK", "64 x 72", "int16")
    assert [row[0] for row in summary.parameters] == ["P", "b_00", "b_01", "b_10"]
    assert summary.parameters[0][1:3] == (result.scale, result.scale_error)
    assert summary.diagnostics["status"] == "CONVERGED"
    assert summary.flagged[dia.Flag.NON_FINITE.meaning] == 1
    assert summary.flagged[dia.Flag.REFERENCE.meaning] == 35


def test_a_result_without_findings_is_written_and_read(result, tmp_path):
    path = replace(result, findings=()).write(tmp_path / "o.fits")
    assert summarise(path).findings == []


def test_names_and_messages_beyond_ascii_are_written(result, tmp_path):
    finding = dia.Finding("x", "größer als 5 µm\nzweite Zeile")
    odd = replace(
        result, findings=(finding,), settings={**result.settings, "target": "größe\t1.fits"}
    )
    path = odd.write(tmp_path / "größe.fits")
    assert fits.getheader(path)["DIATARG"] == "gr\\xf6\\xdfe\\x091.fits"
    assert summarise(path).findings == [
        ("note", "x", "gr\\xf6\\xdfer als 5 \\xb5m\\x0azweite Zeile")
    ]


def test_metadata_of_any_kind_is_written_or_left_out_without_a_warning(tmp_path):
    made = make_pair(1)
    meta = {"a long keyword": 1, "N": np.int64(3), "LIST": [1], "Z": "ü", 5: 6, "BAD": float("nan"),
            "TEL": "x" * 200, "NONE": None}  # fmt: skip
    result = dia.subtract(
        CCDData(made.target, unit="adu", meta=meta), made.reference, kernel=KERNEL
    )
    header = fits.getheader(result.write(tmp_path / "o.fits"))
    assert (header["N"], header["TEL"], header["a long keyword"]) == (3, "x" * 200, 1)
    assert not {"LIST", "Z", "BAD"} & set(header)
    assert result.to_ccddata().meta["N"] == 3


def test_a_target_with_an_unparsable_card_can_be_written(tmp_path, write_fits):
    made = make_pair(1)
    source = write_fits("bad.fits", made.target, fits.Header({"FOO": 1}))
    raw = source.read_bytes()
    at = raw.index(b"FOO     =")
    source.write_bytes(raw[:at] + b"FOO     = 1.2.3 x".ljust(80) + raw[at + 80 :])
    result = dia.subtract(source, made.reference, kernel=KERNEL)
    np.testing.assert_array_equal(
        fits.getdata(result.write(tmp_path / "o.fits")), result.difference
    )


@pytest.mark.parametrize("name", ["o.fits.gz", "o.fit", "o"])
def test_other_file_names_work(result, tmp_path, name):
    path = result.write(tmp_path / name)
    np.testing.assert_array_equal(fits.getdata(path), result.difference)
    assert os.listdir(tmp_path) == [name]


def test_to_ccddata_keeps_wcs_mask_unit_uncertainty_flags_and_meta(result, wcs):
    ccd = result.to_ccddata()
    np.testing.assert_array_equal(ccd.data, result.difference)
    np.testing.assert_array_equal(ccd.mask, result.mask)
    np.testing.assert_array_equal(ccd.flags, result.flags)
    np.testing.assert_array_equal(ccd.uncertainty.array, result.variance)
    assert ccd.uncertainty.uncertainty_type == "var"
    assert ccd.unit == u.adu
    assert ccd.meta["OBJECT"] == "field 7"
    got = ccd.wcs.pixel_to_world_values(5, 6)
    np.testing.assert_allclose(got, wcs.pixel_to_world_values(5, 6), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("text", "unit"),
    [("", u.adu), ("counts", u.adu), ("electron/s", u.electron / u.s), ("?", u.Unit(""))],
)
def test_to_ccddata_finds_a_unit_for_any_text(result, text, unit):
    assert replace(result, unit=text).to_ccddata().unit == unit


def test_an_existing_file_is_kept_unless_overwriting_is_allowed(result, tmp_path):
    path = tmp_path / "o.fits"
    path.write_text("precious")
    with pytest.raises(WriteError, match=r"o.fits exists already; .*--overwrite"):
        result.write(path)
    assert path.read_text() == "precious"
    result.write(path, overwrite=True)
    assert summarise(path).diagnostics["status"] == "CONVERGED"


@pytest.mark.parametrize("where", ["replace", "fsync", "writeto"])
@pytest.mark.parametrize("old", [None, "precious"])
def test_a_write_that_fails_leaves_nothing_and_the_older_file_intact(
    result, tmp_path, monkeypatch, where, old
):
    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    real = fits.HDUList.writeto

    def fail_midway(self, name, **kwargs):
        real(self, name, **kwargs)
        fail()

    path = tmp_path / "o.fits"
    if old:
        path.write_text(old)
    if where == "writeto":
        monkeypatch.setattr(fits.HDUList, "writeto", fail_midway)
    else:
        monkeypatch.setattr(os, where, fail)
    with pytest.raises(WriteError, match=r"o.fits could not be written \(No space left on device"):
        result.write(path, overwrite=True)
    assert os.listdir(tmp_path) == (["o.fits"] if old else [])
    if old:
        assert path.read_text() == old


@pytest.mark.parametrize(
    ("path", "message"),
    [("missing/o.fits", "There is no folder"), ("file/o.fits", "There is no folder"),
     (".", "is a folder"), ("x" * 300, "cannot be the name"), ("/dev/full", "is a device")],
)  # fmt: skip
def test_places_that_cannot_be_written_are_refused_at_once(tmp_path, path, message):
    (tmp_path / "file").write_text("x")
    with pytest.raises(WriteError, match=message):
        check_writable(tmp_path / path, overwrite=True)


def test_a_folder_without_permission_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *args: False)
    with pytest.raises(WriteError, match="not writable"):
        check_writable(tmp_path / "o.fits", overwrite=False)


def test_summary_of_a_file_that_is_no_result_lists_its_hdus(write_fits):
    with pytest.raises(ReadError, match=r"is not a result of pytorchdia \(it holds PRIMARY\)"):
        summarise(write_fits("a.fits", np.zeros(SHAPE)))


@pytest.mark.parametrize("size", [0, 1000, 100_000])
def test_summary_of_a_damaged_file_names_it(path, size):
    raw = path.read_bytes()
    assert len(raw) > size
    path.write_bytes(raw[:size])
    with pytest.raises(ReadError, match=r"o.fits"):
        summarise(path)
