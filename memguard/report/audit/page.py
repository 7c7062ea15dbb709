"""The page of an audit: one HTML file that works without a network, on paper, by keyboard and read aloud."""

from __future__ import annotations

import dataclasses
from typing import Any

from memguard.report.audit.blocks import Block, Chapter, Figure
from memguard.report.audit.chapters import chapters
from memguard.report.audit.data import AuditReport
from memguard.report.audit.parts import Section
from memguard.report.audit.verdict import audit_verdict, finding
from memguard.report.audit.wording import interval, named, null_text, value_text
from memguard.report.page import fill
from memguard.report.svg import inline_svg
from memguard.report.text import DASH, cell, count

__all__ = ["render_audit_page"]

_MOST_POINTS = 24


def render_audit_page(report: AuditReport) -> str:
    """The page as text: verdict, what was not tested, sixteen chapters, figures with the tables behind them.

    It holds aggregates only, with small cells suppressed, and names no other file or address.

    Args:
        report: With exact counts.

    Raises:
        ImportError: Jinja2 or Matplotlib is missing (``pip install memguard-ehr[audit]``).

    Example:
        >>> from memguard.report.audit.parts import SideCounts
        >>> side = SideCounts(n_patients=900, n_records=1400)
        >>> report = AuditReport(version="0.1.0", created="2026-01-31", members=side, held_out=side)
        >>> render_audit_page(report).splitlines()[0]
        '<!doctype html>'
    """
    said = audit_verdict(report)
    made = [_chapter(chapter) for chapter in chapters(report)]
    return fill(
        "audit.html.j2",
        {
            "report": report,
            "verdict": said,
            "tiles": _tiles(report),
            "chapters": made,
            "n_open": len(report.open_questions()),
        },
    )


def _chapter(chapter: Chapter) -> dict[str, Any]:
    return {
        "number": chapter.number,
        "title": chapter.title,
        "anchor": chapter.anchor,
        "blocks": [_block(block) for block in chapter.blocks],
        "parts": [block for block in chapter.blocks if block.kind == "heading"],
    }


def _block(block: Block) -> dict[str, Any]:
    body = {field.name: getattr(block, field.name) for field in dataclasses.fields(block)}
    if isinstance(block, Figure):
        body["svg"] = inline_svg(block.draw, block.name, title=block.title, description=block.description)
        body["table"] = block.table(_MOST_POINTS)
    return body


def _tiles(report: AuditReport) -> list[dict[str, str]]:
    """The numbers of the first screen: tests, the deciding number of each of the first two, gaps."""
    by = [finding(section) for section in report.sections]
    judged = by.count("found") + by.count("nothing above chance")
    tiles = [
        {
            "label": "Tests that found a leak",
            "value": str(by.count("found")) if judged else DASH,
            "note": f"of {judged} that could be judged, {len(by)} ran" if by else "no test ran",
        }
    ]
    tiles += [_tile(section) for section in report.sections if _shown(section)][:2]
    flagged = [section for section in report.sections if section.n_flagged is not None]
    if flagged:
        most = max(flagged, key=lambda section: section.n_flagged or 0)
        ranked = most.n_ranked or report.members.n_patients
        tiles.append(
            {
                "label": "Most flagged by one test",
                "value": cell(most.n_flagged, report.min_cell),
                "note": f"of {count(ranked)} {report.unit}s, by {named(most.probe)}",
            }
        )
    gaps = list(report.gaps())
    tiles.append(
        {"label": "Not tested", "value": str(len(gaps)), "note": "listed in chapter 5, with the reason"}
    )
    return tiles


def _shown(section: Section) -> bool:
    number = section.deciding
    return number is not None and number.null is not None and number.estimate.low == number.estimate.low


def _tile(section: Section) -> dict[str, str]:
    number = section.deciding
    assert number is not None
    return {
        "label": f"{named(section.probe)}: {named(section.headline)}",
        "value": value_text(number.estimate),
        "note": f"{interval(number.estimate)}, {null_text(number.null)} without a leak",
    }
