"""The one call: :func:`subtract`, target minus matched reference."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from .arrays import Flags
from .assemble import Pair, assemble
from .background import PolynomialBackground
from .checks import (
    require_enough_pixels,
    require_kinds,
    require_noise_shape,
    require_same_shape,
    require_structure,
    usable_device,
    usable_dtype,
    usable_start,
)
from .errors import Finding, InputError, ShapeError
from .fisher import Uncertainty
from .fit import Fits
from .frame import Flag, Frame, grow, outside, strips, with_flag
from .image_model import ImageModel
from .io import as_frames
from .kernel import DeltaKernel, KernelModel
from .likelihood import Gaussian, Likelihood
from .measure import default_noise, reference_level
from .memory import MemoryPlan, parse_memory, plan_memory
from .noise import NoiseModel, stack_noise
from .objective import Objective
from .penalty import Penalty
from .prior import GaussianProcessPrior, KernelPrior
from .solvers import Newton, Solver
from .solvers.base import OnStep
from .subtraction import Subtraction, SubtractionStack
from .verdict import warn_of

__all__ = ["subtract"]


def subtract(
    target: Any,
    reference: Any,
    *,
    kernel: KernelModel = DeltaKernel(19),
    background: PolynomialBackground = PolynomialBackground(0),
    noise: NoiseModel | None = None,
    likelihood: Likelihood = Gaussian(),
    penalty: Penalty | KernelPrior | None = GaussianProcessPrior(),
    solver: Solver = Newton(),
    mask: Any = None,
    reference_noise: NoiseModel | None = None,
    reference_background: float | None = None,
    start: Any = None,
    covariance: bool | None = True,
    device: str | torch.device = "auto",
    dtype: torch.dtype = torch.float32,
    max_memory: str | float | None = None,
    on_step: OnStep | None = None,
) -> Subtraction | SubtractionStack:
    """Subtract the matched reference from the target: D = I - (R (x) K + B).

    Parameters
    ----------
    target, reference : array_like, Tensor, NDData, HDU, HDUList, str, Path or Frame
        I and R: two images of one shape, (h, w), on one pixel grid. See
        :func:`~pytorchdia.io.as_frame` for what each may be. The reference should be the sharper.
        Either may be a stack, (..., h, w), or a list: the leading axes are broadcast against each
        other, so that one reference serves many targets. Small pairs are then fitted side by side,
        and each result is that of a call for its pair alone, to rounding.
    kernel : KernelModel
        K (eq 2).
    background : PolynomialBackground
        B (eq 18).
    noise : NoiseModel, optional
        sigma^2(M) of the target (eq 6, 7), one for all targets; an image in it may be (h, w) or
        have the shape of the stack. None takes the target's own uncertainty, or eq 6 with
        the gain and read noise of its header, or a guess from its sky, which is reported with a
        NoiseWarning.
    likelihood : Likelihood
        Gaussian (eq 8), or a robust one (section 2.4).
    penalty : KernelPrior or Penalty, optional
        Regularises the kernel. The default makes it as smooth as the data say, by the evidence;
        LaplacianPenalty is that of section 2.7; None is the paper's plain fit with every kernel
        pixel free.
    solver : Solver
        Newton, AdamLBFGS or NormalEquations.
    mask : array_like, optional
        (h, w), True = ignore this pixel of the target; for a stack also one for each target.
    reference_noise : NoiseModel, optional
        Noise of the reference, for the variance of the difference, for what it adds to the errors
        of kernel, P and background, and for a KernelPrior that allows for it. None takes the
        reference's own uncertainty or its header's gain and read noise; if it has neither, the
        reference counts as free of noise.
    reference_background : float, optional
        Level [ADU] to take off the reference before the fit. None takes the median of its good
        pixels, as the paper does.
    start : array_like, optional
        Kernel from which the fit starts, (ky, kx), one for all pairs: that of an earlier fit of a
        similar pair saves steps. A fit without a prior ends in the same place to within the
        solver's goal; the hyperparameters of a prior come from a matrix made on the way there, and
        P may move by a part of its error. None leaves the start to the solver.
    covariance : bool or None
        False leaves out ``kernel_covariance``, ``covariance`` and their validity tests, which cost
        more than the fit of a large frame, above all if the noise of the reference is known. P and
        the background keep their errors. None, for a quick look, leaves out these as well: they
        are infinite.
    device : str or torch.device
        "auto" takes a CUDA device if there is one.
    dtype : torch.dtype
        float32 or float64: precision of the heavy work and of the images returned. Parameters,
        sums and linear algebra are float64 in either case.
    max_memory : str or float, optional
        Bytes ("4GB", 500e6) of working memory that the fit may take on the device beside the
        images handed in and the result. With less, transforms are computed anew instead of kept,
        and then images stay in main memory and are sent to the device tile by tile. None means all
        that is free on a CUDA device, and no limit on a CPU.
    on_step : callable, optional
        Called with a :class:`~pytorchdia.solvers.Step` after every step of the solver.

    Returns
    -------
    Subtraction or SubtractionStack
        A stack if the target or the reference is one, of the shape of their leading axes.

    Raises
    ------
    InputError
        The input cannot be used; the message says why and what to try. Its subclasses are drawn in
        :mod:`pytorchdia.errors`. A fit that does not converge does not raise: see ``status``.
    ReadError
        A path cannot be read.
    """
    require_kinds(kernel, background, noise, likelihood, penalty, solver, reference_noise)
    where, precision = usable_device(device), usable_dtype(dtype)
    limit = parse_memory(max_memory)
    first = usable_start(start, kernel)
    started = time.perf_counter()
    frames, shape = _broadcast(as_frames(target, mask), as_frames(reference))
    prepared: dict[int, float] = {}
    pairs = [
        _prepare(
            t, r, kernel, background.n_params, _noise_of(noise, i, shape),
            _noise_of(reference_noise, i, shape), reference_background, prepared,
            None if shape is None else i,
        )
        for i, (t, r) in enumerate(frames)
    ]  # fmt: skip
    plan = plan_memory(pairs[0].target.shape, precision, where, limit)
    results: list[Subtraction] = []
    for group in _groups(pairs, plan):
        fits = Fits.of(
            _objective(group, kernel, background, likelihood, penalty, precision, where, plan),
            solver, penalty, on_step, partial(_reference_variance, group), first,
        )  # fmt: skip
        errors = fits.errors(covariance)
        made = [_finish(pair, fits, i, errors[i]) for i, pair in enumerate(group)]
        seconds, started = (time.perf_counter() - started) / len(group), time.perf_counter()
        results += [replace(r, diagnostics=replace(r.diagnostics, seconds=seconds)) for r in made]
    for result in results:
        warn_of(result.findings)
    if shape is None:
        return results[0]
    items = np.empty(len(results), dtype=object)
    items[:] = results
    return SubtractionStack(items.reshape(shape))


_Frames = tuple[list[Frame], tuple[int, ...] | None]


def _broadcast(
    targets: _Frames, references: _Frames
) -> tuple[list[tuple[Frame, Frame]], tuple[int, ...] | None]:
    """Each target with its reference, and the shape of their stack (None for two images)."""
    (target_list, target_shape), (reference_list, reference_shape) = targets, references
    if target_shape is None and reference_shape is None:
        return [(target_list[0], reference_list[0])], None
    shapes = target_shape or (), reference_shape or ()
    try:
        shape = np.broadcast_shapes(*shapes)
    except ValueError as error:
        raise ShapeError(
            f"A stack of {shapes[0]} targets and one of {shapes[1]} references do not go together; "
            "give as many of both, or one reference for all."
        ) from error
    index = [
        np.broadcast_to(np.arange(len(each)).reshape(its_shape), shape).ravel()
        for each, its_shape in zip((target_list, reference_list), shapes, strict=True)
    ]
    pairs = [(target_list[i], reference_list[j]) for i, j in zip(*index, strict=True)]
    for target, _ in pairs:
        require_same_shape(target, pairs[0][0])
    return pairs, shape


def _noise_of(noise: NoiseModel | None, i: int, shape: tuple[int, ...] | None) -> NoiseModel | None:
    """The noise model of the i-th pair: an image in it may have the axes of the stack."""
    if noise is None or shape is None:
        return noise

    def mine(image: torch.Tensor) -> torch.Tensor:
        if image.ndim == 2:
            return image
        if image.shape[:-2] != shape:
            raise ShapeError(
                f"An image of the noise model has shape {tuple(image.shape)} but the stack holds "
                f"{shape} pairs; give one for all, or one for each pair."
            )
        return image.flatten(0, -3)[i]

    return noise.rearranged(mine)


def _prepare(
    target: Frame,
    reference: Frame,
    kernel: KernelModel,
    n_background: int,
    noise: NoiseModel | None,
    reference_noise: NoiseModel | None,
    background: float | None,
    levels: dict[int, float],
    number: int | None,
) -> Pair:
    """Check a pair and decide on its noise; ``levels`` remembers those of shared references."""
    try:
        require_same_shape(target, reference)
        flags = _combined_flags(target, reference, kernel)
        use = flags == 0
        require_structure(target, use, "target")
        if id(reference) not in levels:
            require_structure(reference, ~reference.mask, "reference")
            levels[id(reference)] = _reference_level(reference, background)
        findings: tuple[Finding, ...] = ()
        if noise is None:
            noise, findings = default_noise(target)
        if reference_noise is None:
            reference_noise, more = _known_noise(reference)
            findings += more
        for model in (noise, reference_noise):
            require_noise_shape(model, target)
        require_enough_pixels(target, reference, use, kernel.n_params + n_background)
    except InputError as error:
        if number is None:
            raise
        raise type(error)(f"Pair {number} of the stack: {error}") from error
    level = levels[id(reference)]
    return Pair(target, reference, flags, level, noise, reference_noise, findings)


def _reference_variance(group: list[Pair], i: int, dtype: torch.dtype) -> torch.Tensor | None:
    return group[i].reference_variance(dtype)


def _groups(pairs: list[Pair], plan: MemoryPlan) -> Iterator[list[Pair]]:
    """Runs of pairs that are fitted side by side."""
    for begin in range(0, len(pairs), plan.pairs):
        yield pairs[begin : begin + plan.pairs]


def _objective(
    group: list[Pair],
    kernel: KernelModel,
    background: PolynomialBackground,
    likelihood: Likelihood,
    penalty: Penalty | KernelPrior | None,
    dtype: torch.dtype,
    device: torch.device,
    plan: MemoryPlan,
) -> Objective:
    """The fit of one pair as (h, w), of several as a stack; one reference if all share it."""
    home = device if plan.images_on_device else torch.device("cpu")

    def stacked(images: list[torch.Tensor]) -> torch.Tensor:
        return (images[0] if len(images) == 1 else torch.stack(images)).to(home)

    shared = all(pair.reference is group[0].reference for pair in group)
    references = stacked([_flattened(pair, dtype) for pair in (group[:1] if shared else group)])
    model = ImageModel(references, kernel, background, plan.keep, device)
    target = stacked([pair.target.data for pair in group])
    use = stacked([pair.flags == 0 for pair in group])
    noise = stack_noise([pair.noise for pair in group])
    fixed = penalty if isinstance(penalty, Penalty) else None
    return Objective(model, target, use, noise, likelihood, fixed, dtype)


def _flattened(pair: Pair, dtype: torch.dtype) -> torch.Tensor:
    """The reference without its background, 0 at bad pixels.

    It is float32 only if the fit and the reference are: rounding then adds no more than was there.
    """
    data = pair.reference.data
    exact = torch.promote_types(data.dtype, dtype)
    flat = torch.empty(data.shape, dtype=exact)
    for rows in strips(len(data)):
        flat[rows] = data[rows].to(torch.float64) - pair.level
    return flat.masked_fill_(pair.reference.mask, 0.0)


def _finish(pair: Pair, fits: Fits, i: int, errors: Uncertainty) -> Subtraction:
    objective, solution = fits.in_pixels(i)
    if fits.plain.target.ndim == 2:
        objective.model.correlator.forget(for_good=True)  # room for the images of the result
    result = assemble(pair, objective, solution, errors)
    settings = {**result.settings, "solver": repr(fits.solver)}
    if fits.prior is None:
        return replace(result, settings=settings)
    settings["penalty"] = repr(fits.prior.priors[i])
    diagnostics = replace(result.diagnostics, n_effective=fits.prior.n_effective[i])
    result = replace(result, settings=settings, diagnostics=diagnostics)
    kernel = fits.true_kernel(i)
    if kernel is None:
        return result
    return replace(result, kernel=kernel.cpu().numpy(), scale=float(kernel.sum()))


def _reference_level(reference: Frame, given: float | None) -> float:
    if given is None:
        return reference_level(reference)
    if not math.isfinite(given):
        raise InputError(f"The reference background must be a finite number, got {given}.")
    return float(given)


def _combined_flags(target: Frame, reference: Frame, kernel: KernelModel) -> Flags:
    """The target's flags, plus the border and the footprints of bad reference pixels."""
    flags = with_flag(target.flags, outside(target.shape, kernel.half_shape), Flag.BORDER)
    hit = grow(reference.mask, kernel.half_shape)
    return with_flag(flags, hit, Flag.REFERENCE) if bool(hit.any()) else flags


def _known_noise(reference: Frame) -> tuple[NoiseModel | None, tuple[Finding, ...]]:
    """The reference's noise if it is known, never a guess."""
    if reference.variance is None and reference.detector.gain is None:
        finding = Finding(
            "reference-noise-unknown",
            f"The noise of the reference ({reference.name}) is not known; neither the variance of "
            "the difference nor the errors of P and of the kernel hold it. Give its gain and read "
            "noise, or its variance.",
        )
        return None, (finding,)
    noise, findings = default_noise(reference)
    return noise, findings
