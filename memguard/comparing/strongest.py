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
        numbers: ``(group, measure)`` -> number, of the strongest attack; its ``without`` is empty where it was not
            asked for.
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

    def offer(self, value: float, without: Floats | None, attack: str, hits: Bools | None = None) -> None:
        if value > self.value:
            self.value, self.attack, self.hits = value, attack, hits
        if without is not None:
            self.without = without if self.without is None else np.maximum(self.without, without)


def strongest(
    scores: Iterable[Scores], groups: Mapping[str, Members], fpr: float, *, areas: bool = False
) -> Leakage:
    """TPR (and AUC) of each group, the largest over all attacks.

    The threshold of an attack is that which at most a share ``fpr`` of *all* non-member pairs of a model and a patient
    exceeds; a group is judged at this common threshold. The maximum is taken again without each seed, so that an
    interval contains the choice of the attack. A maximum over attacks is too large on average, in every arm alike.

    Args:
        scores: Of one arm at one stage.
        groups: Name -> members.
        fpr: Share of non-members that may be called members.
        areas: Whether to give AUCs too; they are of pairs within the group.

    Returns:
        Measures ``"tpr"``, ``"tpr_as_deployed"`` (attacks on signal 0 alone) and, if asked for, ``"auc"``.
    """
    best: dict[tuple[str, str], _Best] = {}
    leakage = Leakage()
    for one in scores:
        leakage.attacks.append(one.attack)
        hits = found_above(one.full, fpr)
        without = None if one.without is None else [_left(one.without[s], s) for s in range(len(one.without))]
        left_hits = None if without is None else [found_above(scored, fpr) for scored in without]
        for name, members in groups.items():
            left = [np.delete(members.without[s], s, axis=0) for s in range(len(members.full))]
            rate = _share(hits, members.full)
            rates = None
            if left_hits is not None:
                rates = np.array([_share(h, m) for h, m in zip(left_hits, left, strict=True)])
            for measure in ("tpr", "tpr_as_deployed")[: 1 + (one.signal == 0)]:
                best.setdefault((name, measure), _Best()).offer(rate, rates, one.attack, hits)
            if areas:
                curve = area(one.full, members.full)
                curves = None
                if without is not None:
                    curves = np.array([area(x, m) for x, m in zip(without, left, strict=True)])
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
            pairs=int(np.count_nonzero(members.full)),
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


def _left(scores: Floats, seed: int) -> Floats:
    """Without the seed itself among the targets."""
    left: Floats = np.delete(scores, seed, axis=1)
    return left
