"""Artificial images: the pairs of section 3.1, and exposures with whatever spoils real ones."""

from .kernels import elliptical_kernel, odd_kernels
from .pairs import (
    READ_NOISE,
    SimulatedPair,
    simulate_pair,
    simulate_pairs,
    simulate_with_kernel,
)
from .psf import PSF, ArrayPSF, GaussianPSF, MoffatPSF, render, render_gaussian, render_moffat
from .stars import Stars, draw_stars

__all__ = [
    "PSF",
    "READ_NOISE",
    "ArrayPSF",
    "GaussianPSF",
    "MoffatPSF",
    "SimulatedPair",
    "Stars",
    "draw_stars",
    "elliptical_kernel",
    "odd_kernels",
    "render",
    "render_gaussian",
    "render_moffat",
    "simulate_pair",
    "simulate_pairs",
    "simulate_with_kernel",
]
