"""The report: tables, plots, contact sheets and one self-contained page."""

from l2a_ray.outputs.report.page import write_report

__all__ = ["write_report"]
