"""Names and numbers of a comparison as people read them: differences carry their sign."""

from __future__ import annotations

import math
import re

from memguard.attacks.estimate import Estimate
from memguard.records.small_cells import MIN_CELL
from memguard.report.audit.wording import cell_text, interval, value_text
from memguard.report.comparison.data import ArmSummary, Comparison, Row
from memguard.report.text import DASH

__all__ = [
    "FIXED_MEASURES",
    "DifferenceSign",
    "groups_of",
    "groups_with",
    "kind_of",
    "kind_words",
    "known_row",
    "metrics_of",
    "name_of_group",
    "per",
    "rate",
    "settings_text",
    "sign_of",
    "signed",
    "signed_interval",
    "tidy",
]

DifferenceSign = int
"""1 above 0, -1 below, 0 where the interval holds 0 or is not known."""

FIXED_MEASURES = ("tpr", "tpr_as_deployed", "auc", "held_out_loss", "unseen_loss")
"""What every comparison has; any other measure is a metric of the user's own validation step."""


def signed(difference: Estimate | None) -> str:
    """The value of a difference with its sign.

    Example:
        >>> e = Estimate(value=.0413, low=.01, high=.07, n=8, method="x")
        >>> signed(e), signed(Estimate(value=-.2, low=-.3, high=-.1, n=8, method="x")), signed(None)
        ('+.041', '-.20', '–')
    """
    if difference is None:
        return DASH
    text = value_text(difference)
    if not any(digit in text for digit in "123456789"):
        return text.removeprefix("-")
    return text if text.startswith("-") or text == DASH else f"+{text}"


def signed_interval(difference: Estimate | None) -> str:
    """Its interval, empty where there is none.

    Example:
        >>> signed_interval(Estimate(value=-.2, low=-.3, high=-.0001, n=8, method="x")), signed_interval(None)
        ('[-.30, .00]', '')
    """
    if difference is None or math.isnan(difference.value):
        return ""
    return re.sub(r"-(?=0?[.]0+\b)", "", interval(difference))


def sign_of(difference: Estimate | None) -> DifferenceSign:
    """Whether the whole interval lies above or below 0.

    Example:
        >>> sign_of(Estimate(value=-.2, low=-.3, high=-.1, n=8, method="x")), sign_of(None)
        (-1, 0)
    """
    if difference is None:
        return 0
    return 1 if difference.low > 0 else -1 if difference.high < 0 else 0


def kind_of(comparison: Comparison, arm: ArmSummary) -> str:
    """``"baseline"``, ``"control"``, ``"private"`` (a finite epsilon is guaranteed) or ``"other"``.

    Example:
        >>> arms = [ArmSummary(name="plain"), ArmSummary(name="dp", epsilon=3.0)]
        >>> found = Comparison(version="0", baseline="plain", seeds=4, models=8, patients=90, held_out=40, arms=arms)
        >>> [kind_of(found, arm) for arm in arms]
        ['baseline', 'private']
    """
    if arm.name == comparison.baseline:
        return "baseline"
    if arm.name == comparison.control:
        return "control"
    return "private" if arm.epsilon is not None and math.isfinite(arm.epsilon) else "other"


def kind_words(comparison: Comparison, arm: ArmSummary) -> str:
    """What sets an arm apart, in words; empty for one without a guarantee.

    Example:
        >>> dp = ArmSummary(name="dp", epsilon=3.0)
        >>> found = Comparison(version="0", baseline="x", seeds=4, models=8, patients=90, held_out=40, arms=[dp])
        >>> kind_words(found, dp)
        'differential privacy, ε = 3'
    """
    said = {"baseline": "baseline", "control": "control: new seeds", "other": ""}
    return said.get(kind_of(comparison, arm), f"differential privacy, ε = {arm.epsilon or 0:.3g}")


def groups_of(comparison: Comparison) -> list[str]:
    """Groups with a number, in order: those that the comparison lists, then any other that a row or point names.

    Fewer than five patients are no group: there is no number about them.

    Example:
        >>> groups_of(Comparison(version="0", baseline="x", seeds=4, models=8, patients=9, held_out=4, arms=[]))
        []
    """
    listed = {one.name: one.patients for one in comparison.groups}
    named = [*listed, *(row.group for row in comparison.rows), *(one.group for one in comparison.points)]
    return [name for name in dict.fromkeys(named) if listed.get(name, MIN_CELL) >= MIN_CELL]


def groups_with(comparison: Comparison, measure: str, stage: str = "final") -> list[str]:
    """Groups for which at least one arm has this number at this stage.

    Example:
        >>> found = Comparison(version="0", baseline="x", seeds=4, models=8, patients=9, held_out=4, arms=[])
        >>> groups_with(found, "tpr")
        []
    """
    arms = comparison.names()
    return [
        group
        for group in groups_of(comparison)
        if any(known_row(comparison, arm, group, measure, stage) is not None for arm in arms)
    ]


def known_row(comparison: Comparison, arm: str, group: str, measure: str, stage: str = "final") -> Row | None:
    """A row that may be shown: ``None`` where there is none, and where fewer than five patients are behind it.

    Example:
        >>> found = Comparison(version="0", baseline="x", seeds=4, models=8, patients=9, held_out=4, arms=[])
        >>> known_row(found, "x", "all", "tpr") is None
        True
    """
    row = comparison.find(arm, group, measure, stage)
    small = row is not None and measure in FIXED_MEASURES and row.value.n < MIN_CELL
    return None if small else row


def metrics_of(comparison: Comparison) -> list[str]:
    """Names of the metrics that the user's own validation step logged, in order.

    Example:
        >>> metrics_of(Comparison(version="0", baseline="x", seeds=4, models=8, patients=9, held_out=4, arms=[]))
        []
    """
    return [one for one in dict.fromkeys(row.measure for row in comparison.rows) if one not in FIXED_MEASURES]


def name_of_group(comparison: Comparison, group: str) -> str:
    """As a heading.

    Example:
        >>> found = Comparison(version="0", baseline="x", seeds=4, models=8, patients=9, held_out=4, arms=[])
        >>> name_of_group(found, "hardest"), name_of_group(found, "rare code")
        ('hardest 5 %', 'rare code')
    """
    return {"all": "all patients", "hardest": f"hardest {rate(comparison.hardest_share)}"}.get(group, group)


def per(unit: str) -> str:
    """A unit in words.

    Example:
        >>> per("nats/token")
        'nats per token'
    """
    return unit.replace("/", " per ")


def rate(share: float) -> str:
    """A share that somebody chose, as a percentage with no more digits than it has.

    Example:
        >>> rate(.05), rate(.001)
        ('5 %', '0.1 %')
    """
    return f"{100 * share:.4g} %"


def settings_text(arm: ArmSummary) -> str:
    """Settings in one line.

    Example:
        >>> settings_text(ArmSummary(name="x", settings={"rate": .1, "clip": True}))
        'rate = .1, clip = yes'
    """
    return ", ".join(f"{name} = {cell_text(value)}" for name, value in arm.settings.items()) or DASH


def tidy(text: str) -> str:
    r"""One line of printable characters: what a name may do to a terminal is nothing.

    Example:
        >>> tidy("a\n b\x1b[31m")
        'a b[31m'
    """
    return "".join(one for one in " ".join(text.split()) if one.isprintable())
