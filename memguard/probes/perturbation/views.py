"""What a perturbation test says to people: counts of fewer than five patients are not shown."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from memguard.attacks.estimate import Estimate
from memguard.probes.attribute.items import Categories
from memguard.probes.attribute.verdict import Judged
from memguard.probes.perturbation.examine import Perturbed
from memguard.probes.result import Cell, Table
from memguard.records.small_cells import patients_shown

__all__ = ["answer_text", "kinds_table", "verdict_table"]

Ints = NDArray[np.int64]


def answer_text(verdict: Judged) -> str:
    """For how many patients the leak is their own, and for how many anybody's."""
    inner, outer = verdict.counts(True), verdict.counts(False)
    n_in, n_out = max(sum(inner), 1), max(sum(outer), 1)
    return (
        f"When the prompt becomes somebody else's, the code's probability falls by more than it does for models that "
        f"never saw the patient for {(inner[0] + inner[2]) / n_in:.0%} of {n_in} members (never-trained patients: "
        f"{(outer[0] + outer[2]) / n_out:.0%} of {n_out}): these leaks are the patient's own. For "
        f"{(inner[1] + inner[2]) / n_in:.0%} it falls for those models too: what is known of all patients gives the "
        f"code away."
    )


def kinds_table(found: Perturbed, numbers: Mapping[str, Estimate]) -> Table:
    """What was changed, and by how much probabilities fell."""
    rows: list[list[Cell]] = []
    for kind, excess in found.excess.items():
        ok = np.isfinite(excess)
        rows.append(
            [
                kind,
                patients_shown(len(np.unique(found.patient[ok & found.member]))),
                patients_shown(len(np.unique(found.patient[ok & ~found.member]))),
                numbers.get(f"excess.{kind.replace(' ', '_')}.minus_held_out"),
                float(np.mean(found.common[kind][ok])) if ok.any() else None,
            ]
        )
    return Table(
        title="What is changed, and by how much the probability falls",
        columns=(
            "changed",
            "members",
            "never-trained",
            "excess, nats, members minus never-trained",
            "fall for models that never saw the patient, nats, mean",
        ),
        rows=rows,
        note="History: all identifiers and half of the known codes. Decisions rest on it alone.",
    )


def verdict_table(verdict: Judged, kinds: Categories, found: Perturbed, known: Ints) -> Table:
    """Patients by whose leak theirs is, each by the code whose excess is largest."""
    category = found.category[known][verdict.strongest]
    rows: list[list[Cell]] = []
    for c, key in [(-1, "all"), *enumerate(kinds.keys)]:
        for side, name in ((True, "members"), (False, "never-trained")):
            mine = (verdict.member == side) & ((category == c) | (c < 0))
            if mine.any():
                counts = np.bincount(verdict.classes[mine], minlength=4)
                rows.append(
                    [
                        key,
                        name,
                        patients_shown(int(mine.sum())),
                        *(patients_shown(int(n)) if verdict.decided else None for n in counts),
                    ]
                )
    return Table(
        title="Whose leak it is",
        columns=("category", "side", "patients", "patient-level", "population-level", "both", "neither"),
        rows=rows,
        note="Each patient by the code whose excess is largest. Never-trained patients show the rate of false calls. "
        "Where there are too few of them, nobody is called anything, and nobody is cleared.",
    )
