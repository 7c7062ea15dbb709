"""Every membership score of each patient: from the loss alone, from token probabilities, and from references."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memguard.attacks.likelihood_ratio import lira
from memguard.attacks.relative_ratio import rmia
from memguard.attacks.scores import attack_r, logit_scale, loss_score, min_k_percent
from memguard.attacks.variance_inference import bavaria
from memguard.errors import MemguardError
from memguard.probes.attacked.units import Units
from memguard.probes.result import NotTested
from memguard.records.content import Ragged

__all__ = ["LIRA", "Attack", "loss_attack", "min_k_attack", "reference_attacks", "severity"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_WORST = 745.0  # nats of the smallest probability that is not zero
LIRA = ("pooled", "per_record", "global")


@dataclass(frozen=True, kw_only=True)
class Attack:
    """One score for each patient.

    Attributes:
        name: First part of the names of its numbers, as in ``lira_pooled.auc``.
        title: In words.
        score: ``(P,)``, larger = more likely a member; NaN where it cannot tell.
    """

    name: str
    title: str
    score: Floats


def loss_attack(units: Units) -> Attack:
    """The plainest one: minus the loss."""
    return Attack(name="loss", title="Loss", score=loss_score(units.loss))


def min_k_attack(units: Units, log_prob: Floats, sequences: Ragged, owner: Ints, k: float) -> Attack:
    """Min-K% over all tokens of a patient, in one pass.

    Args:
        units: P patients.
        log_prob: ``(total,)`` of each token of ``sequences``; NaN for the first of each and for what was not asked.
        sequences: Records of these patients.
        owner: Patient of each sequence.
        k: Per cent of the tokens.

    Returns:
        The attack; NaN for a patient of whom no token was asked.

    Example:
        >>> units = Units(patient=np.array([3, 8]), member=np.array([True, False]), loss=np.ones(2),
        ...               reference=np.zeros((0, 2)), in_mask=np.zeros((0, 2), bool))
        >>> log_prob = np.array([np.nan, -1.0, np.nan, -4.0, np.nan, -2.0])
        >>> codes = Ragged.from_lists([[1, 5], [1, 6], [1, 7]])
        >>> min_k_attack(units, log_prob, codes, np.array([8, 3, 8]), 50.0).score.tolist()
        [-4.0, -2.0]
    """
    place = np.searchsorted(units.patient, owner)
    place[place == len(units)] = 0
    mine = units.patient[place] == owner
    token_owner = place[sequences.rows]
    real = ~np.isnan(log_prob) & mine[sequences.rows]
    order = np.argsort(token_owner[real], kind="stable")
    lengths = np.bincount(token_owner[real], minlength=len(units))
    score = np.full(len(units), np.nan)
    if lengths.sum():
        score = min_k_percent(np.minimum(-log_prob[real][order], _WORST), lengths, k=k)
    return Attack(name="min_k", title=f"Min-K %, K = {k:g}", score=score)


def severity(units: Units, seed: int) -> Floats:
    """``(P,)`` mean loss under references that never saw the patient, minus the target's; NaN without any.

    In the unit of the loss: how much better the model knows the patient than models that had to guess.
    """
    if len(units.reference) == 0:
        return np.full(len(units), np.nan)
    out = ~units.left_out(seed)
    counted = out.sum(axis=0)
    total = np.where(out, units.reference, 0.0).sum(axis=0)  # NaN of an OUT model stays
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(counted > 0, total / counted, np.nan) - units.loss


def reference_attacks(
    units: Units, kind: str, *, offline_a: float, seed: int
) -> tuple[list[Attack], list[NotTested]]:
    """Every score that the references at hand allow, and what they do not allow.

    Online scores, with IN and OUT models, where most patients of both sides have both; otherwise offline ones, from
    models that never saw the patient. Losses become logits for LiRA and BaVarIA, and probabilities for RMIA: for
    sequences of the geometric mean over tokens, ``exp(-nats/token)``.

    Args:
        units: P patients.
        kind: Of the references, as in `memguard.probes.asked.Models`.
        offline_a: Of offline RMIA; see `memguard.attacks.relative_ratio.rmia`.
        seed: Of the draw in `Units.left_out`.

    Returns:
        Attacks, and gaps.
    """
    gap: list[NotTested] = []
    some = units.measured
    if len(units.reference) == 0 or not (some & units.member).any() or not (some & ~units.member).any():
        gap.append(
            NotTested(
                what="LiRA, RMIA, BaVarIA, Attack-R and the difference to a reference",
                why="there is no reference model with losses of both sides",
                fix="train reference models; without them an easy patient looks like a memorized one",
            )
        )
        return [], gap
    loss, reference = units.loss[some], units.reference[:, some]
    online, many = units.two_sided, len(reference) > 1
    mask = units.in_mask[:, some] if online else units.left_out(seed)[:, some]
    attacks: list[Attack] = []

    def spread(score: Floats) -> Floats:
        everyone = np.full(len(units), np.nan)
        everyone[some] = score
        return everyone

    def attempt(name: str, title: str, compute: Callable[[], Floats]) -> None:
        try:
            score = compute()
        except MemguardError as error:
            gap.append(NotTested(what=title, why=f"{error.seen}: {error.why}", fix=error.fix))
            return
        if np.isfinite(score).any():
            attacks.append(Attack(name=name, title=title, score=spread(score)))
        else:
            gap.append(NotTested(what=title, why="no patient has enough reference models", fix="train more"))

    word = "surrogate" if kind == "counts" else "references"
    attacks.append(Attack(name="difference", title=f"Difference to the {word}", score=severity(units, seed)))
    if many:
        attempt("attack_r", "Attack-R", lambda: attack_r(-loss, -reference, mask).score)
    if min(float(loss.min()), float(reference.min())) < 0.0:
        gap.append(
            NotTested(
                what="LiRA, BaVarIA and RMIA",
                why="some losses are negative, so that they are no cross entropies and stand for no probability",
                fix="audit with the cross entropy",
            )
        )
        return attacks, gap
    now, then = logit_scale(loss=loss), logit_scale(loss=reference)
    how = "online" if online else "offline"
    if online or many:
        for variance in LIRA if online else LIRA[:2]:

            def likelihood(variance: str = variance) -> Floats:
                return lira(now, then, mask, mode=how, variance=variance).score  # type: ignore[arg-type]

            words = variance.replace("_", " ")
            attempt(f"lira_{variance}", f"LiRA, {how}, {words} variance", likelihood)
        attempt("bavaria", f"BaVarIA, {how}", lambda: bavaria(now, then, mask, mode=how).score)  # type: ignore[arg-type]
    else:
        # with one model the variance can only be the same for all, and then the ratio ranks as the difference
        one = np.where(mask[0], np.nan, now - then[0])
        attempt("lira_fixed", "LiRA, offline, one reference, fixed variance", lambda: one)
        gap.append(
            NotTested(
                what="LiRA with other variances, BaVarIA and Attack-R",
                why="one reference does not show how far the scores of a patient scatter",
                fix="train a pool of references on random halves by patient",
            )
        )
    population = ~units.member[some]
    untouched = population & ~units.in_mask[:, some].any(axis=0)
    population = untouched if untouched.any() else population

    def relative() -> Floats:
        probability = np.exp(-loss), np.exp(-reference)
        return rmia(
            probability[0],
            probability[1],
            mask,
            probability[0][population],
            probability[1][:, population],
            offline_a=None if online else offline_a,
            continuous=True,
        ).score

    attempt("rmia", f"RMIA, {how}", relative)
    return attacks, gap
