"""How near to its floor a kernel can come if its prior is chosen with the truth in hand.

All in the quadratic approximation around the truth: the weights are those of the true variance, so
that the fitted kernel under a prior is a linear function of the data, and the error of eq 28 a
parabola in it. What a prior F F' gives is then a small linear problem, and its hyperparameters can
be chosen for the least error against the noiseless target, which no fit to real data can know.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.optimize
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor

from pytorchdia import DeltaKernel, GaussianProcessPrior
from pytorchdia.prior import _Evidence, _vector_of
from pytorchdia.shapelets import Shapelets
from pytorchdia.simulate import SimulatedPair

FloatArray = NDArray[np.float64]
SMOOTHING = 1.0  # of the true kernel, for its envelope [pixels]
LENGTHS = (math.log(0.4), math.log(30.0))


class Parabolas:
    """The likelihood of a kernel and its error of eq 28, background fitted.

    ``information`` and ``projected`` are H and b of exp(-K' H K / 2 + b' K), ``noise`` what a
    parameter costs: the mean variance of a pixel over the number of pixels [ADU^2].
    """

    def __init__(self, pair: SimulatedPair, size: int) -> None:
        n = size // 2
        inner = slice(n, -n), slice(n, -n)
        shape = (size, size)
        reference = pair.reference - np.median(pair.reference)
        windows = np.lib.stride_tricks.sliding_window_view(reference, shape).reshape(-1, size**2)
        design = np.append(windows, np.ones((len(windows), 1)), axis=1)
        target, truth = pair.target[inner].ravel(), pair.target_noiseless[inner].ravel()
        variance = pair.target_sigma[inner].ravel() ** 2
        matrix = design.T @ (design / variance[:, None])
        right = design.T @ (target / variance)
        cross, corner = matrix[:-1, -1], matrix[-1, -1]
        self.information = torch.from_numpy(matrix[:-1, :-1] - np.outer(cross, cross) / corner)
        self.projected = torch.from_numpy(right[:-1] - cross * right[-1] / corner)
        self.noise = float(variance.mean()) / len(variance)
        # The background that belongs to a kernel is level - answer K.
        change = np.append(np.eye(size**2), -cross[None] / corner, axis=0)
        rest = truth - right[-1] / corner
        seen = design @ change
        self._square = torch.from_numpy(seen.T @ seen / len(seen))
        self._cross = torch.from_numpy(seen.T @ rest / len(seen))
        self._constant = float((rest**2).mean())

    def error(self, kernel: Tensor) -> Tensor:
        """Eq 28 of a kernel, (n_k,)."""
        return kernel @ (self._square @ kernel) - 2.0 * self._cross @ kernel + self._constant

    def kernel(self, root: Tensor) -> Tensor:
        """The most probable kernel under F F'."""
        right = (root.T @ self.projected)[:, None]
        return root @ torch.cholesky_solve(right, self._factor(root))[:, 0]

    def effective(self, root: Tensor) -> float:
        """The number of parameters that the data determine, the trace of 1 - (1 + F' H F)^-1."""
        held = torch.cholesky_inverse(self._factor(root)).diagonal().sum()
        return root.shape[1] - float(held)

    def _factor(self, root: Tensor) -> Tensor:
        system = root.T @ (self.information @ root)
        return torch.linalg.cholesky(system + torch.eye(len(system), dtype=system.dtype))

    def best(
        self,
        root: Callable[[Tensor], Tensor],
        start: FloatArray,
        bounds: list[tuple[float, float]],
    ) -> Tensor:
        """F of the hyperparameters with the least error, searched from ``start``."""

        def loss(x: FloatArray) -> tuple[float, FloatArray]:
            point = torch.from_numpy(x.copy()).requires_grad_(True)
            value = self.error(self.kernel(root(point))).log()
            value.backward()
            return float(value.detach()), point.grad.numpy()

        found = scipy.optimize.minimize(
            loss, start, jac=True, method="L-BFGS-B", bounds=bounds,
            options={"maxiter": 60, "ftol": 1e-5},
        )  # fmt: skip
        return root(torch.from_numpy(found.x))


class _Root(torch.autograd.Function):
    """F of shapelets as a function of their hyperparameters that torch can differentiate."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: tuple[int, int]) -> Tensor:
        ctx.shapelets = Shapelets(x.detach().numpy().copy(), shape)
        return ctx.shapelets.root

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        return torch.from_numpy(ctx.shapelets.gradient(slope.T.numpy())), None


def oracle(pair: SimulatedPair, truth: FloatArray) -> dict[str, float]:
    """Errors over the floor of one pair, under priors that know more and more.

    ``evidence`` is the prior as it is, ``best`` the same with the hyperparameters of the least
    error, ``envelope`` one component under the true kernel (smoothed by a pixel) for its envelope,
    likewise, ``known`` the true kernel times a factor that is fitted. ``parameters`` are how many
    make 0.3 of the floor.
    """
    size = len(truth)
    box = DeltaKernel(size)
    parabolas = Parabolas(pair, size)
    fitted = torch.linalg.solve(parabolas.information, parabolas.projected)
    found = GaussianProcessPrior().found(parabolas.information, fitted, box)
    x = _vector_of(found)
    bounds = _Evidence(parabolas.information, fitted, box).bounds(x)
    form = gaussian_filter(truth, SMOOTHING).ravel()
    stationary = _under(torch.from_numpy(np.abs(form) / np.abs(form).max()), size)
    start = np.array([math.log(truth.max()), math.log(2.0)])
    floor = float((pair.reference_sigma**2).mean() * (truth**2).sum())
    roots = {
        "evidence": Shapelets(x, box.shape).root,
        "best": parabolas.best(lambda x: _Root.apply(x, box.shape), x, bounds),
        "envelope": parabolas.best(stationary, start, [(-15.0, 3.0), LENGTHS]),
        "known": torch.from_numpy(truth.reshape(-1, 1)) / truth.max(),
    }
    row = {"plain": float(parabolas.error(fitted)) / floor}
    for name, root in roots.items():
        row[name] = float(parabolas.error(parabolas.kernel(root))) / floor
        row[f"n_effective_{name}"] = parabolas.effective(root)
    return row | {"parameters": 0.3 * floor / parabolas.noise}


def _under(envelope: Tensor, size: int) -> Callable[[Tensor], Tensor]:
    """From ln a and ln l to the root of a^2 e(r) e(r') exp(-|r - r'|^2 / 2 l^2)."""
    at = torch.arange(size, dtype=torch.float64)
    apart = (at[:, None] - at) ** 2

    def root(x: Tensor) -> Tensor:
        amplitude, length = x.exp()
        alike = torch.exp(-0.5 * apart / length**2) + 1e-6 * torch.eye(size, dtype=torch.float64)
        line = torch.linalg.cholesky(alike)
        return amplitude * envelope[:, None] * torch.kron(line, line)

    return root


def medians(rows: list[dict[str, float]]) -> dict[str, Any]:
    """Of each column."""
    return {name: float(np.median([row[name] for row in rows])) for name in rows[0]}
