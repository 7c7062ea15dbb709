"""Prompts of sensitive codes made somebody else's, put to the target and to every reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from memguard.probes.asked import Asked
from memguard.probes.attribute.asking import Question, ask
from memguard.probes.attribute.evidence import comparable_out, inference_p_values
from memguard.probes.attribute.examine import contexts_of
from memguard.probes.attribute.items import Categories
from memguard.probes.clock import NO_LIMIT, Clock
from memguard.probes.perturbation.changes import Changer, identifiers_of, patients_with
from memguard.probes.perturbation.collapse import Collapse, ask_all, collapses, excess_of, top_hits
from memguard.probes.prompts import Asking, prompts_before
from memguard.probes.result import NotTested
from memguard.probes.strangers import never_saw
from memguard.probes.subject import Subject
from memguard.records.content import Ragged

__all__ = ["JUDGED", "Effort", "Perturbed", "examine"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

JUDGED = "history"
"""The kind of change on which decisions rest: all identifiers and half of the known codes."""


@dataclass(frozen=True, kw_only=True)
class Perturbed:
    """Collapses of n codes, ``(n,)`` each; NaN where a code was not tested.

    Attributes:
        items: The codes.
        category: Of each.
        patient: Of each.
        member: Side of each.
        target: Log-probability by the target after the true prompt.
        excess: Kind of change -> fall of the target beyond that of references that never saw the patient, nats.
        common: Kind -> mean fall of those references, nats.
        p_common: P-value of the common fall against records of patients without such a code.
    """

    items: Asking
    category: Ints
    patient: Ints
    member: Bools
    target: Floats
    excess: dict[str, Floats]
    common: dict[str, Floats]
    p_common: Floats


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is asked.

    Attributes:
        k: Known codes.
        hits: So many codes of both sides together, the likeliest first; ``None`` for all.
        draws: Changed prompts of each kind.
        contexts: Records of others for the null of the common collapse.
        seed: Of every draw.
        clock: No further reference is asked when it is over.
    """

    k: int
    hits: int | None
    draws: int
    contexts: int
    seed: int = 0
    clock: Clock = NO_LIMIT


def examine(
    subject: Subject,
    asked: Asked,
    items: Asking,
    category: Ints,
    kinds: Categories,
    effort: Effort,
    *,
    identifiers: Mapping[str, ArrayLike] | None = None,
    fewest: int = 1,
) -> tuple[Perturbed | None, list[NotTested]]:
    """Ask target and references with true and changed prompts; nothing is decided here.

    Args:
        subject: The records.
        asked: With a target, and one reference at least.
        items: Sensitive codes, each with something before it.
        category: Of each.
        kinds: What is sensitive.
        effort: How much is asked.
        identifiers: Kind -> tokens; those that the names of tokens tell if omitted.
        fewest: Records of others without which a common fall gets no p-value.

    Returns:
        What was found, ``None`` where no prompt can be changed; and what could not be asked.
    """
    model = asked.target
    assert model is not None
    patient, static, v = subject.patient, subject.static, model.vocabulary

    def before(row: Ints, place: Ints) -> Ragged:
        return prompts_before(subject.sequences, row, place, static, effort.k, longest=model.longest)

    prompts = before(items.row, items.place)
    if effort.hits is not None and effort.hits < len(items):
        asking = Question(prompts=prompts, tokens=items.code, patient=patient[items.row])
        chosen = top_hits(ask(model, asking), effort.hits)
        items, category, prompts = items.take(chosen), category[chosen], prompts.take(chosen)
    known = identifiers_of(subject.names, v, identifiers)
    carriers, source = patients_with(subject, v), (prompts, static[items.row])
    kept_out = np.asarray(kinds.member.any(1), dtype=np.bool_)

    def changer(of: Ragged, head: Ints) -> Changer:
        return Changer(
            prompts=of,
            static=np.minimum(head, of.lengths),
            identifiers=known,
            carriers=carriers,
            kept_out=kept_out,
            source=source,
        )

    mine = changer(prompts, static[items.row])
    gaps = _unchanged(mine, known)
    if JUDGED not in mine.kinds:
        return None, gaps
    row, place = contexts_of(subject, items, effort.contexts, effort.seed)
    tokens = np.unique(items.code)
    own, null = ask_all(
        asked,
        (mine, items.code, patient[items.row]),
        (changer(before(row, place), static[row]), tokens[:, None] == np.arange(v), patient[row]),
        mine.kinds,
        JUDGED,
        draws=effort.draws,
        seed=effort.seed,
        clock=effort.clock,
    )
    if len(own) < len(asked.references):
        left = len(asked.references) - len(own)
        gaps.append(NotTested(what=f"{left} references", why="the time of the budget was over"))
    strange = never_saw(asked.references.in_mask[: len(own)], patient)
    full, member = strange[:, items.row], subject.member[items.row]
    untested = int(np.count_nonzero(~full.any(0)))
    if untested:
        why = "every reference was trained on the patient"
        gaps.append(NotTested(what=f"{untested} sensitive codes", why=why, fix="more references"))
    target = collapses(
        model, mine, items.code, patient[items.row], mine.kinds, draws=effort.draws, seed=effort.seed
    )
    comparable = comparable_out(full, member, effort.seed)
    falls = {kind: np.stack([one.fall[kind] for one in own]) for kind in mine.kinds}
    common = {kind: excess_of(target.fall[kind], falls[kind], full)[1] for kind in mine.kinds}
    level = _level(null, strange[:, row], len(tokens))
    usable = _without(subject, kinds, row)
    p, size = inference_p_values(common[JUDGED], category, items.code, level, tokens, usable)
    found = Perturbed(
        items=items,
        category=category,
        patient=patient[items.row],
        member=member,
        target=target.base,
        excess={kind: excess_of(target.fall[kind], falls[kind], comparable)[0] for kind in mine.kinds},
        common=common,
        p_common=np.where(size >= fewest, p, np.nan),
    )
    return found, gaps


def _unchanged(mine: Changer, known: Mapping[str, Bools]) -> list[NotTested]:
    """Which changes cannot be made."""
    if JUDGED not in mine.kinds:
        why = "no code is known before any sensitive one"
        return [NotTested(what="everything", why=why, fix="a larger k")]
    gaps = [
        NotTested(
            what=f"change of {kind}", why="the asked records hold no two different static tokens of that kind"
        )
        for kind in known
        if kind not in mine.kinds
    ]
    if not known:
        why = "no token is known to be an identifier"
        fix = "pass names of tokens, or identifiers= with tokens of each kind"
        gaps.append(NotTested(what="change of age, sex and other identifiers", why=why, fix=fix))
    return gaps


def _level(null: list[Collapse], apart: Bools, n_tokens: int) -> Floats:
    """Common fall of each of U tokens in B records of others, ``(B, U)``."""
    context = np.stack([one.fall[JUDGED] for one in null])  # (K, B, U)
    return np.stack([excess_of(context[0, :, u], context[..., u], apart)[1] for u in range(n_tokens)], axis=1)


def _without(subject: Subject, kinds: Categories, row: Ints) -> Bools:
    """``(B, C)`` whether the patient of a record holds no code of a category."""
    sequences = subject.sequences
    held = [np.unique(subject.patient[sequences.rows[one[sequences.values]]]) for one in kinds.member.T]
    return np.stack([~np.isin(subject.patient[row], ids) for ids in held], axis=1)
