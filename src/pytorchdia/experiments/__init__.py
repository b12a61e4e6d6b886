"""The experiments of the paper, rerun."""

from .bias import run_bias
from .table2 import ALL_PAIRS, PAPER_PAIRS, run_table2

__all__ = ["ALL_PAIRS", "PAPER_PAIRS", "run_bias", "run_table2"]
