"""The experiments of the paper, rerun."""

from .bias import run_bias
from .real import PAPER_STARS, QUICK_EPOCHS, QUICK_STARS, run_real
from .table2 import ALL_PAIRS, PAPER_PAIRS, run_table2

__all__ = [
    "ALL_PAIRS",
    "PAPER_PAIRS",
    "PAPER_STARS",
    "QUICK_EPOCHS",
    "QUICK_STARS",
    "run_bias",
    "run_real",
    "run_table2",
]
