"""What frames go through before a subtraction: graded, brought onto one grid, combined."""

from .quality import FrameQuality, Grade, Limits, grade, measure_quality
from .reference import choose_reference_frames, make_reference
from .register import Registration, find_transform
from .resample import apply_registration

__all__ = [
    "FrameQuality",
    "Grade",
    "Limits",
    "Registration",
    "apply_registration",
    "choose_reference_frames",
    "find_transform",
    "grade",
    "make_reference",
    "measure_quality",
]
