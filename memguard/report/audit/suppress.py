"""Small cells: what a view of the report must not show, taken out before it is made."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import TypeGuard

from memguard.attacks.estimate import Estimate
from memguard.findings import Cell, Grid
from memguard.report.audit.data import AuditReport
from memguard.report.audit.parts import Number, Section, Stratum, TwoAxes
from memguard.report.text import cell

__all__ = ["suppressed", "suppressed_table"]

# Heads of columns that count people: those by whom a row is made, and those that count some of these.
_BASE = re.compile(r"^(n|(n )?(patients|people|persons|members|held[- ]out|never[- ]trained)( patients)?)$")
_PEOPLE = re.compile(
    r"\b(patients?|people|persons?|members?|held[- ]out|never[- ]trained|flagged|subjects?)\b|^n$"
)


def suppressed(report: AuditReport) -> AuditReport:
    """The report as every view shows it: small cells of people are gone.

    An estimate from fewer than ``min_cell`` patients is taken out, and so is every number in a row of a table that
    stands for so few; a count from 1 to ``min_cell - 1`` is written ``<min_cell``. Counts outside of tables are
    written so where they are printed. Suppression does not hide what the difference of two shown cells gives away,
    and it does not read sentences.

    Args:
        report: The report with exact counts.
    """
    least = report.min_cell
    return dataclasses.replace(
        report,
        sections=tuple(_section(section, least) for section in report.sections),
        strata=tuple(_stratum(row, least) for row in report.strata),
    )


def suppressed_table(table: Grid, min_cell: int) -> Grid:
    """A table without its small cells.

    Args:
        table: With exact counts.
        min_cell: See `memguard.report.text.cell`.

    Example:
        >>> table = Grid(title="t", columns=["group", "patients", "recall"], rows=[["all", 90, .5], ["few", 3, .33]])
        >>> suppressed_table(table, 5).rows
        (('all', 90, 0.5), ('few', '<5', None))
    """
    heads = [head.strip().lower().replace("_", " ") for head in table.columns]
    base = [i for i, head in enumerate(heads) if _BASE.match(head)]
    people = {i for i, head in enumerate(heads) if _PEOPLE.search(head)}
    rows = tuple(_row(row, base, people, min_cell) for row in table.rows)
    return dataclasses.replace(table, rows=rows)


def _row(row: Sequence[Cell], base: Sequence[int], people: set[int], least: int) -> tuple[Cell, ...]:
    few = any(_is_count(one) and 0 < one < least for one in (row[i] for i in base))
    shown: list[Cell] = []
    for i, value in enumerate(row):
        if i in people and _is_count(value):
            shown.append(cell(value, least) if 0 < value < least else value)
        elif isinstance(value, Estimate):
            shown.append(None if few or value.n < least else value)
        elif _is_number(value):
            shown.append(None if few else value)
        else:
            shown.append(value)
    return tuple(shown)


def _is_number(value: Cell) -> TypeGuard[int | float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_count(value: Cell) -> TypeGuard[int | float]:
    return _is_number(value) and math.isfinite(value) and value == int(value)


def _section(section: Section, least: int) -> Section:
    return dataclasses.replace(
        section,
        numbers={name: _number(one, least) for name, one in section.numbers.items()},
        tables={name: suppressed_table(one, least) for name, one in section.tables.items()},
        axes={name: _axes(one, least) for name, one in section.axes.items()},
    )


def _number(number: Number, least: int) -> Number:
    if number.estimate.n >= least:
        return number
    gone = dataclasses.replace(number.estimate, value=math.nan, low=math.nan, high=math.nan)
    return dataclasses.replace(number, estimate=gone)


def _axes(axes: TwoAxes, least: int) -> TwoAxes:
    counts = {
        side: tuple(tuple(None if n is None or 0 < n < least else n for n in row) for row in rows)
        for side, rows in axes.counts.items()
    }
    return dataclasses.replace(axes, counts=counts)


def _stratum(row: Stratum, least: int) -> Stratum:
    few = (
        row.n_members < least
        or row.n_held_out < least
        or (row.estimate is not None and row.estimate.n < least)
    )
    if not few or row.estimate is None:
        return row
    return dataclasses.replace(row, estimate=None, note=f"fewer than {least} patients on one side")
