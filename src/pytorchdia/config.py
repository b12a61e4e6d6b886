"""From names to objects: the one table that turns words of the command line into classes."""

from __future__ import annotations

import enum
import re

import torch

from .errors import InputError
from .kernel import DeltaKernel
from .likelihood import Gaussian, Huber, Likelihood, StudentT
from .solvers import AdamLBFGS, Newton, NormalEquations, Solver

__all__ = [
    "DtypeName",
    "LikelihoodName",
    "SolverName",
    "make_likelihood",
    "make_solver",
    "parse_kernel_size",
]


class LikelihoodName(enum.StrEnum):
    """Likelihoods by name."""

    GAUSSIAN = "gaussian"
    HUBER = "huber"
    STUDENT_T = "student-t"


class SolverName(enum.StrEnum):
    """Solvers by name."""

    NEWTON = "newton"
    ADAM_LBFGS = "adam-lbfgs"
    NORMAL_EQUATIONS = "normal-equations"


class DtypeName(enum.StrEnum):
    """Precisions by name."""

    FLOAT32 = "float32"
    FLOAT64 = "float64"

    @property
    def dtype(self) -> torch.dtype:
        """The torch dtype of this name."""
        return torch.float32 if self is DtypeName.FLOAT32 else torch.float64


def make_likelihood(name: LikelihoodName, huber_c: float, student_nu: float) -> Likelihood:
    """The likelihood of this name."""
    match name:
        case LikelihoodName.GAUSSIAN:
            return Gaussian()
        case LikelihoodName.HUBER:
            return Huber(huber_c)
        case LikelihoodName.STUDENT_T:
            return StudentT(student_nu)


def make_solver(
    name: SolverName,
    *,
    max_steps: int | None = None,
    tol: float | None = None,
    lr_background: float = 1.0,
    iterations: int = 3,
    k_sigma: float | None = None,
) -> Solver:
    """The solver of this name; None leaves an option at the solver's own default."""
    match name:
        case SolverName.NEWTON:
            newton = Newton()
            return Newton(tol or newton.tol, max_steps or newton.max_steps)
        case SolverName.ADAM_LBFGS:
            adam = AdamLBFGS()
            return AdamLBFGS(
                lr_background=lr_background,
                tol=tol or adam.tol,
                max_adam=max_steps or adam.max_adam,
                max_lbfgs=max_steps or adam.max_lbfgs,
            )
        case SolverName.NORMAL_EQUATIONS:
            return NormalEquations(iterations, k_sigma)


def parse_kernel_size(text: str) -> DeltaKernel | None:
    """``"19"`` or ``"19x25"`` (ky x kx) as a kernel; ``"auto"`` as None."""
    if text.strip().lower() == "auto":
        return None
    match = re.fullmatch(r"\s*(\d+)\s*(?:[x,]\s*(\d+)\s*)?", text.lower())
    if match is None:
        raise InputError(
            f"The kernel size {text!r} is not understood; give one odd number (19), two for height "
            "and width (19x25), or auto."
        )
    height = int(match[1])
    return DeltaKernel((height, int(match[2]))) if match[2] else DeltaKernel(height)
