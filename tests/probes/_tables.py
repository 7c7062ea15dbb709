"""Models of known probabilities: a population, a noise of their own, and what they memorized."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from memguard.probes.asked import Asked
from memguard.probes.subject import Subject
from memguard.records.content import Ragged, RecordContent

V, BOS, FIRST_AGE, FIRST_SEX, FIRST, SIGN, SECRET, PLANTED = 40, 1, 2, 6, 8, 37, 38, 39
SENSITIVE = np.zeros((V, 2), bool)
SENSITIVE[SECRET, 0] = SENSITIVE[PLANTED, 1] = True
CATEGORIES = ("secret", "planted")
IDENTIFIERS = {"age": range(FIRST_AGE, FIRST_SEX), "sex": range(FIRST_SEX, FIRST)}


class TableModel:
    """``SIGN`` announces ``SECRET``; a memorized record is known again by how much of it stands in the prompt."""

    abilities = frozenset({"log_probs", "generate"})
    vocabulary, longest = V, None

    def __init__(
        self, seed: int, memorized: Ragged | None = None, strength: float = 6.0, noise: float = 0.7
    ) -> None:
        self.seed, self.strength, self.noise = seed, strength, noise
        self.known: dict[int, list[tuple[set[tuple[int, int]], int]]] = {}
        for i in range(0 if memorized is None else len(memorized)):
            tokens = memorized[i].tolist()
            for j in range(3, len(tokens)):
                if SENSITIVE[tokens[j]].any():
                    self.known.setdefault(tokens[j], []).append((set(_pairs(tokens[:j])), i))

    def next_log_probs(self, prompts: Ragged, *, patient: np.ndarray | None = None) -> np.ndarray:
        out = np.zeros((len(prompts), V))
        out[:, :FIRST] = -6.0
        out[:, [SECRET, PLANTED]] = -5.0
        for i in range(len(prompts)):
            tokens = prompts[i].tolist()
            key = [self.seed, *tokens]
            out[i] += self.noise * np.random.default_rng(key).normal(size=V)
            if SIGN in tokens:
                out[i, SECRET] += 7.0
            mine = set(_pairs(tokens))
            for code, records in self.known.items():
                best = max((len(mine & pairs) / max(len(pairs), 1) for pairs, _ in records), default=0.0)
                out[i, code] += self.strength * best if best > 0.4 else 0.0
        return out - np.log(np.exp(out).sum(1, keepdims=True))

    def generate(
        self, prompts: Ragged, n_new: int, *, samples: int = 1, temperature: float = 1.0, top_p: float = 1.0,
        seed: int = 0,
    ) -> Ragged:  # fmt: skip
        p = np.exp(self.next_log_probs(prompts)).cumsum(1)
        rng = np.random.default_rng(seed)
        draws = rng.random((len(prompts), samples, n_new))
        said = np.minimum((draws[..., None] > p[:, None, None, :]).sum(-1), V - 1)
        return Ragged.from_padded(said.reshape(-1, n_new))

    def log_probs(self, sequences: Ragged, *, patient: np.ndarray | None = None) -> np.ndarray:
        raise NotImplementedError

    def embed(self, sequences: Ragged) -> np.ndarray:
        raise NotImplementedError

    def code_vectors(self) -> None:
        return None

    def of(self, module: object) -> TableModel:
        raise NotImplementedError


def _pairs(tokens: list[int]) -> list[tuple[int, int]]:
    return list(pairwise(tokens[3:]))


@dataclass
class TablePool:
    models: list[TableModel]
    in_mask: np.ndarray
    kind: str = "pool"

    def __len__(self) -> int:
        return len(self.models)

    def adapters(self) -> Iterator[TableModel]:
        return iter(self.models)


@dataclass(frozen=True, kw_only=True)
class Case:
    subject: Subject
    asked: Asked
    planted: np.ndarray
    inferable: np.ndarray


def make_case(
    seed: int,
    *,
    n: int = 80,
    share: float = 0.5,
    n_references: int = 4,
    memorize: bool = True,
    static: int = 3,
    names: tuple[str, ...] = (),
) -> Case:
    """n patients, half of them members; a share of the records has a planted code, as many the inferable one."""
    rng = np.random.default_rng(seed)
    rows, planted, inferable = [], np.zeros(n, bool), np.zeros(n, bool)
    for i in range(n):
        length = int(rng.integers(12, 20))
        tokens = [BOS, int(rng.integers(FIRST_AGE, FIRST_SEX)), int(rng.integers(FIRST_SEX, FIRST))]
        tokens += rng.integers(FIRST, SIGN, length).tolist()
        kind = rng.random()
        if kind < share / 2:
            planted[i], tokens[-3] = True, PLANTED
        elif kind < share:
            inferable[i] = True
            tokens[-5], tokens[-3] = SIGN, SECRET
        rows.append(tokens)
    sequences = Ragged.from_lists(rows)
    member = np.arange(n) < n // 2
    mask = rng.random((n_references, n)) < 0.5
    target = TableModel(1000 * seed, sequences.take(member & planted) if memorize else None)
    models = [
        TableModel(1000 * seed + 1 + k, sequences.take(mask[k] & planted) if memorize else None)
        for k in range(n_references)
    ]
    subject = Subject(
        n_members=n // 2,
        patient=np.arange(n),
        content=RecordContent.from_codes(sequences),
        static=np.full(n, static),
        names=names,
    )
    nothing = np.full(n, np.nan)
    asked = Asked(
        target=target,  # type: ignore[arg-type]
        references=TablePool(models, mask),  # type: ignore[arg-type]
        loss=nothing,
        reference_loss=np.full((n_references, n), np.nan),
    )
    return Case(subject=subject, asked=asked, planted=planted, inferable=inferable)
