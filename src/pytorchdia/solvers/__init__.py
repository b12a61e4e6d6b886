"""Solvers: three ways to the minimum of an objective."""

from .adam_lbfgs import AdamLBFGS
from .base import Solution, Solver, Step, flat_start, gaussian_start
from .newton import Newton
from .normal_equations import NormalEquations

__all__ = [
    "AdamLBFGS",
    "Newton",
    "NormalEquations",
    "Solution",
    "Solver",
    "Step",
    "flat_start",
    "gaussian_start",
]
