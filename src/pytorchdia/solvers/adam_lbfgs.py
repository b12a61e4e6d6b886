"""The paper's own algorithm: Adam, then L-BFGS (sections 2.3, 2.9 and 2.10)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..arrays import Params
from ..errors import InputError, Status
from ..objective import Objective
from .base import OnStep, Solution, Solver, Step, flat_start, gaussian_start

__all__ = ["AdamLBFGS", "ConvolutionLayer"]


@dataclass(frozen=True)
class ConvolutionLayer:
    """How the convolutional layer of the paper's algorithm is run.

    Parameters
    ----------
    benchmark : bool
        Let cuDNN try its algorithms and keep the fastest (section 5); no effect on a CPU.
    deterministic : bool
        Let cuDNN use only algorithms that repeat to the last bit (section 5); no effect on a CPU.
    autocast : torch.dtype, optional
        Convolve in this precision, torch.float16 or torch.bfloat16 (section 2.8). The loss is no
        better than that precision.
    compile : bool
        Compile loss and gradient with ``torch.compile``, which takes a C++ compiler and some time
        at first.
    """

    benchmark: bool = False
    deterministic: bool = False
    autocast: torch.dtype | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        if self.autocast not in (None, torch.float16, torch.bfloat16):
            raise InputError(
                f"autocast must be torch.float16 or torch.bfloat16, got {self.autocast}."
            )

    def loss_of(self, objective: Objective) -> Callable[[Params], Tensor]:
        """The loss as a function of theta, differentiable, with these options."""
        device = objective.model.device.type
        inner: Callable[[Params], Tensor] = objective.loss
        if self.compile:
            inner = torch.compile(inner)

        def loss(theta: Params) -> Tensor:
            cudnn = torch.backends.cudnn.flags(
                enabled=True, benchmark=self.benchmark, deterministic=self.deterministic
            )
            with cudnn, torch.autocast(device, self.autocast, self.autocast is not None):
                return inner(theta)

        return loss


@dataclass(frozen=True)
class AdamLBFGS(Solver):
    """Gradient descent by Adam until the loss flattens, then L-BFGS until it stands still.

    Works in the dtype of the objective, as the paper's algorithm does in float32; sums over pixels
    are float64.

    Parameters
    ----------
    lr_kernel : float
        Adam's learning rate for the kernel pixels.
    lr_background : float
        Adam's learning rate for the background; the paper uses 1, 10 or 100.
    tol : float
        Relative change of the loss between two Adam steps at which L-BFGS takes over.
    tol_change : float or None
        Relative change of the loss between two L-BFGS steps at which the fit ends. None takes
        1e-8 in float32, the paper's numerical limit, and 1e-12 in float64.
    tol_gradient : float
        The fit also ends when no component of the gradient exceeds this.
    max_adam, max_lbfgs : int
        Upper limits of steps.
    start_sigma : float or None
        Start from a Gaussian kernel of this width [pixels]; None starts from a flat one.
    layer : ConvolutionLayer or None
        Compute the model as the paper does, by a convolutional layer and automatic differentiation
        through it. None takes loss and gradient from Fourier transforms, which are quicker on a
        CPU and exact as well.
    """

    lr_kernel: float = 1e-3
    lr_background: float = 1.0
    tol: float = 1e-6
    tol_change: float | None = None
    tol_gradient: float = 1e-7
    max_adam: int = 5000
    max_lbfgs: int = 5000
    start_sigma: float | None = None
    layer: ConvolutionLayer | None = None

    def __post_init__(self) -> None:
        for name in ("lr_kernel", "lr_background", "tol", "tol_gradient", "tol_change",
                     "start_sigma"):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not (0 < value < 1e30):
                raise InputError(f"AdamLBFGS needs a finite {name} > 0, got {value}.")
        for name in ("max_adam", "max_lbfgs"):
            if getattr(self, name) < 1:
                raise InputError(
                    f"AdamLBFGS needs {name} of at least 1, got {getattr(self, name)}."
                )

    def solve(
        self, objective: Objective, theta0: Params | None = None, on_step: OnStep | None = None
    ) -> Solution:
        if theta0 is None and self.start_sigma is not None:
            theta0 = gaussian_start(objective, self.start_sigma)
        elif theta0 is None:
            theta0 = flat_start(objective)
        return _Descent(self, objective, theta0.to(objective.dtype), on_step).run()


class _Descent:
    """One descent: two parameter groups, a loss, and the best point so far."""

    def __init__(
        self, options: AdamLBFGS, objective: Objective, theta: Params, on_step: OnStep | None
    ) -> None:
        self.options, self.objective, self.on_step = options, objective, on_step
        kernel, background = objective.model.split(theta)
        self.kernel = kernel.clone().requires_grad_(True)
        self.background = background.clone().requires_grad_(True)
        self.evaluations = 0
        self.steps = 0
        self.best: tuple[float, Params] = (math.inf, theta)
        self.layer_loss = None if options.layer is None else options.layer.loss_of(objective)

    def run(self) -> Solution:
        o = self.options
        adam = torch.optim.Adam(
            [
                {"params": [self.kernel], "lr": o.lr_kernel},
                {"params": [self.background], "lr": o.lr_background},
            ]
        )
        self.descend(lambda: adam.step(self.closure), o.tol, o.max_adam)
        self.return_to_best()
        lbfgs = torch.optim.LBFGS(
            [self.kernel, self.background],
            lr=1.0,
            max_iter=1,
            max_eval=25,
            history_size=100,
            tolerance_grad=o.tol_gradient,
            tolerance_change=0.0,
            line_search_fn="strong_wolfe",
        )
        change = o.tol_change
        if change is None:
            change = 1e-8 if self.objective.dtype == torch.float32 else 1e-12
        flattened = self.descend(lambda: self.lbfgs_step(lbfgs), change, o.max_lbfgs)
        self.closure()
        loss, theta = self.best
        if not math.isfinite(loss):
            status = Status.NOT_FINITE
        else:
            status = Status.CONVERGED if flattened else Status.MAX_STEPS
        return Solution(theta.to(torch.float64), status, loss, self.steps, self.evaluations)

    def descend(self, step: Callable[[], Tensor], tol: float, limit: int) -> bool:
        """Step until the loss changes by less than ``tol`` (relative) or the gradient vanishes."""
        previous = math.inf
        for _ in range(limit):
            loss = float(step().detach())  # the loss before this step
            self.steps += 1
            if self.on_step is not None:
                self.on_step(Step(self.steps, loss, f"relative change {tol:.0e}"))
            if not math.isfinite(loss):
                return False
            flat = abs(previous - loss) <= tol * abs(loss)
            if flat or self.largest_gradient() <= self.options.tol_gradient:
                return True
            previous = loss
        return False

    @torch.no_grad()
    def return_to_best(self) -> None:
        """Put the parameters back to the best point, which a last bad step may have left."""
        kernel, background = self.objective.model.split(self.best[1])
        self.kernel.copy_(kernel)
        self.background.copy_(background)

    def lbfgs_step(self, lbfgs: torch.optim.LBFGS) -> Tensor:
        loss: Tensor = lbfgs.step(self.closure)  # type: ignore[no-untyped-call]
        return loss

    def largest_gradient(self) -> float:
        grads = [p.grad for p in (self.kernel, self.background) if p.grad is not None]
        return max((float(g.abs().max()) for g in grads), default=math.inf)

    def closure(self) -> Tensor:
        """The loss where the parameters stand; leaves its gradient with them."""
        self.evaluations += 1
        theta = torch.cat([self.kernel, self.background]).detach()
        loss, gradient = self.loss_and_gradient(theta)
        kernel, background = self.objective.model.split(gradient.to(theta.dtype))
        self.kernel.grad, self.background.grad = kernel.clone(), background.clone()
        value = float(loss)
        if value < self.best[0]:
            self.best = (value, theta.clone())
        return loss

    def loss_and_gradient(self, theta: Params) -> tuple[Tensor, Params]:
        if self.layer_loss is None:
            e = self.objective.evaluate(theta.to(torch.float64), theta.dtype, curvature=False)
            return e.loss, e.gradient
        theta.requires_grad_(True)
        loss = self.layer_loss(theta)
        (gradient,) = torch.autograd.grad(loss, theta)
        theta.requires_grad_(False)
        return loss.detach(), gradient
