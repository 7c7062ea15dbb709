"""Chapters 1 to 5: the finding, what the model is for, the data, the unit, the attackers."""

from __future__ import annotations

from collections.abc import Sequence

from memguard.findings import Gap
from memguard.report.audit.blocks import Block, Bullets, Chapter, Facts, Heading, Para, TableBlock
from memguard.report.audit.data import AuditReport
from memguard.report.audit.glossary import DOES_NOT_SHOW
from memguard.report.audit.parts import Section, SideCounts
from memguard.report.audit.questions import QUESTIONS
from memguard.report.audit.verdict import RULE, finding
from memguard.report.audit.wording import NOT_GIVEN, interval, named, null_text, value_text
from memguard.report.text import DASH, cell, count

__all__ = ["answers", "data", "finding_chapter", "gap_table", "given", "purpose", "threats", "unit"]

_IN_WORDS = {
    "found": "more than without a leak",
    "nothing above chance": "not told from chance",
    "not judged": "described, not judged",
    "not measured": "not measured",
}


def given(text: str, how: str) -> tuple[str, bool]:
    """A text, or how to give it; and whether it is missing.

    Args:
        text: What is known.
        how: The argument or the person.
    """
    return (text, False) if text.strip() else (f"{NOT_GIVEN}; {how}", True)


def answers(report: AuditReport, chapter: int) -> list[tuple[str, str, bool]]:
    """What people said in a chapter, and what is left open, with who is to say it.

    Args:
        report: The audit.
        chapter: Its number.
    """
    rows = []
    for one in QUESTIONS:
        if one.chapter == chapter:
            how = f'to be filled in by {one.who} (answers["{one.key}"]). {one.asks}'
            rows.append((one.label, *given(report.answers.get(one.key, ""), how)))
    return rows


def gap_table(gaps: Sequence[Gap], caption: str) -> TableBlock:
    """What was not tested, why, and what would make it possible.

    Args:
        gaps: Of them.
        caption: Of the table.
    """
    rows = [
        (f"{named(gap.probe)}: {gap.what}" if gap.probe else gap.what, gap.why, gap.fix or DASH)
        for gap in gaps
    ]
    return TableBlock(
        caption, ("not tested", "why", "what would make it possible"), rows, words=frozenset({0, 1, 2})
    )


def finding_chapter(report: AuditReport) -> Chapter:
    """1: each test in one row, the rule, what nothing here shows, and what was audited by whom."""
    source = report.provenance
    facts = [
        ("Made", f"{report.created}, memguard {report.version}", False),
        ("Model", *given(source.model, "audit a module, whose class is then known")),
        ("Checkpoint", *given(source.checkpoint, "audit a checkpoint file, whose hash is then known")),
        ("Data", *given(source.dataset, "pass the data sets, whose fingerprint is then known")),
        *answers(report, 1),
    ]
    blocks: list[Block] = []
    if report.sections:
        judged = sum(finding(section) in ("found", "nothing above chance") for section in report.sections)
        tests = f"{judged} tests" if judged != 1 else "one test"
        wrong = f"{0.025 * judged:.2g} of them would be found by chance on average"
        if judged == 1:
            wrong = "it would be found by chance in 2.5 % of audits"
        chance = f" With {tests} judged by intervals of 95 %, {wrong} where nothing leaks." if judged else ""
        rows = [_row(section, report) for section in report.sections]
        head = ("test", "finding", "deciding number", "value", "interval", "without a leak", "n", "flagged")
        table = TableBlock(
            f"Tests that ran. n counts {report.unit}s.", head, rows, words=frozenset({0, 1, 2})
        )
        blocks += [table, Para(RULE + chance, soft=True)]
    if report.notes:
        blocks.append(Bullets(report.notes, title="Noted during the audit"))
    blocks += [Heading("What was audited", "audited"), Facts(facts)]
    blocks += [Heading("What this does not show", "not-shown"), Bullets(DOES_NOT_SHOW)]
    return Chapter(1, "What was found", blocks)


def _row(section: Section, report: AuditReport) -> tuple[str, ...]:
    number = section.deciding
    known = number is not None
    return (
        named(section.probe),
        _IN_WORDS[finding(section)],
        named(section.headline) or DASH,
        value_text(number.estimate) if known and number else DASH,
        interval(number.estimate) if known and number else DASH,
        DASH if number is None else null_text(number.null),
        count(number.estimate.n) if number else DASH,
        cell(section.n_flagged, report.min_cell),
    )


def purpose(report: AuditReport) -> Chapter:
    """2: what the model is for, and who can ask it."""
    return Chapter(2, "Intended use and exposure", [Facts(answers(report, 2))])


def data(report: AuditReport) -> Chapter:
    """3: who is in the data."""
    units = f"{report.unit}s"
    head = ("", units, "records", "records each: median", "99 % have at most", "most")
    rows = [_side("training", report.members, report), _side("never-trained", report.held_out, report)]
    note = (
        ""
        if report.members.records_per_patient.get("max") is not None
        else ("The largest number of records is one patient's own; it is given from 1,000 patients on.")
    )
    table = TableBlock(f"Whom the audit compared. {_source(report)}", head, rows, note=note)
    blocks: list[Block] = [table]
    if report.canaries:
        blocks.append(
            Para(
                f"The model was also trained on {report.canaries:,} planted canaries, which are no {units}: they are "
                "in none of these counts and in no number but those of the canary test."
            )
        )
    return Chapter(3, "Training data", [*blocks, Facts(answers(report, 3))])


def _source(report: AuditReport) -> str:
    if not report.patients_source:
        return f"Where the {report.unit} of a record comes from was not given."
    return f"Which {report.unit} a record is of: {report.patients_source}."


def _side(name: str, side: SideCounts, report: AuditReport) -> tuple[str, ...]:
    spread = side.records_per_patient
    each = [f"{spread[key]:g}" if key in spread else DASH for key in ("median", "p99", "max")]
    return (name, cell(side.n_patients, report.min_cell), count(side.n_records), *each)


def unit(report: AuditReport) -> Chapter:
    """4: what is counted."""
    if report.unit == "patient":
        said = (
            "The unit is the patient. All records of a patient were put together before anything was counted, both "
            "sides share no patient, and intervals treat the patient as independent."
        )
    else:
        said = (
            "The unit is the record, since no patient was known. A patient with several records may stand on both "
            "sides, intervals are too narrow, and nothing in this report is a statement about a patient. Pass the "
            "record -> patient map to have it as the unit."
        )
    return Chapter(4, "Unit of privacy", [Para(said), Facts(answers(report, 4))])


def threats(report: AuditReport) -> Chapter:
    """5: which attackers were tried, and which were not."""
    blocks: list[Block] = []
    if report.threats:
        rows = [(one.name, one.access, one.knowledge, ", ".join(one.probes)) for one in report.threats]
        head = ("attack", "what the attacker sees of the model", "what he knows of the patient", "tests")
        blocks.append(TableBlock("Attacks that were tried.", head, rows, words=frozenset({0, 1, 2, 3})))
    else:
        blocks.append(Para("No attack was tried."))
    gaps = list(report.gaps())
    blocks.append(Heading("Not tested", "not-tested"))
    if gaps:
        blocks.append(gap_table(gaps, "What was not tested. Nothing in this report speaks of it."))
    else:
        blocks.append(Para("No gap was reported. That is a gap of its own: no audit tries everything."))
    return Chapter(5, "Attacks tried, and not tried", blocks)
