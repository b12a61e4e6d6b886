"""PyTorchDIA: difference image analysis by maximum likelihood (Hitchcock et al. 2021)."""

from importlib.metadata import version as _version

from .background import PolynomialBackground
from .errors import Finding, InputError, PyTorchDIAError, PyTorchDIAWarning, Status
from .frame import Flag, Frame
from .io import as_frame
from .kernel import DeltaKernel
from .likelihood import Gaussian, Huber, Likelihood, StudentT
from .measure import choose_kernel
from .noise import CCDNoise, EMCCDNoise, FixedVariance, NoiseModel
from .penalty import LaplacianPenalty
from .prior import GaussianProcessPrior
from .run.lightcurves import LightCurve, LightCurves
from .run.reduce import reduce
from .solvers import AdamLBFGS, Newton, NormalEquations
from .subtract import subtract
from .subtraction import Subtraction, SubtractionStack

__version__ = _version("pytorchdia")

__all__ = [
    "AdamLBFGS",
    "CCDNoise",
    "DeltaKernel",
    "EMCCDNoise",
    "Finding",
    "FixedVariance",
    "Flag",
    "Frame",
    "Gaussian",
    "GaussianProcessPrior",
    "Huber",
    "InputError",
    "LaplacianPenalty",
    "LightCurve",
    "LightCurves",
    "Likelihood",
    "Newton",
    "NoiseModel",
    "NormalEquations",
    "PolynomialBackground",
    "PyTorchDIAError",
    "PyTorchDIAWarning",
    "Status",
    "StudentT",
    "Subtraction",
    "SubtractionStack",
    "as_frame",
    "choose_kernel",
    "reduce",
    "subtract",
]
