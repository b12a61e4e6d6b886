"""The unregistered frames of a real season: where they lie, and what is said of each."""

import numpy as np
import pytest

import pytorchdia as dia
from pytorchdia.errors import RegistrationError
from pytorchdia.preparation.quality import grade, measure_quality
from pytorchdia.preparation.reference import choose_reference_frames, make_reference
from pytorchdia.preparation.register import find_transform
from pytorchdia.preparation.resample import apply_registration
from pytorchdia.preparation.star_detection import detect_stars, star_shapes

from .conftest import DATA

FRAME = "saao_bulge_series/AKB13475I{}.fits.fz"
# From the README of the frames, found by another program: shift of the raw pixel (0, 0) onto frame
# 20, rotation [degrees], rms of a matched star [pixels].
SHIFTS = {
    "0007": (-0.49, 1.39, 0.004, 0.089),
    "0026": (-0.63, 4.49, 0.002, 0.091),
    "0043": (70.55, 33.37, 0.010, 0.136),
    "0056": (43.90, -2.70, 0.013, 0.080),
    "0070": (-17.30, 19.01, 0.008, 0.086),
    "0097": (-5.60, 38.13, 0.011, 0.071),
    "0103": (-14.60, 32.64, 0.010, 0.079),
    "0116": (-18.57, 35.50, 0.010, 0.092),
    "0129": (-15.43, 36.30, 0.007, 0.097),
    "0167": (-15.98, 23.61, -0.019, 0.154),
    "0180": (-21.46, 31.47, 0.020, 0.100),
}


@pytest.fixture(scope="module")
def frames():
    if not DATA.is_dir():
        pytest.skip("the real frames are not at hand")
    return {key: dia.as_frame(DATA / FRAME.format(key)) for key in ("0020", *SHIFTS)}


@pytest.mark.parametrize("key", SHIFTS)
def test_shift_and_rotation_are_those_of_another_program(frames, key):
    dx, dy, rotation, residual = SHIFTS[key]
    found = find_transform(frames[key], frames["0020"])
    assert found.by == "stars"
    assert found.n_matched > 150
    # Where the frame's pixel (0, 0) lies on frame 20.
    onto = np.linalg.solve(found.matrix[:, :2], -found.matrix[:, 2])
    assert onto[0] == pytest.approx(dx, abs=2 * residual)
    assert onto[1] == pytest.approx(dy, abs=2 * residual)
    # The rotation is that of a shift by the residual across the frame, at most.
    assert -found.rotation == pytest.approx(rotation, abs=np.degrees(2 * residual / 256))
    assert found.residual < 2 * residual


def test_the_twilight_frame_is_kept_and_registered_and_every_other_one_too(frames):
    qualities = [measure_quality(frame) for frame in frames.values()]
    assert [g.reason for g in grade(qualities) if not g.accepted] == []
    assert all(q.time_keyword == "MJD-OBS" and q.bjd_tdb is not None for q in qualities)
    twilight = next(q for q in qualities if "0070" in q.name)
    assert twilight.sky > 14000


def test_a_reference_is_made_of_the_sharpest_frames(frames):
    every = list(frames.values())
    chosen = choose_reference_frames([measure_quality(f) for f in every], n_frames=4)
    assert not {"0043", "0167", "0070"} & {every[i].name[9:13] for i in chosen}
    reference = make_reference([every[i] for i in chosen])
    sharpest, _ = star_shapes(every[chosen[0]], detect_stars(every[chosen[0]]))
    width, _ = star_shapes(reference, detect_stars(reference))
    assert width < 1.06 * sharpest
    assert reference.mask.double().mean() < 0.01


def test_frames_of_one_grid_stay_as_they_are():
    names = [f"decam_stacks/DEC-OBS04{e}.mini.fits.fz" for e in "ab"]
    one, other = (dia.as_frame(DATA / name) for name in names)
    found = find_transform(other, one)
    assert found.how == "shift"
    moved = apply_registration(other, found, one.shape, one.wcs)
    assert np.array_equal(moved.data, other.data)


def test_a_frame_of_another_telescope_is_refused(frames):
    eso = dia.as_frame(DATA / "eso085_pair/aligned_eso085-030-004.fits.fz")
    with pytest.raises(RegistrationError, match="another field"):
        find_transform(eso, frames["0020"])
