"""What the tables of a comparison are made of: cells with their interval, a row an arm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memguard.attacks.estimate import Estimate
from memguard.report.audit.wording import interval, value_text
from memguard.report.comparison.data import ArmSummary, Comparison, Row
from memguard.report.comparison.wording import kind_of, kind_words, sign_of, signed, signed_interval
from memguard.report.text import DASH

__all__ = ["Column", "Line", "Shown", "Table", "difference_cell", "line_of", "pair_of", "value_cell"]


@dataclass(frozen=True)
class Shown:
    """A cell.

    Attributes:
        text: The number.
        interval: Below it.
        sign: 1 or -1 where the whole interval lies above or below 0: the one for all arms where there is one.
        adjusted: An interval that holds for all arms together, below that.
        words: Whether it is text, aligned left.
        bad: Whether above 0 is the bad side (-1: below; 0: nobody knows).
    """

    text: str
    interval: str = ""
    sign: int = 0
    adjusted: str = ""
    words: bool = False
    bad: int = 1


@dataclass(frozen=True)
class Column:
    """Head of a column; neighbours of one group share a head above theirs."""

    name: str
    group: str = ""
    words: bool = False


@dataclass(frozen=True)
class Line:
    """One arm: its number and kind, and either its cells or the reason why there are none."""

    number: int
    name: str
    kind: str
    said: str
    cells: Sequence[Shown] = ()
    missing: str = ""


@dataclass(frozen=True)
class Table:
    """A table whose first column stays while the rest scrolls; ``absent`` are arms of which it has no row."""

    title: str
    caption: str
    columns: Sequence[Column]
    lines: Sequence[Line]
    note: str = ""
    absent: Sequence[Line] = ()
    why_absent: str = ""

    @property
    def heads(self) -> list[tuple[str, int]]:
        """Heads of groups with the number of columns below each; empty where no column has a group."""
        found: list[tuple[str, int]] = []
        for column in self.columns:
            if found and found[-1][0] == column.group:
                found[-1] = (column.group, found[-1][1] + 1)
            else:
                found.append((column.group, 1))
        return found if any(column.group for column in self.columns) else []


def value_cell(estimate: Estimate | None) -> Shown:
    """A number above its interval.

    Example:
        >>> value_cell(Estimate(value=.31, low=.27, high=.35, n=90, method="x"))
        Shown(text='.310', interval='[.270, .350]', sign=0, adjusted='', words=False, bad=1)
    """
    if estimate is None or estimate.value != estimate.value:
        return Shown(DASH)
    return Shown(value_text(estimate), interval(estimate))


def difference_cell(row: Row | None, *, bad: int = 1) -> Shown:
    """A paired difference above its interval.

    Example:
        >>> difference_cell(None).text
        '–'
    """
    if row is None or row.minus_baseline is None:
        return Shown(DASH)
    one = row.minus_baseline
    return Shown(
        signed(one),
        signed_interval(one),
        sign_of(row.adjusted or one),
        signed_interval(row.adjusted),
        bad=bad,
    )


def pair_of(row: Row | None, *, bad: int = 1) -> list[Shown]:
    """Both.

    Example:
        >>> len(pair_of(None))
        2
    """
    return [value_cell(None if row is None else row.value), difference_cell(row, bad=bad)]


def line_of(comparison: Comparison, arm: ArmSummary, cells: Sequence[Shown] = (), missing: str = "") -> Line:
    """The arm with its number, and what is said of it.

    Example:
        >>> arm = ArmSummary(name="x")
        >>> found = Comparison(version="0", baseline="x", seeds=4, models=8, patients=90, held_out=40, arms=[arm])
        >>> line_of(found, arm).number, line_of(found, arm).said
        (1, 'baseline')
    """
    number = 1 + comparison.names().index(arm.name)
    return Line(
        number, arm.name, kind_of(comparison, arm), kind_words(comparison, arm), tuple(cells), missing
    )
