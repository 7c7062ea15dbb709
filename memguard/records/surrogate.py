"""The counterfactual score: the loss expected of a model that never saw the patient, less its own.

The expectation is a regression of the current model's loss on held-out patients, on features that cost
nothing: leave-one-patient-out n-grams (``ngram.py``) or a patient-grouped ridge (``ridge.py``), together
with the record's own loss *early* in training, when the model had learned the population but not yet the
patient. Measured on real patients, n-grams alone are not enough, and with the early loss the score equals
one reference model (docs/results/ranking.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from memguard.errors import DataError, HeldOutError
from memguard.records.content import RecordContent
from memguard.records.expectation import (
    MIN_HELD_OUT,
    REFUSE_FIT,
    WARN_FIT,
    Expectation,
    Status,
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
    "ContentFeatures",
    "CounterfactualScore",
    "Expectation",
    "ModeSample",
    "content_features",
    "counterfactual",
    "early_epoch",
    "fit_status",
    "loss_weight",
    "match_train_noise",
    "memorization_score",
]

_LATE = 0.6  # share of the planned epochs before which the loss counts half

_CLASSIFIER_WEIGHT = 2 / 3  # most that a classifier's loss counts, on the scale of probabilities

_Float = NDArray[np.float64]
_Column = tuple[_Float, _Float]


def early_epoch(held_out_mean: Sequence[float] | _Float) -> int:
    """Index (0-based) of the early snapshot: half of the best held-out epoch so far.

    A record's own loss there tells how hard it is, for the model has not learned it yet.

    Args:
        held_out_mean: ``(S,)`` mean held-out loss at each snapshot so far; NaN where it was not evaluated.

    Example:
        >>> early_epoch([3.0, 2.5, 2.2, 2.1, 2.05, 2.04, 2.0, 2.1, 2.2])
        3
    """
    best = best_epoch(held_out_mean)
    usable = np.flatnonzero(np.isfinite(np.asarray(held_out_mean, dtype=np.float64)))
    wanted = -(-(best + 1) // 2) - 1
    return int(usable[np.argmin(np.abs(usable - wanted))])


def best_epoch(held_out_mean: Sequence[float] | _Float) -> int:
    """Index (0-based) of the snapshot with the lowest mean held-out loss so far."""
    mean = np.asarray(held_out_mean, dtype=np.float64)
    if mean.ndim != 1 or not np.isfinite(mean).any():
        raise HeldOutError(
            "no held-out loss so far",
            "the early epoch is half of the best held-out one",
            "validate once first",
        )
    return int(np.nanargmin(mean))


def loss_weight(held_out_mean: Sequence[float] | _Float, planned: int | None = None) -> float:
    """How much of the model's own loss to subtract: 1/2 early and for an early-stopped model, else 1.

    Early means before 60 % of the planned snapshots, or, when the plan is not known, before twice the best
    one.

    Example:
        >>> loss_weight([3.0, 2.0], planned=10), loss_weight([3, 2, 2.1, 2.2, 2.3, 2.4, 2.5], planned=10)
        (0.5, 1.0)
    """
    done, best = len(held_out_mean), best_epoch(held_out_mean) + 1
    late = done >= _LATE * planned if planned else done >= 2 * best
    return 1.0 if late and best < done else 0.5


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
        (3, 10)
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
        weight: how much of the loss is subtracted in ``score`` (1, or 1/2 early in training; at most 2/3 for
            classifiers).
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
    held_out_patient: ArrayLike | None = None,
    sample: ModeSample | None = None,
    loss_mode: Literal["train", "eval"] = "train",
    planned: int | None = None,
    reference: tuple[ArrayLike, ArrayLike] | None = None,
    weight: float | None = None,
    seed: int = 0,
) -> CounterfactualScore:
    """Score every member and every held-out record with what the run has shown so far.

    Args:
        features: of :func:`content_features`; ``None`` to use losses alone.
        traces: ``(S, N)`` train-time losses of the members, one row for each epoch so far; NaN where unseen.
        held_out_traces: ``(S, M)`` eval-mode losses after the same epochs; a row of NaN where not validated.
        loss: ``(N,)`` the members' current loss (the last train-time one, or eval-mode).
        held_out_loss: ``(M,)`` the held-out records' current eval-mode loss.
        held_out_patient: ``(M,)``; every record its own patient when ``None``.
        sample: members measured in both modes. Without it, early losses are compared as they are: fine for
            ranking, not for p-values.
        loss_mode: whether ``loss`` is train-time or eval-mode.
        planned: epochs that the run will have, when known.
        reference: losses ``(N,)`` and ``(M,)`` of a model that never saw either: one more feature.
        weight: overrides the 1 or 1/2 of :func:`loss_weight`.
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
    if features is not None and features.kind == "features":
        columns = list(zip(features.train.T, features.held_out.T, strict=True))
        names, early, mean = list(features.names), None, _nan_mean(outer)
    else:
        columns, names, early, mean = _sequence_columns(features, inner, outer, sample, rng)
    if reference is not None:
        inside, outside = (np.asarray(part, dtype=np.float64) for part in reference)
        columns.append((inside, outside))
        names.append("reference_loss")
    usable = np.isfinite(now_out)
    for _, out in columns:
        usable &= np.isfinite(out)
    expected, expected_out, fit = _fit(columns, usable, now_out, held_out_patient, seed)
    if early is not None and len(columns) > 1:
        unseen = ~np.isfinite(inner[early])  # a record that the early epoch skipped is judged by its content
        if unseen.any():
            plain = [column for column, name in zip(columns, names, strict=True) if name != "early_loss"]
            expected[unseen] = _fit(plain, usable, now_out, held_out_patient, seed)[0][unseen]
    beta = weight if weight is not None else (loss_weight(mean, planned) if len(outer) else 0.5)
    gap, gap_out = counterfactual(expected, now), counterfactual(expected_out, now_out)
    if "ridge_p" in names:
        # A classifier is ranked on the scale of probabilities: in nats a few records that every model gets
        # wrong outweigh all others. Only the ridge's probability goes in; the early loss does not help.
        p_in, p_out = columns[names.index("ridge_p")]
        scaled = [(1 - p_in, 1 - p_out)]
        if reference is not None:
            scaled.append((1 - np.exp(-columns[-1][0]), 1 - np.exp(-columns[-1][1])))
        wrong, wrong_out = 1 - np.exp(-now), 1 - np.exp(-now_out)
        level, level_out, fit = _fit(scaled, usable, wrong_out, held_out_patient, seed)
        beta = min(beta, _CLASSIFIER_WEIGHT)
        score, score_out = (
            counterfactual(level, wrong, weight=beta),
            counterfactual(level_out, wrong_out, weight=beta),
        )
    else:
        score = counterfactual(expected, now, weight=beta)
        score_out = counterfactual(expected_out, now_out, weight=beta)
    veto = np.nan if fit.status == "refuse" else 0.0
    return CounterfactualScore(
        score=score + veto,
        gap=gap + veto,
        expected=expected,
        held_out_score=score_out + veto,
        held_out_gap=gap_out + veto,
        held_out_expected=expected_out,
        fit_r=fit.fit_r,
        status=fit.status,
        weight=beta,
        early=early,
        names=tuple(names),
    )


def _sequence_columns(
    features: ContentFeatures | None,
    inner: _Float,
    outer: _Float,
    sample: ModeSample | None,
    rng: np.random.Generator,
) -> tuple[list[_Column], list[str], int | None, _Float]:
    """Content features and the early loss, made comparable; with the early index and the held-out means."""
    columns = [] if features is None else list(zip(features.train.T, features.held_out.T, strict=True))
    names = [] if features is None else list(features.names)
    mean = _nan_mean(outer)
    early = early_epoch(mean) if np.isfinite(mean).any() else None
    if early is None or early >= len(outer) - 1:
        return columns, names, None, mean  # the early loss would be the very loss that it is to predict
    then = outer[early]
    if sample is not None:
        then = match_train_noise(then, inner[early, sample.rows], sample.losses[early], rng)
    return [*columns, (inner[early], then)], [*names, "early_loss"], early, mean


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
