"""Canaries as they are kept: what was drawn, what the coins said, what else might have been drawn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from memguard.errors import DataError
from memguard.records._canary_file import read_arrays, write_arrays
from memguard.records.content import Ragged, RecordContent

__all__ = ["Canaries", "FeatureCanaries"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Canaries:
    """``m`` canary sequences with S secret codes each, and R alternatives to each secret.

    Attributes:
        sequences: ``m`` sequences, all of the canaries; only those of `included` may be trained on.
        included: bool ``(m,)``, how the coins fell.
        place: int64 ``(m, S)``, where the secret stands, ascending.
        secret: int64 ``(m, S)``, the codes that stand there.
        others: int64 ``(m, R, S)``, secrets drawn alike that are not in the canary.
        space: How many secrets were equally likely, R + 1 at least. No exposure exceeds ``log2(space)``.
        donor: int64 ``(m, 3)``, rows of the records that gave the demographics, the first and the last events; -1
            where events were drawn code by code.
        seed: Of the draws.

    Guarantees:
        Included and left-out canaries are drawn alike, each by a coin of its own, and a canary and its alternatives
        have everything in common but the secret. A canary holds pieces of real records: it is as confidential as they
        are. What a model learns of canaries bounds what it may learn of a record; it is no mean over patients.

    References:
        Carlini et al., The Secret Sharer, arXiv 1802.08232, section 4; Steinke, Nasr and Jagielski, arXiv 2305.08846.
    """

    sequences: Ragged
    included: Bools
    place: Ints
    secret: Ints
    others: Ints
    space: int
    donor: Ints
    seed: int

    def __post_init__(self) -> None:
        m = len(self.sequences)
        shapes = {
            "included": (self.included.shape, (m,)),
            "place": (self.place.shape, self.secret.shape),
            "secret": (self.secret.shape[:1], (m,)),
            "others": ((self.others.shape[0], *self.others.shape[2:]), self.secret.shape),
            "donor": (self.donor.shape, (m, 3)),
        }
        for name, (seen, wanted) in shapes.items():
            if seen != wanted:
                raise DataError(
                    f"{name} of shape {seen} for {m} canaries",
                    "secrets would be given to the wrong canary",
                    "keep the arrays as make_canaries made them",
                )
        at = self.sequences.offsets[:-1, None] + self.place
        if m and (
            np.any(self.place < 0)
            or np.any(self.place >= self.sequences.lengths[:, None])
            or np.any(self.sequences.values[at] != self.secret)
        ):
            raise DataError(
                "sequences whose secret is not where it should be",
                "losses would be compared at the wrong places",
                "keep the arrays as make_canaries made them",
            )

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def planted(self) -> Ragged:
        """The canaries to train on, in order."""
        return self.sequences.take(self.included)

    @property
    def n_alternatives(self) -> int:
        """R, of each canary."""
        return int(self.others.shape[1])

    def alternatives(self, rows: ArrayLike | None = None) -> Ragged:
        """The canaries with other secrets; number ``i * R + j`` is the ``j``-th of the ``i``-th row asked for.

        Args:
            rows: Which canaries; all of them where not given. Ask for a few at a time where R times m is large.
        """
        index = np.arange(len(self)) if rows is None else np.asarray(rows)
        index = np.flatnonzero(index) if index.dtype == bool else index.astype(np.int64)
        r = self.n_alternatives
        copies = self.sequences.take(np.repeat(index, r))
        values = copies.values.copy()
        at = copies.offsets[:-1, None] + np.repeat(self.place[index], r, axis=0)
        values[at] = self.others[index].reshape(len(index) * r, -1)
        return Ragged(values, copies.offsets)

    def scores(self, loss: ArrayLike, alternative_loss: ArrayLike) -> Floats:
        """How much better the model knows each canary than its alternatives: larger = more likely included.

        Args:
            loss: ``(m,)``, in nats, of the canaries, included or not.
            alternative_loss: ``(m, R)`` or ``(m * R,)``, of `alternatives`.

        Returns:
            ``(m,)``, the mean of the alternatives less the canary: the canary's own difficulty drops out. For
            `memguard.attacks.epsilon_one_run`, which holds for scores of any kind.

        Raises:
            DataError: Shapes do not fit.
        """
        own = np.asarray(loss, dtype=np.float64)
        other = np.asarray(alternative_loss, dtype=np.float64)
        m, r = len(self), self.n_alternatives
        if own.shape != (m,) or other.shape not in ((m, r), (m * r,)) or r == 0:
            raise DataError(
                f"losses of shape {own.shape} and {other.shape} for {m} canaries with {r} alternatives",
                "losses would be given to the wrong canary",
                "pass one loss for each canary and one for each of alternatives()",
            )
        return np.asarray(other.reshape(m, r).mean(axis=1) - own, dtype=np.float64)

    def save(self, path: str | Path) -> Path:
        """Write everything into one file that the owner alone can read. Nothing is pickled.

        Raises:
            DataError: Another set of canaries lies there: which were included must not be lost.
        """
        return write_arrays(
            path,
            "sequences",
            {
                "values": self.sequences.values,
                "offsets": self.sequences.offsets,
                "included": self.included,
                "place": self.place,
                "secret": self.secret,
                "others": self.others,
                "space": np.array(str(self.space)),  # it may exceed 64 bits
                "donor": self.donor,
                "seed": np.array(str(self.seed)),
            },
        )

    @classmethod
    def load(cls, path: str | Path) -> Canaries:
        """Read what `save` wrote.

        Raises:
            DataError: It is no such file.
        """
        a = read_arrays(path, "sequences")
        return cls(
            sequences=Ragged(a["values"], a["offsets"]),
            included=a["included"],
            place=a["place"],
            secret=a["secret"],
            others=a["others"],
            space=int(str(a["space"])),
            donor=a["donor"],
            seed=int(str(a["seed"])),
        )


@dataclass(frozen=True, kw_only=True)
class FeatureCanaries:
    """``m`` canary rows of a table, and R rows drawn alike that are never trained on.

    Attributes:
        x: ``(m, ...)`` features, of all of the canaries; only those of `included` may be trained on.
        y: ``(m,)`` labels; empty where there are none.
        included: bool ``(m,)``, how the coins fell.
        other_x: ``(R, ...)`` alternatives, for all canaries.
        other_y: ``(R,)``.
        donor: int64 ``(m,)``, the rows that gave the features; -1 where each column has a donor of its own.
        kind: ``"mislabelled"`` or ``"shuffled"``.
        seed: Of the draws.

    Guarantees:
        As for `Canaries`, but alternatives share nothing with a canary except how they were drawn: `exposure` of one
        canary also shows how hard its row is, so look at included and left-out canaries side by side.
    """

    x: NDArray[np.generic]
    y: NDArray[np.generic]
    included: Bools
    other_x: NDArray[np.generic]
    other_y: NDArray[np.generic]
    donor: Ints
    kind: str
    seed: int

    def __post_init__(self) -> None:
        m = len(self.x)
        if (
            self.included.shape != (m,)
            or self.donor.shape != (m,)
            or len(self.y) not in (0, m)
            or self.other_x.shape[1:] != self.x.shape[1:]
            or len(self.other_y) != (len(self.other_x) if len(self.y) else 0)
        ):
            raise DataError(
                f"{m} canaries with {self.included.shape} coins, {self.y.shape} labels and {self.donor.shape} donors",
                "coins would be given to the wrong canary",
                "keep the arrays as make_feature_canaries made them",
            )

    def __len__(self) -> int:
        return len(self.x)

    @property
    def n_alternatives(self) -> int:
        """R, the same for all canaries."""
        return len(self.other_x)

    def content(self) -> RecordContent:
        """All m canaries as records."""
        return RecordContent.from_features(self.x, self.y if len(self.y) else None)

    def save(self, path: str | Path) -> Path:
        """Write everything into one file that the owner alone can read. Nothing is pickled.

        Raises:
            DataError: Another set of canaries lies there: which were included must not be lost.
        """
        arrays = {name: getattr(self, name) for name in ("x", "y", "included", "other_x", "other_y", "donor")}
        return write_arrays(
            path, "features", {**arrays, "kind": np.array(self.kind), "seed": np.array(str(self.seed))}
        )

    @classmethod
    def load(cls, path: str | Path) -> FeatureCanaries:
        """Read what `save` wrote.

        Raises:
            DataError: It is no such file.
        """
        arrays = read_arrays(path, "features")
        kind, seed = str(arrays.pop("kind")), int(str(arrays.pop("seed")))
        return cls(**arrays, kind=kind, seed=seed)
