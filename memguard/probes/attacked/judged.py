"""Each attack against the truth, and the strongest of them with an interval that allows for having been chosen."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from memguard.attacks.advantage import membership_advantage
from memguard.attacks.estimate import Estimate
from memguard.attacks.membership import auc, roc, supported_fprs, tpr_at_fpr
from memguard.probes.attacked.scored import Attack
from memguard.probes.result import Curve

__all__ = ["comparable", "judge", "log_roc", "strongest", "usable"]

Bools = NDArray[np.bool_]
Judged = dict[str, Estimate]

_ENOUGH = 0.9  # share of the best covered side's patients below which an attack speaks of other patients
_POINTS = 60  # of a line; more cannot be told apart on paper
_BANDS = 12


def usable(attack: Attack, member: Bools) -> bool:
    """Whether the attack has a score for patients of both sides."""
    known = np.isfinite(attack.score)
    return bool(known[member].any() and known[~member].any())


def comparable(attacks: Sequence[Attack], member: Bools) -> list[Attack]:
    """Those that score nearly all patients whom any of them scores, on both sides.

    Which ones that are does not depend on how well they do, so it costs nothing to choose among them alone.

    Example:
        >>> member = np.array([True, True, False, False])
        >>> whole, part = np.zeros(4), np.array([1.0, np.nan, 0.0, 0.0])
        >>> attacks = [Attack(name=n, title=n, score=s) for n, s in (("a", whole), ("b", part))]
        >>> [a.name for a in comparable(attacks, member)]
        ['a']
    """
    if not attacks:
        return []
    known = np.array(
        [[np.isfinite(a.score[member == side]).sum() for side in (True, False)] for a in attacks]
    )
    enough = (known >= _ENOUGH * known.max(axis=0)).all(axis=1)
    return [a for a, fits in zip(attacks, enough, strict=True) if fits]


def judge(attack: Attack, member: Bools, fprs: Sequence[float], *, confidence: float = 0.95) -> Judged:
    """AUC, advantage, and the TPR at each FPR that the held-out patients with a score support.

    Args:
        attack: A score for each of P patients.
        member: ``(P,)``.
        fprs: False-positive rates of interest.
        confidence: Of each interval.

    Returns:
        ``auc``, ``advantage`` and ``tpr_at_fpr_<rate>``; ``n`` of each counts the patients with a score.

    Example:
        >>> member = np.repeat([True, False], 50)
        >>> attack = Attack(name="loss", title="Loss", score=np.where(member, 1.0, 0.0))
        >>> found = judge(attack, member, (0.1, 0.01))
        >>> sorted(found), found["auc"].value, found["auc"].n
        (['advantage', 'auc', 'tpr_at_fpr_0.1'], 1.0, 100)
    """
    known = np.isfinite(attack.score)
    score, truth = attack.score[known], member[known]
    found = {
        "auc": auc(score, truth, confidence=confidence),
        "advantage": membership_advantage(score, truth, confidence=confidence),
    }
    for fpr in supported_fprs(int(np.count_nonzero(~truth)), fprs):
        found[f"tpr_at_fpr_{fpr:g}"] = tpr_at_fpr(score, truth, fpr, confidence=confidence)
    return found


def strongest(
    attacks: Sequence[Attack], member: Bools, fprs: Sequence[float], *, confidence: float = 0.95
) -> tuple[Judged, dict[str, str]]:
    """For each number, the attack that makes it largest.

    Every attack is judged at the level ``1 - (1 - confidence) / A``; all A intervals then hold at once, whichever is
    looked at (Bonferroni), and so does that of the largest. The value itself leans upward, being the largest of A.

    Args:
        attacks: A of them.
        member: ``(P,)``.
        fprs: False-positive rates of interest.
        confidence: Of the interval of the chosen one.

    Returns:
        The numbers, and for each the name of the attack.

    Example:
        >>> member = np.repeat([True, False], 50)
        >>> good = Attack(name="a", title="A", score=np.where(member, 1.0, 0.0))
        >>> bad = Attack(name="b", title="B", score=np.zeros(100))
        >>> numbers, names = strongest([bad, good], member, ())
        >>> names["auc"], numbers["auc"].method
        ('a', 'A: clustered DeLong, logit, Bonferroni over 2 attacks')
    """
    level = 1.0 - (1.0 - confidence) / max(len(attacks), 1)
    judged = [(attack, judge(attack, member, fprs, confidence=level)) for attack in attacks]
    best: Judged = {}
    names: dict[str, str] = {}
    for number in dict.fromkeys(key for _, found in judged for key in found):
        attack, found = max((pair for pair in judged if number in pair[1]), key=lambda p: p[1][number].value)
        how = f", Bonferroni over {len(attacks)} attacks" if len(attacks) > 1 else ""
        best[number] = dataclasses.replace(
            found[number], confidence=confidence, method=f"{attack.title}: {found[number].method}{how}"
        )
        names[number] = attack.name
    return best, names


def log_roc(attacks: Sequence[Attack], member: Bools, first: str, titles: Mapping[str, str]) -> Curve:
    """ROC curves on logarithmic axes, thinned, with the line of chance.

    A line begins where the rate can be measured: at one false positive among the held-out patients.

    Args:
        attacks: At least one.
        member: ``(P,)``.
        first: Name of the attack that gets a band, pointwise at 95 %.
        titles: Name -> title.
    """
    lines: dict[str, list[tuple[float, float]]] = {}
    bands: dict[str, list[tuple[float, float, float]]] = {}
    least = 1.0
    for attack in attacks:
        known = np.isfinite(attack.score)
        score, truth = attack.score[known], member[known]
        n_out, n_in = int(np.count_nonzero(~truth)), int(np.count_nonzero(truth))
        least = min(least, 1.0 / n_out)
        curve = roc(score, truth)
        grid = np.unique(np.floor(np.geomspace(1, n_out, min(_POINTS, n_out)) + 1e-9)) / n_out
        at = np.searchsorted(curve.fpr, grid + 1e-12, side="right") - 1
        points = [(float(x), float(y)) for x, y in zip(grid, curve.tpr[at], strict=True)]
        lines[titles[attack.name]] = [(x, y) for x, y in points if y > 0]
        if attack.name == first:
            rates = grid[:: max(1, len(grid) // _BANDS)]
            found = [(float(x), tpr_at_fpr(score, truth, float(x))) for x in rates if x < 1.0]
            bands[titles[first]] = [(x, max(e.low, 0.5 / n_in), e.high) for x, e in found]
    lines["Chance"] = [(least, least), (1.0, 1.0)]
    return Curve(
        title="Who is called a member: ROC on logarithmic axes",
        x="False-positive rate, share of held-out patients",
        y="True-positive rate, share of members",
        lines=lines,
        log=True,
        bands=bands,
    )
