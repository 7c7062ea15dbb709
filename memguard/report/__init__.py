"""What people read: the watched run as data, as a page, as figures, as a table, and in the run's loggers."""

from __future__ import annotations

from memguard.report.data import CurvePoint, WatchReport
from memguard.report.figures import save_png
from memguard.report.flags import FLAG_COLUMNS, check_flags, empty_flags, most_urgent
from memguard.report.loggers import log_figure, log_report, log_text
from memguard.report.page import render_page, write_report
from memguard.report.private import HashedIds, write_private
from memguard.report.table import curve_markdown, curve_table, thin_roc

__all__ = [
    "FLAG_COLUMNS",
    "CurvePoint",
    "HashedIds",
    "WatchReport",
    "check_flags",
    "curve_markdown",
    "curve_table",
    "empty_flags",
    "log_figure",
    "log_report",
    "log_text",
    "most_urgent",
    "render_page",
    "save_png",
    "thin_roc",
    "write_private",
    "write_report",
]
