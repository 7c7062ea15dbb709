"""Will a code of the category come? Asked of patients whose prompt holds none, as the paper's Table 1 asks it.

That table reports training patients only, so that it cannot tell what was memorized from what can be foretold of
anybody. Here the same numbers are computed for patients that the model never saw, and subtracted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memguard.adapters.base import ModelAdapter
from memguard.attacks.estimate import Estimate
from memguard.probes.attribute.asking import Question, ask
from memguard.probes.attribute.classes import ClassSide, difference, read_side
from memguard.probes.attribute.items import Categories, drawn_patients
from memguard.probes.clock import NO_LIMIT, Clock
from memguard.probes.prompts import beginnings
from memguard.probes.result import NotTested
from memguard.probes.subject import Subject
from memguard.records.small_cells import MIN_CELL

__all__ = ["MEASURES", "Ahead", "look_ahead"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MEASURES = ("auroc", "auprc", "precision", "recall")


@dataclass(frozen=True, kw_only=True)
class Ahead:
    """One category, k first codes known, one way of asking.

    Attributes:
        category: Its number.
        k: Known codes.
        sampled: Whether continuations were sampled; else the exact probability of the next token was taken.
        inside: Of members.
        outside: Of never-trained patients.
    """

    category: int
    k: int
    sampled: bool
    inside: ClassSide
    outside: ClassSide

    def minus(self, measure: str) -> Estimate | None:
        """Members less never-trained patients."""
        return difference(getattr(self.inside, measure), getattr(self.outside, measure))


def look_ahead(
    subject: Subject,
    model: ModelAdapter,
    categories: Categories,
    ks: Sequence[int],
    *,
    sampled_ks: Sequence[int],
    horizon: int,
    samples: int,
    patients: int | None,
    sampled_patients: int | None,
    called: float,
    seed: int,
    clock: Clock = NO_LIMIT,
) -> tuple[list[Ahead], list[NotTested]]:
    """Ask for each category and k: exact probability that the next token is of it, or a share of continuations.

    One record of each patient is asked, the first that is longer than its k codes. For a category only those count
    whose prompt holds no code of it; the positives are those that hold one later. At most a share ``called`` of the
    never-trained patients without the code is called; that threshold holds for both sides.

    Args:
        subject: Both sides.
        model: The target.
        categories: C kinds of codes.
        ks: Known codes after the static tokens.
        sampled_ks: Those of them at which continuations are sampled too.
        horizon: Tokens of a continuation; the prompt is no part of it.
        samples: Continuations of each prompt.
        patients: At most so many of each side.
        sampled_patients: At most so many of each side are sampled from.
        called: See above.
        seed: Of every draw.
        clock: No further k is asked for when it is over.

    Returns:
        Where both sides have at least `MIN_CELL` patients of both kinds; and what was not asked.
    """
    found: list[Ahead] = []
    gaps: list[NotTested] = []
    few: set[str] = set()
    sequences = subject.sequences
    room = sequences.lengths - subject.static
    for k in sorted(set(ks)):
        if clock.over():
            gaps.append(NotTested(what=f"class form, k = {k}", why="the time of the budget was over"))
            continue
        rows = np.flatnonzero((room > k) & (subject.static + k > 0))
        rows = rows[np.unique(subject.patient[rows], return_index=True)[1]]
        rows = rows[drawn_patients(subject.patient[rows], subject.member[rows], patients, seed)]
        if not len(rows):
            continue
        in_prompt, later = _holds(subject, categories.member, rows, k)
        forms = [(False, np.arange(len(rows)))]
        if k in sampled_ks and "generate" in model.abilities:
            few_rows = drawn_patients(subject.patient[rows], subject.member[rows], sampled_patients, seed)
            forms.append((True, np.flatnonzero(few_rows)))
        for sampled, chosen in forms:
            score = _scores(
                subject, model, categories.member, rows[chosen], k, sampled, horizon, samples, seed
            )
            for c, key in enumerate(categories.keys):
                free = ~in_prompt[chosen, c]
                positive, member = later[chosen, c][free], subject.member[rows[chosen]][free]
                cells = [
                    int(np.sum((member == m) & (positive == q))) for m in (True, False) for q in (True, False)
                ]
                if min(cells) < MIN_CELL:
                    few.add(f"{key} at k = {k}{', sampled' if sampled else ''}")
                    continue
                values = score[:, c][free]
                threshold = float(np.quantile(values[~member & ~positive], 1 - called, method="higher"))
                sides = [read_side(values[s], positive[s], threshold, seed=seed) for s in (member, ~member)]
                found.append(Ahead(category=c, k=k, sampled=sampled, inside=sides[0], outside=sides[1]))
    if few:
        gaps.append(
            NotTested(
                what=f"class form of {len(few)} cells ({_some(sorted(few))})",
                why=f"fewer than {MIN_CELL} patients with or without the code on a side",
                fix="more patients of both sides",
            )
        )
    return found, gaps


def _holds(subject: Subject, member: Bools, rows: Ints, k: int) -> tuple[Bools, Bools]:
    """Whether each record holds a code of each category in its prompt, and after it; ``(n, C)`` each."""
    part = subject.sequences.take(rows)
    at = part.rows
    place = np.arange(len(part.values)) - part.offsets[:-1][at]
    early = place < (subject.static[rows] + k)[at]
    kinds = member[part.values]
    out = []
    for when in (early, ~early):
        count = np.zeros((len(rows), member.shape[1]))
        np.add.at(count, at[when], kinds[when])
        out.append(count > 0)
    return out[0], out[1]


def _scores(
    subject: Subject,
    model: ModelAdapter,
    member: Bools,
    rows: Ints,
    k: int,
    sampled: bool,
    horizon: int,
    samples: int,
    seed: int,
) -> Floats:
    prompts = beginnings(subject.sequences, rows, subject.static, k, longest=model.longest)
    if not sampled:
        return ask(model, Question(prompts=prompts, tokens=member.T, patient=subject.patient[rows]))
    said = model.generate(prompts, horizon, samples=samples, seed=seed)
    hit = np.zeros((len(said), member.shape[1]))
    np.add.at(hit, said.rows, member[said.values])
    share: Floats = (hit > 0).reshape(len(rows), samples, -1).mean(1)
    return share


def _some(words: Sequence[str], most: int = 6) -> str:
    return ", ".join(words[:most]) + (", …" if len(words) > most else "")
