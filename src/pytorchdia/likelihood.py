"""The distribution of one pixel about the model (eq 8, 11-14): a rho(z) and a constant.

The negative log-likelihood of a pixel is ``rho(z) + ln sigma + log_norm`` with
``z = (I - M) / sigma``. That is all that a new likelihood has to say; its gradient and its
curvature by the model come from automatic differentiation.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .arrays import Pixels
from .elementwise import Derivatives, derivatives
from .errors import InputError

__all__ = ["Gaussian", "Huber", "Likelihood", "StudentT"]


class Likelihood(ABC):
    """Base of all pixel likelihoods: implement :meth:`rho` and :attr:`log_norm`.

    Attributes
    ----------
    tolerance : float
        The share of the light of a pixel that a model may be off there without the pixel being an
        outlier; 0 for a likelihood that knows none.
    """

    tolerance: float = 0.0

    @abstractmethod
    def rho(self, z: Pixels) -> Pixels:
        """Loss of a normalised residual ``z`` (any shape), zero at ``z = 0`` (eq 12).

        Written in torch operations that act on each element by itself.
        """

    def derivatives(self, z: Pixels, order: int) -> Derivatives:
        """Rho and its derivatives by ``z`` up to ``order``, by automatic differentiation.

        To be overridden only where that is worth the speed.
        """
        return derivatives(self.rho, z, order)

    @property
    @abstractmethod
    def log_norm(self) -> float | Pixels:
        """Ln of the integral of exp(-rho(z)) over z: the constant Q/N of eq 13-14."""

    def loosened(self, by: Pixels) -> Likelihood:
        """The same with room for residuals of about ``by`` more sigma, each pixel its own.

        What ``tolerance`` asks for; a likelihood without outliers is itself.
        """
        return self

    def nll(self, residual: Pixels, variance: Pixels) -> Pixels:
        """Negative log-likelihood of each pixel (eq 8 and 13, with its constant).

        Parameters
        ----------
        residual : Pixels
            I - M [ADU].
        variance : Pixels
            sigma^2 [ADU^2], positive.
        """
        return self.rho(residual / variance.sqrt()) + 0.5 * variance.log() + self.log_norm


@dataclass(frozen=True)
class Gaussian(Likelihood):
    """The normal distribution (eq 4, 8)."""

    def rho(self, z: Pixels) -> Pixels:
        return 0.5 * z**2

    def derivatives(self, z: Pixels, order: int) -> Derivatives:
        return Derivatives(self.rho(z), z, 1.0)

    @property
    def log_norm(self) -> float:
        return 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True)
class Huber(Likelihood):
    """Gaussian core and exponential wings (eq 11-14, section 2.4).

    Parameters
    ----------
    c : float
        Normalised residual at which the loss turns from quadratic to linear. The default is the
        one that the paper takes from Huber & Ronchetti (2009).
    tolerance : float
        With L the light of a pixel, R (x) K without the background, of a first fit: c is larger by
        ``tolerance`` L / sigma there, by 10 at most. Where no kernel turns one PSF into the other,
        as with undersampled stars or a target that is sharper than the reference, what is left at
        bright stars is a share of their light; P comes out low if that counts as outliers. 0 is
        the loss of the paper.
    """

    c: float = 1.345
    tolerance: float = 0.1

    def __post_init__(self) -> None:
        if not (self.c > 0 and math.isfinite(self.c)):
            raise InputError(
                f"Huber needs a finite c > 0, got {self.c}; 1.345 is the usual choice."
            )
        _require_tolerance(self)

    def rho(self, z: Pixels) -> Pixels:
        return _huber(z, self.c, 1).value

    def derivatives(self, z: Pixels, order: int) -> Derivatives:
        return _huber(z, self.c, order)

    @property
    def log_norm(self) -> float:
        return float(_huber_log_norm(torch.tensor(self.c, dtype=torch.float64)))

    def loosened(self, by: Pixels) -> Likelihood:
        return _OfPixels(self.c + by, _huber, _huber_log_norm)


@dataclass(frozen=True)
class StudentT(Likelihood):
    """Student's t distribution (named as a drop-in robust loss in section 2.4).

    Parameters
    ----------
    nu : float
        Degrees of freedom; small values mean heavy wings.
    tolerance : float
        As that of :class:`Huber`: nu is larger by (``tolerance`` L / sigma)^2, by 100 at most.
    """

    nu: float = 4.0
    tolerance: float = 0.1

    def __post_init__(self) -> None:
        if not (self.nu > 0 and math.isfinite(self.nu)):
            raise InputError(f"StudentT needs a finite nu > 0, got {self.nu}; 4 is a usual choice.")
        _require_tolerance(self)

    def rho(self, z: Pixels) -> Pixels:
        return _student(z, self.nu, 1).value

    def derivatives(self, z: Pixels, order: int) -> Derivatives:
        return _student(z, self.nu, order)

    @property
    def log_norm(self) -> float:
        return float(_student_log_norm(torch.tensor(self.nu, dtype=torch.float64)))

    def loosened(self, by: Pixels) -> Likelihood:
        return _OfPixels(self.nu + by**2, _student, _student_log_norm)


def _require_tolerance(likelihood: Huber | StudentT) -> None:
    if not 0 <= likelihood.tolerance < 1:
        raise InputError(
            f"The tolerance of {type(likelihood).__name__} must be a share of the light, at least "
            f"0 and below 1, got {likelihood.tolerance}; 0 is the loss of the paper."
        )


def _huber(z: Pixels, c: float | Pixels, order: int) -> Derivatives:
    slope = z.clamp(-c, c) if isinstance(c, float) else z.clamp(min=-c, max=c)
    value = torch.addcmul(slope * z, slope, slope, value=-0.5)
    return Derivatives(value, slope, (z.abs() <= c).to(z.dtype) if order > 1 else 0.0)


def _huber_log_norm(c: Pixels) -> Pixels:
    core = math.sqrt(2 * math.pi) * torch.erf(c / math.sqrt(2))
    return (core + 2 * torch.exp(-0.5 * c**2) / c).log()


def _student(z: Pixels, nu: float | Pixels, order: int) -> Derivatives:
    square = z * z
    inverse = (square + nu).reciprocal_()
    slope = (nu + 1) * z * inverse
    second: Pixels | float = 0.0
    if order > 1:
        second = (nu - square).mul_(inverse).mul_(inverse).mul_(nu + 1)
    return Derivatives(0.5 * (nu + 1) * torch.log1p(square / nu), slope, second)


def _student_log_norm(nu: Pixels) -> Pixels:
    half = 0.5 * nu
    return 0.5 * (nu * math.pi).log() + torch.lgamma(half) - torch.lgamma(half + 0.5)


@dataclass(frozen=True, eq=False)
class _OfPixels(Likelihood):
    """A likelihood whose parameter each pixel has its own of."""

    parameter: Pixels
    of: Callable[[Pixels, float | Pixels, int], Derivatives]
    log_norm_of: Callable[[Pixels], Pixels]

    def rho(self, z: Pixels) -> Pixels:
        return self.of(z, self.parameter, 1).value

    def derivatives(self, z: Pixels, order: int) -> Derivatives:
        return self.of(z, self.parameter, order)

    @property
    def log_norm(self) -> Pixels:
        return self.log_norm_of(self.parameter)
