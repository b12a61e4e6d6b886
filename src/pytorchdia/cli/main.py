"""The command line ``pytorchdia``: its commands ``subtract``, ``info`` and ``demo``, and all others
from the modules beside this one.
"""

from __future__ import annotations

import gc
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import __version__, plot
from ..background import PolynomialBackground
from ..checks import require_same_shape
from ..config import (
    DtypeName,
    LikelihoodName,
    SolverName,
    make_likelihood,
    make_penalty,
    make_solver,
    parse_kernel_size,
)
from ..errors import Finding, InputError, PyTorchDIAError, PyTorchDIAWarning, WriteError
from ..frame import Frame
from ..headers import Keywords
from ..io import as_frame, read_mask, read_plane, stem
from ..measure import choose_kernel, default_noise
from ..noise import EMCCDNoise, NoiseModel
from ..product import check_writable, summarise
from ..solvers import Step
from ..subtract import subtract as subtract_frames
from ..subtraction import Subtraction
from . import display, season
from . import options as o
from .demo import run_demo
from .experiment import app as experiments
from .simulate import simulate

__all__ = ["EXIT_CODES", "app", "main", "script"]

EXIT_CODES = {
    0: "all went well",
    1: "a defect of this program",
    2: "the command line is wrong",
    3: "the input cannot be used (file, frame or option)",
    4: "the output cannot be written",
    5: "the output was written, but the fit did not converge",
    season.SOME_FAILED: "the season was reduced, but a frame, the candidates or the report failed",
    130: "interrupted",
}

app = typer.Typer(
    name="pytorchdia",
    help="Difference image analysis by maximum likelihood (PyTorchDIA, Hitchcock et al. 2021).",
    epilog="Exit codes: " + "; ".join(f"{code} {text}" for code, text in EXIT_CODES.items()) + ".",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # "rich" takes a unit in brackets for markup
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(experiments, name="experiment")


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        print(f"pytorchdia {__version__}")
        raise typer.Exit


@app.command()
def subtract(
    target: o.Target,
    reference: o.Reference,
    output: o.Output = None,
    overwrite: o.Overwrite = False,
    plot_file: o.PlotFile = None,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
    mask: o.Mask = None,
    reference_mask: o.ReferenceMask = None,
    mask_bit: o.MaskBit = None,
    saturation: o.Saturation = None,
    reference_saturation: o.ReferenceSaturation = None,
    reference_background: o.ReferenceBackground = None,
    gain: o.Gain = None,
    read_noise: o.ReadNoise = None,
    exposure: o.Exposure = None,
    sky_offset: o.SkyOffset = None,
    flat: o.Flat = None,
    variance: o.Variance = None,
    em_gain: o.EmGain = None,
    excess: o.Excess = None,
    reference_gain: o.ReferenceGain = None,
    reference_read_noise: o.ReferenceReadNoise = None,
    reference_exposure: o.ReferenceExposure = None,
    kernel_size: o.KernelSize = "auto",
    background_degree: o.BackgroundDegree = 0,
    prior: o.Prior = None,
    laplacian: o.Laplacian = None,
    likelihood: o.Likelihood = LikelihoodName.GAUSSIAN,
    huber_c: o.HuberC = None,
    student_nu: o.StudentNu = None,
    tolerance: o.Tolerance = None,
    solver: o.Solver = SolverName.NEWTON,
    max_steps: o.MaxSteps = None,
    tol: o.Tol = None,
    lr_background: o.LrBackground = None,
    iterations: o.Iterations = None,
    k_sigma: o.KSigma = None,
    covariance: o.Covariance = True,
    device: o.Device = "auto",
    dtype: o.Dtype = DtypeName.FLOAT32,
    max_memory: o.MaxMemory = None,
) -> None:
    """Subtract the matched REFERENCE from TARGET and write the difference with its error map.

    The difference is the primary HDU of the result, with the target's header and WCS; VARIANCE,
    MASK, MODEL, KERNEL, KERNEL_COV, PARAMETERS, DIAGNOSTICS and FINDINGS follow.
    """
    output = Path(f"{stem(target.split('[')[0])}_diff.fits") if output is None else output
    _check_outputs(output, plot_file, (target, reference), overwrite)
    camera = {"--gain": gain, "--read-noise": read_noise, "--sky-offset": sky_offset}
    _require_one_noise_model(camera, variance, flat, em_gain, excess)
    bits = tuple(mask_bit or ())
    keywords = Keywords(mask_bits=bits)
    kernel = parse_kernel_size(kernel_size)
    loss = make_likelihood(likelihood, huber_c, student_nu, tolerance)
    penalty = make_penalty(prior, laplacian)
    chosen_solver = make_solver(
        solver, max_steps=max_steps, tol=tol, lr_background=lr_background,
        iterations=iterations, k_sigma=k_sigma,
    )  # fmt: skip
    with _progress(quiet or as_json) as on_step, warnings.catch_warnings():
        warnings.simplefilter("ignore", PyTorchDIAWarning)  # they are findings, shown at the end
        target_frame = as_frame(
            target, mask=_mask(mask, bits), gain=gain, read_noise=read_noise,
            saturation=saturation, exposure=exposure, variance=_plane(variance), keywords=keywords,
        )  # fmt: skip
        reference_frame = as_frame(
            reference, mask=_mask(reference_mask, bits), gain=reference_gain,
            read_noise=reference_read_noise, saturation=reference_saturation,
            exposure=reference_exposure, keywords=keywords,
        )  # fmt: skip
        require_same_shape(target_frame, reference_frame)
        if variance is None and any(value is not None for value in (*camera.values(), flat)):
            target_frame = replace(target_frame, variance=None)  # what is given by hand wins
        noise, findings = _noise(target_frame, flat, em_gain, excess, sky_offset)
        if kernel is None:
            kernel, more = choose_kernel(target_frame, reference_frame)
            findings += more
        target_frame = replace(target_frame, findings=target_frame.findings + findings)
        result = subtract_frames(
            target_frame, reference_frame, kernel=kernel,
            background=PolynomialBackground(background_degree), noise=noise, likelihood=loss,
            penalty=penalty, solver=chosen_solver, reference_background=reference_background,
            covariance=covariance, device=device, dtype=dtype.dtype, max_memory=max_memory,
            on_step=on_step,
        )  # fmt: skip
    assert isinstance(result, Subtraction)  # two paths make one pair
    written = [result.write(output, overwrite=overwrite)]
    if plot_file is not None:
        written.append(plot.save(result, target_frame, reference_frame, plot_file, overwrite))
    if as_json:
        print(display.result_as_json(result, written))
    elif not quiet:
        display.show_result(result, target_frame, reference_frame, written)
    if not result.status.ok:
        raise typer.Exit(5)


@app.command()
def info(
    file: Annotated[Path, typer.Argument(help="A result of 'pytorchdia subtract'.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print what a result file holds: HDUs, parameters, settings, mask and findings."""
    summary = summarise(file)
    if as_json:
        print(display.summary_as_json(summary))
    else:
        display.show_summary(summary)


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Where to put the frames and the result.")] = Path(
        "pytorchdia-demo"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the simulated field.")] = 1,
) -> None:
    """Make two sample frames of a crowded field, subtract them, and say where to look."""
    code = run_demo(folder, seed, lambda arguments: app(arguments, standalone_mode=False))
    raise typer.Exit(code)


season.add_commands(app)
app.command()(simulate)


def script() -> None:
    """What the installed command calls: :func:`main`, in a process of its own."""
    gc.freeze()  # modules live until its end; to go through them all once more took 1.5 s
    main()


def main() -> None:
    """Run the command line; every error becomes one sentence and an exit code."""
    try:
        code = app(standalone_mode=False)
    except typer.Exit as stop:
        code = stop.exit_code
    except WriteError as error:
        code = _fail(4, str(error))
    except PyTorchDIAError as error:
        code = _fail(3, str(error))
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        # Typer brings its own copy of click from some version on, so the class has no fixed home.
        if hasattr(error, "format_message"):
            sys.exit(_wrong_usage(error))
        if os.environ.get("PYTORCHDIA_DEBUG"):
            raise
        code = _last_resort(error)  # one sentence, not a traceback
    if code == 130:
        _fail(
            code,
            "Interrupted; nothing was left half written, and a season goes on where it stopped.",
        )
    sys.exit(code if isinstance(code, int) else 0)


def _wrong_usage(error: Any) -> int:
    message = " ".join(str(error.format_message()).split()).rstrip(".")
    if message and "Usage:" not in message:  # without arguments the help was asked for
        path = error.ctx.command_path if getattr(error, "ctx", None) else "pytorchdia"
        display.show_error(f"{message}; see '{path} --help'.")
    return int(error.exit_code)


def _last_resort(error: Exception) -> int:
    text = str(error).split("\n")[0]
    if isinstance(error, MemoryError) or "memory" in text.lower():
        hint = "use --max-memory, a smaller kernel, --no-covariance or --device cpu"
        return _fail(3, f"There is not enough memory for this fit ({text}); {hint}.")
    return _fail(
        1,
        f"This is a defect of pytorchdia ({type(error).__name__}: {error}); please report it. Set "
        "PYTORCHDIA_DEBUG=1 to see where it happened.",
    )


@contextmanager
def _progress(silent: bool) -> Iterator[Callable[[Step], None]]:
    """A line on standard error that follows the solver; nothing where there is no terminal."""
    if silent:
        yield lambda step: None
        return
    with display.stderr.status("Reading frames ...", spinner="dots") as status:
        yield lambda step: status.update(
            f"Fitting: step {step.number}, loss {step.loss:.8g}, {step.goal}"
        )


def _fail(code: int, message: str) -> int:
    display.show_error(message)
    return code


def _check_outputs(
    output: Path, plot_file: Path | None, inputs: tuple[str, ...], overwrite: bool
) -> None:
    """Refuse what cannot be written, and what would replace an input or the other output."""
    for path in (output, plot_file):
        if path is None:
            continue
        check_writable(path, overwrite)
        for name in inputs:
            source = _file_of(name)
            if source is not None and path.exists() and path.samefile(source):
                raise WriteError(f"{path} is an input of this command; choose another name.")
    if plot_file is not None and plot_file.resolve() == output.resolve():
        raise WriteError(f"The result and the plot are both to be {output}; choose two names.")


def _file_of(name: str) -> Path | None:
    """The file that a target or reference names, with or without an HDU in brackets."""
    for path in (Path(name), Path(name.rpartition("[")[0])):
        try:
            if path.is_file():
                return path
        except (OSError, ValueError):
            continue  # a name that no file can have; reading it says so
    return None


def _plane(path: str | None) -> Any:
    """An auxiliary image (variance, flat) as an array with NaN at its bad pixels, or None."""
    return None if path is None else read_plane(path)


def _mask(path: str | None, bits: tuple[int, ...]) -> Any:
    return None if path is None else read_mask(path, bits)


def _require_one_noise_model(
    camera: dict[str, float | None],
    variance: str | None,
    flat: str | None,
    em_gain: float | None,
    excess: float | None,
) -> None:
    """Refuse options of two noise models at once: one of them would be ignored."""
    given = [name for name, value in camera.items() if value is not None]
    if variance is not None and (given or flat is not None or em_gain is not None):
        others = [*given, *(["--flat"] if flat else []), *(["--em-gain"] if em_gain else [])]
        raise InputError(f"--variance replaces {', '.join(others)}; leave one of them out.")
    if em_gain is not None and given:
        raise InputError(f"--em-gain (eq 7) does not use {', '.join(given)}; leave them out.")
    if excess is not None and em_gain is None:
        raise InputError("--excess belongs to an EMCCD; give --em-gain as well.")


def _noise(
    frame: Frame,
    flat: str | None,
    em_gain: float | None,
    excess: float | None,
    offset: float | None,
) -> tuple[NoiseModel, tuple[Finding, ...]]:
    if em_gain is not None:
        factor = EMCCDNoise.excess if excess is None else excess
        return EMCCDNoise(em_gain, factor, _plane(flat)), ()
    return default_noise(frame, flat=_plane(flat), offset=offset)


if __name__ == "__main__":
    script()
