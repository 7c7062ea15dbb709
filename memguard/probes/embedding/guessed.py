"""Classifiers on frozen embeddings, cross-validated by patient: log-odds of an attribute, never hard labels."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from memguard.errors import MemguardError

__all__ = ["Attacker", "out_of_fold", "patient_folds"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Attacker = Literal["linear", "mlp"]

_STRENGTH = 0.1  # inverse penalty of the logistic regression on standardized embeddings
_HIDDEN = 32
_SUREST = 1e-9


def patient_folds(patient: Ints, side: Bools, held: Bools, folds: int, seed: int) -> Ints:
    """Fold of each record: whole patients, both sides mixed, the holders of each attribute spread evenly.

    Args:
        patient: ``(n,)`` whose record it is.
        side: ``(n,)`` whether it is a member's.
        held: ``(n, C)`` which attributes it holds.
        folds: How many.
        seed: Of the order.

    Returns:
        ``(n,)`` numbers below ``folds``.

    Example:
        >>> patient = np.repeat(np.arange(20), 2)
        >>> held = (patient % 4 == 0)[:, None]
        >>> fold = patient_folds(patient, patient < 10, held, 5, 0)
        >>> np.bincount(fold).tolist(), bool((fold[::2] == fold[1::2]).all())
        ([8, 8, 8, 8, 8], True)
    """
    code, owner = np.unique(patient, return_inverse=True)
    owner = owner.reshape(-1)
    has = np.zeros((len(code), held.shape[1]), dtype=np.bool_)
    for c in range(held.shape[1]):
        has[owner[held[:, c]], c] = True
    # by the rarest attribute that a patient holds
    order = np.argsort(has.sum(axis=0), kind="stable")
    rarest = np.where(has.any(axis=1), has[:, order].argmax(axis=1), -1)
    inside = np.zeros(len(code), dtype=np.bool_)
    inside[owner] = side
    shuffled = np.random.default_rng(seed).permutation(len(code))
    dealt = shuffled[np.lexsort((rarest[shuffled], inside[shuffled]))]
    fold = np.empty(len(code), np.int64)
    fold[dealt] = np.arange(len(code)) % folds
    return fold[owner]


def out_of_fold(embedding: Floats, held: Bools, fold: Ints, attacker: Attacker, seed: int) -> Floats:
    """Log-odds of each attribute from classifiers that have not seen the patient.

    Args:
        embedding: ``(n, D)`` finite.
        held: ``(n, C)`` attributes; each is held by records of two folds, and lacked by some.
        fold: ``(n,)`` from `patient_folds`.
        attacker: ``"linear"``, a logistic regression for each attribute; ``"mlp"``, one hidden layer for all of them.
        seed: Of the network's start.

    Returns:
        ``(n, C)``.

    Raises:
        MemguardError: If scikit-learn is not installed.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> held = rng.random((200, 1)) < 0.3
        >>> embedding = np.hstack([rng.normal(size=(200, 3)), held + 0.1 * rng.normal(size=(200, 1))])
        >>> odds = out_of_fold(embedding, held, np.arange(200) % 5, "linear", 0)
        >>> bool(odds[held].min() > odds[~held].max())
        True
    """
    odds = np.empty(held.shape)
    for number in np.unique(fold):
        test = fold == number
        middle, spread = embedding[~test].mean(axis=0), embedding[~test].std(axis=0)
        spread = np.where(spread > 1e-12, spread, 1.0)  # a constant direction tells nothing
        train, unseen = ((embedding[which] - middle) / spread for which in (~test, test))
        odds[test] = _fit(train, held[~test], unseen, attacker, seed)
    return odds


def _fit(train: Floats, held: Bools, unseen: Floats, attacker: Attacker, seed: int) -> Floats:
    try:
        from sklearn.exceptions import ConvergenceWarning  # type: ignore[import-untyped]
        from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]
        from sklearn.neural_network import MLPClassifier  # type: ignore[import-untyped]
    except ImportError as error:
        raise MemguardError(
            "scikit-learn is not installed",
            "there is no classifier to read embeddings with",
            'pip install "memguard-ehr[audit]"',
        ) from error
    odds = np.empty((len(unseen), held.shape[1]))
    with warnings.catch_warnings():
        # where an attacker stops is a setting, not a failure
        warnings.simplefilter("ignore", ConvergenceWarning)
        if attacker == "linear":
            for c in range(held.shape[1]):
                model: Any = LogisticRegression(C=_STRENGTH, max_iter=500)
                odds[:, c] = model.fit(train, held[:, c]).decision_function(unseen)
            return odds
        model = MLPClassifier((_HIDDEN,), alpha=0.01, max_iter=60, random_state=seed)
        target = held[:, 0] if held.shape[1] == 1 else held.astype(np.int64)
        found = np.asarray(model.fit(train, target).predict_proba(unseen), dtype=np.float64)
    p = np.clip(found[:, -1:] if held.shape[1] == 1 else found, _SUREST, 1.0 - _SUREST)
    odds[:] = np.log(p) - np.log1p(-p)
    return odds
