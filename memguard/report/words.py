"""What the numbers of a watched run show, and what they do not: the sentences that stand on the page."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

from memguard.report.data import CurvePoint, WatchReport
from memguard.report.text import count, estimate, percent

__all__ = ["does_not_show", "in_epochs", "shows", "unranked"]


def shows(report: WatchReport) -> list[tuple[str, str]]:
    """(name, explanation) of each number, with this run's n and null in it.

    Args:
        report: The watched run.

    Example:
        >>> report = WatchReport(version="0", created="2026-01-01", unit="patient", patients_source="index",
        ...     n_members=9, n_held_out=9, flag_rate=.1, curve=[])
        >>> [name for name, _ in shows(report)][:2]
        ['Membership AUC', 'True-positive rate']
    """
    unit, last = report.unit, report.last
    said = [
        (
            "Membership AUC",
            f"How often a {unit} the model trained on looks more familiar to it than a held-out {unit} "
            f"does: .50 is chance, 1.00 is always. Compared are {count(report.n_members)} members with "
            f"{count(report.n_held_out)} held-out {unit}s; the interval treats the {unit} as one unit.",
        ),
        (
            "True-positive rate",
            f"The share of members found when only a small share of held-out {unit}s is wrongly called a "
            f"member. It is pooled over {unit}s: it is not the risk of any one of them. Rates that this "
            f"many held-out {unit}s cannot support are left out.",
        ),
        ("Memorized", _memorized(report)),
        (
            "Severity",
            f"Counterfactual gap: the loss expected from a model that never saw the {unit}, minus the loss "
            f"of this model, in {report.loss_unit.replace('/', ' per ')}, with its interval. Bits are the "
            f"same for everything the {unit} has. A {unit} that is merely easy to predict has no gap.",
        ),
        ("Identifiable", f"The {unit} {report.identifiable_rule}. Counted in this data's own codes."),
    ]
    if last is not None and last.blind_auc is not None:
        fair = "cannot tell" if last.blind_auc.low <= 0.5 else "can tell"
        said.append(
            (
                "Blind baseline",
                f"A classifier that sees the records and never the model {fair} members from held-out "
                f"{unit}s: AUC {estimate(last.blind_auc)}. Above .50, part of the membership AUC would "
                "come from the split.",
            )
        )
    return said


def _memorized(report: WatchReport) -> str:
    text = (
        f"A {report.unit} is flagged when its gap is too large for a held-out {report.unit} (conformal "
        f"p-value, Benjamini-Hochberg): on average at most {percent(report.flag_rate)} of the flagged are "
        "false"
    )
    if report.flagged_patients and report.flagged_patients >= report.min_cell:
        wrong = math.ceil(report.flag_rate * report.flagged_patients)
        text += f", here about {count(wrong)} of {count(report.flagged_patients)}"
    if report.p_method == "tail":
        text += (
            f". Counting alone cannot go below p = {report.p_resolution:.2g}; smaller values come from a "
            "tail model whose calibration was checked on held-out folds"
            if report.p_resolution
            else ". The smallest p-values come from a tail model checked on held-out folds"
        )
    return text + "."


def does_not_show(report: WatchReport) -> list[str]:
    """What a reader must not conclude.

    Args:
        report: The watched run.

    Example:
        >>> report = WatchReport(version="0", created="2026-01-01", unit="patient", patients_source="index",
        ...     n_members=9, n_held_out=9, flag_rate=.1, curve=[])
        >>> does_not_show(report)[0][:40]
        'That nothing else leaks. One family of a'
    """
    unit = report.unit
    return [
        _attacks_run(report),
        f"That a {unit} who is not on the list was not memorized. The error rate bounds false flags, not "
        "misses.",
        f"That flagged means found. It means that the model carries something of this {unit} beyond what "
        f"other {unit}s explain. Whether anyone can use it depends on who can query the model, and how.",
        "That near-duplicates are covered. When two training patients are nearly the same, the loss of "
        "one hardly changes without the other; their column in the list is the only sign.",
        "That rare in this data is rare in the world, or the other way round: identifiability here knows "
        "nothing of outside sources.",
        f"How another run would look. This is one training run; another seed flags partly other {unit}s. "
        "Intervals are for one look each, not for the most favourable epoch picked from the curve.",
        (
            "That the curve and the list are private. The statement of differential privacy is about the weights; "
            "what stands here was computed from private data and lies outside of its epsilon, and so does "
            "stopping or reweighting by it."
            if report.privacy
            else "Differential privacy. Nothing here bounds what leaks. The curve and the list were computed from "
            "private data and stand outside any epsilon; stopping or reweighting by them does too."
        ),
        "A legal conclusion. This is evidence for those who have to decide.",
    ]


def _attacks_run(report: WatchReport) -> str:
    probed = sorted({probe for point in report.curve for probe in point.probes})
    if probed:
        others = (
            f"Of the probes of the audit, {', '.join(probed)} {'was' if len(probed) == 1 else 'were'} asked lightly: "
            "of some of the members, without trained reference models. The others were not."
        )
    else:
        others = (
            "Attribute inference, extraction of records, inversion, and attacks with many reference models were "
            "not."
        )
    return (
        "That nothing else leaks. One family of attack was run: what the model's losses on whole records give away. "
        f"{others} An AUC near .50 is missing evidence of leakage, not evidence that there is none."
    )


def unranked(curve: Sequence[CurvePoint]) -> list[str]:
    """One note for each reason why nobody was ranked when an epoch was over, with the epochs it held for.

    Reasons that differ only in a number are one reason; the number of the last epoch stands for all.

    Args:
        curve: The looks.

    Example:
        >>> unranked([CurvePoint(epoch=e, step=e, refused=f"r = .{e}") for e in (1, 2, 3, 7)])
        ['Epochs 1 to 3, 7: nobody is ranked (r = .7; the number is of epoch 7).']
        >>> unranked([CurvePoint(epoch=4, step=4, refused="40 held-out patients")])
        ['Epoch 4: nobody is ranked (40 held-out patients).']
    """
    reasons: dict[str, list[CurvePoint]] = {}
    for point in curve:
        if point.refused and point.epoch % 1 == 0:
            reasons.setdefault(re.sub(r"[\d.,]+", "#", point.refused), []).append(point)
    said = []
    for points in reasons.values():
        last = points[-1]
        number = "" if len({p.refused for p in points}) == 1 else f"; the number is of epoch {last.epoch:g}"
        epochs = in_epochs(point.epoch for point in points)
        said.append(f"{epochs}: nobody is ranked ({last.refused.rstrip('.')}{number}).")
    return said


def in_epochs(epochs: Iterable[float]) -> str:
    """Whole epochs in words, neighbours drawn together.

    Args:
        epochs: Their numbers, in any order.

    Example:
        >>> in_epochs([4]), in_epochs([2, 1, 3, 7, 7])
        ('Epoch 4', 'Epochs 1 to 3, 7')
    """
    numbers = sorted({int(epoch) for epoch in epochs})
    runs: list[list[int]] = []
    for one in numbers:
        if runs and one == runs[-1][-1] + 1:
            runs[-1].append(one)
        else:
            runs.append([one])
    said = ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
    return f"{'Epoch' if len(numbers) == 1 else 'Epochs'} {said}"
