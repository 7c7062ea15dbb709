"""From what was read of both sides to whom the probes ask about."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from memguard.auditing.sides import Sides
from memguard.errors import DataError
from memguard.probes.result import NotTested
from memguard.probes.strata import default_strata
from memguard.probes.subject import Subject
from memguard.records.codes import static_prefix

__all__ = ["Strata", "make_subject", "mask_of", "static_of"]

Strata = Mapping[str, ArrayLike] | Callable[[Subject], Mapping[str, ArrayLike]] | None


def make_subject(
    sides: Sides,
    *,
    names: tuple[str, ...] = (),
    static: int | ArrayLike | str = "auto",
    strata: Strata = None,
) -> tuple[Subject, tuple[NotTested, ...]]:
    """The subject of an audit, and which strata could not be told.

    Args:
        sides: Both of them.
        names: Of the tokens; empty where unknown.
        static: How many leading tokens of a sequence say who the patient is: a number, one for each record (members
            first), or ``"auto"``, from the names.
        strata: Name -> ``(N + M,)`` truth values, beside those that records themselves tell; or a function that
            makes them from the subject; or name -> patient ids.

    Raises:
        DataError: If a stratum has another length.
    """
    n = len(sides.content)
    subject = Subject(
        n_members=len(sides.members),
        patient=sides.patient,
        content=sides.content,
        names=names,
        static=static_of(sides, names, static, n),
        unit=sides.members.unit,
    )
    found, gaps = default_strata(subject)
    given = strata(subject) if callable(strata) else strata or {}
    if given:
        gaps = tuple(replace(gap, what=f"{gap.what}, beyond those of strata=") for gap in gaps)
    for name, values in given.items():
        found[name] = mask_of(name, values, sides, n)
    return replace(subject, strata=found), gaps


def static_of(sides: Sides, names: tuple[str, ...], static: Any, n: int) -> NDArray[np.int64]:
    """How many leading tokens of each of n records say who the patient is, ``(n,)``."""
    codes = sides.content.codes
    if codes is None:
        return np.zeros(n, np.int64)
    if isinstance(static, str):
        if static != "auto":
            raise DataError(
                f"static={static!r}", "what an attacker knows would be unknown", "pass a number of tokens"
            )
        return static_prefix(codes, names) if names else np.minimum(1, codes.lengths)
    if np.asarray(static).dtype.kind not in "iu":
        raise DataError(
            f"static={static!r}", "what an attacker knows would be unknown", "pass whole numbers of tokens"
        )
    given: NDArray[np.int64] = np.broadcast_to(sides.own(np.asarray(static, np.int64)), (n,))
    if (given < 0).any():
        raise DataError("a negative number of static tokens", "there is none", "pass 0 or more")
    return np.minimum(given, codes.lengths)


def mask_of(name: str, values: Any, sides: Sides, n: int) -> NDArray[np.bool_]:
    """Which of n records belong to a stratum, ``(n,)``, from truth values or ids of patients."""
    array = sides.own(np.asarray(values))
    if array.shape == (n,) and array.dtype == np.bool_:
        return array
    if array.shape == (n,) and np.isin(array, (0, 1)).all():
        return array.astype(np.bool_)
    known = {str(one): code for code, one in enumerate(sides.ids)}
    missing = [str(one) for one in array.ravel().tolist() if str(one) not in known]
    if array.ndim != 1 or missing:
        raise DataError(
            f"a stratum {name!r} of shape {array.shape}, which is neither one truth value for each of {n} records "
            "nor a list of patient ids",
            "patients would be put into the wrong stratum",
            "pass one truth value for each record, members first, or ids of patients",
        )
    codes = np.array([known[str(one)] for one in array.tolist()], np.int64)
    return np.isin(sides.patient, codes)
