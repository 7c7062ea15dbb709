"""A world of losses for the membership probe: how hard each patient is, and what training on him is worth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memguard.probes.asked import Asked
from memguard.probes.subject import Subject
from memguard.records.content import Ragged, RecordContent


@dataclass
class Pool:
    """Reference models of which only the masks are known."""

    in_mask: np.ndarray
    kind: str = "pool"

    def __len__(self) -> int:
        return len(self.in_mask)

    def adapters(self):
        return iter(())


class Table:
    """Gives each token a fixed log-probability, one of its own to tokens of patients whom it knows."""

    abilities = frozenset({"log_probs"})
    vocabulary = 50
    longest: int | None = None

    def __init__(self, known=(), better: float = 0.0):
        self.known, self.better, self.asked = np.asarray(known), better, 0

    def log_probs(self, sequences: Ragged, *, patient=None):
        assert self.longest is None or sequences.lengths.max() <= self.longest
        self.asked += len(sequences)
        value = -1.0 - sequences.values / 10.0
        knows = np.isin(patient, self.known)
        value = value + self.better * knows[sequences.rows]
        value[sequences.offsets[:-1]] = np.nan
        return value


def world(
    seed: int,
    members: int = 200,
    held_out: int = 200,
    *,
    k: int = 8,
    gain: float = 0.0,
    target_gain: float | None = None,
    records: int = 1,
    sides: str = "both",
    target=None,
) -> tuple[Subject, Asked]:
    """Losses of a target and k references on halves by patient; ``gain`` nats less where trained on.

    ``sides``: references are trained on halves of ``"both"`` sides, of ``"members"``, or on ``"none"`` of them.
    """
    rng = np.random.default_rng(seed)
    n = members + held_out
    patient = np.repeat(np.arange(n), records)
    hard = np.repeat(rng.normal(4.0, 0.8, n), records) + 0.2 * rng.normal(size=n * records)
    half = np.zeros((k, n), bool)
    for i in range(k // 2):
        half[2 * i] = rng.permutation(n) < n // 2
        half[2 * i + 1] = ~half[2 * i]
    if k % 2:
        half[-1] = rng.random(n) < 0.5
    half &= {"both": True, "members": np.arange(n) < members, "none": False}[sides]
    in_mask = half[:, patient]
    noise = 0.15 * rng.normal(size=(k + 1, n * records))
    reference = hard - gain * in_mask + noise[:k]
    trained = patient < members
    loss = hard - (gain if target_gain is None else target_gain) * trained + noise[k]
    codes = [rng.integers(0, 50, rng.integers(2, 9)) for _ in patient]
    subject = Subject(
        n_members=members * records,
        patient=patient,
        content=RecordContent.from_codes(Ragged.from_lists(codes)),
    )
    tokens = np.array([len(c) - 1 for c in codes])
    asked = Asked(
        target=target,
        references=Pool(in_mask, "pool" if k else "none"),
        loss=np.maximum(loss, 0.01),
        reference_loss=np.maximum(reference, 0.01),
        tokens=tokens,
    )
    return subject, asked
