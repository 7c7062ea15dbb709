"""By how much a probability falls when the prompt becomes somebody else's, beyond what it falls for strangers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memguard.adapters.base import ModelAdapter
from memguard.probes.asked import Asked
from memguard.probes.attribute.asking import Question, ask
from memguard.probes.clock import NO_LIMIT, Clock
from memguard.probes.perturbation.changes import Changer

__all__ = ["Collapse", "ask_all", "collapses", "excess_of", "top_hits"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Collapse:
    """How one model's log-probabilities fall.

    Attributes:
        base: Log-probability after the true prompts, ``(n,)`` or ``(n, C)``.
        fall: Kind -> ``base`` less the mean over changed prompts, nats, the same shape.
    """

    base: Floats
    fall: dict[str, Floats]


def collapses(
    model: ModelAdapter,
    changer: Changer,
    tokens: Ints | Bools,
    patient: Ints,
    kinds: Sequence[str],
    *,
    draws: int,
    seed: int,
) -> Collapse:
    """Ask one model with the true prompts and with changed ones; the changes are the same for every model."""
    base = ask(model, Question(prompts=changer.prompts, tokens=tokens, patient=patient))
    fall = {}
    for kind in kinds:
        changed = [
            ask(model, Question(prompts=prompts, tokens=tokens, patient=patient))
            for prompts in changer.changed(kind, draws, seed)
        ]
        fall[kind] = base - np.mean(changed, axis=0)
    return Collapse(base=base, fall=fall)


def ask_all(
    asked: Asked,
    mine: tuple[Changer, Ints, Ints],
    others: tuple[Changer, Bools, Ints],
    kinds: Sequence[str],
    null_kind: str,
    *,
    draws: int,
    seed: int,
    clock: Clock = NO_LIMIT,
) -> tuple[list[Collapse], list[Collapse]]:
    """Every reference, one at a time in memory: the codes themselves, and the same codes in records of others."""
    own, null = [], []
    for model in asked.references.adapters():
        own.append(collapses(model, *mine, kinds, draws=draws, seed=seed))
        null.append(collapses(model, *others, (null_kind,), draws=draws, seed=seed + 1))
        if clock.over():
            break
    return own, null


def excess_of(target: Floats, reference: Floats, out: Bools) -> tuple[Floats, Floats]:
    """Fall of the target beyond the mean fall of references that never saw the patient; and that mean.

    Args:
        target: ``(n,)`` nats.
        reference: ``(K, n)``.
        out: ``(K, n)``.

    Returns:
        ``(n,)`` each, NaN without such a reference.

    Example:
        >>> excess, common = excess_of(np.array([5.0]), np.array([[1.0], [9.0]]), np.array([[True], [False]]))
        >>> float(excess[0]), float(common[0])
        (4.0, 1.0)
    """
    count = out.sum(0)
    with np.errstate(invalid="ignore"):
        common = np.where(count > 0, np.where(out, reference, 0.0).sum(0) / np.maximum(count, 1), np.nan)
    return target - common, common


def top_hits(log_p: Floats, n: int) -> Ints:
    """The n likeliest codes of both sides together, positions ascending.

    Both sides are ranked in one list, so that whether a code is asked does not depend on its side but through its
    probability: never-trained patients with as high a probability remain what members are compared with.

    Example:
        >>> top_hits(np.array([-1.0, -3.0, -2.0]), 2).tolist()
        [0, 2]
    """
    return np.sort(np.argsort(-log_p, kind="stable")[:n])
