"""The arms themselves: how each trains, what it promises, and what became of the patients it left alone."""

from __future__ import annotations

import math

from memguard.records.small_cells import MIN_CELL
from memguard.report.comparison.cells import Column, Line, Shown, Table, line_of, value_cell
from memguard.report.comparison.data import ArmSummary, Comparison, Untouched
from memguard.report.comparison.wording import settings_text, sign_of, signed, signed_interval
from memguard.report.text import DASH, cell, number, percent

__all__ = ["arms_table", "untouched_table"]


def arms_table(comparison: Comparison) -> Table:
    """Settings, guarantee and price of every arm.

    Example:
        >>> arms = [ArmSummary(name="x", seconds=20.0), ArmSummary(name="dp", epsilon=3.0, seconds=50.0)]
        >>> found = Comparison(version="0", baseline="x", seeds=4, models=8, patients=90, held_out=40, arms=arms)
        >>> [cell.text for cell in arms_table(found).lines[1].cells[:3]]
        ['3', '50.0', '2.5']
    """
    basis = next((one.seconds for one in comparison.arms if one.name == comparison.baseline), None)
    heads = [
        Column("epsilon"),
        Column("seconds a model"),
        Column("times the baseline"),
        Column("patients touched"),
        Column("settings", words=True),
        Column("guarantee", words=True),
        Column("losses that the attacks read", words=True),
    ]
    lines = [line_of(comparison, arm, _about(arm, basis)) for arm in comparison.arms]
    caption = (
        "Seconds are of training one model, whatever else the machine was doing. Touched: share of the patients "
        "in training whom the mitigation ever concerned."
    )
    return Table("The arms", caption, heads, lines)


def _about(arm: ArmSummary, basis: float | None) -> list[Shown]:
    times = arm.seconds / basis if arm.seconds is not None and basis else None
    finite = arm.epsilon is not None and math.isfinite(arm.epsilon)
    return [
        Shown(f"{arm.epsilon:.3g}" if finite else "none"),
        Shown(number(arm.seconds, 1)),
        Shown(number(times, 1)),
        Shown(percent(arm.touched_share, 1)),
        Shown(settings_text(arm), words=True),
        Shown(arm.guarantee or "none", words=True),
        Shown(", ".join([*arm.signals, *(f"{one} (the same)" for one in arm.same)]) or DASH, words=True),
    ]


def untouched_table(comparison: Comparison) -> Table | None:
    """Patients whom a mitigation never touched, beside what new seeds alone do; ``None`` without any.

    Example:
        >>> found = Comparison(version="0", baseline="x", seeds=4, models=8, patients=90, held_out=40, arms=[])
        >>> untouched_table(found) is None
        True
    """
    known = {one.arm: one for one in comparison.untouched}
    lines = [_untouched(comparison, arm, known[arm.name]) for arm in comparison.arms if arm.name in known]
    if not lines:
        return None
    found, exposed, hidden = "Share found", "Newly exposed patients", "Newly hidden patients"
    heads = [
        Column("patients", ""),
        Column("baseline", found),
        Column("this arm", found),
        Column("difference", found),
        Column("of new seeds alone", found),
        Column("this arm", exposed),
        Column("new seeds alone", exposed),
        Column("this arm", hidden),
        Column("new seeds alone", hidden),
    ]
    caption = (
        "Newly exposed: found in fewer than a quarter of the baseline's runs with them, and in more than half of "
        "the arm's; newly hidden: the reverse. The control is the baseline trained again with new seeds."
    )
    note = "" if comparison.control else "No control was trained: what new seeds alone would do is not known."
    return Table("Patients whom the mitigation left alone", caption, heads, lines, note)


def _untouched(comparison: Comparison, arm: ArmSummary, one: Untouched) -> Line:
    if one.patients < MIN_CELL:
        said = f"{cell(one.patients)} patients were left alone: too few for a number"
        return line_of(comparison, arm, missing=said)
    control = one.control_difference
    cells = [
        Shown(cell(one.patients)),
        value_cell(one.baseline_tpr),
        value_cell(one.tpr),
        Shown(signed(one.difference), signed_interval(one.difference), sign_of(one.difference)),
        Shown(signed(control), signed_interval(control), sign_of(control)),
        *(
            Shown(cell(count))
            for count in (
                one.newly_exposed,
                one.control_newly_exposed,
                one.newly_hidden,
                one.control_newly_hidden,
            )
        ),
    ]
    return line_of(comparison, arm, cells)
