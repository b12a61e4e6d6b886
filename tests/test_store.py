"""Tables on disk and light curves read back from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.table import Table
from astropy.timeseries import TimeSeries

from pytorchdia import InputError, LightCurves
from pytorchdia.errors import ReadError, WriteError
from pytorchdia.run.tables import EPOCH, STARS, describe, read_table, write_table

FLUX = {1: [10.0, -20.0, 5.0], 2: [1.0, 2.0, np.nan], 7: [-2000.0, 0.0, 3.0]}
TIMES = [59001.5, 59000.5, None]
STAR = {
    "star": np.array([1, 2, 7]), "x": np.array([10.0, 20.5, 30.0]), "y": np.array([5.0, 6.0, 7.0]),
    "ra": np.array([270.0, 270.1, np.nan]), "dec": -25.0, "flux": np.array([100.0, 50.0, 1000.0]),
    "error": 2.0, "flags": 0, "name": None,
}  # fmt: skip


def epoch(i: int) -> dict[str, object]:
    flux = np.array([FLUX[star][i] for star in FLUX])
    return {
        "star": np.array(list(FLUX)), "frame": f"f{i}", "time": TIMES[i], "time_scale": "utc",
        "bjd_tdb": None, "flux": flux, "error": np.where(np.isnan(flux), np.inf, 1.5),
        "chi_square": 1.0, "n_pixels": 9, "scale": 1.1, "scale_error": 0.01, "drift": 0.0,
        "fwhm": 3.0, "flags": 0,
    }  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_table(tmp_path / "stars.parquet", STARS, STAR)
    for i in range(3):
        write_table(tmp_path / "photometry" / f"f{i}.parquet", EPOCH, epoch(i))
    (tmp_path / "photometry" / ".f9.parquet.123.part").write_bytes(b"half a")
    return tmp_path


def test_the_same_values_are_the_same_bytes(tmp_path: Path) -> None:
    a, b = (write_table(tmp_path / name, EPOCH, epoch(0)) for name in ("a", "b"))
    assert a.read_bytes() == b.read_bytes()


def test_nothing_that_is_not_finite_is_written(run: Path) -> None:
    table = read_table(run / "photometry" / "f2.parquet")
    assert table["flux"].null_count == 1
    assert table["error"].null_count == 1
    assert table["time"].null_count == 3
    assert table.schema.field("flux").metadata[b"unit"] == b"adu"


def test_an_empty_table_keeps_its_columns(tmp_path: Path) -> None:
    columns = {name: np.array([]) if name == "star" else 0.0 for name in EPOCH.names}
    columns |= {"frame": "f", "time_scale": "utc"}
    table = read_table(write_table(tmp_path / "t", EPOCH, columns, rows=0))
    assert table.num_rows == 0
    assert table.column_names == EPOCH.names


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(WriteError, match="No space left"):
        write_table(tmp_path / "t.parquet", EPOCH, epoch(0))
    assert list(tmp_path.iterdir()) == []


def test_damaged_parquet_is_told(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(b"PAR1 no")
    with pytest.raises(ReadError, match="Parquet"):
        read_table(tmp_path / "t")


def test_every_column_is_described() -> None:
    assert all(meaning for _, meaning in describe(EPOCH).values())
    assert all(meaning for _, meaning in describe(STARS).values())


def test_light_curves_by_star_in_the_order_of_time(run: Path) -> None:
    curves = LightCurves.open(run)
    assert len(curves) == 3
    assert list(curves) == [1, 2, 7]
    assert 7 in curves
    assert 3 not in curves
    curve = curves[1]
    assert list(curve.epochs["frame"]) == ["f1", "f0", "f2"]  # the one without a time last
    assert list(curve.epochs["flux"]) == [-20.0, 10.0, 5.0]
    assert (curve.x, curve.y, curve.ra, curve.dec) == (10.0, 5.0, 270.0, -25.0)
    assert curves[7].ra is None
    assert curves.at(21.0, 6.0).star == 2
    with pytest.raises(KeyError, match="no star 3"):
        curves[3]


def test_the_dataset_is_lazy_and_whole(run: Path) -> None:
    dataset = LightCurves(run).dataset
    assert dataset.count_rows() == 9
    assert len(dataset.files) == 3


def test_totals_and_magnitudes(run: Path) -> None:
    table = LightCurves(run)[1].to_table(zero_point=20.0)
    assert list(table["total"]) == [80.0, 110.0, 105.0]
    assert table["magnitude"][0] == pytest.approx(20.0 - 2.5 * np.log10(80.0))
    assert table["magnitude_error"][0] == pytest.approx(2.5 / np.log(10) * 1.5 / 80.0)
    assert table.meta["star"] == 1
    faint = LightCurves(run)[7].to_table()
    assert list(faint["magnitude"].mask) == [False, True, False]  # a negative total has none
    missing = LightCurves(run)[2].to_table()
    assert bool(missing["total"].mask[2])


def test_time_series(run: Path) -> None:
    series = LightCurves(run)[1].to_timeseries()
    assert isinstance(series, TimeSeries)
    assert list(series.time.mjd) == [59000.5, 59001.5]
    assert series.time.scale == "utc"


def test_time_series_takes_bjd_where_all_have_it(run: Path) -> None:
    for i in range(2):
        columns = epoch(i) | {"bjd_tdb": 2459001.0 + i}
        write_table(run / "photometry" / f"f{i}.parquet", EPOCH, columns)
    series = LightCurves(run)[1].to_timeseries()
    assert series.time.scale == "tdb"
    assert list(series.time.jd) == [2459002.0, 2459001.0]


def test_two_time_scales_are_refused(run: Path) -> None:
    write_table(run / "photometry" / "f3.parquet", EPOCH, epoch(0) | {"time_scale": "tdb"})
    with pytest.raises(InputError, match="2 time scales"):
        LightCurves(run)[1].to_timeseries()


def test_times_at_the_barycentre_are_no_times_at_the_telescope(run: Path) -> None:
    write_table(run / "photometry" / "f1.parquet", EPOCH, epoch(1) | {"time_scale": "utc bary"})
    with pytest.raises(InputError, match="utc, utc bary"):
        LightCurves(run)[1].to_timeseries()
    for i in (0, 2):
        columns = epoch(i) | {"time_scale": "utc bary"}
        write_table(run / "photometry" / f"f{i}.parquet", EPOCH, columns)
    assert LightCurves(run)[1].to_timeseries().meta["time_scale"] == "utc bary"


def test_stars_by_name_and_by_direction(run: Path) -> None:
    curves = LightCurves(run)
    assert curves.near(270.0 + 5e-4, -25.0).star == 1
    with pytest.raises(InputError, match=r"36\d\d arcsec away"):
        curves.near(270.0, -26.0)
    with pytest.raises(KeyError, match="0 stars of the name 'V1'"):
        curves.named("V1")
    with pytest.raises(KeyError, match="0 stars of the name ''"):
        curves.named("")


@pytest.mark.parametrize("ending", [".csv", ".ecsv", ".fits", ".vot", ".xml"])
def test_export_and_back(run: Path, tmp_path: Path, ending: str) -> None:
    path = LightCurves(run)[1].write(tmp_path / f"curve{ending}")
    kind = {".csv": "ascii.csv", ".ecsv": "ascii.ecsv", ".fits": "fits"}.get(ending, "votable")
    table = Table.read(path, format=kind)
    assert list(table["flux"]) == [-20.0, 10.0, 5.0]
    assert list(table["total"]) == pytest.approx([80.0, 110.0, 105.0])
    assert list(np.ma.getmaskarray(table["time"])) == [False, False, True] or ending == ".fits"
    with pytest.raises(WriteError, match="exists already"):
        LightCurves(run)[1].write(path)


def test_an_ending_that_tells_no_format(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ends in none of"):
        LightCurves(run)[1].write(tmp_path / "curve.doc")
