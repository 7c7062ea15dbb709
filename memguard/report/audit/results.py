"""Chapter 6: what each test found, with every number, its null and how it was made."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

from memguard.findings import Cell, Grid, Lines
from memguard.report.audit.blocks import Block, Bullets, Chapter, Facts, Figure, Heading, Para, TableBlock
from memguard.report.audit.data import AuditReport
from memguard.report.audit.figures import MOST_LINES, axes_figure, lines_figure
from memguard.report.audit.opening import gap_table
from memguard.report.audit.parts import Section, TwoAxes
from memguard.report.audit.wording import cell_text, figure, interval, named, null_text, value_text
from memguard.report.table import thin
from memguard.report.text import DASH, cell, count, percent

__all__ = ["grid_block", "results"]


def results(report: AuditReport) -> Chapter:
    """6: one part for each probe, in the order in which they ran, membership first."""
    ordered = sorted(report.sections, key=lambda section: "membership" not in section.probe)
    blocks: list[Block] = []
    if not ordered:
        blocks.append(Para("No test ran."))
    for section in ordered:
        blocks += _section(section, report)
    return Chapter(6, "Results of each test", blocks)


def _section(section: Section, report: AuditReport) -> list[Block]:
    name = named(section.probe)
    blocks: list[Block] = [Heading(name[:1].upper() + name[1:], f"test-{_anchor(section.probe)}")]
    blocks.append(Para(section.question, soft=True))
    blocks += [Para(section.answer)] if section.answer else []
    if section.n_flagged is not None:
        blocks.append(Para(_flags(section, report)))
    if section.numbers:
        blocks.append(_numbers(section, report))
    for key, curve in section.curves.items():
        blocks.append(_lines(f"{_anchor(section.probe)}-{_anchor(key)}", curve))
    for key, axes in section.axes.items():
        blocks.append(_axes(f"{_anchor(section.probe)}-axes-{_anchor(key)}", axes, report.min_cell))
    blocks += [grid_block(table) for table in section.tables.values()]
    blocks += [Bullets(section.notes, title="To be read with it")] if section.notes else []
    if section.not_tested:
        blocks.append(gap_table(section.not_tested, f"What the test {name} could not ask."))
    if section.settings or section.numbers or section.tables:  # a test that was not asked took no time
        took = f"{section.seconds:,.1f} s"
        blocks.append(Facts([("Run with", _settings(section.settings), False), ("Took", took, False)]))
    return blocks


def _flags(section: Section, report: AuditReport) -> str:
    ranked = section.n_ranked or report.members.n_patients
    rate = (
        "the stated error rate"
        if report.flag_rate is None
        else f"a {percent(report.flag_rate)} false-discovery rate"
    )
    n = cell(section.n_flagged, report.min_cell)
    said = f"{n} of {count(ranked)} training {report.unit}s are flagged at {rate}."
    if section.n_flagged:
        return f"{said} They are rows of records.parquet, which stays where the audit was made."
    return f"{said} That bounds false flags, not misses."


def _numbers(section: Section, report: AuditReport) -> TableBlock:
    rows = []
    for name, number in section.numbers.items():
        one = number.estimate
        rows.append(
            (
                name,
                value_text(one),
                interval(one),
                null_text(number.null),
                number.lies or DASH,
                cell(one.n, report.min_cell),
                one.method,
                DASH if number.seed is None else str(number.seed),
            )
        )
    head = ("number", "value", "interval", "without a leak", "interval lies", "n", "method", "seed")
    note = f"Decides in the verdict: {section.headline}." if section.headline else ""
    return TableBlock(
        f"Numbers of this test; a gate names them {section.probe}.(number).(value, low, high or n).",
        head,
        rows,
        note=note,
        words=frozenset({0, 4, 6}),
    )


def grid_block(table: Grid) -> TableBlock:
    """A table of a probe; columns of words are aligned as words.

    Args:
        table: Without its small cells.
    """
    rows = [tuple(cell_text(one) for one in row) for row in table.rows]
    words = {i for i in range(len(table.columns)) if _wordy([row[i] for row in table.rows])}
    head = [name.replace("_", " ") for name in table.columns]
    return TableBlock(
        table.title.rstrip(".") + ".", head, rows, note=table.note, words=frozenset({0} | words)
    )


def _wordy(cells: list[Cell]) -> bool:
    texts = [one for one in cells if isinstance(one, str) and not one.startswith("<")]
    return bool(texts) and len(texts) >= sum(one is not None for one in cells) / 2


def _lines(name: str, curve: Lines) -> Figure:
    left = len(curve.lines) - MOST_LINES
    more = f" {left} more lines are in the table only." if left > 0 else ""
    return Figure(
        name=f"lines-{name}",
        title=curve.title,
        description=_spoken(curve),
        draw=functools.partial(lines_figure, curve),
        table=functools.partial(_line_table, curve),
        caption=f"{curve.title.rstrip('.')}.{' Both axes are logarithmic.' if curve.log else ''}"
        f"{' Shaded: intervals, each for one point.' if curve.bands else ''}{more}",
    )


def _spoken(curve: Lines) -> str:
    said = []
    for name, points in curve.lines.items():
        if points:
            (x0, y0), (x1, y1) = points[0], points[-1]
            said.append(f"{name} goes from {figure(y0)} at {x0:g} to {figure(y1)} at {x1:g}")
    return f"{curve.y} over {curve.x}. {'; '.join(said) or 'No point was measured'}. The table below has the points."


def _line_table(curve: Lines, most: int) -> TableBlock:
    rows: list[tuple[str, ...]] = []
    whole = True
    for name, points in curve.lines.items():
        shown = thin(list(points), most)
        whole &= len(shown) == len(points)
        band = {x: (low, high) for x, low, high in curve.bands.get(name, ())}
        for x, y in shown:
            ends = band.get(x)
            between = DASH if ends is None else f"[{figure(ends[0])}, {figure(ends[1])}]"
            rows.append((name, _point(x), _point(y), between))
    head: tuple[str, ...] = ("line", curve.x, curve.y, "interval")
    note = "" if whole else "Every second, third ... point of long lines; report.json has all."
    if not curve.bands:
        head, rows = head[:3], [row[:3] for row in rows]
    return TableBlock(f"{curve.title.rstrip('.')}: the points.", head, rows, note=note, folded=True)


def _point(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else figure(value)


def _axes(name: str, axes: TwoAxes, min_cell: int) -> Figure:
    return Figure(
        name=name,
        title=axes.title,
        description=_spoken_axes(axes, min_cell),
        draw=functools.partial(axes_figure, axes),
        table=functools.partial(_axes_table, axes, min_cell),
        caption=f"{axes.note} Patients are counted in cells: the area of a disc is their share of their side, a cross "
        f"stands for fewer than {min_cell} patients, and no point is a patient. Compare the two sides: what is up on "
        "the left and not on the right was memorized.",
        wide=True,
    )


def _spoken_axes(axes: TwoAxes, min_cell: int) -> str:
    said = []
    for side, rows in axes.counts.items():
        total = sum(n or 0 for row in rows for n in row)
        up = sum(n or 0 for j, row in enumerate(rows) for n in row if axes.y_edges[j] >= 0)
        said.append(
            f"of {side}, {percent(up / total) if total else DASH} lie in cells above zero on the axis of {axes.y}"
        )
    return f"{axes.y} over {axes.x}: {'; '.join(said)}; cells of fewer than {min_cell} patients are not counted here."


def _axes_table(axes: TwoAxes, min_cell: int, most: int) -> TableBlock:
    """One row for each cell of the vertical axis and side; empty columns stay, so that both sides compare."""
    across = [f"{a:g} to {b:g}" for a, b in zip(axes.x_edges, axes.x_edges[1:], strict=False)]
    rows = []
    for side, counts in axes.counts.items():
        for j in reversed(range(len(counts))):
            name = f"{side}: {axes.y_edges[j]:g} to {axes.y_edges[j + 1]:g}"
            rows.append((name, *(f"<{min_cell}" if n is None else count(n) for n in counts[j])))
    return TableBlock(
        f"{axes.title.rstrip('.')}: patients in each cell, {axes.y} down and {axes.x} across.",
        (axes.y, *across),
        rows,
        folded=True,
    )


def _settings(settings: Mapping[str, Cell]) -> str:
    return ", ".join(f"{name} {cell_text(value)}" for name, value in settings.items()) or "no settings"


def _anchor(name: str) -> str:
    kept = "".join(one if one.isalnum() and one.isascii() else "-" for one in name.lower())
    return kept.strip("-") or "x"
