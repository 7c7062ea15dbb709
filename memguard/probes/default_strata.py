"""Strata that records themselves tell: rare codes, age, sex, race, how many records, how long."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from memguard.probes.result import NotTested
from memguard.probes.subject import Subject
from memguard.records.incidence import Incidence, incidence

__all__ = ["default_strata"]

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

_AGE = re.compile(r"^AGE(?://|[/:=_])?(\d+)", re.IGNORECASE)
_VALUE = {
    "sex": re.compile(r"^(?:GENDER|SEX)(?://|[/:=])(.+)$", re.IGNORECASE),
    "race": re.compile(r"^(?:RACE|ETHNICITY)(?://|[/:=])(.+)$", re.IGNORECASE),
}


def default_strata(
    subject: Subject, *, rare_at_most: int = 3, elderly_from: int = 80
) -> tuple[dict[str, Bools], tuple[NotTested, ...]]:
    """Strata of patients, from names of tokens and from counts; add your own to these.

    - ``rare_code``: carries a code that at most ``rare_at_most`` patients carry, and ``unique_code``: that nobody else
      carries. Counted among the members' patients, and the held-out patient himself, so that a patient of either side
      is rare by the same rule.
    - ``elderly``: the oldest ``AGE//`` token of the patient begins at ``elderly_from`` years or later.
    - ``sex_<value>`` and ``race_<value>``: from tokens ``GENDER//`` or ``SEX//``, ``RACE//`` or ``ETHNICITY//``.
    - ``one_record`` and ``several_records``, where patients differ in that.
    - ``shortest_third``, ``middle_third``, ``longest_third``: all codes of a patient, cut at the members' thirds.

    A patient is in a stratum with all of his records.

    Args:
        subject: N + M records.
        rare_at_most: A code is rare when at most so many patients carry it.
        elderly_from: Years.

    Returns:
        Name -> ``(N + M,)``, for `memguard.probes.strata.breakdown` and ``Subject.strata``; and what could not be told.

    Example:
        >>> from memguard.records.content import Ragged, RecordContent
        >>> names = ("PAD", "AGE//30-40", "AGE//80-90", "GENDER//F", "A", "B")
        >>> codes = Ragged.from_lists([[2, 3, 4], [1, 4], [1, 4], [1, 4], [2, 4, 5]])
        >>> subject = Subject(n_members=4, patient=np.arange(5), content=RecordContent.from_codes(codes), names=names)
        >>> found, gaps = default_strata(subject, rare_at_most=1)
        >>> {name: np.flatnonzero(found[name]).tolist() for name in ("rare_code", "elderly", "sex_F")}
        {'rare_code': [0, 4], 'elderly': [0, 4], 'sex_F': [0]}
        >>> [gap.what for gap in gaps]
        ['Strata by race']
    """
    strata: dict[str, Bools] = {}
    gaps: list[NotTested] = []
    if len(subject) == 0 or subject.n_members == 0:
        return strata, (NotTested(what="Strata", why="there are no members", fix="pass their records"),)
    table = incidence(subject.content, subject.patient)
    place = np.searchsorted(table.ids, subject.patient)
    is_member = np.zeros(len(table.ids), dtype=np.bool_)
    is_member[place[: subject.n_members]] = True
    least = _rarest(table, is_member)
    strata["rare_code"] = (least <= rare_at_most)[place]
    strata["unique_code"] = (least <= 1)[place]
    if subject.names and subject.content.codes is not None:
        _named(subject, table, place, elderly_from, strata, gaps)
    else:
        table_of = subject.content.codes is None
        gaps.append(
            NotTested(
                what="Strata by age, sex and race",
                why="the columns of a table have no names here"
                if table_of
                else "the names of the codes are not known",
                fix="pass strata=" if table_of else "pass vocabulary=, or strata= of your own",
            )
        )
    records = np.bincount(place, minlength=len(table.ids))
    if records.max() > 1:
        strata["several_records"] = (records > 1)[place]
        strata["one_record"] = (records == 1)[place]
    codes = subject.content.codes
    if codes is not None:
        length = np.bincount(place, weights=codes.lengths, minlength=len(table.ids))
        low, high = np.quantile(length[is_member], [1 / 3, 2 / 3])
        if low < high:
            strata["shortest_third"] = (length <= low)[place]
            strata["middle_third"] = ((length > low) & (length <= high))[place]
            strata["longest_third"] = (length > high)[place]
    return strata, tuple(gaps)


def _rarest(table: Incidence, is_member: Bools) -> Ints:
    """``(P,)`` how many members' patients, and the patient himself, carry his rarest code; huge without codes."""
    column, rows = table.counts.indices, table.rows
    carriers = np.bincount(column[is_member[rows]], minlength=len(table.code))
    least = np.full(len(table.ids), np.iinfo(np.int64).max)
    np.minimum.at(least, rows, carriers[column] + ~is_member[rows])
    return least


def _named(
    subject: Subject,
    table: Incidence,
    place: Ints,
    elderly_from: int,
    strata: dict[str, Bools],
    gaps: list[NotTested],
) -> None:
    """Strata from the names of the tokens."""
    names = [subject.names[code] if 0 <= code < len(subject.names) else "" for code in table.code]

    def carriers(wanted: Callable[[str], bool]) -> Bools:
        columns = np.flatnonzero([wanted(name) for name in names])
        hit = np.zeros(len(table.ids), dtype=np.bool_)
        hit[table.rows[np.isin(table.counts.indices, columns)]] = True
        return hit[place]

    def old(name: str) -> bool:
        found = _AGE.match(name)
        return found is not None and int(found.group(1)) >= elderly_from

    if not any(_AGE.match(name) for name in names):
        gaps.append(NotTested(what="Elderly patients", why="no code is named AGE//...", fix="pass strata="))
    elif not any(old(name) for name in names):
        why = f"no age band begins at {elderly_from} years or later"
        gaps.append(NotTested(what="Elderly patients", why=why, fix="pass a lower elderly_from="))
    else:
        strata["elderly"] = carriers(old)
    for what, pattern in _VALUE.items():
        values = sorted({found.group(1) for name in names if (found := pattern.match(name))})
        if not values:
            gaps.append(
                NotTested(
                    what=f"Strata by {what}", why="no code has such a name", fix="pass strata= of your own"
                )
            )
        for value in values:

            def same(name: str, value: str = value, pattern: re.Pattern[str] = pattern) -> bool:
                found = pattern.match(name)
                return found is not None and found.group(1) == value

            strata[f"{what}_{value}"] = carriers(same)
