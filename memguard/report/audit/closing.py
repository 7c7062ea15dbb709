"""Chapters 14 to 16: the decision that is left to people, the handling of the files, how to do it again."""

from __future__ import annotations

from collections.abc import Mapping

from memguard.findings import Cell
from memguard.report.audit.blocks import Block, Bullets, Chapter, Facts, Heading, Para, Pre, TableBlock
from memguard.report.audit.data import AuditReport
from memguard.report.audit.glossary import GLOSSARY, REFERENCES
from memguard.report.audit.opening import answers, given
from memguard.report.audit.wording import NOT_GIVEN, cell_text
from memguard.report.text import count

__all__ = ["decision", "handling", "reproduce"]


def decision(report: AuditReport) -> Chapter:
    """14: what a person has to decide; never filled in here."""
    said = (
        "This report measures; it does not decide. Whether what was found may leave the building depends on who can "
        "query the model, on harm, and on the law. These fields are for the person who decides."
    )
    return Chapter(14, "Remaining risk and the decision", [Para(said), Facts(answers(report, 14))])


def handling(report: AuditReport) -> Chapter:
    """15: which file may go where."""
    ids = (
        "its ids are keyed hashes, which whoever has the key and a list of ids can undo"
        if report.hashed_ids
        else "its ids are the real ones"
    )
    rows = [
        (
            "report.html, report.md, model_card.md",
            "aggregates",
            f"counts of 1 to {report.min_cell - 1} people are suppressed",
        ),
        ("report.json", "aggregates with exact counts", "owner-only (mode 0600); hand on the page instead"),
        (
            "records.parquet",
            f"one row for each {report.unit}",
            f"owner-only (mode 0600); {ids}. Treat it like the training data",
        ),
    ]
    table = TableBlock(
        "What is in which file.", ("file", "holds", "handling"), rows, words=frozenset({0, 1, 2})
    )
    said = (
        "Reports of two models that were trained on nearly the same patients should not be handed on together: their "
        "difference can speak of one person. No number here is covered by an epsilon."
    )
    return Chapter(15, "Handling of this report", [table, Para(said), Facts(answers(report, 15))])


def reproduce(report: AuditReport) -> Chapter:
    """16: how to do it again, words and sources."""
    source, models = report.provenance, report.references
    facts = [
        (
            "Wall time",
            *given("" if source.seconds is None else f"{source.seconds:,.0f} s", "no time was taken"),
        ),
        ("Hardware", *given(source.hardware, "it could not be read")),
        ("Seeds", *given(_pairs(source.seeds), "nothing was drawn, or the seeds are not known")),
        ("Versions", *given(_pairs(source.versions), "no versions were recorded")),
        ("Settings", *given(_pairs(source.config), "no settings were recorded")),
        ("References", _references(report), models.kind == "none"),
    ]
    blocks: list[Block] = [Facts(facts)]
    if models.notes:
        blocks.append(Bullets(models.notes, title="About the reference models"))
    if source.commands:
        blocks.append(Pre("\n".join(source.commands), "Commands"))
    else:
        blocks.append(Para(f"Commands: {NOT_GIVEN}. An audit called from the command line records its own."))
    blocks += [Heading("Words", "words"), Facts([(word, text, False) for word, text in GLOSSARY])]
    blocks += [Heading("Sources", "sources"), Bullets(REFERENCES)]
    return Chapter(16, "How to do it again, words, sources", blocks)


def _references(report: AuditReport) -> str:
    models = report.references
    if models.kind == "none":
        return "none: memorized and easy patients cannot be told apart where a test compares with nothing"
    alike = {
        True: "like the audited model",
        False: "not like the audited model",
        None: "not compared with it",
    }
    more = f" ({_pairs(models.comparison)})" if models.comparison else ""
    return f"{models.kind}, {count(models.count)}; {alike[models.alike]}{more}"


def _pairs(values: Mapping[str, Cell]) -> str:
    return ", ".join(f"{name} {cell_text(value)}" for name, value in values.items())
