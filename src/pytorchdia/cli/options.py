"""The options of ``pytorchdia subtract``, one type each: where its help text lives."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import config

_FRAMES, _NOISE, _MODEL, _FIT, _OUTPUT = "Frames", "Noise", "Model", "Fit", "Output"

Target = Annotated[
    str, typer.Argument(help="Target image, FITS; NAME.fits[SCI] or [2] picks an HDU.")
]
Reference = Annotated[
    str, typer.Argument(help="Reference image on the same pixel grid, the sharper of the two.")
]
Output = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        help="Result file; TARGET_diff.fits in this folder if absent.",
        rich_help_panel=_OUTPUT,
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace existing files.", rich_help_panel=_OUTPUT)
]
PlotFile = Annotated[
    Path | None,
    typer.Option(
        "--plot",
        help="Also draw reference, target, difference, kernel and residuals (PNG).",
        rich_help_panel=_OUTPUT,
    ),
]
AsJson = Annotated[
    bool,
    typer.Option(
        "--json", help="Print the outcome as JSON on standard output.", rich_help_panel=_OUTPUT
    ),
]
Quiet = Annotated[
    bool, typer.Option("-q", "--quiet", help="Print errors only.", rich_help_panel=_OUTPUT)
]
Mask = Annotated[
    str | None,
    typer.Option(help="Mask of the target, FITS; not zero = ignore.", rich_help_panel=_FRAMES),
]
MaskBit = Annotated[
    list[int] | None,
    typer.Option(
        min=0,
        max=52,
        help="Bit, from 0 on, that makes a pixel bad in the masks, those within the files "
        "included; repeat it for more. Any bit if absent.",
        rich_help_panel=_FRAMES,
    ),
]
ReferenceMask = Annotated[
    str | None, typer.Option(help="Mask of the reference, FITS.", rich_help_panel=_FRAMES)
]
Saturation = Annotated[
    float | None,
    typer.Option(
        help="Ignore target pixels from this value on [ADU]; from the header if absent, else from "
        "a plateau in the image. 'inf' for none.",
        rich_help_panel=_FRAMES,
    ),
]
ReferenceSaturation = Annotated[
    float | None, typer.Option(help="The same for the reference.", rich_help_panel=_FRAMES)
]
ReferenceBackground = Annotated[
    float | None,
    typer.Option(
        help="Level to take off the reference [ADU]; its median if absent.", rich_help_panel=_FRAMES
    ),
]
Gain = Annotated[
    float | None,
    typer.Option(
        help="Gain of the target [e-/ADU]; from the header (EGAIN, GAIN, ...) if absent.",
        rich_help_panel=_NOISE,
    ),
]
ReadNoise = Annotated[
    float | None,
    typer.Option(
        help="Read noise of the target [electrons]; from the header (RDNOISE, ...) if absent.",
        rich_help_panel=_NOISE,
    ),
]
Exposure = Annotated[
    float | None,
    typer.Option(
        help="Exposure time of the target [s]; needed for data in counts per second.",
        rich_help_panel=_NOISE,
    ),
]
SkyOffset = Annotated[
    float | None,
    typer.Option(
        help="Sky level that was subtracted from the target [ADU]; found from the scatter of its "
        "sky if absent.",
        rich_help_panel=_NOISE,
    ),
]
Flat = Annotated[
    str | None,
    typer.Option(help="Master flat-field for the noise model, FITS.", rich_help_panel=_NOISE),
]
Variance = Annotated[
    str | None,
    typer.Option(
        help="Variance of the target [ADU^2], FITS; replaces gain and read noise.",
        rich_help_panel=_NOISE,
    ),
]
EmGain = Annotated[
    float | None,
    typer.Option(
        help="Total gain of an EMCCD [photoelectrons/ADU]: use eq 7 instead of eq 6.",
        rich_help_panel=_NOISE,
    ),
]
Excess = Annotated[
    float | None,
    typer.Option(help="Excess noise factor of the EMCCD; 2 if absent.", rich_help_panel=_NOISE),
]
ReferenceGain = Annotated[
    float | None, typer.Option(help="Gain of the reference [e-/ADU].", rich_help_panel=_NOISE)
]
ReferenceReadNoise = Annotated[
    float | None,
    typer.Option(help="Read noise of the reference [electrons].", rich_help_panel=_NOISE),
]
ReferenceExposure = Annotated[
    float | None, typer.Option(help="Exposure time of the reference [s].", rich_help_panel=_NOISE)
]
KernelSize = Annotated[
    str,
    typer.Option(
        help="Odd side of the kernel [pixels], HEIGHTxWIDTH, or auto: 9 Gaussian widths of the "
        "target's stars.",
        rich_help_panel=_MODEL,
    ),
]
BackgroundDegree = Annotated[
    int, typer.Option(min=0, help="Degree of the background polynomial.", rich_help_panel=_MODEL)
]
Prior = Annotated[
    config.PriorName | None,
    typer.Option(
        help="evidence, the default: a kernel as smooth as the data say, for a smaller error of "
        "the model; none: the paper's plain fit, every kernel pixel free.",
        rich_help_panel=_MODEL,
    ),
]
Laplacian = Annotated[
    float | None,
    typer.Option(
        help="Strength lambda of the Laplacian penalty (eq 20) in place of --prior.",
        rich_help_panel=_MODEL,
    ),
]
Likelihood = Annotated[
    config.LikelihoodName,
    typer.Option(
        help="Distribution of the residuals; the last two resist outliers.", rich_help_panel=_MODEL
    ),
]
HuberC = Annotated[
    float | None,
    typer.Option(
        help="Threshold c of the Huber loss [sigma]; 1.345 if absent.", rich_help_panel=_MODEL
    ),
]
StudentNu = Annotated[
    float | None,
    typer.Option(help="Degrees of freedom of Student's t; 4 if absent.", rich_help_panel=_MODEL),
]
Tolerance = Annotated[
    float | None,
    typer.Option(
        help="Share of a star's light by which the model may be off without its pixels being "
        "outliers, for huber and student-t; 0.1 if absent, 0 is the paper's loss.",
        rich_help_panel=_MODEL,
    ),
]
Solver = Annotated[
    config.SolverName,
    typer.Option(
        help="newton is exact and fast; adam-lbfgs is the paper's; normal-equations is iterated "
        "least squares (Bramich 2008).",
        rich_help_panel=_FIT,
    ),
]
MaxSteps = Annotated[
    int | None, typer.Option(min=1, help="Upper limit of steps.", rich_help_panel=_FIT)
]
Tol = Annotated[
    float | None,
    typer.Option(
        help="newton: goal for the decrement; adam-lbfgs: relative change at the switch.",
        rich_help_panel=_FIT,
    ),
]
LrBackground = Annotated[
    float | None,
    typer.Option(help="adam-lbfgs: learning rate of B_0; 1 if absent.", rich_help_panel=_FIT),
]
Iterations = Annotated[
    int | None,
    typer.Option(min=1, help="normal-equations: rounds; 3 if absent.", rich_help_panel=_FIT),
]
KSigma = Annotated[
    float | None,
    typer.Option(help="normal-equations: clip at this many sigma.", rich_help_panel=_FIT),
]
Covariance = Annotated[
    bool,
    typer.Option(
        "--covariance/--no-covariance",
        help="Write KERNEL_COV and the errors of single kernel pixels; without, large frames take "
        "a fraction of the time.",
        rich_help_panel=_FIT,
    ),
]
MaxMemory = Annotated[
    str | None,
    typer.Option(
        help="Working memory that the fit may take, such as 4GB; with less it computes more anew. "
        "All that is free on a GPU, no limit on a CPU, if absent.",
        rich_help_panel=_FIT,
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...", rich_help_panel=_FIT)]
Dtype = Annotated[
    config.DtypeName, typer.Option(help="Precision of the heavy work.", rich_help_panel=_FIT)
]
