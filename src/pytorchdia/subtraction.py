"""What a subtraction returns: images, kernel, error bars, and what should be known about them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from . import product
from .background import PolynomialBackground
from .errors import Finding, Status

if TYPE_CHECKING:
    from astropy.nddata import CCDData

__all__ = ["Background", "Diagnostics", "Subtraction", "SubtractionStack", "with_error"]

FloatImage = NDArray[np.floating[Any]]


def with_error(value: float, error: float) -> str:
    """A value and its 1-sigma error for people: two digits of the error, and as many places."""
    if not (math.isfinite(value) and math.isfinite(error) and error > 0.0):
        return f"{value:.6g} ± {error:.2g}"
    places = 1 - math.floor(math.log10(float(f"{error:.1e}")))
    if not 0 <= places <= 12:
        return f"{value:.7g} ± {error:.2g}"
    return f"{value:.{places}f} ± {error:.{places}f}"


@dataclass(frozen=True)
class Background:
    """The fitted differential background (eq 18).

    Attributes
    ----------
    coefficients, errors : ndarray
        b_mn [ADU] and their 1-sigma errors, in the order of ``exponents``.
    exponents : list of (int, int)
        (m, n): powers of the normalised x and y.
    shape : (int, int)
        (h, w) of the frame.
    """

    coefficients: NDArray[np.float64]
    errors: NDArray[np.float64]
    exponents: list[tuple[int, int]]
    shape: tuple[int, int]

    @property
    def image(self) -> NDArray[np.float64]:
        """B(x, y) [ADU], (h, w)."""
        degree = max(m for m, _ in self.exponents)
        coefficients = torch.from_numpy(self.coefficients)
        return PolynomialBackground(degree).image(coefficients, self.shape).numpy()


@dataclass(frozen=True)
class Diagnostics:
    """Numbers about the fit.

    Attributes
    ----------
    loss : float
        The objective at the solution, in units of ln likelihood.
    steps, evaluations : int
        Solver steps, and computations of the model image.
    decrement : float or None
        Predicted drop of the loss by one more Newton step; None if the solver does not know it.
    mfb, mfv : float
        Mean fit bias and variance of the normalised residuals (eq 29, 30), with the noise model at
        the solution in place of the true noise.
    reduced_chi_square : float
        Sum of squared normalised residuals over (pixels - parameters).
    residual_scale : float
        Robust scale (1.4826 MAD) of difference / sqrt(variance) over the darker half of the used
        pixels; 1 if the error map is right.
    drift, drift_error : float
        Share of the model's light that is still in the difference, all stars alike, and its error
        (:func:`~pytorchdia.drift.block_drift`): P is too low by it. 0 where fewer than 20 blocks
        of 16 x 16 pixels have enough light to tell.
    n_pixels, n_parameters : int
        Pixels used (N_data) and parameters fitted.
    n_effective : float
        Parameters that the data determine; less than ``n_parameters`` under a prior.
    reference_background : float
        Level [ADU] taken off the reference before the fit.
    reference_noise : bool
        Whether the variance of the difference and the errors of the parameters hold the
        reference's noise.
    seconds : float
        Wall time of the fit and its error bars.
    device, dtype : str
    """

    loss: float
    steps: int
    evaluations: int
    decrement: float | None
    mfb: float
    mfv: float
    reduced_chi_square: float
    residual_scale: float
    drift: float
    drift_error: float
    n_pixels: int
    n_parameters: int
    n_effective: float
    reference_background: float
    reference_noise: bool
    seconds: float
    device: str
    dtype: str

    def as_dict(self) -> dict[str, Any]:
        """All numbers by name."""
        return asdict(self)


@dataclass(frozen=True)
class Subtraction:
    """A difference image and everything that was learnt on the way.

    Images are full size, (h, w). Where ``mask`` is True the fit did not look. Where there is no
    data at all (a NaN target, a border, a bad reference pixel under the kernel) ``difference`` is
    0 and ``variance`` is infinite, so that a weight of 1 / variance is right without the mask.

    Attributes
    ----------
    difference : ndarray
        D = I - M [ADU].
    variance : ndarray
        Variance of the difference [ADU^2]: the target's noise at the model (eq 6 or 7) plus the
        reference's noise through the kernel, if that is known.
    mask : ndarray of bool
        True = not used by the fit.
    flags : ndarray of int16
        Why: bits of :class:`~pytorchdia.frame.Flag`.
    model : ndarray
        M = R (x) K + B [ADU]; 0 where it is not defined.
    kernel : ndarray
        K_lm, (ky, kx), element ``[n_y + l, n_x + m]`` (eq 2).
    kernel_covariance : ndarray or None
        Covariance of ``kernel.ravel()``, (ky kx, ky kx): eq 16, and what the noise of the reference
        adds if it is known; None without ``covariance=True``.
    covariance : ndarray or None
        Covariance of all parameters, kernel first, (p, p).
    scale, scale_error : float
        P (eq 3), and its error sqrt(1' C 1) with all covariances.
    background : Background
    status : Status
        How the fit ended.
    findings : tuple of Finding
        What the user should know.
    diagnostics : Diagnostics
    settings : Mapping
        What was used, as text.
    header, wcs
        The target's, unread.
    unit : str
        The target's unit.
    """

    difference: FloatImage
    variance: FloatImage
    mask: NDArray[np.bool_]
    flags: NDArray[np.int16]
    model: FloatImage
    kernel: NDArray[np.float64]
    kernel_covariance: NDArray[np.float64] | None = field(repr=False)
    covariance: NDArray[np.float64] | None = field(repr=False)
    scale: float
    scale_error: float
    background: Background
    status: Status
    findings: tuple[Finding, ...]
    diagnostics: Diagnostics
    settings: Mapping[str, str]
    header: Mapping[str, Any] = field(repr=False)
    wcs: Any = field(repr=False)
    unit: str = ""

    @property
    def error(self) -> FloatImage:
        """Standard deviation of the difference [ADU], infinite where there is no data."""
        return np.sqrt(self.variance)

    @property
    def significance(self) -> FloatImage:
        """Difference / error, 0 where there is no data."""
        return self.difference / self.error

    def write(self, path: str | Path, overwrite: bool = False) -> Path:
        """Write one multi-extension FITS file, whole or not at all.

        Raises
        ------
        WriteError
            The file exists and ``overwrite`` is False, or it cannot be written.
        """
        return product.write(self, Path(path), overwrite=overwrite)

    def to_ccddata(self) -> CCDData:
        """The difference as CCDData with its variance, mask, flags, unit, WCS and header."""
        return product.to_ccddata(self)


@dataclass(frozen=True)
class SubtractionStack:
    """The subtractions of a stack of pairs.

    Indexing and iterating work as for an array of that shape and give :class:`Subtraction`
    objects; the properties gather one quantity of all of them into one array.

    Parameters
    ----------
    items : ndarray of Subtraction
        (...).
    """

    items: NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the stack, (...)."""
        return self.items.shape

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Any) -> Any:
        chosen = self.items[index]
        return SubtractionStack(chosen) if isinstance(chosen, np.ndarray) else chosen

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    @property
    def difference(self) -> FloatImage:
        """D = I - M [ADU], (..., h, w)."""
        return self._gather("difference")

    @property
    def variance(self) -> FloatImage:
        """Variances of the differences [ADU^2], (..., h, w)."""
        return self._gather("variance")

    @property
    def mask(self) -> NDArray[np.bool_]:
        """True = not used by the fit, (..., h, w)."""
        return self._gather("mask")

    @property
    def kernel(self) -> NDArray[np.float64]:
        """K_lm, (..., ky, kx)."""
        return self._gather("kernel")

    @property
    def scale(self) -> NDArray[np.float64]:
        """P (eq 3), (...)."""
        return self._gather("scale")

    @property
    def scale_error(self) -> NDArray[np.float64]:
        """Errors of P, (...)."""
        return self._gather("scale_error")

    @property
    def converged(self) -> NDArray[np.bool_]:
        """Whether each fit ended as it should, (...)."""
        return np.array([item.status.ok for item in self.items.flat]).reshape(self.shape)

    def _gather(self, name: str) -> NDArray[Any]:
        values = np.stack([getattr(item, name) for item in self.items.flat])
        return values.reshape(*self.shape, *values.shape[1:])
