"""What every solver takes and returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch

from ..arrays import Kernel, Mask, Params, Tiled
from ..errors import Finding, Status
from ..kernel import gaussian_kernel
from ..linalg import Factor
from ..metrics import sample
from ..objective import Objective

__all__ = [
    "OnStep",
    "Solution",
    "Solver",
    "Step",
    "System",
    "flat_start",
    "gaussian_start",
    "kernel_start",
    "start_with",
]


@dataclass(frozen=True)
class Step:
    """Where a solver stands, for progress displays."""

    number: int
    loss: float
    goal: str


OnStep = Callable[[Step], None]


@dataclass(frozen=True)
class System:
    """The Hessian at a solution, as a solver without the matrix knows it.

    Attributes
    ----------
    curvature : Tiled
        h of each pixel.
    factor : Factor
        A preconditioner for A' diag(h) A.
    """

    curvature: Tiled
    factor: Factor


@dataclass(frozen=True)
class Solution:
    """The best point that a solver found.

    Attributes
    ----------
    theta : Params
        Kernel coefficients, then background coefficients; float64.
    status : Status
    loss : float
        The objective at ``theta``.
    steps : int
        Solver steps taken.
    evaluations : int
        Number of times that the model image was computed.
    decrement : float or None
        Newton decrement: the drop of the loss that a full Newton step still predicts, at the last
        point where it was computed. None for solvers that do not know it.
    clipped : Mask or None
        Pixels rejected by sigma clipping.
    findings : tuple of Finding
    system : System or None
        What the error bars can use again.
    """

    theta: Params
    status: Status
    loss: float
    steps: int
    evaluations: int
    decrement: float | None = None
    clipped: Mask | None = None
    findings: tuple[Finding, ...] = ()
    system: System | None = field(default=None, repr=False)


class Solver(ABC):
    """Base of all solvers."""

    @abstractmethod
    def solve(
        self, objective: Objective, theta0: Params | None = None, on_step: OnStep | None = None
    ) -> Solution:
        """Minimise ``objective`` from ``theta0`` (a flat kernel if None).

        Never raises for a fit that goes wrong: the status says how it ended.
        """

    def on_the_way(self) -> Solver:
        """The solver of a fit that is followed by one under a prior; here this one itself."""
        return self

    def solve_all(
        self, objective: Objective, theta0: Params | None = None, on_step: OnStep | None = None
    ) -> list[Solution]:
        """:meth:`solve` for one pair, :meth:`solve_stack` for several; ``theta0`` is (pairs, p)."""
        if objective.target.ndim > 2:
            return self.solve_stack(objective, theta0, on_step)
        return [self.solve(objective, None if theta0 is None else theta0[0], on_step)]

    def solve_stack(
        self, objective: Objective, theta0: Params | None = None, on_step: OnStep | None = None
    ) -> list[Solution]:
        """Minimise the objective of each pair of a stack; here one after the other.

        ``theta0`` is (pairs, p).
        """
        starts = [None] * len(objective.target) if theta0 is None else list(theta0)
        return [self.solve(objective[i], start, on_step) for i, start in enumerate(starts)]


def flat_start(objective: Objective) -> Params:
    """All kernel pixels 1/N_K, and B_0 the median of the target (section 2.9), (..., p)."""
    shape = objective.model.kernel.shape
    kernel = torch.full(shape, 1.0 / (shape[0] * shape[1]), dtype=torch.float64)
    return kernel_start(objective, kernel)


def gaussian_start(objective: Objective, sigma: float) -> Params:
    """A round Gaussian kernel of unit sum and width ``sigma`` [pixels] (section 2.9)."""
    return kernel_start(objective, gaussian_kernel(objective.model.kernel.shape, sigma))


def kernel_start(objective: Objective, kernel: Kernel) -> Params:
    """A given kernel K, and B_0 the median of the target, (..., p)."""
    device = objective.model.device
    used = torch.where(objective.use, objective.target, torch.nan)
    level = sample(used).flatten(-2).nanmedian(dim=-1).values.to(device, torch.float64)
    start = _without_background(objective, kernel)
    start[..., objective.model.kernel.n_params] = level.nan_to_num(nan=0.0)
    return start


def start_with(objective: Objective, kernel: Kernel) -> Params:
    """A given kernel K, and the background that suits it best by least squares, (..., p)."""
    start = _without_background(objective, kernel)
    n_b = objective.model.background.n_params
    weights, projected = objective.weighted_target()
    unit = torch.eye(start.shape[-1], dtype=start.dtype, device=start.device)[-n_b:]
    product = partial(objective.hessian_product, weights)
    normal = torch.stack([product(row.expand_as(start))[..., -n_b:] for row in unit], dim=-1)
    left = (projected - product(start))[..., -n_b:]
    start[..., -n_b:] = torch.linalg.solve(normal, left)
    return start


def _without_background(objective: Objective, kernel: Kernel) -> Params:
    """A given kernel for each pair, and a background of 0, (..., p)."""
    model, lead = objective.model, objective.target.shape[:-2]
    coefficients = model.kernel.coefficients(kernel.to(model.device, torch.float64))
    background = coefficients.new_zeros(*lead, model.background.n_params)
    return torch.cat([coefficients.expand(*lead, -1), background], dim=-1)


def singular_finding(jitter: float) -> Finding:
    """What to say when ``jitter`` times its diagonal had to be added to the normal matrix."""
    return Finding(
        "jitter",
        f"The normal matrix is singular to working precision; a ridge of {jitter:.0e} of its "
        "diagonal was added. The data do not determine every kernel pixel (the reference holds "
        "nothing at high frequencies, or the kernel box is too large): single pixels and their "
        "errors mean little, though P and the difference do. Try a smaller kernel or a penalty.",
        "warning",
    )
