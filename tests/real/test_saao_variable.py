"""The microlensing event of the SAAO series: the strongest variable, with its known fluxes."""

import numpy as np
import pytest
from astropy.io import fits
from scipy.ndimage import gaussian_filter, uniform_filter

from .test_every_pair import EPOCHS, PAIRS

X, Y = 256, 252
# Flux relative to frame 20 in a 9 x 9 box, in thousands of frame-20 ADU: a crude aperture reading
# published with the frames.
KNOWN = dict(
    zip(EPOCHS, [-4.6, -4.3, -19, -21, -17, 43.8, 38.3, 22.1, -6.1, -28.0, -32.5], strict=True)
)


def planes(run):
    """Difference, variance and mask on the reference's photometric scale."""
    with fits.open(run.path) as hdus:
        scale = hdus[0].header["DIAP"]
        good = hdus["MASK"].data == 0
        difference = np.where(good, hdus[0].data, 0.0) / scale
        variance = np.where(good, hdus["VARIANCE"].data, 0.0) / scale**2
    return difference, variance, good


@pytest.mark.parametrize("epoch", EPOCHS)
def test_flux_follows_the_known_light_curve(subtract_files, epoch):
    difference, variance, good = planes(subtract_files(*PAIRS[f"saao {epoch}"]))
    box = (slice(Y - 4, Y + 5), slice(X - 4, X + 5))
    assert good[box].all()
    flux, error = difference[box].sum(), np.sqrt(variance[box].sum())
    # "Crude" is taken as 3 %, on top of our own error bar.
    known = 1e3 * KNOWN[epoch]
    assert abs(flux - known) < 0.03 * abs(known) + 3 * error


def test_it_is_the_strongest_variable_source_of_the_series(subtract_files):
    width = 2.0  # pixels, about that of the stars
    total = 0.0
    epochs = 0
    for epoch in EPOCHS:
        difference, variance, good = planes(subtract_files(*PAIRS[f"saao {epoch}"]))
        clean = uniform_filter(good.astype(float), 9) > 0.999
        signal = gaussian_filter(difference, width)
        noise = np.sqrt(gaussian_filter(variance, width) / (4 * np.pi * width**2))
        total = total + np.where(clean, signal / np.where(clean, noise, 1.0), 0.0) ** 2
        epochs = epochs + clean
    total = np.where(epochs >= 8, total, 0.0)
    y, x = np.unravel_index(np.argmax(total), total.shape)
    assert np.hypot(x - X, y - Y) < 2.0
    elsewhere = np.hypot(*(np.indices(total.shape) - np.array([[[Y]], [[X]]]))) > 10
    assert total[y, x] > 2.0 * total[elsewhere].max()
