"""Real telescope frames: in the folder PYTORCHDIA_DATA, or in ../shared/data of the checkout."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from pytorchdia.cli import main as cli

DATA = Path(
    os.environ.get("PYTORCHDIA_DATA", Path(__file__).parents[3] / "shared" / "data")
).resolve()


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items):
    """Skip the tests of this folder without the frames; else keep each file in one process."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
            if not DATA.is_dir():
                item.add_marker(pytest.mark.skip(reason="the real frames are not at hand"))


@dataclass(frozen=True)
class Run:
    """One run of the command line: its exit code, its JSON, and its result file."""

    code: int
    outcome: dict
    path: Path


@pytest.fixture(scope="session")
def subtract_files(tmp_path_factory):
    """Run ``pytorchdia subtract TARGET REFERENCE`` without any hand-tuning, once for each pair."""
    folder = tmp_path_factory.mktemp("real")
    done = {}

    def run(target, reference, *options):
        key = (target, reference, *options)
        if key not in done:
            path = folder / f"{len(done)}.fits"
            arguments = [str(DATA / target), str(DATA / reference), "-o", str(path), "--json"]
            done[key] = _run(["subtract", *arguments, *options], path)
        return done[key]

    return run


def _run(arguments, path):
    patch = pytest.MonkeyPatch()
    patch.setattr(sys, "argv", ["pytorchdia", *arguments])
    printed = []
    patch.setattr("builtins.print", lambda *args, **_: printed.append(" ".join(map(str, args))))
    try:
        with pytest.raises(SystemExit) as stop:
            cli.main()
    finally:
        patch.undo()
    return Run(stop.value.code, json.loads("\n".join(printed) or "{}"), path)
