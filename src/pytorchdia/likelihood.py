"""The distribution of one pixel about the model (eq 8, 11-14): a rho(z) and a constant.

The negative log-likelihood of a pixel is ``rho(z) + ln sigma + log_norm`` with
``z = (I - M) / sigma``. That is all that a new likelihood has to say; its gradient and its
curvature by the model come from automatic differentiation.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from .arrays import Pixels
from .elementwise import Derivatives, derivatives
from .errors import InputError

__all__ = ["Gaussian", "Huber", "Likelihood", "StudentT"]


class Likelihood(ABC):
    """Base of all pixel likelihoods: implement :meth:`rho` and :attr:`log_norm`."""

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
    def log_norm(self) -> float:
        """Ln of the integral of exp(-rho(z)) over z: the constant Q/N of eq 13-14."""

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
    """

    c: float = 1.345

    def __post_init__(self) -> None:
        if not (self.c > 0 and math.isfinite(self.c)):
            raise InputError(
                f"Huber needs a finite c > 0, got {self.c}; 1.345 is the usual choice."
            )

    def rho(self, z: Pixels) -> Pixels:
        a = z.abs()
        return torch.where(a <= self.c, 0.5 * z**2, self.c * (a - 0.5 * self.c))

    def derivatives(self, z: Pixels, order: int) -> Derivatives:
        slope = z.clamp(-self.c, self.c)
        value = torch.addcmul(slope * z, slope, slope, value=-0.5)
        return Derivatives(value, slope, (z.abs() <= self.c).to(z.dtype) if order > 1 else 0.0)

    @property
    def log_norm(self) -> float:
        core = math.sqrt(2 * math.pi) * math.erf(self.c / math.sqrt(2))
        return math.log(core + 2 * math.exp(-0.5 * self.c**2) / self.c)


@dataclass(frozen=True)
class StudentT(Likelihood):
    """Student's t distribution (named as a drop-in robust loss in section 2.4).

    Parameters
    ----------
    nu : float
        Degrees of freedom; small values mean heavy wings.
    """

    nu: float = 4.0

    def __post_init__(self) -> None:
        if not (self.nu > 0 and math.isfinite(self.nu)):
            raise InputError(f"StudentT needs a finite nu > 0, got {self.nu}; 4 is a usual choice.")

    def rho(self, z: Pixels) -> Pixels:
        return 0.5 * (self.nu + 1) * torch.log1p(z**2 / self.nu)

    def derivatives(self, z: Pixels, order: int) -> Derivatives:
        square = z * z
        inverse = (square + self.nu).reciprocal_()
        slope = (self.nu + 1) * z * inverse
        second: Pixels | float = 0.0
        if order > 1:
            second = (self.nu - square).mul_(inverse).mul_(inverse).mul_(self.nu + 1)
        return Derivatives(0.5 * (self.nu + 1) * torch.log1p(square / self.nu), slope, second)

    @property
    def log_norm(self) -> float:
        half = 0.5 * self.nu
        return 0.5 * math.log(self.nu * math.pi) + math.lgamma(half) - math.lgamma(half + 0.5)
