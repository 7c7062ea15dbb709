"""The sixteen chapters in order: what is in the report, before it becomes a page or a text."""

from __future__ import annotations

from memguard.report.audit import closing, opening, people, promised, protection, results
from memguard.report.audit.blocks import Chapter
from memguard.report.audit.data import AuditReport
from memguard.report.audit.suppress import suppressed

__all__ = ["chapters"]

_MAKERS = (
    opening.finding_chapter,
    opening.purpose,
    opening.data,
    opening.unit,
    opening.threats,
    results.results,
    people.tail,
    people.strata,
    protection.training,
    protection.mitigations,
    promised.promise,
    promised.epsilon,
    protection.utility,
    closing.decision,
    closing.handling,
    closing.reproduce,
)


def chapters(report: AuditReport) -> list[Chapter]:
    """Every chapter, small cells of people suppressed; none is left out because nothing is known.

    Args:
        report: With exact counts.

    Example:
        >>> from memguard.report.audit.parts import SideCounts
        >>> side = SideCounts(n_patients=900, n_records=1400)
        >>> report = AuditReport(version="0.1.0", created="2026-01-31", members=side, held_out=side)
        >>> [chapter.number for chapter in chapters(report)] == list(range(1, 17))
        True
    """
    shown = suppressed(report)
    return [make(shown) for make in _MAKERS]
