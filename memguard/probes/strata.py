"""T6, subgroups: any evidence of an audit broken down by strata of patients, small cells suppressed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from memguard.attacks._intervals import clopper_pearson
from memguard.attacks.conformal import benjamini_hochberg
from memguard.attacks.difference import mean_difference
from memguard.attacks.estimate import Estimate
from memguard.attacks.membership import auc
from memguard.errors import DataError
from memguard.probes.default_strata import default_strata
from memguard.probes.result import Evidence, NotTested, Table
from memguard.probes.subject import Subject
from memguard.records.small_cells import MIN_CELL

__all__ = ["Breakdown", "breakdown", "default_strata", "enrichment", "flagged_patients"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Breakdown:
    """One evidence by strata.

    Attributes:
        table: One row a stratum, and one for all.
        numbers: ``<stratum>.minus_held_out``, ``<stratum>.auc``, ``<stratum>.minus_rest``, ``<stratum>.flag_share``,
            ``<stratum>.enrichment`` (of the flags) and ``<stratum>.worst_enrichment`` (of the flagged members with the
            largest values), as far as the cells allow.
        not_tested: Strata about which nothing can be said.
    """

    table: Table
    numbers: Mapping[str, Estimate] = field(default_factory=dict)
    not_tested: tuple[NotTested, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Patients:
    """Evidence of P patients: the mean over their records."""

    code: Ints
    value: Floats
    member: Bools
    flagged: Bools

    def take(self, which: Bools) -> _Patients:
        return _Patients(**{f.name: getattr(self, f.name)[which] for f in dataclasses.fields(self)})

    def minus_held_out(self, confidence: float) -> Estimate:
        return mean_difference(self.value, self.code, self.member, confidence=confidence)


def flagged_patients(evidence: Evidence, subject: Subject, rate: float) -> Ints:
    """Codes of member patients whom Benjamini-Hochberg flags at this false-discovery rate.

    A patient with several p-values counts with the smallest times their number (Bonferroni).

    Args:
        evidence: With p-values.
        subject: Whose records these are.
        rate: False-discovery rate, in (0, 1).

    Returns:
        Ascending codes; none where there are no p-values.

    Example:
        >>> from memguard.records.content import Ragged, RecordContent
        >>> subject = Subject(n_members=3, patient=np.array([0, 0, 1, 2]),
        ...                   content=RecordContent.from_codes(Ragged.from_lists([[1]] * 4)))
        >>> evidence = Evidence(name="gap", row=np.arange(4), value=np.zeros(4),
        ...                     p_value=np.array([0.01, 0.9, 0.6, np.nan]))
        >>> flagged_patients(evidence, subject, 0.1).tolist()
        [0]
    """
    if evidence.p_value is None:
        return np.zeros(0, np.int64)
    known = np.isfinite(evidence.p_value) & subject.member[evidence.row]
    # the same p-value at every record of a patient is one test, not several
    pairs = np.unique(
        np.stack([subject.patient[evidence.row[known]].astype(np.float64), evidence.p_value[known]]), axis=1
    )
    codes, first, tests = np.unique(pairs[0], return_index=True, return_counts=True)
    p = np.minimum(pairs[1][first] * tests, 1.0)
    return codes[benjamini_hochberg(p, rate)].astype(np.int64)


def breakdown(
    evidence: Evidence,
    subject: Subject,
    strata: Mapping[str, Bools] | None = None,
    *,
    flagged: Ints | None = None,
    rate: float = 0.1,
    worst: float = 0.05,
    confidence: float = 0.95,
    min_cell: int = MIN_CELL,
) -> Breakdown:
    """Who bears it: members minus never-trained patients within each stratum, and each stratum against the rest.

    A patient belongs to a stratum if one of his records does, and counts once, with the mean of his records. With S
    strata every interval is at the level ``1 - (1 - confidence) / S`` (Bonferroni), so that those of one column hold
    together; for the columns together they do not.

    Args:
        evidence: One number for each record that was asked.
        subject: N + M records.
        strata: Name -> ``(N + M,)``; those of the subject if omitted. They may overlap.
        flagged: Codes of flagged patients; those of `flagged_patients` if omitted.
        rate: False-discovery rate of the flags.
        worst: Of the flagged members, those with the largest values are counted too, up to this share of the members:
            where a model knows nearly everybody, flags fall on everybody and say nothing of who is known best.
        confidence: Of the intervals of a column together.
        min_cell: With fewer members (or other members) a stratum is left out; with fewer held-out patients it is
            compared with all held-out patients, which the table says.

    Returns:
        Table, numbers, and strata left out.

    Raises:
        DataError: If a stratum has another length than the subject, or the evidence lies outside it.

    Guarantees:
        Held-out patients of the same stratum are the right comparison: what makes a stratum hard or easy for any
        model cancels. Where all held-out patients stand in, it does not, and a difference may be the stratum itself.
        Enrichments speak of members alone: a stratum whose values scatter widely leads a ranking even where nothing is
        memorized. They are given of flagged patients only, and are no evidence of memorization beyond the flags.
        Suppression hides a cell, not what differences between overlapping strata give away.

    References:
        Tonekaboni et al., arXiv 2510.12950 (subgroups; theirs of training patients alone). Differences of
        differences: square-and-add, Zou and Donner, Stat. Med. 27, 2008.

    Example:
        >>> from memguard.records.content import Ragged, RecordContent
        >>> rng, n = np.random.default_rng(0), 400
        >>> subject = Subject(n_members=200, patient=np.arange(n),
        ...                   content=RecordContent.from_codes(Ragged.from_lists([[1]] * n)))
        >>> rare = np.arange(n) % 10 == 0
        >>> value = rng.normal(size=n) + 3.0 * (rare & subject.member)
        >>> found = breakdown(Evidence(name="gap", row=np.arange(n), value=value), subject, {"rare": rare})
        >>> found.numbers["rare.minus_held_out"].low > 1.5, found.numbers["rare.minus_rest"].low > 1.0
        (True, True)
    """
    groups = dict(subject.strata if strata is None else strata)
    row = evidence.row
    if len(row) and (int(row.min()) < 0 or int(row.max()) >= len(subject)):
        raise DataError("evidence outside the subject", "it would be somebody else's", "pass its own subject")
    for name, mask in groups.items():
        if np.shape(mask) != (len(subject),):
            raise DataError(
                f"stratum {name!r} of shape {np.shape(mask)} for {len(subject)} records",
                "patients would be put in the wrong stratum",
                "pass one truth value for each record, members first",
            )
    chosen = flagged_patients(evidence, subject, rate) if flagged is None else np.asarray(flagged)
    known_flags = flagged is not None or evidence.p_value is not None
    code, first, owner, records = np.unique(
        subject.patient[row], return_index=True, return_inverse=True, return_counts=True
    )
    owner = owner.reshape(-1)
    everyone = _Patients(
        code=code.astype(np.int64),
        value=np.bincount(owner, weights=evidence.value, minlength=len(code)) / np.maximum(records, 1),
        member=subject.member[row[first]],
        flagged=np.isin(code, chosen),
    )
    n_in, n_out = int(everyone.member.sum()), int((~everyone.member).sum())
    title = f"{evidence.name} by stratum"
    if min(n_in, n_out) < min_cell:
        few = NotTested(
            what=title,
            why=f"{_cell(n_in, min_cell)} members and {_cell(n_out, min_cell)} held-out patients were asked",
            fix="ask more of them",
        )
        return Breakdown(table=Table(title=title, columns=["Stratum"], rows=[]), not_tested=(few,))
    top = everyone.member & everyone.flagged
    if (
        top.any()
    ):  # of the flagged alone: where nothing is memorized, strata whose values scatter lead any ranking
        n_worst = min(max(round(worst * n_in), 1), int(top.sum()))
        top &= everyone.value >= np.sort(everyone.value[top])[-n_worst]  # ties together
    numbers: dict[str, Estimate] = {}
    gaps: list[NotTested] = []
    rows: list[list[str | int | Estimate | None]] = []
    level = 1.0 - (1.0 - confidence) / max(len(groups), 1)
    how = f", Bonferroni over {len(groups)} strata" if len(groups) > 1 else ""

    how_worst = f", flagged and the largest values of {100 * worst:g} % of the members"

    def keep(name: str, key: str, found: Estimate, many: bool) -> Estimate:
        if many:
            found = dataclasses.replace(found, confidence=confidence, method=found.method + how)
        numbers[f"{name}.{key}"] = found
        return found

    def describe(name: str, inside: Bools | None) -> None:
        many = inside is not None
        at = level if many else confidence
        mine = everyone if inside is None else everyone.take(inside)
        members, strangers = int(mine.member.sum()), int((~mine.member).sum())
        rest = n_in - members
        if members < min_cell or (many and 0 < rest < min_cell):
            who = "in" if members < min_cell else "outside"
            seen = _cell(members if who == "in" else rest, min_cell)
            gaps.append(NotTested(what=f"Stratum {name}", why=f"{seen} members {who} it", fix=""))
            rows.append([name, _cell(members, min_cell), _cell(strangers, min_cell), *([None] * 6)])
            return
        alone = strangers < min_cell
        if alone and inside is not None:
            mine = everyone.take(inside & everyone.member | ~everyone.member)
        held_out = f"all {n_out:,} ({_cell(strangers, min_cell)} in it)" if alone else f"{strangers:,}"
        line: list[str | int | Estimate | None] = [name, f"{members:,}", held_out]
        own = mine.minus_held_out(at)
        line.append(keep(name, "minus_held_out", own, many))
        line.append(keep(name, "auc", auc(mine.value, mine.member, confidence=at), many))
        if inside is None or rest == 0:
            line.append(None)
        else:
            others = everyone.take(~inside)
            shared = alone or int((~others.member).sum()) < min_cell
            line.append(keep(name, "minus_rest", _against(everyone, inside, shared, at), many))
        share = rich = None
        if known_flags:
            k, total = int(mine.flagged[mine.member].sum()), int(everyone.flagged[everyone.member].sum())
            share = keep(name, "flag_share", _proportion(k, members, at), many)
            if inside is not None and total:
                rich = keep(name, "enrichment", enrichment(k, total, members, n_in, confidence=at), many)
        most = None
        if inside is not None and top.any():
            hits = int((top & inside).sum())
            most = enrichment(hits, int(top.sum()), members, n_in, confidence=at)
            most = keep(
                name, "worst_enrichment", dataclasses.replace(most, method=most.method + how_worst), many
            )
        rows.append([*line, share, rich, most])

    for name, mask in groups.items():
        belongs = np.zeros(len(code), dtype=np.bool_)
        belongs[np.isin(code, subject.patient[np.asarray(mask, dtype=np.bool_)])] = True
        describe(name, belongs)
    describe("everybody", None)
    together = f" in {len(groups)} strata together" if len(groups) > 1 else ""
    note = (
        f"Patients, the mean of their records. Intervals hold at {100 * confidence:g} %{together} (Bonferroni), for "
        f"each column by itself. Cells under {min_cell} patients are suppressed."
    )
    if known_flags:
        total = int(everyone.flagged[everyone.member].sum())
        note += (
            f" Flags at a false-discovery rate of {rate:g} over all members; enrichment is the same ratio of the flags"
            + (f", here at most {n_in / total:.1f}." if total else ".")
            + f" Worst: the same ratio of those flagged members who have the largest values, {100 * worst:g} % of all."
        )
    columns = [
        "Stratum",
        "Members",
        "Held-out",
        "Minus held-out",
        "AUC",
        "Against the rest",
        "Flagged",
        "Enrichment",
        "Worst",
    ]
    return Breakdown(
        table=Table(title=title, columns=columns, rows=rows, note=note),
        numbers=numbers,
        not_tested=tuple(gaps),
    )


def enrichment(
    flagged_in: int, flagged: int, members_in: int, members: int, *, confidence: float = 0.95
) -> Estimate:
    """How many times its share of the members a stratum's share of the flags is.

    Args:
        flagged_in: Flagged members of the stratum.
        flagged: Flagged members, at least one.
        members_in: Members of the stratum, at least one.
        members: Members.
        confidence: Of the interval.

    Returns:
        The ratio; 1 where flags fall evenly. The members are all counted, so that only the share of the flags is
        uncertain: Clopper and Pearson's interval, over the stratum's share of the members.

    Example:
        >>> print(f"{enrichment(30, 40, 80, 4000):.1f}")
        37.5 [29.4, 43.7]
    """
    share = members_in / members
    low, high = clopper_pearson(flagged_in / flagged, flagged, confidence)
    return Estimate(
        value=flagged_in / flagged / share,
        low=low / share,
        high=high / share,
        n=flagged,
        method="Clopper-Pearson over flags, base rate counted",
        confidence=confidence,
    )


def _against(everyone: _Patients, inside: Bools, shared: bool, confidence: float) -> Estimate:
    """Stratum's difference minus that of the rest; members alone where the held-out patients would be the same."""
    if shared:
        some = everyone.take(everyone.member)
        found = mean_difference(some.value, some.code, inside[everyone.member], confidence=confidence)
        return dataclasses.replace(found, method=found.method + ", members alone")
    a = everyone.take(inside).minus_held_out(confidence)
    b = everyone.take(~inside).minus_held_out(confidence)
    value = a.value - b.value
    return Estimate(
        value=value,
        low=value - math.hypot(a.value - a.low, b.high - b.value),
        high=value + math.hypot(a.high - a.value, b.value - b.low),
        n=a.n + b.n,
        method="difference of differences, square-and-add",
        confidence=confidence,
    )


def _proportion(hits: int, n: int, confidence: float) -> Estimate:
    low, high = clopper_pearson(hits / n, n, confidence)
    return Estimate(value=hits / n, low=low, high=high, n=n, method="Clopper-Pearson", confidence=confidence)


def _cell(count: int, least: int) -> str:
    """A count of people, or that it is small."""
    return f"<{least}" if 0 < count < least else f"{count:,}"
