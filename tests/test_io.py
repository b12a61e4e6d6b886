"""Whatever holds an image gives the same frame as the plain float64 array."""

from __future__ import annotations

import gzip
import shutil

import numpy as np
import pytest
import torch
from astropy import units as u
from astropy.io import fits
from astropy.nddata import (
    CCDData,
    InverseVariance,
    NDData,
    NDDataRef,
    StdDevUncertainty,
    UnknownUncertainty,
    VarianceUncertainty,
)
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import pytorchdia as dia
from pytorchdia.errors import InputError, ReadError, ShapeError
from pytorchdia.frame import Flag
from pytorchdia.headers import Keywords
from pytorchdia.io import read_mask, read_plane

from .conftest import SHAPE, make_pair

WHOLE = np.clip(np.random.default_rng(3).poisson(80.0, SHAPE), 0, 118).astype(np.float64)
WHOLE[11, 13] = 122.0  # alone at the top: no plateau


def same(frame, expected, flags=None):
    np.testing.assert_array_equal(frame.data.numpy(), expected)
    assert frame.data.dtype == torch.float64
    assert frame.flags.dtype == torch.int16
    expected_flags = np.zeros(np.shape(expected)) if flags is None else flags
    np.testing.assert_array_equal(frame.flags.numpy(), expected_flags)


def plain(array):
    return dia.as_frame(np.asarray(array, dtype=np.float64), saturation=np.inf)


@pytest.mark.parametrize(
    "dtype",
    ["u1", "i1", "<i2", ">i2", "<u2", ">u2", "<i4", ">i4", "<i8", "f2", "<f4", ">f4", "<f8", ">f8"],
)
def test_every_dtype_and_byte_order_gives_the_float64_image(dtype):
    image = WHOLE.astype(dtype)
    same(dia.as_frame(image, saturation=np.inf), image.astype(np.float64))


def test_bool_image_counts_as_zero_and_one():
    image = np.median(WHOLE) < WHOLE
    same(dia.as_frame(image), image.astype(np.float64))


def test_the_frame_never_shares_memory_with_its_source():
    image = WHOLE.copy()
    frame = dia.as_frame(image)
    image[:] = -1.0
    np.testing.assert_array_equal(frame.data.numpy(), WHOLE)


@given(st.integers(1, 3), st.integers(1, 3), st.booleans(), st.booleans())
def test_any_strides_give_the_same_pixels(step_y, step_x, flip, transpose):
    view = WHOLE[::-step_y, ::step_x] if flip else WHOLE[::step_y, ::-step_x]
    view = view.T if transpose else view
    same(dia.as_frame(view), np.ascontiguousarray(view))


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=9),
        elements=st.floats(width=32, allow_nan=True, allow_infinity=True),
    )
)
def test_non_finite_pixels_are_zero_and_flagged_and_all_others_untouched(image):
    frame = dia.as_frame(image, saturation=np.inf)
    finite = np.isfinite(image)
    np.testing.assert_array_equal(frame.data.numpy(), np.where(finite, image, 0).astype(np.float64))
    np.testing.assert_array_equal((frame.flags.numpy() & 1) == 0, finite)


def test_masked_array_keeps_its_values_and_flags_its_mask():
    mask = WHOLE > 100
    same(dia.as_frame(np.ma.masked_array(WHOLE, mask)), WHOLE, mask * int(Flag.MASKED))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int32])
def test_tensors_of_every_kind_are_read(dtype):
    tensor = torch.from_numpy(WHOLE).to(dtype)
    same(dia.as_frame(tensor), tensor.to(torch.float64).numpy())


def test_tensor_that_requires_grad_is_read():
    same(dia.as_frame(torch.from_numpy(WHOLE).requires_grad_(True)), WHOLE)


def test_quantity_gives_its_values_and_unit():
    frame = dia.as_frame(WHOLE * u.electron)
    same(frame, WHOLE)
    assert frame.unit == "electron"
    assert frame.detector.gain == 1.0


def test_axes_of_length_one_are_dropped(write_fits):
    same(dia.as_frame(WHOLE[None]), WHOLE)
    same(dia.as_frame(write_fits("cube.fits", WHOLE[None, None])), WHOLE)


def test_ccddata_carries_unit_meta_wcs_and_mask(wcs):
    mask = WHOLE > 100
    source = CCDData(WHOLE, unit="adu", mask=mask, wcs=wcs, meta={"GAIN": 2.5, "RDNOISE": 7.0})
    frame = dia.as_frame(source)
    same(frame, WHOLE, mask * int(Flag.MASKED))
    assert (frame.unit, frame.detector.gain, frame.detector.read_noise) == ("adu", 2.5, 7.0)
    assert frame.wcs is source.wcs


@pytest.mark.parametrize(
    "uncertainty",
    [
        StdDevUncertainty(np.sqrt(WHOLE + 1)),
        UnknownUncertainty(np.sqrt(WHOLE + 1)),
        VarianceUncertainty(WHOLE + 1),
        InverseVariance(1 / (WHOLE + 1)),
    ],
    ids=lambda x: type(x).__name__,
)
def test_every_uncertainty_becomes_a_variance(uncertainty):
    frame = dia.as_frame(NDData(WHOLE, uncertainty=uncertainty))
    np.testing.assert_allclose(frame.variance.numpy(), WHOLE + 1, rtol=1e-12)
    same(frame, WHOLE)


def test_uncertainty_without_values_counts_as_none():
    frame = dia.as_frame(CCDData(WHOLE, unit="adu", uncertainty=StdDevUncertainty(None)))
    assert frame.variance is None


def test_infinite_uncertainty_is_flagged_as_no_information():
    sigma = np.ones(SHAPE)
    sigma[2, 3], sigma[4, 5], sigma[6, 7] = np.inf, np.nan, 0.0
    frame = dia.as_frame(NDData(WHOLE, uncertainty=StdDevUncertainty(sigma)))
    flagged = np.argwhere(frame.flags.numpy() == int(Flag.BAD_VARIANCE)).tolist()
    assert flagged == [[2, 3], [4, 5], [6, 7]]
    assert torch.isfinite(frame.variance).all()


def test_variance_argument_replaces_the_sources_own_and_flags_its_bad_pixels():
    own = np.ones(SHAPE)
    own[0, 0] = -1.0
    given_variance = np.full(SHAPE, 4.0)
    given_variance[1, 1] = 0.0
    frame = dia.as_frame(
        NDData(WHOLE, uncertainty=VarianceUncertainty(own)), variance=given_variance
    )
    assert np.argwhere(frame.flags.numpy() != 0).tolist() == [[1, 1]]
    assert float(frame.variance[0, 0]) == 4.0


@pytest.mark.parametrize("kind", ["hdu", "image-hdu", "hdulist", "path", "str"])
def test_fits_objects_and_paths_give_the_array(kind, write_fits):
    path = write_fits("a.fits", WHOLE.astype(np.float32))
    with fits.open(path) as hdus:
        source = {
            "hdu": hdus[0],
            "image-hdu": fits.ImageHDU(WHOLE),
            "hdulist": hdus,
            "path": path,
            "str": str(path),
        }[kind]
        same(dia.as_frame(source), WHOLE)


@pytest.fixture
def mef(tmp_path):
    """An empty primary HDU, a decoy image, and SCI with two versions."""
    path = tmp_path / "mef.fits"
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(WHOLE + 1, name="ACQ")]
    hdus += [fits.ImageHDU(WHOLE + 10 * v, name="SCI", ver=v) for v in (1, 2)]
    fits.HDUList(hdus).writeto(path)
    return path


@pytest.mark.parametrize(
    ("suffix", "added"), [("", 1), ("[1]", 1), ("[SCI]", 10), ("[sci]", 10), ("[2]", 10),
                          ("[SCI,2]", 20), ("[3]", 20)],
)  # fmt: skip
def test_brackets_choose_the_hdu(mef, suffix, added):
    same(dia.as_frame(f"{mef}{suffix}"), WHOLE + added)


def test_hdu_argument_chooses_the_hdu(mef):
    same(dia.as_frame(mef, hdu="SCI"), WHOLE + 10)
    same(dia.as_frame(mef, hdu=("SCI", 2)), WHOLE + 20)
    with fits.open(mef) as hdus:
        same(dia.as_frame(hdus, hdu=1), WHOLE + 1)


@pytest.mark.parametrize("suffix", ["[NOPE]", "[9]", "[SCI,7]"])
def test_missing_hdu_lists_what_the_file_holds(mef, suffix):
    with pytest.raises(ReadError, match=r"mef.fits has no HDU .*1: ACQ 64x72, 2: SCI 64x72"):
        dia.as_frame(f"{mef}{suffix}")


def test_hdu_without_image_is_named(mef):
    with pytest.raises(ReadError, match=r"HDU 0 of mef\.fits holds no image"):
        dia.as_frame(f"{mef}[0]")


def test_a_file_whose_own_name_has_brackets_is_read(write_fits):
    same(dia.as_frame(write_fits("a[1].fits", WHOLE)), WHOLE)


@pytest.mark.parametrize(
    ("name", "utype", "power"),
    [("VARIANCE", None, 1), ("VAR", None, 1), ("ERR", None, 2), ("UNCERT", None, 2),
     ("UNCERT", "StdDevUncertainty", 2), ("UNCERT", "VarianceUncertainty", 1),
     ("UNCERT", "InverseVariance", -1)],
)  # fmt: skip
def test_companion_uncertainty_is_found_by_its_name(name, utype, power):
    companion = fits.ImageHDU(WHOLE + 2.0, name=name)
    if utype:
        companion.header["UTYPE"] = utype
    frame = dia.as_frame(fits.HDUList([fits.PrimaryHDU(WHOLE), companion]))
    np.testing.assert_allclose(frame.variance.numpy(), (WHOLE + 2.0) ** power, rtol=1e-12)
    assert [f.code for f in frame.findings] == ["file-variance"]


@pytest.mark.parametrize("name", ["MASK", "DQ", "BPM", "FLAGS"])
def test_companion_mask_is_found_by_its_name(name):
    mask = (WHOLE > 100).astype(np.int32) * 1024
    frame = dia.as_frame(fits.HDUList([fits.PrimaryHDU(WHOLE), fits.ImageHDU(mask, name=name)]))
    same(frame, WHOLE, (mask != 0) * int(Flag.MASKED))


def test_ccddata_file_gives_what_the_ccddata_gave(tmp_path):
    source = CCDData(
        WHOLE, unit="adu", mask=WHOLE > 100, uncertainty=StdDevUncertainty(np.sqrt(WHOLE + 1))
    )
    source.write(tmp_path / "ccd.fits")
    there, back = dia.as_frame(source), dia.as_frame(tmp_path / "ccd.fits")
    same(back, WHOLE, there.flags.numpy())
    np.testing.assert_allclose(back.variance.numpy(), there.variance.numpy(), rtol=1e-12)


def test_each_chip_takes_the_companions_of_its_own_version():
    hdus = [fits.PrimaryHDU()]
    for ver in (1, 2):
        dq = np.zeros(SHAPE, np.int16)
        dq[ver, ver] = 4
        hdus += [fits.ImageHDU(WHOLE, name="SCI", ver=ver), fits.ImageHDU(dq, name="DQ", ver=ver)]
    for ver in (1, 2):
        frame = dia.as_frame(fits.HDUList(hdus), hdu=("SCI", ver))
        assert np.argwhere(frame.flags.numpy() != 0).tolist() == [[ver, ver]]


def chips(n, mask_vers=(None,), shape=SHAPE):
    """A file of ``n`` images CCD1, CCD2, ..., with a mask and a variance for each of the vers."""
    hdus = [fits.PrimaryHDU()]
    hdus += [fits.ImageHDU(WHOLE, name=f"CCD{i + 1}", ver=mask_vers[i] if mask_vers[0] else None)
             for i in range(n)]  # fmt: skip
    for ver in mask_vers:
        mask = np.zeros(shape, np.uint8)
        mask[ver or 0, 3] = 1
        hdus += [fits.ImageHDU(mask, name="mask", ver=ver)]
        hdus += [fits.ImageHDU(np.full(shape, 2.0), name="VARIANCE", ver=ver)]
    return fits.HDUList(hdus)


def test_an_auxiliary_file_gives_the_image_of_the_chip(tmp_path):
    planes = [np.full(SHAPE, float(i)) for i in (1, 2)]
    hdus = [fits.ImageHDU(plane, name=f"CCD{i}") for i, plane in enumerate(planes, 1)]
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(tmp_path / "flats.fits")
    for chip, level in (("CCD2", 2.0), (2, 2.0), ("CCD1", 1.0), (None, 1.0)):
        assert (read_plane(tmp_path / "flats.fits", chip) == level).all()
    bad = np.zeros(SHAPE, np.uint8)
    bad[1, 2] = 1
    masks = [fits.ImageHDU(plane, name=f"CCD{i}") for i, plane in enumerate((0 * bad, bad), 1)]
    fits.HDUList([fits.PrimaryHDU(), *masks]).writeto(tmp_path / "masks.fits")
    assert np.argwhere(read_mask(tmp_path / "masks.fits", chip="CCD2")).tolist() == [[1, 2]]
    for chip in ("CCD3", 3):
        with pytest.raises(ReadError, match=r"2 chips \(CCD1, CCD2\) and none of.*3.* alone"):
            read_mask(tmp_path / "masks.fits", chip=chip)
    fits.PrimaryHDU(bad).writeto(tmp_path / "one.fits")
    for chip in ("CCD2", 2, 0):
        assert np.argwhere(read_mask(tmp_path / "one.fits", chip=chip)).tolist() == [[1, 2]]


@pytest.mark.parametrize("hdu", [1, "CCD1"])
def test_the_only_image_of_a_file_takes_its_planes_whatever_its_name(hdu):
    frame = dia.as_frame(chips(1), hdu=hdu)
    assert np.argwhere(frame.flags.numpy() != 0).tolist() == [[0, 3]]
    assert (frame.variance == 2.0).all()
    assert [f.code for f in frame.findings] == ["file-mask", "file-variance"]


def test_chips_of_any_name_take_the_planes_of_their_version():
    for i in (1, 2):
        frame = dia.as_frame(chips(2, (1, 2)), hdu=f"CCD{i}")
        assert np.argwhere(frame.flags.numpy() != 0).tolist() == [[i, 3]]


@pytest.mark.parametrize("name", ["BADPIX", "quality", "GHOSTS"])
def test_masks_of_other_names_are_used_or_named(name):
    hdus = chips(1)
    hdus[2].name = name
    frame = dia.as_frame(hdus)
    codes = [f.code for f in frame.findings]
    if name == "GHOSTS":
        assert codes == ["file-variance", "file-images-unused"]
        assert "[GHOSTS]" in frame.findings[1].message
        assert not frame.mask.any()
        frame = dia.as_frame(hdus, keywords=Keywords(mask=("ghosts",)))
    assert np.argwhere(frame.flags.numpy() != 0).tolist() == [[0, 3]]
    assert [f.code for f in frame.findings] == ["file-mask", "file-variance"]


def test_variances_of_other_names_are_used_if_said_so_and_inverse_ones_are_inverted():
    hdus = chips(1)
    hdus[3].name = "POISSON"
    assert dia.as_frame(hdus).variance is None
    assert (dia.as_frame(hdus, keywords=Keywords(variance=("POISSON",))).variance == 2.0).all()
    hdus[3].name = "IVAR"
    hdus[3].data[0, 1] = 0.0  # no weight: no data
    frame = dia.as_frame(hdus)
    assert frame.variance[1, 1] == 0.5
    assert np.argwhere(frame.flags.numpy() != 0).tolist() == [[0, 1], [0, 3]]


def test_a_name_that_the_user_gives_to_a_mask_is_no_variance():
    hdus = chips(1)
    hdus[3].name = "ERR"
    frame = dia.as_frame(hdus, keywords=Keywords(mask=("ERR",)))
    assert frame.variance is None
    assert frame.mask.all()


def test_further_chips_are_named_where_none_was_chosen():
    frame = dia.as_frame(chips(3, (1, 2, 3)))
    assert [f.code for f in frame.findings] == ["file-mask", "file-variance", "file-images-unused"]
    assert "[CCD2,2], [CCD3,3]" in frame.findings[2].message
    codes = [f.code for f in dia.as_frame(chips(3, (1, 2, 3)), hdu="CCD2").findings]
    assert codes == ["file-mask", "file-variance"]


def test_detections_in_an_lsst_mask_are_no_bad_pixels():
    mask = np.zeros(SHAPE, np.int32)
    mask[1, 1], mask[2, 2], mask[3, 3] = 1, 32, 33
    plane = fits.ImageHDU(mask, name="MASK")
    plane.header["MP_BAD"], plane.header["HIERARCH MP_DETECTED"] = 0, 5
    frame = dia.as_frame(fits.HDUList([fits.PrimaryHDU(WHOLE), plane]))
    assert np.argwhere(frame.flags.numpy() != 0).tolist() == [[1, 1], [3, 3]]


def with_dq(values, **cards):
    plane = np.zeros(SHAPE, np.uint32)
    for number, value in enumerate(values):
        plane[number, number] = value
    hdus = [fits.PrimaryHDU(WHOLE, fits.Header(cards)), fits.ImageHDU(plane, name="DQ")]
    return fits.HDUList(hdus)


def bad_pixels(frame):
    return [i for i, j in np.argwhere(frame.flags.numpy() != 0) if i == j]


def test_bits_that_make_a_pixel_bad_can_be_chosen():
    values = [0, 1, 4, 5, 2**31]
    assert bad_pixels(dia.as_frame(with_dq(values))) == [1, 2, 3, 4]
    for bits, expected in (((0,), [1, 3]), ((2, 31), [2, 3, 4]), ((7,), [])):
        frame = dia.as_frame(with_dq(values), keywords=Keywords(mask_bits=bits))
        assert bad_pixels(frame) == expected
    with pytest.raises(dia.InputError, match=r"mask_bits .* from 0 to 62, got \[-1\]"):
        Keywords(mask_bits=(-1,))


def test_chosen_bits_count_in_a_mask_of_floats_too():
    hdus = with_dq([0, 1, 4, 5])
    plane = hdus[1].data.astype(np.float32)
    plane[4, 4] = np.nan
    hdus[1] = fits.ImageHDU(plane, name="DQ")
    assert bad_pixels(dia.as_frame(hdus)) == [1, 2, 3, 4]
    assert bad_pixels(dia.as_frame(hdus, keywords=Keywords(mask_bits=(2,)))) == [2, 3, 4]


def test_of_jwst_only_do_not_use_is_bad():
    frame = dia.as_frame(with_dq([0, 1, 4, 5], TELESCOP="JWST"))
    assert bad_pixels(frame) == [1, 3]
    assert "its pixels are bad" in frame.findings[0].message
    chosen = dia.as_frame(with_dq([0, 1, 4], TELESCOP="JWST"), keywords=Keywords(mask_bits=(2,)))
    assert bad_pixels(chosen) == [2]


def test_planes_that_may_be_another_images_are_left_alone_and_said_to_be():
    frame = dia.as_frame(chips(2), hdu="CCD2")
    same(frame, WHOLE)
    assert frame.variance is None
    assert [(f.code, f.level) for f in frame.findings] == [("file-planes-unused", "warning")]
    assert "MASK, VARIANCE beside 2 images" in frame.findings[0].message
    assert dia.as_frame(chips(2), hdu="MASK").findings == ()
    assert dia.as_frame(chips(2, shape=(5, 5)), hdu="CCD2").findings == ()


def test_companions_of_another_shape_are_left_alone():
    other = fits.ImageHDU(np.ones((5, 5), np.uint8), name="MASK")
    same(dia.as_frame(fits.HDUList([fits.PrimaryHDU(WHOLE), other])), WHOLE)


@pytest.mark.parametrize("kind", ["RICE_1", "GZIP_2", "HCOMPRESS_1"])
def test_tile_compressed_integers_are_exact(tmp_path, kind):
    path = tmp_path / "a.fits.fz"
    fits.CompImageHDU(WHOLE.astype(np.int16), compression_type=kind).writeto(path)
    same(dia.as_frame(path), WHOLE)


def test_tile_compressed_floats_keep_their_nan(tmp_path):
    image = make_pair(4).target.astype(np.float32)
    image[3, 4] = np.nan
    path = tmp_path / "a.fits.fz"
    fits.CompImageHDU(image, compression_type="RICE_1", quantize_level=64).writeto(path)
    frame = dia.as_frame(path)
    assert np.argwhere(frame.flags.numpy() != 0).tolist() == [[3, 4]]
    good = np.isfinite(image)
    scatter = np.std(image[good & (image < np.nanmedian(image))])
    assert np.abs(frame.data.numpy() - image)[good].max() < scatter


def test_gzipped_file_is_read(write_fits, tmp_path):
    path = write_fits("a.fits", WHOLE)
    with open(path, "rb") as plain_file, gzip.open(tmp_path / "a.fits.gz", "wb") as packed:
        shutil.copyfileobj(plain_file, packed)
    same(dia.as_frame(tmp_path / "a.fits.gz"), WHOLE)


def test_unsigned_16_bit_integers_with_bzero_are_read(write_fits):
    image = (WHOLE + 40000).astype(np.uint16)
    path = write_fits("u16.fits", image)
    assert fits.getheader(path)["BZERO"] == 32768
    same(dia.as_frame(path), image.astype(np.float64))


def test_integers_with_bscale_are_read(tmp_path):
    hdu = fits.PrimaryHDU(WHOLE * 0.25 + 7.0)
    hdu.scale("int16", bscale=0.25, bzero=7.0)
    hdu.writeto(tmp_path / "scaled.fits")
    same(dia.as_frame(tmp_path / "scaled.fits"), WHOLE * 0.25 + 7.0)


@pytest.mark.parametrize("compressed", [False, True])
def test_blank_integers_are_flagged_as_undefined(tmp_path, compressed):
    image = WHOLE.astype(np.int32)
    image[5, 6] = -999
    hdu = fits.CompImageHDU(image) if compressed else fits.PrimaryHDU(image)
    hdu.header["BLANK"] = -999
    hdu.writeto(tmp_path / "blank.fits")
    frame = dia.as_frame(tmp_path / "blank.fits")
    flags = np.zeros(SHAPE)
    flags[5, 6] = int(Flag.NON_FINITE)
    expected = WHOLE.copy()
    expected[5, 6] = 0.0
    same(frame, expected, flags)


def test_a_frame_passes_through_unchanged():
    frame = dia.as_frame(WHOLE, gain=2.0)
    assert dia.as_frame(frame) is frame


def test_numbers_given_later_replace_those_of_the_frame():
    frame = dia.as_frame(dia.as_frame(WHOLE, gain=2.0, saturation=50.0), gain=3.0, saturation=90.0)
    assert (frame.detector.gain, frame.detector.saturation) == (3.0, 90.0)
    np.testing.assert_array_equal(frame.mask.numpy(), WHOLE >= 90.0)


def test_saturated_pixels_are_flagged_from_the_level_on(write_fits):
    header = fits.Header({"SATURATE": 100.0})
    frame = dia.as_frame(write_fits("sat.fits", WHOLE, header))
    same(frame, WHOLE, (WHOLE >= 100.0) * int(Flag.SATURATED))


def test_a_plateau_at_the_top_is_taken_for_saturation():
    image = make_pair(5).target.copy()
    y, x = np.indices(image.shape)
    image += 2e5 * np.exp(-((y - 30) ** 2 + (x - 40) ** 2) / (2 * 2.0**2))
    level = 1e5
    frame = dia.as_frame(np.minimum(image, level))
    assert [f.code for f in frame.findings] == ["saturation-estimated"]
    assert (frame.flags.numpy()[image >= level] == int(Flag.SATURATED)).all()


@pytest.mark.parametrize("source", [np.uint16, CCDData])
def test_a_single_pixel_at_the_top_of_16_bits_is_saturated_in_every_container(source, write_fits):
    image = (WHOLE + 100).astype(np.uint16)
    image[7, 8] = 65535
    given_source = image if source is np.uint16 else CCDData(image, unit="adu")
    for frame in (dia.as_frame(given_source), dia.as_frame(write_fits("top.fits", image))):
        assert np.argwhere(frame.mask.numpy()).tolist() == [[7, 8]]


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int32, np.float32])
def test_mask_argument_of_any_dtype_joins_the_flags(dtype):
    mask = WHOLE > 100
    same(dia.as_frame(WHOLE, mask=mask.astype(dtype)), WHOLE, mask * int(Flag.MASKED))


def test_mask_of_another_shape_is_refused_with_both_shapes():
    with pytest.raises(ShapeError, match=r"\(3, 4\).*\(64, 72\)"):
        dia.as_frame(WHOLE, mask=np.zeros((3, 4)))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((2, 8, 8)), r"shape \(2, 8, 8\)"),
        (np.zeros(8), r"shape \(8,\)"),
        (np.zeros((0, 8)), r"shape \(0, 8\)"),
        (3.0, r"shape \(\)"),
        ([[1, 2], [3]], "different lengths"),
        (np.zeros((8, 8), complex), "complex128"),
        (np.full((8, 8), None), "object"),
        (np.full((8, 8), "x"), "<U1"),
        (None, "object"),
    ],
)
def test_what_is_no_image_is_refused_with_its_shape_or_dtype(source, message):
    with pytest.raises(InputError, match=message):
        dia.as_frame(source)


@pytest.mark.parametrize("name", ["gain", "read_noise", "saturation", "exposure"])
@pytest.mark.parametrize("value", ["2", True, float("nan"), -1.0])
def test_numbers_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(InputError, match=name.replace("_", " ")):
        dia.as_frame(WHOLE, **{name: value})


def test_an_unparsable_card_does_not_cost_the_image(write_fits):
    path = write_fits("bad.fits", WHOLE, fits.Header({"FOO": 1, "GAIN": 3.0}))
    raw = path.read_bytes()
    at = raw.index(b"FOO     =")
    path.write_bytes(raw[:at] + b"FOO     = 1.2.3 'x".ljust(80) + raw[at + 80 :])
    frame = dia.as_frame(path)
    same(frame, WHOLE)
    assert frame.detector.gain == 3.0


def test_a_broken_wcs_does_not_cost_the_image(write_fits):
    header = fits.Header({"CTYPE1": "RA---XYZ", "CTYPE2": "DEC--TAN", "CRVAL1": 5.0})
    frame = dia.as_frame(write_fits("bad.fits", WHOLE, header))
    same(frame, WHOLE)
    assert frame.wcs is None


def test_an_extension_inherits_the_primary_cards_that_it_lacks_but_no_wcs():
    primary = fits.PrimaryHDU()
    primary.header.update({"OBJECT": "M 31", "FILTER": "r", "CRVAL1": 7.0, "CD1_1": 1.0})
    image = fits.ImageHDU(WHOLE, fits.Header({"FILTER": "i"}))
    meta = dia.as_frame(fits.HDUList([primary, image])).meta
    assert (meta["OBJECT"], meta["FILTER"]) == ("M 31", "i")
    assert "CRVAL1" not in meta
    assert "CD1_1" not in meta


@pytest.fixture(scope="module")
def reference_result():
    made = make_pair(1)
    target = made.target.astype(np.float32)
    frame = dia.as_frame(target, gain=1.0, read_noise=5.0)
    kernel = dia.DeltaKernel((5, 7))
    return target, made, dia.subtract(frame, made.reference, kernel=kernel, dtype=torch.float64)


@pytest.mark.parametrize(
    "kind", ["float64", "big-endian", "fortran", "tensor", "ccddata", "hdu", "path", "gz", "sci"]
)
def test_subtract_gives_the_same_for_every_container(kind, reference_result, tmp_path, header):
    image, made, expected = reference_result
    path = tmp_path / ("t.fits.gz" if kind == "gz" else "t.fits")
    if kind == "sci":
        extension = fits.ImageHDU(image, name="SCI")
        fits.HDUList([fits.PrimaryHDU(header=header), extension]).writeto(path)
    else:
        fits.PrimaryHDU(image, header).writeto(path)
    source = {
        "float64": image.astype(np.float64),
        "big-endian": image.astype(">f4"),
        "fortran": np.asfortranarray(image),
        "tensor": torch.from_numpy(image),
        "ccddata": CCDData(image, unit="adu", meta=dict(header)),
        "hdu": fits.PrimaryHDU(image, header),
        "path": path,
        "gz": path,
        "sci": f"{path}[SCI]",
    }[kind]
    frame = dia.as_frame(source, gain=1.0, read_noise=5.0)
    result = dia.subtract(
        frame, made.reference, kernel=dia.DeltaKernel((5, 7)), dtype=torch.float64
    )
    np.testing.assert_allclose(result.kernel, expected.kernel, rtol=0, atol=1e-12)
    np.testing.assert_allclose(result.difference, expected.difference, rtol=0, atol=1e-8)
    np.testing.assert_array_equal(result.flags, expected.flags)


def test_the_asymmetric_kernel_of_the_rectangular_pair_is_found(reference_result):
    _, made, result = reference_result
    error = np.sqrt(np.diag(result.kernel_covariance)).reshape(5, 7)
    pull = (result.kernel - made.kernel) / error
    assert np.abs(pull).max() < 5.0
    assert np.sqrt(np.mean(pull**2)) < 2.0
    flipped = made.kernel[::-1, ::-1]
    assert np.abs((result.kernel - flipped) / error).max() > 10.0
    assert result.scale == pytest.approx(0.8, abs=5 * result.scale_error)


def test_sliced_nddata_can_be_subtracted_and_written(wcs, tmp_path):
    made = make_pair(1)
    padded = np.pad(made.target, 4, mode="reflect")
    sliced = NDDataRef(padded, wcs=wcs)[4:-4, 4:-4]
    result = dia.subtract(sliced, made.reference, kernel=dia.DeltaKernel(5))
    result.write(tmp_path / "o.fits")
    np.testing.assert_array_equal(fits.getdata(tmp_path / "o.fits"), result.difference)
    assert result.to_ccddata().wcs is None


def test_counts_of_few_photons_are_not_taken_for_saturation():
    counts = np.random.default_rng(5).poisson(3.0, (80, 90))
    counts[10:16, 20] = 14  # several pixels share the highest value, but it is no height
    frame = dia.as_frame(counts)
    assert frame.detector.saturation == np.inf
    assert not frame.mask.any()


def test_equal_peaks_of_separate_stars_are_not_taken_for_saturation():
    y, x = np.mgrid[:100, :100]
    image = np.full((100, 100), 50.0)
    for cy in range(10, 100, 20):
        for cx in range(10, 100, 20):
            image += 1e4 * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * 1.5**2))
    assert not dia.as_frame(image).mask.any()


def test_negative_standard_deviations_mark_missing_data():
    sigma = np.full(WHOLE.shape, 3.0)
    sigma[:2] = -1.0
    frame = dia.as_frame(CCDData(WHOLE, unit="adu", uncertainty=StdDevUncertainty(sigma)))
    assert (frame.flags.numpy()[:2] == int(Flag.BAD_VARIANCE)).all()
    assert (frame.variance.numpy()[2:] == 9.0).all()


def test_a_mask_before_the_image_is_not_the_image():
    data = np.arange(30.0, dtype=np.float32).reshape(5, 6)
    bad = np.zeros((5, 6), np.uint8)
    bad[2, 3] = 1
    hdus = fits.HDUList(
        [fits.PrimaryHDU(), fits.ImageHDU(bad, name="BPM"), fits.ImageHDU(data, name="SCI")]
    )
    frame = dia.as_frame(hdus)
    np.testing.assert_array_equal(frame.data[~frame.mask], data[bad == 0])
    assert int(frame.mask.sum()) == 1
    alone = dia.as_frame(fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(data, name="MASK")]))
    np.testing.assert_array_equal(alone.data, data)


def test_planes_may_have_axes_of_length_one_as_their_image_has():
    data, bad = np.ones((1, 5, 6), np.float32), np.zeros((1, 5, 6), np.uint8)
    bad[0, 1, 2] = 1
    hdus = fits.HDUList([
        fits.PrimaryHDU(data), fits.ImageHDU(bad, name="MASK"),
        fits.ImageHDU(4 * data, name="VAR"),
    ])  # fmt: skip
    frame = dia.as_frame(hdus, saturation=np.inf)
    assert [f.code for f in frame.findings] == ["file-mask", "file-variance"]
    assert np.argwhere(frame.mask.numpy()).tolist() == [[1, 2]]
    assert float(frame.variance[0, 0]) == 4.0


def test_a_folder_that_cannot_be_entered_is_told_as_such(monkeypatch, tmp_path):
    def refused(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr("pathlib.Path.exists", refused)
    with pytest.raises(ReadError, match="cannot be reached: Permission denied"):
        dia.as_frame(tmp_path / "locked" / "a.fits")


def test_a_name_too_long_for_any_file_is_no_file(tmp_path):
    with pytest.raises(ReadError, match="There is no file"):
        dia.as_frame(tmp_path / ("a" * 300 + ".fits"))
