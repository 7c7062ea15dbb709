"""The counterfactual score: the loss expected of a model that never saw the patient, less its own.

The expectation is a regression of the current model's loss on held-out patients, on features that cost
nothing: leave-one-patient-out n-grams (``ngram.py``) or a patient-grouped ridge (``ridge.py``), together
with the record's own loss *early* in training, when the model had learned the population but not yet the
patient. Measured on real patients, n-grams alone are not enough, and with the early loss the score equals
one reference model (docs/results/ranking.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from memguard.errors import DataError, HeldOutError
from memguard.records.content import RecordContent
from memguard.records.early import early_epoch, early_lag, early_trust
from memguard.records.expectation import (
    MIN_HELD_OUT,
    REFUSE_FIT,
    WARN_FIT,
    Expectation,
    Status,
    correlation,
    counterfactual,
    fit_status,
    match_train_noise,
)
from memguard.records.ngram import ngram_features
from memguard.records.ridge import ridge_features

__all__ = [
    "MIN_HELD_OUT",
    "REFUSE_FIT",
    "WARN_FIT",
    "WEIGHT",
    "ContentFeatures",
    "CounterfactualScore",
    "Expectation",
    "ModeSample",
    "content_features",
    "counterfactual",
    "early_epoch",
    "early_trust",
    "fit_status",
    "match_train_noise",
    "memorization_score",
]

WEIGHT = 2 / 3  # of the model's own loss in the ranking score

_Float = NDArray[np.float64]
_Column = tuple[_Float, _Float]


@dataclass(frozen=True, kw_only=True)
class ContentFeatures:
    """What the records alone say about how hard they are; computed once, at the start.

    Attributes:
        kind: ``"codes"`` (n-grams, nats per code) or ``"features"`` (patient-grouped ridge, nats per record).
        train: ``(N, F)`` of the members, their own patient left out.
        held_out: ``(M, F)``.
        names: of the F columns.
    """

    kind: Literal["codes", "features"]
    train: _Float
    held_out: _Float
    names: tuple[str, ...]


def content_features(
    train: RecordContent, train_patient: ArrayLike | None, held_out: RecordContent, *, seed: int = 0
) -> ContentFeatures:
    """Features of members and held-out records from their contents: the one pass at the start.

    Args:
        train: contents of the ``N`` members.
        train_patient: ``(N,)`` patient of each, ``None`` when every record is its own patient.
        held_out: contents of the ``M`` held-out records.
        seed: of the patient folds of the ridge.

    Raises:
        DataError: if the two are of different kinds, or a classifier's labels are missing.

    Example:
        >>> from memguard.records.content import Ragged
        >>> a = RecordContent.from_codes(Ragged.from_lists([[1, 2], [2, 1], [1, 2]]))
        >>> content_features(a, None, a.take([0])).train.shape
        (3, 8)
    """
    if train.codes is not None and held_out.codes is not None:
        x, y, names = ngram_features(train.codes, train_patient, held_out.codes)
        return ContentFeatures(kind="codes", train=x, held_out=y, names=names)
    if train.x is None or held_out.x is None or train.y is None or held_out.y is None:
        raise DataError(
            f"content of kinds {train.kind!r} and {held_out.kind!r}, with labels: {train.y is not None}, "
            f"{held_out.y is not None}",
            "no surrogate can be fitted to them",
            "gather code sequences, or features with labels, for both",
        )
    x, y, names = ridge_features(train.x, train.y, train_patient, held_out.x, held_out.y, seed=seed)
    return ContentFeatures(kind="features", train=x, held_out=y, names=names)


@dataclass(frozen=True, kw_only=True)
class ModeSample:
    """A small sample of members measured in eval mode too, so that the two modes can be compared.

    Attributes:
        rows: ``(m,)`` positions among the N members.
        losses: ``(S, m)`` eval-mode losses at the end of each snapshot; NaN where not measured.
    """

    rows: NDArray[np.int64]
    losses: _Float


@dataclass(frozen=True, kw_only=True)
class CounterfactualScore:
    """Scores of members and of held-out records, which are their null.

    Attributes:
        score: ``(N,)`` what to rank by, larger = more memorized, in the unit of the loss (for classifiers: in
            probability of a wrong label); NaN where the loss is unknown, and
            everywhere when ``status`` is ``"refuse"``.
        gap: ``(N,)`` expected loss less the loss: the severity, in the unit of the loss (nats per token, or
            per record).
        expected: ``(N,)`` loss expected of a model that never saw the patient.
        held_out_score: ``(M,)`` the same score of held-out records, each from a fit without its patient.
        held_out_gap: ``(M,)``.
        held_out_expected: ``(M,)``.
        fit_r: correlation of expected and actual loss over held-out patients, cross-fitted (for classifiers
            on the scale of probabilities, where the ranking is made).
        status: ``"ok"``, ``"warn"``, ``"refuse"``.
        weight: how much of the loss is subtracted in ``score``.
        early: index of the snapshot whose loss is among the features, ``None`` when there is none.
        names: the features used.

    What it does and does not show: a memorized record scores high, and so does a record for which the
    expectation is too high; ``fit_r`` and the held-out scores say how often that happens. Near-duplicates
    of other patients score low although the model may reproduce them.
    """

    score: _Float
    gap: _Float
    expected: _Float
    held_out_score: _Float
    held_out_gap: _Float
    held_out_expected: _Float
    fit_r: float
    status: Status
    weight: float
    early: int | None
    names: tuple[str, ...]


def memorization_score(
    features: ContentFeatures | None,
    *,
    traces: ArrayLike,
    held_out_traces: ArrayLike,
    loss: ArrayLike,
    held_out_loss: ArrayLike,
    patient: ArrayLike | None = None,
    held_out_patient: ArrayLike | None = None,
    held_out_means: ArrayLike | None = None,
    sample: ModeSample | None = None,
    loss_mode: Literal["train", "eval"] = "train",
    reference: tuple[ArrayLike, ArrayLike] | None = None,
    weight: float = WEIGHT,
    seed: int = 0,
) -> CounterfactualScore:
    """Score every member and every held-out record with what the run has shown so far.

    Args:
        features: of :func:`content_features`; ``None`` to use losses alone.
        traces: ``(S, N)`` train-time losses of the members, one row for each epoch so far; NaN where unseen.
        held_out_traces: ``(S, M)`` eval-mode losses after the same epochs; a row of NaN where not validated.
        loss: ``(N,)`` the members' current loss (the last train-time one, or eval-mode).
        held_out_loss: ``(M,)`` the held-out records' current eval-mode loss.
        patient: ``(N,)``; every record its own patient when ``None``. The early loss of a patient with
            several records is not used: by then the model has learned it from the patient's other records.
        held_out_patient: ``(M,)``, likewise.
        held_out_means: mean held-out loss after *every* epoch so far, where ``traces`` holds only some of
            them (:func:`early_trust` needs the first epoch).
        sample: members measured in both modes. Without it, held-out early losses are only put at the level of
            the middle of their epoch (:func:`early_lag`): enough for ranking, not for p-values.
        loss_mode: whether ``loss`` is train-time or eval-mode.
        reference: losses ``(N,)`` and ``(M,)`` of a model that never saw either: one more feature.
        weight: of the loss in ``score``; ``gap`` always subtracts all of it.
        seed: of the folds and of the matched noise.

    Returns:
        Scores; all NaN with ``status="refuse"`` where the expectation does not fit.

    Raises:
        HeldOutError: with fewer than 100 held-out patients, or none validated yet.
        DataError: where shapes differ.
    """
    rng = np.random.default_rng(seed)
    inner, outer = _rows(traces), _rows(held_out_traces)
    now, now_out = np.asarray(loss, dtype=np.float64), np.asarray(held_out_loss, dtype=np.float64)
    if inner.shape != (len(outer), len(now)) or outer.shape[1] != len(now_out):
        raise DataError(
            f"traces {inner.shape} and {outer.shape} with losses ({len(now)},) and ({len(now_out)},)",
            "losses would be compared across records or epochs",
            "pass (S, N), (S, M), (N,) and (M,)",
        )
    if sample is not None and loss_mode == "train" and len(sample.losses):
        now_out = match_train_noise(now_out, now[sample.rows], sample.losses[-1], rng, noise_only=True)
    columns = [] if features is None else list(zip(features.train.T, features.held_out.T, strict=True))
    names = [] if features is None else list(features.names)
    if reference is not None:
        inside, outside = (np.asarray(part, dtype=np.float64) for part in reference)
        columns.append((inside, outside))
        names.append("reference_loss")
    classes = "ridge_p" in names
    early, trust, taught = None, 0.0, None
    if not classes:
        mean = _nan_mean(outer)
        early = early_epoch(mean) if np.isfinite(mean).any() else None
        if early is not None and early >= len(outer) - 1:
            early = None  # the early loss would be the very loss that it is to predict
    if early is not None:
        means = mean if held_out_means is None else np.asarray(held_out_means, dtype=np.float64)
        if sample is not None:
            then = match_train_noise(outer[early], inner[early, sample.rows], sample.losses[early], rng)
        else:
            # A level apart would rank patients judged by their early loss against those judged by content.
            then = outer[early] + early_lag(means)
        taught = (inner[early], then)
        trust = early_trust(means)
        names.append("early_loss")
    usable = np.isfinite(now_out)
    for _, out in [*columns, *([] if taught is None else [taught])]:
        usable &= np.isfinite(out)
    group = None if held_out_patient is None else np.asarray(held_out_patient)
    expected, expected_out, fit_r = _expect(
        columns,
        taught,
        trust,
        usable,
        now_out,
        (_several(patient, len(now)), _several(group, len(now_out))),
        group,
        seed,
    )
    if classes:
        # A classifier is ranked on the scale of probabilities: in nats a few records that every model gets
        # wrong outweigh all others. Only the ridge's probability goes in; the early loss does not help.
        p_in, p_out = columns[names.index("ridge_p")]
        scaled = [(1 - p_in, 1 - p_out)]
        if reference is not None:
            scaled.append((1 - np.exp(-columns[-1][0]), 1 - np.exp(-columns[-1][1])))
        wrong, wrong_out = 1 - np.exp(-now), 1 - np.exp(-now_out)
        level, level_out, fit = _fit(scaled, usable, wrong_out, group, seed)
        fit_r = fit.fit_r
        score = counterfactual(level, wrong, weight=weight)
        score_out = counterfactual(level_out, wrong_out, weight=weight)
    else:
        score = counterfactual(expected, now, weight=weight)
        score_out = counterfactual(expected_out, now_out, weight=weight)
    gap, gap_out = counterfactual(expected, now), counterfactual(expected_out, now_out)
    veto = np.nan if fit_status(fit_r) == "refuse" else 0.0
    return CounterfactualScore(
        score=score + veto,
        gap=gap + veto,
        expected=expected,
        held_out_score=score_out + veto,
        held_out_gap=gap_out + veto,
        held_out_expected=expected_out,
        fit_r=fit_r,
        status=fit_status(fit_r),
        weight=weight,
        early=early,
        names=tuple(names),
    )


def _expect(
    columns: list[_Column],
    taught: _Column | None,
    trust: float,
    usable: NDArray[np.bool_],
    loss: _Float,
    several: tuple[NDArray[np.bool_], NDArray[np.bool_]],
    group: NDArray[Any] | None,
    seed: int,
) -> tuple[_Float, _Float, float]:
    """Expected losses of both sides, the early loss mixed in as far as it is trusted; and the fit.

    Both fits leave out the same folds of held-out patients, so that the mixture is cross-fitted as well.
    """
    if taught is None:
        a, b, fit = _fit(columns, usable, loss, group, seed)
        return a, b, fit.fit_r
    c, d, fit = _fit([*columns, taught], usable, loss, group, seed)
    if columns:
        a, b, _ = _fit(columns, usable, loss, group, seed)
        # A record that the early epoch skipped, or that its patient's other records had taught by then, is
        # judged by its content.
        share = np.where(several[0] | ~np.isfinite(taught[0]), 0.0, trust)
        c = a + np.where(share > 0, share * (c - a), 0.0)
        d = b + np.where(several[1], 0.0, trust) * (d - b)
    return c, d, correlation(d[usable], loss[usable])


def _several(patient: ArrayLike | None, n: int) -> NDArray[np.bool_]:
    """Whether the patient of each record has more than one."""
    if patient is None:
        return np.zeros(n, dtype=bool)
    _, code, count = np.unique(np.asarray(patient), return_inverse=True, return_counts=True)
    return np.asarray(count[code] > 1)


def _fit(
    columns: list[_Column],
    usable: NDArray[np.bool_],
    loss: _Float,
    patient: ArrayLike | None,
    seed: int,
) -> tuple[_Float, _Float, Expectation]:
    """Expected loss of members and of held-out records (NaN where not usable)."""
    if not columns:
        raise HeldOutError(
            "neither content features nor an early epoch",
            "there is nothing to expect a loss from",
            "pass features, or wait for a second validated epoch",
        )
    group = None if patient is None else np.asarray(patient)[usable]
    fit = Expectation.fit(np.column_stack([b[usable] for _, b in columns]), loss[usable], group, seed=seed)
    out = np.full(len(loss), np.nan)
    out[usable] = fit.cross_fitted
    return fit.predict(np.column_stack([a for a, _ in columns])), out, fit


def _rows(trace: ArrayLike) -> _Float:
    array = np.asarray(trace, dtype=np.float64)
    if array.ndim != 2:
        raise DataError(
            f"traces of shape {array.shape}", "epochs and records cannot be told apart", "pass (S, N)"
        )
    return array


def _nan_mean(trace: _Float) -> _Float:
    """Mean over records of each epoch; NaN, without a warning, where nothing was measured."""
    seen = np.isfinite(trace)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(seen, trace, 0.0).sum(1) / seen.sum(1))
