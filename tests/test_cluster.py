"""The same run over a real local Dask cluster, with a worker that is killed in the middle."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from pytorchdia import InputError, LightCurves, reduce
from pytorchdia.run.cluster import dask_executor, useful_workers
from pytorchdia.run.pipeline import Executor, run_season
from pytorchdia.run.settings import load_settings

from .small_season import products, write_season

pytest.importorskip("distributed")
# What Dask leaves to the garbage collector when a worker is killed is not ours.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


def test_a_killed_worker_loses_nothing(tmp_path: Path) -> None:
    write_season(tmp_path / "a", 6)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    reduce(tmp_path / "a" / "config.toml")
    (tmp_path / "b" / "broken.fits").write_bytes(b"SIMPLE  =                    T")
    killed = []

    with dask_executor(2, None) as executor:
        pids = executor.client.run(os.getpid)  # type: ignore[attr-defined]
        assert len(pids) == 2
        assert os.getpid() not in pids.values()

        def kill(step: str, done: int, total: int) -> None:
            if step == "subtract" and done == 1 and not killed:
                killed.append(next(iter(pids.values())))
                os.kill(killed[0], signal.SIGKILL)

        summary = run_season(load_settings(tmp_path / "b" / "config.toml"), executor, progress=kill)
    assert killed
    statuses = {row.name: row.status for row in summary.rows}
    assert statuses.pop("broken") == "failed"  # a row, as in one process
    assert list(statuses.values()) == ["done"] * 6
    here, there = (LightCurves(tmp_path / name / "run") for name in "ab")
    extra = {"states/measure/broken.json"}
    assert (
        set(products(there.run)) - set(products(here.run)) == extra
    )  # nothing lost, nothing twice
    assert len(here) == len(there)
    for star in here:
        one, other = here[star], there[star]
        assert list(one.epochs["frame"]) == list(other.epochs["frame"])
        # Other numbers of threads add up in another order.
        apart = np.ma.abs(one.epochs["flux"] - other.epochs["flux"]) / one.epochs["error"]
        assert np.ma.max(apart) < 0.05


def test_a_cluster_that_is_there_already(tmp_path: Path) -> None:
    from dask import distributed

    write_season(tmp_path, 3)
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address=":0"
    ) as cluster:
        summary = reduce(tmp_path / "config.toml", scheduler=cluster.scheduler_address)
        with distributed.Client(cluster, set_as_default=False) as client:
            assert len(client.nthreads()) == 1  # the run has left it as it was
    assert [row.status for row in summary.rows] == ["done"] * 3
    assert len(LightCurves(tmp_path / "run")[1]) == 3


@pytest.mark.parametrize(("worth", "clusters"), [(0.0, 1), (1e9, 0)])
def test_processes_are_started_where_they_pay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, worth: float, clusters: int
) -> None:
    write_season(tmp_path, 4)
    started = []

    @contextmanager
    def counted(
        workers: int | None, scheduler: str | None, *, here_too: bool = False
    ) -> Iterator[Executor]:
        started.append(workers)
        with dask_executor(workers, scheduler, here_too=here_too) as executor:
            assert here_too
            pids = executor.client.run(os.getpid)  # type: ignore[attr-defined]
            assert len(set(pids.values())) == workers
            assert os.getpid() in pids.values()  # this process goes on working
            yield executor

    monkeypatch.setattr("pytorchdia.run.cluster.dask_executor", counted)
    monkeypatch.setattr(import_module("pytorchdia.run.reduce"), "_WORTH", worth)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        summary = reduce(tmp_path / "config.toml", workers="auto")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert started == [2] * clusters
    assert [row.status for row in summary.rows] == ["done"] * 4
    assert len(LightCurves(tmp_path / "run")[1]) == 4


@pytest.mark.parametrize("visible", [None, "5,GPU-8a1f"])
def test_each_worker_sees_a_gpu_of_its_own(
    monkeypatch: pytest.MonkeyPatch, visible: str | None
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with dask_executor(2, None) as executor:
        seen = executor.client.run(os.getenv, "CUDA_VISIBLE_DEVICES")  # type: ignore[attr-defined]
    assert sorted(seen.values()) == (visible.split(",") if visible else ["0", "1"])


def test_there_is_a_process_for_each_gpu_that_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert useful_workers(2, 1e9) == 4
    assert useful_workers(2, 1e9, "cpu") == 2


def test_there_are_no_more_processes_than_memory_bears() -> None:
    assert useful_workers(3, 1e9) == 3
    assert useful_workers(3, 0.0) == 1


def test_without_dask_it_works_in_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_season(tmp_path, 2)
    monkeypatch.setitem(sys.modules, "distributed", None)
    monkeypatch.setattr(import_module("pytorchdia.run.reduce"), "_WORTH", 0.0)
    summary = reduce(tmp_path / "config.toml", workers="auto")
    assert [row.status for row in summary.rows] == ["done"] * 2


def test_without_dask_it_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_season(tmp_path, 2)
    monkeypatch.setitem(sys.modules, "dask", None)
    with pytest.raises(InputError, match=r'pip install "\.\[cluster\]"'):
        reduce(tmp_path / "config.toml", workers=2)


@pytest.mark.parametrize("workers", [0, -1])
def test_less_than_one_worker_is_refused(tmp_path: Path, workers: int) -> None:
    write_season(tmp_path, 2)
    with pytest.raises(InputError, match=rf"workers = {workers}"):
        reduce(tmp_path / "config.toml", workers=workers)


def test_a_scheduler_without_workers_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dask import distributed

    write_season(tmp_path, 2)
    monkeypatch.setattr("pytorchdia.run.cluster.PATIENCE", 1.0)
    options = {"host": "127.0.0.1", "protocol": "tcp://", "dashboard_address": ":0"}
    scheduler = {"cls": distributed.Scheduler, "options": options}
    with (
        distributed.SpecCluster(workers={}, scheduler=scheduler) as cluster,
        pytest.raises(InputError, match="no workers"),
    ):
        reduce(tmp_path / "config.toml", scheduler=cluster.scheduler_address)


def test_processes_that_do_not_start_are_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_season(tmp_path, 4)
    tries = []

    @contextmanager
    def broken(*_: object, **__: object) -> Iterator[Executor]:
        tries.append(1)
        raise OSError(24, "Too many open files")
        yield

    monkeypatch.setattr("pytorchdia.run.cluster.dask_executor", broken)
    monkeypatch.setattr(import_module("pytorchdia.run.reduce"), "_WORTH", 0.0)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        summary = reduce(tmp_path / "config.toml", workers="auto", until="register")
    finally:
        torch.set_num_threads(threads)
    assert (tries, summary.failed) == ([1], ())
    assert summary.planned[-1] == ("register", 0, 4)
    assert "Dask does not start: OSError: [Errno 24]" in (tmp_path / "run" / "log.txt").read_text()


def test_a_scheduler_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_season(tmp_path, 2)
    monkeypatch.setattr("pytorchdia.run.cluster.PATIENCE", 1.0)
    with pytest.raises(InputError, match="does not answer"):
        reduce(tmp_path / "config.toml", scheduler="tcp://127.0.0.1:9")
