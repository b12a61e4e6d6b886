"""From names to objects: the one table that turns words of the command line into classes."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from typing import Any

import torch

from .errors import InputError
from .kernel import DeltaKernel
from .likelihood import Gaussian, Huber, Likelihood, StudentT
from .penalty import LaplacianPenalty
from .prior import GaussianProcessPrior
from .solvers import AdamLBFGS, Newton, NormalEquations, Solver

__all__ = [
    "DtypeName",
    "LikelihoodName",
    "PriorName",
    "SolverName",
    "make_likelihood",
    "make_penalty",
    "make_solver",
    "parse_frame_size",
    "parse_kernel_size",
]


class LikelihoodName(enum.StrEnum):
    """Likelihoods by name."""

    GAUSSIAN = "gaussian"
    HUBER = "huber"
    STUDENT_T = "student-t"


class PriorName(enum.StrEnum):
    """Priors of the kernel by name."""

    EVIDENCE = "evidence"
    NONE = "none"


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


def make_likelihood(
    name: LikelihoodName,
    huber_c: float | None = None,
    student_nu: float | None = None,
    tolerance: float | None = None,
) -> Likelihood:
    """The likelihood of this name; None leaves its option at the default.

    Raises
    ------
    InputError
        An option is out of range, or belongs to another likelihood.
    """
    _refuse_foreign(
        f"--likelihood {name}",
        {
            "--huber-c": (huber_c, name is LikelihoodName.HUBER),
            "--student-nu": (student_nu, name is LikelihoodName.STUDENT_T),
            "--tolerance": (tolerance, name is not LikelihoodName.GAUSSIAN),
        },
    )
    match name:
        case LikelihoodName.GAUSSIAN:
            return Gaussian()
        case LikelihoodName.HUBER:
            return Huber(**_given(c=huber_c, tolerance=tolerance))
        case LikelihoodName.STUDENT_T:
            return StudentT(**_given(nu=student_nu, tolerance=tolerance))


def make_penalty(
    prior: PriorName | None, laplacian: float | None
) -> GaussianProcessPrior | LaplacianPenalty | None:
    """The prior or penalty of the kernel; the prior found by the evidence if neither is asked for.

    Raises
    ------
    InputError
        Both are given, or the strength is out of range.
    """
    if laplacian is None:
        return None if prior is PriorName.NONE else GaussianProcessPrior()
    if prior is PriorName.EVIDENCE:
        raise InputError("--laplacian takes the place of --prior evidence; leave one of them out.")
    return LaplacianPenalty(laplacian)


def make_solver(
    name: SolverName,
    *,
    max_steps: int | None = None,
    tol: float | None = None,
    lr_background: float | None = None,
    iterations: int | None = None,
    k_sigma: float | None = None,
) -> Solver:
    """The solver of this name; None leaves an option at the solver's own default.

    Raises
    ------
    InputError
        An option is out of range, or belongs to another solver.
    """
    equations = name is SolverName.NORMAL_EQUATIONS
    _refuse_foreign(
        f"--solver {name}",
        {
            "--max-steps": (max_steps, not equations),
            "--tol": (tol, not equations),
            "--lr-background": (lr_background, name is SolverName.ADAM_LBFGS),
            "--iterations": (iterations, equations),
            "--k-sigma": (k_sigma, equations),
        },
    )
    match name:
        case SolverName.NEWTON:
            return Newton(**_given(tol=tol, max_steps=max_steps))
        case SolverName.ADAM_LBFGS:
            return AdamLBFGS(
                **_given(
                    lr_background=lr_background, tol=tol, max_adam=max_steps, max_lbfgs=max_steps
                )
            )
        case SolverName.NORMAL_EQUATIONS:
            return NormalEquations(**_given(iterations=iterations, k_sigma=k_sigma))


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _refuse_foreign(chosen: str, options: Mapping[str, tuple[Any, bool]]) -> None:
    """Raise for an option that was given although it does nothing with what was chosen."""
    for option, (value, belongs) in options.items():
        if value is not None and not belongs:
            raise InputError(f"{option} does nothing with {chosen}; leave one of the two out.")


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


def parse_frame_size(text: str) -> tuple[int, int]:
    """``"512"`` or ``"400x600"`` (height x width) as (h, w)."""
    match = re.fullmatch(r"\s*(\d+)\s*(?:[x,]\s*(\d+)\s*)?", text.lower())
    if match is None:
        raise InputError(
            f"The frame size {text!r} is not understood; give one number (512), or two for height "
            "and width (400x600)."
        )
    return int(match[1]), int(match[2] or match[1])
