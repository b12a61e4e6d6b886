"""A frame subtracted region by region: no seams, kernels that follow the field, lost regions."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pytorchdia import CCDNoise, DeltaKernel, Flag, InputError, as_frame, subtract
from pytorchdia.frame import Frame
from pytorchdia.regions import grid_of_regions, subtract_by_regions
from pytorchdia.simulate import Stars, render_gaussian

SHAPE = (90, 160)
KERNEL = DeltaKernel((7, 9))


def field(rng: np.random.Generator, shape: tuple[int, int] = SHAPE) -> Stars:
    n = shape[0] * shape[1] // 90
    return Stars(
        rng.uniform(0, shape[1], n), rng.uniform(0, shape[0], n), 10 ** rng.uniform(3, 4.6, n)
    )


def frames(seed: int = 1, widths: tuple[float, float] = (1.6, 1.6)) -> tuple[Frame, Frame]:
    """A target whose seeing goes from one width on the left half to another on the right."""
    rng = np.random.default_rng(seed)
    stars = field(rng)
    reference = render_gaussian(stars, SHAPE, phi=1.2) + 200.0
    left = stars.x < SHAPE[1] / 2
    clean = 300.0 + sum(
        render_gaussian(Stars(stars.x[k], stars.y[k], stars.flux[k]), SHAPE, phi=phi)
        for k, phi in ((left, widths[0]), (~left, widths[1]))
    )
    target = clean + np.sqrt(clean) * rng.standard_normal(SHAPE)
    return as_frame(target, gain=1.0, read_noise=0.0), as_frame(reference)


@given(
    h=st.integers(40, 400), w=st.integers(40, 400), n=st.integers(1, 5), ny=st.integers(1, 5),
    nx=st.integers(1, 5),
)  # fmt: skip
def test_regions_cover_the_frame_once_with_a_margin(
    h: int, w: int, n: int, ny: int, nx: int
) -> None:
    try:
        regions = grid_of_regions((h, w), (ny, nx), n)
    except InputError:
        assert min(h // n, w // n) <= 2 * max(ny, nx) + 1
        return
    assert len(regions) == n * n
    count = np.zeros((h, w), int)
    sizes = set()
    for region in regions:
        count[region.rows, region.columns] += 1
        for core, whole, size, margin in (
            (region.rows, region.fit_rows, h, ny),
            (region.columns, region.fit_columns, w, nx),
        ):
            assert 0 <= whole.start <= core.start < core.stop <= whole.stop <= size
            assert core.start - whole.start >= margin or whole.start == 0
            assert whole.stop - core.stop >= margin or whole.stop == size
        sizes.add((region.fit_rows.stop - region.fit_rows.start,
                   region.fit_columns.stop - region.fit_columns.start))  # fmt: skip
    assert (count == 1).all()
    assert len(sizes) == 1


def test_the_number_of_regions_follows_the_size() -> None:
    assert len(grid_of_regions((512, 512), (9, 9))) == 1
    assert len(grid_of_regions((1024, 2048), (9, 9))) == 8


def test_one_region_is_the_plain_subtraction() -> None:
    target, reference = frames()
    noise = CCDNoise(0.0, 1.0)
    whole = subtract_by_regions(target, reference, kernel=KERNEL, noise=noise, regions=1)
    plain = subtract(target, reference, kernel=KERNEL, noise=noise, covariance=False)
    np.testing.assert_array_equal(whole.difference, plain.difference)
    np.testing.assert_array_equal(whole.flags, plain.flags)
    assert whole.scale == plain.scale
    assert whole.scale_error == plain.scale_error


def test_regions_start_from_their_own_kernels() -> None:
    target, reference = frames(widths=(1.4, 2.2))
    kernels = []

    def fit(*frames, start=None, **options):
        kernels.append(start)
        return subtract(*frames, start=start, penalty=None, **options)

    noise = CCDNoise(0.0, 1.0)
    match = partial(
        subtract_by_regions, target, reference, kernel=KERNEL, noise=noise, regions=2, fit=fit
    )
    first = match()
    again = match(start=first)
    assert kernels[:4] == [None] * 4
    for start, one, two in zip(kernels[-4:], first.fits, again.fits, strict=True):
        np.testing.assert_array_equal(start, one.kernel)
        np.testing.assert_allclose(two.kernel, one.kernel, atol=1e-4)


def test_regions_follow_a_psf_that_varies_and_leave_no_seam() -> None:
    target, reference = frames(widths=(1.4, 2.2))
    noise = CCDNoise(0.0, 1.0)
    one, many = (
        subtract_by_regions(target, reference, kernel=KERNEL, noise=noise, regions=n)
        for n in (1, 2)
    )
    border = np.ones(SHAPE, bool)
    border[3:-3, 4:-4] = False
    for result in (one, many):
        assert ((result.flags & int(Flag.BORDER)) != 0).tolist() == border.tolist()
        assert np.isinf(result.variance[border]).all()
        assert np.isfinite(result.variance[~border]).all()
    spreads = [float(np.std((r.difference / np.sqrt(r.variance))[~border])) for r in (one, many)]
    assert spreads[1] < 0.8 * spreads[0]
    assert len(many.fits) == 4
    widths = [np.abs(f.kernel).max() / f.kernel.sum() for f in many.fits]
    assert widths[0] > 1.5 * widths[1]  # sharp on the left, wide on the right
    for result in many.fits:
        assert result.scale == pytest.approx(1.0, abs=0.05)


def test_a_region_that_cannot_be_fitted_costs_no_other() -> None:
    target, reference = frames()
    dark = torch.zeros(SHAPE, dtype=torch.bool)
    dark[:, 80:] = True
    lost = subtract_by_regions(
        target.flagged(dark, Flag.MASKED), reference, kernel=KERNEL, noise=CCDNoise(0.0, 1.0),
        regions=2,
    )  # fmt: skip
    assert [fit.region.centre[0] < 80 for fit in lost.fits] == [
        True,
        True,
    ]  # those on the right are lost
    assert sum(f.code == "region-failed" for f in lost.findings) == 2
    assert np.isinf(lost.variance[:, 80:]).all()
    assert (lost.difference[:, 80:] == 0).all()
    assert (lost.flags[:, 80:] != 0).all()
    assert np.isfinite(lost.scale)
    everything = torch.ones(SHAPE, dtype=torch.bool)
    with pytest.raises(InputError):
        subtract_by_regions(target.flagged(everything, Flag.MASKED), reference, kernel=KERNEL)


def test_a_noise_image_is_cut_with_the_region() -> None:
    target, reference = frames()
    flat = torch.ones(SHAPE, dtype=torch.float64)
    flat[:, :80] = 0.5
    plain, flattened = (
        subtract_by_regions(target, reference, kernel=KERNEL, noise=noise, regions=2)
        for noise in (CCDNoise(0.0, 1.0), CCDNoise(0.0, 1.0, flat))
    )
    for columns, expected in ((slice(10, 70), 2.0), (slice(90, -10), 1.0)):
        here = (slice(10, -10), columns)
        ratio = np.median(flattened.variance[here] / plain.variance[here])
        assert ratio == pytest.approx(expected, rel=0.05)


def test_a_variance_is_cut_with_the_region() -> None:
    target, reference = frames()
    variance = torch.full(SHAPE, 400.0, dtype=torch.float64)
    result = subtract_by_regions(
        replace(target, variance=variance), reference, kernel=KERNEL, regions=2
    )
    assert np.isfinite(result.variance[3:-3, 4:-4]).all()
    assert (result.variance[3:-3, 4:-4] >= 400).all()
