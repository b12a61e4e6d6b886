"""A small crowded field and its epochs, with truth, for the tests of stars and photometry."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from pytorchdia.frame import Frame
from pytorchdia.io import as_frame
from pytorchdia.simulate import Stars, render_moffat
from pytorchdia.stars.catalogue import Catalogue, find_stars
from pytorchdia.stars.photometry import refine_positions
from pytorchdia.stars.psf import PSFModel, tabulated
from pytorchdia.stars.psf_fit import fit_psf

SHAPE = (160, 180)
GAIN, READ_NOISE = 1.5, 4.0  # e-/ADU, ADU
REFERENCE_PSF = {"fwhm": 3.2, "ellipticity": 0.15, "angle": 25.0, "beta": 3.5}


@dataclass(frozen=True)
class Field:
    """The stars of a reference of eight frames, and what was learnt from it."""

    stars: Stars
    frame: Frame
    catalogue: Catalogue
    psf: PSFModel


def noise_variance(clean: NDArray[np.float64]) -> NDArray[np.float64]:
    return READ_NOISE**2 + clean / GAIN


def moffat_psf(fwhm: float, beta: float = 3.0) -> PSFModel:
    """A round Moffat profile."""
    alpha = fwhm / (2.0 * np.sqrt(2.0 ** (1.0 / beta) - 1.0))
    return tabulated(lambda dx, dy: (1.0 + (dx**2 + dy**2) / alpha**2) ** -beta, fwhm, 4.0)


def grid_of_stars(seed: int, spacing: int = 18) -> Stars:
    """Stars over five magnitudes, each near a node of a grid, so that none hides another."""
    rng = np.random.default_rng(seed)
    y, x = (a.ravel() for a in np.mgrid[14 : SHAPE[0] - 13 : spacing, 14 : SHAPE[1] - 13 : spacing])
    flux = 10 ** rng.permutation(np.linspace(3.2, 5.2, len(x)))
    return Stars(x + rng.uniform(-3, 3, len(x)), y + rng.uniform(-3, 3, len(x)), flux)


@cache
def make_field(seed: int = 3) -> Field:
    rng = np.random.default_rng([seed, 1])
    stars = grid_of_stars(seed)
    clean = render_moffat(stars, SHAPE, **REFERENCE_PSF) + 300.0
    variance = noise_variance(clean) / 8.0
    data = clean + rng.standard_normal(SHAPE) * np.sqrt(variance)
    frame = as_frame(data, variance=variance, saturation=np.inf)
    catalogue = find_stars(frame)
    psf = fit_psf(frame, catalogue)
    return Field(stars, frame, refine_positions(frame, psf, catalogue), psf)


def matched(catalogue: Catalogue, stars: Stars) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """For each star of the truth the nearest of the catalogue, and its distance."""
    distance = np.hypot(catalogue.x[:, None] - stars.x, catalogue.y[:, None] - stars.y)
    return distance.argmin(axis=0), distance.min(axis=0)
