"""The curve as a short table: in plain text for a terminal, in Markdown for a logger."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike

from memguard.report.data import CurvePoint, WatchReport
from memguard.report.text import cell, estimate, number

__all__ = ["curve_markdown", "curve_table", "thin", "thin_roc"]

_HEAD = ("epoch", "train loss", "held-out loss", "membership AUC", "flagged")
_T = TypeVar("_T")


def curve_table(report: WatchReport, *, max_rows: int = 16) -> str:
    """Epoch, train loss, held-out loss, membership AUC with interval, flagged patients.

    Args:
        report: The watched run.
        max_rows: Longer curves are thinned evenly; the first, best and last looks stay.

    Returns:
        Lines of at most 80 characters; ``*`` marks the best held-out epoch.

    Example:
        >>> from memguard.report.data import CurvePoint, WatchReport
        >>> from memguard.attacks.estimate import Estimate
        >>> auc = Estimate(value=.52, low=.49, high=.55, n=5200, method="x", confidence=.95)
        >>> report = WatchReport(version="0", created="2026-01-01", unit="patient", patients_source="index",
        ...     n_members=4000, n_held_out=1200, flag_rate=.1, curve=[
        ...     CurvePoint(epoch=1, step=9, train_loss=3.1, held_out_loss=2.9, auc=auc, flagged_patients=0)])
        >>> print(curve_table(report))
          epoch   train loss   held-out loss      membership AUC   flagged
             1*        3.100           2.900      .52 [.49, .55]         0
        * lowest held-out loss. Members: 4,000 patients; held-out: 1,200. Chance: .50.
    """
    rows = [_HEAD, *(_row(point, report) for point in _looks(report, max_rows))]
    widths = [max(7, *(len(row[i]) for row in rows)) for i in range(len(_HEAD))]
    widths[3] = max(widths[3], 17)
    lines = ["   ".join(value.rjust(width) for value, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([*lines, _foot(report)])


def curve_markdown(report: WatchReport, *, max_rows: int = 60) -> str:
    """The same table as Markdown, with the verdict above it.

    Args:
        report: The watched run.
        max_rows: As in `curve_table`.

    Example:
        >>> from memguard.report.data import CurvePoint, WatchReport
        >>> report = WatchReport(version="0", created="2026-01-01", unit="patient", patients_source="index",
        ...     n_members=4000, n_held_out=1200, flag_rate=.1, curve=[CurvePoint(epoch=1, step=9)])
        >>> print(curve_markdown(report).splitlines()[-3])
        | 1 | – | – | – | – |
    """
    rows = [_row(point, report) for point in _looks(report, max_rows)]
    body = [f"| {' | '.join(row)} |" for row in (_HEAD, ("--:",) * len(_HEAD), *rows)]
    return "\n".join([report.verdict(), "", *body, "", _foot(report), *_probed(report)])


def _probed(report: WatchReport) -> list[str]:
    if not any(point.probes for point in report.curve):
        return []
    from memguard.report.probed import probes_markdown  # it reads the audit's names of numbers

    return ["", probes_markdown(report)]


def thin(items: Sequence[_T], most: int, keep: Sequence[int] = ()) -> list[_T]:
    """At most ``most`` items, evenly spaced, with the first, the last and those at ``keep``.

    Example:
        >>> thin(range(100), 4, keep=[41])
        [0, 41, 50, 99]
    """
    if len(items) <= most:
        return list(items)
    wanted = {0, len(items) - 1, *keep}
    free = max(0, most - len(wanted))
    wanted |= {round((i + 1) * (len(items) - 1) / (free + 1)) for i in range(free)}
    return [items[i] for i in sorted(wanted)]


def thin_roc(fpr: ArrayLike, tpr: ArrayLike, *, most: int = 160) -> list[tuple[float, float]]:
    """A ROC curve cut down to what a logarithmic axis can show, for `WatchReport.roc`.

    Each kept point is a point of the curve: the best true-positive rate at or below one of ``most`` evenly
    spaced (in the logarithm) false-positive rates. So it never lies above the curve, and it has far fewer
    points than there are patients.

    Args:
        fpr: (T,) false-positive rates, rising.
        tpr: (T,) true-positive rates, rising.
        most: At most so many points.

    Example:
        >>> thin_roc([0, .5, 1], [0, .8, 1])
        [(0.5, 0.8), (1.0, 1.0)]
    """
    x, y = np.asarray(fpr, float), np.asarray(tpr, float)
    positive = x[x > 0]
    if not positive.size:
        return []
    at = np.searchsorted(x, np.geomspace(positive[0], 1.0, most), side="right") - 1
    return [(float(x[i]), float(y[i])) for i in np.unique(at) if x[i] > 0]


def _looks(report: WatchReport, most: int) -> list[CurvePoint]:
    best = [i for i, point in enumerate(report.curve) if point is report.best]
    return thin(report.curve, most, best)


def _row(point: CurvePoint, report: WatchReport) -> tuple[str, ...]:
    mark = "*" if point is report.best else ""
    return (
        f"{point.epoch:g}{mark}",
        number(point.train_loss),
        number(point.held_out_loss),
        estimate(point.auc),
        cell(point.flagged_patients, report.min_cell),
    )


def _foot(report: WatchReport) -> str:
    best = "* lowest held-out loss. " if report.best is not None else ""
    return (
        f"{best}Members: {report.n_members:,} {report.unit}s; held-out: {report.n_held_out:,}. Chance: .50."
    )
