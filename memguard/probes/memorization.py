"""The memorization probe: whom does the model know better than a model that never saw them would?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from memguard.attacks.aggregate import by_patient
from memguard.attacks.conformal import adjusted_p, conformal_p_values, storey_share
from memguard.attacks.estimate import Estimate
from memguard.attacks.tail import tail_p_values
from memguard.errors import HeldOutError, MemguardError
from memguard.records.surrogate import CounterfactualScore

__all__ = ["Memorization", "memorization_probe", "memorized_share"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Memorization:
    """What one look says of each patient. All arrays are ``(P,)``, in the order of ``patient``.

    Attributes:
        patient: Integer code of each scored member patient.
        score: Ranking score, larger = more memorized (nats per token or per record).
        severity: Counterfactual gap, nats per token or per record.
        severity_low: Lower end of its 95 % interval.
        severity_high: Upper end.
        bits: The gap summed over everything that the patient has, in bits.
        p: Conformal p-value against held-out patients.
        q: Smallest false-discovery rate at which the patient would be flagged (Benjamini-Hochberg).
        records: Number of records.
        tokens: Number of predicted tokens (of records for classifiers).
        fit_r: Cross-validated correlation of expected and actual loss on held-out patients.
        status: ``"ok"``, ``"warn"`` or ``"refuse"``.
        p_method: ``"empirical"`` or ``"tail"``.
        p_resolution: Smallest p-value that counting alone can give.
        basis: ``"train-time"`` or ``"evaluated"``: where the members' current losses come from.
        detail: One line that says which score this is.
    """

    patient: Ints
    score: Floats
    severity: Floats
    severity_low: Floats
    severity_high: Floats
    bits: Floats
    p: Floats
    q: Floats
    records: Ints
    tokens: Ints
    fit_r: float
    status: Literal["ok", "warn", "refuse"]
    p_method: str
    p_resolution: float
    basis: Literal["train-time", "evaluated"]
    detail: str

    @property
    def rank(self) -> Ints:
        """Place of each patient by `score`, 1 the most memorized; ties keep the order of ``patient``.

        A patient without a number for a score comes last.
        """
        rank = np.empty(self.score.size, np.int64)
        rank[np.argsort(-self.score, kind="stable")] = np.arange(1, self.score.size + 1)
        return rank

    def flagged(self, rate: float) -> NDArray[np.bool_]:
        """Patients flagged at this false-discovery rate."""
        flagged: NDArray[np.bool_] = self.q <= rate
        return flagged


def memorization_probe(
    scores: CounterfactualScore,
    *,
    patient: Ints,
    tokens: NDArray[np.integer],
    held_out_patient: Ints,
    held_out_tokens: NDArray[np.integer],
    basis: Literal["train-time", "evaluated"],
    tested: NDArray[np.bool_] | None = None,
    tail: bool = True,
    confidence: float = 0.95,
) -> Memorization:
    """From scores of records to tested patients.

    The gap of each patient (summed over the records, per predicted token) is compared with the gaps of
    held-out patients, whose expectation came from a fit that had not seen them. *Memorized?* is the p-value;
    *how badly?* is the gap itself.

    Args:
        scores: Scores of all records of both sides; NaN for a member record that was not seen.
        patient: ``(N,)`` patient of each training record.
        tokens: ``(N,)`` predicted tokens of each.
        held_out_patient: ``(M,)`` patient of each held-out record.
        held_out_tokens: ``(M,)`` predicted tokens of each.
        basis: Where the members' losses come from.
        tested: ``(N,)`` records that may be flagged; a patient without one keeps p = 1, which is valid
            whatever rule chose the others. All when not given.
        tail: Whether p-values may fall below 1 / (held-out patients + 1), where a model of the tail passes its
            test; without it they are counted. `memorized_share` needs no more than that.
        confidence: Of the severity intervals.

    Returns:
        One row per patient that has a scored record.

    Raises:
        HeldOutError: If no held-out patient has a score.

    Guarantees:
        If a patient's records are exchangeable with held-out ones given the training set of the others, then
        P(p <= a) <= a, and the flags at rate r have an expected share of false ones of at most r. A large p
        does not show that a patient is not memorized. The severity interval adds the spread of held-out gaps,
        which is how far the expectation is off for a patient like them; it is marginal over patients, not
        conditional on one.

    References:
        Bates et al. 2023, arXiv 2104.08279, Theorem 2 (Benjamini-Hochberg with conformal p-values);
        counterfactual memorization: Zhang et al. 2023, arXiv 2112.12938, Definition 2.1.

    Example:
        >>> from memguard.records.surrogate import memorization_score
        >>> rng = np.random.default_rng(0)
        >>> early, held_early = rng.normal(3, 1, 300), rng.normal(3, 1, 400)
        >>> now = early + rng.normal(0, .1, 300) - np.repeat([0, 2], [270, 30])  # 30 of 300 are memorized
        >>> held_now = held_early + rng.normal(0, .1, 400)
        >>> scores = memorization_score(None, traces=[early, now], held_out_traces=[held_early, held_now - 1],
        ...                             loss=now, held_out_loss=held_now)
        >>> found = memorization_probe(scores, patient=np.arange(300), tokens=np.ones(300, int),
        ...     held_out_patient=np.arange(400), held_out_tokens=np.ones(400, int), basis="evaluated")
        >>> flagged = found.flagged(0.1)
        >>> int(flagged[270:].sum()), int(flagged[:270].sum()) < 10
        (30, True)
    """
    weight, held_weight = np.maximum(tokens, 1), np.maximum(held_out_tokens, 1)
    gaps = by_patient(patient, scores.gap * weight, weight, missing="drop")
    ranks = by_patient(patient, scores.score * weight, weight, missing="drop")
    held = by_patient(held_out_patient, scores.held_out_gap * held_weight, held_weight, missing="drop")
    if held.patient.size == 0:
        raise HeldOutError(
            "no held-out patient with a score",
            "nothing says how large a gap is without memorization",
            "validate on at least 100 patients",
        )
    severity, null = gaps.nats_per_token, held.nats_per_token
    method: Literal["empirical", "tail"] = "empirical"
    if tail:
        extended = tail_p_values(severity, null)
        p, method = extended.p.copy(), extended.method
    else:
        p = conformal_p_values(severity, null)
    if tested is not None:
        p[~np.isin(gaps.patient, patient[tested])] = 1.0
    side = (1 - confidence) / 2
    low, high = np.quantile(null, [side, 1 - side])
    return Memorization(
        patient=gaps.patient.astype(np.int64),
        score=ranks.nats_per_token,
        severity=severity,
        severity_low=severity - high,
        severity_high=severity - low,
        bits=gaps.bits,
        p=p,
        q=adjusted_p(p),
        records=gaps.records,
        tokens=gaps.tokens.astype(np.int64),
        fit_r=scores.fit_r,
        status=scores.status,
        p_method=method,
        p_resolution=1.0 / (null.size + 1.0),
        basis=basis,
        detail=_describe(scores),
    )


def _describe(scores: CounterfactualScore) -> str:
    part = "the loss" if scores.weight == 1 else f"{scores.weight:.2g} x the loss"
    early = "" if scores.early is None else " and the record's own early loss"
    features = "n-gram features" if "unigram" in scores.names else "ridge features"
    return (
        f"loss expected from {features}{early}, less {part}; fit on held-out patients r = {scores.fit_r:.2f}"
    )


def memorized_share(found: Memorization, sample: Ints, n_held_out: int) -> Estimate | None:
    """Share of all members that stand out from held-out patients, from a random sample of them.

    Args:
        found: A look whose ``basis`` is ``"evaluated"`` for the sampled patients.
        sample: Codes of the sampled patients.
        n_held_out: Held-out patients behind the p-values.

    Returns:
        A lower-biased estimate with its interval, or ``None`` where there is nobody to count.

    Example:
        >>> memorized_share.__name__
        'memorized_share'
    """
    chosen = np.isin(found.patient, sample)
    if not chosen.any():
        return None
    try:
        return storey_share(found.p[chosen], n_null=n_held_out)
    except MemguardError:
        return None
