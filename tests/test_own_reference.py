"""A season whose reference was made elsewhere, or is named by hand; mistakes told before work."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from pytorchdia import reduce
from pytorchdia.errors import InputError, ReadError
from pytorchdia.run.lightcurves import LightCurves

from .small_season import CONFIG, VARIABLE, Epoch, epochs, image, sky_stars, write_season

SHIFT, SCALE, DEPTH = (7.4, 5.8), 3.0, 25  # of the deep image: its grid, its counts, its frames
SHAPE = (110, 116)


def write_deep(path: Path) -> None:
    """A mean of 25 sharp exposures of three times the light, on a larger grid of its own."""
    one = Epoch("deep", 58000.0, SHIFT, 1.15, SCALE, 0.0)
    rng = np.random.default_rng(3)
    mean = np.mean([image(one, rng, sky_stars(), SHAPE) for _ in range(DEPTH)], axis=0)
    hdu = fits.ImageHDU(mean.astype(np.float32), name="MEAN")
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path)


def config_with(folder: Path, text: str) -> Path:
    path = folder / "config.toml"
    path.write_text(CONFIG + text)
    return path


@pytest.fixture(scope="module")
def season(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own") / "season"
    write_season(folder, 5)
    write_deep(folder / "deep.fits")
    config = config_with(
        folder, f'[reference]\nfile = "deep.fits"\nhdu = "MEAN"\ngain = {1.5 * DEPTH}\n'
        f"read_noise = {5.0 * DEPTH**0.5}\n"
    )  # fmt: skip
    summary = reduce(config)
    assert {row.name: row.status for row in summary.rows} == {
        f"frame{i:03d}": "done" for i in range(5)  # the deep image is no frame of the season
    }  # fmt: skip
    assert not any(row.in_reference for row in summary.rows)
    return folder


def test_light_curves_are_on_the_scale_and_the_grid_of_the_deep_image(season: Path) -> None:
    with fits.open(season / "run/reference.fits") as hdus:
        assert hdus[0].data.shape == SHAPE
        noise = np.sqrt(np.median(hdus["VARIANCE"].data))
    # Read noise and sky photons of 25 frames of 400 ADU and more.
    assert noise == pytest.approx(np.sqrt((400 / 1.5 + (5 / 1.5) ** 2) / DEPTH), rel=0.1)
    curve = LightCurves(season / "run").at(VARIABLE[0] + SHIFT[0], VARIABLE[1] + SHIFT[1])
    flux, error = (np.asarray(curve.epochs[name], float) for name in ("flux", "error"))
    truth = SCALE * np.array([epoch.flux for epoch in epochs(5)])
    assert np.abs((flux - truth) / error).max() < 5  # no constant is free: the image holds none
    assert np.ptp(flux) > 20 * np.median(error)
    assert curve.reference_flux == pytest.approx(SCALE * 20000.0, rel=0.01)
    assert "116 x 110 pixels made elsewhere" in (season / "run/report.html").read_text()


def test_nothing_is_done_again_until_the_deep_image_or_its_numbers_change(season: Path) -> None:
    config = season / "config.toml"
    before = config.read_text()

    def to_do() -> dict[str, int]:
        return {step: n for step, _, n in reduce(config, dry_run=True).planned}

    assert not any(to_do().values())
    config.write_text(before.replace(f"gain = {1.5 * DEPTH}", "gain = 30.0"))
    assert to_do() == {"measure": 0, "register": 5}
    config.write_text(before)
    assert not any(to_do().values())


def test_without_it_the_reference_is_made_of_frames(season: Path, tmp_path: Path) -> None:
    config = season / "other.toml"
    text = CONFIG.replace('"run"', f'"{tmp_path / "run"}"').replace("*.fits", "frame*.fits")
    config.write_text(text)
    assert any(row.in_reference for row in reduce(config, until="reference").rows)


def test_frames_once_named_are_not_kept_when_they_are_named_no_more(tmp_path: Path) -> None:
    folder = tmp_path / "season"
    write_season(folder, 4)

    def frames(text: str) -> list[str]:
        reduce(config_with(folder, text), until="reference")
        state = json.loads((folder / "run/states/reference/reference.json").read_text())
        return list(state["values"]["frames"])

    chosen = frames("")
    assert frames('[reference]\nframes = ["frame003"]\n') == ["frame003"]
    assert frames("") == chosen


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[reference]\nfile = "none.fits"\n', r"There is no file .*none.fits \(reference.file\)"),
        ('[reference]\nfile = "a.fits"\nframes = ["b"]\n', "file and frames cannot both"),
        ("[reference]\nhdu = 1\n", "hdu is that of a reference file"),
        ("[reference]\ngain = 2.0\n", "gain is that of a reference file"),
        ('[reference]\nfile = "a.fits"\n[register]\nonto = "b"\n', "cannot both say whose grid"),
    ],
)
def test_contradictions_are_told_before_any_work(tmp_path: Path, text: str, message: str) -> None:
    write_season(tmp_path, 1)
    with pytest.raises(InputError, match=message):
        reduce(config_with(tmp_path, text), dry_run=True)
    assert not (tmp_path / "run").exists()


def test_a_mistake_in_the_list_of_stars_is_told_before_any_work(tmp_path: Path) -> None:
    write_season(tmp_path, 1)
    config = config_with(tmp_path, '[stars]\nlist = "stars.csv"\n')
    with pytest.raises(ReadError, match="cannot be read as a table"):
        reduce(config, dry_run=True)
    (tmp_path / "stars.csv").write_text("name,x\na,1\n")
    with pytest.raises(InputError, match="it needs x and y"):
        reduce(config)
    assert not (tmp_path / "run").exists()


def test_an_exclusion_that_fits_no_file_is_in_the_log(tmp_path: Path) -> None:
    write_season(tmp_path, 2)
    (tmp_path / "config.toml").write_text(
        CONFIG.replace("[subtract]", 'exclude = ["frame001*", "frme*"]\n[subtract]')
    )
    with pytest.raises(InputError):
        reduce(tmp_path / "config.toml", only="photometry")
    log = (tmp_path / "run/log.txt").read_text()
    assert "frames.exclude names 'frme*', and no file is called so" in log
    assert "frame001*" not in log
