"""Steps of a run by themselves: flat-fields, masks and lists of stars."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from pytorchdia import InputError
from pytorchdia.errors import ShapeError
from pytorchdia.frame import Flag
from pytorchdia.preparation.register import Registration
from pytorchdia.regions import FrameDifference, Region, RegionFit
from pytorchdia.run.difference_steps import _without_changed
from pytorchdia.run.epoch import EpochDifference
from pytorchdia.run.frame_steps import Source, load, register_frame, registered
from pytorchdia.run.season_steps import make_reference
from pytorchdia.run.settings import load_settings
from pytorchdia.run.tables import read_table

from .small_season import CONFIG, SHAPE, write_season

SHIFT = np.array([[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]])
TURN = np.array([[1.0, 0.002, 0.3], [-0.002, 1.0, 0.4]])
SAME = {"matrix": np.eye(3)[:2].tolist(), "how": "shift", "by": "same grid", "n_matched": 9,
        "residual": 0.1, "drift": 0.0}  # fmt: skip
HOW = {"shift": SHIFT, "resampled": TURN}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_season(tmp_path, 2)
    return tmp_path


def sources(folder: Path) -> list[Source]:
    return [Source(path.stem, path) for path in sorted(folder.glob("*.fits"))]


def settings_with(folder: Path, key: str, image: np.ndarray, more: str = ""):
    """Settings that name an image: a flat or a mask; and ``more`` at their end."""
    fits.PrimaryHDU(image).writeto(folder / f"{key}.image", overwrite=True)
    (folder / "config.toml").write_text(
        CONFIG.replace("[subtract]", f'{key} = "{key}.image"\n[subtract]') + more
    )
    return load_settings(folder / "config.toml")


def moved(folder: Path, settings, how: str):
    registration = Registration(HOW[how], how, "stars", 9, 0.1, 0.0)
    return registered(sources(folder)[1], registration, SHAPE, None, settings)


@pytest.mark.parametrize("how", HOW)
def test_a_flat_of_another_shape_is_refused(folder: Path, how: str) -> None:
    settings = settings_with(folder, "flat", np.ones((50, 60), "f4"))
    with pytest.raises(ShapeError, match=r"flat-field has shape \(50, 60\) but frame001"):
        moved(folder, settings, how)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("value", [np.nan, 0.0, -1.0])
def test_where_a_flat_cannot_be_used_the_frame_is_masked(
    folder: Path, how: str, value: float
) -> None:
    flat = np.full(SHAPE, 0.5, "f4")
    flat[20, 31] = value
    frame, noise = moved(folder, settings_with(folder, "flat", flat), how)
    assert "flat-unusable" in {f.code for f in frame.findings}
    assert int(frame.flags[21, 29]) & Flag.MASKED
    variance = frame.variance if noise is None else noise.variance(frame.data)
    assert np.isfinite(variance.numpy()).all()
    whole, _ = moved(folder, settings_with(folder, "flat", np.full(SHAPE, 0.5, "f4")), how)
    assert not whole.flags[21, 29]
    assert "flat-unusable" not in {f.code for f in whole.findings}


@pytest.mark.parametrize("how", HOW)
def test_the_reference_has_the_noise_that_the_flat_tells(folder: Path, how: str) -> None:
    values = {**SAME, "matrix": HOW[how].tolist(), "how": how}
    grid, source = sources(folder)
    medians = []
    for level in (1.0, 0.25):
        settings = settings_with(folder, "flat", np.full(SHAPE, level, "f4"))
        make_reference([(source, values)], grid, settings, folder / "run")
        with fits.open(folder / "run" / "reference.fits") as hdus:
            medians.append(np.median(hdus["VARIANCE"].data[hdus["FLAGS"].data == 0]))
    # Eq 6: photons 270 ADU^2, 4 times that; read noise 11, 16 times that.
    assert medians[1] / medians[0] == pytest.approx((4 * 270 + 16 * 11) / 281, rel=0.1)


def test_a_grid_is_looked_at_anew_when_the_mask_changes(folder: Path) -> None:
    grid, source = sources(folder)
    mask = np.zeros(SHAPE, np.uint8)
    mask[:, :50] = 1
    few = register_frame(source, grid, settings_with(folder, "mask", mask), folder / "run")
    mask[:] = 0
    many = register_frame(source, grid, settings_with(folder, "mask", mask), folder / "run")
    assert many.values["n_matched"] > 1.3 * few.values["n_matched"]


def test_of_the_mask_for_all_frames_the_chosen_bits_count(folder: Path) -> None:
    mask = np.zeros(SHAPE, np.int16)
    mask[5, 5], mask[6, 6], mask[7, 7] = 1, 2, 3
    for bits, bad in ((None, [5, 6, 7]), ([0], [5, 7]), ([1], [6, 7])):
        more = "" if bits is None else f"[keywords]\nmask_bits = {bits}\n"
        settings = settings_with(folder, "mask", mask, more)
        flags = load(sources(folder)[1], settings).flags.numpy()
        masked = (flags & int(Flag.MASKED)) != 0
        assert [i for i in range(4, 9) if masked[i, i]] == bad


def listed(folder: Path, rows: str, more: str = "") -> list[str]:
    """Names of the stars of a run whose list has these rows."""
    (folder / "mine.csv").write_text(rows)
    (folder / "config.toml").write_text(CONFIG + f'[stars]\nlist = "mine.csv"\n{more}')
    grid, settings = sources(folder)[0], load_settings(folder / "config.toml")
    make_reference([(grid, SAME)], grid, settings, folder / "run")
    return list(read_table(folder / "run" / "stars.parquet")["name"].to_pylist())


@pytest.mark.parametrize("cell", ["", "nan", "17:45"])
def test_a_star_without_a_position_is_refused(folder: Path, cell: str) -> None:
    rows = f"name,x,y\nA,67.7,53.5\nB,{cell},45.6\nC,20.0,30.0\n"
    with pytest.raises(InputError, match=r"no number for x or y in 1 of its 3 rows .* row 2"):
        listed(folder, rows)


def test_of_a_list_the_first_stars_are_measured(folder: Path) -> None:
    rows = "name,x,y\nA,67.7,53.5\nB,48.3,45.6\n,20.0,30.0\n"
    assert listed(folder, rows) == ["A", "B", ""]
    assert listed(folder, rows, "max_stars = 2\n") == ["A", "B"]


def in_regions(difference: np.ndarray, *scales: float) -> FrameDifference:
    """A difference of equal regions side by side, each with a kernel of one pixel and a P."""
    kernel = np.zeros((5, 5))
    kernel[2, 2] = 1.0
    edges = np.linspace(0, SHAPE[1], len(scales) + 1).astype(int)
    fits = []
    for left, right, p in zip(edges[:-1], edges[1:], scales, strict=True):
        at = slice(0, SHAPE[0]), slice(int(left), int(right))
        fits.append(RegionFit(Region(*at, *at), p * kernel, p, 0.01, 0.0, 1.0, "CONVERGED"))
    return FrameDifference(
        difference, np.full(SHAPE, 300.0), np.zeros(SHAPE, np.int16), tuple(fits)
    )


@pytest.fixture
def referenced(folder: Path):
    """Settings of a run that has a reference."""
    grid, settings = sources(folder)[0], load_settings(folder / "config.toml")
    make_reference([(grid, SAME)], grid, settings, folder / "run")
    return settings


@pytest.mark.parametrize("scale", [-0.5, 0.0, np.nan])
def test_a_region_without_a_positive_scale_has_no_data_and_the_others_have(
    folder: Path, referenced, scale: float
) -> None:
    difference = 17.0 * np.random.default_rng(3).standard_normal(SHAPE)
    x, y = np.array([20.0, 30.0, 75.0]), np.array([30.0, 60.0, 50.0])
    some, whole = (
        EpochDifference.of(in_regions(difference, *s), folder / "run").fluxes(x, y, referenced)
        for s in ((1.0, scale), (1.0, 1.0))
    )
    assert some.valid.tolist() == [True, True, False]
    assert some.flux[:2] == pytest.approx(whole.flux[:2], abs=0.3 * whole.error[0])


@pytest.mark.parametrize("scale", [-0.5, 0.0, np.nan])
def test_what_has_changed_is_seen_beside_a_region_without_a_positive_scale(
    folder: Path, referenced, scale: float
) -> None:
    rng = np.random.default_rng(4)
    difference = 17.0 * rng.standard_normal(SHAPE)
    psf = EpochDifference.of(in_regions(difference, 1.0), folder / "run").psf
    star = psf.stamps(np.array([30.0]), np.array([40.0]))[0]
    half = len(star) // 2
    difference[40 - half : 41 + half, 30 - half : 31 + half] += 9000.0 * star
    frame, _ = registered(
        sources(folder)[0], Registration(SHIFT, "shift", "stars", 9, 0.1, 0.0), SHAPE, None,
        referenced,
    )  # fmt: skip
    left, findings = _without_changed(frame, in_regions(difference, 1.0, scale), folder / "run")
    assert [f.code for f in findings] == ["changed-sources"]
    changed = (left.flags.numpy() & Flag.CHANGED) != 0
    assert changed[40, 30]
    assert changed.sum() < 200
    left, findings = _without_changed(frame, in_regions(difference, scale, scale), folder / "run")
    assert left is frame
    assert findings == ()
