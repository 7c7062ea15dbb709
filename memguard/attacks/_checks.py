"""Refuse arrays that would make a number wrong, naming the argument and the count."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from memguard.errors import MemguardError

__all__ = ["Floats", "choice", "finite", "labels", "patient_codes", "probabilities", "share"]

Floats = NDArray[np.float64]


def finite(values: ArrayLike, name: str, *, allow_empty: bool = False) -> Floats:
    """``values`` as a one-dimensional float64 array without NaN or infinity.

    Example:
        >>> finite([1, 2], "scores")
        array([1., 2.])
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise MemguardError(
            f"{name} has shape {array.shape}",
            "one number per record or patient is needed",
            f"pass {name} as a one-dimensional array",
        )
    if array.size == 0 and not allow_empty:
        raise MemguardError(
            f"{name} is empty", "no rate can be computed from nothing", f"pass at least one value in {name}"
        )
    bad = array.size - int(np.count_nonzero(np.isfinite(array)))
    if bad:
        raise MemguardError(
            f"{bad} of {array.size} values in {name} are NaN or infinite",
            "they have no place in an order, so any rank would be a guess",
            f"leave those records out of {name} and report the coverage",
        )
    return array


def labels(member: ArrayLike, n: int, name: str = "member") -> NDArray[np.bool_]:
    """``member`` as a boolean array of length ``n`` in which both classes occur.

    Example:
        >>> labels([1, 0], 2)
        array([ True, False])
    """
    array = np.asarray(member)
    if array.shape != (n,):
        raise MemguardError(
            f"{name} has shape {array.shape} for {n} scores",
            "scores would be given to the wrong class",
            f"pass {name} with one truth value per score",
        )
    if array.dtype != np.bool_:
        strange = int(np.count_nonzero((array != 0) & (array != 1)))
        if strange:
            raise MemguardError(
                f"{strange} of {n} values in {name} are neither 0 nor 1",
                "a record is a member or it is not",
                f"pass {name} as booleans",
            )
        array = array.astype(np.bool_)
    n_members = int(np.count_nonzero(array))
    if n_members in (0, n):
        missing = "members" if n_members == 0 else "non-members"
        raise MemguardError(
            f"{name} holds no {missing} among {n} records",
            "a rate needs records of both kinds",
            f"pass scores of {missing} too",
        )
    return array


def patient_codes(groups: Any, n: int, name: str = "groups") -> tuple[NDArray[np.int64], int]:
    """Integer code of each record's patient and the number of patients; ``None``: each record its own.

    Example:
        >>> patient_codes(["b", "a", "b"], 3)
        (array([1, 0, 1]), 2)
    """
    if groups is None:
        return np.arange(n, dtype=np.int64), n
    array = np.asarray(groups)
    if array.shape != (n,):
        raise MemguardError(
            f"{name} has shape {array.shape} for {n} records",
            "records would be given to the wrong patient",
            f"pass {name} with one patient id per record",
        )
    if array.dtype.kind in "iu" and n and int(array.min()) >= 0 and int(array.max()) < 4 * n + 1024:
        # ids that are already small integers: counting beats sorting
        present = np.bincount(array.astype(np.int64)) > 0
        code = (np.cumsum(present) - 1)[array.astype(np.int64)]
        return code.astype(np.int64), int(present.sum())
    unique, code = np.unique(array, return_inverse=True)
    return code.astype(np.int64).reshape(n), len(unique)


def share(value: float, name: str) -> float:
    """``value`` if it lies strictly between 0 and 1.

    Example:
        >>> share(0.95, "confidence")
        0.95
    """
    number = float(value)
    if not 0.0 < number < 1.0:
        raise MemguardError(
            f"{name} = {value!r}", "it is a share, strictly between 0 and 1", f"pass {name} in (0, 1)"
        )
    return number


def choice(value: str, name: str, allowed: tuple[str, ...]) -> str:
    """``value`` if it is one of the words allowed.

    Example:
        >>> choice("mean", "statistic", ("mean", "median"))
        'mean'
    """
    if value not in allowed:
        words = ", ".join(repr(word) for word in allowed)
        raise MemguardError(
            f"{name} = {value!r}", "it names no definition of this score", f"pass {name} as one of {words}"
        )
    return value


def probabilities(values: ArrayLike, name: str) -> Floats:
    """``values`` as float64 of any shape (float32 is kept), all of them in [0, 1].

    Example:
        >>> probabilities([0.0, 0.5], "target")
        array([0. , 0.5])
    """
    array = np.asarray(values)
    if array.dtype.kind != "f":
        array = array.astype(np.float64)
    if array.size and not (array.min() >= 0.0 and array.max() <= 1.0):
        bad = array.size - int(np.count_nonzero((array >= 0.0) & (array <= 1.0)))
        raise MemguardError(
            f"{bad} of {array.size} values in {name} are NaN or outside [0, 1]",
            "a ratio of them would be no ratio of probabilities",
            f"pass probabilities in {name}, not logits or losses",
        )
    return array
