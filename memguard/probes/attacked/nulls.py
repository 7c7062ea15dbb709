"""What frames the attacks: the records without a model, and epsilon where coins decided who was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from memguard.attacks.epsilon import EpsilonBound, epsilon_one_run
from memguard.attacks.estimate import Estimate
from memguard.errors import MemguardError
from memguard.probes.attacked.draft import Draft
from memguard.probes.attacked.scored import Attack
from memguard.probes.blind import blind_baseline
from memguard.probes.subject import Subject

__all__ = ["blind", "epsilon"]

Ints = NDArray[np.int64]


def blind(subject: Subject, rows: Ints, seed: int, draft: Draft) -> None:
    """What the records alone say, without any model: above .5, the sides differ by themselves."""
    inside, outside = rows[subject.member[rows]], rows[~subject.member[rows]]
    try:
        found = blind_baseline(
            subject.content.take(inside),
            subject.content.take(outside),
            subject.patient[inside],
            subject.patient[outside],
            seed=seed,
        )
    except MemguardError as error:
        draft.miss("What the records alone tell (blind baseline)", f"{error.seen}: {error.why}", error.fix)
        return
    draft.numbers["blind.auc"] = found
    if found.low > 0.5:
        draft.notes.append(
            f"Members and held-out patients differ without any model (blind AUC {found:.2f}): part of every "
            "number here is that difference, and p-values are too small."
        )


def epsilon(
    attacks: Sequence[Attack], member: NDArray[np.bool_], delta: float, confidence: float, draft: Draft
) -> None:
    """Lower bound on epsilon where coins decided who is a member: the largest over attacks (Bonferroni)."""
    level = 1.0 - (1.0 - confidence) / len(attacks)
    best: EpsilonBound | None = None
    for attack in attacks:
        known = np.isfinite(attack.score)
        try:
            bound = epsilon_one_run(attack.score[known], member[known], delta=delta, confidence=level)
        except MemguardError as error:
            draft.miss("Epsilon from one run", f"{error.seen}: {error.why}", error.fix)
            return
        if best is None or bound.epsilon > best.epsilon:
            how = f"{attack.title}: {bound.method}, Bonferroni over {len(attacks)} attacks"
            best = replace(bound, confidence=confidence, method=how)
    if best is None:
        return
    draft.bounds.append(best)
    draft.numbers["epsilon_lower_bound"] = Estimate(
        value=best.epsilon,
        low=best.epsilon,
        high=float("inf"),
        n=best.n,
        method=f"{best.method}, lower bound, delta {best.delta:g}, at most {best.largest:.2f} can be shown",
        confidence=confidence,
    )
