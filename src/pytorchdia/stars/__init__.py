"""The stars and their light: the catalogue, the PSF, and the fluxes of all stars of a frame."""

from .catalogue import Catalogue, StarFlag, catalogue_from_list, find_stars
from .photometry import (
    FluxFlag,
    find_hidden_stars,
    measure_fluxes,
    reference_fluxes,
    refine_positions,
    target_variance,
)
from .psf import PSFModel
from .psf_fit import fit_psf

__all__ = [
    "Catalogue",
    "FluxFlag",
    "PSFModel",
    "StarFlag",
    "catalogue_from_list",
    "find_hidden_stars",
    "find_stars",
    "fit_psf",
    "measure_fluxes",
    "reference_fluxes",
    "refine_positions",
    "target_variance",
]
