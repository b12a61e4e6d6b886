"""What has changed: sources in the differences and in the stack of them, merged into candidates."""

from .candidates import Candidate, cut_outs, merge_detections, stack_detections
from .detections import (
    DetectionFlag,
    Detections,
    filter_difference,
    find_in_difference,
    systematic_share,
)
from .stack import Stack

__all__ = [
    "Candidate",
    "DetectionFlag",
    "Detections",
    "Stack",
    "cut_outs",
    "filter_difference",
    "find_in_difference",
    "merge_detections",
    "stack_detections",
    "systematic_share",
]
