"""From a fit without a prior to one under a prior whose hyperparameters the data choose.

The fit is repeated in the coefficients of the prior's root F, in which the prior is a unit normal:
``K = F c``. Nothing is inverted that may be singular, and the Hessian is well conditioned.

A reference with noise adds c = sum w sigma_R^2 to the diagonal of the normal matrix H, so that a
kernel K between the noiseless images is seen as A K, A = 1 - H^-1 c (errors in variables). Where
sigma_R is known the prior is that of K: the model image is R (x) A F c, and the kernel F c.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from .arrays import Basis, Image, Matrix, Params, Tiled
from .correlate import Correlator
from .errors import InputError
from .fisher import Uncertainty, with_reference_noise
from .image_model import ImageModel
from .kernel import BasisKernel
from .linalg import factorise
from .objective import Objective
from .penalty import UnitNormal
from .prior import KernelPrior, Posterior
from .solvers import Solution, Solver
from .solvers.base import OnStep

__all__ = [
    "ReferenceVariance",
    "Regularised",
    "attenuation",
    "in_pixels",
    "joined",
    "regularise",
    "uncertainty_in_pixels",
]

ReferenceVariance = Callable[[int, torch.dtype], Image | None]
"""sigma_R^2 [ADU^2] of the i-th pair, (h, w), in a dtype; None if it is not known."""


@dataclass(frozen=True)
class Regularised:
    """Fits under a prior.

    Attributes
    ----------
    objective : Objective
        In the coefficients of the priors' roots, of one pair or of a stack.
    solutions : list of Solution
        Likewise.
    priors : list of KernelPrior
        With their hyperparameters.
    n_effective : list of float
        Parameters that the data, not the prior, determine: the trace of 1 - (1 + F' H F)^-1 over
        the kernel (MacKay 1992), plus the background's.
    """

    objective: Objective
    solutions: list[Solution]
    priors: list[KernelPrior]
    n_effective: list[float]


def regularise(
    objective: Objective,
    solutions: list[Solution],
    prior: KernelPrior,
    solver: Solver,
    on_step: OnStep | None = None,
    reference_variance: ReferenceVariance | None = None,
) -> Regularised:
    """Fit again under ``prior``, its free hyperparameters chosen by the evidence.

    Parameters
    ----------
    objective : Objective
        Of one pair, (h, w), or of a stack, (pairs, h, w), with a kernel of free pixels.
    solutions : list of Solution
        Without a prior, one for each pair.
    prior : KernelPrior
    solver : Solver
    on_step : callable, optional
    reference_variance : callable, optional
    """
    model, alone = objective.model, objective.target.ndim == 2
    device = model.device
    priors, roots, seen, starts, effective = [], [], [], [], []
    for i, solution in enumerate(solutions):
        sigma2 = None
        if reference_variance and prior.noisy_reference:
            sigma2 = reference_variance(i, torch.float64)
        given = _quadratic(objective.pair(i), solution, sigma2)
        found = prior.found(given.information, given.kernel, model.kernel, given.projected)
        root = found.root(model.kernel)
        start, n_effective = given.under(root)
        if solution.system is not None:
            solution.system.curvature.clear()  # its memory is needed
        priors.append(found)
        roots.append(root)
        seen.append(given.seen(root))
        starts.append(start)
        effective.append(n_effective)
    rank = max(root.shape[1] for root in roots)
    pad = torch.nn.functional.pad
    n_b = model.background.n_params
    starts = [
        torch.cat([pad(start[:-n_b], (0, rank + n_b - len(start))), start[-n_b:]])
        for start in starts
    ]
    noisy = any(shown is not root for shown, root in zip(seen, roots, strict=True))
    true, basis = (
        torch.stack([pad(root, (0, rank - root.shape[1])) for root in each]).to(device)
        for each in (roots, seen)
    )
    theta0 = torch.stack(starts).to(device)
    kernel = BasisKernel(model.kernel.shape, basis, true if noisy else None)
    kernel = kernel.item(0) if alone else kernel
    clipped = [solution.clipped for solution in solutions]
    use = objective.use
    if any(each is not None for each in clipped):
        none = torch.zeros_like(use if alone else use[0])
        rejected = [none if each is None else each for each in clipped]
        use = use & ~(rejected[0] if alone else torch.stack(rejected))
    inner = replace(objective, model=model.with_kernel(kernel), penalty=UnitNormal(), use=use)
    fitted = solver.solve_all(inner, theta0, on_step)
    fitted = [joined(before, after) for before, after in zip(solutions, fitted, strict=True)]
    return Regularised(inner, fitted, priors, effective)


def joined(before: Solution, after: Solution) -> Solution:
    """The second fit with what should be known of the first."""
    clipped = before.clipped
    if clipped is not None and after.clipped is not None:
        clipped = clipped | after.clipped
    seen = {finding.code for finding in after.findings}
    return replace(
        after,
        steps=before.steps + after.steps,
        evaluations=before.evaluations + after.evaluations,
        clipped=after.clipped if clipped is None else clipped,
        findings=after.findings
        + tuple(f for f in before.findings if f.code not in seen and f.code in _STILL_TRUE),
    )


_EXACT = 2**18  # pixels of frames for which the matrix is computed exactly

# Findings of the first fit that hold for the second as well.
_STILL_TRUE = {"many-clipped"}


def _quadratic(objective: Objective, solution: Solution, sigma2: Image | None) -> _Quadratic:
    """The loss around the solution, H as far as a preconditioner knows it."""
    theta, n_k = solution.theta.cpu(), objective.model.kernel.n_params
    if solution.system is not None and sigma2 is None:
        return _Quadratic(solution.system.factor.matrix().cpu(), theta, n_k)
    curvature = None if solution.system is None else solution.system.curvature
    if curvature is None:
        curvature = objective.evaluate(solution.theta).curvature
        assert curvature is not None
    weight = [part.abs() for part in curvature]
    if sigma2 is None:
        return _Quadratic(objective.preconditioner(weight).cpu(), theta, n_k)
    # H without c is a difference of like numbers where the noise of the reference is most of H.
    few = objective.n_data <= _EXACT
    matrix = (objective.hessian(weight) if few else objective.close_preconditioner(weight)).cpu()
    return _Quadratic(matrix, theta, n_k, attenuation(objective.model, weight, sigma2).cpu())


def attenuation(model: ImageModel, curvature: Tiled, sigma2: Image) -> Params:
    """c, what the noise of the reference adds to the diagonal of H in the mean, (n_k,), float64.

    c_lm = sum_ij abs(h_ij) sigma_R^2[i + l, j + m], for a kernel of free pixels.
    """
    noise = Correlator(sigma2, model.kernel.half_shape, device=model.device)
    total = None
    for tiles, part in zip(model.chunks, curvature, strict=True):
        total, _ = noise.project(part.to(torch.float64).abs(), tiles, total)
    assert total is not None
    return noise.lags(total).flatten().clamp(min=0.0)


class _Quadratic:
    """The loss around its minimum: (theta - theta_0)' H (theta - theta_0) / 2.

    With ``added`` (c of :func:`attenuation`) it is one of the kernel K between the noiseless
    images, A K being what is fitted: the modes in which c is all of H or more, by chance or because
    sigma_R is not that large, count as not seen.

    Attributes
    ----------
    information, projected : Matrix, Params
        A' H A and A' H K_0, with the background marginalised.
    """

    def __init__(self, matrix: Matrix, theta: Params, n_k: int, added: Params | None = None):
        self.kernel, self.background = theta[:n_k], theta[n_k:]
        cross, corner = matrix[:n_k, n_k:], matrix[n_k:, n_k:]
        self._answer = torch.linalg.solve(corner, cross.T)  # of the background to the kernel
        information = matrix[:n_k, :n_k] - cross @ self._answer
        self.information = _without_negative(0.5 * (information + information.T))
        self.projected = self.information @ self.kernel
        self._seen: Matrix | None = None
        if added is not None and bool((added > 0).any()):
            self._attenuate(added)

    def _attenuate(self, added: Params) -> None:
        factor = factorise(self.information)
        if factor is None:
            return
        # H = L L'; in the axes of L^-1 diag(c) L'^-1 both H and c are diagonal.
        lower = factor.lower / factor.scale[:, None]
        half = torch.linalg.solve_triangular(lower, added.sqrt().diag(), upper=False)
        share, axes = torch.linalg.eigh(half @ half.T)
        kept = 1.0 - share.clamp(0.0, 1.0)
        modes = lower @ axes
        self._seen = torch.linalg.solve_triangular(lower.T, (axes * kept) @ modes.T, upper=True)
        self.information = (modes * kept**2) @ modes.T
        self.projected = self._seen.T @ self.projected

    def seen(self, root: Basis) -> Basis:
        """A F, which is F itself if the reference has no noise."""
        return root if self._seen is None else self._seen @ root

    def under(self, root: Basis) -> tuple[Params, float]:
        """The most probable coefficients under a prior, and the effective number of parameters."""
        posterior = Posterior.of(self.information, self.projected, root)
        if posterior is None:
            raise InputError(
                "The prior allows kernels so large that rounding hides it beside the data; lower "
                "the amplitudes of its components."
            )
        coefficients = posterior.coefficients
        shown = self.seen(root) @ coefficients
        background = self.background + self._answer @ (self.kernel - shown)
        held = float(torch.cholesky_inverse(posterior.factor).diagonal().sum())
        effective = root.shape[1] - held + len(background)
        return torch.cat([coefficients, background]), effective


def _without_negative(matrix: Matrix) -> Matrix:
    """The nearest matrix without negative eigenvalues, of which an approximation of H has some."""
    if not torch.linalg.cholesky_ex(matrix).info:
        return matrix
    values, axes = torch.linalg.eigh(matrix)
    nearest: Matrix = (axes * values.clamp(min=0.0)) @ axes.T
    return nearest


def in_pixels(objective: Objective, theta: Params) -> Params:
    """Kernel pixels and background of coefficients (p,)."""
    model = objective.model
    return torch.cat([model.kernel_image(theta).flatten(), model.split(theta)[1]])


def uncertainty_in_pixels(
    objective: Objective,
    solution: Solution,
    errors: Uncertainty,
    prior: KernelPrior,
    reference_variance: Image | None = None,
) -> Uncertainty:
    """Errors of kernel pixels and background in place of those of coefficients.

    What was left out of those is added: the uncertainty of the hyperparameters, where they were
    found, and what the noise of the reference does to the solution, hyperparameters included.

    Parameters
    ----------
    objective : Objective
        Of one pair, in coefficients.
    solution : Solution
    errors : Uncertainty
    prior : KernelPrior
    reference_variance : Image, optional
        sigma_R^2 [ADU^2], (h, w); None if the reference has no noise.
    """
    objective, theta, errors = _with_hyperparameters(objective, solution.theta, errors, prior)
    if reference_variance is not None:
        errors = with_reference_noise(objective, theta, errors, reference_variance, solution.system)
    if errors.covariance is None:
        return errors
    kernel = objective.model.kernel
    assert isinstance(kernel, BasisKernel)
    basis = (kernel.basis if kernel.true_basis is None else kernel.true_basis).cpu()
    covariance, n_k = errors.covariance.cpu(), kernel.n_params
    left = torch.cat([basis @ covariance[:n_k], covariance[n_k:]])
    whole = torch.cat([left[:, :n_k] @ basis.T, left[:, n_k:]], dim=1)
    return replace(errors, covariance=0.5 * (whole + whole.T))


def _with_hyperparameters(
    objective: Objective, theta: Params, errors: Uncertainty, prior: KernelPrior
) -> tuple[Objective, Params, Uncertainty]:
    """The same with further coefficients of unit variance, on which K depends by J, all of them 0.

    J J' is the covariance that the uncertain hyperparameters add to K. Seen through a noisy
    reference their part of the model image is left out.
    """
    model, kernel = objective.model, objective.model.kernel
    assert isinstance(kernel, BasisKernel)
    spread = prior.spread_of(kernel).to(kernel.basis)
    n_k, extra = kernel.n_params, spread.shape[1]
    seen, true = spread, None
    if kernel.true_basis is not None:
        seen, true = torch.zeros_like(spread), torch.cat([kernel.true_basis, spread], dim=1)
    wider = BasisKernel(kernel.shape, torch.cat([kernel.basis, seen], dim=1), true)
    sums = spread.sum(dim=0)

    def widened(vector: Params, added: Params) -> Params:
        return torch.cat([vector[:n_k], added.to(vector), vector[n_k:]])

    none = torch.zeros(extra, dtype=torch.float64)
    assert errors.directions is not None
    of_scale, *of_background = errors.directions
    rows = [widened(of_scale, sums), *(widened(row, none) for row in of_background)]
    covariance = errors.covariance
    if covariance is not None:
        old = torch.arange(len(covariance))
        old[n_k:] += extra
        whole = torch.eye(len(covariance) + extra).to(covariance)
        whole[old[:, None], old] = covariance
        covariance = whole
    scale = math.hypot(errors.scale, float(sums.norm()))
    errors = replace(errors, scale=scale, covariance=covariance, directions=torch.stack(rows))
    wide = replace(objective, model=model.with_kernel(wider), penalty=None)
    return wide, widened(theta, none), errors
