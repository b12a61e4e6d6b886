"""The command line: every option does what its help says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import typer
from astropy.io import fits

import pytorchdia
from pytorchdia.cli import experiment, options, season
from pytorchdia.cli import main as cli
from pytorchdia.config import SolverName, make_solver, parse_kernel_size
from pytorchdia.errors import InputError
from pytorchdia.noise import EMCCDNoise
from pytorchdia.run.frames_table import FrameRow
from pytorchdia.run.pipeline import RunSummary
from pytorchdia.run.state import finite

from .conftest import SHAPE


@pytest.fixture
def run_json(files, run_cli):
    """Subtract the pair with options; give the parsed outcome."""

    def run(*arguments):
        outcome = run_cli(
            "subtract", files.target, files.reference, "-o", files.result, "--kernel-size", "5x7",
            "--overwrite", "--json", *arguments,
        )  # fmt: skip
        assert outcome.err == ""
        assert outcome.code in (0, 5)
        parsed = json.loads(outcome.out)
        assert outcome.code == (0 if parsed["status"] == "CONVERGED" else 5)
        return parsed

    return run


def codes(parsed):
    return [finding["code"] for finding in parsed["findings"]]


def test_json_tells_the_outcome(run_json, files):
    parsed = run_json()
    assert parsed["status"] == "CONVERGED"
    assert parsed["scale"] == pytest.approx(0.8, abs=6 * parsed["scale_error"])
    assert parsed["files"] == [str(files.result)]
    assert parsed["settings"]["kernel"] == "DeltaKernel(size=(5, 7))"
    assert fits.getdata(files.result, "KERNEL").shape == (5, 7)


def test_json_holds_no_nan_or_infinity():
    assert finite({"a": [float("nan"), (float("inf"), 1.5, "x", None, 2)]}) == {
        "a": [None, [None, 1.5, "x", None, 2]]
    }


def test_without_json_the_tables_go_to_standard_error(files, run_cli):
    outcome = run_cli(
        "subtract", files.target, files.reference, "-o", files.result, "--kernel-size", "5"
    )
    assert (outcome.code, outcome.out) == (0, "")
    for word in ("Used", "Settings", "Result", "P ", "1 e-/ADU (GAIN)", "The fit converged.",
                 "target.fits", f"wrote {files.result}"):  # fmt: skip
        assert word in outcome.err


def test_quiet_prints_nothing(files, run_cli):
    outcome = run_cli("subtract", files.target, files.reference, "-o", files.result, "--quiet")
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
    assert files.left_behind() == ["difference.fits"]


def test_the_default_output_is_named_after_the_target_in_this_folder(
    files, run_cli, monkeypatch, tmp_path
):
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    outcome = run_cli("subtract", f"{files.target}[0]", files.reference, "-q", "--kernel-size", "5")
    assert outcome.code == 0
    assert os.listdir(folder) == ["target_diff.fits"]


def test_plot_writes_a_png_beside_the_result(run_json, files):
    parsed = run_json("--plot", files.out / "a.png")
    assert parsed["files"] == [str(files.result), str(files.out / "a.png")]
    assert (files.out / "a.png").read_bytes().startswith(b"\x89PNG")
    assert files.left_behind() == ["a.png", "difference.fits"]


@pytest.mark.parametrize(
    ("text", "shape"), [("19", (19, 19)), ("5x7", (5, 7)), (" 5 X 7 ", (5, 7)), ("5,7", (5, 7))]
)
def test_kernel_sizes_are_height_by_width(text, shape):
    assert parse_kernel_size(text).shape == shape


def test_kernel_size_auto_chooses_one(run_json):
    assert parse_kernel_size("Auto") is None
    found = codes(run_json("--kernel-size", "auto"))
    assert {"kernel-size", "seeing-unknown"} & set(found)


def test_mask_takes_out_its_pixels(run_json, files, write_fits):
    mask = np.zeros(SHAPE, np.uint8)
    mask[20:23, 30:34] = 1
    before = run_json()["diagnostics"]["n_pixels"]
    after = run_json("--mask", write_fits("m.fits", mask))["diagnostics"]["n_pixels"]
    assert before - after == 12
    flags = fits.getdata(files.result, "MASK")
    np.testing.assert_array_equal((flags & pytorchdia.Flag.MASKED) != 0, mask != 0)


def test_of_a_mask_the_chosen_bits_count(run_json, write_fits):
    mask = np.zeros(SHAPE, np.int16)
    mask[10:20, 10:20], mask[20:25, 10:20] = 4, 5
    path = write_fits("m.fits", mask)
    n = {
        bits: run_json("--mask", path, *bits)["diagnostics"]["n_pixels"]
        for bits in ((), ("--mask-bit", 0), ("--mask-bit", 1), ("--mask-bit", 0, "--mask-bit", 2))
    }
    whole = n[("--mask-bit", 1)]
    assert whole == run_json()["diagnostics"]["n_pixels"]
    assert n[()] == n[("--mask-bit", 0, "--mask-bit", 2)] == whole - 150
    assert n[("--mask-bit", 0)] == whole - 50


def test_reference_mask_takes_out_the_footprint(run_json, write_fits):
    mask = np.zeros(SHAPE, np.float32)
    mask[30, 30] = np.nan
    before = run_json()["diagnostics"]["n_pixels"]
    after = run_json("--reference-mask", write_fits("m.fits", mask))["diagnostics"]["n_pixels"]
    assert before - after == 35


def test_saturation_flags_the_target_and_its_twin_the_reference(run_json, files, pair):
    level = float(np.quantile(pair.target, 0.99))
    run_json("--saturation", level)
    flags = fits.getdata(files.result, "MASK")
    np.testing.assert_array_equal(
        (flags & pytorchdia.Flag.SATURATED) != 0, pair.target.astype(np.float32) >= level
    )
    run_json("--reference-saturation", float(pair.reference.max()) * 0.99, "--saturation", "inf")
    flags = fits.getdata(files.result, "MASK")
    assert ((flags & pytorchdia.Flag.REFERENCE) != 0).sum() >= 12
    assert ((flags & pytorchdia.Flag.SATURATED) != 0).sum() == 0


def test_reference_background_is_used_as_given(run_json):
    assert run_json("--reference-background", "123")["diagnostics"]["reference_background"] == 123


@pytest.mark.parametrize(
    ("arguments", "noise"),
    [
        (("--gain", "2", "--read-noise", "6", "--sky-offset", "10"),
         "CCDNoise(read_noise=3.0, gain=2.0, offset=10.0)"),
        (("--sky-offset", "0"), "CCDNoise(read_noise=5.0, gain=1.0, offset=0.0)"),
        (("--em-gain", "1.5", "--excess", "1.8"), "EMCCDNoise(total_gain=1.5, excess=1.8)"),
    ],
)  # fmt: skip
def test_the_noise_model_is_the_one_asked_for(run_json, arguments, noise):
    assert run_json(*arguments)["settings"]["noise"] == noise


def test_exposure_turns_a_rate_into_counts(files, run_cli, pair, write_fits):
    header = fits.Header({"GAIN": 1.0, "RDNOISE": 5.0, "BUNIT": "adu/s"})
    rate = write_fits("rate.fits", pair.target / 20.0, header)
    outcome = run_cli("subtract", rate, files.reference, "-o", files.result, "--kernel-size", "5x7",
                      "--exposure", "20", "--sky-offset", "0", "--json")  # fmt: skip
    settings = json.loads(outcome.out)["settings"]
    assert settings["noise"] == "CCDNoise(read_noise=0.25, gain=20.0, offset=0.0)"


def test_flat_enters_the_noise(run_json, files, write_fits):
    run_json("--sky-offset", "0")
    before = fits.getdata(files.result, "VARIANCE")
    run_json("--flat", write_fits("flat.fits", np.full(SHAPE, 0.5)), "--sky-offset", "0")
    after = fits.getdata(files.result, "VARIANCE")
    inner = np.s_[10:-10, 10:-10]
    ratio = after[inner] / before[inner]  # 1/F for the photons, 1/F^2 for the read noise
    assert ratio.min() > 1.99
    assert ratio.max() < 2.2


def test_variance_is_used_and_its_bad_pixels_flagged(run_json, files, write_fits):
    variance = np.full(SHAPE, 400.0)
    variance[20, 21], variance[22, 23] = 0.0, np.nan
    parsed = run_json("--variance", write_fits("v.fits", variance))
    assert parsed["settings"]["noise"].startswith("FixedVariance")
    flags = fits.getdata(files.result, "MASK")
    bad = np.argwhere((flags & pytorchdia.Flag.BAD_VARIANCE) != 0).tolist()
    assert bad == [[20, 21], [22, 23]]
    assert fits.getdata(files.result, "VARIANCE")[30, 30] == 400.0


def test_variance_and_em_gain_exclude_each_other(files, run_cli, write_fits):
    outcome = run_cli("subtract", files.target, files.reference, "-o", files.result,
                      "--variance", write_fits("v.fits", np.ones(SHAPE)),
                      "--em-gain", "2")  # fmt: skip
    assert outcome.code == 3
    assert "--variance replaces --em-gain" in outcome.err


def test_the_noise_of_the_reference_enters_the_variance(run_json, files):
    assert not run_json()["diagnostics"]["reference_noise"]
    before = fits.getdata(files.result, "VARIANCE")
    parsed = run_json("--reference-gain", "25", "--reference-read-noise", "25")
    assert parsed["diagnostics"]["reference_noise"]
    assert parsed["settings"]["reference noise"].startswith("CCDNoise(read_noise=1.0, gain=25.0")
    after = fits.getdata(files.result, "VARIANCE")
    assert (after[5:-5, 5:-5] > before[5:-5, 5:-5]).all()


def test_background_degree_adds_coefficients(run_json):
    background = run_json("--background-degree", "2")["background"]
    assert len(background["coefficients"]) == len(background["errors"]) == 6
    assert background["exponents"] == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [2, 0]]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("huber", "--huber-c", "2.5"), "Huber(c=2.5, tolerance=0.1)"),
        (("student-t", "--student-nu", "7", "--tolerance", "0"), "StudentT(nu=7.0, tolerance=0.0)"),
        (("gaussian",), "Gaussian()"),
    ],
)
def test_likelihoods_by_name(run_json, arguments, text):
    parsed = run_json("--likelihood", *arguments)
    assert parsed["settings"]["likelihood"] == text
    assert parsed["scale"] == pytest.approx(0.8, abs=0.1)


def test_the_prior_by_the_evidence_needs_no_number(run_json, files, run_cli):
    outcome = run_json("--prior", "evidence")
    assert "GaussianProcessPrior(components=(Component(" in outcome["settings"]["penalty"]
    assert outcome["diagnostics"]["n_effective"] < outcome["diagnostics"]["n_parameters"]
    refused = run_cli("subtract", files.target, files.reference, "--prior", "evidence",
                      "--laplacian", 1.0, "-o", files.out / "other.fits")  # fmt: skip
    assert refused.code == 3
    assert "--laplacian takes the place" in refused.err


def test_experiment_hands_on_what_is_asked_for(run_cli, tmp_path, monkeypatch):
    calls = []

    def run(folder, pairs, scenario, workers, progress):
        progress(1, 2)
        calls.append((folder, pairs, scenario.name, workers))

    monkeypatch.setattr(experiment, "run_table2", run)
    outcome = run_cli("experiment", "table2", tmp_path, "--pairs", 40, "--workers", 1)
    assert outcome.code == 0
    assert calls == [(tmp_path, 40, "paper", 1)]
    assert "table2.md" in outcome.err
    assert run_cli("experiment", "table2", tmp_path, "--quick", "--scenario", "faint").code == 0
    assert calls[1] == (tmp_path, 128, "faint", None)
    refused = run_cli("experiment", "bias", tmp_path, "--quick")
    assert refused.code == 2
    assert "--quick" in refused.err


def test_laplacian_smooths_the_kernel(run_json, files):
    run_json()
    free = fits.getdata(files.result, "KERNEL")
    assert run_json("--laplacian", "50")["settings"]["penalty"] == "LaplacianPenalty(strength=50.0)"
    smooth = fits.getdata(files.result, "KERNEL")
    assert np.abs(np.diff(smooth)).sum() < np.abs(np.diff(free)).sum()


@pytest.mark.parametrize(
    "arguments",
    [
        ("newton", "--tol", "1e-5", "--max-steps", "9"),
        ("normal-equations", "--iterations", "4", "--k-sigma", "5"),
    ],
)
def test_solvers_by_name_find_the_scale(run_json, arguments):
    parsed = run_json("--solver", *arguments)
    assert parsed["scale"] == pytest.approx(0.8, abs=6 * parsed["scale_error"])
    solver = parsed["settings"]["solver"].replace("_", "").lower()
    assert solver.startswith(arguments[0].replace("-", ""))


def test_solver_options_reach_the_solver():
    adam = make_solver(SolverName.ADAM_LBFGS, max_steps=7, tol=1e-3, lr_background=2.0)
    assert (adam.max_adam, adam.max_lbfgs, adam.tol, adam.lr_background) == (7, 7, 1e-3, 2.0)
    newton = make_solver(SolverName.NEWTON, max_steps=7, tol=1e-3)
    assert (newton.max_steps, newton.tol) == (7, 1e-3)
    classic = make_solver(SolverName.NORMAL_EQUATIONS, iterations=7, k_sigma=4.0)
    assert (classic.iterations, classic.k_sigma) == (7, 4.0)
    with pytest.raises(InputError, match="tol > 0, got 0"):
        make_solver(SolverName.NEWTON, tol=0.0)


def test_a_fit_that_does_not_converge_is_written_and_ends_with_code_5(run_json, files):
    parsed = run_json("--solver", "adam-lbfgs", "--max-steps", "2", "--lr-background", "5")
    assert parsed["status"] == "MAX_STEPS"
    assert "max-steps" in codes(parsed)
    assert fits.getheader(files.result)["DIASTAT"] == "MAX_STEPS"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtype_and_device_are_those_asked_for(run_json, files, dtype):
    diagnostics = run_json("--dtype", dtype, "--device", "cpu")["diagnostics"]
    assert (diagnostics["dtype"], diagnostics["device"]) == (dtype, "cpu")
    assert fits.getdata(files.result).dtype.itemsize == int(dtype[-2:]) // 8


def test_info_prints_tables_and_json(run_json, run_cli, files):
    parsed = run_json()
    shown = run_cli("info", files.result)
    assert (shown.code, shown.err) == (0, "")
    for word in ("HDUs", "KERNEL_COV", "Parameters", "b_00", "Pixels not used", "Findings"):
        assert word in shown.out
    summary = json.loads(run_cli("info", "--json", files.result).out)
    assert summary["parameters"][0][:3] == ["P", parsed["scale"], parsed["scale_error"]]
    assert summary["diagnostics"]["status"] == "CONVERGED"


@pytest.mark.parametrize("which", ["target", "nowhere", "out"])
def test_info_on_what_is_no_result_ends_with_code_3(run_cli, files, which):
    path = files.out.parent / ("target.fits" if which == "target" else which)
    outcome = run_cli("info", path)
    assert (outcome.code, outcome.out) == (3, "")
    assert path.name in outcome.err
    assert "Traceback" not in outcome.err


def test_the_package_runs_as_a_module():
    told = subprocess.run(
        [sys.executable, "-m", "pytorchdia", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout == f"pytorchdia {pytorchdia.__version__}\n"


def test_version(run_cli):
    outcome = run_cli("--version")
    assert (outcome.code, outcome.out) == (0, f"pytorchdia {pytorchdia.__version__}\n")


def test_without_arguments_the_help_is_shown(run_cli):
    outcome = run_cli()
    assert outcome.code == 2
    assert "subtract" in outcome.out + outcome.err
    assert "defect" not in outcome.err


COMMANDS = typer.main.get_command(cli.app).commands


@pytest.mark.parametrize("name", ["", *COMMANDS])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_command_has_help_on_every_option(run_cli, name, flag):
    outcome = run_cli(*([name] if name else []), flag)
    assert (outcome.code, outcome.err) == (0, "")
    if name:
        for parameter in COMMANDS[name].params:
            assert parameter.help, parameter.name
            longest = max(parameter.opts, key=len)
            if longest.startswith("--"):
                assert longest in outcome.out
        assert COMMANDS[name].help.splitlines()[0].split()[0] in outcome.out


def all_commands(command=typer.main.get_command(cli.app), path=()):
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from all_commands(inner, (*path, name))


@pytest.mark.parametrize(
    ("path", "units"),
    [
        (path, units)
        for path, command in all_commands()
        if (units := {u for p in command.params for u in re.findall(r"\[.+?\]", p.help or "")})
    ],
)
def test_units_are_in_the_help(run_cli, path, units):
    shown = run_cli(*path, "--help").out
    assert {unit for unit in units if unit not in shown} == set()


def test_the_commands_with_units_are_known():
    with_units = {p for p, c in all_commands() if any("[" in (o.help or "") for o in c.params)}
    assert with_units == {
        ("subtract",), ("simulate",), ("experiment", "table2"), ("experiment", "season")
    }  # fmt: skip


@pytest.mark.parametrize("name", ["out[old]", "out[/red]"])
def test_brackets_in_names_are_shown_as_they_are(tmp_path, run_cli, files, capsys, name):
    place = tmp_path / name / "frames"
    made = run_cli("simulate", tmp_path / name, "--frames", 2, "--size", 64, "--stars", 20)
    assert (made.code, str(place) in made.err) == (0, True)
    settings = run_cli("init", place)
    assert (settings.code, settings.err.count(f"{place}/config.toml")) == (0, 2)
    result = tmp_path / name / "d.fits"
    subtracted = run_cli("subtract", files.target, files.reference, "-o", result)
    assert f"wrote {result}" in subtracted.err
    row = FrameRow("a[1]", "a.fits", "failed", "measure", f"{place} cannot be read")
    season._show_summary(RunSummary(place, (row,), ()))
    shown = capsys.readouterr().err
    assert f"failed a[1] (measure): {place} cannot be read" in shown
    assert f"Results are in {place}." in shown


def test_an_excess_of_zero_is_not_taken_for_absent(run_json, files, run_cli):
    noise = run_json("--em-gain", 50.0)["settings"]["noise"]
    assert f"excess={EMCCDNoise.excess}" in noise
    outcome = run_cli("subtract", files.target, files.reference, "-o", files.out / "other.fits",
                      "--em-gain", 50.0, "--excess", 0)  # fmt: skip
    assert outcome.code == 3
    assert "excess" in outcome.err


def test_the_prior_is_one_line_of_the_table_and_whole_in_the_file(files, run_cli):
    outcome = run_cli("subtract", files.target, files.reference, "-o", files.result)
    assert re.search(r"prior by the evidence, \d+ effective\s", outcome.err)
    assert "GaussianProcessPrior" not in outcome.err
    assert "Component(amplitude=" in run_cli("info", files.result, "--json").out


def test_the_exit_codes_are_in_the_help(run_cli):
    shown = " ".join(run_cli("--help").out.split())
    for code, text in cli.EXIT_CODES.items():
        assert f"{code} {text}" in shown


def test_every_option_of_subtract_is_declared_in_one_place():
    declared = {name for name in vars(options) if name[0].isupper()} - {"Annotated", "Path"}
    assert len(COMMANDS["subtract"].params) == len(declared)
