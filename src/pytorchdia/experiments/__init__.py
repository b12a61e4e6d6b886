"""The experiments of the paper, rerun."""

from .bias import run_bias
from .layers import run_layers
from .real import PAPER_STARS, QUICK_EPOCHS, QUICK_STARS, run_real
from .real_frame import real_frame_scenario
from .scenarios import SCENARIOS, Scenario, ScenarioName
from .speed import run_speed_image, run_speed_kernel
from .table2 import ALL_PAIRS, PAPER_PAIRS, run_table2

__all__ = [
    "ALL_PAIRS",
    "PAPER_PAIRS",
    "PAPER_STARS",
    "QUICK_EPOCHS",
    "QUICK_STARS",
    "SCENARIOS",
    "Scenario",
    "ScenarioName",
    "real_frame_scenario",
    "run_bias",
    "run_layers",
    "run_real",
    "run_speed_image",
    "run_speed_kernel",
    "run_table2",
]
