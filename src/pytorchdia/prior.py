"""A Gaussian process as the prior of the kernel pixels, with its hyperparameters by the evidence.

Kernels are smooth, and small away from their middle. The prior of their pixels is normal with ::

    C(r, r') = a^2 e(r) e(r') exp(-|r - r'|^2 / 2 l^2),   e(r) = exp(-|r|^2 / 2 s^2),

``a`` the amplitude, ``l`` the length over which neighbours are alike and ``s`` the width of the
envelope, all distances taken from a common centre in a common elliptical metric; several such
components may be added. By Mehler's formula each is a sum of products of Hermite functions
(shapelets) whose variances fall geometrically with their order, so that ``C = F F'`` with a narrow
F is known in closed form, however ill-conditioned C may be.

The hyperparameters are found by maximising the evidence of the data (MacKay 1992; Rasmussen &
Williams 2006, section 5.4) in the Gaussian approximation around the fit without a prior:
the data enter through the normal matrix H and the solution alone, without a pass over the pixels.

Faint wings, which hold a share of the light that no single pixel shows, are not of that form, and
the prior would take them off P. So it has one more column, of light that may be missed.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .arrays import Basis, Matrix, Params
from .errors import InputError
from .kernel import KernelModel
from .shapelets import Shapelets
from .threads import one_thread

__all__ = ["Component", "GaussianProcessPrior", "KernelPrior", "Posterior"]

FloatArray = NDArray[np.float64]
Mask = NDArray[np.bool_]

_LENGTHS = (0.4, 1e4)  # bounds of l [pixels]
_LEAST_WIDTH = 0.3  # and of s
_MOST_ELLIPTICAL = 2.5
# ln a, ln l and ln s at which the second component starts, relative to the first.
_LIKE_THE_FIRST = np.array([-3.0, -1.0, 0.7])
# Where else it may: fainter, rough, and so much wider or this wide [pixels].
_FAINTER, _ROUGH, _WIDER, _WIDE = (3.0, 5.0), math.log(0.5), 0.7, math.log(1.8)
_HIGHER = 0.1  # how much more ln evidence it must have there
_STEP = 1e-3  # of differences by hyperparameters
# Of the search: steps at most, those with the average information, the longest, what counts as
# short, the gain in ln evidence that is none, and what a line search asks for and how often.
_MOST_STEPS, _FAR_STEPS, _LONGEST, _NEAR, _GOAL = 100, 12, 1.0, 0.05, 1e-9
_ARMIJO, _HALVINGS = 1e-4, 12
_ROUNDING = 1e-15  # of ln evidence, which is large where the pixels are many
_AMPLITUDES = (-12.0, 4.0)  # bounds of ln a relative to its start
_TOGETHER = 5.0  # expected gain in ln evidence from which all hyperparameters are sought together
# The share of the light that the components may miss: bounds of its scale, and how many between.
_LEAST_MISSED, _MOST_MISSED, _SCALES = 1e-4, 0.1, 41
_ALL = 1.0 - 1e-6  # of it believed at most: a prior without bounds would be singular
_LARGEST = 3.0  # standard deviation of a kernel pixel at most, over P: a delta function has 1
_WEAK = 0.3  # inverse variance of the hyperparameters about their start: keeps idle ones in place


class KernelPrior(ABC):
    """Base of all normal priors of the kernel pixels with zero mean.

    ``noisy_reference`` says whether the noise of the reference, where it is known, is allowed for:
    the prior is then that of the kernel between the noiseless images.
    """

    noisy_reference: bool = False

    @property
    @abstractmethod
    def is_known(self) -> bool:
        """Whether all hyperparameters are given."""

    @abstractmethod
    def root(self, kernel: KernelModel) -> Basis:
        """F with covariance F F', (n_k, rank), float64; for a prior that is known."""

    def spread_of(self, kernel: KernelModel) -> Basis:
        """J, (n_k, any): J J' is the covariance that uncertain hyperparameters add; none here."""
        return torch.zeros(kernel.shape[0] * kernel.shape[1], 0, dtype=torch.float64)

    @abstractmethod
    def found(
        self,
        information: Matrix,
        solution: Params,
        kernel: KernelModel,
        projected: Params | None = None,
    ) -> KernelPrior:
        """The same prior with its free hyperparameters chosen by the evidence.

        Parameters
        ----------
        information : Matrix
            H of the kernel coefficients with the background marginalised, (n_k, n_k), float64.
        solution : Params
            The kernel coefficients that maximise the likelihood, (n_k,).
        kernel : KernelModel
        projected : Params, optional
            b of the likelihood -K' H K / 2 + b' K, where it is not H times the solution.
        """


@dataclass(frozen=True)
class Component:
    """One part of the covariance of :class:`GaussianProcessPrior`.

    Parameters
    ----------
    amplitude : float
        Standard deviation of a kernel pixel at the centre.
    length : float
        Distance over which neighbouring pixels are alike [pixels].
    width : float
        Standard deviation of the envelope [pixels].
    """

    amplitude: float
    length: float
    width: float


@dataclass(frozen=True)
class GaussianProcessPrior(KernelPrior):
    """Kernel pixels as a Gaussian process under an elliptical envelope.

    Parameters
    ----------
    components : tuple of Component
        None given (the default): everything is found by the evidence, for each image anew, with
        two components.
    centre : (float, float)
        (x, y) of the envelope relative to the middle of the box [pixels].
    ellipse : (float, float)
        (plus, cross): the metric is exp([[plus, cross], [cross, -plus]]).
    evidence : float, optional
        ln of the evidence where the hyperparameters were found, up to a constant.
    spread : Basis, optional
        Where they were found: J with J J' the covariance of the kernel pixels that comes from the
        uncertainty of the hyperparameters, (n_k, number of hyperparameters).
    missed : Basis, optional
        Where they were found: a further column of F, (n_k, 1), for light that the components miss.
    noisy_reference : bool
        Allow for the noise of the reference where it is known: the kernel, and P, are those
        between the noiseless images. False takes the reference as it is.
    """

    components: tuple[Component, ...] = ()
    centre: tuple[float, float] = (0.0, 0.0)
    ellipse: tuple[float, float] = (0.0, 0.0)
    evidence: float | None = field(default=None, compare=False)
    spread: Basis | None = field(default=None, compare=False, repr=False)
    missed: Basis | None = field(default=None, compare=False, repr=False)
    noisy_reference: bool = False

    def __post_init__(self) -> None:
        numbers = [*self.centre, *self.ellipse]
        for c in self.components:
            if not min(c.amplitude, c.length, c.width) > 0:
                raise InputError(
                    f"Amplitude, length and width of a component must be positive, got {c}."
                )
            numbers += [c.amplitude, c.length, c.width]
        if not all(math.isfinite(number) for number in numbers):
            raise InputError(f"The hyperparameters of a prior must be finite, got {numbers}.")

    @property
    def is_known(self) -> bool:
        return bool(self.components)

    def root(self, kernel: KernelModel) -> Basis:
        root = Shapelets(_vector_of(self), kernel.shape).root
        if self.missed is not None:
            root = torch.cat([root, self.missed], dim=1)
        if root.shape[1] <= root.shape[0]:
            return root
        square: Basis = torch.linalg.qr(root.T, mode="r").R.T
        return square

    def spread_of(self, kernel: KernelModel) -> Basis:
        return super().spread_of(kernel) if self.spread is None else self.spread

    def found(
        self,
        information: Matrix,
        solution: Params,
        kernel: KernelModel,
        projected: Params | None = None,
    ) -> GaussianProcessPrior:
        if self.is_known:
            return self
        evidence = _Evidence(information, solution, kernel, projected)
        with one_thread():
            start = evidence.start()
            main = evidence.maximise(start, slice(0, 7))
            best = evidence.together(evidence.with_second(main), start)
            missed = evidence.missed_light(best)
            return replace(
                _prior_of(best.x),
                evidence=best.evidence + missed.gain,
                spread=torch.cat([evidence.spread(best), missed.spread], dim=1),
                missed=missed.column,
                noisy_reference=self.noisy_reference,
            )


def _prior_of(x: FloatArray) -> GaussianProcessPrior:
    x0, y0, plus, cross, *logs = (float(value) for value in x)
    triples = [logs[i : i + 3] for i in range(0, len(logs), 3)]
    components = tuple(Component(*(math.exp(value) for value in triple)) for triple in triples)
    return GaussianProcessPrior(components, (x0, y0), (plus, cross))


def _vector_of(prior: GaussianProcessPrior) -> FloatArray:
    """(x0, y0, plus, cross), then ln a, ln l and ln s of each component."""
    logs = [math.log(v) for c in prior.components for v in (c.amplitude, c.length, c.width)]
    return np.array([*prior.centre, *prior.ellipse, *logs])


class Posterior(NamedTuple):
    """The coefficients c of a kernel F c under their unit normal prior.

    Attributes
    ----------
    coefficients : Tensor
        The most probable ones, (r,).
    product : Basis
        H F, (n_k, r).
    factor : Matrix
        Cholesky factor of 1 + F' H F, (r, r).
    evidence : float
        ln p(data | hyperparameters), up to a constant.
    """

    coefficients: Tensor
    product: Basis
    factor: Matrix
    evidence: float

    @classmethod
    def of(cls, information: Matrix, projected: Params, root: Basis) -> Posterior | None:
        """For H, H times the fitted kernel, and F; None if rounding has eaten the unit diagonal."""
        product = (root.T @ information).T  # symmetric: quicker along its rows
        system = root.T @ product
        system.diagonal().add_(1.0)
        factor, failed = torch.linalg.cholesky_ex(system)
        if failed:
            return None
        right = root.T @ projected
        coefficients = torch.cholesky_solve(right[:, None], factor)[:, 0]
        evidence = 0.5 * float(right @ coefficients) - float(factor.diagonal().log().sum())
        return cls(coefficients, product, factor, evidence)


class Missed(NamedTuple):
    """Light that the components of a prior miss.

    Attributes
    ----------
    column : Basis
        What it adds to F, (n_k, 1 or 0).
    spread : Basis
        What it adds to J, likewise.
    gain : float
        In ln evidence.
    """

    column: Basis
    spread: Basis
    gain: float

    @classmethod
    def nothing(cls, n: int) -> Missed:
        """For a kernel of ``n`` pixels whose data do not tell."""
        none = torch.zeros(n, 0, dtype=torch.float64)
        return cls(none, none, 0.0)


def _inside(x: FloatArray, slope: FloatArray, low: FloatArray, high: FloatArray) -> Mask:
    """Which of x are free to go down this slope: all but those at a bound that would leave it."""
    inside: Mask = ~(((x <= low) & (slope > 0)) | ((x >= high) & (slope < 0)))
    return inside


def _updated(hessian: FloatArray, move: FloatArray, change: FloatArray) -> FloatArray:
    """A Hessian that has learnt how the gradient changed (BFGS, damped as by Powell 1978)."""
    before = hessian @ move
    expected, seen = float(move @ before), float(move @ change)
    if seen < 0.2 * expected:
        share = 0.8 * expected / (expected - seen)
        change = share * change + (1.0 - share) * before
        seen = float(move @ change)
    updated: FloatArray = hessian - np.outer(before, before) / expected
    return updated + np.outer(change, change) / seen


class _Point:
    """ln p(data | hyperparameters) at one place, with what follows from it.

    Attributes
    ----------
    x : ndarray
        The hyperparameters.
    root : Basis
        F there, (n_k, r).
    posterior : Posterior, optional
        None far beyond what the data allow.
    evidence : float
        Minus infinity there.
    gradient : ndarray
        Its derivatives by the hyperparameters.
    kernel : Params
        The most probable kernel, (n_k,).
    left : Params
        What it leaves of the projected data, (n_k,).
    """

    def __init__(self, x: FloatArray, kernel: KernelModel, information: Matrix, projected: Params):
        self.x, self._information = x, information
        self._shapelets = Shapelets(x, kernel.shape)
        self.root = self._shapelets.root
        self.posterior = Posterior.of(information, projected, self.root)
        if self.posterior is None:
            self.evidence, self.gradient = -math.inf, np.zeros_like(x)
            self.kernel, self.left = torch.zeros_like(projected), projected
            return
        coefficients, product, factor, self.evidence = self.posterior
        self.kernel = self.root @ coefficients
        self.left = projected - product @ coefficients
        slope = torch.outer(coefficients, self.left)
        slope -= torch.cholesky_solve(product.T, factor)
        self.gradient = self._shapelets.gradient(slope.numpy())

    def curvature(self) -> FloatArray:
        """The average information: what minus the second derivatives are near (n, n).

        The mean of the observed and of the expected ones, less what would need traces of products
        (Gilmour, Thompson & Cullis 1995); with V the covariance of the fitted kernel and V_i its
        derivatives, half of r' V_i V^-1 V_j r, where r = V^-1 K is what the prior leaves over.
        """
        assert self.posterior is not None
        moves = torch.from_numpy(self._shapelets.moves(self.left.numpy()))
        across = moves @ self.posterior.product
        seen = moves @ self._information @ moves.T
        seen -= across @ torch.cholesky_solve(across.T, self.posterior.factor)
        half: FloatArray = 0.25 * (seen + seen.T).numpy()
        return half


def _height(point: _Point) -> float:
    return point.evidence


class _Evidence:
    """ln p(data | hyperparameters), up to a constant."""

    def __init__(
        self,
        information: Matrix,
        solution: Params,
        kernel: KernelModel,
        projected: Params | None = None,
    ) -> None:
        self.information, self.kernel = information, kernel
        self.projected = information @ solution if projected is None else projected
        self.scale = float(solution.sum())
        self.half = 0.5 * max(kernel.shape)
        self.most = math.log(_LARGEST * max(abs(self.scale), 1e-12))  # ln a of a component

    def at(self, x: FloatArray) -> _Point:
        """The evidence at these hyperparameters."""
        return _Point(x, self.kernel, self.information, self.projected)

    def maximise(self, start: _Point, free: slice, around: FloatArray | None = None) -> _Point:
        """The best place, with the hyperparameters that are not ``free`` left as they are.

        Bounds are those about ``around``, or about the start.

        Newton steps with the average information in place of the Hessian, because the way leads
        along a valley that is narrower the longer l is; once they are short, the information is
        kept and learns from the gradients (BFGS), until what a step would bring is lost in
        rounding. All within bounds.
        """
        low, high = np.array(self.bounds(start.x if around is None else around)[free]).T
        at_start = start.x[free]
        pull = _WEAK * np.eye(len(at_start))

        def loss(point: _Point) -> float:
            away = point.x[free] - at_start
            return 0.5 * _WEAK * float(away @ away) - point.evidence

        def slope(point: _Point) -> FloatArray:
            return _WEAK * (point.x[free] - at_start) - point.gradient[free]

        here = start
        value, gradient, far = loss(here), slope(here), True
        if not math.isfinite(value):
            return start
        for number in range(_MOST_STEPS):
            x = here.x[free]
            if far and number < _FAR_STEPS:
                hessian = here.curvature()[free, free] + pull
            inside = _inside(x, gradient, low, high)
            step = np.zeros_like(x)
            step[inside] = -np.linalg.solve(hessian[np.ix_(inside, inside)], gradient[inside])
            lost = _ROUNDING * abs(value)
            if -0.5 * float(gradient @ step) < _GOAL + lost:
                break
            step *= min(1.0, _LONGEST / np.abs(step).max())
            for _ in range(_HALVINGS):
                there = start.x.copy()
                there[free] = np.clip(x + step, low, high)
                move = there[free] - x
                after, expected = self.at(there), float(gradient @ move)
                its_value = loss(after)
                if its_value <= value + _ARMIJO * expected + lost:
                    break
                above = its_value - value - expected
                shorter = -0.5 * expected / above if math.isfinite(above) else 0.1
                step = move * min(max(shorter, 0.1), 0.5)
            else:
                break
            if not move.any():  # the bounds leave no way on
                break
            its_gradient = slope(after)
            hessian = _updated(hessian, move, its_gradient - gradient)
            far = far and np.abs(move).max() > _NEAR
            here, value, gradient = after, its_value, its_gradient
        return here

    def with_second(self, main: _Point) -> _Point:
        """The place of one component, and the best one found for a second beside it.

        Started like the first, it ends as a copy of it where the data are for something that no
        smooth kernel can do: stars so sharp that their pixels miss some of their form. A faint and
        rough start is tried as well where it is better from the outset than no second component.
        """
        log_a, _, log_s = main.x[4:7]

        def beside(second: list[float] | FloatArray) -> _Point:
            return self.at(np.append(main.x, second))

        best = self.maximise(beside(main.x[4:7] + _LIKE_THE_FIRST), slice(7, 10))
        wide = max(log_s + _WIDER, _WIDE)
        rough = [beside([log_a - less, _ROUGH, wide]) for less in _FAINTER]
        start = max(rough, key=_height)
        if start.evidence < main.evidence + _HIGHER:
            return best
        return max(best, self.maximise(start, slice(7, 10)), key=_height)

    def together(self, here: _Point, start: _Point) -> _Point:
        """All hyperparameters sought at once from here, if a Newton step promises enough of it.

        One after the other the components of a PSF with wings share its core badly. Where each is
        one Gaussian there is nothing to gain but time. A component that has grown to its bound
        about ``start``, where the search began, is not determined by the data, and would go on.
        """
        x, around = here.x, here.x.copy()
        around[4::3] = np.clip(start.x[4], x[4::3] - _AMPLITUDES[1], x[4::3] - _AMPLITUDES[0])
        low, high = np.array(self.bounds(around)).T
        if not math.isfinite(here.evidence) or (x[4::3] >= high[4::3]).any():
            return here
        inside = _inside(x, -here.gradient, low, high)
        gradient = here.gradient[inside]
        hessian = (here.curvature() + _WEAK * np.eye(len(x)))[np.ix_(inside, inside)]
        promised = 0.5 * float(gradient @ np.linalg.solve(hessian, gradient))
        return self.maximise(here, slice(0, len(x)), around) if promised > _TOGETHER else here

    def missed_light(self, here: _Point) -> Missed:
        """What the components may miss of the light, as the data say.

        Faint wings are seen in P and in little else. They move the kernel along v, as the P of any
        smooth kernel that fills the box does: v = W (1 + W' H W)^-1 W' 1, W the root of a broad
        prior. With D what P gains along v by the data, the components giving way, and d its
        variance, the missed light is normal with a scale tau whose logarithm is uniform within
        bounds, shares of P. The share tau^2 / (tau^2 + d) of D that is believed has a mean and a
        variance: the column makes the mean of it, and the spread holds the variance.
        """
        posterior, nothing = here.posterior, Missed.nothing(len(here.root))
        broad = Shapelets(self._broad(1.0), self.kernel.shape).root
        free = Posterior.of(self.information, self.projected, broad)
        if posterior is None or free is None:
            return nothing
        sums = broad.sum(dim=0)[:, None]
        along = broad @ torch.cholesky_solve(sums, free.factor)  # v
        # What is left of v when the components move as well.
        answer = torch.cholesky_solve(posterior.product.T @ along, posterior.factor)
        moved = along - here.root @ answer
        precise = float((along * (self.information @ moved)).sum())
        gained = float(moved.sum())
        if not (precise > 0 and abs(gained) > 0):
            return nothing
        missing = float(along[:, 0] @ here.left) * gained / precise  # D
        variance = gained**2 / precise  # d
        shares = np.geomspace(_LEAST_MISSED, _MOST_MISSED, _SCALES)
        taus = (shares * self.scale) ** 2
        logs = -0.5 * missing**2 / (taus + variance) - 0.5 * np.log(taus + variance)
        weights = np.exp(logs - logs.max())
        weights /= weights.sum()
        believed = taus / (taus + variance)
        mean = min(float(weights @ believed), _ALL)
        scatter = float(weights @ (believed - mean) ** 2)
        return Missed(
            along * math.sqrt(mean / (1.0 - mean) / precise),
            moved * (missing * math.sqrt(scatter) / gained),
            0.5 * mean * missing**2 / variance + 0.5 * math.log1p(-mean),
        )

    def spread(self, here: _Point) -> Basis:
        """J of :class:`GaussianProcessPrior`: how the kernel moves as the hyperparameters may.

        Their covariance is the inverse of minus the second derivatives of ln evidence at its
        maximum, by differences of its gradient (Laplace's approximation). The noise of the data
        alone makes that gradient scatter with covariance S' H S, S being the slopes of the kernel:
        no curvature is believed to be less, as it seems where a hyperparameter lies at a bound or
        the kernel is not of the prior's form. So J' H J <= 1.
        """
        x = here.x
        ahead = [self.at(x + step) for step in _STEP * np.eye(len(x))]
        curvature = np.array([here.gradient - there.gradient for there in ahead]) / _STEP
        curvature = 0.5 * (curvature + curvature.T) + _WEAK * np.eye(len(x))
        slopes = torch.stack([there.kernel - here.kernel for there in ahead], dim=1) / _STEP
        least = np.nan_to_num((slopes.T @ self.information @ slopes).numpy())
        least += _WEAK * np.eye(len(x))
        # In the axes of L^-1 .. L'^-1 the least curvature, L L', is one.
        inverse = np.linalg.inv(np.linalg.cholesky(0.5 * (least + least.T)))
        seen = inverse @ np.nan_to_num(curvature) @ inverse.T
        values, axes = np.linalg.eigh(0.5 * (seen + seen.T))
        moves = inverse.T @ axes / np.sqrt(np.maximum(values, 1.0))
        return slopes @ torch.from_numpy(moves)

    def bounds(self, start: FloatArray) -> list[tuple[float, float]]:
        centre, shape = (-self.half, self.half), (-_MOST_ELLIPTICAL, _MOST_ELLIPTICAL)
        bounds = [centre, centre, shape, shape]
        for log_amplitude in start[4::3]:
            low, high = (float(log_amplitude + step) for step in _AMPLITUDES)
            high = min(high, max(self.most, float(log_amplitude)))
            bounds += [
                (low, high),
                (math.log(_LENGTHS[0]), math.log(_LENGTHS[1])),
                (math.log(_LEAST_WIDTH), math.log(4.0 * self.half)),
            ]
        return bounds

    def start(self) -> _Point:
        """Centre, shape and size from the moments of the kernel under a broad prior."""
        broad = self._broad(0.4)
        smooth = self.at(broad)
        kernel = smooth.kernel.reshape(self.kernel.shape).numpy()
        kernel = kernel * np.sign(kernel.flat[np.argmax(np.abs(kernel))])
        weight = np.maximum(kernel - 0.2 * kernel.max(), 0.0)
        y, x = (np.arange(n) - n // 2 for n in kernel.shape)
        total = weight.sum()
        if not total > 0:  # the data say nothing
            return smooth
        x0, y0 = (weight @ x).sum() / total, (y @ weight).sum() / total
        dx, dy = x - x0, (y - y0)[:, None]
        xx, yy, xy = ((weight * q).sum() / total for q in (dx**2, dy**2, dx * dy))
        values, axes = np.linalg.eigh(np.array([[xx, xy], [xy, yy]]))
        values = np.maximum(values, 0.25)
        logs = axes @ np.diag(-np.log(values)) @ axes.T  # of the metric, which is the inverse
        size = math.sqrt(math.sqrt(values[0] * values[1]))
        return self.at(np.array([
            x0, y0, 0.5 * (logs[0, 0] - logs[1, 1]), logs[0, 1],
            math.log(kernel.max()), math.log(2.0 * size), math.log(size),
        ]))  # fmt: skip

    def _broad(self, share: float) -> FloatArray:
        """Hyperparameters of a smooth kernel as wide as this share of half the box."""
        width = share * self.half
        amplitude = max(abs(self.scale), 1e-12) / width**2
        return np.array([0.0, 0.0, 0.0, 0.0, np.log(amplitude), np.log(2.0), np.log(width)])
