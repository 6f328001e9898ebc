"""The report: tables, plots, contact sheets and one self-contained page."""

from l2a_ray.outputs.report.page import few_clips, write_report

__all__ = ["few_clips", "write_report"]
