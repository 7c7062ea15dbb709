"""The two sides of the comparison: losses and contents of members, and of held-out records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memguard.attacks.aggregate import by_patient
from memguard.attacks.traces import lt_iqr
from memguard.capture.traces import LossTraces
from memguard.errors import MemguardError
from memguard.records.content import ContentStore
from memguard.records.patients import PatientMap

__all__ = ["Side", "WatchSettings", "placed"]

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

_FEWEST_BETWEEN = 200  # held-out records: with fewer, an AUC between validations says little


@dataclass(frozen=True, kw_only=True)
class WatchSettings:
    """What to measure.

    Attributes:
        fprs: False-positive rates at which the true-positive rate is wanted.
        flag_rate: False-discovery rate of the flags.
        member_sample: Members evaluated at each look; ``None`` for 4 % of them, at least 100 and at most
            2,000, which costs about 1.5 % of a training epoch.
        seed: Of the member sample, of the folds and of the bootstraps.

    Raises:
        MemguardError: If ``flag_rate`` is no rate.
    """

    fprs: Sequence[float] = (0.1, 0.01, 0.001)
    flag_rate: float = 0.1
    member_sample: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.flag_rate < 1:
            raise MemguardError(
                f"flag_rate={self.flag_rate}",
                "it is a false-discovery rate",
                "pass a number between 0 and 1",
            )

    def sample_size(self, n_members: int) -> int:
        """How many members are evaluated at each look.

        Example:
            >>> [WatchSettings().sample_size(n) for n in (50, 4000, 1_000_000)]
            [50, 160, 2000]
        """
        wanted = self.member_sample
        if wanted is None:
            wanted = min(max(round(0.04 * n_members), 100), 2000)
        return min(wanted, n_members)

    def draw_held_out(self, n_held_out: int, n_members: int) -> Ints:
        """Held-out records for a look between two validations: as many as members, but at least 200.

        Args:
            n_held_out: How many there are.
            n_members: Training records.

        Returns:
            Sorted positions, a uniform sample that is the same at every call.

        Example:
            >>> rows = WatchSettings().draw_held_out(1_000, 8_000)
            >>> rows.size, WatchSettings().draw_held_out(150, 8_000).size
            (320, 150)
        """
        size = min(n_held_out, max(self.sample_size(n_members), _FEWEST_BETWEEN))
        return np.sort(np.random.default_rng(self.seed).permutation(n_held_out)[:size])


def placed(parts: Iterable[tuple[Ints, Floats]], n: int) -> Floats:
    """Losses at their positions.

    Args:
        parts: Positions ``(B,)`` and losses ``(B,)`` of batches; of a record that comes twice the last counts.
        n: Number of records of the side.

    Returns:
        float32 ``(n,)``, NaN where no loss was given.

    Example:
        >>> placed([(np.array([2, 0]), np.array([.5, 1], np.float32))], 4).tolist()
        [1.0, nan, 0.5, nan]
    """
    loss = np.full(n, np.nan, np.float32)
    for at, values in parts:
        loss[at] = values
    return loss


@dataclass
class Side:
    """One side of the comparison: the training records, or the held-out ones.

    Attributes:
        patients: Record -> patient.
        traces: Losses by epoch.
        store: What the records hold.
        tokens: int32 ``(n,)`` predicted tokens of each record (1 for classifiers), 0 where not seen yet.
    """

    patients: PatientMap
    traces: LossTraces
    store: ContentStore
    tokens: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))

    @classmethod
    def of(cls, patients: PatientMap, fingerprint: str = "") -> Side:
        """An empty side for the records of this map."""
        n = len(patients)
        traces = LossTraces(n, fingerprint=fingerprint)
        return cls(patients, traces, ContentStore(n), np.zeros(n, np.int32))

    def add(self, positions: Ints, loss: Floats, tokens: NDArray[np.integer[Any]]) -> None:
        """Losses of a batch; within an epoch the first observation of a record counts."""
        self.traces.add(positions, loss)
        self.tokens[positions] = tokens

    @property
    def seen(self) -> NDArray[np.bool_]:
        """Which records, ``(n,)``, had a loss at any time."""
        return self.tokens > 0

    def latest(self) -> Floats:
        """Losses ``(n,)`` of the epoch under way; for records not seen in it, and after its end, of the last one."""
        current: Floats = self.traces.current
        if len(self.traces) == 0:
            return current
        last = self.traces.array()[-1].astype(np.float32)
        return np.where(np.isfinite(current), current, last)

    def snapshot(self, epoch: int) -> Floats:
        """Losses ``(n,)`` of an epoch that is over, counted from 0."""
        row: Floats = self.traces.array()[self.traces.epochs.index(epoch)].astype(np.float32)
        return row

    def lt_iqr(self) -> NDArray[np.float64]:
        """LT-IQR of each patient ``(P,)``: the mean over its records, weighted by their tokens.

        NaN for a patient not seen, and for all before the fourth snapshot, where quartiles say nothing.

        Example:
            >>> side = Side.of(PatientMap.from_ids(["a", "a", "b"], source="a list"))
            >>> for epoch, loss in enumerate([4.0, 3.0, 2.0, 1.0]):
            ...     side.add(np.arange(2), np.array([loss, 1.0], np.float32), np.array([3, 1]))
            ...     _ = side.traces.close(epoch=epoch)
            >>> side.lt_iqr().tolist()
            [1.125, nan]
        """
        out = np.full(self.patients.n_patients, np.nan)
        if len(self.traces) < 4:
            return out
        weight = np.maximum(self.tokens, 1)
        totals = by_patient(self.patients.code, lt_iqr(self.traces.array()) * weight, weight, missing="drop")
        out[totals.patient] = totals.nats_per_token
        return out

    def payload(self) -> dict[str, Any]:
        """What this process saw in the epoch under way, for `merge` in all of them."""
        return {
            "traces": self.traces.payload(),
            "tokens": self.tokens[np.flatnonzero(np.isfinite(self.traces.current))],
            "content": None if self.store.complete else self.store.payload(),
        }

    def merge(self, parts: Sequence[Mapping[str, Any]]) -> None:
        """Take in what all processes saw; a record that several of them saw counts once."""
        self.traces.merge([part["traces"] for part in parts])
        for part in parts:
            self.tokens[part["traces"]["positions"]] = part["tokens"]
            if part["content"] is not None:
                self.store.merge(part["content"])

    def name_patients(self, positions: Ints, ids: Sequence[Any], *, source: str) -> bool:
        """Take in patient ids that came with batches.

        Args:
            positions: ``(B,)`` positions of records.
            ids: ``(B,)`` the ids of their patients.
            source: In words.

        Returns:
            Whether that told anything new.
        """
        known = np.flatnonzero(self.patients.code >= 0)
        if len(ids) == 0 or bool(np.isin(positions, known).all()):
            return False
        self.patients = PatientMap.from_observed(
            np.concatenate([known, positions]),
            [*self.patients.ids[self.patients.code[known]].tolist(), *ids],
            n_records=len(self.patients),
            source=source,
        )
        return True
