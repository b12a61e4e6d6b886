"""Exposures of a field of stars under conditions of every kind, with their truth."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.signal import fftconvolve

from ..background import PolynomialBackground
from ..errors import InputError
from .camera import BoolArray, Camera, CosmicRays, Defect, Trail
from .psf import PSF, render
from .stars import FloatArray, Stars

__all__ = ["Conditions", "ExposedPair", "Exposure", "expose", "expose_pair"]


@dataclass(frozen=True)
class Conditions:
    """How a field is seen in one exposure.

    Attributes
    ----------
    psf : PSF
    sky : tuple of float
        Coefficients of a polynomial [ADU] in the order and the coordinates of
        :class:`~pytorchdia.background.PolynomialBackground` (eq 18, 19): one for a level, three
        (level, slope in y, slope in x) for a plane.
    scale : float
        Transparency times exposure time: ADU in this image per ADU of the stars' fluxes.
    shift : (float, float)
        (dx, dy) of the stars [pixels].
    rotation : float
        Of the stars about the middle of the image, from +x towards +y [degrees].
    kernel : ndarray, optional
        K_lm, (ky, kx), odd; the light of the stars is correlated with it (eq 2). Its sum
        multiplies ``scale``.
    exposures : int
        The image is the mean of so many, with their noise.
    cosmic_rays : CosmicRays, optional
    trail : Trail, optional
    """

    psf: PSF
    sky: tuple[float, ...] = (100.0,)
    scale: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)
    rotation: float = 0.0
    kernel: FloatArray | None = field(default=None, repr=False)
    exposures: int = 1
    cosmic_rays: CosmicRays | None = None
    trail: Trail | None = None

    def __post_init__(self) -> None:
        if not self.scale >= 0 or self.exposures < 1:
            raise InputError(
                f"The scale must be at least 0 and there must be an exposure, got {self.scale:g} "
                f"and {self.exposures}."
            )
        kernel = self.kernel
        if kernel is not None and (kernel.ndim != 2 or any(n % 2 == 0 for n in kernel.shape)):
            raise InputError(f"The kernel must have two odd sides, got shape {kernel.shape}.")
        _degree(len(self.sky))

    def matrix(self, shape: tuple[int, int]) -> FloatArray:
        """(2, 3): takes (x, y, 1) of the stars to (x, y) in an image of ``shape`` (h, w)."""
        cos, sin = np.cos(np.radians(self.rotation)), np.sin(np.radians(self.rotation))
        turn = np.array([[cos, -sin], [sin, cos]])
        middle = 0.5 * (np.array([shape[1], shape[0]]) - 1.0)
        return np.column_stack([turn, middle - turn @ middle + self.shift])

    def light(self, stars: Stars, shape: tuple[int, int]) -> FloatArray:
        """The stars' part of the noiseless image [ADU], (h, w)."""
        moved = stars.moved(self.matrix(shape))
        if self.kernel is None:
            return self.scale * render(self.psf, moved, shape)
        n_y, n_x = (n // 2 for n in self.kernel.shape)
        wide = shape[0] + 2 * n_y, shape[1] + 2 * n_x
        image = render(self.psf, moved.shifted(n_x, n_y), wide)
        light: FloatArray = fftconvolve(image, self.scale * self.kernel[::-1, ::-1], mode="valid")
        return light

    def sky_image(self, shape: tuple[int, int]) -> FloatArray:
        """[ADU], (h, w)."""
        background = PolynomialBackground(_degree(len(self.sky)))
        image = background.image(torch.tensor(self.sky, dtype=torch.float64), shape)
        return np.asarray(image.numpy())


@dataclass(frozen=True)
class Exposure:
    """An image and the truth about it.

    Attributes
    ----------
    image, noiseless : ndarray
        [ADU], (h, w). The noiseless one has the stars, the sky, the trail and the losses of bad
        columns; no cosmic rays, and no saturation.
    defects : ndarray of int
        (h, w), bits of :class:`~pytorchdia.simulate.Defect`; 0 is good.
    conditions : Conditions
    camera : Camera
    """

    image: FloatArray
    noiseless: FloatArray
    defects: NDArray[np.int16]
    conditions: Conditions
    camera: Camera

    @property
    def sigma(self) -> FloatArray:
        """Standard deviation of the noise [ADU] (eq 6)."""
        return self.camera.sigma(self.noiseless, self.conditions.exposures)

    @property
    def mask(self) -> BoolArray:
        """What an observer knows: True in bad columns."""
        return self.where(Defect.BAD_COLUMN)

    def where(self, defect: Defect) -> BoolArray:
        """True at the pixels with any bit of ``defect``."""
        found: BoolArray = (self.defects & int(defect)) != 0
        return found


def expose(
    rng: np.random.Generator,
    stars: Stars,
    shape: tuple[int, int],
    conditions: Conditions,
    camera: Camera | None = None,
) -> Exposure:
    """One exposure of ``stars``, whose places are those of an unmoved image.

    Parameters
    ----------
    rng : numpy.random.Generator
    stars : Stars
        They may lie outside the image.
    shape : (int, int)
        (h, w).
    conditions : Conditions
    camera : Camera, optional
        That of section 3.1 (gain 1, read noise 5 e-, nothing saturates) if absent.
    """
    camera = Camera() if camera is None else camera
    response = camera.response(shape)
    noiseless = conditions.light(stars, shape) + conditions.sky_image(shape)
    defects = np.zeros(shape, dtype=np.int16)
    if conditions.trail is not None:
        trail = conditions.trail.light(shape)
        noiseless += trail
        defects[trail > 0] |= Defect.TRAIL
    noiseless *= response
    rays = CosmicRays() if conditions.cosmic_rays is None else conditions.cosmic_rays
    hits = rays.hits(rng, shape)
    image, bled = camera.read_out(rng, noiseless, hits, conditions.exposures)
    defects[hits > 0] |= Defect.COSMIC_RAY
    defects[image >= camera.saturation] |= Defect.SATURATED
    defects[bled] |= Defect.BLED
    defects[:, list(camera.bad_columns)] |= Defect.BAD_COLUMN
    defects[:, list(camera.hidden_columns)] |= Defect.HIDDEN_COLUMN
    return Exposure(image, noiseless, defects, conditions, camera)


@dataclass(frozen=True)
class ExposedPair:
    """A reference and a target of one field, and what changed between them.

    Attributes
    ----------
    target, reference : Exposure
    stars : Stars
        As the reference saw them.
    changes : Stars
        Changes of flux from the reference to the target, on the scale of the stars' fluxes, at
        the places of ``stars``; negative where a star faded.
    """

    target: Exposure
    reference: Exposure
    stars: Stars
    changes: Stars

    @property
    def scale(self) -> float:
        """P (eq 3)."""
        target, reference = (
            e.conditions.scale * (1.0 if e.conditions.kernel is None else e.conditions.kernel.sum())
            for e in (self.target, self.reference)
        )
        return float(target / reference)


def expose_pair(
    seed: int | np.random.Generator,
    stars: Stars,
    shape: tuple[int, int],
    *,
    target: Conditions,
    reference: Conditions,
    camera: Camera | None = None,
    changes: Stars | None = None,
) -> ExposedPair:
    """Two exposures of one field with one camera.

    Parameters
    ----------
    seed : int or numpy.random.Generator
    stars : Stars
    shape : (int, int)
        (h, w).
    target, reference : Conditions
        For a known kernel K, give both the same PSF and the target ``kernel=K``.
    camera : Camera, optional
        As for :func:`expose`.
    changes : Stars, optional
        Flux that the target has more than the reference: at a star for a variable, elsewhere for
        a new one. None if absent.
    """
    rng = np.random.default_rng(seed)
    none = np.zeros(0)
    changes = Stars(none, none, none) if changes is None else changes
    before = expose(rng, stars, shape, reference, camera)
    after = expose(rng, stars.joined(changes), shape, target, camera)
    return ExposedPair(after, before, stars, changes)


def _degree(n: int) -> int:
    """The degree of a polynomial of ``n`` coefficients."""
    for degree in range(n):
        if PolynomialBackground(degree).n_params == n:
            return degree
    raise InputError(
        f"A polynomial sky has 1, 3, 6, 10, ... coefficients (eq 18), but {n} were given."
    )
