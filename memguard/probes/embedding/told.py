"""What readings of embeddings come to: numbers, evidence record by record, a table, a sentence."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from memguard.attacks.conformal import benjamini_hochberg, conformal_p_values
from memguard.attacks.estimate import Estimate
from memguard.probes.embedding.guessed import Attacker
from memguard.probes.embedding.judged import Readings, area_difference, average_precision, read_side
from memguard.probes.result import Evidence, Table
from memguard.probes.subject import Subject

__all__ = ["answer_of", "evidence_of", "joined", "numbers_of", "table_of"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def numbers_of(
    names: Sequence[str],
    found: Mapping[Attacker, Sequence[Readings]],
    nulls: Sequence[Sequence[Readings | None]],
    confidence: float,
) -> tuple[dict[str, Estimate], str]:
    """Areas of either side and their differences, and the category and attacker of the largest one.

    The interval of ``strongest.minus_held_out`` holds for whichever is the largest (Bonferroni).
    """
    numbers: dict[str, Estimate] = {}
    tests = len(names) * len(found)
    level = 1.0 - (1.0 - confidence) / tests
    best, name_of_best = None, ""
    for kind, readings in found.items():
        for name, one in zip(names, readings, strict=True):
            for side, who in ((True, "member"), (False, "held_out")):
                mine = one.member == side
                numbers[f"{name}.{kind}.{who}_auc"] = read_side(one, side, confidence)
                numbers[f"{name}.{kind}.{who}_auprc"] = average_precision(
                    one.odds[mine], one.held[mine], confidence=confidence
                )
            numbers[f"{name}.{kind}.minus_held_out"] = area_difference(one, confidence)
            wide = area_difference(one, level)
            if best is None or wide.value > best.value:
                best, name_of_best = wide, f"{name}.{kind}"
    assert best is not None
    numbers["strongest.minus_held_out"] = dataclasses.replace(
        best,
        confidence=confidence,
        method=f"{name_of_best}: {best.method}" + (f", Bonferroni over {tests} tests" if tests > 1 else ""),
    )
    for c, name in enumerate(names):
        null = joined([one[c] for one in nulls])
        if null is not None:
            numbers[f"{name}.reference_minus_held_out"] = area_difference(null, confidence)
    return numbers, name_of_best


def evidence_of(
    subject: Subject,
    rows: Ints,
    held: Bools,
    names: Sequence[str],
    found: Mapping[Attacker, Sequence[Readings]],
    flag_rate: float,
) -> tuple[dict[str, Evidence], Ints, str]:
    """Log-odds that a holder is one; p-values of member holders against held-out holders."""
    kind = next(iter(found))
    evidence: dict[str, Evidence] = {}
    tests: list[tuple[Ints, Floats]] = []
    for c, name in enumerate(names):
        one = found[kind][c]
        inside, outside = one.held & one.member, one.held & ~one.member
        p = np.full(len(one.patient), np.nan)
        p[inside] = conformal_p_values(one.odds[inside], one.odds[outside])
        tests.append((one.patient[inside], p[inside]))
        place = np.searchsorted(one.patient, subject.patient[rows])
        mine = held[:, c]
        evidence[name] = Evidence(
            name=f"log-odds of {name}, {kind}",
            row=rows[mine],
            value=one.odds[place[mine]],
            p_value=p[place[mine]],
        )
    patients = np.concatenate([patient for patient, _ in tests])
    p_values = np.concatenate([values for _, values in tests])
    flagged = np.unique(patients[benjamini_hochberg(p_values, flag_rate)]).astype(np.int64)
    note = (
        f"Flagged are member holders whose code is read with more certainty ({kind}) than held-out holders', "
        f"at a false-discovery rate of {flag_rate:g} over {len(p_values)} p-values."
    )
    return evidence, flagged, note


def table_of(
    names: Sequence[str],
    found: Mapping[Attacker, Sequence[Readings]],
    numbers: Mapping[str, Estimate],
    folds: int,
    confidence: float,
) -> Table:
    """A row for each category and attacker."""
    table = []
    for kind, readings in found.items():
        for name, one in zip(names, readings, strict=True):
            key = f"{name}.{kind}"
            probability = 1.0 / (1.0 + np.exp(-one.odds))
            table.append(
                [
                    name,
                    kind,
                    *(one.count(side) for side in (True, False)),
                    *(round(float(probability[one.member == side].sum())) for side in (True, False)),
                    numbers[f"{key}.member_auc"],
                    numbers[f"{key}.held_out_auc"],
                    numbers[f"{key}.minus_held_out"],
                    numbers.get(f"{name}.reference_minus_held_out") if kind == next(iter(found)) else None,
                    numbers[f"{key}.member_auprc"],
                    numbers[f"{key}.held_out_auprc"],
                ]
            )
    return Table(
        title="What embeddings tell of codes that were removed, over patients",
        columns=[
            "Category",
            "Attacker",
            "Member holders",
            "Held-out holders",
            "Expected, members",
            "Expected, held-out",
            "AUC, members",
            "AUC, held-out",
            "Minus held-out",
            "The same of references",
            "AUPRC, members",
            "AUPRC, held-out",
        ],
        rows=table,
        note=(
            f"Out of fold by patient, {folds} folds of both sides. Expected: summed probabilities; near the count "
            "of holders where they are calibrated. The AUPRC without any skill is the share of holders. Intervals "
            f"at {100 * confidence:g} %, of each number by itself."
        ),
    )


def answer_of(names: Sequence[str], numbers: Mapping[str, Estimate], best: str) -> str:
    """What was found, with its numbers."""
    strongest = numbers["strongest.minus_held_out"]
    name, kind = best.rsplit(".", 1)
    says = (
        f"Of {len(names)} categories, {name} differs most ({kind}): AUC {numbers[f'{best}.member_auc']:.2f} for "
        f"members, {numbers[f'{best}.held_out_auc']:.2f} for held-out patients, difference {strongest:.2f}."
    )
    return says + (" It is above zero." if strongest.low > 0 else " It is not shown to be above zero.")


def joined(readings: Sequence[Readings | None]) -> Readings | None:
    """Several references as one: the mean normal score of each patient over the references that never saw him."""
    there = [one for one in readings if one is not None]
    if not there:
        return None
    patient, first = np.unique(np.concatenate([one.patient for one in there]), return_index=True)
    score, times = np.zeros(len(patient)), np.zeros(len(patient))
    for one in there:
        place = np.searchsorted(patient, one.patient)
        # log-odds of different classifiers have different scales, their ranks have one
        score[place] += stats.norm.ppf((stats.rankdata(one.odds) - 0.5) / len(one.odds))
        times[place] += 1
    return Readings(
        patient=patient,
        member=np.concatenate([one.member for one in there])[first],
        held=np.concatenate([one.held for one in there])[first],
        odds=score / times,
    )
