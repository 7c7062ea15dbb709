"""A patient-grouped ridge classifier: how likely each label is to a model that never saw the patient.

For classifiers and tabular models, dense or one-hot inputs. Closed form: the Gram matrix is taken once for
each fold of patients, and a fold's model is solved from the whole less the fold.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from memguard.errors import DataError

__all__ = ["ridge_features"]

_Float = NDArray[np.float64]

_RIDGE = 0.15  # penalty for each record, on standardised inputs
_TEMPERATURE = 6.0  # of the softmax over ridge scores on one-hot labels in {0, 1}
_NAMES = ("ridge_nll", "ridge_p", "ridge_entropy")
_MOST_CLASSES = 1000
_WIDEST = 4096  # columns beyond which inputs are projected at random: the Gram matrix stays small


def ridge_features(
    x: ArrayLike,
    y: ArrayLike,
    patient: ArrayLike | None,
    x_out: ArrayLike,
    y_out: ArrayLike,
    *,
    folds: int = 5,
    ridge: float = _RIDGE,
    temperature: float = _TEMPERATURE,
    seed: int = 0,
) -> tuple[_Float, _Float, tuple[str, ...]]:
    """Surprise of each record's own label under ridge models of the other patients.

    Args:
        x: ``(N, d)`` inputs of the members.
        y: ``(N,)`` class labels.
        patient: ``(N,)``, ``None`` when every record is its own patient.
        x_out: ``(M, d)`` inputs of held-out records.
        y_out: ``(M,)`` their labels.
        folds: of patients; a member's features come from the fold model that did not see its patient.
        ridge: penalty for each member, on standardised inputs.
        temperature: of the softmax over the scores.
        seed: of the folds.

    Returns:
        ``(N, 3)``, ``(M, 3)`` and the names ``ridge_nll`` (nats), ``ridge_p`` (probability of the record's
        label) and ``ridge_entropy`` (nats). Each held-out record is given by one
        fold model, drawn at random, so that both stand on models fitted to as many patients.

    Raises:
        DataError: where shapes differ, an input is not finite, or the targets are not class labels.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=(400, 3)); y = (x[:, 0] > 0).astype(int)
        >>> y[0] = 1 - (x[0, 0] > 0)
        >>> a, b, names = ridge_features(x[:300], y[:300], None, x[300:], y[300:])
        >>> names[0], bool(a[0, 0] > a[:, 0].mean())
        ('ridge_nll', True)
    """
    a, b = _inputs(x, seed), _inputs(x_out, seed)
    given = np.asarray(y)
    if given.ndim != 1 or (given.dtype.kind == "f" and np.any(given != np.round(given))):
        raise DataError(
            f"targets of shape {given.shape} and type {given.dtype}",
            "the ridge surrogate knows one class label a record",
            "pass class labels; for other targets rank by the early loss alone (features=None)",
        )
    labels, code = np.unique(given, return_inverse=True)
    if len(labels) > _MOST_CLASSES:
        raise DataError(
            f"{len(labels)} classes", "a ridge to each would not be free", "rank by losses (features=None)"
        )
    n, width = a.shape
    if b.shape[1] != width or len(code) != n or len(np.asarray(y_out)) != len(b):
        raise DataError(
            f"inputs {a.shape} and {b.shape} with {len(code)} and {len(np.asarray(y_out))} labels",
            "labels would be given to the wrong record",
            "pass one label per row and the same columns",
        )
    group = np.arange(n) if patient is None else np.unique(np.asarray(patient), return_inverse=True)[1]
    rng = np.random.default_rng(seed)
    fold = (rng.permutation(int(group.max()) + 1) % folds)[group]
    fold_out = rng.permutation(len(b)) % folds
    center, spread = a.mean(0), a.std(0)
    scale = np.where(spread > 1e-9, spread, np.inf)
    z, z_out = _with_one((a - center) / scale), _with_one((b - center) / scale)
    target = np.zeros((n, len(labels)))
    target[np.arange(n), code] = 1.0
    penalty = np.diag(np.append(np.full(width, ridge * n), 1e-9))
    parts = [(z[fold == k].T @ z[fold == k], z[fold == k].T @ target[fold == k]) for k in range(folds)]
    gram, moment = sum(p[0] for p in parts), sum(p[1] for p in parts)
    inside, outside = np.empty((n, len(labels))), np.empty((len(b), len(labels)))
    for k, (gram_k, moment_k) in enumerate(parts):
        weights = np.linalg.solve(gram - gram_k + penalty, moment - moment_k)
        inside[fold == k] = _softmax(temperature * (z[fold == k] @ weights))
        outside[fold_out == k] = _softmax(temperature * (z_out[fold_out == k] @ weights))
    return _describe(inside, code), _describe(outside, _codes_of(y_out, labels)), _NAMES


def _describe(p: _Float, code: NDArray[np.int64]) -> _Float:
    own = np.where(code < 0, 1e-6, p[np.arange(len(p)), np.maximum(code, 0)])
    own = np.maximum(own, 1e-6)
    entropy = -(p * np.log(np.maximum(p, 1e-12))).sum(1)
    return np.column_stack([-np.log(own), own, entropy])


def _codes_of(y: ArrayLike, labels: NDArray[np.generic]) -> NDArray[np.int64]:
    """Index of each label, -1 for one that no member has."""
    given = np.asarray(y)
    place = np.minimum(np.searchsorted(labels, given), len(labels) - 1)
    return np.where(labels[place] == given, place, -1)


def _inputs(x: ArrayLike, seed: int) -> _Float:
    a = np.asarray(x, dtype=np.float64)
    a = a.reshape(len(a), -1)
    if not np.isfinite(a).all():
        raise DataError("inputs that are not finite", "no ridge can be fitted", "impute missing values first")
    if a.shape[1] > _WIDEST:
        project = np.random.default_rng(seed).choice([-1.0, 1.0], size=(a.shape[1], _WIDEST // 4))
        a = a @ project / np.sqrt(a.shape[1])
    return a


def _with_one(z: _Float) -> _Float:
    return np.column_stack([z, np.ones(len(z))])


def _softmax(s: _Float) -> _Float:
    e = np.exp(s - s.max(1, keepdims=True))
    return np.asarray(e / e.sum(1, keepdims=True))
