"""The report of a comparison: arms of training against a baseline, as data and in its forms."""

from __future__ import annotations

from memguard.report.comparison.data import (
    SCHEMA,
    ArmSummary,
    Comparison,
    Group,
    Level,
    Point,
    Row,
    Untouched,
)
from memguard.report.comparison.files import load, save
from memguard.report.comparison.page import render_comparison_page
from memguard.report.comparison.text import summary

__all__ = [
    "SCHEMA",
    "ArmSummary",
    "Comparison",
    "Group",
    "Level",
    "Point",
    "Row",
    "Untouched",
    "load",
    "render_comparison_page",
    "save",
    "summary",
]
