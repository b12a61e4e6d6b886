"""What Table 2 can be rerun on: the paper's pairs, and harder ones of which the truth is known."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import correlate

from ..likelihood import Gaussian, Huber, Likelihood, StudentT
from ..noise import CCDNoise
from ..prior import GaussianProcessPrior
from ..simulate import (
    READ_NOISE,
    Reading,
    SimulatedPair,
    Stars,
    render_gaussian,
    simulate_pair,
    simulate_with_kernel,
)
from ..solvers import Newton, NormalEquations, Solver

__all__ = ["METHODS", "PAPER_SCENARIO", "SCENARIOS", "Case", "Method", "Scenario", "ScenarioName"]

FloatArray = NDArray[np.float64]


class ScenarioName(enum.StrEnum):
    """Scenarios by name."""

    PAPER = "paper"
    TEXT = "text"
    COVERAGE = "coverage"
    FAINT = "faint"
    BRIGHT = "bright"
    ASYMMETRIC = "asymmetric"
    LARGE_BOX = "large-box"
    COSMIC_RAYS = "cosmic-rays"
    REAL_FRAME = "real-frame"


@dataclass(frozen=True)
class Method:
    """One way to fit.

    ``against`` names the method without a prior that this one is to be compared with, pair by pair.
    """

    name: str
    label: str
    likelihood: Likelihood = field(default_factory=Gaussian)
    penalty: GaussianProcessPrior | None = None
    solver: Solver = field(default_factory=Newton)
    against: str | None = None


B08 = Method("b08", "B08", solver=NormalEquations(3, matrix_free=True))
PLAIN = Method("plain", "plain fit (the paper's loss)")
PRIOR = Method("prior", "prior by the evidence", penalty=GaussianProcessPrior(), against="plain")
METHODS = (B08, PLAIN, PRIOR)
"""Iterated least squares; maximum likelihood, every pixel free; the prior found by the evidence."""

ROBUST = (
    Method(
        "b08-clip",
        "B08, clipped at 5 sigma",
        solver=NormalEquations(5, k_sigma=5.0, matrix_free=True),
    ),
    Method("gaussian", "Gaussian"),
    Method("huber", "Huber", Huber(tolerance=0.0)),
    Method("student-t", "Student t", StudentT(tolerance=0.0)),
    Method(
        "huber-prior", "Huber, prior", Huber(tolerance=0.0), GaussianProcessPrior(),
        against="huber",
    ),
    Method(
        "student-t-prior", "Student t, prior", StudentT(tolerance=0.0), GaussianProcessPrior(),
        against="student-t",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A pair with the rest of its truth.

    Attributes
    ----------
    pair : SimulatedPair
    scale : float
        P.
    kernel : ndarray or None
        K_lm with sum P where the target is a correlation with it; None for a Gaussian of width
        ``phi_k``.
    hit : ndarray of bool or None
        Pixels of the target that show something else than the sky, (h, w).
    """

    pair: SimulatedPair
    scale: float = 1.0
    kernel: FloatArray | None = None
    hit: NDArray[np.bool_] | None = None

    def psf(self, star: Stars) -> FloatArray:
        """The image [ADU] of a star in the noiseless target, if P were 1, (h, w)."""
        pair, shape = self.pair, self.pair.target.shape
        if self.kernel is None:
            return render_gaussian(star.shifted(*pair.shift), shape, pair.phi_i)
        image: FloatArray = correlate(
            render_gaussian(star, shape, pair.phi_r), self.kernel / self.scale, mode="constant"
        )
        return image


@dataclass(frozen=True)
class Scenario:
    """What the pairs are, and how they are fitted.

    Attributes
    ----------
    name : str
    about : str
        One sentence.
    case : callable
        From a seed to a :class:`Case`.
    kernel : int
        Side of the fitted box [pixels].
    noise : CCDNoise
        Of the target, known to the fits.
    methods : tuple of Method
    """

    name: str
    about: str
    case: Callable[[int], Case]
    kernel: int = 19
    noise: CCDNoise = field(default_factory=lambda: CCDNoise(READ_NOISE))
    methods: tuple[Method, ...] = METHODS

    @property
    def is_the_papers(self) -> bool:
        """Whether it is section 3.3 itself, with the paper's numbers to be compared with."""
        return self.name == ScenarioName.PAPER


def as_published(seed: int) -> Case:
    """Section 3.1 as the authors' notebook has it, from which the paper's numbers come."""
    return Case(simulate_pair(seed, reading=Reading.NOTEBOOK))


def as_written(seed: int) -> Case:
    """Section 3.1 as its text reads: a sky of its own for the target."""
    return Case(simulate_pair(seed))


def faint(seed: int) -> Case:
    """P = 0.3."""
    return _scaled(simulate_pair(seed), 0.3)


def bright(seed: int) -> Case:
    """P = 3."""
    return _scaled(simulate_pair(seed), 3.0)


def _scaled(pair: SimulatedPair, scale: float) -> Case:
    """The light of the target times ``scale``, with the noise of eq 25 that belongs to it."""
    normal = (pair.target - pair.target_noiseless) / pair.target_sigma
    noiseless = scale * (pair.target_noiseless - pair.sky_i) + pair.sky_i
    sigma = np.sqrt(READ_NOISE**2 + noiseless)
    changed = replace(
        pair, target=noiseless + normal * sigma, target_noiseless=noiseless, target_sigma=sigma
    )
    return Case(changed, scale)


def asymmetric(seed: int) -> Case:
    """A lopsided kernel off the centre, with the width of its main part in place of phi_K."""
    kernel, phi_k = lopsided_kernel(np.random.default_rng([seed, 2]))
    pair = simulate_with_kernel(seed, kernel)
    changed = replace(pair, phi_k=phi_k, phi_i=math.hypot(pair.phi_r, phi_k))
    return Case(changed, kernel=kernel)


def lopsided_kernel(rng: np.random.Generator, size: int = 19) -> tuple[FloatArray, float]:
    """K_lm of sum 1: two Gaussians, and phi_K [pixels], the width of the first.

    Seven tenths of the light lie in a Gaussian of width phi_K from U(0.5, 2.5), up to one pixel
    off the centre in x and y; the rest in one of 0.7 phi_K at a distance of 1.5 phi_K.
    """
    phi_k = float(rng.uniform(0.5, 2.5))
    x, y = rng.uniform(-1.0, 1.0, 2)
    angle = rng.uniform(0.0, 2.0 * np.pi)
    far = 1.5 * phi_k
    centre = size // 2
    kernel = np.zeros((size, size))
    for share, dx, dy, width in (
        (0.7, x, y, phi_k),
        (0.3, x + far * np.cos(angle), y + far * np.sin(angle), 0.7 * phi_k),
    ):
        spot = Stars(np.array([centre + dx]), np.array([centre + dy]), np.ones(1))
        blob = render_gaussian(spot, (size, size), width)
        kernel += share * blob / blob.sum()
    return kernel, phi_k


def sharp(seed: int) -> Case:
    """phi_R and phi_K of one pixel."""
    return Case(simulate_pair(seed, phi_r=1.0, phi_k=1.0))


def with_cosmic_rays(seed: int) -> Case:
    """One pixel in a hundred of the target hit."""
    pair = simulate_pair(seed)
    charge = _cosmic_rays(np.random.default_rng([seed, 3]), pair.target.shape, 0.01)
    return Case(replace(pair, target=pair.target + charge), hit=charge > 0)


def _cosmic_rays(rng: np.random.Generator, shape: tuple[int, int], share: float) -> FloatArray:
    """Charge [ADU], (h, w), of straight tracks that cover at least ``share`` of the pixels.

    Tracks are one pixel wide, their lengths exponential with a mean of 4 pixels; the charge of each
    of their pixels is log-normal about that of its track, which is log-normal with a median of
    400 e- and a scatter of a factor e: from the noise of a dark sky up to a bright star.
    """
    image = np.zeros(shape)
    wanted = math.ceil(share * image.size)
    while np.count_nonzero(image) < wanted:
        length = 1.0 + rng.exponential(3.0)
        angle = rng.uniform(0.0, 2.0 * np.pi)
        along = np.arange(0.0, length, 0.5)
        y = np.round(rng.uniform(0, shape[0]) + along * np.sin(angle)).astype(int)
        x = np.round(rng.uniform(0, shape[1]) + along * np.cos(angle)).astype(int)
        inside = (y >= 0) & (y < shape[0]) & (x >= 0) & (x < shape[1])
        track = np.unique(np.stack([y[inside], x[inside]]), axis=1)
        level = 400.0 * np.exp(rng.standard_normal())
        image[track[0], track[1]] += level * np.exp(0.5 * rng.standard_normal(track.shape[1]))
    return image


PAPER_SCENARIO = Scenario(
    "paper", "Section 3.1 as the numbers of the paper were made.", as_published
)
SCENARIOS = {
    s.name: s
    for s in (
        PAPER_SCENARIO,
        Scenario("text", "Section 3.1 as its text reads.", as_written),
        Scenario(
            "coverage", "Section 3.1 as its text reads, with the error of P.", as_written,
            methods=(PLAIN, PRIOR),
        ),
        Scenario("faint", "The target's light is 0.3 of the reference's (P = 0.3).", faint),
        Scenario("bright", "The target's light is three times the reference's (P = 3).", bright),
        Scenario(
            "asymmetric", "The kernel is lopsided, off the centre, and known exactly.", asymmetric
        ),
        Scenario(
            "large-box", "A box of 31 x 31 pixels for phi_R = phi_K = 1 pixel.", sharp, kernel=31
        ),
        Scenario(
            "cosmic-rays", "Cosmic rays hit 1 % of the target's pixels.", with_cosmic_rays,
            methods=ROBUST,
        ),
    )
}  # fmt: skip
"""All but ``real-frame``, which needs a frame: :func:`~.real_frame.real_frame_scenario`."""
