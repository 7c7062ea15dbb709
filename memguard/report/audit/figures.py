"""The figures of the audit: lines with bands, groups beside each other, patients counted on two axes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from memguard.findings import Lines
from memguard.report.audit.parts import Stratum, TwoAxes
from memguard.report.audit.wording import figure as number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["axes_figure", "forest_figure", "lines_figure"]

# A line is told by its dashes and its marker; the colour only helps.
_LOOKS = (
    ("leak", "-", "o"),
    ("held", (0, (5, 2)), "s"),
    ("ink", (0, (1.5, 1.5)), "^"),
    ("train", (0, (6, 2, 1.5, 2)), "D"),
    ("leak", (0, (2, 3)), "v"),
    ("held", "-", "P"),
    ("ink", (0, (5, 2)), "X"),
    ("train", "-", "*"),
)
MOST_LINES = len(_LOOKS)


def lines_figure(curve: Lines, colors: Mapping[str, str]) -> Figure:
    """Lines over one axis with the bands of their intervals; rates on logarithmic axes get the line of chance.

    Args:
        curve: What to draw; lines beyond the eighth are left to the table behind the figure.
        colors: `memguard.report.figures.LIGHT` or ``DARK``.

    Example:
        >>> from memguard.report.figures import LIGHT
        >>> curve = Lines(title="ROC", x="false-positive rate", y="true-positive rate", log=True,
        ...               lines={"lira": [(.001, .02), (.1, .4), (1, 1)]})
        >>> axes = lines_figure(curve, LIGHT).axes[0]
        >>> axes.get_xscale(), [text.get_text() for text in axes.get_legend().get_texts()]
        ('log', ['lira', 'chance'])
    """
    from matplotlib.figure import Figure

    picture = Figure(figsize=(6.4, 4.0))
    axes = picture.subplots()
    axes.set_xlabel(_label(curve.x))
    axes.set_ylabel(_label(curve.y))
    axes.grid(axis="both" if curve.log else "y")
    shown = {name: _drawable(curve.lines[name], curve.log) for name in list(curve.lines)[:MOST_LINES]}
    looks = iter(_LOOKS)
    for name, points in shown.items():
        guessing = name.lower() == "chance"
        color, dash, marker = ("muted", (0, (1.2, 2)), "") if guessing else next(looks)
        band = [
            (x, low, high)
            for x, low, high in curve.bands.get(name, ())
            if all(map(math.isfinite, (x, low, high)))
        ]
        if curve.log:
            band = [(x, max(low, 1e-12), high) for x, low, high in band if x > 0 and high > 0]
        if len(band) > 1:
            axes.fill_between(
                [x for x, *_ in band], [low for _, low, _ in band], [high for *_, high in band],
                color=colors[color], alpha=0.14, linewidth=0,
            )  # fmt: skip
        elif band:
            axes.plot([band[0][0]] * 2, list(band[0][1:]), color=colors[color], linewidth=4, alpha=0.4)
        axes.plot(
            [x for x, _ in points], [y for _, y in points], label=_label(name), color=colors[color], linestyle=dash,
            linewidth=1.7, marker=marker if len(points) <= 24 else "", ms=4,
        )  # fmt: skip
    if curve.log and any(shown.values()):
        _log_axes(axes, list(shown.values()), colors, chance=_of_rates(curve))
    names = len(axes.get_legend_handles_labels()[1])
    if names:
        axes.legend(
            frameon=False,
            labelcolor=colors["ink"],
            handlelength=2.6,
            fontsize=8.5,
            loc="lower right" if curve.log else "best",
        )
    if not any(shown.values()):
        axes.annotate(
            "no point to draw", (0.5, 0.5), xycoords="axes fraction", ha="center", color=colors["muted"]
        )
    picture.subplots_adjust(left=0.12, right=0.97, top=0.96, bottom=0.14)
    return picture


def _label(text: str) -> str:
    """Text that Matplotlib draws as it is: no formulas, one line, and never hidden for its first letter."""
    text = " ".join(text.split()).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _of_rates(curve: Lines) -> bool:
    """Whether the line of chance belongs there and is not among the lines."""
    named = any(name.lower() == "chance" for name in curve.lines)
    return not named and "positive rate" in curve.x.lower() and "positive rate" in curve.y.lower()


def _drawable(points: Sequence[tuple[float, float]], log: bool) -> list[tuple[float, float]]:
    kept = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    return [(x, y) for x, y in kept if x > 0 and y > 0] if log else kept


def _log_axes(
    axes: Axes, drawn: Sequence[Sequence[tuple[float, float]]], colors: Mapping[str, str], *, chance: bool
) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.minorticks_off()
    x = [x for points in drawn for x, _ in points]
    y = [y for points in drawn for _, y in points]
    if chance:
        low = min(x)
        axes.plot(
            [low, 1], [low, 1], label="chance", color=colors["muted"], linewidth=1.2, linestyle=(0, (1.2, 2))
        )
        axes.set_xlim(low, 1)
        axes.set_ylim(min([low, *y]), 1.25)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")


def forest_figure(
    rows: Sequence[Stratum], colors: Mapping[str, str], *, overall: float | None = None
) -> Figure:
    """One number in each group: a dot, its interval, and the line of the null.

    Args:
        rows: One a group; those without a number are named with the reason.
        colors: `memguard.report.figures.LIGHT` or ``DARK``.
        overall: The number among everybody, a dashed line.

    Example:
        >>> from memguard.attacks.estimate import Estimate
        >>> from memguard.report.figures import LIGHT
        >>> auc = Estimate(value=.61, low=.58, high=.64, n=900, method="x")
        >>> row = Stratum(probe="p", number="auc", stratum="rare", estimate=auc, n_members=9, n_held_out=9, null=.5)
        >>> [label.get_text() for label in forest_figure([row], LIGHT).axes[0].get_yticklabels()]
        ['rare']
    """
    from matplotlib.figure import Figure

    height = 0.95 + 0.34 * max(1, len(rows))
    picture = Figure(figsize=(7.4, height))
    axes = picture.subplots()
    axes.grid(axis="x")
    nulls = {row.null for row in rows if row.null is not None}
    for null in nulls:
        axes.axvline(null, color=colors["muted"], linewidth=1.3, linestyle=(0, (1.2, 2)))
    if overall is not None and math.isfinite(overall):
        axes.axvline(overall, color=colors["held"], linewidth=1.2, linestyle=(0, (5, 3)))
    for i, row in enumerate(rows):
        one = row.estimate
        if one is None or not math.isfinite(one.value):
            axes.annotate(
                _label(row.note or "no number"), (0.01, i), xycoords=("axes fraction", "data"), va="center",
                color=colors["muted"], fontsize=8.5,
            )  # fmt: skip
            continue
        above = row.null is not None and one.low > row.null
        low = one.low if math.isfinite(one.low) else one.value
        high = one.high if math.isfinite(one.high) else one.value
        axes.plot([low, high], [i, i], color=colors["leak" if above else "ink"], linewidth=2)
        axes.plot(
            [one.value], [i], color=colors["leak" if above else "ink"], marker="D" if above else "o", ms=6,
            markerfacecolor=colors["leak"] if above else colors["paper"],
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [_label(row.stratum) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0, labelcolor=colors["ink"])
    longest = max((len(row.stratum) for row in rows), default=1)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_formatter(lambda value, _: number(value, 2))
    picture.subplots_adjust(
        left=min(0.5, 0.04 + 0.0125 * longest), right=0.97, top=1 - 0.1 / height, bottom=0.45 / height
    )
    return picture


def axes_figure(axes: TwoAxes, colors: Mapping[str, str]) -> Figure:
    """Counts of patients as discs, members left and never-trained patients right, on the same axes.

    The area of a disc goes with the share of its side's patients, so that sides of different size compare; a cross
    is a small cell whose count is suppressed.

    Args:
        axes: What to draw.
        colors: `memguard.report.figures.LIGHT` or ``DARK``.

    Example:
        >>> from memguard.report.figures import LIGHT
        >>> counted = TwoAxes(title="t", x="inference", y="memorization", x_edges=[0, 1, 2], y_edges=[0, 1],
        ...                   counts={"members": [[9, None]], "held-out": [[12, 0]]})
        >>> [panel.get_title() for panel in axes_figure(counted, LIGHT).axes]
        ['members', 'held-out']
    """
    from matplotlib.figure import Figure

    picture = Figure(figsize=(9.2, 4.0))
    panels = picture.subplots(1, len(axes.counts), sharex=True, sharey=True, squeeze=False)[0]
    width = min(abs(b - a) for a, b in zip(axes.x_edges, axes.x_edges[1:], strict=False))
    across = 9.2 * 72 * 0.42 * width / (axes.x_edges[-1] - axes.x_edges[0])
    height = 4.0 * 72 * 0.75 / max(1, len(axes.y_edges) - 1)
    largest = 0.8 * min(across, height) ** 2
    most = max([_share(rows) for rows in axes.counts.values()], default=1.0) or 1.0
    for panel, (side, rows), color in zip(panels, axes.counts.items(), ("leak", "held"), strict=False):
        total = sum(n for row in rows for n in row if n) or 1
        dots = [(i, j, n / total) for j, row in enumerate(rows) for i, n in enumerate(row) if n]
        few = [(i, j) for j, row in enumerate(rows) for i, n in enumerate(row) if n is None]
        panel.set_title(_label(side))
        panel.grid()
        panel.scatter(
            [_middle(axes.x_edges, i) for i, *_ in dots], [_middle(axes.y_edges, j) for _, j, _ in dots],
            s=[max(6.0, largest * share / most) for *_, share in dots], color=colors[color], alpha=0.85, linewidth=0,
        )  # fmt: skip
        panel.scatter(
            [_middle(axes.x_edges, i) for i, _ in few], [_middle(axes.y_edges, j) for _, j in few],
            s=16, marker="x", color=colors["muted"], linewidth=1,
        )  # fmt: skip
        if axes.y_edges[0] < 0 < axes.y_edges[-1]:
            panel.axhline(0, color=colors["ink"], linewidth=1, linestyle=(0, (1.2, 2)))
        panel.set_xlabel(_label(axes.x))
    panels[0].set_ylabel(_label(axes.y))
    panels[0].set_xlim(axes.x_edges[0], axes.x_edges[-1])
    panels[0].set_ylim(axes.y_edges[0], axes.y_edges[-1])
    picture.subplots_adjust(left=0.09, right=0.98, top=0.92, bottom=0.13, wspace=0.08)
    return picture


def _middle(edges: Sequence[float], i: int) -> float:
    return (edges[i] + edges[i + 1]) / 2


def _share(rows: Sequence[Sequence[int | None]]) -> float:
    counts = [n for row in rows for n in row if n]
    return max(counts) / sum(counts) if counts else 0.0
