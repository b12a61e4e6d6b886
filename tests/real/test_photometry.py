"""The SAAO bulge series from stars to candidates: the lens of the event, with its known fluxes."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

import pytorchdia as dia
from pytorchdia.changes.candidates import Kind, merge_detections, stack_detections
from pytorchdia.changes.detections import (
    filter_difference,
    find_in_difference,
    reference_light,
    systematic_share,
)
from pytorchdia.changes.stack import Stack
from pytorchdia.io import as_frame
from pytorchdia.stars.catalogue import find_stars, variance_of
from pytorchdia.stars.photometry import (
    measure_fluxes,
    reference_fluxes,
    refine_positions,
    target_variance,
)
from pytorchdia.stars.psf_fit import fit_psf

from .conftest import DATA
from .test_saao_variable import KNOWN, X, Y

SATURATION = 45000.0  # ADU, the level at which these frames leave linearity
EPOCHS = ["0007", "0026", "0056", "0097", "0103", "0129", "0180"]


def frame(epoch):
    path = DATA / "saao_bulge_series" / "registered" / f"AKB13475I{epoch}_reg.fits.fz"
    return as_frame(path, saturation=SATURATION)


@cache
def season():
    reference = frame("0020")
    catalogue = find_stars(reference)
    psf = fit_psf(reference, catalogue)
    catalogue = refine_positions(reference, psf, catalogue)
    base = reference_fluxes(reference, psf, catalogue)
    light, stack = reference_light(reference, psf), Stack()
    measured, detections = {}, []
    for epoch in EPOCHS:
        got = dia.subtract(
            frame(epoch), reference, background=dia.PolynomialBackground(1),
            likelihood=dia.Huber(1.345), covariance=False,
        )  # fmt: skip
        now = psf.convolved(got.kernel)
        variance = target_variance(got.variance, got.kernel, variance_of(reference))
        fluxes = measure_fluxes(
            got.difference, variance, got.flags, now, catalogue.x, catalogue.y, scale=got.scale
        )
        measured[epoch] = fluxes
        images = got.difference, got.variance, got.flags, now
        filtered = filter_difference(
            *images, scale=got.scale, light=light,
            share=systematic_share(fluxes.flux, fluxes.error, base.flux),
        )  # fmt: skip
        detections.append(find_in_difference(*images, filtered))
        stack.add(filtered)
    candidates = merge_detections(
        detections, stack_detections(stack, psf.fwhm), catalogue, fwhm=psf.fwhm,
        shape=reference.shape,
    )  # fmt: skip
    return catalogue, psf, base, measured, candidates


def lens(catalogue) -> int:
    return int(np.hypot(catalogue.x - X, catalogue.y - Y).argmin())


def test_the_reference_is_described_by_its_psf() -> None:
    catalogue, psf, base, _, _ = season()
    assert psf.n_stars >= 20
    assert psf.findings == ()
    assert 3.5 < psf.fwhm < 4.1  # 3.80 by Gaussian fits to single stars
    assert len(catalogue) > 800
    assert np.median(base.chi_square) < 3.0
    assert np.isfinite(base.flux).all()


@pytest.mark.parametrize("epoch", EPOCHS)
def test_the_lens_has_the_known_flux(epoch) -> None:
    catalogue, _, base, measured, _ = season()
    i = lens(catalogue)
    assert np.hypot(catalogue.x[i] - X, catalogue.y[i] - Y) < 1.0
    flux, error = measured[epoch].flux[i] / 1e3, measured[epoch].error[i] / 1e3
    # The known values are sums over 9 x 9 pixels, which miss the wings: up to a third.
    assert np.sign(flux) == np.sign(KNOWN[epoch])
    assert 0.9 < flux / KNOWN[epoch] < 1.4
    assert abs(flux) > 10 * error
    assert base.flux[i] + measured[epoch].flux[i] > 0  # a star is not darker than the night


def test_the_lens_leads_the_candidates() -> None:
    catalogue, *_, candidates = season()
    places = [np.hypot(c.x - X, c.y - Y) for c in candidates]
    assert int(np.argmin(places)) == 0
    assert candidates[0].kind is Kind.VARIABLE
    assert candidates[0].star == catalogue.id[lens(catalogue)]
    assert set(candidates[0].epochs) >= {3, 4, 6}
    assert candidates[0].in_stack
