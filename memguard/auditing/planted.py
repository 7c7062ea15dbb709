"""Planted canaries in the data of an audit: which records they are, so that nobody counts them as patients."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memguard.auditing.copied import matches
from memguard.auditing.sides import Sides
from memguard.errors import DataError
from memguard.probes.canary import CanaryProbe
from memguard.records.canaries import Canaries, FeatureCanaries
from memguard.records.patients import PatientMap

__all__ = ["Planted", "canaries_by", "find_planted", "marked_rows"]

Ints = NDArray[np.int64]

_HOW = (
    "audit with the memguard.PlantedCanaries datamodule of the training, or give the training data set an attribute "
    "canary_rows with the positions of the canaries"
)
_NOTE = (
    "{n} planted canaries{records} were taken out of the training records before anything was counted ({how}): they "
    "are made up, and only the canary test speaks of them. Reference models are trained without them, so that none of "
    "those that never saw a patient saw a piece of the patient's record in a canary. The audited model was trained on "
    "them, and a monitor's curve of its training counts them as patients."
)
_NONE = (
    "None of the {n} planted canaries was recognized among the training records. If they are in there, they count as "
    "patients in every number; to have them taken out, {how}."
)


@dataclass(frozen=True, kw_only=True)
class Planted:
    """Canaries that were planted, and where they lie.

    Attributes:
        canaries: `Canaries` or `FeatureCanaries`; ``None`` where there are none, or only their losses are known.
        rows: Positions in the training data of the records that are canaries, ascending.
        n: Different canaries among them.
        units: What a coin decided on: ``"patient"`` where each canary is a patient of its own, ``"record"`` where it
            is one record; a promise for either can then be compared with a bound. Empty where neither is known.
        note: For the report; empty where no canary was planted.
    """

    canaries: Canaries | FeatureCanaries | None = None
    rows: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    n: int = 0
    units: tuple[str, ...] = ()
    note: str = ""


def find_planted(
    sides: Sides,
    *,
    training: Any,
    held_out: Any = None,
    data: Any = None,
    given: Any = None,
    probes: Any = (),
) -> Planted:
    """Find canaries in the data, by what marks them and never by what they look like.

    A data set that planted canaries (`memguard.PlantedCanaries`, or any with an attribute ``canary_rows``) says where
    they are, also inside of ``Subset`` and ``ConcatDataset``. Behind a wrapper of another kind they are told by the
    patient ids that they were given. Canaries that a person planted by hand are told by their contents, which no
    record has by the way that they are drawn: all that were included must be there equally often, and none that was
    left out.

    Args:
        sides: As they were read.
        training: The training data set.
        held_out: The held-out data set.
        data: What the audit was called with.
        given: ``canaries=`` of the audit.
        probes: ``probes=`` of the audit, where a `CanaryProbe` may bring canaries.

    Raises:
        DataError: If canaries are there and cannot be told from patients, if those that were given are not those
            that are there, or if some are among the held-out records.

    Guarantees:
        A record is taken for a canary only where a mark, an id that was made for a canary, or all of its codes (all
        features and the label) say so. Canaries by hand that a loader crops or changes are not recognized, and the
        note says that none was.
    """
    ours = _canaries_of(given, probes)
    if _inside(held_out) is not None:
        raise _among_held_out()
    marked = _inside(training)
    theirs = getattr(marked, "canaries", None)
    if theirs is None:
        theirs = canaries_by(data)
    known = marked is not None or theirs is not None
    _same(ours, theirs, _coins_of(given, probes))
    canaries = ours if ours is not None else theirs
    rows, how = marked_rows(training), "the data set says where they are"
    if rows is None and marked is not None:
        rows, how = _by_id(marked, sides.members), "told by the patient ids that were made for them"
    if rows is None and canaries is not None:
        rows, how = _by_content(canaries, sides), "told by their contents, code by code"
    if canaries is not None and _all_left_out(canaries, sides):
        raise _among_held_out()
    if known and rows is None:
        raise DataError(
            f"canaries in a training data set of type {type(training).__name__} that does not say where they are",
            "made-up records would count as patients",
            _HOW,
        )
    if rows is None:
        n = 0 if canaries is None else int(canaries.included.sum())
        return Planted(canaries=canaries, note=_NONE.format(n=n, how=_HOW) if n else "")
    if len(rows) == len(sides.members):
        raise DataError(
            "canaries alone among the training records", "there are no members", "audit the training"
        )
    units, n = _units(sides.members, rows, canaries)
    records = "" if n == len(rows) else f" ({len(rows):,} records)"
    note = _NOTE.format(n=f"{n:,}", records=records, how=how) if len(rows) else ""
    return Planted(canaries=canaries, rows=rows, n=n, units=units, note=note)


def _all_left_out(canaries: Canaries | FeatureCanaries, sides: Sides) -> bool:
    """Whether all canaries that the coins left out are held out: one alone may be a short record's double."""
    left_out = np.flatnonzero(~canaries.included)
    _, which = matches(canaries, sides.content.take(~sides.member))
    return bool(left_out.size > 1 and np.isin(left_out, which).all())


def _among_held_out() -> DataError:
    return DataError(
        "canaries among the held-out records",
        "made-up records would count as patients whom the model never saw",
        "hold out patients alone",
    )


# -- what was given ------------------------------------------------------------------------------------------


def _asked(given: Any, probes: Any) -> Any:
    """``canaries=``, or the canary probe that a person made."""
    if given is not None or isinstance(probes, str):
        return given
    return next((one for one in probes if isinstance(one, CanaryProbe)), None)


def _canaries_of(given: Any, probes: Any) -> Canaries | FeatureCanaries | None:
    found = _asked(given, probes)
    if isinstance(found, CanaryProbe):
        return found.canaries
    if found is None or isinstance(found, Canaries | FeatureCanaries):
        return found
    raise DataError(
        f"canaries= of type {type(found).__name__}",
        "nobody could tell what was planted, and how the coins fell",
        "pass what memguard.records.make_canaries made (Canaries.load reads the file), or a CanaryProbe",
    )


def _coins_of(given: Any, probes: Any) -> Any:
    found = _asked(given, probes)
    return found.included if isinstance(found, CanaryProbe) and found.canaries is None else None


def _same(ours: Any, theirs: Any, coins: Any) -> None:
    """Refuse canaries, or coins, that are not those of the data."""
    if theirs is None or (ours is None and coins is None):
        return
    if ours is not None:
        parts = (
            ("included", "x", "y") if isinstance(theirs, FeatureCanaries) else ("included", "place", "secret")
        )
        alike = type(ours) is type(theirs) and all(
            np.array_equal(getattr(ours, name), getattr(theirs, name)) for name in parts
        )
    else:
        alike = np.array_equal(np.asarray(coins).astype(bool), theirs.included)
    if not alike:
        raise DataError(
            "canaries= that are not those in the training data",
            "the coins of others say nothing of this training",
            "leave canaries= out: those of the data are found",
        )


# -- where they are ------------------------------------------------------------------------------------------


def _inside(dataset: Any) -> Any:
    """The data set that marks canaries, itself or somewhere inside; ``None`` where none does."""
    waiting, seen = [dataset], set()
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        if getattr(one, "canary_rows", None) is not None:
            return one
        inner = [getattr(one, "dataset", None)]
        parts = getattr(one, "datasets", None)
        waiting += inner + (list(parts) if isinstance(parts, list | tuple) else [])
    return None


def canaries_by(data: Any) -> Any:
    """The canaries of a datamodule that planted some (`memguard.PlantedCanaries`); ``None`` of any other."""
    return getattr(data, "canaries", None) if getattr(data, "memguard_canaries", False) is True else None


def marked_rows(dataset: Any) -> Ints | None:
    """Positions of canaries by the marks of a data set, through ``Subset`` and ``ConcatDataset``; ``None`` without."""
    if dataset is None:
        return None
    rows = getattr(dataset, "canary_rows", None)
    if rows is not None:
        return _positions(rows, len(dataset))
    inner, indices = getattr(dataset, "dataset", None), getattr(dataset, "indices", None)
    if inner is not None and indices is not None:
        below = marked_rows(inner)
        return None if below is None else np.flatnonzero(np.isin(np.asarray(indices), below))
    parts = getattr(dataset, "datasets", None)
    if not isinstance(parts, list | tuple) or sum(map(len, parts)) != len(dataset):
        return None
    if not any(_inside(part) is not None for part in parts):
        return None
    found, start = [], 0
    for part in parts:
        below = marked_rows(part) if _inside(part) is not None else np.zeros(0, np.int64)
        if below is None:
            return None
        found.append(start + below)
        start += len(part)
    return np.concatenate(found)


def _positions(rows: Any, n: int) -> Ints:
    found = np.asarray(rows)
    if found.size == 0:
        return np.zeros(0, np.int64)
    if found.dtype.kind not in "iu" or found.ndim != 1 or found.min() < 0 or found.max() >= n:
        raise DataError(
            f"canary_rows of shape {found.shape} and type {found.dtype} in a data set of {n} records",
            "patients would be taken for canaries",
            "give the position of each canary, from 0",
        )
    return np.unique(found).astype(np.int64)


def _by_id(marked: Any, members: PatientMap) -> Ints | None:
    """Positions of those whose patient id was made for a canary; ``None`` where not all of these ids are there."""
    parts = getattr(marked, "datasets", ())
    ids = next((one.ids for one in parts if getattr(one, "canaries", None) is not None), None)
    if ids is None or members.unit != "patient":
        return None
    code = {str(one): at for at, one in enumerate(members.ids.tolist())}
    wanted = [code.get(str(one)) for one in ids]
    if any(one is None for one in wanted):
        return None
    return np.flatnonzero(np.isin(members.code, np.array(wanted, np.int64)))


def _by_content(canaries: Canaries | FeatureCanaries, sides: Sides) -> Ints | None:
    """Positions of members that are an included canary, code by code; ``None`` where there is none."""
    rows, which = matches(canaries, sides.content.take(sides.member))
    if not rows.size:
        return None
    left_out = np.unique(which[~canaries.included[which]])
    if left_out.size:
        raise DataError(
            f"{left_out.size} canaries among the training records that the coins left out",
            "a bound from coins that did not decide is no bound",
            "pass canaries= with the coins that decided on these data",
        )
    times = np.bincount(which, minlength=len(canaries))[canaries.included]
    if times.min() != times.max():
        raise DataError(
            f"included canaries that are {times.min()} to {times.max()} times among the training records",
            "it cannot be told which of these records are canaries and which are patients",
            _HOW,
        )
    return np.unique(rows)


# -- what a coin decided on ----------------------------------------------------------------------------------


def _units(members: PatientMap, rows: Ints, canaries: Any) -> tuple[tuple[str, ...], int]:
    """What a coin decided on, and how many different canaries there are."""
    included = None if canaries is None else int(canaries.included.sum())
    n = len(rows) if included is None else included
    units: list[str] = []
    if members.unit == "patient":
        own = np.unique(members.code[rows])
        alone = not np.isin(np.delete(members.code, rows), own).any()
        n = len(own) if included is None else n
        if alone and len(own) == n:
            units.append("patient")
    if len(rows) == n:
        units.append("record")
    return tuple(units), n
