"""How many of each group the strongest attack finds, with all seeds and without each of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from memguard.comparing.attack import Scores
from memguard.comparing.groups import Members
from memguard.comparing.intervals import Number

__all__ = ["Leakage", "area", "found_above", "strongest"]

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(kw_only=True)
class Leakage:
    """What the attacks on one arm at one stage found.

    Attributes:
        numbers: ``(group, measure)`` -> number, of the strongest attack.
        found: Group -> ``(S, P)`` whom the strongest attack on this group finds among those a model trained on.
        attacks: Names of all that were tried.
    """

    numbers: dict[tuple[str, str], Number] = field(default_factory=dict)
    found: dict[str, Bools] = field(default_factory=dict)
    attacks: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class _Best:
    """The largest number so far, and the largest without each seed."""

    value: float = -math.inf
    without: Floats | None = None
    attack: str = ""
    hits: Bools | None = None

    def offer(self, value: float, without: Floats, attack: str, hits: Bools | None = None) -> None:
        if value > self.value:
            self.value, self.attack, self.hits = value, attack, hits
        self.without = without if self.without is None else np.maximum(self.without, without)


def strongest(
    attacks: Iterable[Scores], groups: Mapping[str, Members], fpr: float, *, areas: bool = False
) -> Leakage:
    """TPR (and AUC) of each group, the largest over all attacks.

    The threshold of an attack is that which at most a share ``fpr`` of *all* non-member pairs of a model and a patient
    exceeds; a group is judged at this common threshold. Threshold and maximum are taken again without each seed among
    the targets, so that an interval contains both. References stay: what other references would do to the models of
    one seed is seen in how the seeds differ (``tests/comparing/test_compute.py`` measures the intervals). A maximum
    over attacks is too large on average, in every arm alike.

    Args:
        attacks: On one arm at one stage.
        groups: Name -> members.
        fpr: Share of non-members that may be called members.
        areas: Whether to give AUCs too; they are of pairs within the group.

    Returns:
        Measures ``"tpr"``, ``"tpr_as_deployed"`` (attacks on signal 0 alone) and, if asked for, ``"auc"``.
    """
    best: dict[tuple[str, str], _Best] = {}
    leakage = Leakage()
    for one in attacks:
        leakage.attacks.append(one.attack)
        seeds = range(one.scores.shape[1])
        left = [np.delete(one.scores, s, axis=1) for s in seeds]
        hits, left_hits = found_above(one.scores, fpr), [found_above(scores, fpr) for scores in left]
        for name, members in groups.items():
            members_left = [np.delete(members.of_seed, s, axis=0) for s in seeds]
            rate = _share(hits, members.of_seed)
            rates = np.array([_share(h, m) for h, m in zip(left_hits, members_left, strict=True)])
            for measure in ("tpr", "tpr_as_deployed")[: 1 + (one.signal == 0)]:
                best.setdefault((name, measure), _Best()).offer(rate, rates, one.attack, hits)
            if areas:
                curve = area(one.scores, members.of_seed)
                curves = np.array([area(x, m) for x, m in zip(left, members_left, strict=True)])
                best.setdefault((name, "auc"), _Best()).offer(curve, curves, one.attack)
    for (name, measure), top in best.items():
        members = groups[name]
        if measure == "tpr" and top.hits is not None:
            leakage.found[name] = top.hits
        leakage.numbers[name, measure] = Number(
            value=top.value,
            without=np.zeros(0) if top.without is None else top.without,
            patients=members.patients,
            kind="auc" if measure == "auc" else "rate",
            attack=top.attack,
            pairs=int(np.count_nonzero(members.of_seed)),
        )
    return leakage


def found_above(scores: Floats, fpr: float) -> Bools:
    """``(S, P)`` members above the threshold that at most a share ``fpr`` of all non-members exceeds.

    Args:
        scores: ``(2, S, P)``, of members first.
        fpr: In (0, 1).
    """
    outside = scores[1].ravel()
    rank = len(outside) - 1 - math.floor(fpr * len(outside) + 1e-9)
    hits: Bools = scores[0] > np.partition(outside, rank)[rank]
    return hits


def area(scores: Floats, members: Bools) -> float:
    """AUC over pairs of models and patients of a group, ties one half.

    Args:
        scores: ``(2, S, P)``, of members first.
        members: ``(S, P)`` who is in the group.
    """
    inside, outside = np.sort(scores[0][members]), np.sort(scores[1][members])
    below = np.searchsorted(outside, inside, "left") + np.searchsorted(outside, inside, "right")
    return float(below.mean() / 2 / len(outside))


def _share(hits: Bools, members: Bools) -> float:
    return float(np.count_nonzero(hits & members) / np.count_nonzero(members))
