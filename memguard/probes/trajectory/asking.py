"""Continuations of one model for the patients of a plan, measured against the truth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memguard.adapters.base import ModelAdapter
from memguard.probes.subject import Subject
from memguard.probes.trajectory.overlap import common_runs, exact_match, multiset_overlap
from memguard.probes.trajectory.reading import Reader, Timed
from memguard.probes.trajectory.tiers import TierPlan, prompts_and_truth
from memguard.probes.trajectory.transport import Ground, nearest_other, transport_distance
from memguard.records.content import Ragged

__all__ = ["MEASURES", "Questions", "Sampling", "assign", "compared", "cut_to"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Measured = Mapping[str, Floats]

MEASURES = ("distance", "exact_match", "overlap", "run", "information")


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How continuations are drawn: see `ModelAdapter.generate`."""

    samples: int
    temperature: float
    top_p: float
    seed: int


def cut_to(made: Ragged, lengths: Ints) -> Ragged:
    """The first tokens of each sequence, at most so many.

    Example:
        >>> cut_to(Ragged.from_lists([[1, 2, 3], [4]]), np.array([2, 2])).values.tolist()
        [1, 2, 4]
    """
    rows = made.rows
    kept = np.arange(len(made.values)) - made.offsets[rows] < lengths[rows]
    return Ragged.from_lengths(made.values[kept], np.minimum(made.lengths, lengths))


class Questions:
    """The prompts of a plan, put to one model after the other.

    The prompt never counts as output: truth begins right after it, and a continuation is as long as the truth at
    most, in tokens.

    Args:
        subject: The records.
        reader: Which tokens are codes.
        plan: Whom to ask, at one tier.
        ground: Costs of codes and times; ``None`` where no distance is wanted.
        sampling: How continuations are drawn; the same seed serves every model.
        horizon: Tokens of a continuation at most.
        longest: Tokens that the models can read.
    """

    def __init__(
        self,
        subject: Subject,
        reader: Reader,
        plan: TierPlan,
        ground: Ground | None,
        sampling: Sampling,
        horizon: int,
        longest: int | None,
    ) -> None:
        self.reader, self.plan, self.ground, self.sampling = reader, plan, ground, sampling
        self.prompts, self.truth = prompts_and_truth(subject, plan.rows, plan.cut, horizon, longest)
        self.patient = subject.patient[plan.rows]
        self.member = subject.member[plan.rows]
        self.horizon = horizon

    def ask(self, adapter: ModelAdapter, who: Ints) -> tuple[Timed, Ints]:
        """Continuations of these patients, and each one's patient (positions in the plan)."""
        s = self.sampling
        made = adapter.generate(
            self.prompts.take(who),
            int(self.truth.lengths[who].max()),
            samples=s.samples,
            temperature=s.temperature,
            top_p=s.top_p,
            seed=s.seed,
        )
        each = np.repeat(who, s.samples)
        return self.reader.read(cut_to(made, self.truth.lengths[each]), self.horizon), each

    def measure(self, made: Timed, each: Ints) -> dict[str, Floats]:
        """``(n, samples)`` of each measure: distance, shares, codes of the longest run, nats of the heaviest."""
        truth = self.reader.read(self.truth.take(each), self.horizon)
        runs = common_runs(made.codes, truth.codes, self.reader.information)
        found = {
            "exact_match": exact_match(made.codes, truth.codes),
            "overlap": multiset_overlap(made.codes, truth.codes),
            "run": runs.length.astype(np.float64),
            "information": runs.weight,
        }
        if self.ground is not None:
            found["distance"] = transport_distance(made, truth, self.ground)
        return {name: value.reshape(-1, self.sampling.samples) for name, value in found.items()}

    def neighbour_ratio(self, made: Timed, distance: Floats, *, samples: int, others: int) -> Floats:
        """Distance to the own truth over the distance to the nearest other patient's, mean over some samples.

        Args:
            made: Continuations of all patients of the plan.
            distance: ``(n, samples)`` to the own truth.
            samples: The first so many continuations; they are not chosen by how near they come.
            others: So many other patients of the plan, as many of either side as chance gives.

        Returns:
            ``(n,)``; NaN where no other patient is asked about, or where one is met exactly (distance 0) by all.
        """
        assert self.ground is not None
        n, samples = len(self.patient), min(samples, self.sampling.samples)
        truth = self.reader.read(self.truth, self.horizon)
        rng = np.random.default_rng([self.sampling.seed, 7])
        rank = np.argsort(rng.random((n, n)) + 2.0 * (self.patient[:, None] == self.patient), axis=1)
        allowed = np.zeros((n, n), np.bool_)
        np.put_along_axis(allowed, rank[:, :others], True, axis=1)
        allowed &= self.patient[:, None] != self.patient
        chosen = (np.arange(n)[:, None] * self.sampling.samples + np.arange(samples)).reshape(-1)
        part = Timed(
            codes=made.codes.take(chosen),
            time=made.time[np.isin(made.codes.rows, chosen)],
        )
        ground = self.ground
        near = nearest_other(part, truth, allowed[np.repeat(np.arange(n), samples)], ground)
        own = distance[:, :samples].reshape(-1)
        ratio = np.divide(own, near, out=np.full(len(own), np.nan), where=near > 0)
        known = np.isfinite(ratio).reshape(n, samples)
        total = np.where(known, ratio.reshape(n, samples), 0.0).sum(axis=1)
        count = known.sum(axis=1)
        mean: Floats = np.divide(total, count, out=np.full(n, np.nan), where=count > 0)
        return mean


def assign(out: NDArray[np.bool_], references: int, seed: int) -> NDArray[np.bool_]:
    """Which references each patient is compared with: so many of those that never saw the patient, at random.

    Args:
        out: ``(K, n)`` references that never saw the patient.
        references: For each patient; every patient has at least so many.
        seed: Of the choice.

    Example:
        >>> assign(np.array([[True, True], [False, True], [True, True]]), 2, 0).sum(axis=0).tolist()
        [2, 2]
    """
    rank = np.argsort(np.random.default_rng([seed, 3]).random(out.shape) + 2.0 * ~out, axis=0)
    chosen = np.zeros(out.shape, np.bool_)
    np.put_along_axis(chosen, rank[:references], True, axis=0)
    return np.asarray(chosen & out, dtype=np.bool_)


def compared(asked: NDArray[np.bool_], member: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], int]:
    """The references that enter each patient's comparison: the same number for everybody.

    Where time ran out, some references were never asked; the number is then the largest one that nine in ten
    patients of each side still have, and the other patients are left out.

    Args:
        asked: ``(K, n)`` whether reference k was asked about the patient.
        member: ``(n,)`` the side.

    Returns:
        ``(K, n)`` those that count, and how many there are for each patient (0: no comparison).
    """
    have = asked.sum(axis=0)
    depth = min(int(np.quantile(have[member == side], 0.1, method="lower")) for side in (True, False))
    first = np.cumsum(asked, axis=0) <= depth
    return asked & first & (have >= depth), depth
