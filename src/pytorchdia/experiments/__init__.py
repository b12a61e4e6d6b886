"""The experiments of the paper, rerun."""

from .bias import run_bias
from .real_frame import real_frame_scenario
from .scenarios import SCENARIOS, Scenario, ScenarioName
from .table2 import ALL_PAIRS, PAPER_PAIRS, run_table2

__all__ = [
    "ALL_PAIRS",
    "PAPER_PAIRS",
    "SCENARIOS",
    "Scenario",
    "ScenarioName",
    "real_frame_scenario",
    "run_bias",
    "run_table2",
]
