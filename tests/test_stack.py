"""Stacks of pairs: each result is that of a call for its pair alone."""

import dataclasses

import numpy as np
import pytest
import torch

from pytorchdia import (
    AdamLBFGS,
    CCDNoise,
    DeltaKernel,
    FixedVariance,
    Huber,
    InputError,
    Newton,
    NormalEquations,
    PolynomialBackground,
    StudentT,
    Subtraction,
    SubtractionStack,
    as_frame,
    subtract,
)
from pytorchdia.errors import FlatImageError, NoiseModelError, ShapeError
from pytorchdia.memory import parse_memory, plan_memory
from pytorchdia.simulate import simulate_pair

NOISE = CCDNoise(5.0)
OPTIONS = {"kernel": DeltaKernel((5, 7)), "noise": NOISE, "reference_noise": FixedVariance(1e-12)}


@pytest.fixture(scope="module")
def pairs():
    return [simulate_pair(70 + i, (60, 66)) for i in range(6)]


def stacks(pairs, shape):
    targets = np.array([p.target for p in pairs]).reshape(*shape, 60, 66)
    references = np.array([p.reference for p in pairs]).reshape(*shape, 60, 66)
    return targets, references


def assert_same(one, other, exact=1e-7):
    assert one.status is other.status
    assert one.scale == pytest.approx(other.scale, abs=exact)
    assert one.scale_error == pytest.approx(other.scale_error, rel=1e-4)
    np.testing.assert_allclose(one.kernel, other.kernel, atol=1e-5)
    np.testing.assert_allclose(one.difference, other.difference, atol=2e-2)
    np.testing.assert_allclose(one.variance, other.variance, rtol=1e-4)
    np.testing.assert_array_equal(one.flags, other.flags)


@pytest.mark.parametrize("likelihood", [Huber(), StudentT()], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_stack_returns_what_a_loop_would(pairs, likelihood, dtype):
    targets, references = stacks(pairs, (2, 3))
    options = {**OPTIONS, "likelihood": likelihood, "dtype": dtype,
               "background": PolynomialBackground(1)}  # fmt: skip
    result = subtract(targets, references, **options)
    assert isinstance(result, SubtractionStack)
    assert result.shape == (2, 3)
    assert result.difference.shape == (2, 3, 60, 66)
    assert result.kernel.shape == (2, 3, 5, 7)
    assert result.converged.all()
    for i in range(2):
        for j in range(3):
            assert_same(result[i, j], subtract(targets[i, j], references[i, j], **options))
            assert result.scale[i, j] == result[i, j].scale


def test_one_reference_serves_many_targets(pairs):
    targets, references = stacks(pairs, (6,))
    targets = references[0] * np.linspace(0.5, 2.0, 6)[:, None, None] + targets * 0.01
    result = subtract(targets, references[0], **OPTIONS)
    assert result.shape == (6,)
    for target, item in zip(targets, result, strict=True):
        assert isinstance(item, Subtraction)
        assert_same(item, subtract(target, references[0], **OPTIONS))
    swapped = subtract(targets[0], references[:2], **OPTIONS)
    assert_same(swapped[1], subtract(targets[0], references[1], **OPTIONS))


def test_each_pair_keeps_its_own_mask_noise_and_bad_pixels(pairs):
    targets, references = stacks(pairs, (6,))
    targets, references = targets.copy(), references.copy()
    targets[2, 30, 30] = np.nan
    references[3, 20, 40] = np.nan
    mask = np.zeros(targets.shape, bool)
    mask[1, 10:14, 20:30] = True
    variance = np.array([p.target_sigma**2 for p in pairs])
    options = {**OPTIONS, "noise": FixedVariance(variance)}
    result = subtract(targets, references, mask=mask, **options)
    for i, item in enumerate(result):
        alone = subtract(
            targets[i], references[i], mask=mask[i],
            **{**options, "noise": FixedVariance(variance[i])},
        )  # fmt: skip
        assert_same(item, alone)
    assert np.isfinite(result.difference).all()


def test_frames_with_noise_of_their_own_are_fitted_side_by_side(pairs):
    frames = [
        as_frame(p.target, gain=1.0 + i, read_noise=5.0, saturation=np.inf)
        for i, p in enumerate(pairs[:3])
    ]
    references = [p.reference for p in pairs[:3]]
    options = {k: v for k, v in OPTIONS.items() if k != "noise"}
    result = subtract(frames, references, **options)
    for frame, reference, item in zip(frames, references, result, strict=True):
        assert_same(item, subtract(frame, reference, **options))


@pytest.mark.parametrize("solver", [NormalEquations(), AdamLBFGS()], ids=["b08", "adam"])
def test_other_solvers_take_stacks_too(pairs, solver):
    targets, references = stacks(pairs[:2], (2,))
    result = subtract(targets, references, solver=solver, dtype=torch.float64, **OPTIONS)
    alone = subtract(targets[1], references[1], solver=solver, dtype=torch.float64, **OPTIONS)
    assert result[1].scale == pytest.approx(alone.scale, abs=1e-9)


def test_a_hard_pair_does_not_spoil_its_neighbours(pairs):
    hard = simulate_pair(21, (60, 66), phi_r=4.0, phi_k=1.0, reference_noise=0.0)
    targets, references = stacks(pairs, (6,))
    targets, references = targets.copy(), references.copy()
    targets[2], references[2] = hard.target, hard.reference
    options = {**OPTIONS, "kernel": DeltaKernel(15), "penalty": None}
    result = subtract(targets, references, **options)
    assert "jitter" in [f.code for f in result[2].findings]
    for i in (0, 1, 3):
        assert "jitter" not in [f.code for f in result[i].findings]
        assert_same(result[i], subtract(targets[i], references[i], **options))


def test_what_does_not_go_together_is_refused(pairs):
    targets, references = stacks(pairs, (6,))
    with pytest.raises(ShapeError, match=r"stack of \(6,\) targets and one of \(2,\) references"):
        subtract(targets, references[:2], **OPTIONS)
    with pytest.raises(ShapeError, match=r"mask has shape \(2, 60, 66\) but the stack holds"):
        subtract(targets, references, mask=np.zeros((2, 60, 66)), **OPTIONS)
    with pytest.raises(ShapeError, match="noise model"):
        subtract(targets, references, **{**OPTIONS, "noise": FixedVariance(np.ones((2, 60, 66)))})
    with pytest.raises(NoiseModelError, match=r"shape \(9, 9\)"):
        subtract(targets[0], references[0], **{**OPTIONS, "noise": FixedVariance(np.ones((9, 9)))})
    with pytest.raises(ShapeError, match="is empty"):
        subtract(np.zeros((0, 60, 66)), references[0], **OPTIONS)
    constant = targets.copy()
    constant[4] = 7.0
    with pytest.raises(FlatImageError, match=r"Pair 4 of the stack: The target .* is constant"):
        subtract(constant, references, **OPTIONS)


def test_arrays_are_shared_but_never_written_to(pairs):
    targets, references = (a.astype(np.float32) for a in stacks(pairs, (6,)))
    targets[0, 5, 5] = np.nan
    before = targets.copy(), references.copy()
    subtract(targets, references, **OPTIONS)
    np.testing.assert_array_equal(targets, before[0])
    np.testing.assert_array_equal(references, before[1])


@pytest.mark.parametrize("limit", ["145MB", "2GB", 150e6])
def test_a_limit_of_memory_changes_nothing_but_the_plan(limit):
    pair = simulate_pair(80, (300, 330))
    options = {**OPTIONS, "kernel": DeltaKernel(9)}
    free = subtract(pair.target, pair.reference, **options)
    limited = subtract(pair.target, pair.reference, max_memory=limit, **options)
    assert_same(limited, free)


def test_the_plan_gives_up_transforms_first_and_then_the_place_of_the_images():
    shape, gpu = (4000, 4000), torch.device("cuda")
    plenty = plan_memory(shape, torch.float32, gpu, 2**40)
    assert plenty.images_on_device
    assert plenty.keep >= 6 * 16_000_000
    less = plan_memory(shape, torch.float32, gpu, 700_000_000)
    assert less.images_on_device
    assert less.keep < plenty.keep
    least = plan_memory(shape, torch.float32, gpu, 420_000_000)
    assert not least.images_on_device
    with pytest.raises(InputError, match="needs at least"):
        plan_memory(shape, torch.float32, gpu, 100_000_000)
    assert plan_memory((142, 142), torch.float32, torch.device("cpu"), None).pairs > 10


def test_sizes_of_memory_are_read_as_people_write_them():
    assert parse_memory(None) is None
    assert parse_memory("4GB") == parse_memory("4 GiB") == 4 * 2**30
    assert parse_memory("500m") == 500 * 2**20
    assert parse_memory(1e9) == 10**9
    for wrong in ("much", "-1GB", 0, "4 QB", float("nan")):
        with pytest.raises(InputError, match="not understood"):
            parse_memory(wrong)


def test_steps_of_a_stack_are_reported(pairs):
    targets, references = stacks(pairs, (6,))
    steps = []
    subtract(targets, references, on_step=steps.append, **OPTIONS)
    assert len(steps) >= 2
    assert all(np.isfinite(s.loss) for s in steps)


def test_a_stack_stops_within_its_steps_with_a_status(pairs):
    targets, references = stacks(pairs[:2], (2,))
    with pytest.warns(UserWarning, match="ran out of steps"):
        result = subtract(targets, references, solver=Newton(max_steps=1), penalty=None, **OPTIONS)
    assert not result.converged.any()
    assert dataclasses.asdict(result[0].diagnostics)["steps"] == 1
