"""Bad input: one sentence, the right exit code, and nothing left behind; and what masks do."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from astropy.io import fits

import pytorchdia as dia
from pytorchdia.errors import (
    FlatImageError,
    InputError,
    NoiseWarning,
    ReadError,
    ShapeError,
    TooFewPixelsError,
    WriteError,
)

from .conftest import SHAPE, make_pair

KERNEL = dia.DeltaKernel((5, 7))
PAIR = make_pair(1)
NAN = np.full(SHAPE, np.nan)
N_PIXELS = SHAPE[0] * SHAPE[1]


def variance_companion(value):
    def build(path):
        variance = fits.ImageHDU(np.full(SHAPE, value), name="VARIANCE")
        fits.HDUList([fits.PrimaryHDU(PAIR.target), variance]).writeto(path)

    return build


def image(array, **cards):
    return lambda path: fits.PrimaryHDU(np.asarray(array), fits.Header(cards)).writeto(path)


def cut(n_bytes):
    def build(path):
        image(PAIR.target)(path)
        path.write_bytes(path.read_bytes()[:n_bytes])

    return build


def masked_everywhere(path):
    mask = fits.ImageHDU(np.ones(SHAPE, np.uint8), name="MASK")
    fits.HDUList([fits.PrimaryHDU(PAIR.target), mask]).writeto(path)


@dataclass(frozen=True)
class Bad:
    """One bad file: how to make it, the error, and words that its message must hold."""

    build: object
    error: type
    words: tuple[str, ...]
    as_reference: bool = False


BAD_FILES = {
    "nan-everywhere": Bad(image(NAN), TooFewPixelsError, ("t.fits", str(N_PIXELS))),
    "nan-reference": Bad(image(NAN), TooFewPixelsError, ("t.fits", str(N_PIXELS)), True),
    "all-masked": Bad(masked_everywhere, TooFewPixelsError, ("t.fits", str(N_PIXELS))),
    "constant-target": Bad(image(np.full(SHAPE, 7.5)), InputError, ("t.fits",)),
    "constant-reference": Bad(
        image(np.full(SHAPE, 7.5)), FlatImageError, ("reference (t.fits)", "7.5"), True
    ),
    "other-shape": Bad(image(PAIR.target[:-1]), ShapeError, ("(63, 72)", "(64, 72)", "t.fits")),
    "negative-variance": Bad(variance_companion(-2.0), InputError, (str(N_PIXELS), "-2")),
    "zero-variance": Bad(variance_companion(0.0), InputError, (str(N_PIXELS), "0")),
    "cube": Bad(image(np.zeros((3, *SHAPE))), ShapeError, ("t.fits", "(3, 64, 72)")),
    "one-dimensional": Bad(image(np.zeros(9)), ReadError, ("t.fits", "no image")),
    "table": Bad(
        lambda path: fits.BinTableHDU.from_columns(
            [fits.Column("A", "E", array=np.zeros(3))]
        ).writeto(path),
        ReadError, ("t.fits", "no image"),
    ),
    "truncated": Bad(cut(2880 + 999), ReadError, ("t.fits", "3879 bytes", "truncated")),
    "truncated-header": Bad(cut(400), ReadError, ("t.fits", "400 bytes")),
    "empty": Bad(lambda path: path.write_bytes(b""), ReadError, ("t.fits", "0 bytes")),
    "text": Bad(lambda path: path.write_text("hello\n" * 999), ReadError, ("t.fits", "5994 bytes")),
    "broken-gzip": Bad(
        lambda path: path.write_bytes(b"\x1f\x8b\x08\x00" + b"x" * 99), ReadError, ("t.fits",)
    ),
    "missing": Bad(lambda path: None, ReadError, ("t.fits", "no file")),
    "folder": Bad(lambda path: path.mkdir(), ReadError, ("t.fits", "folder")),
}  # fmt: skip


@pytest.fixture
def other(tmp_path):
    path = tmp_path / "other.fits"
    fits.PrimaryHDU(PAIR.reference).writeto(path)
    return path


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def arrange(bad, tmp_path, other):
    path = tmp_path / "t.fits"
    bad.build(path)
    return (other, path) if bad.as_reference else (path, other)


def assert_clean_failure(outcome, code, words, out):
    assert outcome.code == code, outcome.err
    assert "Traceback" not in outcome.err
    assert "defect" not in outcome.err
    assert outcome.err.startswith("Error: ")
    assert outcome.err.count("Error: ") == 1
    assert len(outcome.err.strip().splitlines()) == 1
    assert outcome.err.rstrip().endswith(".")
    for word in words:
        assert word in outcome.err
    assert outcome.out == ""
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_raises_an_error_that_names_it(name, tmp_path, other):
    bad = BAD_FILES[name]
    with pytest.raises(bad.error) as caught:
        dia.subtract(*arrange(bad, tmp_path, other), kernel=KERNEL)
    for word in bad.words:
        assert word in str(caught.value)
    assert isinstance(caught.value, dia.PyTorchDIAError)


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_ends_the_command_with_code_3_and_no_output(name, tmp_path, other, out, run_cli):
    bad = BAD_FILES[name]
    outcome = run_cli(
        "subtract", *arrange(bad, tmp_path, other), "-o", out / "o.fits", "--plot", out / "o.png",
        "--kernel-size", "5x7",
    )  # fmt: skip
    assert_clean_failure(outcome, 3, bad.words, out)


BAD_OPTIONS = {
    "even-kernel": (("--kernel-size", "6"), 3, ("6", "7 x 7")),
    "kernel-of-no-size": (("--kernel-size", "big"), 3, ("big", "19x25")),
    "kernel-larger-than-the-image": (("--kernel-size", "65"), 3, ("65 x 65", "64 x 72")),
    "too-many-parameters": (("--kernel-size", "51"), 3, ("308", "2602", "smaller kernel")),
    "zero-gain": (("--gain", "0"), 3, ("gain", "0")),
    "nan-gain": (("--gain", "nan"), 3, ("gain", "nan")),
    "negative-read-noise": (("--read-noise", "-1"), 3, ("read noise", "-1")),
    "zero-exposure": (("--exposure", "0"), 3, ("exposure", "0")),
    "saturated-everywhere": (("--saturation", "1"), 3, (str(N_PIXELS),)),
    "unknown-device": (("--device", "abacus"), 3, ("abacus", "cpu")),
    "negative-laplacian": (("--laplacian", "-1"), 3, ("-1",)),
    "zero-huber-c": (("--likelihood", "huber", "--huber-c", "0"), 3, ("Huber", "0")),
    "negative-nu": (("--likelihood", "student-t", "--student-nu", "-2"), 3, ("-2",)),
    "negative-tol": (("--tol", "-1"), 3, ("tol > 0", "-1")),
    "zero-learning-rate": (
        ("--solver", "adam-lbfgs", "--lr-background", "0"), 3, ("lr_background > 0", "0")
    ),
    "negative-k-sigma": (
        ("--solver", "normal-equations", "--k-sigma", "-3"), 3, ("k_sigma", "-3")
    ),
    "zero-em-gain": (("--em-gain", "0"), 3, ("total_gain", "0")),
    "robust-least-squares": (
        ("--solver", "normal-equations", "--likelihood", "huber"), 3, ("Gaussian", "Huber")
    ),
    "missing-mask": (("--mask", "nowhere.fits"), 3, ("nowhere.fits",)),
    "unknown-option": (("--magic",), 2, ("--magic", "--help")),
    "unknown-solver": (("--solver", "simplex"), 2, ("simplex", "newton")),
    "gain-of-no-number": (("--gain", "two"), 2, ("--gain", "number")),
    "negative-degree": (("--background-degree", "-1"), 2, ("--background-degree",)),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_a_bad_option_ends_the_command_with_its_code_and_no_output(name, files, run_cli):
    options, code, words = BAD_OPTIONS[name]
    defaults = () if "--kernel-size" in options else ("--kernel-size", "5x7")
    outcome = run_cli(
        "subtract", files.target, files.reference, "-o", files.result, *defaults, *options
    )
    assert_clean_failure(outcome, code, words, files.out)


@pytest.mark.parametrize("option", ["--mask", "--reference-mask", "--variance", "--flat"])
def test_an_auxiliary_image_of_another_shape_is_refused_with_both_shapes(
    option, files, write_fits, run_cli
):
    wrong = write_fits("wrong.fits", np.ones((9, 9)))
    outcome = run_cli(
        "subtract", files.target, files.reference, "-o", files.result, option, wrong,
        "--kernel-size", "5x7",
    )  # fmt: skip
    assert_clean_failure(outcome, 3, ("(9, 9)", "(64, 72)"), files.out)


def test_a_flat_with_values_that_are_not_positive_is_refused(files, write_fits, run_cli):
    flat = np.ones(SHAPE)
    flat[3, 4] = 0.0
    outcome = run_cli(
        "subtract", files.target, files.reference, "-o", files.result, "--flat",
        write_fits("flat.fits", flat), "--kernel-size", "5x7",
    )  # fmt: skip
    assert_clean_failure(outcome, 3, ("flat", f"1 of {N_PIXELS}"), files.out)


@pytest.mark.parametrize(
    ("kwargs", "error", "words"),
    [
        ({"mask": np.ones(SHAPE, bool)}, TooFewPixelsError, str(N_PIXELS)),
        ({"mask": np.zeros((2, 2))}, ShapeError, r"\(2, 2\)"),
        ({"kernel": dia.DeltaKernel(65)}, ShapeError, "65 x 65"),
        ({"device": "abacus"}, InputError, "abacus"),
        ({"dtype": torch.float16}, InputError, "float16"),
        ({"noise": dia.FixedVariance(np.ones((3, 3)))}, InputError, r"\(3, 3\)"),
    ],
)
def test_bad_arguments_raise_an_error_with_their_values(kwargs, error, words):
    with pytest.raises(error, match=words):
        dia.subtract(PAIR.target, PAIR.reference, **{"kernel": KERNEL, **kwargs})


@pytest.mark.parametrize(
    "make",
    [
        lambda: dia.DeltaKernel(6), lambda: dia.DeltaKernel((5, 4)), lambda: dia.DeltaKernel(0),
        lambda: dia.CCDNoise(5.0, 0.0), lambda: dia.CCDNoise(-5.0, 1.0),
        lambda: dia.FixedVariance(np.full(SHAPE, -1.0)), lambda: dia.FixedVariance(0.0),
        lambda: dia.as_frame(PAIR.target.astype(complex)),
        lambda: dia.as_frame(PAIR.target.astype(object)),
    ],
)  # fmt: skip
def test_objects_that_make_no_sense_cannot_be_made(make):
    with pytest.raises(InputError, match=r"(odd|must|not positive)"):
        make()


BAD_OUTPUTS = {
    "missing-folder": ("missing/o.fits", "no folder"),
    "below-a-file": ("file/o.fits", "no folder"),
    "folder": ("out", "is a folder"),
    "device": ("/dev/full", "device"),
    "name-too-long": ("x" * 300, "name"),
}


@pytest.mark.parametrize("option", ["-o", "--plot"])
@pytest.mark.parametrize("name", BAD_OUTPUTS)
def test_a_bad_output_ends_the_command_with_code_4_before_the_fit(
    name, option, files, run_cli, tmp_path, monkeypatch
):
    def no_fit(*args, **kwargs):
        raise AssertionError("the fit was run")

    monkeypatch.setattr("pytorchdia.cli.main.subtract_frames", no_fit)
    (tmp_path / "file").write_text("x")
    place, word = BAD_OUTPUTS[name]
    rest = () if option == "-o" else ("-o", files.result)
    outcome = run_cli(
        "subtract", files.target, files.reference, option, tmp_path / place, *rest, "--overwrite"
    )
    assert_clean_failure(outcome, 4, (word,), files.out)
    assert Path("/dev/full").is_char_device()


def test_an_existing_output_is_kept_without_overwrite(files, run_cli):
    files.result.write_text("precious")
    outcome = run_cli("subtract", files.target, files.reference, "-o", files.result)
    assert (outcome.code, files.result.read_text()) == (4, "precious")
    assert "difference.fits exists already" in outcome.err
    assert "--overwrite" in outcome.err


@pytest.mark.parametrize("option", ["-o", "--plot"])
@pytest.mark.parametrize("which", ["target", "reference"])
def test_an_input_is_never_overwritten(files, run_cli, option, which):
    path = getattr(files, which)
    before = path.read_bytes()
    rest = () if option == "-o" else ("-o", files.result)
    outcome = run_cli(
        "subtract", f"{files.target}[0]", files.reference, option, path, *rest, "--overwrite"
    )
    assert_clean_failure(outcome, 4, (path.name, "input"), files.out)
    assert path.read_bytes() == before


def test_result_and_plot_cannot_be_one_file(files, run_cli):
    outcome = run_cli(
        "subtract", files.target, files.reference, "-o", files.result, "--plot", files.result
    )
    assert_clean_failure(outcome, 4, ("difference.fits", "two names"), files.out)


@pytest.mark.parametrize("old", [None, "precious"])
def test_a_full_disk_ends_the_command_with_code_4_and_leaves_the_older_file(
    files, run_cli, monkeypatch, old
):
    def fail(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if old:
        files.result.write_text(old)
    monkeypatch.setattr(os, "replace", fail)
    outcome = run_cli(
        "subtract", files.target, files.reference, "-o", files.result, "--kernel-size", "5",
        "--overwrite",
    )  # fmt: skip
    assert outcome.code == 4
    assert "No space left on device" in outcome.err
    assert files.left_behind() == (["difference.fits"] if old else [])
    if old:
        assert files.result.read_text() == old


def test_an_interrupt_ends_the_command_with_code_130_and_leaves_nothing(
    files, run_cli, monkeypatch
):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("pytorchdia.cli.main.subtract_frames", interrupt)
    outcome = run_cli("subtract", files.target, files.reference, "-o", files.result)
    assert outcome.code == 130
    assert "Interrupted" in outcome.err
    assert files.left_behind() == []


@pytest.mark.parametrize(
    ("error", "code", "word"),
    [(ZeroDivisionError("oops"), 1, "defect"), (MemoryError("9 GB"), 3, "memory")],
)
def test_an_unexpected_error_is_one_sentence_too(files, run_cli, monkeypatch, error, code, word):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.delenv("PYTORCHDIA_DEBUG", raising=False)
    monkeypatch.setattr("pytorchdia.cli.main.subtract_frames", fail)
    outcome = run_cli("subtract", files.target, files.reference, "-o", files.result)
    assert outcome.code == code
    assert word in outcome.err
    assert "Traceback" not in outcome.err


GOOD_FILES = {
    "some-nan": (lambda t: np.where(t > np.quantile(t, 0.995), np.nan, t).astype("f4"), None),
    "infinite": (lambda t: np.where(t == t.max(), np.inf, t), None),
    "big-endian": (lambda t: t.astype(">f4"), None),
    "uint16": (lambda t: np.clip(t, 0, 65535).round().astype(np.uint16), None),
    "int32": (lambda t: t.round().astype(np.int32), None),
    "negative-sky": (lambda t: t - 5000.0, None),
    "plane-of-a-cube": (lambda t: t[None], None),
}


@pytest.mark.parametrize("name", GOOD_FILES)
def test_odd_but_usable_files_work(name, tmp_path, other, out, run_cli):
    path = tmp_path / "t.fits"
    fits.PrimaryHDU(GOOD_FILES[name][0](PAIR.target), fits.Header({"GAIN": 1.0})).writeto(path)
    outcome = run_cli("subtract", path, other, "-o", out / "o.fits", "--kernel-size", "5x7", "-q")
    assert (outcome.code, outcome.err) == (0, "")
    header = fits.getheader(out / "o.fits")
    assert header["DIAP"] == pytest.approx(0.8, abs=6 * header["DIAPERR"])


def test_missing_keywords_work_with_a_warning():
    with pytest.warns(NoiseWarning, match="gives no gain"):
        result = dia.subtract(PAIR.target, PAIR.reference, kernel=KERNEL)
    assert result.status.ok
    assert "noise-estimated" in [f.code for f in result.findings]


def fit(target, reference=PAIR.reference, **kwargs):
    frame = dia.as_frame(target, gain=1.0, read_noise=5.0, saturation=np.inf, **kwargs)
    return dia.subtract(frame, reference, kernel=KERNEL, dtype=torch.float64)


@pytest.mark.parametrize("value", [1e30, -1e30, 0.0, np.inf])
def test_the_value_of_a_bad_target_pixel_has_no_influence_at_all(value):
    bad = np.random.default_rng(5).random(SHAPE) < 0.03
    unknown = fit(np.where(bad, np.nan, PAIR.target))
    masked = fit(np.where(bad, value, PAIR.target), mask=bad)
    np.testing.assert_allclose(masked.kernel, unknown.kernel, rtol=0, atol=1e-12)
    np.testing.assert_allclose(masked.difference[~bad], unknown.difference[~bad], atol=1e-8)
    np.testing.assert_array_equal(masked.mask, unknown.mask)


def test_a_bad_reference_pixel_takes_out_its_kernel_footprint_and_nothing_more():
    reference = PAIR.reference.copy()
    reference[30, 40] = np.nan
    flagged = (fit(PAIR.target, reference).flags & dia.Flag.REFERENCE) != 0
    assert flagged.sum() == 5 * 7
    assert flagged[28:33, 37:44].all()


def test_the_value_of_a_masked_reference_pixel_has_no_influence_at_all():
    results = []
    for value in (np.nan, 1e30, 0.0):
        reference = PAIR.reference.copy()
        reference[30, 40] = value
        mask = np.zeros(SHAPE, bool)
        mask[30, 40] = True
        results.append(fit(PAIR.target, dia.as_frame(reference, mask=mask, saturation=np.inf)))
    for other_result in results[1:]:
        np.testing.assert_allclose(other_result.kernel, results[0].kernel, rtol=0, atol=1e-12)


def test_the_border_of_half_a_kernel_is_flagged_and_nothing_else():
    border = (fit(PAIR.target).flags & dia.Flag.BORDER) != 0
    expected = np.ones(SHAPE, bool)
    expected[2:-2, 3:-3] = False
    np.testing.assert_array_equal(border, expected)


def test_no_data_is_difference_zero_and_variance_infinite_and_all_else_is_finite():
    target, reference = PAIR.target.copy(), PAIR.reference.copy()
    target[10, 11], reference[30, 40] = np.nan, np.inf
    mask = np.zeros(SHAPE, bool)
    mask[50, 50] = True  # masked, but there is data
    result = fit(target, reference, mask=mask)
    empty = np.ones(SHAPE, bool)
    empty[2:-2, 3:-3] = False
    empty[10, 11] = True
    empty[28:33, 37:44] = True
    np.testing.assert_array_equal(np.isinf(result.variance), empty)
    assert (result.difference[empty] == 0).all()
    assert (result.significance[empty] == 0).all()
    assert (result.variance[~empty] > 0).all()
    assert result.mask[50, 50]
    assert np.isfinite(result.difference).all()
    assert np.isfinite(result.model).all()
    assert np.isfinite(result.kernel).all()


def test_an_older_file_survives_a_failing_write_in_python(tmp_path, monkeypatch):
    path = fit(PAIR.target).write(tmp_path / "o.fits")
    before = path.read_bytes()

    def fail(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(WriteError, match="No space left"):
        fit(PAIR.target + 1.0).write(path, overwrite=True)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["o.fits"]
