"""A synthetic cohort of code sequences with known strata, for next-code models and for classifiers.

A record is age, sex and up to 24 of 588 clinical codes: a phenotype's own codes over a Zipf background, with
preferred successors. Six strata: *ordinary*; *unique* (70 % of the codes from a rare tail); *near-duplicate* (2-8
near copies, each a patient of its own); *repeated patient* (2-8 near copies, one patient); *planted sensitive* (a
sensitive code at a random late position); *inferable sensitive* (two antiretroviral codes, then the HIV code).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memguard.records.content import Ragged

__all__ = ["STRATA", "Cohort", "make_cohort"]

STRATA = (
    "ordinary",
    "unique",
    "near-duplicate",
    "repeated patient",
    "planted sensitive",
    "inferable sensitive",
)

VOCABULARY, BOS, FIRST_AGE, FIRST_SEX, FIRST_CODE = 600, 1, 2, 10, 12
CODES, TAIL, PHENOTYPES, LONGEST = 588, 180, 12, 24
COMMON = CODES - TAIL
ART = (FIRST_CODE + COMMON - 3, FIRST_CODE + COMMON - 2)  # antiretrovirals
HIV = FIRST_CODE + COMMON - 1
SENSITIVE = tuple(range(FIRST_CODE + COMMON - 11, FIRST_CODE + COMMON - 3))  # eight other sensitive codes
PLAIN = COMMON - 11  # codes that the generator draws from


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Records, whose they are, and which stratum they belong to.

    Attributes:
        codes: ``N`` sequences, each beginning with BOS, age band and sex.
        patient: ``(N,)``; only the repeated-patient stratum has several records a patient.
        stratum: ``(N,)`` index into ``STRATA``.
        phenotype: ``(N,)``, 0-11.
        label: ``(N,)`` the phenotype with 5 % of the labels flipped.
    """

    codes: Ragged
    patient: np.ndarray
    stratum: np.ndarray
    phenotype: np.ndarray
    label: np.ndarray

    def multi_hot(self) -> np.ndarray:
        """Which codes each record carries, ``(N, 598)`` float32 (no order, no BOS)."""
        out = np.zeros((len(self.codes), VOCABULARY - 2), dtype=np.float32)
        real = self.codes.values > BOS
        out[self.codes.rows[real], self.codes.values[real] - 2] = 1.0
        return out


class _World:
    """The generator's parameters, the same for every cohort of a seed."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng([seed, 1])
        zipf = 1.0 / np.arange(1, PLAIN + 1)
        self.background = np.cumsum(zipf / zipf.sum())
        self.topic_order = np.array([rng.permutation(PLAIN)[:40] for _ in range(PHENOTYPES)])
        sharp = 1.0 / np.arange(1, 41) ** 0.9
        self.topic = np.cumsum(sharp / sharp.sum())
        self.successors = rng.integers(0, PLAIN, size=(PLAIN, 3))
        self.age = rng.dirichlet(np.full(8, 1.5), size=PHENOTYPES).cumsum(1)

    def draw(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Codes ``(n, 27)``, lengths and phenotypes of ordinary records."""
        z = rng.integers(0, PHENOTYPES, n)
        out = np.zeros((n, LONGEST + 3), dtype=np.int64)
        out[:, 0] = BOS
        out[:, 1] = FIRST_AGE + (rng.random(n)[:, None] > self.age[z]).sum(1)
        out[:, 2] = FIRST_SEX + (rng.random(n) < 0.35 + 0.3 * (z % 2))
        previous = self._fresh(z, rng)
        for t in range(LONGEST):
            follow = self.successors[previous, np.minimum(rng.geometric(0.6, n) - 1, 2)]
            previous = np.where((rng.random(n) < 0.45) & (t > 0), follow, self._fresh(z, rng))
            out[:, 3 + t] = FIRST_CODE + previous
        return out, 3 + rng.integers(10, LONGEST + 1, n), z

    def _fresh(self, z: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        n = len(z)
        own = self.topic_order[z, np.minimum(np.searchsorted(self.topic, rng.random(n)), 39)]
        any_code = np.minimum(np.searchsorted(self.background, rng.random(n)), PLAIN - 1)
        return np.where(rng.random(n) < 0.75, own, any_code)


def make_cohort(seed: int, n: int = 4000, n_held_out: int = 600) -> tuple[Cohort, Cohort]:
    """A pool with all strata and a held-out cohort of ordinary records from the same world.

    Strata sizes are those of 4,000 records, in proportion: 80 unique, 240 near-duplicate, 240 repeated,
    80 planted, 132 inferable, the rest ordinary.
    """
    world, rng = _World(seed), np.random.default_rng([seed, 2])
    scale = n / 4000
    sizes = {1: round(80 * scale), 2: round(240 * scale), 3: round(240 * scale), 4: round(80 * scale)}
    sizes[5] = round(132 * scale)
    codes, lengths, z = world.draw(n, rng)
    stratum, patient = np.zeros(n, dtype=np.int64), np.arange(n)
    start = 0
    for kind, size in sizes.items():
        rows = np.arange(start, start + size)
        stratum[rows] = kind
        start += size
        if kind == 1:
            tail = FIRST_CODE + COMMON + rng.integers(0, TAIL, (size, LONGEST))
            codes[rows, 3:] = np.where(rng.random((size, LONGEST)) < 0.7, tail, codes[rows, 3:])
        elif kind in (2, 3):
            _copy(codes, lengths, z, patient if kind == 3 else None, rows, rng)
        elif kind == 4:
            place = 3 + (0.6 * (lengths[rows] - 3) + rng.random(size) * 0.4 * (lengths[rows] - 3)).astype(int)
            codes[rows, np.minimum(place, lengths[rows] - 1)] = rng.choice(SENSITIVE, size)
        else:
            place = 3 + (rng.random(size) * (lengths[rows] - 6)).astype(int)
            for step, code in enumerate((*ART, HIV)):
                codes[rows, place + step] = code
    flip = rng.random(n) < 0.05
    label = np.where(flip, (z + rng.integers(1, PHENOTYPES, n)) % PHENOTYPES, z)
    order = rng.permutation(n)
    pool = _cohort(codes[order], lengths[order], patient[order], stratum[order], z[order], label[order])
    codes, lengths, z = world.draw(n_held_out, rng)
    flip = rng.random(n_held_out) < 0.05
    label = np.where(flip, (z + rng.integers(1, PHENOTYPES, n_held_out)) % PHENOTYPES, z)
    ordinary = np.zeros(n_held_out, dtype=np.int64)
    return pool, _cohort(codes, lengths, n + np.arange(n_held_out), ordinary, z, label)


def _copy(
    codes: np.ndarray,
    lengths: np.ndarray,
    z: np.ndarray,
    patient: np.ndarray | None,
    rows: np.ndarray,
    rng: np.random.Generator,
) -> None:
    """Make groups of 2-8 near copies in place: 4 % of the codes are replaced in each copy."""
    start = 0
    while start < len(rows):
        group = rows[start : start + int(rng.integers(2, 9))]
        first = group[0]
        noise = rng.random((len(group), LONGEST)) < 0.04
        noise[0] = False
        kept = np.where(noise, codes[group, 3:], codes[first, 3:])
        codes[group, :3], codes[group, 3:] = codes[first, :3], kept
        lengths[group], z[group] = lengths[first], z[first]
        if patient is not None:
            patient[group] = first
        start += len(group)


def _cohort(
    codes: np.ndarray,
    lengths: np.ndarray,
    patient: np.ndarray,
    stratum: np.ndarray,
    z: np.ndarray,
    label: np.ndarray,
) -> Cohort:
    ragged = Ragged.from_padded(codes, np.arange(codes.shape[1]) < lengths[:, None])
    return Cohort(codes=ragged, patient=patient, stratum=stratum, phenotype=z, label=label)
