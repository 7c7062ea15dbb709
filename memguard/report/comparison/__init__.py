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

__all__ = ["SCHEMA", "ArmSummary", "Comparison", "Group", "Level", "Point", "Row", "Untouched"]
