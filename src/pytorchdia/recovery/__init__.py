"""Simulated seasons reduced, and what comes out compared with what is true."""

from .compare import CurveRow, PhotonLimit, PullRow, Recovery, recover
from .experiment import run_season_experiment

__all__ = [
    "CurveRow",
    "PhotonLimit",
    "PullRow",
    "Recovery",
    "recover",
    "run_season_experiment",
]
