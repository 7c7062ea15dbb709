"""Patient ids as users hold them (lists, tensors, series, strings, objects), brought to one form."""

from __future__ import annotations

from itertools import repeat
from operator import methodcaller
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from memguard.errors import DataError

__all__ = ["HOW_TO_GIVE_IDS", "as_array", "as_ids", "as_objects", "number"]

HOW_TO_GIVE_IDS = "pass record_to_patient= with one id per record, or a function of the position"


def as_array(values: Any) -> Any:
    """A tensor, a series or a column as a numpy array; anything else as it is."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    if callable(getattr(values, "to_numpy", None)):
        return values.to_numpy()
    return values.numpy() if callable(getattr(values, "numpy", None)) else values


def as_objects(values: list[Any]) -> NDArray[Any]:
    """A one-dimensional object array, also of tuples."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def as_ids(values: Any, source: str) -> NDArray[Any]:
    """Ids as int64 where all are whole numbers, as objects elsewhere.

    Args:
        values: ``(N,)`` or ``(N, 1)``.
        source: Where they came from, for messages.

    Raises:
        DataError: They are not one id per record in order, or are numbers that are not whole.

    Example:
        >>> as_ids([3.0, 1.0], "a list").tolist(), as_ids(["x", 1], "a list").tolist()
        ([3, 1], ['x', 1])
    """
    values = as_array(values)
    if isinstance(values, np.ndarray) and values.dtype == object and values.ndim == 1:
        values = values.tolist()
    if not isinstance(values, np.ndarray):
        values = _listed(values, source)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise DataError(
            f"{source} has shape {values.shape}", "it does not hold one id per record", HOW_TO_GIVE_IDS
        )
    if values.dtype.kind == "f":
        whole = np.isfinite(values) & (values == np.round(values)) & (np.abs(values) < 2.0**53)
        if not np.all(whole):
            raise DataError(
                f"{source} has {int(np.sum(~whole))} ids that are NaN or no whole number",
                "their records belong to no patient",
                HOW_TO_GIVE_IDS,
            )
    fits = values.dtype.kind in "if" or (values.dtype.kind == "u" and values.max(initial=0) < 2**63)
    ids: NDArray[Any] = values.astype(np.int64 if fits else object)
    return ids


def _listed(values: Any, source: str) -> NDArray[Any]:
    if not hasattr(values, "__len__") or isinstance(values, (str, bytes, dict, set)):
        raise DataError(
            f"{source} is a {type(values).__name__}",
            "it does not hold one id per record in order",
            HOW_TO_GIVE_IDS,
        )
    listed = list(values)
    if listed and all(map(hasattr, listed, repeat("item"))):  # tensors or numpy numbers of one element
        listed = list(map(methodcaller("item"), listed))
    kinds = set(map(type, listed))
    fits = kinds == {int} and min(listed) >= -(2**63) and max(listed) < 2**63
    return np.array(listed) if fits or kinds in ({float}, {int, float}) else as_objects(listed)


def number(ids: NDArray[Any], source: str) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Distinct ids (ascending, or in order of appearance where they cannot be ordered) and each one's number.

    Raises:
        DataError: An id is missing, or cannot be told from another.

    Example:
        >>> unique, code = number(as_ids(["b", "a", "b"], "a list"), "a list")
        >>> unique.tolist(), code.tolist()
        (['a', 'b'], [1, 0, 1])
    """
    if ids.dtype.kind == "i" or len(ids) == 0:
        unique, code = np.unique(ids.astype(np.int64), return_inverse=True)
        return unique, code.astype(np.int64)
    kinds = set(map(type, ids))
    if kinds == {str}:
        series = pl.Series(ids.tolist(), dtype=pl.String)
        ranks = series.rank("dense").to_numpy().astype(np.int64) - 1
        return as_objects(series.unique().sort().to_list()), ranks
    missing = {"NoneType", "NAType", "NaTType"} & {kind.__name__ for kind in kinds}
    if missing or any(one != one for one in ids if isinstance(one, float)):  # NaN is not equal to itself
        raise DataError(
            f"{source} has records without an id", "their records belong to no patient", HOW_TO_GIVE_IDS
        )
    numbers: dict[Any, int] = {}
    try:
        order = np.array([numbers.setdefault(one, len(numbers)) for one in ids], dtype=np.int64)
    except TypeError as error:
        raise DataError(
            f"{source} has ids that cannot be compared ({error})",
            "patients cannot be told apart",
            HOW_TO_GIVE_IDS,
        ) from error
    return as_objects(list(numbers)), order
