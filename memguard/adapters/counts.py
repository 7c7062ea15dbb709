"""The model that counts: what a code's predecessors say about it in other patients' records, asked like any model."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from memguard.adapters.base import Ability
from memguard.errors import AbilityError
from memguard.records.content import Ragged
from memguard.records.next_code import NextCodeCounts

__all__ = ["CountsAdapter"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class CountsAdapter:
    """Ask counts instead of a trained model; every question says whose record it is about.

    That patient's own counts are left out exactly, so that the answer is that of a model that never saw the patient,
    for members and held-out patients alike.

    Args:
        train: Sequences of everybody who is counted: members, or members and held-out patients.
        patient: ``(N,)`` whose they are, integers; every sequence its own patient when ``None``.
        vocabulary: V; by default one more than the largest code.
        order: Longest n-gram, see :class:`memguard.records.next_code.NextCodeCounts`.
        counts: Counts made elsewhere, instead of all of these.

    Raises:
        DataError: If nothing can be counted.

    Example:
        >>> model = CountsAdapter(Ragged.from_lists([[1, 2], [1, 2], [1, 3]]), [0, 1, 2], vocabulary=4)
        >>> model.log_probs(Ragged.from_lists([[1, 3], [1, 3]]), patient=np.array([2, 9])).round(2)
        array([  nan, -3.16,   nan, -1.29])
    """

    abilities: frozenset[Ability] = frozenset({"log_probs"})
    longest: int | None = None

    def __init__(
        self,
        train: Ragged | None = None,
        patient: ArrayLike | None = None,
        *,
        vocabulary: int | None = None,
        order: int = 3,
        counts: NextCodeCounts | None = None,
    ) -> None:
        if counts is None:
            counts = NextCodeCounts(
                Ragged.from_lists([]) if train is None else train, patient, vocabulary=vocabulary, order=order
            )
        self.counts, self.vocabulary = counts, counts.vocabulary

    def log_probs(self, sequences: Ragged, *, patient: Ints | None = None) -> Floats:
        """Log-probability of each token given those before it, by other patients' counts.

        Raises:
            AbilityError: Without ``patient``.
            DataError: For codes outside the vocabulary, or patients that do not match.
        """
        out = self.counts.log_probs(sequences, _whose(patient))
        out[sequences.offsets[:-1][sequences.lengths > 0]] = np.nan
        return out

    def next_log_probs(self, prompts: Ragged, *, patient: Ints | None = None) -> Floats:
        """Log-probabilities of all V tokens right after each prompt, by other patients' counts.

        Raises:
            AbilityError: Without ``patient``.
            DataError: For codes outside the vocabulary, or patients that do not match.
        """
        return self.counts.next_log_probs(prompts, _whose(patient))

    def generate(
        self,
        prompts: Ragged,
        n_new: int,
        *,
        samples: int = 1,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Ragged:
        """Refused: a few codes of memory make no record.

        Raises:
            AbilityError: Always.
        """
        raise AbilityError(
            "continuations of a model made of counts",
            "it knows the last codes only, and would be no reference for how alike two records are",
            "ask a trained reference model",
        )

    def embed(self, sequences: Ragged) -> Floats:
        """Refused: counts have no state.

        Raises:
            AbilityError: Always.
        """
        raise AbilityError(
            "embeddings of a model made of counts", "it has none", "ask a trained reference model"
        )

    def code_vectors(self) -> None:
        """None: codes are names to it."""

    def of(self, module: Any) -> CountsAdapter:
        """Ask other counts.

        Raises:
            AbilityError: If ``module`` are not ``NextCodeCounts``.
        """
        if isinstance(module, NextCodeCounts):
            return CountsAdapter(counts=module)
        raise AbilityError(f"a {type(module).__name__}", "these are no counts", "pass NextCodeCounts")


def _whose(patient: Ints | None) -> Ints:
    if patient is None:
        raise AbilityError(
            "no patient=",
            "a member's own record would be in the counts that are to stand for everybody else",
            "pass patient= with one patient for each sequence, -1 for somebody who was not counted",
        )
    return patient
