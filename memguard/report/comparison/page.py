"""The page of a comparison: one HTML file that works without a network, on paper, by keyboard and read aloud."""

from __future__ import annotations

from typing import Any

from memguard.records.small_cells import MIN_CELL
from memguard.report.comparison.arms import arms_table, untouched_table
from memguard.report.comparison.data import Comparison
from memguard.report.comparison.front import Way, front_figure, ways
from memguard.report.comparison.method import does_not_show, method, methods_named
from memguard.report.comparison.tables import by_group, final_table, level_tables, metrics_table, stages_table
from memguard.report.comparison.text import headline
from memguard.report.comparison.wording import groups_of, kind_of, kind_words, name_of_group, per, rate
from memguard.report.page import fill
from memguard.report.svg import inline_svg
from memguard.report.text import cell, count

__all__ = ["render_comparison_page"]


def render_comparison_page(comparison: Comparison) -> str:
    """The page as text: what was compared, what may be concluded and what not, tables, fronts, method, notes.

    It holds aggregates only, with small cells suppressed, and names no other file or address.

    Args:
        comparison: What was found.

    Raises:
        ImportError: Jinja2 or Matplotlib is missing (``pip install memguard-ehr[report]``).

    Example:
        >>> from memguard.report.comparison.data import ArmSummary
        >>> found = Comparison(version="0", baseline="x", seeds=4, models=8, patients=90, held_out=40,
        ...                    arms=[ArmSummary(name="x")])
        >>> render_comparison_page(found).splitlines()[0]
        '<!doctype html>'
    """
    panels, undrawn = _panels(comparison)
    leakage = by_group(
        comparison,
        "tpr",
        "Found, group by group",
        f"Members above the threshold that {rate(comparison.fpr)} of all non-members exceed, by the attack that is "
        "strongest in the group; in brackets, patients.",
    )
    price = by_group(
        comparison,
        "unseen_loss",
        "Loss of unseen patients",
        f"Mean loss in {per(comparison.unit)} of patients of the group whom the model did not train on; a difference "
        "above 0 is the price that they pay.",
    )
    return fill(
        "comparison.html.j2",
        {
            "found": comparison,
            "headline": headline(comparison),
            "tiles": _tiles(comparison),
            "levels": level_tables(comparison),
            "final": final_table(comparison),
            "panels": panels,
            "undrawn": undrawn,
            "arms": [
                {
                    "number": i,
                    "name": arm.name,
                    "kind": kind_of(comparison, arm),
                    "said": kind_words(comparison, arm),
                    "notes": arm.notes,
                }
                for i, arm in enumerate(comparison.arms, start=1)
            ],
            "leakage": leakage,
            "metrics": metrics_table(comparison),
            "price": price,
            "untouched": untouched_table(comparison),
            "settings": arms_table(comparison),
            "method": method(comparison),
            "methods": methods_named(comparison),
            "does_not_show": does_not_show(),
            "fpr": rate(comparison.fpr),
            "tolerance": rate(comparison.tolerance),
            "min_cell": MIN_CELL,
        },
    )


def _tiles(comparison: Comparison) -> list[dict[str, str]]:
    """What was compared: arms, seeds, patients, attacks."""
    kinds = [kind_of(comparison, one) for one in comparison.arms]
    private = kinds.count("private")
    guarded = f"{private} with differential privacy" if private else "none with differential privacy"
    control = f"control: {comparison.control}" if comparison.control else "no control"
    return [
        {"label": "Arms", "value": str(len(kinds)), "note": f"{guarded}; {control}"},
        {"label": "Seeds", "value": str(comparison.seeds), "note": f"{comparison.models} models an arm"},
        {
            "label": "Patients",
            "value": count(comparison.patients),
            "note": f"half of them trained on; {count(comparison.held_out)} held out",
        },
        {
            "label": "Attacks",
            "value": str(len(comparison.attacks)),
            "note": "the strongest counts, number by number",
        },
    ]


def _panels(comparison: Comparison) -> tuple[list[dict[str, Any]], list[str]]:
    """One figure for each group that has points, with the table behind it; and groups without a finite point."""
    pointed = {one.group for one in comparison.points}
    sizes = {one.name: one for one in comparison.groups}
    panels, undrawn = [], []
    for i, group in enumerate(one for one in groups_of(comparison) if one in pointed):
        drawn = ways(comparison, group)
        if not drawn:
            undrawn.append(name_of_group(comparison, group))
            continue
        name, size = name_of_group(comparison, group), sizes.get(group)
        known = size is not None and group != "hardest"
        panels.append(
            {
                "title": name,
                "words": size.words if size is not None and group not in ("all", "hardest") else "",
                "patients": f"{cell(size.patients)} patients, {cell(size.held_out)} judging"
                if size is not None and known
                else "",
                "svg": _svg(comparison, drawn, f"front-{i}", name),
                "table": stages_table(comparison, group),
            }
        )
    return panels, undrawn


def _svg(comparison: Comparison, drawn: list[Way], name: str, group: str) -> str:
    ends = [f"arm {way.number} at {way.stages[-1][0]:.3g} and {way.stages[-1][1]:.2g}" for way in drawn]
    return inline_svg(
        lambda colors: front_figure(
            drawn, colors, fpr=comparison.fpr, unit=comparison.unit, tolerance=comparison.tolerance
        ),
        name,
        title=f"Utility and leakage: {group}",
        description="Held-out loss across, share of members found up. At the end of training: "
        + "; ".join(ends)
        + ".",
    )
