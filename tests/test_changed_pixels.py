"""What has changed takes no part in the fit of the kernel."""

from __future__ import annotations

import numpy as np

import pytorchdia as dia
from pytorchdia.changes.changed_pixels import changed_sources, footprints
from pytorchdia.changes.detections import Detections, reference_light
from pytorchdia.frame import Flag
from pytorchdia.io import as_frame
from pytorchdia.simulate import Stars, render_moffat
from pytorchdia.stars.photometry import measure_fluxes
from pytorchdia.stars.psf import gaussian_psf

from .season_field import REFERENCE_PSF, SHAPE, make_field, noise_variance

FWHM = 3.0


def detections(x, y, flux) -> Detections:
    x, y, flux = (np.asarray(v, dtype=np.float64) for v in (x, y, flux))
    error = np.ones(len(x))
    return Detections(x, y, flux, error, flux, np.zeros(len(x), dtype=np.int64))


def test_footprints_are_the_pixels_where_the_light_exceeds_a_third_of_the_noise() -> None:
    rng = np.random.default_rng(2)
    variance = rng.uniform(50.0, 150.0, (40, 50))
    variance[10, 12] = np.inf  # no data is never a footprint
    psf = gaussian_psf(FWHM)
    x, y, flux = [12.3, -1.0, 48.8, 30.0], [9.6, 20.2, 39.4, 25.5], [900.0, -4000.0, 3e4, 20.0]
    hit = footprints(detections(x, y, flux), variance, psf)
    expected = np.zeros((40, 50), bool)
    for a, b, f in zip(x, y, flux, strict=True):
        whole = np.zeros((40 + 200, 50 + 200))
        stamp, half = psf.stamps([a], [b])[0], psf.half
        iy, ix = round(b) + 100, round(a) + 100
        whole[iy - half : iy + half + 1, ix - half : ix + half + 1] = abs(f) * stamp
        expected |= whole[100:140, 100:150] > 0.3 * np.sqrt(variance)
    np.testing.assert_array_equal(hit, expected)
    assert hit[20, 0]
    assert not hit[10, 12]
    assert not footprints(detections([], [], []), variance, psf).any()


def test_a_bright_variable_keeps_its_change_where_it_takes_no_part() -> None:
    """The brightest star of a field decides on P for a good part, and then loses of its change."""
    field = make_field()
    bright = int(field.stars.flux.argmax())
    seen = {**REFERENCE_PSF, "fwhm": 4.0}
    ratios = {"all": [], "left out": []}
    for seed in range(4):
        rng = np.random.default_rng([9, seed])
        flux = field.stars.flux.copy()
        change = (0.15 if seed % 2 else -0.15) * flux[bright]
        flux[bright] += change
        clean = render_moffat(Stars(field.stars.x, field.stars.y, flux), SHAPE, **seen) + 300.0
        variance = noise_variance(clean)
        data = clean + rng.standard_normal(SHAPE) * np.sqrt(variance)
        target = as_frame(data, variance=variance, saturation=np.inf)

        def fit(frame, prior="default"):
            given = {} if prior == "default" else {"penalty": prior}
            return dia.subtract(
                frame, field.frame, kernel=dia.DeltaKernel(13), likelihood=dia.Huber(),
                covariance=False, **given,
            )  # fmt: skip

        first = fit(target, None)
        psf = field.psf.convolved(first.kernel)
        scaled = first.difference / first.scale, first.variance / first.scale**2
        light = reference_light(field.frame, field.psf)
        found = changed_sources(*scaled, first.flags, psf, light)
        apart = np.hypot(found.x - field.stars.x[bright], found.y - field.stars.y[bright])
        assert (apart < 1.0).sum() == 1
        assert len(found) <= 2
        hit = footprints(found, scaled[1], psf) & (first.flags == 0)
        flags = target.flags.numpy() | np.where(hit, int(Flag.CHANGED), 0).astype(np.int16)
        for name, frame in (("all", target), ("left out", flagged(target, flags))):
            result = fit(frame)
            if name == "left out":
                assert np.isfinite(result.variance[hit]).all()
                assert (result.flags[hit] == Flag.CHANGED).all()
            measured = measure_fluxes(
                result.difference, result.variance, result.flags,
                field.psf.convolved(result.kernel), field.stars.x, field.stars.y,
                scale=result.scale,
            )  # fmt: skip
            ratios[name].append(measured.flux[bright] / change)
    assert abs(np.mean(ratios["left out"]) - 1.0) < 0.02
    assert np.mean(ratios["all"]) < np.mean(ratios["left out"]) - 0.02


def flagged(frame, flags):
    from dataclasses import replace

    import torch

    return replace(frame, flags=torch.from_numpy(flags))
