"""What can go wrong, and how it is said.

::

    PyTorchDIAError
    |-- InputError (also a ValueError)      the caller can mend it
    |   |-- ShapeError                      sizes that do not go together
    |   |-- TooFewPixelsError               nothing, or not enough, left to fit
    |   |-- FlatImageError                  an image without any structure
    |   |-- RegistrationError               a frame that cannot be laid onto the reference's grid
    |   `-- NoiseModelError                 gain, read noise, variance or flat out of range
    |-- ReadError  (also an OSError)        a file that cannot be read as an image
    `-- WriteError (also an OSError)        a result that cannot be written

    PyTorchDIAWarning (a UserWarning)
    |-- NoiseWarning                        the noise model was guessed, or contradicts the image
    |-- CovarianceWarning                   error bars that fail the tests of section 2.5
    `-- ConvergenceWarning                  a fit that stopped before its goal

Every message is a sentence that says what happened, gives the numbers, and says what to try. A fit
that goes wrong does not raise: it returns its best point with a :class:`Status` and a list of
:class:`Finding`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "ConvergenceWarning",
    "CovarianceWarning",
    "Finding",
    "FlatImageError",
    "InputError",
    "NoiseModelError",
    "NoiseWarning",
    "PyTorchDIAError",
    "PyTorchDIAWarning",
    "ReadError",
    "RegistrationError",
    "ShapeError",
    "Status",
    "TooFewPixelsError",
    "WriteError",
]


class PyTorchDIAError(Exception):
    """Anything that this package raises on purpose."""


class InputError(PyTorchDIAError, ValueError):
    """An argument, a frame or an option that cannot be used as given."""


class ShapeError(InputError):
    """Arrays whose sizes do not go together, or a kernel size that cannot be used."""


class TooFewPixelsError(InputError):
    """Fewer usable pixels than the fit has parameters."""


class FlatImageError(InputError):
    """An image without structure, from which no kernel can be learnt."""


class RegistrationError(InputError):
    """Two frames whose stars do not match: another field, or too few stars."""


class NoiseModelError(InputError):
    """A gain, read noise, variance or flat-field outside its range."""


class ReadError(PyTorchDIAError, OSError):
    """A file or an HDU that cannot be read as an image."""


class WriteError(PyTorchDIAError, OSError):
    """A result that cannot be written where it was asked for."""


class PyTorchDIAWarning(UserWarning):
    """Any warning of this package."""


class NoiseWarning(PyTorchDIAWarning):
    """The noise model was guessed from the image, or the image contradicts it."""


class CovarianceWarning(PyTorchDIAWarning):
    """The covariance matrix fails a validity test of section 2.5."""


class ConvergenceWarning(PyTorchDIAWarning):
    """The solver stopped before it reached its goal."""


class Status(enum.Enum):
    """How a fit ended. The value is the sentence to show to a person."""

    CONVERGED = "The fit converged."
    STALLED = (
        "The fit stopped because no step lowers the loss any further at this precision, before its "
        "goal was reached. Check the noise model, and try dtype=torch.float64 or a smaller kernel."
    )
    MAX_STEPS = (
        "The fit ran out of steps before its goal was reached; the best point so far is returned. "
        "Allow more steps, or use the Newton solver."
    )
    NOT_FINITE = (
        "The loss became infinite or NaN, or the normal matrix could not be factored; the last "
        "usable point is returned. Look for pixels with absurd values and for a reference without "
        "stars, and check the gain, the read noise and the variance."
    )

    @property
    def ok(self) -> bool:
        """Whether the result can be used without a second look."""
        return self is Status.CONVERGED


@dataclass(frozen=True)
class Finding:
    """One thing that the user should know about a result.

    Parameters
    ----------
    code : str
        A short fixed name, for scripts to test (``"noise-estimated"``, for instance).
    message : str
        A sentence with the numbers in it.
    level : {"note", "warning"}
        A note tells what was done; a warning says that something may be wrong.
    """

    code: str
    message: str
    level: Literal["note", "warning"] = "note"

    def __str__(self) -> str:
        return f"{self.level} [{self.code}]: {self.message}"
