"""The same prompt of somebody else: identifiers and codes swapped for those of other patients."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from memguard.errors import DataError
from memguard.probes.subject import Subject
from memguard.records.codes import parse_codes
from memguard.records.content import Ragged

__all__ = ["Changer", "identifiers_of", "patients_with"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def identifiers_of(
    names: Sequence[str], vocabulary: int, given: Mapping[str, ArrayLike] | None = None
) -> dict[str, Bools]:
    """Kinds of tokens that say who somebody is, each ``(V,)``.

    Args:
        names: Of V tokens; empty where unknown.
        vocabulary: V.
        given: Kind -> tokens, instead of what the names say.

    Raises:
        DataError: If a token is none of the V.

    Example:
        >>> found = identifiers_of(["PAD", "AGE//0-30", "AGE//30-40", "GENDER//F", "ICD10CM/I10"], 5)
        >>> {kind: np.flatnonzero(tokens).tolist() for kind, tokens in found.items()}
        {'age': [1, 2], 'gender': [3]}
    """
    groups: dict[str, list[int]] = {}
    words = tuple(names)
    if given is not None:
        groups = {
            kind: [int(token) for token in np.asarray(tokens).ravel()] for kind, tokens in given.items()
        }
    elif words:
        for token in np.flatnonzero(parse_codes(words).demographic):
            kind = re.split(r"//|[/:|_]", words[int(token)], maxsplit=1)[0].lower()
            groups.setdefault(kind, []).append(int(token))
    found = {}
    for kind, tokens in groups.items():
        if tokens and not 0 <= min(tokens) <= max(tokens) < vocabulary:
            raise DataError(
                f"identifiers of {kind!r} from {min(tokens)} to {max(tokens)} in a vocabulary of {vocabulary}",
                "other tokens would be changed",
                "pass identifiers= with tokens of the model",
            )
        found[kind] = np.isin(np.arange(vocabulary), tokens)
    return found


def patients_with(subject: Subject, vocabulary: int) -> Ints:
    """How many patients of both sides carry each token, ``(V,)``.

    Example:
        >>> from memguard.records.content import RecordContent
        >>> records = RecordContent.from_codes(Ragged.from_lists([[1, 2, 2], [1], [1]]))
        >>> patients_with(Subject(n_members=2, patient=np.array([0, 0, 1]), content=records), 3).tolist()
        [0, 2, 1]
    """
    sequences = subject.sequences
    pairs = np.unique(subject.patient[sequences.rows].astype(np.int64) * vocabulary + sequences.values)
    return np.bincount(pairs % vocabulary, minlength=vocabulary).astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class Changer:
    """Changes n prompts; what is put in comes from the prompts of others.

    Attributes:
        prompts: n, none of them empty.
        static: ``(n,)`` static tokens of each.
        identifiers: Kind -> ``(V,)`` truth values.
        carriers: ``(V,)`` patients with each token.
        kept_out: ``(V,)`` tokens never put in: sensitive ones, that would give the answer away.
        source: Prompts from which replacements are drawn, and how many of their tokens are static.
    """

    prompts: Ragged
    static: Ints
    identifiers: Mapping[str, Bools]
    carriers: Ints
    kept_out: Bools
    source: tuple[Ragged, Ints]

    @property
    def kinds(self) -> tuple[str, ...]:
        """Identifiers that differ between patients, then ``"rare code"``, ``"rare code dropped"`` and ``"history"``."""
        kinds = [
            kind for kind, tokens in self.identifiers.items() if len(np.unique(self._values(tokens))) > 1
        ]
        codes = bool(np.any(self._after_static(self.prompts, self.static)))
        return (*kinds, *(("rare code", "rare code dropped", "history") if codes else ()))

    def changed(self, kind: str, draws: int, seed: int) -> Iterator[Ragged]:
        """``draws`` times n prompts: one identifier of another patient, or one rare code, or half of all codes.

        ``"history"`` changes every identifier and each known code with probability 1/2: what is left of the prompt is
        no longer one patient's.
        """
        rng = np.random.default_rng([seed, 47, *kind.encode()])
        if kind == "rare code dropped":
            yield self._without(self._rarest())
            return
        for _ in range(draws):
            values = self.prompts.values.copy()
            if kind == "rare code":
                at = self._rarest()
                self._put(values, at, self._codes(rarest=True), rng)
            elif kind == "history":
                for tokens in self.identifiers.values():
                    self._put(values, self._at(tokens), self._values(tokens), rng)
                known = np.flatnonzero(self._after_static(self.prompts, self.static))
                self._put(values, known[rng.random(len(known)) < 0.5], self._codes(), rng)
            else:
                tokens = self.identifiers[kind]
                self._put(values, self._at(tokens), self._values(tokens), rng)
            yield Ragged(values, self.prompts.offsets)

    def _put(self, values: NDArray[np.int32], at: Ints, pool: Ints, rng: np.random.Generator) -> None:
        """Another value at each place: drawn as often as it occurs, again where it is the same."""
        if not len(at) or len(np.unique(pool)) < 2:
            return
        old = values[at].copy()
        left = np.arange(len(at))
        while len(left):
            values[at[left]] = pool[rng.integers(0, len(pool), len(left))]
            left = left[values[at[left]] == old[left]]

    def _at(self, tokens: Bools) -> Ints:
        return np.flatnonzero(tokens[self.prompts.values] & ~self._after_static(self.prompts, self.static))

    def _values(self, tokens: Bools) -> Ints:
        sequences, static = self.source
        chosen = tokens[sequences.values] & ~self._after_static(sequences, static)
        return sequences.values[chosen].astype(np.int64)

    def _codes(self, *, rarest: bool = False) -> Ints:
        sequences, static = self.source
        free = self._after_static(sequences, static) & ~self.kept_out[sequences.values]
        if rarest:
            return sequences.values[_rarest(sequences, free, self.carriers)].astype(np.int64)
        return sequences.values[free].astype(np.int64)

    def _rarest(self) -> Ints:
        return _rarest(self.prompts, self._after_static(self.prompts, self.static), self.carriers)

    def _without(self, at: Ints) -> Ragged:
        at = at[self.prompts.lengths[self.prompts.rows[at]] > 1]  # an empty prompt cannot be asked
        keep = np.ones(len(self.prompts.values), np.bool_)
        keep[at] = False
        lengths = self.prompts.lengths - np.bincount(self.prompts.rows[at], minlength=len(self.prompts))
        return Ragged.from_lengths(self.prompts.values[keep], lengths)

    @staticmethod
    def _after_static(sequences: Ragged, static: Ints) -> Bools:
        rows = sequences.rows
        after: Bools = np.arange(len(sequences.values)) - sequences.offsets[rows] >= static[rows]
        return after


def _rarest(sequences: Ragged, free: Bools, carriers: Ints) -> Ints:
    """Position of the code with the fewest carriers among the free ones of each sequence that has any."""
    at = np.flatnonzero(free)
    order = at[np.lexsort((carriers[sequences.values[at]], sequences.rows[at]))]
    return order[np.unique(sequences.rows[order], return_index=True)[1]]
