"""The target and each reference, asked for the same codes after the same prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memguard.adapters.base import ModelAdapter
from memguard.probes.asked import Asked
from memguard.probes.attribute.evidence import FLOOR
from memguard.probes.clock import NO_LIMIT, Clock
from memguard.probes.prompts import log_probs_of
from memguard.records.content import Ragged

__all__ = ["Question", "References", "ask", "ask_references", "ranks_of"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Question:
    """Prompts, and what may come next.

    Attributes:
        prompts: n, none of them empty.
        tokens: ``(n,)`` one token after each; or ``(C, V)`` groups of tokens.
        patient: ``(n,)`` whose prompts they are.
    """

    prompts: Ragged
    tokens: Ints | Bools
    patient: Ints


@dataclass(frozen=True, kw_only=True)
class References:
    """Answers of the references, and which of them were asked.

    Attributes:
        answers: One array for each question, ``(K', n)`` or ``(K', n, C)``.
        asked: ``(K',)`` their numbers.
    """

    answers: list[Floats]
    asked: Ints


def ask(model: ModelAdapter, question: Question) -> Floats:
    """Log-probabilities, never below -50 nats, ``(n,)`` or ``(n, C)``."""
    if len(question.prompts) == 0:
        grouped = question.tokens.dtype == np.bool_
        return np.zeros((0, len(question.tokens)) if grouped else 0)
    found = log_probs_of(model, question.prompts, question.tokens, patient=question.patient)
    return np.maximum(found, FLOOR)


def ask_references(asked: Asked, questions: Sequence[Question], clock: Clock = NO_LIMIT) -> References:
    """Every reference, one at a time in memory, every question.

    Args:
        asked: The references, at least one.
        questions: What to ask.
        clock: No further reference is asked when it is over.
    """
    parts: list[list[Floats]] = [[] for _ in questions]
    number = 0
    for model in asked.references.adapters():
        for part, question in zip(parts, questions, strict=True):
            part.append(ask(model, question))
        number += 1
        if clock.over():
            break
    return References(answers=[np.stack(part) for part in parts], asked=np.arange(number))


def ranks_of(model: ModelAdapter, question: Question) -> tuple[Floats, Ints]:
    """Log-probability of each token and how many tokens are likelier, plus one, ``(n,)`` each."""
    n = len(question.prompts)
    log_p, rank = np.empty(n), np.empty(n, np.int64)
    step = max(1, 8_000_000 // model.vocabulary)
    for start in range(0, n, step):
        part = np.arange(start, min(n, start + step))
        each = model.next_log_probs(question.prompts.take(part), patient=question.patient[part])
        own = each[np.arange(len(part)), question.tokens[part]]
        log_p[part] = np.maximum(own, FLOOR)
        rank[part] = 1 + np.count_nonzero(each > own[:, None], axis=1)
    return log_p, rank
