"""Who stands out: evidence record by record, and flags with a stated error rate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from memguard.attacks.conformal import benjamini_hochberg, conformal_p_values, storey_share
from memguard.attacks.difference import mean_difference
from memguard.attacks.membership import required_held_out
from memguard.errors import MemguardError
from memguard.probes.attacked.draft import Draft
from memguard.probes.attacked.scored import Attack
from memguard.probes.attacked.units import Units
from memguard.probes.result import Evidence
from memguard.probes.subject import Subject

__all__ = ["flag"]

Ints = NDArray[np.int64]

# The likelihood ratio shown record by record: fixed beforehand, since the attack that looks best was chosen by labels.
_RATIO = ("bavaria", "lira_pooled", "lira_fixed", "loss")


def flag(
    subject: Subject,
    rows: Ints,
    units: Units,
    attacks: Sequence[Attack],
    *,
    by: str,
    rate: float,
    unit: str,
    confidence: float,
    draft: Draft,
) -> str:
    """Evidence of each record, and patients whose score stands out among held-out patients.

    Args:
        subject: N + M records.
        rows: Those that were asked.
        units: P patients.
        attacks: Their scores, the loss among them.
        by: Name of the attack that flags; the loss where it is not there, which is a gap.
        rate: False-discovery rate.
        unit: Of the loss.
        confidence: Of the numbers.
        draft: Gets evidence, flags, numbers, notes and gaps.

    Returns:
        Name of the attack that flags.
    """
    by_name = {a.name: a for a in attacks}
    basis = by_name.get(by, by_name["loss"])
    if basis.name != by:
        draft.miss(f"Patients flagged by {by}", "there is no such score here", "train reference models")
    ratio = next(by_name[name] for name in _RATIO if name in by_name)
    draft.evidence["score"] = _evidence(subject, rows, units, ratio.score, ratio.title)
    if "difference" in by_name:
        gap = by_name["difference"].score
        draft.evidence["severity"] = _evidence(subject, rows, units, gap, f"severity, {unit}")
        known = np.isfinite(gap)
        draft.numbers["severity.minus_held_out"] = mean_difference(
            gap[known], units.patient[known], units.member[known], confidence=confidence
        )
    known = np.isfinite(basis.score)
    inside, outside = known & units.member, known & ~units.member
    p = conformal_p_values(basis.score[inside], basis.score[outside])
    flagged = benjamini_hochberg(p, rate)
    draft.flagged = units.patient[inside][flagged]
    n_out = int(np.count_nonzero(outside))
    try:
        draft.numbers["memorized_share"] = storey_share(p, n_null=n_out, confidence=confidence)
    except MemguardError as error:
        draft.miss("Share of members that stand out", f"{error.seen}: {error.why}", error.fix)
    if 1.0 / (n_out + 1) > rate:
        draft.miss(
            "Which patients stand out",
            f"with {n_out} held-out patients no p-value is below 1/{n_out + 1}, and none can be flagged at "
            f"a false-discovery rate of {rate:g}",
            f"hold out at least {required_held_out(rate)} patients",
        )
    draft.notes.append(
        f"Flagged are patients whose score ({basis.title}) stands out among held-out patients, at a "
        f"false-discovery rate of {rate:g} (Benjamini-Hochberg over {len(p)} conformal p-values, "
        f"none below 1/{n_out + 1})."
    )
    if basis.name == "loss":
        draft.notes.append(
            "Without references a patient whose record is easy for any model scores like a memorized one."
        )
    return basis.name


def _evidence(subject: Subject, rows: Ints, units: Units, value: NDArray[np.float64], name: str) -> Evidence:
    """A patient's value and p-value at each of his records that was asked."""
    known = np.isfinite(value)
    inside = known & units.member
    p = np.full(len(units), np.nan)
    if inside.any() and (known & ~units.member).any():
        p[inside] = conformal_p_values(value[inside], value[known & ~units.member])
    place = np.minimum(np.searchsorted(units.patient, subject.patient[rows]), len(units) - 1)
    mine = (units.patient[place] == subject.patient[rows]) & known[place]
    return Evidence(name=name, row=rows[mine], value=value[place[mine]], p_value=p[place[mine]])
