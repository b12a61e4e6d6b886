"""What must hold before a fit, said clearly where it does not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from .arrays import Kernel, Mask
from .background import PolynomialBackground
from .errors import FlatImageError, InputError, NoiseModelError, ShapeError, TooFewPixelsError
from .frame import Flag, Frame, strips
from .kernel import KernelModel
from .likelihood import Likelihood
from .noise import NoiseModel
from .objective import Objective
from .penalty import Penalty
from .prior import KernelPrior
from .solvers import Solver, flat_start

__all__ = [
    "require_enough_pixels",
    "require_kinds",
    "require_noise_shape",
    "require_same_shape",
    "require_structure",
    "require_variance",
    "require_variance_at_start",
    "usable_device",
    "usable_dtype",
    "usable_start",
]


def usable_start(start: Any, kernel: KernelModel) -> Kernel | None:
    """The kernel that a fit starts from as a float64 tensor; None if none is given.

    Raises
    ------
    InputError
        It does not have the shape of the kernel, or is not finite.
    """
    if start is None:
        return None
    given = torch.as_tensor(np.asarray(start, dtype=np.float64))
    if tuple(given.shape) != kernel.shape or not bool(given.isfinite().all()):
        raise InputError(
            f"start must be a finite kernel of {kernel.shape[0]} x {kernel.shape[1]} pixels, as "
            f"the one that is fitted; got shape {tuple(given.shape)}."
        )
    return given


def require_kinds(
    kernel: Any,
    background: Any,
    noise: Any,
    likelihood: Any,
    penalty: Any,
    solver: Any,
    reference_noise: Any,
) -> None:
    """Raise an InputError for a number or a name where an object is needed."""
    for name, value, kinds, optional in (
        ("kernel", kernel, (KernelModel,), False),
        ("background", background, (PolynomialBackground,), False),
        ("noise", noise, (NoiseModel,), True),
        ("likelihood", likelihood, (Likelihood,), False),
        ("penalty", penalty, (Penalty, KernelPrior), True),
        ("solver", solver, (Solver,), False),
        ("reference_noise", reference_noise, (NoiseModel,), True),
    ):
        if not isinstance(value, kinds) and not (optional and value is None):
            wanted = " or a ".join(kind.__name__ for kind in kinds)
            raise InputError(
                f"{name} must be a {wanted}, got {value!r}; for instance "
                f"subtract(target, reference, {name}={_EXAMPLES[name]})."
            )


_EXAMPLES = {
    "kernel": "DeltaKernel(19)",
    "background": "PolynomialBackground(1)",
    "noise": "CCDNoise(read_noise=5.0, gain=1.5)",
    "likelihood": "Huber()",
    "penalty": "GaussianProcessPrior()",
    "solver": "Newton()",
    "reference_noise": "CCDNoise(read_noise=5.0, gain=1.5)",
}


def require_same_shape(target: Frame, reference: Frame) -> None:
    """Raise a ShapeError unless both frames have the same size."""
    if target.shape != reference.shape:
        raise ShapeError(
            f"The target ({target.name}) has shape {target.shape} but the reference "
            f"({reference.name}) has shape {reference.shape}; register and trim them to one pixel "
            "grid first."
        )


def usable_dtype(dtype: torch.dtype) -> torch.dtype:
    """``dtype`` if it is float32 or float64, else an InputError."""
    if dtype not in (torch.float32, torch.float64):
        raise InputError(f"dtype must be torch.float32 or torch.float64, got {dtype}.")
    return dtype


def usable_device(device: str | torch.device) -> torch.device:
    """The device of this name ("auto" prefers CUDA), or an InputError if it does not work."""
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.zeros(1, dtype=torch.float64, device=chosen)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise InputError(
            f"The device {str(device)!r} cannot be used ({reason}); use 'auto' or 'cpu'."
        ) from error
    return chosen


def require_structure(frame: Frame, use: Mask, role: str) -> None:
    """An image of one single value tells nothing of a kernel."""
    highest, lowest = -math.inf, math.inf
    for rows in strips(len(use)):
        data, used = frame.data[rows], use[rows]
        highest = max(highest, float(torch.where(used, data, -torch.inf).max()))
        lowest = min(lowest, float(torch.where(used, data, torch.inf).min()))
    if highest == -math.inf or highest != lowest:
        return
    saturated = int(((frame.flags & Flag.SATURATED) != 0).sum())
    raise FlatImageError(
        f"The {role} ({frame.name}) is constant: all its {int(use.sum())} usable pixels are "
        f"{highest:g} ({saturated} more are taken as saturated). Check that the right image was "
        "read, and the saturation level."
    )


def require_enough_pixels(target: Frame, reference: Frame, use: Mask, n_params: int) -> None:
    """More pixels than parameters."""
    n_data = int(use.sum())
    if n_data > n_params:
        return
    h, w = target.shape
    raise TooFewPixelsError(
        f"Only {n_data} of {h * w} pixels can be used and the fit has {n_params} parameters; the "
        f"target has {int(target.mask.sum())} bad pixels and the reference "
        f"{int(reference.mask.sum())}, each of which takes out a whole kernel footprint. Use "
        "a smaller kernel, or check the masks and the saturation level."
    )


def require_noise_shape(noise: NoiseModel | None, frame: Frame) -> None:
    """An image inside a noise model (a flat-field, a variance) must be of the frame's size."""

    def same(image: torch.Tensor) -> torch.Tensor:
        if image.shape[-2:] != frame.shape:
            raise NoiseModelError(
                f"The noise model holds an image (flat-field or variance) of shape "
                f"{tuple(image.shape)} but the image of {frame.name} has shape {frame.shape}; they "
                "must be equal."
            )
        return image

    if noise is not None:
        noise.rearranged(same)


def require_variance(objective: Objective) -> None:
    """The noise model must give a variance at the values of the target.

    Raises
    ------
    NoiseModelError
        It gives one of another shape, or one that is not positive and finite at a used pixel.
    """
    o, cut = objective, objective.model.correlator.tiling.cut
    for i, tiles in enumerate(o.model.chunks):
        image = cut(o.target, tiles).to(o.model.device, o.dtype)
        _require_positive(o, o.noise_of(i).variance(image), image, cut(o.use, tiles))


def require_variance_at_start(objective: Objective) -> None:
    """The same where a fit may start from a flat kernel: to explain one that failed."""
    o, correlator = objective, objective.model.correlator
    start = flat_start(o).to(o.dtype)
    for i, (tiles, values) in enumerate(o.model.models(start)):
        image = correlator.core(values)
        use = correlator.tiling.cut(o.use, tiles)
        _require_positive(o, o.noise_of(i).variance(image), image, use)


def _require_positive(
    objective: Objective, variance: torch.Tensor, image: torch.Tensor, use: torch.Tensor
) -> None:
    if variance.shape != image.shape:
        raise NoiseModelError(
            f"The noise model gives a variance of shape {tuple(variance.shape)} for pixels "
            f"of shape {tuple(image.shape)}; it must work pixel by pixel."
        )
    good = _positive(variance)
    if bool(good.all()) or bool((good | ~use.to(good.device)).all()):
        return
    o = objective
    bad = o.use & ~_positive(o.variance(o.target))
    bad = bad | (o.use & ~_positive(o.variance(o.model.mv(flat_start(o).double()))))
    raise NoiseModelError(
        f"The noise model gives {int(bad.sum())} of {o.n_data} used pixels a variance that is not "
        "positive and finite; check gain, read noise and variance image, and give a noise model "
        "of your own a floor."
    )


def _positive(variance: torch.Tensor) -> torch.Tensor:
    return (variance > 0) & torch.isfinite(variance)
