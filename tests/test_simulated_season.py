"""Simulated seasons: what is in the frames is what their truth says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.time import Time

import pytorchdia as dia
from pytorchdia.config import parse_frame_size
from pytorchdia.errors import InputError, WriteError
from pytorchdia.frame import Flag
from pytorchdia.simulate import Defect, Stars
from pytorchdia.simulate.season import (
    START,
    Season,
    Trouble,
    as_hdus,
    frame_name,
    truth_tables,
    write_season,
)

SMALL = Season(seed=5, shape=(128, 140), cosmic_rays=1e-3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("season")
    write_season(SMALL, path, 4)
    return path


def aperture(image: np.ndarray, x: float, y: float, radius: float) -> np.ndarray:
    rows, columns = np.indices(image.shape)
    return np.hypot(columns - x, rows - y) < radius


# -- field ---------------------------------------------------------------------------------------


def test_the_field_has_its_stars_over_five_magnitudes_and_its_variables() -> None:
    season = Season(seed=2)
    inside = season.field.inside(season.shape)
    assert abs(inside.sum() - 1011) < 5 * 1000**0.5
    flux = season.field.stars.flux[inside][11:]
    assert 2.5 * np.log10(flux.max() / flux.min()) > 5
    assert inside[:11].all()
    kinds = [variable.kind for variable in season.field.variables]
    assert kinds == 2 * ["Microlensing", "RRLyrae", "Eclipse", "Nova"]


def test_the_first_variables_change_within_ten_days() -> None:
    times = np.linspace(0, 10, 200)
    for seed in range(20):
        for variable in Season(seed=seed).field.variables[:4]:
            flux = variable.curve.flux(times)
            assert flux.max() - flux.min() > 2000.0, (seed, variable)


def test_stars_reach_beyond_every_frame() -> None:
    season = Season(seed=4, shape=(128, 128), max_shift=90.0, max_rotation=3.0)
    stars = season.field.stars
    corners = np.array([[0, 127, 0, 127], [0, 0, 127, 127], [1, 1, 1, 1]])
    for number in range(200):
        matrix = season.epoch(number).conditions.matrix(season.shape)
        back = np.linalg.inv(np.vstack([matrix, [0, 0, 1]])) @ corners
        assert back[0].min() > stars.x.min() - 15
        assert back[0].max() < stars.x.max() + 15
        assert back[1].min() > stars.y.min() - 15
        assert back[1].max() < stars.y.max() + 15


# -- epochs and frames ---------------------------------------------------------------------------


def test_a_frame_depends_on_the_seed_and_its_number_alone() -> None:
    one, again = SMALL.frame(3), Season(seed=5, shape=(128, 140), cosmic_rays=1e-3).frame(3)
    np.testing.assert_array_equal(one.exposure.image, again.exposure.image)
    other = replace(SMALL, seed=6).frame(3)
    assert not np.array_equal(one.exposure.image, other.exposure.image)
    cloudy = replace(SMALL, troubles={3: Trouble.CLOUD})
    assert cloudy.epoch(3).conditions.shift == one.epoch.conditions.shift
    np.testing.assert_array_equal(cloudy.frame(2).exposure.image, SMALL.frame(2).exposure.image)


def test_epochs_differ_as_nights_do() -> None:
    season = Season(seed=3, bad_share=0.2)
    epochs = [season.epoch(number) for number in range(400)]
    times = np.array([e.time for e in epochs])
    assert (np.diff(times) > 0.05).all()
    assert times[-1] == pytest.approx(199.0, abs=0.5)
    shifts = np.abs([e.conditions.shift for e in epochs]).max(axis=1)
    far = shifts > 6.0
    assert 20 < far.sum() < 60
    assert shifts.max() > 100.0
    assert max(abs(e.conditions.rotation) for e in epochs) <= 0.05
    scales = np.array([e.conditions.scale for e in epochs if e.trouble is Trouble.NONE])
    assert scales.min() > 0.2
    assert scales.max() > 1.4
    bad = [e.trouble for e in epochs if e.trouble is not Trouble.NONE]
    assert abs(len(bad) - 80) < 5 * 8
    assert set(bad) == {Trouble.CLOUD, Trouble.OUT_OF_FOCUS, Trouble.TWILIGHT}
    trails = sum(e.conditions.trail is not None for e in epochs)
    assert abs(trails - 400 / 12) < 5 * 6


def test_the_noise_of_a_frame_is_that_of_its_truth() -> None:
    exposure = SMALL.frame(0).exposure
    good = exposure.defects == 0
    z = ((exposure.image - exposure.noiseless) / exposure.sigma)[good]
    assert abs(z.mean()) < 5 / z.size**0.5
    assert abs(z.var() - 1) < 5 * (2 / z.size) ** 0.5


def test_apertures_recover_the_light_curves() -> None:
    """What a variable star adds to the frame is P times its flux, where the matrix puts it."""
    season = Season(seed=7, shape=(160, 160), n_stars=20, n_saturated=0, cosmic_rays=0.0)
    quiet = season.field.stars
    checked = 0
    for number in range(6):
        frame = season.frame(number)
        conditions, exposure = frame.epoch.conditions, frame.exposure
        if conditions.trail is not None:
            continue
        for variable in season.field.variables:
            flux = float(variable.curve.flux(np.array(frame.epoch.time)))
            others = Stars(quiet.x, quiet.y, season.field.at(frame.epoch.time).flux.copy())
            others.flux[variable.star] = 0.0
            rest = conditions.light(others, season.shape) + conditions.sky_image(season.shape)
            place = [quiet.x[variable.star], quiet.y[variable.star], 1.0]
            x, y = conditions.matrix(season.shape) @ place
            near = aperture(rest, x, y, 3.0 * frame.epoch.fwhm)
            if not 20 < x < 140 or not 20 < y < 140 or exposure.defects[near].any():
                continue
            measured = (exposure.image - rest)[near].sum()
            error = np.sqrt((exposure.sigma[near] ** 2).sum())
            truth = conditions.scale * flux
            assert -5 * error - 0.03 * truth < measured - truth < 5 * error  # wings are cut off
            checked += 1
    assert checked > 20


def test_bad_frames_are_bad() -> None:
    troubles = {0: Trouble.CLOUD, 1: Trouble.OUT_OF_FOCUS, 2: Trouble.TWILIGHT}
    good = replace(SMALL, n_saturated=0)
    bad = replace(good, troubles=troubles)
    cloud, blurred, twilight = (bad.frame(k).exposure for k in range(3))
    clear = [good.frame(k).exposure for k in range(3)]
    assert cloud.conditions.scale < 0.1 * clear[0].conditions.scale
    above = [np.percentile(e.noiseless, 99.9) - np.median(e.noiseless) for e in (blurred, clear[1])]
    assert above[0] < 0.3 * above[1]
    star_light = [
        (e.noiseless / e.camera.response(SMALL.shape).clip(0.1)
         - e.conditions.sky_image(SMALL.shape))[:, 42:90].sum()
        for e in (blurred, clear[1])
    ]  # fmt: skip
    assert star_light[0] == pytest.approx(star_light[1], rel=0.1)  # no light is lost
    assert np.median(twilight.image) > 30000


def test_an_ideal_frame_has_no_defects_and_little_noise() -> None:
    ideal = SMALL.ideal(exposures=50).exposure
    assert not ideal.defects.any()
    z = (ideal.image - ideal.noiseless) / ideal.camera.sigma(ideal.noiseless)
    assert z.var() == pytest.approx(1 / 50, rel=0.05)


def test_the_world_coordinates_follow_the_stars() -> None:
    season = replace(SMALL, max_rotation=2.0)
    stars = season.field.stars
    ra, dec = season.wcs().all_pix2world(stars.x, stars.y, 0)
    for number in range(3):
        frame = season.frame(number)
        assert frame.wcs is not None
        moved = stars.moved(frame.epoch.conditions.matrix(season.shape))
        x, y = frame.wcs.all_world2pix(ra, dec, 0)
        np.testing.assert_allclose(x, moved.x, atol=1e-3)
        np.testing.assert_allclose(y, moved.y, atol=1e-3)


# -- files ---------------------------------------------------------------------------------------


def test_frames_read_back_as_they_were_made(folder: Path) -> None:
    paths = sorted((folder / "frames").iterdir())
    assert [p.name for p in paths] == [frame_name(k) for k in range(4)]
    header = fits.getheader(paths[1])
    assert (header["BITPIX"], header["BZERO"]) == (16, 32768)
    assert header["FILTER"] == "I"
    frame, made = dia.as_frame(paths[1]), SMALL.frame(1)
    d = frame.detector
    assert (d.gain, d.read_noise, d.saturation) == (1.6, 6.0, 58000.0)
    assert d.exposure == made.epoch.exposure
    start = Time(header["DATE-OBS"], scale="utc").mjd
    assert start == pytest.approx(header["MJD-OBS"], abs=1e-7)
    assert start + 0.5 * d.exposure / 86400 == pytest.approx(START + made.epoch.time, abs=1e-7)
    difference = frame.data.numpy() - np.maximum(made.exposure.image, 0.0)
    assert np.abs(difference[frame.mask.numpy() == 0]).max() <= 0.5
    flags = frame.flags.numpy()
    saturated = (flags & int(Flag.SATURATED)) != 0
    known = made.exposure.where(Defect.BAD_COLUMN)
    np.testing.assert_array_equal((flags & int(Flag.MASKED)) != 0, known)
    truth = made.exposure.where(Defect.SATURATED)
    assert truth.sum() > 5
    assert (saturated >= truth).all()
    assert (made.exposure.image[saturated & ~truth] > 57999).all()  # rounded up
    assert frame.wcs is not None


def test_without_world_coordinates_there_are_none() -> None:
    season = replace(SMALL, with_wcs=False)
    assert dia.as_frame(as_hdus(season, 0)).wcs is None
    np.testing.assert_array_equal(as_hdus(season, 0)[0].data, as_hdus(SMALL, 0)[0].data)


def test_the_tables_hold_the_truth(folder: Path) -> None:
    stars, frames, curves = (
        Table.read(folder / "truth" / f"{name}.ecsv")
        for name in ("stars", "frames", "light_curves")
    )
    field = SMALL.field
    np.testing.assert_allclose(stars["x"], field.stars.x)
    np.testing.assert_array_equal(stars["kind"][:2], ["Microlensing", "RRLyrae"])
    assert stars.meta["curves"]["1"]["period"] == field.variables[1].curve.period
    assert frames.meta["season"]["seed"] == 5
    epoch = SMALL.epoch(2)
    row = frames[2]
    assert row["scale"] == epoch.conditions.scale
    matrix = np.array([row[f"m{i}{j}"] for i in range(2) for j in range(3)]).reshape(2, 3)
    np.testing.assert_allclose(matrix, epoch.conditions.matrix(SMALL.shape))
    assert len(curves) == 4 * len(field.variables)
    one = curves[(curves["star"] == 3) & (curves["frame"] == 2)]
    assert one["time"][0] == pytest.approx(START + epoch.time)
    assert one["flux"][0] == pytest.approx(float(field.variables[3].curve.flux(epoch.time)))
    assert stars["flux"].unit == "adu"


def test_a_season_can_be_continued(folder: Path, tmp_path: Path) -> None:
    write_season(SMALL, tmp_path, 2)
    write_season(SMALL, tmp_path, 4, first=2)
    for path in (folder / "frames").iterdir():
        assert (tmp_path / "frames" / path.name).read_bytes() == path.read_bytes()
    table = (folder / "truth" / "light_curves.ecsv").read_text()
    assert (tmp_path / "truth" / "light_curves.ecsv").read_text() == table
    with pytest.raises(InputError, match="other settings \\(seed\\)"):
        write_season(replace(SMALL, seed=6), tmp_path, 6, first=4)
    with pytest.raises(InputError, match="no season to continue"):
        write_season(SMALL, tmp_path / "empty", 6, first=4)
    with pytest.raises(InputError, match="no frame to write"):
        write_season(SMALL, tmp_path, 4, first=4)


def test_nothing_is_overwritten_unasked_or_left_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_season(SMALL, tmp_path, 1)
    before = (tmp_path / "frames" / frame_name(0)).read_bytes()
    with pytest.raises(WriteError, match="exists already"):
        write_season(replace(SMALL, seed=9), tmp_path, 2)
    assert (tmp_path / "frames" / frame_name(0)).read_bytes() == before
    assert not (tmp_path / "frames" / frame_name(1)).exists()
    write_season(replace(SMALL, seed=9), tmp_path, 1, overwrite=True)
    assert (tmp_path / "frames" / frame_name(0)).read_bytes() != before

    def full(self: fits.HDUList, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fits.HDUList, "writeto", full)
    with pytest.raises(WriteError, match="No space left"):
        write_season(SMALL, tmp_path / "full", 1)
    assert list((tmp_path / "full" / "frames").iterdir()) == []


def test_truth_of_a_season_without_variables() -> None:
    tables = truth_tables(replace(SMALL, n_variables=0), 3)
    assert len(tables["light_curves"]) == 0
    assert set(tables["stars"]["kind"]) == {"constant"}


@pytest.mark.parametrize(
    "settings",
    [{"shape": (40, 128)}, {"seed": -1}, {"bad_share": 1.5}, {"max_shift": -1.0}],
)
def test_a_season_that_cannot_be_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(InputError, match="got"):
        replace(SMALL, **settings)


def test_frames_are_counted_from_0() -> None:
    with pytest.raises(InputError, match="counted from 0"):
        SMALL.epoch(-1)


# -- command line --------------------------------------------------------------------------------


def test_the_command_writes_a_season(run_cli, tmp_path: Path) -> None:
    target = tmp_path / "new" / "season"
    arguments = ("simulate", target, "--frames", 2, "--size", "80x96", "--seed", 3)
    outcome = run_cli(*arguments)
    assert outcome.code == 0, outcome.err
    assert outcome.out == ""
    assert "Wrote 2 frames" in outcome.err
    expected = as_hdus(Season(seed=3, shape=(80, 96), bad_share=0.1), 1)
    found = fits.getdata(target / "frames" / frame_name(1))
    np.testing.assert_array_equal(found, expected[0].data)
    refused = run_cli(*arguments)
    assert refused.code == 4
    assert "--overwrite" in refused.err
    assert run_cli(*arguments, "--overwrite").code == 0
    more = run_cli("simulate", target, "--frames", 3, "--size", "80x96", "--seed", 3, "--first", 2)
    assert more.code == 0, more.err
    assert len(list((target / "frames").iterdir())) == 3
    assert len(Table.read(target / "truth" / "frames.ecsv")) == 3


@pytest.mark.parametrize("size", ["large", "-5", "40", "512x"])
def test_a_wrong_size_is_refused_before_anything_is_written(
    run_cli, tmp_path: Path, size: str
) -> None:
    outcome = run_cli("simulate", tmp_path / "s", f"--size={size}")
    assert outcome.code == 3
    assert not (tmp_path / "s").exists()


def test_frame_sizes_are_height_by_width() -> None:
    assert parse_frame_size("512") == (512, 512)
    assert parse_frame_size(" 400 x 600 ") == (400, 600)
