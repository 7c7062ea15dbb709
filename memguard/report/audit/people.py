"""Chapters 7 and 8: the patients who are worst off, and groups of patients."""

from __future__ import annotations

import functools

from memguard.attacks.estimate import Estimate
from memguard.report.audit.blocks import Block, Chapter, Figure, Para, TableBlock
from memguard.report.audit.data import AuditReport
from memguard.report.audit.figures import forest_figure
from memguard.report.audit.parts import Stratum, Tail, lies
from memguard.report.audit.wording import figure, named, null_text, written
from memguard.report.text import DASH, cell

__all__ = ["strata", "tail"]


def tail(report: AuditReport) -> Chapter:
    """7: how far the most exposed reach, beside never-trained patients."""
    units = f"{report.unit}s"
    said = (
        f"An average over {units} does not answer whether some of them are exposed. Here each {report.unit} counts by "
        f"itself: how many are flagged, and how many lie beyond what a small share of never-trained {units} reach. "
        "Rows of single patients are in records.parquet alone."
    )
    blocks: list[Block] = [Para(said)]
    flagged = [section for section in report.sections if section.n_flagged is not None]
    if not report.tail and not flagged:
        blocks.append(Para(f"No {report.unit} was ranked, so nobody is flagged and nobody is cleared."))
    if report.tail:
        blocks += [_table(report), _quantiles(report)]
    blocks.append(
        Para(
            "Not measured: whether another training run flags the same patients. It needs models trained with other "
            "seeds.",
            soft=True,
        )
    )
    return Chapter(7, "The patients who are worst off", blocks)


def _table(report: AuditReport) -> TableBlock:
    head = (
        "evidence",
        "members",
        "held-out",
        "flagged",
        "found beyond the threshold",
        "held-out beyond it",
    )
    rows = []
    for row in report.tail:
        rows.append(
            (
                _name(row),
                cell(row.n_members, report.min_cell),
                cell(row.n_held_out, report.min_cell),
                cell(row.n_flagged, report.min_cell),
                written(row.beyond),
                f"{100 * row.fpr:g} %" if row.beyond is not None else DASH,
            )
        )
    note = (
        "Found beyond the threshold: share of members above a value that only the stated share of held-out patients "
        "exceeds; without a leak both shares are the same. It is pooled over patients: for some the risk is higher."
    )
    return TableBlock("The upper end of each evidence.", head, rows, note=note)


def _quantiles(report: AuditReport) -> TableBlock:
    shares = sorted({share for row in report.tail for share in row.quantiles})
    head = (
        "evidence",
        *(f"{100 * share:g} % lie below: {side}" for share in shares for side in ("members", "held-out")),
    )
    rows = []
    for row in report.tail:
        values = [row.quantiles.get(share) for share in shares]
        rows.append(
            (_name(row), *(DASH if pair is None else figure(pair[i]) for pair in values for i in (0, 1)))
        )
    note = f"Given only where at least {report.min_cell} patients of each side lie beyond."
    return TableBlock("Quantiles of each evidence, by patient.", head, rows, note=note)


def _name(row: Tail) -> str:
    return f"{named(row.probe)}: {row.evidence}"


def strata(report: AuditReport) -> Chapter:
    """8: every number that was measured in groups of patients."""
    if not report.strata:
        text = (
            "No group of patients was looked at by itself. An overall number can hide a group that is much worse off; "
            "name groups (age, sex, race, site) when the audit is called."
        )
        return Chapter(8, "Groups of patients", [Para(text)])
    blocks: list[Block] = [
        Para(
            "Groups may overlap. A diamond is a group whose interval lies above what the number would be without a "
            f"leak (dotted line); a circle is one whose does not. Groups with fewer than {report.min_cell} patients "
            "on a side are suppressed. Where the method does not name Bonferroni, one in forty lies "
            "above by chance."
        )
    ]
    groups: dict[tuple[str, str], list[Stratum]] = {}
    for row in report.strata:
        groups.setdefault((row.probe, row.number), []).append(row)
    blocks += [_forest(i, rows, report) for i, rows in enumerate(groups.values())]
    return Chapter(8, "Groups of patients", blocks)


def _forest(i: int, rows: list[Stratum], report: AuditReport) -> Figure:
    first = rows[0]
    title = f"{named(first.probe)}: {named(first.number)} in each group"
    whole = _everybody(first, report)
    overall = None if whole is None else whole.value
    return Figure(
        name=f"forest-{i}",
        title=title,
        description="; ".join(f"{row.stratum} {written(row.estimate)}" for row in rows) + ".",
        draw=functools.partial(forest_figure, rows, overall=overall),
        table=functools.partial(_rows, title, rows, report.min_cell),
        caption=f"{title[:1].upper()}{title[1:]}, with its interval."
        + ("" if overall is None else f" Dashed: among everybody, {figure(overall)}."),
        wide=True,
    )


def _everybody(row: Stratum, report: AuditReport) -> Estimate | None:
    """The same number among all patients, where the test on subgroups or the probe itself has it."""
    found = report.numbers()
    names = (f"subgroups.{row.probe}.everybody.{row.number}", f"{row.probe}.{row.number}")
    return next((found[name].estimate for name in names if name in found), None)


def _rows(title: str, rows: list[Stratum], min_cell: int, most: int) -> TableBlock:
    body = [
        (
            row.stratum,
            written(row.estimate),
            null_text(row.null),
            lies(row.estimate, row.null) or DASH,
            cell(row.n_members, min_cell),
            cell(row.n_held_out, min_cell),
            "; ".join(part for part in (row.note, row.estimate.method if row.estimate else "") if part)
            or DASH,
        )
        for row in rows
    ]
    head = (
        "group",
        "value and interval",
        "without a leak",
        "interval lies",
        "members",
        "held-out",
        "method, or why there is none",
    )
    return TableBlock(f"{title[:1].upper()}{title[1:]}.", head, body, words=frozenset({0, 3, 6}), folded=True)
