"""Tables and curves of the two axes: counts of fewer than five patients are not shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from memguard.attacks.estimate import Estimate
from memguard.probes.attribute.ahead import Ahead
from memguard.probes.attribute.examine import Examined
from memguard.probes.attribute.items import Categories
from memguard.probes.attribute.verdict import CLASSES, Judged
from memguard.probes.result import Cell, Curve, Table
from memguard.records.small_cells import MIN_CELL, patients_shown

__all__ = ["ahead_table", "axes_table", "category_table", "curves_of", "verdict_table"]

_SIDES = ((True, "members"), (False, "never-trained"))


def axes_table(
    found: Sequence[Examined], judged: Mapping[int, Judged], numbers: Mapping[str, Estimate]
) -> Table:
    """Both axes by k."""
    rows: list[list[Cell]] = []
    for each in found:
        verdict, key = judged[each.k], f"k{each.k}"
        top = each.rank[each.member & np.isfinite(each.score)]
        rows.append(
            [
                each.k,
                patients_shown(int(verdict.member.sum())),
                patients_shown(verdict.n_null),
                numbers.get(f"evidence.{key}.minus_held_out"),
                numbers.get(f"auc.{key}"),
                numbers.get(f"memorized.{key}.minus_held_out"),
                _median(each.inference[each.member]),
                float(np.mean(top == 1)) if len(top) >= MIN_CELL else None,
            ]
        )
    return Table(
        title="Two axes by number of known codes",
        columns=(
            "known codes",
            "members",
            "never-trained",
            "memorization, nats, members minus never-trained",
            "AUC of its score",
            "memorized and not inferable, members minus never-trained",
            "inference, nats, median of members",
            "codes of members that are the likeliest next one",
        ),
        rows=rows,
    )


def verdict_table(judged: Mapping[int, Judged]) -> Table:
    """Patients in each of the four classes, by k and side."""
    rows: list[list[Cell]] = [
        [k, name, *(patients_shown(n) if verdict.decided else None for n in verdict.counts(side))]
        for k, verdict in sorted(judged.items())
        for side, name in _SIDES
    ]
    return Table(
        title="Patients by both axes",
        columns=("known codes", "side", *CLASSES),
        rows=rows,
        note="Memorized here is: and not to be inferred. Never-trained patients show the rate of false calls. Where "
        "there are too few of them, nobody is called anything, and nobody is cleared.",
    )


def category_table(
    last: Examined,
    kinds: Categories,
    p: NDArray[np.float64],
    inferable: NDArray[np.bool_],
    nulls: Mapping[int, tuple[int, bool]],
    numbers: Mapping[str, Estimate],
    alpha: float,
) -> Table:
    """Both axes by category, at the largest k."""
    rows: list[list[Cell]] = []
    for c, key in enumerate(kinds.keys):
        mine = (last.category == c) & np.isfinite(last.score)
        sides = [mine & (last.member == side) for side, _ in _SIDES]
        counts = [len(np.unique(last.patient[side])) for side in sides]
        if not max(counts):
            continue
        shown = min(counts) >= MIN_CELL
        called: list[Cell] = []
        for side in sides:
            told = np.isfinite(p[side]).any()
            for what, known in (
                ((p <= alpha) & ~inferable, told),
                ((p <= alpha) & inferable, told),
                (inferable, True),
            ):
                n = len(np.unique(last.patient[side & what]))
                called.append(patients_shown(n) if shown and known else None)
        size, pooled = nulls.get(c, (0, False))
        rows.append(
            [
                key,
                kinds.tiers[c] or None,
                *(patients_shown(n) for n in counts),
                numbers.get(f"{key}.k{last.k}.evidence.minus_held_out"),
                *called,
                f"{patients_shown(size)} patients{', categories pooled' if pooled else ''}",
            ]
        )
    heads = [
        f"{what}, {name}"
        for _, name in _SIDES
        for what in ("memorized", "memorized and inferable", "inferable")
    ]
    return Table(
        title=f"Two axes by category, {last.k} known codes",
        columns=(
            "category",
            "tier of harm",
            "members",
            "never-trained",
            "memorization, nats, members minus never-trained",
            *heads,
            "compared with",
        ),
        rows=rows,
        note=f"Patients called at p <= {alpha:g} in the category alone, without regard to how many there are.",
    )


def ahead_table(ahead: Sequence[Ahead], kinds: Categories) -> Table:
    """The class form: members, never-trained patients, and the difference."""
    rows: list[list[Cell]] = [
        [
            kinds.keys[each.category],
            each.k,
            "continuations" if each.sampled else "next token",
            each.inside.positives,
            each.outside.positives,
            each.inside.auroc,
            each.outside.auroc,
            each.minus("auroc"),
            each.inside.auprc,
            each.outside.auprc,
            each.inside.precision,
            each.inside.recall,
            each.outside.precision,
            each.outside.recall,
        ]
        for each in ahead
    ]
    return Table(
        title="Patients with a code of the category told from those without, prompts that hold none",
        columns=(
            "category",
            "first codes known",
            "asked for",
            "positives, members",
            "positives, never-trained",
            "AUROC, members",
            "AUROC, never-trained",
            "AUROC, members minus never-trained",
            "AUPRC, members",
            "AUPRC, never-trained",
            "precision, members",
            "recall, members",
            "precision, never-trained",
            "recall, never-trained",
        ),
        rows=rows,
        note="Only what members have more than never-trained patients can come from training on them.",
    )


def curves_of(numbers: Mapping[str, Estimate], ks: Sequence[int]) -> dict[str, Curve]:
    """Evidence over k."""
    names = {"evidence": "memorization", "inference": "inference"}
    lines, bands = {}, {}
    for name, said in names.items():
        points = [
            (k, numbers[f"{name}.k{k}.minus_held_out"])
            for k in ks
            if f"{name}.k{k}.minus_held_out" in numbers
        ]
        if points:
            lines[said] = [(float(k), e.value) for k, e in points]
            bands[said] = [(float(k), e.low, e.high) for k, e in points if np.isfinite([e.low, e.high]).all()]
    if not lines:
        return {}
    title = "What more known codes bring: members minus never-trained"
    return {"by k": Curve(title=title, x="known codes", y="nats", lines=lines, bands=bands)}


def _median(values: NDArray[np.float64]) -> float | None:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) >= MIN_CELL else None
