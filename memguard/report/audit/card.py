"""A fragment for a Hugging Face model card: metadata that any YAML reader takes, and one section of text."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from memguard.report.audit.data import AuditReport
from memguard.report.audit.glossary import DOES_NOT_SHOW
from memguard.report.audit.markdown import escape_markdown, markdown_table
from memguard.report.audit.suppress import suppressed
from memguard.report.audit.verdict import AuditVerdict, audit_verdict
from memguard.report.audit.wording import interval, named, null_text, value_text
from memguard.report.text import DASH, cell

__all__ = ["model_card"]


def model_card(report: AuditReport) -> str:
    """Metadata and the section "Privacy audit" for a model card, aggregates only.

    The metadata is a ``model-index`` entry with the deciding number of each test; merge it into the metadata of the
    card, and put the text under "Bias, Risks, and Limitations".

    Args:
        report: With exact counts; small cells are suppressed.

    Example:
        >>> from memguard.report.audit.parts import SideCounts
        >>> side = SideCounts(n_patients=900, n_records=1400)
        >>> report = AuditReport(version="0.1.0", created="2026-01-31", members=side, held_out=side)
        >>> model_card(report).splitlines()[:4]
        ['---', 'tags:', '- "memguard"', '- "privacy-audit"']
    """
    shown = suppressed(report)
    return (
        "\n".join(["---", *_yaml(_metadata(shown)), "---", "", *_text(shown, audit_verdict(report))]) + "\n"
    )


def _metadata(report: AuditReport) -> dict[str, Any]:
    metrics = []
    for section in report.sections:
        number = section.deciding
        if number is not None and math.isfinite(number.estimate.value):
            name = f"{named(section.probe)}: {named(section.headline)}"
            metrics.append(
                {"type": f"{section.probe}.{section.headline}", "name": name, "value": number.estimate.value}
            )
    body: dict[str, Any] = {"tags": ["memguard", "privacy-audit"]}
    if metrics:
        task = {"type": "privacy-audit", "name": "Privacy audit"}
        data = {"type": "health-records", "name": report.provenance.dataset or "not given"}
        result = {"task": task, "dataset": data, "metrics": metrics}
        body["model-index"] = [{"name": report.provenance.model or "not given", "results": [result]}]
    return body


def _yaml(value: Any, indent: int = 0) -> list[str]:
    """Block YAML whose scalars are JSON: no text can end a scalar early or become a date, a number or markup."""
    pad = " " * indent
    lines: list[str] = []
    pairs = value.items() if isinstance(value, Mapping) else [("-", one) for one in value]
    for key, one in pairs:
        head = f"{pad}-" if key == "-" else f"{pad}{key}:"
        if isinstance(one, Mapping) or (isinstance(one, Sequence) and not isinstance(one, str)):
            inner = _yaml(one, indent + 2 if key == "-" or isinstance(one, Mapping) else indent)
            lines += [f"{head} {inner[0].strip()}", *inner[1:]] if key == "-" else [head, *inner]
        else:
            lines.append(f"{head} {json.dumps(one)}")
    return lines


def _text(report: AuditReport, said: AuditVerdict) -> list[str]:
    rows = []
    for section in report.sections:
        number = section.deciding
        rows.append(
            (
                named(section.probe),
                named(section.headline) or DASH,
                DASH if number is None else value_text(number.estimate),
                DASH if number is None else interval(number.estimate),
                DASH if number is None else null_text(number.null),
                DASH if number is None else cell(number.estimate.n, report.min_cell),
                cell(section.n_flagged, report.min_cell),
            )
        )
    head = ("test", "number", "value", "interval", "without a leak", "n", "flagged")
    lines = ["### Privacy audit", ""]
    lines += [line for one in said.alarms for line in (f"> **Alarm.** {escape_markdown(one)}", "")]
    lines += [escape_markdown(said.headline), "", *(f"- {escape_markdown(one)}" for one in said.findings), ""]
    lines += [escape_markdown(said.scope), "", escape_markdown(said.untested), ""]
    if rows:
        lines += [markdown_table(head, rows, frozenset({0, 1})), ""]
    if report.claim is not None:
        lines += [
            f"Differential privacy: epsilon = {report.claim.epsilon:.4g} at delta = {report.claim.delta:g}, for one "
            f"{escape_markdown(report.claim.unit)}; the statement in the audit report says what it covers.",
            "",
        ]
    elif report.no_claim is not None:
        why = "; ".join(one.rstrip(".") for one in report.no_claim.reasons)
        lines += [f"Differential privacy: no claim. {escape_markdown(why)}.", ""]
    lines += ["What this does not show:", "", *(f"- {escape_markdown(one)}" for one in DOES_NOT_SHOW), ""]
    made = escape_markdown(f"memguard {report.version}, {report.created}")
    checkpoint = escape_markdown(report.provenance.checkpoint) or "checkpoint not given"
    return [*lines, f"Made by {made}, {checkpoint}."]
