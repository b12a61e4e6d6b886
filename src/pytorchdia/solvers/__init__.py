"""Solvers: three ways to the minimum of an objective."""

from .adam_lbfgs import AdamLBFGS, ConvolutionLayer
from .base import Solution, Solver, Step, System, flat_start, gaussian_start
from .newton import Newton
from .normal_equations import NormalEquations

__all__ = [
    "AdamLBFGS",
    "ConvolutionLayer",
    "Newton",
    "NormalEquations",
    "Solution",
    "Solver",
    "Step",
    "System",
    "flat_start",
    "gaussian_start",
]
