"""Settings: what is wrong is named, and a first file comes from the headers."""

from __future__ import annotations

import re
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from pytorchdia import InputError
from pytorchdia.errors import ReadError, WriteError
from pytorchdia.io import chips_of
from pytorchdia.run.frame_list import _names, sources_of
from pytorchdia.run.init import init_chips, init_config, read_headers
from pytorchdia.run.settings import Settings, describe_settings, load_settings

from .small_season import epochs, write_frame, write_season

DOCS = Path(__file__).resolve().parents[1] / "docs"


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(text)
    return path


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    assert load_settings(written(tmp_path, "")).model_dump() == Settings().model_dump()
    assert load_settings(written(tmp_path, "")).run_folder == tmp_path / "run"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[subtract]\nkernal = 9\n", ["'subtract.kernal'", "did you mean 'kernel'"]),
        ("[subtrct]\nkernel = 9\n", ["'subtrct'", "did you mean 'subtract'"]),
        ("[register]\nmax_shft = 9\n", ["'register.max_shft'", "'max_shift'"]),
        ("[subtract]\nkernel = 8\n", ["subtract", "odd"]),
        ("[subtract]\nlikelihood = 'cauchy'\n", ["subtract.likelihood = 'cauchy'", "huber"]),
        ("[camera]\ngain = -1\n", ["camera.gain = -1", "greater than 0"]),
        ("[camera]\ngain = nan\n", ["camera.gain"]),
        ("[quality]\nmin_stars = 'many'\n", ["quality.min_stars = 'many'"]),
        ("[subtract]\nregions = 0\n", ["subtract.regions"]),
        ("[frames]\nfiles = []\n", ["frames.files"]),
        ("[camera]\ngain = 0\nread_noise = -1\n", ["camera.gain", "camera.read_noise"]),
        ("[camera\n", ["not valid TOML", "line 1"]),
    ],
)
def test_a_mistake_is_named_with_its_file(tmp_path: Path, text: str, words: list[str]) -> None:
    path = written(tmp_path, text)
    with pytest.raises(InputError) as caught:
        load_settings(path)
    for word in [str(path), *words]:
        assert word in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="pytorchdia init"):
        load_settings(tmp_path / "nothing.toml")


def test_every_setting_has_a_meaning_and_stands_in_the_documentation() -> None:
    text = (DOCS / "season.md").read_text()
    rows = re.findall(r"^\| `(\w+)\.(\w+)` \|", text, re.M)
    assert rows == [(section, key) for section, key, _, _ in describe_settings()]
    assert all(meaning.endswith(".") for _, _, _, meaning in describe_settings())


def test_no_frames_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"frames\.files"):
        sources_of(load_settings(written(tmp_path, "")))


def test_results_masks_and_excluded_files_are_no_frames(tmp_path: Path) -> None:
    write_season(tmp_path, 3)
    (tmp_path / "run").mkdir()
    shutil.copy(tmp_path / "frame000.fits", tmp_path / "run" / "reference.fits")
    shutil.copy(tmp_path / "frame000.fits", tmp_path / "mask.fits")
    text = "[frames]\nfiles = ['*.fits', 'run/*.fits']\nexclude = ['*2.fits']\nmask = 'mask.fits'\n"
    names = [source.name for source in sources_of(load_settings(written(tmp_path, text)))]
    assert names == ["frame000", "frame001"]


def names_of(folder: Path, files: list[str], text: str) -> dict[str, str]:
    """The name of each frame by its path, for empty files."""
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    found = sources_of(load_settings(written(folder, f"[frames]\n{text}")))
    return {str(source.path.relative_to(folder)): source.name for source in found}


def test_every_frame_has_a_name_of_its_own(tmp_path: Path) -> None:
    folders = names_of(
        tmp_path / "a", ["n1/raw/a.fits", "n2/raw/a.fits", "n2/raw/b.fits"],
        "files = ['*/raw/*.fits']",
    )  # fmt: skip
    assert list(folders.values()) == ["n1_raw_a", "n2_raw_a", "b"]
    assert names_of(tmp_path / "b", ["a.fits", "a.fits.fz", "b.fit"], "") == {
        "a.fits": "a.fits", "a.fits.fz": "a.fits.fz", "b.fit": "b",
    }  # fmt: skip
    taken = names_of(
        tmp_path / "c", ["n1/a.fits", "n2/a.fits", "n2/n1_a.fits"], "files = ['*/*.fits']"
    )
    assert taken["n2/n1_a.fits"] == "n1_a"
    assert taken["n2/a.fits"] == "n2_a"
    assert taken["n1/a.fits"] == "c_n1_a"


def test_frames_that_no_name_tells_apart_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.fits"
    with pytest.raises(InputError, match=rf"{path} and {path} would both be called"):
        _names([path, path])


@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        ("n1/a.fits", ["n1/b.fits", "n2/a.fits"]),
        ("n1/*", ["n2/a.fits"]),
        ("./*/a.fits", ["n1/b.fits"]),
        ("a.fits", ["n1/b.fits"]),
        ("FOLDER/n1/*", ["n2/a.fits"]),
    ],
)
def test_files_are_excluded_by_name_or_path(tmp_path: Path, exclude: str, left: list[str]) -> None:
    exclude = exclude.replace("FOLDER", str(tmp_path))
    text = f"files = ['*/*.fits']\nexclude = ['{exclude}']"
    assert list(names_of(tmp_path, ["n1/a.fits", "n1/b.fits", "n2/a.fits"], text)) == left


@pytest.mark.parametrize(
    ("kind", "calibration"),
    [
        *((kind, True) for kind in ("Bias Frame", "biasframe", "flatfield", "Flat Field", "skyflat",
                                    "dark_30s", "DARK30", "FLAT,SKY", "arc", "ARC1", "lamp")),
        *((kind, False) for kind in ("search", "object", "Light Frame", "science", "")),
    ],
)  # fmt: skip
def test_calibration_frames_are_known_by_whole_words(
    tmp_path: Path, kind: str, calibration: bool
) -> None:
    write_frame(tmp_path, epochs(1)[0], IMAGETYP=kind)
    (line,) = read_headers(tmp_path)
    assert bool(line.problem) == calibration


def test_the_example_of_a_time_keyword_can_be_switched_on(tmp_path: Path) -> None:
    write_season(tmp_path, 2)
    text = init_config(tmp_path, overwrite=True).read_text()
    example = re.search(r"^# (time = \{.+\})", text, re.M)
    assert example is not None
    time = load_settings(written(tmp_path, f"[keywords]\n{example[1]}")).keywords.time
    assert time is not None
    assert (time.keyword, time.when, time.scale) == ("JDMID", "mid", "utc")


def test_the_name_of_a_time_keyword_is_enough(tmp_path: Path) -> None:
    write_season(tmp_path, 1)
    time = load_settings(written(tmp_path, '[keywords]\ntime = "HJDMID"\n')).keywords.time
    assert time is not None
    assert (time.keyword, time.when) == ("HJDMID", "start")


def test_init_names_further_images_of_the_files(tmp_path: Path) -> None:
    path = write_frame(tmp_path, epochs(1)[0])
    image = fits.getdata(path)
    further = [fits.ImageHDU(image, name=f"CCD{i}") for i in (1, 2, 3)]
    fits.HDUList([fits.PrimaryHDU(), *further]).writeto(path, overwrite=True)
    text = init_config(tmp_path).read_text()
    assert "other images that were not: [CCD2], [CCD3]" in " ".join(text.replace("#", "").split())


def write_mosaic(folder: Path, n: int = 2) -> None:
    """Frames of two chips, the second a mirror image of the first, and what is no chip."""
    for epoch in epochs(n):
        path = write_frame(folder, epoch)
        image, header = fits.getdata(path), fits.getheader(path)
        chips = [fits.ImageHDU(image[:, ::step], name=f"CCD {i}") for i, step in ((1, 1), (2, -1))]
        weight = fits.ImageHDU(np.ones_like(image), name="WHT")
        guider = fits.ImageHDU(image[:40], name="GUIDE")
        primary = fits.PrimaryHDU(header=header)
        fits.HDUList([primary, *chips, guider, weight]).writeto(path, overwrite=True)


def test_init_writes_settings_for_each_chip(tmp_path: Path) -> None:
    write_mosaic(tmp_path)
    assert chips_of(tmp_path / "frame000.fits") == ("CCD 1", "CCD 2")
    assert "pytorchdia init FOLDER --chips" in init_config(tmp_path).read_text()
    paths = init_chips(tmp_path)
    assert [path.name for path in paths] == ["config_CCD_1.toml", "config_CCD_2.toml"]
    for path, chip in zip(paths, ("CCD 1", "CCD 2"), strict=True):
        settings = load_settings(path)
        assert settings.frames.hdu == chip
        assert settings.run_folder == tmp_path / f"run_{chip.replace(' ', '_')}"
        assert [source.name for source in sources_of(settings)] == ["frame000", "frame001"]
        assert "were not" not in path.read_text()


def test_init_of_chips_writes_all_or_none(tmp_path: Path) -> None:
    write_mosaic(tmp_path)
    _, second = init_chips(tmp_path, tmp_path / "m.toml")
    (tmp_path / "m_CCD_1.toml").unlink()
    with pytest.raises(WriteError, match=r"m_CCD_2\.toml exists already"):
        init_chips(tmp_path, tmp_path / "m.toml")
    assert not (tmp_path / "m_CCD_1.toml").exists()
    assert init_chips(tmp_path, tmp_path / "m.toml", overwrite=True)[1] == second


def test_chips_without_names_are_known_by_their_numbers(tmp_path: Path) -> None:
    image = np.ones((8, 9), "f4")
    chips = [fits.ImageHDU(image), fits.ImageHDU(image), fits.ImageHDU(image, name="SCI", ver=2)]
    fits.HDUList([fits.PrimaryHDU(), *chips]).writeto(tmp_path / "a.fits")
    assert chips_of(tmp_path / "a.fits") == (1, 2, "SCI,2")
    settings = [load_settings(path) for path in init_chips(tmp_path)]
    assert [s.frames.hdu for s in settings] == [1, 2, "SCI,2"]
    assert [s.run_folder.name for s in settings] == ["run_1", "run_2", "run_SCI_2"]


def test_one_image_is_no_mosaic(tmp_path: Path) -> None:
    write_season(tmp_path, 1)
    with pytest.raises(InputError, match=r"frame000.fits holds one image"):
        init_chips(tmp_path, tmp_path / "other.toml")


def test_init_writes_what_load_reads(tmp_path: Path) -> None:
    write_season(tmp_path, 4)
    (tmp_path / "config.toml").unlink()
    write_frame(tmp_path, epochs(5)[4], FILTER="V")
    (tmp_path / "broken.fits").write_bytes(b"no FITS")
    fits.PrimaryHDU(np.zeros((8, 8), "f4")).writeto(tmp_path / "small.fits")
    bias = fits.Header()
    bias["IMAGETYP"] = "Bias Frame"
    fits.PrimaryHDU(np.zeros((96, 100), "f4"), bias).writeto(tmp_path / "bias001.fits")
    path = init_config(tmp_path)
    text = path.read_text()
    settings = load_settings(path)
    assert settings.frames.filter == "I"
    names = [source.name for source in sources_of(settings)]
    assert names == [f"frame00{i}" for i in range(5)]  # the other filter is told by its header
    assert "4 frames of 96 x 100 pixels, filter I" in text
    assert "# gain = 1.5  # GAIN of each frame" in text
    for name in ("frame004", "broken", "small", "bias001"):
        assert f"# Left out: {name}.fits" in text
    for section, key, _, meaning in describe_settings():
        assert f"[{section}]" in text
        assert re.search(rf"^(# )?{key} =", text, re.M), key
        assert meaning in text
    with pytest.raises(WriteError, match="exists already"):
        init_config(tmp_path)
    assert init_config(tmp_path, overwrite=True).read_text() == text


def test_what_init_shows_as_defaults_can_be_switched_on(tmp_path: Path) -> None:
    write_season(tmp_path, 2)
    (tmp_path / "config.toml").unlink()
    text = init_config(tmp_path).read_text()
    lines = [re.sub(r"^# (?=\w+ = )", "", line) for line in text.splitlines()]
    values = tomllib.loads("\n".join(lines))
    assert Settings.model_validate(values).subtract == Settings().subtract


def test_init_elsewhere_points_back_to_the_frames(tmp_path: Path) -> None:
    write_season(tmp_path / "night", 2)
    path = init_config(tmp_path / "night", tmp_path / "settings.toml")
    names = [source.name for source in sources_of(load_settings(path))]
    assert names == ["frame000", "frame001"]


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_init_without_frames(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="folder"):
        init_config(tmp_path / name)


def test_a_damaged_file_is_a_line(tmp_path: Path) -> None:
    (tmp_path / "a.fits").write_bytes(b"SIMPLE  =                    T" + b" " * 50)
    (line,) = read_headers(tmp_path)
    assert line.problem
    with pytest.raises(InputError, match="None of the 1 files"):
        init_config(tmp_path)


def test_one_pattern_needs_no_list_and_names_with_brackets_are_names(tmp_path: Path) -> None:
    folder = tmp_path / "night [1]"
    folder.mkdir()
    for name in ("f[3].fits", "f3.fits", "UP.FITS"):
        (folder / name).write_bytes(b"")
    config = folder / "config.toml"
    config.write_text('[frames]\nexclude = "f[3].fits"\n')
    assert [s.name for s in sources_of(load_settings(config))] == ["UP"]  # a pattern, too
    config.write_text('[frames]\nfiles = "f[3].fits"\n')
    assert [s.name for s in sources_of(load_settings(config))] == ["f[3]"]
    elsewhere = tmp_path / "config.toml"
    elsewhere.write_text(f'[frames]\nfiles = ["{folder}/*.fits", "night [1]/*.FITS"]\n')
    found = sources_of(load_settings(elsewhere))
    assert [s.name for s in found] == ["UP", "f3", "f[3]"]
