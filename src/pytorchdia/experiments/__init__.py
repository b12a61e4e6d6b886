"""The experiments of the paper, rerun."""

from .table2 import Method, run_table2

__all__ = ["Method", "run_table2"]
