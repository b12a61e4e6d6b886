"""Simulated seasons with their truth: many frames of one field, good nights and bad."""

from .epochs import Epoch, Trouble
from .field import Field, Variable
from .files import (
    as_hdus,
    frame_name,
    frame_number,
    require_same_season,
    truth_tables,
    write_season,
)
from .model import START, Season, SeasonFrame
from .truth import Truth, read_truth

__all__ = [
    "START",
    "Epoch",
    "Field",
    "Season",
    "SeasonFrame",
    "Trouble",
    "Truth",
    "Variable",
    "as_hdus",
    "frame_name",
    "frame_number",
    "read_truth",
    "require_same_season",
    "truth_tables",
    "write_season",
]
