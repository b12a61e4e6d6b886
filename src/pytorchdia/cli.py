"""The command line: ``pytorchdia subtract``, ``info`` and ``demo``."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .config import (
    DtypeName,
    LikelihoodName,
    SolverName,
    make_likelihood,
    make_solver,
    parse_kernel_size,
)
from .errors import InputError, PyTorchDIAError, PyTorchDIAWarning, WriteError

if TYPE_CHECKING:
    from .frame import Frame
    from .noise import NoiseModel
    from .subtract import Subtraction

__all__ = ["EXIT_CODES", "app", "main"]

EXIT_CODES = {
    0: "all went well",
    1: "a defect of this program",
    2: "the command line is wrong",
    3: "the input cannot be used (file, frame or option)",
    4: "the output cannot be written",
    5: "the output was written, but the fit did not converge",
    130: "interrupted",
}

app = typer.Typer(
    name="pytorchdia",
    help="Difference image analysis by maximum likelihood (PyTorchDIA, Hitchcock et al. 2021).",
    epilog="Exit codes: " + "; ".join(f"{code} {text}" for code, text in EXIT_CODES.items()) + ".",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_FRAMES, _NOISE, _MODEL, _FIT, _OUTPUT = "Frames", "Noise", "Model", "Fit", "Output"
_say = Console(stderr=True)


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        from . import __version__

        print(f"pytorchdia {__version__}")
        raise typer.Exit


@app.command()
def subtract(
    target: Annotated[
        str, typer.Argument(help="Target image, FITS; NAME.fits[SCI] or [2] picks an HDU.")
    ],
    reference: Annotated[
        str, typer.Argument(help="Reference image on the same pixel grid, the sharper of the two.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Result file; TARGET_diff.fits in this folder if absent.",
                     rich_help_panel=_OUTPUT),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace existing files.", rich_help_panel=_OUTPUT)
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(help="Also draw reference, target, difference, kernel and residuals (PNG).",
                     rich_help_panel=_OUTPUT),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the outcome as JSON on standard output.",
                           rich_help_panel=_OUTPUT)
    ] = False,
    quiet: Annotated[
        bool, typer.Option("-q", "--quiet", help="Print errors only.", rich_help_panel=_OUTPUT)
    ] = False,
    mask: Annotated[
        str | None,
        typer.Option(help="Mask of the target, FITS; not zero = ignore.", rich_help_panel=_FRAMES),
    ] = None,
    reference_mask: Annotated[
        str | None, typer.Option(help="Mask of the reference, FITS.", rich_help_panel=_FRAMES)
    ] = None,
    saturation: Annotated[
        float | None,
        typer.Option(help="Ignore target pixels from this value on [ADU]; from the header if absent, "
                     "else from a plateau in the image. 'inf' for none.", rich_help_panel=_FRAMES),
    ] = None,
    reference_saturation: Annotated[
        float | None, typer.Option(help="The same for the reference.", rich_help_panel=_FRAMES)
    ] = None,
    reference_background: Annotated[
        float | None,
        typer.Option(help="Level to take off the reference [ADU]; its median if absent.",
                     rich_help_panel=_FRAMES),
    ] = None,
    gain: Annotated[
        float | None,
        typer.Option(help="Gain of the target [e-/ADU]; from the header (EGAIN, GAIN, ...) if absent.",
                     rich_help_panel=_NOISE),
    ] = None,
    read_noise: Annotated[
        float | None,
        typer.Option(help="Read noise of the target [electrons]; from the header (RDNOISE, ...) if "
                     "absent.", rich_help_panel=_NOISE),
    ] = None,
    exposure: Annotated[
        float | None,
        typer.Option(help="Exposure time of the target [s]; needed for data in counts per second.",
                     rich_help_panel=_NOISE),
    ] = None,
    sky_offset: Annotated[
        float | None,
        typer.Option(help="Sky level that was subtracted from the target [ADU]; found from the "
                     "scatter of its sky if absent.", rich_help_panel=_NOISE),
    ] = None,
    flat: Annotated[
        str | None,
        typer.Option(help="Master flat-field for the noise model, FITS.", rich_help_panel=_NOISE),
    ] = None,
    variance: Annotated[
        str | None,
        typer.Option(help="Variance of the target [ADU^2], FITS; replaces gain and read noise.",
                     rich_help_panel=_NOISE),
    ] = None,
    em_gain: Annotated[
        float | None,
        typer.Option(help="Total gain of an EMCCD [photoelectrons/ADU]: use eq 7 instead of eq 6.",
                     rich_help_panel=_NOISE),
    ] = None,
    excess: Annotated[
        float, typer.Option(help="Excess noise factor of the EMCCD.", rich_help_panel=_NOISE)
    ] = 2.0,
    reference_gain: Annotated[
        float | None,
        typer.Option(help="Gain of the reference [e-/ADU].", rich_help_panel=_NOISE),
    ] = None,
    reference_read_noise: Annotated[
        float | None,
        typer.Option(help="Read noise of the reference [electrons].", rich_help_panel=_NOISE),
    ] = None,
    kernel_size: Annotated[
        str,
        typer.Option(help="Odd side of the kernel [pixels], HEIGHTxWIDTH, or auto: 9 Gaussian widths "
                     "of the target's stars.", rich_help_panel=_MODEL),
    ] = "auto",
    background_degree: Annotated[
        int, typer.Option(min=0, help="Degree of the background polynomial.", rich_help_panel=_MODEL)
    ] = 0,
    laplacian: Annotated[
        float | None,
        typer.Option(help="Strength lambda of the Laplacian penalty (eq 20); none if absent.",
                     rich_help_panel=_MODEL),
    ] = None,
    likelihood: Annotated[
        LikelihoodName,
        typer.Option(help="Distribution of the residuals; the last two resist outliers.",
                     rich_help_panel=_MODEL),
    ] = LikelihoodName.GAUSSIAN,
    huber_c: Annotated[
        float, typer.Option(help="Threshold c of the Huber loss [sigma].", rich_help_panel=_MODEL)
    ] = 1.345,
    student_nu: Annotated[
        float, typer.Option(help="Degrees of freedom of Student's t.", rich_help_panel=_MODEL)
    ] = 4.0,
    solver: Annotated[
        SolverName,
        typer.Option(help="newton is exact and fast; adam-lbfgs is the paper's; normal-equations is "
                     "iterated least squares (Bramich 2008).", rich_help_panel=_FIT),
    ] = SolverName.NEWTON,
    max_steps: Annotated[
        int | None, typer.Option(min=1, help="Upper limit of steps.", rich_help_panel=_FIT)
    ] = None,
    tol: Annotated[
        float | None,
        typer.Option(help="newton: goal for the decrement; adam-lbfgs: relative change at the switch.",
                     rich_help_panel=_FIT),
    ] = None,
    lr_background: Annotated[
        float, typer.Option(help="adam-lbfgs: learning rate of B_0.", rich_help_panel=_FIT)
    ] = 1.0,
    iterations: Annotated[
        int, typer.Option(min=1, help="normal-equations: rounds.", rich_help_panel=_FIT)
    ] = 3,
    k_sigma: Annotated[
        float | None,
        typer.Option(help="normal-equations: clip before the last round.", rich_help_panel=_FIT),
    ] = None,
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda, cuda:1, ...", rich_help_panel=_FIT)
    ] = "auto",
    dtype: Annotated[
        DtypeName, typer.Option(help="Precision of the heavy work.", rich_help_panel=_FIT)
    ] = DtypeName.FLOAT32,
) -> None:
    """Subtract the matched REFERENCE from TARGET and write the difference with its error map.

    The difference is the primary HDU of the result, with the target's header and WCS; VARIANCE,
    MASK, MODEL, KERNEL, KERNEL_COV, PARAMETERS, DIAGNOSTICS and FINDINGS follow.
    """
    from . import plot as plotting
    from .io import as_frame
    from .measure import choose_kernel
    from .penalty import LaplacianPenalty
    from .product import check_writable
    from .subtract import subtract as run

    output = Path(f"{_stem(target)}_diff.fits") if output is None else output
    for path in (output, plot):
        if path is not None:
            check_writable(path, overwrite)
    kernel = parse_kernel_size(kernel_size)
    loss = make_likelihood(likelihood, huber_c, student_nu)
    penalty = None if laplacian is None else LaplacianPenalty(laplacian)
    chosen_solver = make_solver(
        solver, max_steps=max_steps, tol=tol, lr_background=lr_background,
        iterations=iterations, k_sigma=k_sigma,
    )  # fmt: skip
    target_frame = as_frame(
        target, mask=_plane(mask), gain=gain, read_noise=read_noise, saturation=saturation,
        exposure=exposure,
    )  # fmt: skip
    reference_frame = as_frame(
        reference, mask=_plane(reference_mask), gain=reference_gain,
        read_noise=reference_read_noise, saturation=reference_saturation,
    )  # fmt: skip
    _same_grid(target_frame, reference_frame)
    noise, findings = _noise(target_frame, _plane(variance), _plane(flat), em_gain, excess, sky_offset)
    if kernel is None:
        kernel, more = choose_kernel(target_frame, reference_frame)
        findings += more
    from dataclasses import replace

    target_frame = replace(target_frame, findings=target_frame.findings + tuple(findings))
    show = not (quiet or as_json)
    with _say.status("Fitting ...", spinner="dots") as status, warnings.catch_warnings():
        warnings.simplefilter("ignore", PyTorchDIAWarning)  # they are findings, shown below
        result = run(
            target_frame, reference_frame, kernel=kernel,
            background=_background(background_degree), noise=noise, likelihood=loss,
            penalty=penalty, solver=chosen_solver, reference_background=reference_background,
            device=device, dtype=dtype.dtype,
            on_step=lambda s: status.update(f"Fitting: step {s.number}, loss {s.loss:.8g}, {s.goal}"),
        )  # fmt: skip
    written = [result.write(output, overwrite=overwrite)]
    if plot is not None:
        written.append(plotting.save(result, target_frame, reference_frame, plot, overwrite))
    if as_json:
        print(json.dumps(_as_json(result, written), indent=2))
    if show:
        _show(result, target_frame, reference_frame, written)
    if not result.status.ok:
        raise typer.Exit(5)


@app.command()
def info(
    file: Annotated[Path, typer.Argument(help="A result of 'pytorchdia subtract'.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print what a result file holds: HDUs, parameters, settings, mask and findings."""
    from dataclasses import asdict

    from .product import summarise

    summary = summarise(file)
    if as_json:
        print(json.dumps(asdict(summary), indent=2))
        return
    out = Console()
    out.print(_table("HDUs", ("name", "size", "type"), summary.hdus))
    rows = [(n, f"{v:.8g}", f"{e:.2g}", u) for n, v, e, u in summary.parameters]
    out.print(_table("Parameters", ("name", "value", "error", "unit"), rows))
    out.print(_table("How it was made", ("name", "value"), list(summary.diagnostics.items())))
    rows_flags = [(meaning, str(n)) for meaning, n in summary.flagged.items() if n]
    out.print(_table("Pixels not used", ("why", "pixels"), rows_flags))
    out.print(_table("Findings", ("level", "code", "message"), summary.findings))


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Where to put the frames and the result.")] = Path(
        "pytorchdia-demo"
    ),
    seed: Annotated[int, typer.Option(help="Seed of the simulated field.")] = 1,
) -> None:
    """Make two sample frames of a crowded field, subtract them, and say where to look."""
    from .demo import run_demo

    run_demo(folder, seed, lambda arguments: app(arguments, standalone_mode=False))


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
        code = _fail(130, "Interrupted; nothing was left half written.")
    except Exception as error:  # the last resort: one sentence, not a traceback
        code = _last_resort(error)
    sys.exit(code if isinstance(code, int) else 0)


def _last_resort(error: Exception) -> int:
    import click

    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    if isinstance(error, MemoryError) or "memory" in str(error).lower():
        return _fail(3, f"There is not enough memory for this fit ({error}); use a smaller kernel.")
    if os.environ.get("PYTORCHDIA_DEBUG"):
        raise error
    return _fail(
        1,
        f"This is a defect of pytorchdia ({type(error).__name__}: {error}); please report it. Set "
        "PYTORCHDIA_DEBUG=1 to see where it happened.",
    )


def _fail(code: int, message: str) -> int:
    _say.print(f"[bold red]Error:[/] {escape(message)}", soft_wrap=True, highlight=False)
    return code


def _stem(target: str) -> str:
    name = Path(target.split("[")[0]).name
    for suffix in (".fz", ".gz", ".fits", ".fit", ".fts"):
        name = name.removesuffix(suffix)
    return name


def _plane(path: str | None) -> Any:
    """An auxiliary image (mask, variance, flat) as an array, or None."""
    if path is None:
        return None
    from .io import as_frame

    frame = as_frame(path, saturation=float("inf"))
    data = frame.data.numpy().copy()
    data[frame.mask.numpy()] = float("nan")
    return data


def _background(degree: int) -> Any:
    from .background import PolynomialBackground

    return PolynomialBackground(degree)


def _same_grid(target: Frame, reference: Frame) -> None:
    from .errors import ShapeError

    if target.shape != reference.shape:
        raise ShapeError(
            f"The target is {target.shape[0]} x {target.shape[1]} pixels but the reference is "
            f"{reference.shape[0]} x {reference.shape[1]}; register and trim them to one grid first."
        )


def _noise(
    frame: Frame, variance: Any, flat: Any, em_gain: float | None, excess: float,
    offset: float | None,
) -> tuple[NoiseModel, tuple[Any, ...]]:  # fmt: skip
    from .measure import default_noise
    from .noise import EMCCDNoise, FixedVariance

    if variance is not None and em_gain is not None:
        raise InputError("Give either a variance image or an EMCCD gain, not both.")
    if variance is not None:
        return FixedVariance(variance), ()
    if em_gain is not None:
        return EMCCDNoise(em_gain, excess, flat), ()
    return default_noise(frame, flat=flat, offset=offset)


def _as_json(result: Subtraction, written: list[Path]) -> dict[str, Any]:
    from dataclasses import asdict

    b = result.background
    return {
        "status": result.status.name,
        "message": result.status.value,
        "scale": result.scale,
        "scale_error": result.scale_error,
        "background": {
            "exponents": b.exponents,
            "coefficients": b.coefficients.tolist(),
            "errors": b.errors.tolist(),
        },
        "diagnostics": result.diagnostics.as_dict(),
        "settings": dict(result.settings),
        "findings": [asdict(f) for f in result.findings],
        "files": [str(path) for path in written],
    }


def _show(result: Subtraction, target: Frame, reference: Frame, written: list[Path]) -> None:
    _say.print(_table("Used", ("what", "target", "reference"), _camera_rows(target, reference)))
    skip = ("target", "reference")
    rows = [(name, value) for name, value in result.settings.items() if name not in skip]
    d = result.diagnostics
    rows += [("device, dtype", f"{d.device}, {d.dtype}")]
    rows += [("reference background", f"{d.reference_background:.6g} ADU taken off")]
    _say.print(_table("Settings", ("what", "value"), rows))
    b = result.background
    outcome = [
        ("status", result.status.value),
        ("P", f"{result.scale:.7g} ± {result.scale_error:.2g}"),
        *(
            (f"background x^{m} y^{n}", f"{value:.6g} ± {error:.2g} ADU")
            for (m, n), value, error in zip(b.exponents, b.coefficients, b.errors, strict=True)
        ),
        ("pixels used", f"{d.n_pixels} of {result.mask.size}"),
        ("loss, steps", f"{d.loss:.4f}, {d.steps}"),
        ("reduced chi-square", f"{d.reduced_chi_square:.4f}"),
        ("residual scale on the sky", f"{d.residual_scale:.3f}"),
        ("time", f"{d.seconds:.2f} s"),
    ]
    _say.print(_table("Result", ("what", "value"), outcome))
    for finding in result.findings:
        colour = "yellow" if finding.level == "warning" else "cyan"
        _say.print(f"[{colour}]{finding.level}[/] {escape(finding.message)}", highlight=False)
    for path in written:
        _say.print(f"[green]wrote[/] {escape(str(path))}", soft_wrap=True, highlight=False)


def _camera_rows(target: Frame, reference: Frame) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("frame", target.name, reference.name)]
    rows.append(("size", *(f"{f.shape[0]} x {f.shape[1]}" for f in (target, reference))))
    rows.append(("bad pixels", *(str(int(f.mask.sum())) for f in (target, reference))))
    for name, unit in (
        ("gain", "e-/ADU"), ("read_noise", "e-"), ("saturation", "ADU"), ("exposure", "s")
    ):  # fmt: skip
        cells = []
        for frame in (target, reference):
            value = getattr(frame.detector, name)
            source = frame.detector.sources.get(name, "")
            cells.append("unknown" if value is None else f"{value:.6g} {unit} ({source})")
        rows.append((name.replace("_", " "), *cells))
    return rows


def _table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    return table


if __name__ == "__main__":
    main()
