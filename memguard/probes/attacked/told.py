"""What the attacks come to: a table and a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from memguard.attacks.estimate import Estimate
from memguard.probes.attacked.draft import Draft
from memguard.probes.attacked.scored import Attack
from memguard.probes.result import Table
from memguard.records.small_cells import MIN_CELL

__all__ = ["POOLED", "answer_of", "table_of"]

POOLED = (
    "Rates are pooled over patients: a false-positive rate of .01 means that 1 % of the held-out patients are called "
    "members. For one given patient the rate may be many times higher or lower (arXiv 2605.25819)."
)


def table_of(attacks: Sequence[Attack], eligible: int, draft: Draft, confidence: float) -> Table:
    """Every attack beside the strongest, by AUC."""
    rates = [key for key in draft.numbers if key.startswith("strongest.tpr")]
    keys = ["auc", "advantage", *(key.removeprefix("strongest.") for key in rates)]
    heads = ["AUC", "Advantage", *(f"TPR at FPR {key.removeprefix('tpr_at_fpr_')}" for key in keys[2:])]
    order = sorted(attacks, key=lambda a: -draft.numbers[f"{a.name}.auc"].value)
    rows = [
        [
            a.title,
            draft.numbers[f"{a.name}.auc"].n,
            *(draft.numbers.get(f"{a.name}.{key}") for key in keys),
        ]
        for a in order
    ]
    strong = [draft.numbers.get(f"strongest.{key}") for key in keys]
    rows.insert(0, ["Strongest, of each number", draft.numbers["strongest.auc"].n, *strong])
    if "blind.auc" in draft.numbers:
        blind = draft.numbers["blind.auc"]
        rows.append(["No model (records alone)", blind.n, blind, *([None] * (len(keys) - 1))])
    percent = f"{100 * confidence:g} %"
    return Table(
        title="Membership attacks, over patients",
        columns=["Attack", "Patients", *heads],
        rows=rows,
        note=(
            f"Intervals at {percent}, of each attack by itself; those of the first row hold for whichever attack "
            f"is the strongest (Bonferroni over {eligible} attacks; one that scores few patients cannot be it). "
            "The advantage is that of the best threshold and above 0 by chance. " + POOLED
        ),
    )


def answer_of(
    draft: Draft,
    best: Mapping[str, Estimate],
    names: Mapping[str, str],
    titles: Mapping[str, str],
    basis: str,
) -> str:
    """What was found, with its numbers."""
    says = f"The strongest attack on AUC is {titles[names['auc']]}: {best['auc']:.2f}."
    low = [key for key in best if key.startswith("tpr")]
    if low:
        fpr = low[-1].removeprefix("tpr_at_fpr_")
        says += (
            f" At a false-positive rate of {fpr}, {titles[names[low[-1]]]} finds the largest share of the members: "
            f"{best[low[-1]]:.1%}."
        )
    n = len(draft.flagged)
    if n == 0:
        return says + " Nobody stands out."
    who = f"Fewer than {MIN_CELL}" if n < MIN_CELL else f"{n:,}"
    return says + f" {who} patients stand out by {titles[basis]}."
