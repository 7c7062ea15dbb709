"""Patient-clustered bootstrap of ROC numbers: sort the scores once, then only reweight them.

Patients are drawn with replacement within each class; a draw is a whole number of copies of each patient.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from memguard.attacks._checks import Floats

__all__ = ["bootstrap_auc", "bootstrap_tpr"]

_CHUNK = 2_000_000  # weights held at once


def bootstrap_auc(
    scores: Floats, member: NDArray[np.bool_], code: NDArray[np.int64], n_boot: int, seed: int
) -> Floats:
    """AUC of each bootstrap draw, ties one half, ``(n_boot,)``.

    Example:
        >>> import numpy as np
        >>> truth = np.array([True, True, False, False])
        >>> bootstrap_auc(np.array([3.0, 2.0, 1.0, 0.0]), truth, np.arange(4), 3, seed=0)
        array([1., 1., 1.])
    """
    order = np.argsort(scores, kind="stable")
    ranked, truth = scores[order], member[order]
    starts = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]]))
    tied = len(starts) < len(ranked)
    draws = []
    for weights in _weights(code[order], truth, n_boot, seed):
        hits, misses = np.where(truth, weights, 0.0), np.where(truth, 0.0, weights)
        if tied:
            hits, misses = np.add.reduceat(hits, starts, axis=1), np.add.reduceat(misses, starts, axis=1)
        below = np.cumsum(misses, axis=1)
        total = below[:, -1].copy()
        below -= misses / 2
        draws.append(np.einsum("ij,ij->i", hits, below) / (hits.sum(axis=1) * total))
    return np.concatenate(draws)


def bootstrap_tpr(
    scores: Floats, member: NDArray[np.bool_], code: NDArray[np.int64], fpr: float, n_boot: int, seed: int
) -> Floats:
    """TPR of each bootstrap draw at its own threshold for ``fpr``, ``(n_boot,)``.

    Example:
        >>> import numpy as np
        >>> truth = np.array([True, True, False, False])
        >>> bootstrap_tpr(np.array([3.0, 2.0, 1.0, 0.0]), truth, np.arange(4), 0.5, 3, seed=0)
        array([1., 1., 1.])
    """
    order = np.argsort(-scores, kind="stable")
    ranked, truth = scores[order], member[order]
    last = np.flatnonzero(np.concatenate([ranked[1:] != ranked[:-1], [True]]))
    draws = []
    for weights in _weights(code[order], truth, n_boot, seed):
        misses = np.cumsum(np.where(truth, 0.0, weights), axis=1)
        hits = np.cumsum(np.where(truth, weights, 0.0), axis=1)
        fits = misses[:, last] <= fpr * misses[:, -1:] + 1e-9
        best = np.where(fits, hits[:, last], 0.0).max(axis=1)
        draws.append(best / hits[:, -1])
    return np.concatenate(draws)


def _weights(code: NDArray[np.int64], truth: NDArray[np.bool_], n_boot: int, seed: int) -> Iterator[Floats]:
    """Copies of each record, ``(b, N)`` at a time."""
    rng = np.random.default_rng(seed)
    n_patients = int(code.max()) + 1
    sides = [np.unique(code[truth]), np.unique(code[~truth])]
    step = max(1, _CHUNK // len(code))
    for start in range(0, n_boot, step):
        b = min(step, n_boot - start)
        copies = np.zeros(b * n_patients)
        row = np.arange(b) * n_patients
        for patients in sides:
            drawn = patients[rng.integers(0, len(patients), size=(b, len(patients)))] + row[:, None]
            copies += np.bincount(drawn.ravel(), minlength=b * n_patients)
        yield copies.reshape(b, n_patients)[:, code]
