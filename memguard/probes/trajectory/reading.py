"""Which tokens are codes, which are time, and how much a code says about who carries it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memguard.probes.subject import Subject
from memguard.records.content import Ragged
from memguard.records.incidence import incidence

__all__ = ["Reader", "Timed", "gap_days", "structural"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

_STRUCTURAL = re.compile(
    r"^[\[<]?(PAD|BOS|EOS|CLS|SEP|UNK|MASK|START|END|BEGIN|STOP)[\]>]?$"
    r"|^(GAP|TIME|DELTA|TIMELINE//(START|END|DELTA))(//|_|$)",
    re.IGNORECASE,
)
_GAP = re.compile(r"^GAP//(\d+(?:\.\d+)?)(?:-(\d+(?:\.\d+)?)|\+)$")
_DECADE = np.log1p(3652.5)  # days at which the scale of times ends


def structural(names: Sequence[str], vocabulary: int) -> Bools:
    """Which tokens say nothing clinical: padding, begin and end, time. None where names are unknown.

    Example:
        >>> structural(("PAD", "GAP//1-7", "LAB//sodium", "[CLS]", "TIMELINE//END", "ENDOSCOPY"), 7).tolist()
        [True, True, False, True, True, False, False]
    """
    out = np.zeros(max(vocabulary, len(names)), np.bool_)
    out[: len(names)] = [_STRUCTURAL.search(name) is not None for name in names]
    return out


def gap_days(names: Sequence[str], vocabulary: int) -> Floats:
    """Days that each token lets pass: the geometric mean of the bounds of ``GAP//a-b``, the bound of ``GAP//a+``.

    Example:
        >>> gap_days(("PAD", "GAP//1-4", "GAP//30+", "A"), 4).tolist()
        [0.0, 2.0, 30.0, 0.0]
    """
    out = np.zeros(max(vocabulary, len(names)))
    for token, name in enumerate(names):
        found = _GAP.match(name)
        if found is not None:
            low = float(found.group(1))
            high = low if found.group(2) is None else float(found.group(2))
            out[token] = np.sqrt(low * high)
    return out


@dataclass(frozen=True, kw_only=True)
class Timed:
    """Codes with their times.

    Attributes:
        codes: ``n`` sequences without structural tokens.
        time: ``(total,)`` of each code, in [0, 1].
    """

    codes: Ragged
    time: Floats


@dataclass(frozen=True, kw_only=True)
class Reader:
    """How the tokens of an audit are read.

    Attributes:
        structural: ``(V,)`` tokens that are no codes.
        days: ``(V,)`` days that pass at a token; all 0 where the vocabulary has no gaps.
        information: ``(V,)`` nats: log of patients over patients who carry the code; 0 for structural tokens.
    """

    structural: Bools
    days: Floats
    information: Floats

    @classmethod
    def of(cls, subject: Subject, vocabulary: int) -> Reader:
        """Read off the names of the tokens and the records of both sides.

        Patients of both sides are counted, so that a code that one patient alone has weighs the same whichever
        side the patient is on.

        Example:
            >>> from memguard.records.content import RecordContent
            >>> codes = Ragged.from_lists([[1, 2], [1, 3], [1, 2]])
            >>> subject = Subject(n_members=2, patient=np.arange(3), content=RecordContent.from_codes(codes))
            >>> Reader.of(subject, 4).information.round(2).tolist()
            [1.1, 0.0, 0.41, 1.1]
        """
        table = incidence(subject.content, subject.patient)
        highest = int(subject.sequences.values.max(initial=0)) + 1
        size = max(vocabulary, highest, len(subject.names))
        carriers = np.ones(size)  # a code that nobody carries weighs like one that a single patient has
        carriers[table.code] = np.maximum(table.code_patients(), 1)
        nothing = structural(subject.names, size)
        information = np.where(nothing, 0.0, np.log(max(len(table.ids), 1) / carriers))
        return cls(
            structural=nothing, days=gap_days(subject.names, size), information=np.maximum(information, 0.0)
        )

    @property
    def has_times(self) -> bool:
        """Whether tokens tell how much time passes."""
        return bool(np.any(self.days > 0))

    def count(self, sequences: Ragged) -> NDArray[np.int64]:
        """Codes of each sequence that are not structural, ``(n,)``."""
        real = ~self.structural[sequences.values]
        return np.bincount(sequences.rows, weights=real, minlength=len(sequences)).astype(np.int64)

    def read(self, sequences: Ragged, horizon: int) -> Timed:
        """Codes and times of continuations: structural tokens are left out, gaps let time pass.

        Args:
            sequences: Continuations; time begins at their first token.
            horizon: Tokens at most; where there are no gap tokens, the time of a code is its place among the
                codes over this number. With gap tokens it is log(1 + days), 1 after ten years.

        Example:
            >>> reader = Reader(structural=np.array([1, 0, 0], bool), days=np.array([9., 0, 0]),
            ...                 information=np.zeros(3))
            >>> timed = reader.read(Ragged.from_lists([[1, 0, 2, 0, 1]]), 10)
            >>> timed.codes.values.tolist(), timed.time.round(2).tolist()
            ([1, 2, 1], [0.0, 0.28, 0.36])
        """
        rows, real = sequences.rows, ~self.structural[sequences.values]
        codes = Ragged.from_lengths(
            sequences.values[real], np.bincount(rows[real], minlength=len(sequences)).astype(np.int64)
        )
        if self.has_times:
            passed = np.cumsum(self.days[sequences.values])
            before = np.concatenate([[0.0], passed])[sequences.offsets[:-1]][rows]
            time = np.log1p(np.maximum(passed - before, 0.0)[real]) / _DECADE
        else:
            time = (np.arange(len(codes.values)) - codes.offsets[codes.rows]) / max(horizon, 1)
        return Timed(codes=codes, time=np.minimum(time, 1.0))
