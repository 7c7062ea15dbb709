"""What the attacks with reference models share: their input, block-wise moments, and scores with counts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from memguard.attacks._checks import Floats, finite
from memguard.errors import MemguardError

__all__ = ["Moments", "ReferenceScores", "blocks", "moments", "reference_models", "table"]

_BLOCK = 1 << 16  # values per block: small enough for the caches, large enough for numpy
Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class ReferenceScores:
    """One membership score per record, with the number of reference models behind it.

    It stands for its scores wherever an array is asked for, so ``auc(result, member)`` works; if records
    without a score (NaN) are among them, ``auc`` refuses and counts them. Choose what to leave out, and
    report the share: ``auc(result.score[result.known], member[result.known])``.

    Attributes:
        score: ``(N,)``, larger = more likely a member; NaN where the reference models cannot tell.
        n_in: ``(N,)`` reference models that trained on the record.
        n_out: ``(N,)`` reference models that did not.

    Example:
        >>> import numpy as np
        >>> found = ReferenceScores(score=np.array([0.5, np.nan]), n_in=np.array([1, 0]), n_out=np.array([1, 2]))
        >>> found.n_missing, found.known, np.asarray(found)
        (1, array([ True, False]), array([0.5, nan]))
    """

    score: Floats
    n_in: NDArray[np.int64]
    n_out: NDArray[np.int64]

    @property
    def known(self) -> Mask:
        """Which records have a score, ``(N,)``."""
        return ~np.isnan(self.score)

    @property
    def n_missing(self) -> int:
        """How many records have none."""
        return int(np.count_nonzero(np.isnan(self.score)))

    def __len__(self) -> int:
        return len(self.score)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Floats:
        return self.score.astype(dtype or np.float64, copy=bool(copy))


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Counts, means and sums of squared residuals of each record, ``(N,)`` each; means are NaN without models.

    ``scale`` is the standard deviation of all reference scores about their common mean.
    """

    n_in: Floats
    n_out: Floats
    mean_in: Floats
    mean_out: Floats
    square_in: Floats
    square_out: Floats
    scale: float


def table(values: ArrayLike, name: str, n: int | None = None) -> NDArray[Any]:
    """``values`` as a finite float array ``(K, N)``; float32 is kept, and widened block by block."""
    array = np.asarray(values)
    if array.dtype.kind != "f":
        array = array.astype(np.float64)
    if array.ndim != 2 or (n is not None and array.shape[1] != n):
        raise MemguardError(
            f"{name} has shape {array.shape}" + ("" if n is None else f" for {n} records"),
            "scores would be given to the wrong record",
            f"pass {name} with one row per reference model and one column per record",
        )
    if array.size == 0:
        raise MemguardError(
            f"{name} has shape {array.shape}",
            "there is nothing to compare the target model with",
            f"pass at least one reference model and one record in {name}",
        )
    with np.errstate(over="ignore", invalid="ignore"):
        suspect = not np.isfinite(array.sum(dtype=np.float64))  # one pass without a copy, the usual case
    bad = array.size - int(np.count_nonzero(np.isfinite(array))) if suspect else 0
    if bad:
        raise MemguardError(
            f"{bad} of {array.size} values in {name} are NaN or infinite",
            "one of them would make the score of its record meaningless",
            f"leave those records (or models) out of {name}",
        )
    return array


def reference_models(
    target: ArrayLike, reference: ArrayLike, in_mask: ArrayLike, *, needs_in: bool
) -> tuple[Floats, NDArray[Any], Mask]:
    """The three arrays, checked: ``(N,)``, ``(K, N)`` and boolean ``(K, N)`` with models of both kinds."""
    now = finite(target, "target")
    scores = table(reference, "reference", len(now))
    mask = np.asarray(in_mask)
    if mask.shape != scores.shape:
        raise MemguardError(
            f"in_mask has shape {mask.shape}, reference {scores.shape}",
            "models would be counted on the wrong side of a record",
            "pass in_mask with one truth value per reference model and record",
        )
    if mask.dtype != np.bool_:
        strange = int(np.count_nonzero((mask != 0) & (mask != 1)))
        if strange:
            raise MemguardError(
                f"{strange} of {mask.size} values in in_mask are neither 0 nor 1",
                "a model trained on a record or it did not",
                "pass in_mask as booleans",
            )
        mask = mask.astype(np.bool_)
    inside = int(np.count_nonzero(mask))
    if inside == mask.size or (needs_in and inside == 0):
        kind, other = ("IN", "offline scores need OUT models only") if inside == 0 else ("OUT", "")
        raise MemguardError(
            f"in_mask gives {mask.shape[1]} of {mask.shape[1]} records no {kind} model",
            f"nothing says how a model scores a record that it {'has' if inside == 0 else 'has not'} seen",
            f"pass reference models that {'do' if inside == 0 else 'do not'} include the records; {other}",
        )
    return now, scores, mask


def blocks(array: NDArray[Any]) -> Iterator[tuple[slice, Floats]]:
    """Columns of ``(K, N)`` in blocks that stay in the cache, as float64."""
    step = max(128, _BLOCK // array.shape[0])
    for start in range(0, array.shape[1], step):
        at = slice(start, start + step)
        yield at, array[:, at].astype(np.float64, copy=False)


def moments(scores: NDArray[Any], mask: Mask) -> Moments:
    """Counts, means and centred sums of squares of the IN and of the OUT models, two passes in each block."""
    n_models, n = scores.shape
    count, mean, square = np.empty((2, n)), np.empty((2, n)), np.empty((2, n))
    overall, spread = np.empty(n), 0.0
    for at, x in blocks(scores):
        inside = mask[:, at]
        weight = inside.astype(np.float64)
        middle = x.sum(axis=0) / n_models
        y = x - middle
        part = y * weight
        count[0, at] = weight.sum(axis=0)
        count[1, at] = n_models - count[0, at]
        mean[0, at] = part.sum(axis=0) / np.maximum(count[0, at], 1.0)
        mean[1, at] = (y.sum(axis=0) - mean[0, at] * count[0, at]) / np.maximum(count[1, at], 1.0)
        y -= np.where(inside, mean[0, at], mean[1, at])
        np.multiply(y, y, out=y)
        np.multiply(y, weight, out=part)
        y -= part
        square[0, at], square[1, at] = part.sum(axis=0), y.sum(axis=0)
        overall[at] = middle
    spread = float(np.sum(square) + np.sum(count * mean**2)) / n_models + float(
        np.sum((overall - overall.mean()) ** 2)
    )
    mean = np.where(count > 0, mean + overall, np.nan)
    return Moments(
        n_in=count[0],
        n_out=count[1],
        mean_in=mean[0],
        mean_out=mean[1],
        square_in=square[0],
        square_out=square[1],
        scale=float(np.sqrt(spread / n)),
    )
