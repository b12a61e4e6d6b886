"""The report of a run: one HTML page that needs nothing but a browser."""

from .report import make_report, report_digest

__all__ = ["make_report", "report_digest"]
