"""What the attacker knows: prompts cut from records at each tier, and whom to ask."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memguard.errors import MemguardError
from memguard.probes.subject import Subject
from memguard.probes.trajectory.reading import Reader
from memguard.records.content import Ragged

__all__ = ["TierPlan", "draw", "prompt_lengths", "prompts_and_truth"]

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

_CODES = re.compile(r"^codes_(\d+)$")


def prompt_lengths(subject: Subject, reader: Reader, tier: str) -> Ints:
    """Tokens of the prompt at a tier, for each record.

    Args:
        subject: The records.
        reader: Which tokens are codes.
        tier: ``"none"`` (the begin token, which must be the same for all), ``"demographics"`` (the static prefix)
            or ``"codes_10"`` (the static prefix and all up to the tenth code after it; structural tokens do not
            count as codes).

    Returns:
        ``(N + M,)``; 0 where a record has no such prompt.

    Raises:
        MemguardError: For a tier that is none of these.

    Example:
        >>> from memguard.records.content import RecordContent
        >>> codes = Ragged.from_lists([[1, 5, 7, 8, 9], [1, 6, 7]])
        >>> subject = Subject(n_members=1, patient=np.arange(2), content=RecordContent.from_codes(codes),
        ...                   static=np.array([2, 2]))
        >>> reader = Reader.of(subject, 10)
        >>> [prompt_lengths(subject, reader, t).tolist() for t in ("none", "demographics", "codes_2")]
        [[1, 1], [2, 2], [4, 0]]
    """
    sequences, lengths = subject.sequences, subject.sequences.lengths
    if tier == "none":
        first = sequences.values[sequences.offsets[:-1][lengths > 0]]
        begins = first.size > 0 and bool(np.all(first == first[0]))
        return np.where((lengths > 0) & begins, 1, 0).astype(np.int64)
    static = np.minimum(subject.static, lengths)
    if tier == "demographics":
        return static
    found = _CODES.match(tier)
    if found is None:
        raise MemguardError(
            f"tier {tier!r}",
            "what the attacker knows is not clear",
            'pass tiers among "none", "demographics" and "codes_n" with a number n',
        )
    if int(found.group(1)) == 0:
        return static
    seen = np.concatenate([[0], np.cumsum(~reader.structural[sequences.values])])
    start = sequences.offsets[:-1]
    # the place right after the n-th code behind the static prefix
    end = np.searchsorted(seen, seen[start + static] + int(found.group(1)), side="left")
    return np.where(end <= sequences.offsets[1:], end - start, 0).astype(np.int64)


def prompts_and_truth(
    subject: Subject, rows: Ints, cut: Ints, horizon: int, longest: int | None
) -> tuple[Ragged, Ragged]:
    """Prompts, and what comes after them in truth: at most ``horizon`` tokens, and no more than the model can write.

    Example:
        >>> from memguard.records.content import RecordContent
        >>> subject = Subject(n_members=1, patient=np.arange(1),
        ...                   content=RecordContent.from_codes(Ragged.from_lists([[1, 5, 7, 8, 9]])))
        >>> prompt, truth = prompts_and_truth(subject, np.array([0]), np.array([2]), 2, None)
        >>> prompt[0].tolist(), truth[0].tolist()
        ([1, 5], [7, 8])
    """
    records = subject.sequences.take(rows)
    place = np.arange(len(records.values)) - records.offsets[records.rows]
    end = np.minimum(cut + horizon, records.lengths)
    if longest is not None:
        end = np.minimum(end, longest)
    first = place < cut[records.rows]
    after = ~first & (place < end[records.rows])
    prompt = Ragged.from_lengths(records.values[first], np.minimum(cut, records.lengths))
    return prompt, Ragged.from_lengths(records.values[after], np.maximum(end - cut, 0))


@dataclass(frozen=True, kw_only=True)
class TierPlan:
    """Whom to ask at one tier.

    Attributes:
        tier: Of the attacker.
        rows: ``(2 n,)`` one record for each patient: n members, then n never-trained patients.
        cut: ``(2 n,)`` tokens of each prompt.
        short: Patients of both sides without a record long enough, who are in no rate at all.
        unreferenced: Patients left out because too few references never saw them.
        available: ``(2,)`` members and never-trained patients who could have been asked.
        references: How many references each of them is compared with.
    """

    tier: str
    rows: Ints
    cut: Ints
    short: tuple[int, int]
    unreferenced: tuple[int, int]
    available: tuple[int, int]
    references: int


def draw(
    subject: Subject,
    reader: Reader,
    tier: str,
    *,
    out: Bools,
    horizon: int,
    fewest: int,
    longest: int | None,
    patients: int | None,
    references: int,
    seed: int,
) -> TierPlan:
    """Draw as many members as never-trained patients, one record of each.

    Args:
        subject: The records.
        reader: Which tokens are codes.
        tier: What the attacker knows.
        out: ``(K, N + M)`` references that never saw the patient.
        horizon: Tokens of a continuation.
        fewest: Codes (no structural tokens) that a true continuation needs.
        longest: Tokens that the model can read.
        patients: Of each side at most; ``None`` for all.
        references: Compare each patient with so many at most. Each patient is compared with the same number, so
            that a member's number and a never-trained patient's are made alike: the largest number that nine in ten
            eligible patients of each side have.
        seed: Of the draw; patients come in the same order at every tier.
    """
    cut = prompt_lengths(subject, reader, tier)
    _, after = prompts_and_truth(subject, np.arange(len(subject)), cut, horizon, longest)
    enough = (cut > 0) & (reader.count(after) >= fewest)
    available = out.sum(axis=0)
    depth = min(references, len(out))
    for side in (True, False):
        have = available[enough & (subject.member == side)]
        depth = min(depth, int(np.quantile(have, 0.1, method="lower")) if have.size else 0)
    eligible = enough & (available >= depth)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(subject))
    sides, short, unreferenced = [], [], []
    for side in (True, False):
        on = subject.member == side
        everybody = np.unique(subject.patient[on])
        long = np.unique(subject.patient[enough & on])
        short.append(len(everybody) - len(long))
        rows = order[(eligible & on)[order]]
        _, first = np.unique(subject.patient[rows], return_index=True)
        chosen = rows[np.sort(first)]
        unreferenced.append(len(long) - len(chosen))
        sides.append(chosen)
    n = min(len(sides[0]), len(sides[1]), len(subject) if patients is None else patients)
    rows = np.concatenate([sides[0][:n], sides[1][:n]])
    return TierPlan(
        tier=tier,
        rows=rows,
        cut=cut[rows],
        short=(short[0], short[1]),
        unreferenced=(unreferenced[0], unreferenced[1]),
        available=(len(sides[0]), len(sides[1])),
        references=depth,
    )
