"""How much of a record a model gives away when it is shown the beginning: greedily, and in probability."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memguard.adapters.base import ModelAdapter
from memguard.probes.subject import Subject
from memguard.probes.trajectory.asking import cut_to
from memguard.probes.trajectory.overlap import common_runs, exact_match
from memguard.probes.trajectory.reading import Reader
from memguard.probes.trajectory.tiers import prompt_lengths, prompts_and_truth
from memguard.records.content import Ragged

__all__ = ["Beginning", "cut_at"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_IMPOSSIBLE = -100.0  # nats


def cut_at(subject: Subject, reader: Reader, prompt: str) -> Ints:
    """Tokens of the prompt of each record, 0 where there is none.

    Args:
        subject: The records.
        reader: Which tokens are codes.
        prompt: ``"half"``, the static prefix and half of what follows, or a tier of `prompt_lengths`.

    Example:
        >>> from memguard.records.content import RecordContent
        >>> subject = Subject(n_members=1, patient=np.arange(2), static=np.array([1, 1]),
        ...                   content=RecordContent.from_codes(Ragged.from_lists([[1, 5, 7, 8, 9], [1]])))
        >>> cut_at(subject, Reader.of(subject, 10), "half").tolist()
        [3, 0]
    """
    if prompt != "half":
        return prompt_lengths(subject, reader, prompt)
    lengths = subject.sequences.lengths
    static = np.minimum(subject.static, lengths)
    half = (lengths - static) // 2
    return np.where(half > 0, static + half, 0)


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """The beginnings of some records, and how they go on.

    Attributes:
        rows: ``(n,)`` the records.
        prompts: ``n`` beginnings.
        truth: ``n`` continuations; none of them is part of its prompt.
        reader: Which tokens are codes.
    """

    rows: Ints
    prompts: Ragged
    truth: Ragged
    reader: Reader

    @classmethod
    def of(
        cls, subject: Subject, reader: Reader, rows: Ints, cut: Ints, horizon: int, longest: int | None
    ) -> Beginning:
        """Cut these records after ``cut`` tokens each."""
        prompts, truth = prompts_and_truth(subject, rows, cut, horizon, longest)
        return cls(rows=rows, prompts=prompts, truth=truth, reader=reader)

    def greedy(self, model: ModelAdapter) -> dict[str, Floats]:
        """What the likeliest continuation has of the truth, structural tokens left out.

        Returns:
            ``exact_match``: share of codes at their place; ``run``: codes of the longest verbatim run;
            ``information``: nats of the heaviest one, ``(n,)`` each.
        """
        made = model.generate(self.prompts, int(self.truth.lengths.max()), temperature=0.0)
        made = cut_to(made, self.truth.lengths)
        one, other = self.reader.read(made, 1).codes, self.reader.read(self.truth, 1).codes
        runs = common_runs(one, other, self.reader.information)
        return {
            "exact_match": exact_match(one, other),
            "run": runs.length.astype(np.float64),
            "information": runs.weight,
        }

    def log_prob(self, model: ModelAdapter, patient: Ints) -> Floats:
        """Nats per code of the true continuation, ``(n,)``: 0 is certain; structural tokens are left out.

        A code that the model holds to be impossible counts as -100 nats, so that the mean stays a number.
        """
        n = len(self.rows)
        both = Ragged.concat([self.prompts, self.truth]).take(
            np.stack([np.arange(n), n + np.arange(n)], axis=1).reshape(-1)
        )
        whole = Ragged.from_lengths(both.values, self.prompts.lengths + self.truth.lengths)
        place = np.arange(len(whole.values)) - whole.offsets[whole.rows]
        counted = (place >= self.prompts.lengths[whole.rows]) & ~self.reader.structural[whole.values]
        each = np.maximum(model.log_probs(whole, patient=patient)[counted], _IMPOSSIBLE)
        rows = whole.rows[counted]
        return np.bincount(rows, each, minlength=n) / np.bincount(rows, minlength=n)
