"""What each record holds, in the model's own terms: code sequences (ragged) or feature vectors.

The surrogate, the rarity table, the near-duplicate search and the blind baseline all read this one form.
Memory is linear in the number of codes (4 bytes each) or of features (4 bytes each).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from memguard.errors import DataError
from memguard.records._columns import Columns, rearranged, shared, width_of

__all__ = ["ContentStore", "Ragged", "RecordContent", "in_common"]

_INT32 = np.iinfo(np.int32)


@dataclass(frozen=True)
class Ragged:
    """Integer sequences of unequal length, one after another.

    Attributes:
        values: int32 ``(total,)``, the codes of record 0, then of record 1, and so on.
        offsets: int64 ``(N + 1,)``; record i is ``values[offsets[i]:offsets[i + 1]]``.

    Raises:
        DataError: if the offsets do not start at 0, fall, or do not end at ``len(values)``.

    Example:
        >>> r = Ragged.from_padded([[5, 7, 0], [9, 0, 0]], [[1, 1, 0], [1, 0, 0]])
        >>> r.values.tolist(), r.offsets.tolist(), len(r)
        ([5, 7, 9], [0, 2, 3], 2)
    """

    values: NDArray[np.int32]
    offsets: NDArray[np.int64]

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", _as_int32(self.values))
        offsets = np.asarray(self.offsets, dtype=np.int64)
        object.__setattr__(self, "offsets", offsets)
        if offsets.ndim != 1 or len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != len(self.values):
            raise DataError(
                f"offsets of shape {offsets.shape} for {len(self.values)} values",
                "codes would be given to the wrong record",
                "pass N + 1 offsets that start at 0 and end at len(values)",
            )
        if np.any(np.diff(offsets) < 0):
            raise DataError(
                "offsets that fall", "codes would be given to the wrong record", "sort the offsets"
            )

    @classmethod
    def from_padded(cls, tokens: ArrayLike, mask: ArrayLike | None = None) -> Ragged:
        """Take the unmasked codes of a padded batch, row by row, in order.

        Args:
            tokens: ``(B, T)`` integers.
            mask: ``(B, T)``, true where the code is real; all of them when not given.

        Returns:
            ``B`` sequences; a row that is masked out entirely is an empty sequence.
        """
        array = np.asarray(tokens)
        if array.ndim != 2:
            raise DataError(
                f"codes of shape {array.shape}", "records cannot be told apart", "pass (B, T) codes"
            )
        if mask is None:
            keep = np.ones(array.shape, dtype=bool)
        else:
            keep = np.asarray(mask).astype(bool)
            if keep.shape != array.shape:
                raise DataError(
                    f"a mask of shape {keep.shape} for codes of shape {array.shape}",
                    "padding would be counted as codes",
                    "pass a mask of the same shape",
                )
        return cls.from_lengths(array[keep], keep.sum(axis=1))

    @classmethod
    def from_lengths(cls, values: ArrayLike, lengths: ArrayLike) -> Ragged:
        """Cut a flat array into records of the given lengths."""
        sizes = np.asarray(lengths, dtype=np.int64)
        return cls(_as_int32(values), np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)]))

    @classmethod
    def from_lists(cls, rows: Sequence[Sequence[int]]) -> Ragged:
        """Build from a list of lists (for tests and small data).

        Example:
            >>> Ragged.from_lists([[1, 2], [], [3]]).lengths.tolist()
            [2, 0, 1]
        """
        flat = [np.asarray(row, dtype=np.int64) for row in rows]
        values = np.concatenate(flat) if flat else np.zeros(0, np.int64)
        return cls.from_lengths(values, [len(row) for row in flat])

    @classmethod
    def concat(cls, parts: Sequence[Ragged]) -> Ragged:
        """Join several collections, records in order."""
        if not parts:
            return cls(np.zeros(0, np.int32), np.zeros(1, np.int64))
        return cls.from_lengths(
            np.concatenate([part.values for part in parts]), np.concatenate([part.lengths for part in parts])
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> NDArray[np.int32]:
        return self.values[self.offsets[i] : self.offsets[i + 1]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of codes of each record, ``(N,)``."""
        return np.diff(self.offsets)

    @property
    def rows(self) -> NDArray[np.int64]:
        """The record that each code belongs to, ``(total,)``."""
        return np.repeat(np.arange(len(self), dtype=np.int64), self.lengths)

    def take(self, rows: ArrayLike) -> Ragged:
        """The records at these positions, in this order (repeats allowed).

        Example:
            >>> Ragged.from_lists([[1, 2], [3], [4, 5, 6]]).take([2, 0]).values.tolist()
            [4, 5, 6, 1, 2]
        """
        index = np.asarray(rows)
        index = np.flatnonzero(index) if index.dtype == bool else index.astype(np.int64)
        lengths = self.lengths[index]
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        inner = np.arange(starts[-1], dtype=np.int64) - np.repeat(starts[:-1], lengths)
        return Ragged(self.values[np.repeat(self.offsets[index], lengths) + inner], starts)


@dataclass(frozen=True, kw_only=True)
class RecordContent:
    """The contents of ``N`` records.

    Attributes:
        kind: ``"codes"`` for sequence models, ``"features"`` for classifiers and regressors.
        codes: sequences in the model's vocabulary (``kind="codes"``).
        x: float32 ``(N, d)`` (``kind="features"``).
        y: the label, ``(N,)``.
        observed: bool ``(N,)``; false for a record that no batch has shown yet (its codes are empty, its
            features zero).
        columns: what the columns of ``x`` are, in order; ``None`` where nobody said.

    Example:
        >>> c = RecordContent.from_codes(Ragged.from_lists([[1, 2], [3]]))
        >>> c.kind, len(c), bool(c.observed.all())
        ('codes', 2, True)
    """

    kind: Literal["codes", "features"]
    codes: Ragged | None = None
    x: NDArray[np.float32] | None = None
    y: NDArray[Any] | None = None
    observed: NDArray[np.bool_]
    columns: Columns | None = None

    @classmethod
    def from_codes(cls, codes: Ragged, observed: NDArray[np.bool_] | None = None) -> RecordContent:
        """Wrap sequences; all are taken as observed unless told otherwise."""
        seen = np.ones(len(codes), dtype=bool) if observed is None else observed
        return cls(kind="codes", codes=codes, observed=seen)

    @classmethod
    def from_features(cls, x: ArrayLike, y: ArrayLike | None = None) -> RecordContent:
        """Wrap feature vectors ``(N, ...)`` (flattened per record) and labels ``(N,)``."""
        flat = _flat(np.asarray(x))
        label = None if y is None else np.asarray(y)
        return cls(kind="features", x=flat, y=label, observed=np.ones(len(flat), dtype=bool))

    def __len__(self) -> int:
        return len(self.observed)

    def take(self, rows: ArrayLike) -> RecordContent:
        """The records at these positions, in this order."""
        index = np.asarray(rows)
        index = np.flatnonzero(index) if index.dtype == bool else index.astype(np.int64)
        return RecordContent(
            kind=self.kind,
            codes=None if self.codes is None else self.codes.take(index),
            x=None if self.x is None else self.x[index],
            y=None if self.y is None else self.y[index],
            observed=self.observed[index],
            columns=self.columns,
        )


def in_common(ours: RecordContent, theirs: RecordContent) -> tuple[RecordContent, RecordContent]:
    """Both contents with those features alone that both have, where columns are named; others are left as they are.

    An entry that one side has wider, as it is padded to its longest record, is filled with zeros on the other.

    Example:
        >>> ours, theirs = ContentStore(1), ContentStore(1)
        >>> ours.add([0], x=[[1, 2, 3]], columns=(("age", ()), ("labs", (2,))))
        >>> theirs.add([0], x=[[4, 5]], columns=(("labs", (1,)), ("age", ())))
        >>> [part.x.tolist() for part in in_common(ours.content(), theirs.content())]
        [[[1.0, 2.0, 3.0]], [[5.0, 4.0, 0.0]]]
    """
    if ours.columns is None or theirs.columns is None or ours.columns == theirs.columns:
        return ours, theirs
    assert ours.x is not None
    assert theirs.x is not None
    columns = shared([ours.columns, theirs.columns])
    if (
        not columns
    ):  # batches of the two sides are built otherwise; whoever compares them looks at their widths
        return ours, theirs
    found = []
    for side, x, old in ((ours, ours.x, ours.columns), (theirs, theirs.x, theirs.columns)):
        found.append(
            RecordContent(
                kind="features",
                x=rearranged(x, old, columns),
                y=side.y,
                observed=side.observed,
                columns=columns,
            )
        )
    return found[0], found[1]


class ContentStore:
    """Gathers record contents from batches as training shows them; the first observation of a record wins.

    Later epochs are ignored, so a random crop keeps its first window and the cost stays one pass.

    Args:
        n_records: size of the data set, when known; positions then range over ``0 .. n_records - 1``.

    Example:
        >>> store = ContentStore(3)
        >>> store.add([2, 0], codes=[[5, 6], [7, 0]], mask=[[1, 1], [1, 0]])
        >>> store.add([2, 1], codes=[[9, 9], [8, 0]], mask=[[1, 1], [1, 0]])
        >>> store.complete, [row.tolist() for row in map(store.content().codes.__getitem__, range(3))]
        (True, [[7], [8], [5, 6]])
    """

    def __init__(self, n_records: int | None = None) -> None:
        self.n_records = n_records
        self._seen = np.zeros(n_records or 0, dtype=bool)
        self._parts: list[dict[str, Any]] = []  # of each batch: positions, codes or x with its columns, y
        self._widths: set[int] = set()
        self._named = True

    def add(
        self,
        positions: ArrayLike,
        *,
        codes: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        x: ArrayLike | None = None,
        y: ArrayLike | None = None,
        columns: Columns | None = None,
    ) -> None:
        """Take in a batch: records already seen are skipped.

        Args:
            positions: ``(B,)`` position of each record in the data set.
            codes: ``(B, T)`` padded codes, with ``mask`` ``(B, T)``.
            mask: true where a code is real.
            x: ``(B, ...)`` features, flattened per record.
            y: ``(B,)`` labels.
            columns: which entries of the batch ``x`` was made of, with the shape that each has for one record. What is
                padded to the longest record of its batch may then differ in shape (zeros fill it up), and an entry
                that some batches lack is left out.

        Raises:
            DataError: if a position lies outside the data set, the batch sizes differ, neither codes nor
                features are given, or batches change from one kind or width to another.
        """
        index = np.asarray(positions, dtype=np.int64).reshape(-1)
        given = [len(np.asarray(part)) for part in (codes, x, y) if part is not None]
        if (codes is None) == (x is None) or any(size != len(index) for size in given):
            raise DataError(
                f"a batch of {len(index)} positions with contents of sizes {given}",
                "contents would be given to the wrong record",
                "pass either codes or x, one row per position",
            )
        if self.kind is not None and (codes is not None) != (self.kind == "codes"):
            raise DataError(
                "batches with code sequences and batches with features",
                "the surrogate fits one kind",
                "pass content of one kind",
            )
        if len(index) == 0 or len(self._fresh(index)) == 0:
            return
        part: dict[str, Any] = {"positions": index, "codes": None, "x": None, "y": None, "columns": columns}
        if codes is not None:
            part["codes"] = Ragged.from_padded(np.asarray(codes), None if mask is None else np.asarray(mask))
        if x is not None:
            part["x"] = _flat(np.asarray(x))
        if y is not None:
            part["y"] = np.asarray(y)
        self._take(part)

    def _take(self, part: dict[str, Any]) -> None:
        """Keep of a batch what is new."""
        self._check_width(part)
        index = part["positions"]
        fresh = self._fresh(index)
        if len(fresh) == 0:
            return
        self._seen[index[fresh]] = True
        if part["x"] is not None:
            self._widths.add(part["x"].shape[1])
            self._named &= part["columns"] is not None
        self._parts.append(
            {
                "positions": index[fresh],
                "codes": None if part["codes"] is None else part["codes"].take(fresh),
                "x": None if part["x"] is None else part["x"][fresh],
                "y": None if part["y"] is None else part["y"][fresh],
                "columns": part["columns"],
            }
        )

    def _check_width(self, part: dict[str, Any]) -> None:
        x, columns = part["x"], part["columns"]
        if x is None:
            return
        if columns is not None and width_of(columns) != x.shape[1]:
            raise DataError(
                f"columns that are {width_of(columns)} features beside {x.shape[1]}",
                "a feature would be taken for another",
                "give for each entry the shape that it has for one record",
            )
        named, widths = self._named and columns is not None, self._widths | {x.shape[1]}
        if len(widths) > 1 and not named:
            raise DataError(
                f"a batch with {x.shape[1]} features after one with {min(widths - {x.shape[1]}, default=x.shape[1])}",
                "a feature would be taken for another",
                "give batches of one width, or say with columns= which entries of a batch the features are",
            )

    def _fresh(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        low, high = int(index.min()), int(index.max())
        if low < 0 or (self.n_records is not None and high >= self.n_records):
            raise DataError(
                f"positions from {low} to {high} in a data set of {self.n_records} records",
                "contents would be given to the wrong record",
                "pass positions in the data set",
            )
        if high >= len(self._seen):
            self._seen = np.concatenate([self._seen, np.zeros(max(high + 1, len(self._seen)), dtype=bool)])
        first = np.sort(np.unique(index, return_index=True)[1])
        return first[~self._seen[index[first]]]

    def payload(self) -> list[dict[str, Any]]:
        """Everything gathered so far, for `merge` in another process."""
        return [dict(part) for part in self._parts]

    def merge(self, parts: Sequence[dict[str, Any]]) -> None:
        """Take in what another store gathered; records already seen are skipped.

        Example:
            >>> one, other = ContentStore(2), ContentStore(2)
            >>> one.add([0], x=[[1.0]]); other.add([0, 1], x=[[5.0], [2.0]])
            >>> one.merge(other.payload())
            >>> one.content().x.tolist()
            [[1.0], [2.0]]
        """
        for part in parts:
            self._take(part)

    @property
    def kind(self) -> Literal["codes", "features"] | None:
        """What the records hold; `None` before the first batch."""
        if not self._parts:
            return None
        return "codes" if self._parts[0]["x"] is None else "features"

    @property
    def n_observed(self) -> int:
        """How many different records have been seen."""
        return int(self._seen.sum())

    @property
    def observed(self) -> NDArray[np.bool_]:
        """Which records have been seen, ``(N,)`` where the size of the data set is known."""
        return self._seen if self.n_records is None else self._seen[: self.n_records]

    @property
    def complete(self) -> bool:
        """Whether every record has been seen (false while the size of the data set is unknown)."""
        return self.n_records is not None and self.n_observed == self.n_records

    def content(self) -> RecordContent:
        """All that was gathered, in the order of the data set.

        Returns:
            ``N`` records; those not seen yet are empty and marked in ``observed``.

        Raises:
            DataError: if nothing was added.
        """
        if not self._parts:
            raise DataError(
                "no batch", "there is nothing to score", "call add() with the batches of one epoch"
            )
        positions = np.concatenate([part["positions"] for part in self._parts])
        n = self.n_records if self.n_records is not None else int(positions.max()) + 1
        observed = np.zeros(n, dtype=bool)
        observed[positions] = True
        order = np.argsort(positions, kind="stable")
        label = self._labels(positions, n)
        if self.kind == "features":
            blocks, columns = self._aligned()
            rows = np.concatenate(blocks)
            x = np.zeros((n, rows.shape[1]), dtype=np.float32)
            x[positions] = rows
            return RecordContent(kind="features", x=x, y=label, observed=observed, columns=columns)
        gathered = Ragged.concat([part["codes"] for part in self._parts]).take(order)
        lengths = np.zeros(n, dtype=np.int64)
        lengths[positions[order]] = gathered.lengths
        codes = Ragged.from_lengths(gathered.values, lengths)
        return RecordContent(kind="codes", codes=codes, y=label, observed=observed)

    def _labels(self, positions: NDArray[np.int64], n: int) -> NDArray[Any] | None:
        """Labels ``(n, ...)``; ``None`` where batches lack them, or have them as wide as the batch is large.

        Targets of the second kind (a contrastive loss) say who else was in the batch, and nothing of the record.
        """
        pieces = [part["y"] for part in self._parts]
        if any(piece is None or piece.shape[1:] != pieces[0].shape[1:] for piece in pieces):
            return None
        stacked = np.concatenate(pieces)
        label = np.zeros((n, *stacked.shape[1:]), dtype=stacked.dtype)
        label[positions] = stacked
        return label

    def _aligned(self) -> tuple[list[NDArray[np.float32]], Columns | None]:
        """Features of each batch under one set of columns."""
        blocks, given = [part["x"] for part in self._parts], [part["columns"] for part in self._parts]
        if any(one is None for one in given):
            return blocks, None
        if all(one == given[0] for one in given):
            return blocks, given[0]
        columns = shared(given)
        return [rearranged(x, old, columns) for x, old in zip(blocks, given, strict=True)], columns


def _as_int32(values: ArrayLike) -> NDArray[np.int32]:
    array = np.asarray(values)
    if array.dtype == np.int32:
        return array
    if array.size and (array.min() < _INT32.min or array.max() > _INT32.max):
        raise DataError(
            f"codes from {array.min()} to {array.max()}",
            "they do not fit in 32 bits",
            "renumber the vocabulary",
        )
    return array.astype(np.int32)


def _flat(x: NDArray[Any]) -> NDArray[np.float32]:
    return np.ascontiguousarray(x.reshape(len(x), -1), dtype=np.float32)
