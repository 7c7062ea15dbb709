"""The front of utility and leakage: for each group the way that every arm takes while it trains."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from memguard.report.comparison.data import Comparison, Point
from memguard.report.comparison.wording import kind_of, known_row, per
from memguard.report.text import share

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike, NDArray

__all__ = ["Way", "front_figure", "ways"]

# An arm is told by its number and its kind by dashes and marker; the colour only helps.
_LOOKS: Mapping[str, tuple[str, object, float, str, float]] = {
    "other": ("leak", "-", 1.1, "o", 4.0),
    "control": ("muted", (0, (1.2, 2)), 1.5, "o", 4.4),
    "private": ("held", (0, (4, 1.6)), 1.5, "s", 4.8),
    "baseline": ("ink", "-", 2.2, "D", 5.2),
}
_WIDTH, _HEIGHT = 3.9, 3.15


@dataclass(frozen=True)
class Way:
    """One arm in one group.

    Attributes:
        number: Of the arm, counted from 1.
        kind: `memguard.report.comparison.wording.kind_of`.
        stages: (held-out loss, true-positive rate) in order of training; the last is what would be deployed.
        interval: Of the last true-positive rate, or ``None``.
    """

    number: int
    kind: str
    stages: Sequence[tuple[float, float]]
    interval: tuple[float, float] | None = None


def ways(comparison: Comparison, group: str) -> list[Way]:
    """What can be drawn of a group; an arm without a finite point has no way.

    Args:
        comparison: The whole comparison.
        group: As in `memguard.report.comparison.data.Point`.

    Example:
        >>> from memguard.report.comparison.data import ArmSummary
        >>> points = [Point(arm="x", stage=i, epoch=i + 1, group="all", utility=2 - i, tpr=.1 * i) for i in (1, 0)]
        >>> found = Comparison(version="0", baseline="x", seeds=4, models=8, patients=90, held_out=40,
        ...                    arms=[ArmSummary(name="x")], points=points)
        >>> ways(found, "all")[0].stages
        [(2, 0.0), (1, 0.1)]
    """
    found = []
    for number, arm in enumerate(comparison.arms, start=1):
        mine = sorted(
            (one for one in comparison.points if (one.arm, one.group) == (arm.name, group)),
            key=lambda one: one.stage,
        )
        stages = [(one.utility, one.tpr) for one in mine if _finite(one)]
        if stages:
            row = known_row(comparison, arm.name, group, "tpr") if _finite(mine[-1]) else None
            ends = (row.value.low, row.value.high) if row is not None else None
            known = ends is not None and all(map(math.isfinite, ends))
            found.append(Way(number, kind_of(comparison, arm), stages, ends if known else None))
    return found


def _finite(point: Point) -> bool:
    return math.isfinite(point.utility) and math.isfinite(point.tpr)


def front_figure(
    drawn: Sequence[Way], colors: Mapping[str, str], *, fpr: float, unit: str, tolerance: float = 0.01
) -> Figure:
    """Held-out loss across, members found up: a line through the stages, the number of the arm at its end.

    The axis of the loss is even near the best loss, up to about ``tolerance``, and logarithmic far from it (an inverse
    hyperbolic sine): first stages and private arms lie far off, and what is decided lies close together.

    Args:
        drawn: One for each arm.
        colors: `memguard.report.figures.LIGHT` or ``DARK``.
        fpr: Share of the non-members that an attack may call members: what guessing finds.
        unit: Of the loss.
        tolerance: Relative loss of utility that counts as none.

    Example:
        >>> from memguard.report.figures import LIGHT
        >>> axes = front_figure([Way(1, "baseline", [(2.0, .1), (1.8, .3)])], LIGHT, fpr=.01, unit="nats/token").axes[0]
        >>> [text.get_text() for text in axes.texts]
        ['1']
    """
    from matplotlib.figure import Figure

    picture = Figure(figsize=(_WIDTH, _HEIGHT))
    axes = picture.subplots()
    picture.subplots_adjust(left=0.125, right=0.97, top=0.97, bottom=0.15)
    axes.set_xlabel(f"held-out loss, {per(unit)}")
    axes.set_ylabel("members found")
    axes.grid()
    axes.axhline(fpr, color=colors["muted"], linewidth=1.1, linestyle=(0, (1.2, 2)))
    order = list(_LOOKS)
    for way in sorted(drawn, key=lambda one: order.index(one.kind)):
        _draw(axes, way, colors)
    _loss_axis(axes, [x for way in drawn for x, _ in way.stages] or [0.0, 1.0], tolerance)
    _rate_axis(axes, drawn, fpr)
    _numbers(axes, drawn, colors)
    return picture


def _draw(axes: Axes, way: Way, colors: Mapping[str, str]) -> None:
    name, dash, width, marker, size = _LOOKS[way.kind]
    color, (x, y) = colors[name], zip(*way.stages, strict=True)
    tag = f"arm-{way.number}"
    axes.plot(
        x, y, color=color, linestyle=dash, linewidth=width, marker=".", ms=2.6, alpha=0.75, gid=f"{tag}-line"
    )
    if way.interval is not None:
        axes.plot(
            [x[-1]] * 2, way.interval, color=color, linewidth=0.9, alpha=0.6, solid_capstyle="butt", gid=f"{tag}-bar",
        )  # fmt: skip
    axes.plot(
        x[-1:], y[-1:], color=color, marker=marker, ms=size, linestyle="", gid=f"{tag}-end",
        markerfacecolor=colors["paper"] if way.kind == "control" else color,
    )  # fmt: skip


def _loss_axis(axes: Axes, losses: Sequence[float], tolerance: float) -> None:
    """Even within the tolerance of the best loss, logarithmic beyond; marks where there is room for them."""
    best, worst = min(losses), max(losses)
    width = max(tolerance * abs(best), 1e-6)

    def forward(loss: ArrayLike) -> NDArray[np.float64]:
        return np.arcsinh((np.asarray(loss, float) - best) / width)

    def back(place: ArrayLike) -> NDArray[np.float64]:
        loss: NDArray[np.float64] = best + width * np.sinh(np.asarray(place, float))
        return loss

    extent = max(float(forward(worst)), 1.0)
    axes.set_xscale("function", functions=(forward, back))
    axes.set_xlim(float(back(-0.09 * extent)), float(back(1.07 * extent)))
    even = [float(back(extent * i / 4)) for i in range(5)]
    places = [max(0, 1 - math.floor(math.log10(b - a))) for a, b in itertools.pairwise(even)]
    marks = [round(mark, digits) for mark, digits in zip(even, [places[0], *places], strict=True)]
    axes.set_xticks(marks, [f"{mark:g}" for mark in marks])
    axes.minorticks_off()


def _rate_axis(axes: Axes, drawn: Sequence[Way], fpr: float) -> None:
    """All rates with the intervals at the end, and the line of guessing."""
    from matplotlib.ticker import MaxNLocator

    ends = [way.interval[1] for way in drawn if way.interval is not None]
    top = max([2 * fpr, *ends, *(y for way in drawn for _, y in way.stages)])
    axes.set_ylim(-0.04 * top, 1.07 * top)
    marks = MaxNLocator(nbins=6, steps=[1, 2, 5, 10]).tick_values(0, top)
    digits = max(1, -math.floor(math.log10(marks[1] - marks[0]) + 1e-9))
    shown = [float(mark) for mark in marks if 0 <= mark <= 1.05 * top]
    axes.set_yticks(shown, [share(mark, digits) for mark in shown])


def _numbers(axes: Axes, drawn: Sequence[Way], colors: Mapping[str, str]) -> None:
    """The number of each arm beside its last point, moved away where another number or point stands."""
    to_points = 72 / axes.figure.dpi
    ends = {way.number: axes.transData.transform(way.stages[-1]) * to_points for way in drawn}
    box = axes.bbox
    x_low, y_low, x_high, y_high = (edge * to_points for edge in (box.x0, box.y0, box.x1, box.y1))
    taken = [(float(x), float(y), 3.5, 3.5) for x, y in ends.values()]
    for way in drawn:
        x, y = (float(one) for one in ends[way.number])
        half = 3.2 * len(str(way.number))
        for radius, turn in ((r, t) for r in (9, 13, 18, 24, 31, 39, 48) for t in range(16)):
            dx, dy = radius * math.cos(turn * math.pi / 8), radius * math.sin(turn * math.pi / 8)
            inside = x_low + half < x + dx < x_high - half and y_low + 5 < y + dy < y_high - 5
            if inside and not any(
                abs(x + dx - at) < half + w and abs(y + dy - up) < 4.6 + h for at, up, w, h in taken
            ):
                break
        taken.append((x + dx, y + dy, half, 4.6))
        color = colors[_LOOKS[way.kind][0]]
        leader = {"arrowstyle": "-", "color": color, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 2}
        text = axes.annotate(
            str(way.number), way.stages[-1], xytext=(dx, dy), textcoords="offset points", ha="center", va="center",
            color=color, fontsize=8.5, fontweight="bold", arrowprops=leader if radius > 9 else None,
            annotation_clip=False, bbox={"facecolor": colors["paper"], "linewidth": 0, "alpha": 0.75, "pad": 0.4},
        )  # fmt: skip
        text.set_gid(f"arm-{way.number}-number")
        for patch, part in ((text.get_bbox_patch(), "paper"), (text.arrow_patch, "leader")):
            if patch is not None:
                patch.set_gid(f"arm-{way.number}-{part}")
