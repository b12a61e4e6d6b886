"""The variance of a pixel as a function of the model image (eq 6 and 7).

A noise model answers one question, :meth:`NoiseModel.variance`: what is sigma^2 [ADU^2] of every
pixel, if the noiseless image is ``model`` [ADU]? It stays inside the loss, so that the fit knows
that a brighter model is a noisier one. Models add up: ``CCDNoise(...) + FixedVariance(extra)``.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .arrays import Pixels
from .elementwise import Derivatives, derivatives
from .errors import NoiseModelError

__all__ = ["CCDNoise", "EMCCDNoise", "FixedVariance", "NoiseModel"]


class NoiseModel(ABC):
    """Base of all noise models: implement :meth:`variance`."""

    @abstractmethod
    def variance(self, model: Pixels) -> Pixels:
        """sigma^2_ij [ADU^2] of a pixel whose noiseless value is ``model`` [ADU].

        Written in torch operations that act on each element by itself; positive and finite.
        """

    def derivatives(self, model: Pixels, order: int) -> Derivatives:
        """sigma^2 and its derivatives by ``model`` up to ``order``, by automatic differentiation.

        To be overridden only where that is worth the speed.
        """
        return derivatives(self.variance, model, order)

    def rearranged(self, how: Callable[[Tensor], Tensor]) -> NoiseModel:
        """The same model for pixels in another arrangement, such as tiles.

        ``how`` is applied to every image that the model holds: each of its attributes that is a
        tensor of two or more axes. It is given (..., h, w) and the result is used in its place.
        """
        changes: dict[str, NoiseModel | Tensor] = {}
        for name, value in vars(self).items():
            if isinstance(value, NoiseModel):
                changes[name] = value.rearranged(how)
            elif isinstance(value, Tensor) and value.ndim >= 2:
                changes[name] = how(value)
        if not any(change is not vars(self)[name] for name, change in changes.items()):
            return self
        model = copy.copy(self)
        for name, value in changes.items():
            object.__setattr__(model, name, value)
        return model

    def item(self, index: int | Tensor) -> NoiseModel:
        """The model of one pair of a stack, or of some of them."""
        return self.rearranged(lambda image: image[index] if image.ndim > 2 else image)

    def __add__(self, other: NoiseModel) -> NoiseModel:
        return SummedNoise(self, other) if isinstance(other, NoiseModel) else NotImplemented


@dataclass(frozen=True)
class SummedNoise(NoiseModel):
    """Two independent sources of noise: their variances add."""

    first: NoiseModel
    second: NoiseModel

    def variance(self, model: Pixels) -> Pixels:
        return self.first.variance(model) + self.second.variance(model)

    def derivatives(self, model: Pixels, order: int) -> Derivatives:
        a, b = (noise.derivatives(model, order) for noise in (self.first, self.second))
        return Derivatives(a.value + b.value, a.first + b.first, a.second + b.second)


@dataclass(frozen=True)
class StackedNoise(NoiseModel):
    """A model for each pair of a stack: the first axis of the image chooses among them."""

    models: tuple[NoiseModel, ...]

    def variance(self, model: Pixels) -> Pixels:
        return torch.stack([m.variance(x) for m, x in zip(self.models, model, strict=True)])

    def rearranged(self, how: Callable[[Tensor], Tensor]) -> NoiseModel:
        return StackedNoise(tuple(m.rearranged(how) for m in self.models))

    def item(self, index: int | Tensor) -> NoiseModel:
        if isinstance(index, int):
            return self.models[index]
        chosen = torch.arange(len(self.models))[index.cpu()]
        return StackedNoise(tuple(self.models[i] for i in chosen.tolist()))


def stack_noise(models: Sequence[NoiseModel]) -> NoiseModel:
    """One model for a stack of pairs, from the model of each."""
    first = models[0]
    if all(m is first for m in models):
        return first
    if all(type(m) is CCDNoise and m.flat is None for m in models):
        numbers = {(m.read_noise, m.gain, m.offset) for m in models if isinstance(m, CCDNoise)}
        if len(numbers) == 1:
            return first
    if all(isinstance(m, FixedVariance) and m.image.ndim == 2 for m in models):
        images = [m.image for m in models if isinstance(m, FixedVariance)]
        return FixedVariance(torch.stack(images))
    return StackedNoise(tuple(models))


@dataclass(frozen=True)
class CCDNoise(NoiseModel):
    """Read noise and photon noise of a CCD (eq 6).

    sigma^2 = (read_noise / flat)^2 + (M + offset) / (gain * flat)

    Eq 6 is negative for a very negative model. Fewer than one photoelectron has no meaning, so
    ``M + offset`` is taken as ``1 / gain`` where it is less.

    Parameters
    ----------
    read_noise : float
        Read noise **in ADU**. FITS headers usually give electrons: divide by the gain.
    gain : float
        Electrons per ADU.
    flat : array_like, optional
        Master flat-field F, (h, w), positive, about 1. None means 1 everywhere.
    offset : float
        Level [ADU] that was taken off the image before it came here (a subtracted sky): its light
        is gone, its noise is not. Zero in the paper.
    """

    read_noise: float
    gain: float = 1.0
    flat: Any = None
    offset: float = 0.0

    def __post_init__(self) -> None:
        _require("read_noise [ADU]", self.read_noise, minimum=0.0, open_end=False)
        _require("gain [e-/ADU]", self.gain, minimum=0.0)
        _require("offset [ADU]", self.offset)
        object.__setattr__(self, "flat", _positive_image("flat", self.flat))

    def __repr__(self) -> str:
        return (
            f"CCDNoise(read_noise={self.read_noise}, gain={self.gain}, offset={self.offset}"
            f"{_with_flat(self.flat)})"
        )

    def variance(self, model: Pixels) -> Pixels:
        photons = (model + self.offset).clamp(min=1.0 / self.gain)
        if self.flat is None:
            return self.read_noise**2 + photons / self.gain
        flat = _like(self.flat, model, "flat")
        return (self.read_noise / flat) ** 2 + photons / (self.gain * flat)

    def derivatives(self, model: Pixels, order: int) -> Derivatives:
        slope = (model >= 1.0 / self.gain - self.offset).to(model.dtype).div_(self.gain)
        if self.flat is not None:
            slope = slope / _like(self.flat, model, "flat")
        return Derivatives(self.variance(model), slope, 0.0)


@dataclass(frozen=True)
class EMCCDNoise(NoiseModel):
    """Photon noise of an electron-multiplying CCD, widened by the cascade (eq 7).

    sigma^2 = excess * M / (total_gain * flat)

    Eq 7 vanishes where the model does. The floor is the variance of one photoelectron: M is taken
    as ``1 / total_gain`` where it is less.

    Parameters
    ----------
    total_gain : float
        Photoelectrons per ADU, G_Total: the CCD gain divided by the EM gain (25.8 / 300 for the
        camera of the paper).
    excess : float
        Excess noise factor E; 2 in the paper.
    flat : array_like, optional
        Master flat-field F, (h, w), positive. None means 1 everywhere.
    """

    total_gain: float
    excess: float = 2.0
    flat: Any = None

    def __post_init__(self) -> None:
        _require("total_gain [e-/ADU]", self.total_gain, minimum=0.0)
        _require("excess", self.excess, minimum=0.0)
        object.__setattr__(self, "flat", _positive_image("flat", self.flat))

    def __repr__(self) -> str:
        return (
            f"EMCCDNoise(total_gain={self.total_gain}, excess={self.excess}{_with_flat(self.flat)})"
        )

    def variance(self, model: Pixels) -> Pixels:
        photons = model.clamp(min=1.0 / self.total_gain)
        flat = 1.0 if self.flat is None else _like(self.flat, model, "flat")
        return self.excess * photons / (self.total_gain * flat)


@dataclass(frozen=True, init=False)
class FixedVariance(NoiseModel):
    """A variance that is known beforehand and does not depend on the model.

    Parameters
    ----------
    variance : float or array_like
        sigma^2 [ADU^2], one number or (h, w), positive. Pixels without a valid variance belong in
        the mask of the frame, not here.
    """

    image: Tensor

    def __init__(self, variance: Any) -> None:
        if np.ndim(variance) == 0:
            _require("variance [ADU^2]", float(variance), minimum=0.0)
            variance = torch.tensor(float(variance), dtype=torch.float64)
        object.__setattr__(self, "image", _positive_image("variance", variance))

    def __repr__(self) -> str:
        return f"FixedVariance({_described(self.image)})"

    def variance(self, model: Pixels) -> Pixels:
        return _like(self.image, model, "variance").expand(model.shape)

    def derivatives(self, model: Pixels, order: int) -> Derivatives:
        return Derivatives(self.variance(model), 0.0, 0.0)


def _with_flat(flat: Tensor | None) -> str:
    return "" if flat is None else f", flat={_described(flat)}"


def _described(image: Tensor) -> str:
    """A number as itself, an image by its size."""
    return f"{float(image):g}" if image.ndim == 0 else f"<{' x '.join(map(str, image.shape))}>"


def _require(name: str, value: float, minimum: float | None = None, open_end: bool = True) -> None:
    if not math.isfinite(value):
        raise NoiseModelError(f"The {name} must be a finite number, got {value}.")
    if minimum is not None and (value < minimum or (open_end and value == minimum)):
        bound = "greater than" if open_end else "at least"
        raise NoiseModelError(f"The {name} must be {bound} {minimum:g}, got {value:g}.")


def _positive_image(name: str, values: Any) -> Tensor | None:
    if values is None:
        return None
    if not isinstance(values, Tensor):
        values = torch.from_numpy(np.array(values, dtype=np.float64))
    image: Tensor = values.to(torch.float64)
    bad = ~((image > 0) & torch.isfinite(image))
    if bad.any():
        raise NoiseModelError(
            f"The {name} has {int(bad.sum())} of {bad.numel()} values that are not positive and "
            f"finite (the least is {float(image.nan_to_num(nan=-torch.inf).min()):g}); mask those "
            "pixels and give them any positive value."
        )
    return image


def _like(values: Tensor, model: Pixels, name: str) -> Tensor:
    if values.ndim and values.shape != model.shape[model.ndim - values.ndim :]:
        raise NoiseModelError(
            f"The {name} has shape {tuple(values.shape)} but the image has shape "
            f"{tuple(model.shape)}; they must be equal."
        )
    return values.to(device=model.device, dtype=model.dtype)
