"""Probes of the audit that were asked while the model trained: one small panel and one row of a table for each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memguard.attacks.estimate import Estimate
from memguard.report.audit.nulls import null_of
from memguard.report.data import CurvePoint, WatchReport
from memguard.report.text import estimate, share

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Series", "probes_figure", "probes_markdown", "series_of", "spoken"]

_ACROSS = 3


@dataclass(frozen=True, kw_only=True)
class Series:
    """One number of one probe over the looks at which it was asked.

    Attributes:
        probe: Its name.
        number: Name of the number.
        null: What it would be if the model knew nothing of its members; ``None`` where the name does not say.
        points: Epoch and estimate, in order of time.
    """

    probe: str
    number: str
    null: float | None
    points: Sequence[tuple[float, Estimate]]

    @property
    def last(self) -> Estimate:
        """The newest."""
        return self.points[-1][1]

    def row(self) -> tuple[str, ...]:
        """Probe, number, null, first and last value with intervals, patients, and how many looks have a number."""
        first, last = self.points[0], self.points[-1]
        return (
            self.probe,
            self.number,
            "–" if self.null is None else share(self.null),
            f"{estimate(first[1])} (epoch {first[0]:g})",
            f"{estimate(last[1])} (epoch {last[0]:g})",
            f"{last[1].n:,}",
            f"{len(self.points)}",
        )


def series_of(report: WatchReport, *, every: bool = False) -> list[Series]:
    """What was asked, numbers of fewer than ``min_cell`` patients left out.

    Args:
        report: The watched run.
        every: Whether to give each number of a probe, or the one that decides alone.

    Example:
        >>> one = Estimate(value=.2, low=.1, high=.3, n=90, method="x")
        >>> curve = [CurvePoint(epoch=e, step=e, probes={"copies": {"half.minus_held_out": one}}) for e in (1, 4)]
        >>> report = WatchReport(version="0", created="2026-01-01", unit="patient", patients_source="index",
        ...     n_members=9, n_held_out=9, flag_rate=.1, curve=curve)
        >>> series_of(report)[0].row()
        ('copies', 'half.minus_held_out', '.00', '.20 [.10, .30] (epoch 1)', '.20 [.10, .30] (epoch 4)', '90', '2')
    """
    names: dict[str, dict[str, None]] = {}
    for point in reversed(report.curve):  # the newest look says which number decides
        for probe, numbers in point.probes.items():
            names.setdefault(probe, {}).update(dict.fromkeys(numbers))
    found = []
    for probe in sorted(names):
        for number in list(names[probe])[: None if every else 1]:
            points = [
                (p.epoch, one) for p in report.curve if (one := _usable(p, probe, number, report.min_cell))
            ]
            if points:
                found.append(Series(probe=probe, number=number, null=null_of(number), points=points))
    return found


def _usable(point: CurvePoint, probe: str, number: str, least: int) -> Estimate | None:
    one = point.probes.get(probe, {}).get(number)
    return one if one is not None and one.n >= least and math.isfinite(one.value) else None


def probes_figure(report: WatchReport, colors: Mapping[str, str]) -> Figure:
    """One small panel for each probe: its deciding number with its interval, over the line of its null.

    Args:
        report: The watched run; at least one probe was asked.
        colors: `memguard.report.figures.LIGHT` or ``DARK``.

    Example:
        >>> from memguard.report.figures import LIGHT
        >>> one = Estimate(value=.2, low=.1, high=.3, n=90, method="x")
        >>> report = WatchReport(version="0", created="2026-01-01", unit="patient", patients_source="index",
        ...     n_members=9, n_held_out=9, flag_rate=.1,
        ...     curve=[CurvePoint(epoch=1, step=1, probes={"copies": {"half.minus_held_out": one}})])
        >>> [axes.get_title(loc="left").split() for axes in probes_figure(report, LIGHT).axes]
        [['copies', 'half.minus_held_out']]
    """
    from matplotlib.figure import Figure

    from memguard.report.figures import style

    found = series_of(report)
    across = min(_ACROSS, max(len(found), 1))
    down = math.ceil(max(len(found), 1) / across)
    with style(colors):
        figure = Figure(figsize=(3.07 * across, 2.3 * down))
        panels = figure.subplots(down, across, squeeze=False).flatten().tolist()
        for axes, series in zip(panels, found, strict=False):
            _panel(axes, series, report, colors)
        for axes in panels[len(found) :]:
            axes.remove()
        edges = {"left": 0.17, "right": 0.965} if across == 1 else {"left": 0.06, "right": 0.985}
        figure.subplots_adjust(**edges, top=1 - 0.42 / (2.3 * down), bottom=0.4 / (2.3 * down), hspace=0.65)
    return figure


def _panel(axes: Axes, series: Series, report: WatchReport, colors: Mapping[str, str]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(f"{series.probe}\n{series.number}", fontsize=8.5)
    axes.grid(axis="y")
    if series.null is not None:
        axes.axhline(series.null, color=colors["muted"], linewidth=1.2, linestyle=(0, (1.2, 2)))
    x = [epoch for epoch, _ in series.points]
    axes.vlines(
        x,
        [one.low for _, one in series.points],
        [one.high for _, one in series.points],
        color=colors["band"],
        linewidth=4 if len(x) <= 40 else 2,
    )
    axes.plot(
        x, [one.value for _, one in series.points], color=colors["leak"], marker="o", ms=3, linewidth=1.4
    )
    epochs = [point.epoch for point in report.curve]
    pad = 0.03 * max(max(epochs) - min(epochs), 1.0)
    axes.set_xlim(min(epochs) - pad, max(epochs) + pad)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.set_xlabel("epochs of training", fontsize=8.5)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.yaxis.set_major_formatter(lambda value, _: share(value))


def spoken(report: WatchReport) -> str:
    """The panels for who does not see them."""
    said = []
    for one in series_of(report):
        null = "" if one.null is None else f"; null {share(one.null)}"
        first, last = one.points[0], one.points[-1]
        said.append(
            f"{one.probe}, {one.number}: {estimate(first[1])} at epoch {first[0]:g}, {estimate(last[1])} at epoch "
            f"{last[0]:g}{null}."
        )
    return " ".join(said)


def probes_markdown(report: WatchReport) -> str:
    """A row for each number, as a Markdown table; empty where no probe was asked."""
    found = series_of(report, every=True)
    if not found:
        return ""
    head = ("probe", "number", "null", "first", "last", f"{report.unit}s", "looks")
    rows = [head, ("---",) * len(head), *(one.row() for one in found)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
