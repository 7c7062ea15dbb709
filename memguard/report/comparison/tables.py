"""The tables of a comparison: a row an arm, a value and its difference from the baseline side by side."""

from __future__ import annotations

from memguard.report.audit.wording import figure
from memguard.report.comparison.cells import Column, Shown, Table, line_of, pair_of
from memguard.report.comparison.data import Comparison, Level
from memguard.report.comparison.front import ways
from memguard.report.comparison.wording import groups_with, known_row, metrics_of, name_of_group, rate

__all__ = ["by_group", "final_table", "level_tables", "metrics_table", "stages_table"]

_FINAL = (
    "Found: members beyond what {} of non-members reach, by the strongest attack. AUC: over all thresholds."
)


def level_tables(comparison: Comparison) -> list[Table]:
    """One table a level of matched utility; arms that never came within it are named below.

    Example:
        >>> from memguard.report.comparison.data import ArmSummary
        >>> level = Level(name="baseline's end", limit=2.1, words="as good as the baseline at its end")
        >>> found = Comparison(version="0", baseline="x", seeds=4, models=8, patients=90, held_out=40,
        ...                    arms=[ArmSummary(name="x")], levels=[level])
        >>> table = level_tables(found)[0]
        >>> table.why_absent, table.absent[0].name, len(table.lines)
        ('Did not reach', 'x', 0)
    """
    return [_level(comparison, level) for level in comparison.levels]


def _level(comparison: Comparison, level: Level) -> Table:
    loss = "Held-out loss (judged)"
    pairs = [(loss, "all", "held_out_loss")]
    pairs += [(f"Found: {name_of_group(comparison, group)}", group, "tpr") for group in ("all", "hardest")]
    lines = []
    for arm in (one for one in comparison.arms if one.name in level.reached):
        cells = [Shown(f"{level.reached[arm.name]:.3g}")]
        for _, group, measure in pairs:
            row = known_row(comparison, arm.name, group, measure, level.name)
            cells += pair_of(row)
        lines.append(line_of(comparison, arm, cells))
    heads = [Column("epochs")]
    heads += [Column(name, group) for group, _, _ in pairs for name in ("value", "minus baseline")]
    reached = len(set(level.reached) & set(comparison.names()))
    caption = (
        f"{level.words or level.name}: at most {figure(level.limit, 3)} on the choosing half; "
        f"{reached} of {len(comparison.arms)} arms came within it."
    )
    absent = [line_of(comparison, arm) for arm in comparison.arms if arm.name not in level.reached]
    return Table(
        level.name,
        caption[:1].upper() + caption[1:],
        heads,
        lines,
        absent=absent,
        why_absent="Did not reach",
    )


def final_table(comparison: Comparison) -> Table:
    """Every arm at the end of its training.

    Example:
        >>> from memguard.report.comparison.data import ArmSummary
        >>> found = Comparison(version="0", baseline="x", seeds=4, models=8, patients=90, held_out=40,
        ...                    arms=[ArmSummary(name="x")])
        >>> [head for head, _ in final_table(found).heads]
        ['Held-out loss (judged)', 'Found: all patients', 'Found: hardest 5 %', 'AUC: all patients']
    """
    asked = [("Held-out loss (judged)", "all", "held_out_loss")]
    asked += [(f"Found: {name_of_group(comparison, one)}", one, "tpr") for one in ("all", "hardest")]
    if "hardest" in groups_with(comparison, "tpr_as_deployed"):
        head = f"{name_of_group(comparison, 'hardest')}, by the losses as deployed alone"
        asked.append((f"Found: {head}", "hardest", "tpr_as_deployed"))
    asked.append((f"AUC: {name_of_group(comparison, 'all')}", "all", "auc"))
    lines = []
    for arm in comparison.arms:
        cells = []
        for _, group, measure in asked:
            row = known_row(comparison, arm.name, group, measure)
            cells += pair_of(row)
        lines.append(line_of(comparison, arm, cells))
    heads = [Column(name, group) for group, _, _ in asked for name in ("value", "minus baseline")]
    return Table("At the end of training", _FINAL.format(rate(comparison.fpr)), heads, lines)


def by_group(comparison: Comparison, measure: str, title: str, caption: str) -> Table | None:
    """One measure in every group that has it, at the end of training.

    Args:
        comparison: The whole comparison.
        measure: As in `Row`.
        title: Of the table.
        caption: What is in it.

    Returns:
        ``None`` where no group has it.

    Example:
        >>> found = Comparison(version="0", baseline="x", seeds=4, models=8, patients=90, held_out=40, arms=[])
        >>> by_group(found, "tpr", "t", "c") is None
        True
    """
    groups = groups_with(comparison, measure)
    if not groups:
        return None
    sizes = {one.name: one for one in comparison.groups}
    heads = []
    for group in groups:
        one = sizes.get(group)
        name = name_of_group(comparison, group)
        # The hardest are others for every seed; a count of them would say little.
        if one is not None and group != "hardest":
            name = f"{name} ({one.patients:,})"
        heads += [Column("value", name), Column("minus baseline", name)]
    lines = []
    for arm in comparison.arms:
        cells = []
        for group in groups:
            row = known_row(comparison, arm.name, group, measure)
            cells += pair_of(row)
        lines.append(line_of(comparison, arm, cells))
    return Table(title, caption, heads, lines)


def metrics_table(comparison: Comparison) -> Table | None:
    """Metrics that the user's own validation step logged, on the judging half; ``None`` without any.

    Example:
        >>> found = Comparison(version="0", baseline="x", seeds=4, models=8, patients=90, held_out=40, arms=[])
        >>> metrics_table(found) is None
        True
    """
    metrics = metrics_of(comparison)
    if not metrics:
        return None
    lines = []
    for arm in comparison.arms:
        cells = []
        for metric in metrics:
            row = known_row(comparison, arm.name, "all", metric)
            cells += pair_of(row, bad=0)
        lines.append(line_of(comparison, arm, cells))
    heads = [Column(name, metric) for metric in metrics for name in ("value", "minus baseline")]
    caption = "Logged by the validation step of the recipe, on the judging half, at the end of training."
    return Table("Metrics of the recipe", caption, heads, lines)


def stages_table(comparison: Comparison, group: str) -> Table:
    """The numbers behind a figure: held-out loss and true-positive rate at each stage.

    Example:
        >>> found = Comparison(version="0", baseline="x", seeds=4, models=8, patients=90, held_out=40, arms=[])
        >>> stages_table(found, "all").columns
        []
    """
    drawn = {way.number: way for way in ways(comparison, group)}
    most = max((len(way.stages) for way in drawn.values()), default=0)
    lines = []
    for number, arm in ((i, one) for i, one in enumerate(comparison.arms, start=1) if i in drawn):
        cells = [Shown(f"{figure(loss, 3)} | {figure(tpr, 3)}") for loss, tpr in drawn[number].stages]
        lines.append(line_of(comparison, arm, [*cells, *[Shown("")] * (most - len(cells))]))
    return Table(
        "",
        f"Held-out loss | share of members found, {name_of_group(comparison, group)}, at each stage.",
        [Column(f"stage {i + 1}") for i in range(most)],
        lines,
        absent=[line_of(comparison, arm) for i, arm in enumerate(comparison.arms, start=1) if i not in drawn],
        why_absent="No point to draw",
    )
