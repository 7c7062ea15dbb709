"""Models whose probabilities are known: they know the population, and some have memorized chosen records."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from memguard.probes.asked import Asked
from memguard.probes.subject import Subject
from memguard.records.content import Ragged, RecordContent

BEGIN, SEXES, FIRST = 1, (2, 3), 4


@dataclass
class Writer:
    """Knows which code follows which in the population, and how chosen records go on.

    After a prefix of a memorized record the record's next token has probability ``grip`` plus its share of the rest;
    without a memorized record it is the population's chain.
    """

    chain: np.ndarray  # (V, V)
    memorized: list[list[int]] = field(default_factory=list)
    grip: float = 0.0
    vectors: np.ndarray | None = None
    longest: int | None = None
    abilities: frozenset = frozenset({"log_probs", "generate"})

    def __post_init__(self) -> None:
        self.vocabulary = len(self.chain)
        self._next: dict[tuple[int, ...], np.ndarray] = {}
        for record in self.memorized:
            for t in range(1, len(record)):
                found = self._next.setdefault(tuple(record[:t]), np.zeros(self.vocabulary))
                found[record[t]] += 1.0
        self.asked = 0

    def _p(self, prefix: tuple[int, ...]) -> np.ndarray:
        p = self.chain[prefix[-1]]
        if prefix in self._next:
            known = self._next[prefix]
            p = (1 - self.grip) * p + self.grip * known / known.sum()
        return p

    def log_probs(self, sequences: Ragged, *, patient=None):
        out = []
        for i in range(len(sequences)):
            row = tuple(int(v) for v in sequences[i])
            out += [np.nan] + [self._p(row[:t])[row[t]] for t in range(1, len(row))]
        with np.errstate(divide="ignore"):
            return np.log(out)

    def next_log_probs(self, prompts: Ragged, *, patient=None):
        return np.log(np.stack([self._p(tuple(int(v) for v in prompts[i])) for i in range(len(prompts))]))

    def generate(self, prompts, n_new, *, samples=1, temperature=1.0, top_p=1.0, seed=0):
        assert len(prompts) and prompts.lengths.min() > 0 and top_p == 1.0
        rows = []
        for i in range(len(prompts)):
            for j in range(samples):
                rng = np.random.default_rng([seed, i, j])
                row = [int(v) for v in prompts[i]]
                n = n_new if self.longest is None else min(n_new, self.longest - len(row))
                for _ in range(n):
                    p = self._p(tuple(row))
                    row.append(int(p.argmax()) if temperature == 0 else int(rng.choice(len(p), p=p)))
                rows.append(row[len(prompts[i]) :])
                self.asked += 1
        return Ragged.from_lists(rows)

    def embed(self, sequences):
        raise NotImplementedError

    def code_vectors(self):
        return self.vectors

    def of(self, module):
        return module


@dataclass
class Pool:
    """Reference models that are all there."""

    models: list
    in_mask: np.ndarray
    kind: str = "pool"

    def __len__(self) -> int:
        return len(self.in_mask)

    def adapters(self):
        return iter(self.models)


def world(
    seed: int,
    *,
    members: int = 40,
    held_out: int = 40,
    memorized: int = 0,
    grip: float = 0.9,
    references: int = 4,
    codes: int = 24,
    lengths: tuple[int, int] = (18, 24),
    records: list[list[int]] | None = None,
) -> tuple[Subject, Asked]:
    """Records drawn from a chain of codes; the target has memorized the first members, references others.

    Each reference was trained on half of the members and memorized those of the first ``memorized`` among them.
    """
    rng = np.random.default_rng([seed, 5])
    v = FIRST + codes
    chain = np.zeros((v, v))
    chain[:, FIRST:] = rng.dirichlet(np.full(codes, 0.3), size=v)
    chain[:, FIRST:] = 0.9 * chain[:, FIRST:] + 0.1 / codes
    n = members + held_out
    rows = []
    for _ in range(n):
        row = [BEGIN, int(rng.choice(SEXES))]
        for _ in range(int(rng.integers(*lengths, endpoint=True))):
            row.append(int(rng.choice(v, p=chain[row[-1]])))
        rows.append(row)
    if records is not None:
        rows[: len(records)] = records
    subject = Subject(
        n_members=members,
        patient=np.arange(n),
        content=RecordContent.from_codes(Ragged.from_lists(rows)),
        static=np.full(n, 2),
    )
    vectors = rng.normal(size=(v, 6))
    mask = np.zeros((references, n), np.bool_)
    for k in range(references):
        mask[k, rng.permutation(members)[: members // 2]] = True
        if k % 2:
            mask[k, :members] = ~mask[k - 1, :members]
    target = Writer(chain, rows[:memorized], grip, vectors)
    models = [
        Writer(chain, [rows[i] for i in range(memorized) if mask[k, i]], grip, vectors)
        for k in range(references)
    ]
    loss = np.full(n, np.nan)
    return subject, Asked(
        target=target,
        references=Pool(models, mask, kind="pool" if references else "none"),
        loss=loss,
        reference_loss=np.full((references, n), np.nan),
    )
