"""From what the probes found to the report: sections, strata, tails, threats, gaps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from memguard.attacks.estimate import Estimate
from memguard.probes.result import Evidence, NotTested, ProbeResult, Table
from memguard.probes.strata import breakdown, flagged_patients
from memguard.probes.subject import Subject
from memguard.report.audit import (
    EpsilonClaim,
    EpsilonShown,
    Section,
    Stratum,
    epsilon_shown,
    from_probe,
    tails_of,
)
from memguard.report.audit.parts import Tail

__all__ = ["Parts", "parts_of", "shown_of", "subgroups"]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the results of all probes become.

    Attributes:
        sections: One a probe, and one on subgroups.
        strata: Numbers among some of the patients.
        tail: The upper ends.
    """

    sections: tuple[Section, ...]
    strata: tuple[Stratum, ...]
    tail: tuple[Tail, ...]


def parts_of(results: Sequence[ProbeResult], subject: Subject) -> tuple[Parts, tuple[ProbeResult, ...]]:
    """Sections, strata and tails; and the results with that on subgroups.

    Args:
        results: Of the probes.
        subject: Whom they are about.
    """
    found, strata = subgroups(results, subject)
    everything = (*results, found)
    parts = Parts(
        sections=tuple(from_probe(one, subject, headline="" if one is found else None) for one in everything),
        strata=strata,
        tail=tuple(row for one in results for row in tails_of(one, subject)),
    )
    return parts, everything


def shown_of(
    results: Sequence[ProbeResult],
    subject: Subject,
    claim: EpsilonClaim | None,
    coins: Mapping[str, Sequence[str]],
) -> tuple[EpsilonShown, ...]:
    """The bounds of all probes, each with the unit that its coins decided on.

    Args:
        results: Of the probes.
        subject: Whom they are about.
        claim: Whose unit is taken where the coins decided on it too.
        coins: Probe -> units that a coin of it decided on, where that is not the patient of the audit.
    """
    whole = [subject.unit]
    if np.unique(subject.patient).size == len(subject) and subject.unit == "patient":
        whole.append("record")  # one record each: whoever is added or taken away is both
    found = []
    for one in results:
        units = coins.get(one.probe, whole)
        unit = claim.unit if claim is not None and claim.unit in units else next(iter(units), "canary")
        found += [epsilon_shown(bound, probe=one.probe, unit=unit) for bound in one.bounds]
    return tuple(found)


def subgroups(
    results: Sequence[ProbeResult], subject: Subject, *, rate: float = 0.1
) -> tuple[ProbeResult, tuple[Stratum, ...]]:
    """T6: the first evidence of every probe, broken down by strata.

    Args:
        results: Of the probes.
        subject: With strata.
        rate: False-discovery rate of flags where a probe has p-values and flags nobody by itself.

    Returns:
        The result on subgroups, and a row for each number of each stratum.
    """
    tables: dict[str, Table] = {}
    numbers: dict[str, Estimate] = {}
    rows: list[Stratum] = []
    gaps: list[NotTested] = []
    for one in results:
        evidence = _leading(one)
        if evidence is None or not subject.strata:
            continue
        flagged = one.flagged if one.flagged.size else flagged_patients(evidence, subject, rate)
        ranked = evidence.p_value is not None or one.flagged.size > 0
        made = breakdown(evidence, subject, flagged=flagged if ranked else None, rate=rate)
        tables[one.probe] = made.table
        gaps += [replace(gap, what=f"{one.probe}: {gap.what}") for gap in made.not_tested]
        for name, estimate in made.numbers.items():
            stratum, _, kind = name.rpartition(".")
            numbers[f"{one.probe}.{name}"] = estimate
            if kind in ("minus_held_out", "auc") and stratum in subject.strata:
                rows.append(_row(one.probe, evidence, stratum, kind, estimate, subject))
    if not subject.strata:
        gaps.append(NotTested(what="Subgroups", why="no stratum could be told", fix="pass strata="))
    result = ProbeResult(
        probe="subgroups",
        question="Who bears the leak: patients with rare codes, the elderly, men or women, those with long records?",
        answer=_answer(rows),
        numbers=numbers,
        tables=tables,
        not_tested=tuple(gaps),
        notes=("Intervals of one table hold together (Bonferroni over strata); tables do not.",)
        if rows
        else (),
        settings={"rate": rate},
    )
    return result, tuple(rows)


def _leading(result: ProbeResult) -> Evidence | None:
    """The first evidence: the one that the probe's numbers rest on."""
    return next((one for one in result.evidence.values() if one.row.size), None)


def _row(
    probe: str, evidence: Evidence, stratum: str, kind: str, estimate: Estimate, subject: Subject
) -> Stratum:
    inside = subject.strata[stratum][evidence.row]
    member = subject.member[evidence.row]
    patient = subject.patient[evidence.row]
    return Stratum(
        probe=probe,
        number=kind,
        stratum=stratum,
        estimate=estimate,
        n_members=int(np.unique(patient[inside & member]).size),
        n_held_out=int(np.unique(patient[inside & ~member]).size),
        null=0.0 if kind == "minus_held_out" else 0.5,
        note=evidence.name,
    )


def _answer(rows: Sequence[Stratum]) -> str:
    apart = [
        one for one in rows if one.number == "auc" and one.estimate is not None and one.estimate.low > 0.5
    ]
    if not rows:
        return "No subgroup could be compared."
    if not apart:
        return "In no subgroup does the interval of the AUC lie above one half."
    worst = max(apart, key=lambda one: one.estimate.value if one.estimate else 0.0)
    return (
        f"The AUC lies above one half in {len(apart)} of {sum(one.number == 'auc' for one in rows)} comparisons; it is "
        f"highest for {worst.stratum} ({worst.probe}): {worst.estimate:.2f}."
    )
