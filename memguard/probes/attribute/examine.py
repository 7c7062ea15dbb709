"""Asking for each sensitive code with k known codes, and the two axes of evidence for each k."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memguard.probes.asked import Asked
from memguard.probes.attribute.asking import Question, ask_references, ranks_of
from memguard.probes.attribute.evidence import (
    comparable_out,
    inference_p_values,
    likelihood_ratio,
    rise,
)
from memguard.probes.attribute.items import Categories
from memguard.probes.clock import NO_LIMIT, Clock
from memguard.probes.prompts import Asking, mean_over_out, prompts_before
from memguard.probes.result import NotTested
from memguard.probes.strangers import never_saw
from memguard.probes.subject import Subject

__all__ = ["Examined", "contexts_of", "examine", "usable_ks"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_FEWEST = 19  # records of others without which nothing can be said of inference at 5 %


@dataclass(frozen=True, kw_only=True)
class Examined:
    """The codes asked with k known codes. Arrays are ``(n,)``; NaN where a code was not tested.

    Attributes:
        k: Known codes.
        items: The codes.
        category: Of each.
        patient: Of each.
        member: Side of each.
        target: Log-probability by the target.
        out: Logarithm of the mean probability by references that never saw the patient.
        rank: Place of the code among all tokens by the target, 1 for the likeliest.
        memorization: ``target - out``, nats.
        inference: ``out`` with k codes less ``out`` with none, nats.
        score: What p-values are of.
        scored_by: How ``score`` was made, in words.
        p_inference: Against records of patients without a code of the category.
        n_inference: Fewest such records.
    """

    k: int
    items: Asking
    category: Ints
    patient: Ints
    member: Bools
    target: Floats
    out: Floats
    rank: Ints
    memorization: Floats
    inference: Floats
    score: Floats
    scored_by: str
    p_inference: Floats
    n_inference: int

    def inferable(self, alpha: float, least: float) -> Bools:
        """Codes that the others explain: a rise of at least ``least`` nats, with a p-value of at most ``alpha``."""
        with np.errstate(invalid="ignore"):
            found: Bools = (self.p_inference <= alpha) & (self.inference >= least)
        return found


def usable_ks(ks: Sequence[int], subject: Subject, items: Asking) -> tuple[tuple[int, ...], list[NotTested]]:
    """Those k that differ: no record need hold so many codes before the sensitive one, nor static tokens."""
    kept: list[int] = []
    gaps: list[NotTested] = []
    known = int((items.place - subject.static[items.row]).max(initial=0))
    for k in sorted(set(ks)):
        if k == 0 and np.any(subject.static[items.row] == 0):
            gaps.append(NotTested(what="k = 0", why="records without static tokens leave an empty prompt",
                                  fix="say in Subject.static how many tokens tell age and sex"))  # fmt: skip
        elif kept and kept[-1] >= known and k > 0:
            why = f"no record holds more than {known} codes before a sensitive one"
            gaps.append(NotTested(what=f"k = {k}", why=why))
        else:
            kept.append(k)
    return tuple(kept), gaps


def contexts_of(subject: Subject, items: Asking, n: int, seed: int) -> tuple[Ints, Ints]:
    """Records of n other patients and a place in each, as far in as the sensitive codes stand."""
    rng = np.random.default_rng([seed, 43])
    room = subject.sequences.lengths - subject.static
    rows = rng.permutation(np.flatnonzero((room >= 1) & (subject.sequences.lengths >= 2)))
    rows = rows[np.sort(np.unique(subject.patient[rows], return_index=True)[1])][:n]
    depth = (items.place - subject.static[items.row])[rng.integers(0, len(items), len(rows))]
    place = subject.static[rows] + np.minimum(depth, room[rows])
    return rows, np.maximum(place, 1)


def examine(
    subject: Subject,
    asked: Asked,
    items: Asking,
    category: Ints,
    categories: Categories,
    ks: Sequence[int],
    *,
    contexts: int,
    seed: int,
    clock: Clock = NO_LIMIT,
) -> tuple[list[Examined], list[NotTested]]:
    """Ask the target and all references; nothing is decided here.

    Args:
        subject: Both sides.
        asked: A target with log-probabilities, and at least one reference.
        items: n codes, each with at least one token before it.
        category: ``(n,)``.
        categories: The kinds of codes.
        ks: As `usable_ks` leaves them.
        contexts: Records of others for the null of the inference axis.
        seed: Of every draw.
        clock: No further reference is asked when it is over.

    Returns:
        One for each k; and what could not be asked.
    """
    assert asked.target is not None
    model, sequences, gaps = asked.target, subject.sequences, []
    patient, member = subject.patient[items.row], subject.member[items.row]
    tokens, at = np.unique(items.code, return_inverse=True)
    groups = tokens[:, None] == np.arange(model.vocabulary)
    row, place = contexts_of(subject, items, contexts, seed)
    static, longest = subject.static, model.longest
    asked_ks = ks if 0 in ks or np.any(static[items.row] == 0) else (0, *ks)
    mine = [
        Question(
            prompts=prompts_before(sequences, items.row, items.place, static, k, longest=longest),
            tokens=items.code,
            patient=patient,
        )
        for k in asked_ks
    ]
    others = [
        Question(
            prompts=prompts_before(sequences, row, place, static, k, longest=longest),
            tokens=groups,
            patient=subject.patient[row],
        )
        for k in asked_ks
    ]
    answered = ask_references(asked, [*mine, *others], clock)
    n_asked = len(answered.asked)
    if n_asked < len(asked.references):
        gaps.append(
            NotTested(
                what=f"{len(asked.references) - n_asked} of {len(asked.references)} references",
                why="the time of the budget was over",
                fix="a larger Budget.seconds",
            )
        )
    strange = never_saw(asked.references.in_mask[:n_asked], subject.patient)
    inside, full = ~strange[:, items.row], strange[:, items.row]
    out, out_others = comparable_out(full, member, seed), strange[:, row]
    untested = int(np.count_nonzero(~full.any(0)))
    if untested:
        gaps.append(
            NotTested(
                what=f"{untested} of {len(items)} sensitive codes",
                why="every reference was trained on the patient",
                fix="more references",
            )
        )
    usable = np.stack(
        [~np.isin(subject.patient[row], _with(subject, member_of)) for member_of in categories.member.T],
        axis=1,
    )
    base = None if 0 not in asked_ks else answered.answers[asked_ks.index(0)]
    base_others = None if base is None else answered.answers[len(asked_ks) + asked_ks.index(0)]
    results = []
    for j, k in enumerate(asked_ks):
        if k not in ks:
            continue
        reference, context = answered.answers[j], answered.answers[len(asked_ks) + j]
        target, rank = ranks_of(model, mine[j])
        mean = mean_over_out(reference, out)
        if base is not None and base_others is not None:
            raised = rise(reference, base, full)
            null = np.stack(
                [rise(context[..., u], base_others[..., u], out_others) for u in range(len(tokens))], axis=1
            )
        else:  # nothing is known of the demographics: the level itself stands for the rise over a common level
            null = np.stack([mean_over_out(context[..., u], out_others) for u in range(len(tokens))], axis=1)
            level = np.array([_mean_level(null[:, u]) for u in range(len(tokens))])
            raised, null = mean_over_out(reference, full) - level[at], null - level
        p, size = inference_p_values(raised, category, items.code, null, tokens, usable)
        p = np.where(size >= _FEWEST, p, np.nan)
        score, scored_by = likelihood_ratio(target, reference, out, inside)
        results.append(
            Examined(
                k=k,
                items=items,
                category=category,
                patient=patient,
                member=member,
                target=target,
                out=mean,
                rank=rank,
                memorization=target - mean,
                inference=raised,
                score=score,
                scored_by=scored_by,
                p_inference=p,
                n_inference=int(size.min(initial=contexts)),
            )
        )
    return results, gaps


def _with(subject: Subject, member: Bools) -> Ints:
    """Patients with a code of the category anywhere in their records."""
    sequences = subject.sequences
    return np.unique(subject.patient[sequences.rows[member[sequences.values]]])


def _mean_level(log_p: Floats) -> float:
    known = log_p[np.isfinite(log_p)]
    return float(np.log(np.mean(np.exp(known)))) if len(known) else float("nan")
