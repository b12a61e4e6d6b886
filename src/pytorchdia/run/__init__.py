"""A run over a season, from raw frames to light curves: settings, steps, state, and files."""

from .lightcurves import LightCurve, LightCurves
from .reduce import reduce

__all__ = ["LightCurve", "LightCurves", "reduce"]
