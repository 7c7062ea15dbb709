"""A comparison as text for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from memguard.report.audit.wording import figure, value_text
from memguard.report.comparison.data import Comparison, Row
from memguard.report.comparison.wording import (
    kind_of,
    known_row,
    name_of_group,
    per,
    rate,
    signed,
    signed_interval,
    tidy,
)
from memguard.report.text import DASH, count

__all__ = ["headline", "scope", "summary"]

_WIDTH = 100
_LONGEST = 32


def headline(comparison: Comparison) -> str:
    """How many ways to train, beside which.

    Example:
        >>> from memguard.report.comparison.data import ArmSummary
        >>> arms = [ArmSummary(name="x"), ArmSummary(name="y")]
        >>> headline(Comparison(version="0", baseline="x", seeds=4, models=8, patients=90, held_out=40, arms=arms))
        '1 way to train, compared with “x”'
    """
    others = [one for one in comparison.arms if kind_of(comparison, one) in ("private", "other")]
    n = len(others)
    if not n:
        return f"Nothing was compared with “{comparison.baseline}”"
    return f"{n} {'way' if n == 1 else 'ways'} to train, compared with “{comparison.baseline}”"


def scope(comparison: Comparison) -> str:
    """What was compared, in one line.

    Example:
        >>> found = Comparison(version="0", baseline="x", seeds=4, models=8, patients=90, held_out=40, arms=[])
        >>> scope(found)
        '4 seeds, 8 models an arm, 90 patients and 40 held-out ones; no control was trained'
    """
    control = f"control: {comparison.control}" if comparison.control else "no control was trained"
    return (
        f"{comparison.seeds} seeds, {comparison.models} models an arm, {count(comparison.patients)} patients and "
        f"{count(comparison.held_out)} held-out ones; {control}"
    )


def summary(comparison: Comparison) -> str:
    """What to know without opening a file: the arms at the end and at the first level, and the sentences.

    Args:
        comparison: What was found.

    Example:
        >>> from memguard.report.comparison.data import ArmSummary
        >>> found = Comparison(version="0", baseline="x", seeds=4, models=8, patients=90, held_out=40,
        ...                    arms=[ArmSummary(name="x")])
        >>> print(summary(found).splitlines()[0])
        Nothing was compared with “x”
    """
    lines = _wrapped(tidy(headline(comparison)))
    lines += _wrapped(tidy(scope(comparison)))
    lines += _wrapped(
        f"Found: share of members above what {rate(comparison.fpr)} of non-members reach, by the strongest of "
        f"{len(comparison.attacks)} attacks. Loss in {per(comparison.unit)}. "
        f"Intervals: {rate(comparison.confidence)}."
    )
    lines += ["", "At the end of training", *_table(comparison, "final")]
    for level in comparison.levels:
        title = f"At matched utility: {tidy(level.name)}, loss of the choosing half at most {figure(level.limit, 3)}"
        lines += ["", title, *_table(comparison, level.name, level.reached)]
    lines += ["", "What may be concluded", *_bullets(comparison.may, "Nothing.")]
    lines += ["", "What may not be concluded", *_bullets(comparison.may_not, "No sentence was written.")]
    if comparison.notes:
        lines += ["", "Notes", *_bullets(comparison.notes, "")]
    return "\n".join(lines)


def _table(comparison: Comparison, stage: str, reached: Mapping[str, float] | None = None) -> list[str]:
    rows: list[Sequence[str]] = [
        [
            "",
            "epochs",
            "loss",
            "minus baseline",
            "found",
            name_of_group(comparison, "hardest"),
            "minus baseline",
        ]
    ]
    names = [one for one in comparison.names() if reached is None or one in reached]
    for name in names:
        loss, everybody, tail = (
            known_row(comparison, name, group, measure, stage)
            for group, measure in (("all", "held_out_loss"), ("all", "tpr"), ("hardest", "tpr"))
        )
        known = next((one for one in (loss, tail, everybody) if one is not None), None)
        rows.append(
            [
                _short(name),
                DASH if known is None else f"{known.epoch:.3g}",
                _value(loss),
                _difference(loss),
                _value(everybody),
                _value(tail),
                _difference(tail),
            ]
        )
    lines = _aligned(rows) if names else []
    missing = [tidy(one) for one in comparison.names() if one not in names]
    return [*lines, *_wrapped(f"did not reach: {'; '.join(missing)}", "  ")] if missing else lines


def _short(name: str) -> str:
    name = tidy(name)
    half = _LONGEST // 2  # names often differ in their last word
    return name if len(name) <= _LONGEST else f"{name[:half]}…{name[1 - half :]}"


def _value(row: Row | None) -> str:
    return DASH if row is None else value_text(row.value)


def _difference(row: Row | None) -> str:
    if row is None or row.minus_baseline is None:
        return ""
    return f"{signed(row.minus_baseline)} {signed_interval(row.minus_baseline)}".rstrip()


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The first column to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        numbers = (one.rjust(width) for one, width in zip(row[1:], widths[1:], strict=True))
        lines.append(("  " + "  ".join([row[0].ljust(widths[0]), *numbers])).rstrip())
    return lines


def _bullets(sentences: Sequence[str], empty: str) -> list[str]:
    if not sentences:
        return [f"  {empty}"] if empty else []
    return [line for one in sentences for line in _wrapped(tidy(one), "    ", "  - ")]


def _wrapped(text: str, indent: str = "", first: str | None = None) -> list[str]:
    start = indent if first is None else first
    return textwrap.wrap(text, _WIDTH, initial_indent=start, subsequent_indent=indent, break_long_words=False)
