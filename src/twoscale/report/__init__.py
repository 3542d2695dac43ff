"""The report room: the lab's record as a page, as plots, and as tables for terminals and notebooks."""

from twoscale.report.page import render_report, stages_html, write_plots, write_report
from twoscale.report.terminal import summary_table

__all__ = ["render_report", "stages_html", "summary_table", "write_plots", "write_report"]
