"""The stack of a season's filtered differences, in which sources too faint for one epoch show."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln
from scipy.stats import chi2, norm

from ..stars.matched_filter import Filtered

__all__ = ["Stack", "Sums", "gaussian_equivalent"]

FloatArray = NDArray[np.float64]


@dataclass
class Sums:
    """Sums over epochs of 1, 1/e^2, f/e^2 and f^2/e^2, and the largest f^2/e^2, (h, w) each."""

    n: FloatArray = field(default_factory=lambda: np.zeros((0, 0)))
    weight: FloatArray = field(default_factory=lambda: np.zeros((0, 0)))
    weighted: FloatArray = field(default_factory=lambda: np.zeros((0, 0)))
    squares: FloatArray = field(default_factory=lambda: np.zeros((0, 0)))
    largest: FloatArray = field(default_factory=lambda: np.zeros((0, 0)))

    def add(self, flux: FloatArray, error: FloatArray) -> None:
        """Add an epoch."""
        known = np.isfinite(error)
        w = np.where(known, 1.0 / np.where(known, error, 1.0) ** 2, 0.0)
        if not self.n.size:
            self.n, self.weight, self.weighted = (np.zeros(w.shape) for _ in range(3))
            self.squares, self.largest = np.zeros(w.shape), np.zeros(w.shape)
        self.n += known
        self.weight += w
        self.weighted += w * flux
        square = w * flux**2
        self.squares += square
        np.maximum(self.largest, square, out=self.largest)

    def joined(self, other: Sums) -> Sums:
        """The sums over the epochs of both."""
        if not (self.n.size and other.n.size):
            return self if self.n.size else other
        return Sums(
            self.n + other.n,
            self.weight + other.weight,
            self.weighted + other.weighted,
            self.squares + other.squares,
            np.maximum(self.largest, other.largest),
        )

    def variability(self) -> FloatArray:
        """Significance [sigma] of the scatter of the fluxes about their mean, (h, w).

        The noise of the reference, common to all epochs, drops out. 0 where there are fewer than
        two epochs.
        """
        mean_square = np.divide(
            self.weighted**2, self.weight, out=np.zeros(self.n.shape), where=self.weight > 0
        )
        freedom = np.maximum(self.n - 1, 1)
        z = gaussian_equivalent(np.maximum(self.squares - mean_square, 0.0), freedom)
        return _calibrated(np.where(self.n >= 2, z, 0.0), self.n >= 2)

    def mean(self) -> FloatArray:
        """Significance [sigma] of the mean flux, with its sign, (h, w).

        Measured by its own scatter over the frame, which the noise of the reference is part of.
        """
        z = np.divide(
            self.weighted, np.sqrt(self.weight), out=np.zeros(self.n.shape), where=self.weight > 0
        )
        return _calibrated(z, self.weight > 0)

    def without_the_largest(self) -> FloatArray:
        """Significance [sigma] of what is left without the strongest epoch of each pixel, (h, w).

        What is there once only, a satellite or a cosmic ray, leaves nothing.
        """
        left = np.maximum(self.squares - self.largest, 0.0)
        z = gaussian_equivalent(left, np.maximum(self.n - 1, 1))
        return _calibrated(np.where(self.n >= 2, z, 0.0), self.n >= 2)

    def significance(self) -> FloatArray:
        """The larger of the two, without sign, (h, w)."""
        return np.maximum(self.variability(), np.abs(self.mean()))


@dataclass
class Stack:
    """Sums over the epochs of what a star at each pixel would have for a flux.

    Epochs are added one by one, so that none is kept. ``total`` takes the total errors, which
    decide whether there is a source, and ``noise`` those from noise alone, which tell where it is.
    """

    total: Sums = field(default_factory=Sums)
    noise: Sums = field(default_factory=Sums)

    def add(self, filtered: Filtered) -> None:
        """Add an epoch, on the scale of the reference."""
        self.total.add(filtered.flux, filtered.total_error)
        self.noise.add(filtered.flux, filtered.error)

    def joined(self, other: Stack) -> Stack:
        """The stack of the epochs of both."""
        return Stack(self.total.joined(other.total), self.noise.joined(other.noise))

    def mean_flux(self) -> Filtered:
        """Weighted mean of the fluxes and its error [ADU of the reference], (h, w)."""
        known = self.total.weight > 0
        w = np.where(known, self.total.weight, 1.0)
        return Filtered(
            np.where(known, self.total.weighted / w, 0.0),
            np.where(known, 1.0 / np.sqrt(w), np.inf),
        )


def gaussian_equivalent(square: FloatArray, freedom: FloatArray) -> FloatArray:
    """The number of sigma with the same chance as a chi-square of so many degrees of freedom."""
    chance = chi2.sf(square, freedom)
    with np.errstate(divide="ignore"):
        plain = norm.isf(np.clip(chance, 1e-290, 1.0 - 1e-16))
    half = np.maximum(square, 1.0) / 2.0
    log_chance = -half + (freedom / 2.0 - 1.0) * np.log(half) - gammaln(freedom / 2.0)
    z = np.sqrt(np.maximum(-2.0 * log_chance, 1.0))
    z = np.sqrt(np.maximum(-2.0 * log_chance - np.log(2.0 * np.pi * z**2), 1.0))
    return np.asarray(np.where(chance > 1e-290, plain, z), dtype=np.float64)


def _calibrated(z: FloatArray, known: NDArray[np.bool_]) -> FloatArray:
    """Less its median over the frame, and over its robust scatter where that is more than 1."""
    if not known.any():
        return z
    middle = float(np.median(z[known]))
    scale = 1.4826 * float(np.median(np.abs(z[known] - middle)))
    return np.where(known, (z - middle) / max(1.0, scale), 0.0)
