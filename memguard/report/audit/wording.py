"""Numbers of an audit as text: no more digits than the interval carries."""

from __future__ import annotations

import math
import re

from memguard.attacks.estimate import Estimate
from memguard.findings import Cell
from memguard.report.text import DASH, share

__all__ = [
    "NOT_GIVEN",
    "cell_text",
    "figure",
    "interval",
    "listed",
    "named",
    "null_text",
    "value_text",
    "written",
]

NOT_GIVEN = "not given"


def _digits(estimate: Estimate) -> int:
    """Decimals that the width of the interval supports: its first two significant ones."""
    width = estimate.high - estimate.low
    if not math.isfinite(width) or width <= 0:
        return 2 if abs(estimate.value) < 1000 and estimate.value != int(estimate.value) else 0
    return min(5, max(0, 1 - math.floor(math.log10(width))))


def figure(value: float | None, digits: int = 3) -> str:
    """A number with so many decimals; shares lose their leading zero, as everywhere in the reports.

    Example:
        >>> figure(.6134, 2), figure(12.3456, 1), figure(float("inf")), figure(None), figure(-.25, 2)
        ('.61', '12.3', 'no bound', '–', '-.25')
    """
    if value is None or math.isnan(value):
        return DASH
    if math.isinf(value):
        return "no bound"
    return share(value, digits) if abs(value) < 1 and digits else f"{value:,.{digits}f}"


def value_text(estimate: Estimate) -> str:
    """The value alone.

    Example:
        >>> value_text(Estimate(value=.6134, low=.58, high=.641, n=900, method="x"))
        '.613'
    """
    return DASH if math.isnan(estimate.value) else figure(estimate.value, _digits(estimate))


def interval(estimate: Estimate) -> str:
    """The interval alone.

    Example:
        >>> interval(Estimate(value=1.2, low=1.2, high=float("inf"), n=9, method="x"))
        '[1.20, no bound]'
    """
    if math.isnan(estimate.value):
        return DASH
    digits = _digits(estimate)
    return f"[{figure(estimate.low, digits)}, {figure(estimate.high, digits)}]"


def written(estimate: Estimate | None) -> str:
    """Value and interval.

    Example:
        >>> written(Estimate(value=.6134, low=.58, high=.641, n=900, method="x")), written(None)
        ('.613 [.580, .641]', '–')
    """
    if estimate is None or math.isnan(estimate.value):
        return DASH
    return f"{value_text(estimate)} {interval(estimate)}"


def cell_text(value: Cell) -> str:
    """Any cell of a table.

    Example:
        >>> [cell_text(one) for one in (True, 1200, .25, 1e-7, "text", None)]
        ['yes', '1,200', '.25', '1e-07', 'text', '–']
    """
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Estimate):
        return written(value)
    if isinstance(value, str):
        return value
    if isinstance(value, int) or (math.isfinite(value) and value == int(value) and abs(value) < 1e15):
        return f"{int(value):,}"
    if not math.isfinite(value):
        return figure(value)
    return share(float(f"{value:.3g}"), 4).rstrip("0") if 1e-4 <= abs(value) < 1 else f"{value:.4g}"


def listed(items: list[str]) -> str:
    """Items in a sentence.

    Example:
        >>> listed(["a"]), listed(["a", "b", "c"])
        ('a', 'a, b and c')
    """
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else ""


def null_text(null: float | None) -> str:
    """What a number would be without a leak.

    Example:
        >>> null_text(0.5), null_text(0.0), null_text(1.0), null_text(0.01), null_text(None)
        ('.5', '0', '1', '.01', '–')
    """
    return DASH if null is None else re.sub(r"^0(?=[.])", "", f"{null:g}")


_SPOKEN = (
    (r"\bauc\b", "AUC"),
    (r"\bauprc\b", "AUPRC"),
    (r"tpr_at_fpr_(?=[\d.])", "TPR at FPR "),
    (r"tnr_at_fnr_(?=[\d.])", "TNR at FNR "),
    (r"minus_held_out", "minus held-out"),
    (r"held_out", "held-out"),
)


def named(name: str) -> str:
    """The name of a number or of a test as words.

    Example:
        >>> named("strongest.auc"), named("tpr_at_fpr_0.01"), named("codes_20.distance.minus_held_out")
        ('strongest AUC', 'TPR at FPR 0.01', 'codes 20 distance minus held-out')
    """
    for pattern, words in _SPOKEN:
        name = re.sub(pattern, words, name)
    return re.sub(r"\s+", " ", re.sub(r"_|(?<!\d)\.|\.(?!\d)", " ", name)).strip()
