"""Artificial images: the pairs of section 3.1, and exposures with whatever spoils real ones."""

from .camera import Camera, CosmicRays, Defect, Trail, bleed
from .curves import Eclipse, LightCurveModel, Microlensing, Nova, RRLyrae
from .exposures import Conditions, ExposedPair, Exposure, expose, expose_pair
from .kernels import elliptical_kernel, odd_kernels
from .pairs import (
    READ_NOISE,
    SimulatedPair,
    simulate_pair,
    simulate_pairs,
    simulate_with_kernel,
)
from .psf import PSF, ArrayPSF, GaussianPSF, MoffatPSF, render, render_gaussian, render_moffat
from .stars import Reading, Stars, draw_stars

__all__ = [
    "PSF",
    "READ_NOISE",
    "ArrayPSF",
    "Camera",
    "Conditions",
    "CosmicRays",
    "Defect",
    "Eclipse",
    "ExposedPair",
    "Exposure",
    "GaussianPSF",
    "LightCurveModel",
    "Microlensing",
    "MoffatPSF",
    "Nova",
    "RRLyrae",
    "Reading",
    "SimulatedPair",
    "Stars",
    "Trail",
    "bleed",
    "draw_stars",
    "elliptical_kernel",
    "expose",
    "expose_pair",
    "odd_kernels",
    "render",
    "render_gaussian",
    "render_moffat",
    "simulate_pair",
    "simulate_pairs",
    "simulate_with_kernel",
]
