"""Gates of ``--fail-if``: read first, tested at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from memguard.cli.command import FAILED, PASSED

if TYPE_CHECKING:
    from memguard.report.audit import AuditReport, Gate

__all__ = ["judged", "parsed"]


def parsed(texts: Sequence[str]) -> list[Gate]:
    """The gates, before anything is computed: an audit of hours should not end in a typing error."""
    from memguard.report.audit import Gate

    return [Gate.parse(text) for text in texts]


def judged(report: AuditReport, gates: Sequence[Gate]) -> int:
    """Print every gate with its result, and return the exit code."""
    from memguard.report.audit import evaluate

    results = evaluate(gates, report) if gates else []
    for one in results:
        print(one)
    return FAILED if not all(one.ok for one in results) else PASSED
