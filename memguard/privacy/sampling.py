"""Who is in a step: Poisson draws over patients, each cut in a fixed number of parts that fit in memory.

The accountants assume that each patient enters each step by an own coin, whatever the others do. Shuffled batches of
a fixed size are no such thing, and accounting them as if they were understates epsilon (Chua et al. 2024,
arXiv:2403.17673; Annamalai et al. 2024, arXiv:2411.10614).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from memguard.errors import PrivacyError
from memguard.privacy.draws import Chunk, balance
from memguard.privacy.noise import fingerprint, generator

__all__ = ["PatientSampler"]

_Ints = np.ndarray[Any, np.dtype[np.int64]]
_Floats = np.ndarray[Any, np.dtype[np.float64]]
_SEED_BYTES = 8


class PatientSampler(Sampler[list[int]]):
    """Poisson sampling of patients: each is in a draw by his own coin, with his own rate.

    Every draw is cut in exactly ``chunks`` parts of whole patients, some maybe empty, so that the number of batches
    between two optimizer steps is always the same.

    Args:
        owner_of_record: ``(N,)`` int64, the patient of each record of the dataset, ``0 .. P - 1``; negative for
            records that are never used.
        rates: Sampling rate in (0, 1], or ``(P,)`` one for each patient (individual budgets, Boenisch et al. 2023,
            arXiv:2303.17046, "Sample").
        steps: Draws in one pass.
        chunks: Parts of each draw.
        max_records: Most records of one patient in one draw, a random subset of his; None for all.
        seed: Entropy for the draws, at least 8 bytes that nobody else has and that were never used before.
        rank: Number of this process. All processes make the same draws from the same seed, and each takes its share.
        world: Number of processes.
        carrier: Position that stands for an empty part, since a loader cannot give a batch of nothing.

    Attributes:
        owner_of_record: ``(N,)`` int64, as given.
        skip: For a run that goes on in the middle of a draw: how many of its parts are over; 0 again as soon as a
            chunk is taken. See Note.

    Raises:
        PrivacyError: If an argument does not describe a Poisson draw.

    Note:
        A new pass goes on with new draws and never repeats one. With ``skip`` the first draw of a pass is a Poisson
        draw with ``(chunks - skip) / chunks`` of each rate, in the parts that are left: whole, no larger than memory
        allows, and covered by the accounted rate, since smaller rates give smaller epsilons. (A draw at a share of the
        rate is a mixture of the draw at the rate and an empty one, and the divergences behind epsilon are convex.)

    Example:
        >>> from memguard.privacy.draws import whole_draw
        >>> sampler = PatientSampler([0, 0, 1, 2], rates=1.0, steps=1, chunks=2, max_records=None, seed=bytes(8))
        >>> batches = list(sampler)
        >>> batches
        [[0, 1], [2, 3]]
        >>> chunks = [sampler.take(batch) for batch in batches]
        >>> chunks[1].n_owners, whole_draw(chunks)
        (2, 0)
    """

    def __init__(
        self,
        owner_of_record: Sequence[int] | _Ints,
        *,
        rates: float | Sequence[float] | _Floats,
        steps: int,
        chunks: int,
        max_records: int | None,
        seed: bytes,
        rank: int = 0,
        world: int = 1,
        carrier: int = 0,
    ) -> None:
        super().__init__()
        owner = np.asarray(owner_of_record)
        if owner.ndim != 1 or owner.dtype.kind not in "iu" or not (owner >= 0).any():
            raise PrivacyError(
                f"owner_of_record is {owner.dtype} of shape {owner.shape}",
                "each record must belong to a patient who is in or out as a whole",
                "pass owner_of_record= with one whole number for each record",
            )
        used = owner.max() + 1
        q = np.asarray(rates, dtype=np.float64)
        if q.ndim > 1 or (q.ndim == 1 and len(q) < used):
            raise PrivacyError(
                f"rates of shape {q.shape} for {used} patients",
                "a patient without a rate has no guarantee",
                "pass rates= as one number, or one for each patient",
            )
        if not (np.isfinite(q).all() and (q >= 0).all() and (q <= 1).all() and (q > 0).any()):
            raise PrivacyError(
                f"rates between {q.min()} and {q.max()}",
                "a rate is the probability that a patient is in a draw",
                "pass rates= above 0 and up to 1",
            )
        self._bounds(steps, chunks, max_records, rank, world, carrier, len(owner))
        if len(seed) < _SEED_BYTES:
            raise PrivacyError(
                f"a seed of {len(seed)} bytes",
                "draws that can be guessed give no amplification by sampling",
                "pass seed= what memguard.privacy.noise.entropy() gives",
            )
        self.steps, self.chunks, self.max_records = steps, chunks, max_records
        self.rank, self.world, self.carrier = rank, world, carrier
        self.n_patients = int(len(q) if q.ndim else used)
        self.owner_of_record: _Ints = owner.astype(np.int64)
        self._rates = q
        # Records of patient p: order[starts[p]:starts[p + 1]], in the order of the dataset.
        self._order: _Ints = np.argsort(owner, kind="stable")[int((owner < 0).sum()) :]
        counts = np.bincount(owner[self._order], minlength=self.n_patients)
        self._starts: _Ints = np.concatenate([[0], np.cumsum(counts)])
        self._seed = bytes(seed)
        self._pass = -1
        self.skip = 0
        self._under_way: deque[Chunk] = deque()

    @staticmethod
    def _bounds(
        steps: int, chunks: int, most: int | None, rank: int, world: int, carrier: int, n: int
    ) -> None:
        for name, value, low, high in (
            ("steps", steps, 1, None),
            ("chunks", chunks, 1, None),
            ("max_records", most, 1, None),
            ("world", world, 1, None),
            ("rank", rank, 0, world),
            ("carrier", carrier, 0, n),
        ):
            if value is not None and (value < low or (high is not None and value >= high)):
                limit = f"from {low}" + ("" if high is None else f" to {high - 1}")
                raise PrivacyError(f"{name}={value}", "no draw can be made", f"pass {name}= {limit}")

    @property
    def fingerprint(self) -> str:
        """Tells two seeds apart without giving them away."""
        return fingerprint(self._seed, "sampling")

    @property
    def used(self) -> _Ints:
        """Positions of the records that may be drawn, ascending."""
        return np.flatnonzero(self.owner_of_record >= 0)

    @property
    def rates(self) -> _Floats:
        """``(P,)`` sampling rate of each patient."""
        return np.broadcast_to(self._rates, (self.n_patients,)).copy()

    @property
    def expected_patients(self) -> float:
        """Expected patients in a draw, all processes together; a constant to divide by."""
        return float(np.broadcast_to(self._rates, (self.n_patients,)).sum())

    def __len__(self) -> int:
        return self.steps * self.chunks

    def __iter__(self) -> Iterator[list[int]]:
        # The body runs at the first next(): a loader may ask for an iterator and never use it.
        self._pass += 1
        current = self._pass
        self._under_way.clear()
        for step in range(self.steps):
            for chunk in self._draw(
                current * self.steps + step, min(self.skip, self.chunks - 1) if step == 0 else 0
            ):
                if self._pass != current:
                    raise PrivacyError(
                        "two iterations over one private loader at the same time",
                        "which batch belongs to which draw cannot be told",
                        "read records from the dataset, not from the loader that trains",
                    )
                self._under_way.append(chunk)
                yield [self.carrier] if chunk.empty else chunk.positions.tolist()

    def take(self, positions: Sequence[int] | _Ints) -> Chunk:
        """The next chunk under way, which must be the one that the batch holds.

        Args:
            positions: ``(n,)`` positions of the records that are really in the batch, in order.

        Raises:
            PrivacyError: If the batch does not hold the records of that chunk.
        """
        found = np.asarray(positions, dtype=np.int64).reshape(-1)
        fix = "let the loop take every batch of the private loader, once and in order"
        if not self._under_way:
            raise PrivacyError(
                f"a batch of {len(found)} records that belongs to no draw",
                "its patients were not sampled by the accounted mechanism",
                fix,
            )
        chunk = self._under_way[0]
        wanted = np.array([self.carrier]) if chunk.empty else chunk.positions
        if not np.array_equal(found, wanted):
            raise PrivacyError(
                f"a batch of {len(found)} records where part {chunk.part + 1}/{chunk.parts} of draw {chunk.draw}, "
                f"with {len(wanted)}, was to come",
                "gradients would be given to the wrong patients, and a patient could be clipped as two",
                fix,
            )
        self.skip = 0  # the interrupted draw is being made up for
        return self._under_way.popleft()

    def _draw(self, number: int, skip: int) -> list[Chunk]:
        """The share of this process in one draw; a function of seed and number, so all processes agree."""
        # Keyed by number: processes that prefetch differently far must not drift apart at the next pass.
        rng = generator(self._seed, "sampling", number)
        parts = self.chunks - skip
        patients = self._included(rng, parts / self.chunks)
        row, positions = self._records(rng, patients)
        cell = balance(np.bincount(row, minlength=len(patients)), parts * self.world)[row]
        mine = np.flatnonzero(cell % self.world == self.rank)
        part = cell[mine] // self.world
        mine = mine[np.argsort(part, kind="stable")]
        ends = np.cumsum(np.bincount(part, minlength=parts))
        chunks = []
        for at, of in enumerate(np.split(mine, ends[:-1])):
            rows = row[of]
            owner = np.cumsum(np.diff(rows, prepend=rows[:1]) != 0)
            n_owners = int(owner[-1]) + 1 if len(of) else 0
            chunks.append(Chunk(number, at, parts, positions[of], owner.astype(np.int64), n_owners))
        return chunks

    def _included(self, rng: np.random.Generator, share: float) -> _Ints:
        """Patients whose coin came up, ascending, in time linear in how many may be in."""
        # Binomial many, and then any so many of them, are as good as one coin each. With rates that differ: coins
        # with the largest rate, of which each patient keeps his part.
        top = float(self._rates.max())
        size = rng.binomial(self.n_patients, top * share)
        patients = np.sort(rng.choice(self.n_patients, size, replace=False, shuffle=False))
        if self._rates.ndim:
            patients = patients[rng.random(size) * top < self._rates[patients]]
        return patients.astype(np.int64)

    def _records(self, rng: np.random.Generator, patients: _Ints) -> tuple[_Ints, _Ints]:
        """Row of the patient, and position, of each record drawn: at most ``max_records`` of each."""
        counts = self._starts[patients + 1] - self._starts[patients]
        row = np.repeat(np.arange(len(patients)), counts)
        nth = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        slot = self._starts[patients][row] + nth
        if self.max_records is not None and (counts > self.max_records).any():
            shuffled = np.lexsort((rng.random(len(row)), row))
            keep = np.sort(shuffled[nth < self.max_records])
            row, slot = row[keep], slot[keep]
        return row, self._order[slot]
