"""What is drawn on the axes: losses, leakage, the best held-out epoch, rates where alarms are rare."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from memguard.report.data import CurvePoint, WatchReport
from memguard.report.text import share

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["best_line", "leakage_panel", "losses_panel", "rates_panel"]


def _series(curve: Sequence[CurvePoint], name: str) -> tuple[list[float], list[float]]:
    pairs = [(p.epoch, getattr(p, name)) for p in curve]
    kept = [(x, y) for x, y in pairs if y is not None and math.isfinite(y)]
    return [x for x, _ in kept], [y for _, y in kept]


def losses_panel(axes: Axes, report: WatchReport, colors: Mapping[str, str]) -> None:
    """Train loss (dashed) and held-out loss over the epochs.

    Args:
        axes: Where to draw.
        report: The watched run.
        colors: `memguard.report.figures.LIGHT` or ``DARK``.

    Example:
        >>> from matplotlib.figure import Figure
        >>> from memguard.report.data import CurvePoint, WatchReport
        >>> from memguard.report.figures import LIGHT
        >>> report = WatchReport(version="0", created="2026-01-01", unit="patient", patients_source="index",
        ...     n_members=9, n_held_out=9, flag_rate=.1, curve=[CurvePoint(epoch=1, step=1, train_loss=2)])
        >>> axes = Figure().subplots()
        >>> losses_panel(axes, report, LIGHT)
        >>> [text.get_text() for text in axes.texts]
        ['train']
    """
    axes.set_title(f"Loss, {report.loss_unit.replace('/', ' per ')}")
    axes.grid(axis="y")
    ends: list[tuple[float, float, str, str]] = []
    for name, label, color, dash in (
        ("train_loss", "train", colors["train"], (0, (4, 1.6))),
        ("held_out_loss", "held-out", colors["held"], "-"),
    ):
        x, y = _series(report.curve, name)
        if x:
            axes.plot(x, y, color=color, linestyle=dash, marker="o" if len(x) == 1 else "")
            ends.append((x[-1], y[-1], label, color))
    _end_labels(axes, ends)


def leakage_panel(axes: Axes, report: WatchReport, colors: Mapping[str, str]) -> None:
    """Membership AUC with the band of its intervals, over the line of chance.

    Args:
        axes: Where to draw.
        report: The watched run.
        colors: `memguard.report.figures.LIGHT` or ``DARK``.

    Example:
        >>> from matplotlib.figure import Figure
        >>> from memguard.report.data import CurvePoint, WatchReport
        >>> from memguard.report.figures import LIGHT
        >>> report = WatchReport(version="0", created="2026-01-01", unit="patient", patients_source="index",
        ...     n_members=9, n_held_out=9, flag_rate=.1, curve=[CurvePoint(epoch=1, step=1, train_loss=2)])
        >>> axes = Figure().subplots()
        >>> leakage_panel(axes, report, LIGHT)
        >>> [text.get_text() for text in axes.texts]
        ['chance .50']
    """
    axes.set_title("Leakage: membership AUC" + _confidence(report))
    axes.set_xlabel("epochs of training")
    axes.grid(axis="y")
    axes.axhline(0.5, color=colors["muted"], linewidth=1.2, linestyle=(0, (1.2, 2)))
    points = [(p.epoch, p.auc) for p in report.curve if p.auc is not None and math.isfinite(p.auc.value)]
    ends: list[tuple[float, float, str, str]] = []
    lowest, highest = 0.5, 0.5
    if points:
        x = [epoch for epoch, _ in points]
        axes.fill_between(
            x, [a.low for _, a in points], [a.high for _, a in points], color=colors["band"], linewidth=0
        )
        if len(x) == 1:  # a band needs two looks
            axes.plot(x * 2, [points[0][1].low, points[0][1].high], color=colors["band"], linewidth=6)
        axes.plot(
            x, [a.value for _, a in points], color=colors["leak"], marker="o" if len(x) < 40 else "", ms=3.6
        )
        lowest = min(0.5, *(a.low for _, a in points if math.isfinite(a.low)), 0.5)
        highest = max(0.5, *(a.high for _, a in points if math.isfinite(a.high)), 0.5)
        ends.append((x[-1], points[-1][1].value, f"AUC {share(points[-1][1].value)}", colors["leak"]))
    axes.set_ylim(min(0.45, lowest - 0.02), min(1.005, max(0.7, highest + 0.03)))
    ends.append((max((p.epoch for p in report.curve), default=1.0), 0.5, "chance .50", colors["muted"]))
    _end_labels(axes, ends)
    bottom, top = axes.get_ylim()
    axes.yaxis.set_major_formatter(lambda value, _: share(value, 2 if top - bottom < 0.4 else 1))


def _confidence(report: WatchReport) -> str:
    auc = report.last.auc if report.last else None
    return f" with its {100 * auc.confidence:g} % interval" if auc else ""


def _end_labels(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Name lines at their right end instead of in a legend, pushed apart where they would meet."""
    low, high = axes.get_ylim()
    least = 0.13 * (high - low)
    height = -math.inf
    for x, y, label, color in sorted(ends, key=lambda end: end[1]):
        height = max(y, height + least)
        axes.annotate(
            label,
            (x, height),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=color,
            fontweight="bold",
            annotation_clip=False,
        )


def best_line(above: Axes, below: Axes, report: WatchReport, colors: Mapping[str, str]) -> None:
    """The best held-out epoch as a line through both panels, and the axis of time below.

    Args:
        above: Panel of the losses.
        below: Panel of the leakage, on the same time axis.
        report: The watched run.
        colors: `memguard.report.figures.LIGHT` or ``DARK``.

    Example:
        >>> from matplotlib.figure import Figure
        >>> from memguard.report.data import CurvePoint, WatchReport
        >>> from memguard.report.figures import LIGHT
        >>> report = WatchReport(version="0", created="2026-01-01", unit="patient", patients_source="index",
        ...     n_members=9, n_held_out=9, flag_rate=.1, curve=[CurvePoint(epoch=1, step=1, train_loss=2)])
        >>> above, below = Figure().subplots(2, 1, sharex=True)
        >>> best_line(above, below, report, LIGHT)
        >>> len(below.lines)
        0
    """
    from matplotlib.ticker import MaxNLocator

    epochs = [p.epoch for p in report.curve] or [0.0, 1.0]
    first, last = min(epochs), max(epochs)
    start = first if last > first else last - 1
    pad = 0.012 * (last - start)
    below.set_xlim(start - pad, last + pad)
    whole = last - first > 2 or all(epoch == int(epoch) for epoch in epochs)
    below.xaxis.set_major_locator(MaxNLocator(integer=whole, nbins=12))
    if report.best_epoch is None:
        return
    for axes in (above, below):
        axes.axvline(report.best_epoch, color=colors["ink"], linewidth=1.1, linestyle=(0, (5, 3)))
    late = report.best_epoch > start + 0.55 * (last - start)
    above.annotate(
        f"best held-out epoch: {report.best_epoch:g}",
        (report.best_epoch, 0.97),
        xycoords=above.get_xaxis_transform(),
        xytext=(-6 if late else 6, 0),
        textcoords="offset points",
        ha="right" if late else "left",
        va="top",
        color=colors["ink"],
    )
    best = report.best
    if (
        best is not None
        and best is not report.last
        and best.auc is not None
        and math.isfinite(best.auc.value)
    ):
        below.annotate(
            f"AUC {share(best.auc.value)}",
            (best.epoch, best.auc.value),
            xytext=(-8 if late else 8, 9 if late else -10),
            textcoords="offset points",
            ha="right" if late else "left",
            va="center",
            color=colors["leak"],
            fontweight="bold",
        )


def rates_panel(axes: Axes, report: WatchReport, colors: Mapping[str, str]) -> None:
    """True- over false-positive rate on logarithmic axes: last look, best look, chance.

    Args:
        axes: Where to draw.
        report: The watched run.
        colors: `memguard.report.figures.LIGHT` or ``DARK``.

    Example:
        >>> from matplotlib.figure import Figure
        >>> from memguard.report.data import CurvePoint, WatchReport
        >>> from memguard.report.figures import LIGHT
        >>> report = WatchReport(version="0", created="2026-01-01", unit="patient", patients_source="index",
        ...     n_members=9, n_held_out=9, flag_rate=.1, curve=[CurvePoint(epoch=1, step=1, train_loss=2)])
        >>> axes = Figure().subplots()
        >>> rates_panel(axes, report, LIGHT)
        >>> axes.get_yscale()
        'log'
    """
    axes.set_title("Members found, where false alarms are rare")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("false-positive rate")
    axes.set_ylabel("true-positive rate")
    axes.grid()
    last, best = report.last, report.best
    looks = [(last, colors["leak"], "D", "epoch {:g}")]
    if best is not None and last is not None and best.epoch != last.epoch:
        looks.append((best, colors["held"], "o", "epoch {:g}, best held-out"))
    rates = [fpr for look, *_ in looks if look is not None for fpr in look.tpr if fpr > 0]
    floor = min([1e-3, *(rate / 2 for rate in rates)])
    lowest = min(rates, default=floor)  # the curve is not drawn where no rate could be supported
    roc = [(f, t) for f, t in report.roc if f >= lowest and t >= floor]
    if roc:
        axes.plot(
            [f for f, _ in roc],
            [t for _, t in roc],
            color=colors["band"],
            linewidth=1.6,
            drawstyle="steps-post",
        )
    axes.plot(
        [floor, 1], [floor, 1], color=colors["muted"], linewidth=1.2, linestyle=(0, (1.2, 2)), label="chance"
    )
    for look, color, marker, label in looks:
        if look is None:
            continue
        kept = [(fpr, look.tpr[fpr]) for fpr in sorted(look.tpr) if fpr > 0]
        kept = [(fpr, tpr) for fpr, tpr in kept if math.isfinite(tpr.value)]
        if not kept:
            continue
        for fpr, tpr in kept:
            axes.plot([fpr, fpr], [max(tpr.low, floor), max(tpr.high, floor)], color=color, linewidth=1.6)
        x, y = [fpr for fpr, _ in kept], [max(tpr.value, floor) for _, tpr in kept]
        axes.plot(x, y, color=color, marker=marker, ms=5.5, linewidth=1.2, label=label.format(look.epoch))
    # Below the line of chance nothing is ever drawn that matters: the names go there.
    axes.legend(loc="lower right", frameon=False, labelcolor="linecolor", handlelength=1.6)
    axes.minorticks_off()
    axes.set_xlim(floor, 1)
    axes.set_ylim(floor, 1.25)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
