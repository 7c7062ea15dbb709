"""Membership scores that need no fit: loss, logit-scaled confidence, Attack-R, and Min-K% of token sequences."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike

from memguard.attacks._checks import Floats, finite, probabilities
from memguard.attacks.reference import ReferenceScores, blocks, reference_models
from memguard.errors import MemguardError

__all__ = ["attack_r", "logit_scale", "loss_score", "min_k_percent"]

_SUREST = 53 * math.log(2)  # 1 - p cannot be told from zero beyond this logit
_TOKENS = 1 << 20  # tokens sorted at once
_LEAST_SPREAD = 1e-6


def loss_score(loss: ArrayLike) -> Floats:
    """Minus the loss: the plainest membership score, against which others are to be measured.

    A low loss says that a record is fitted well, by memory or because it is easy; see ``lira`` or ``bavaria``
    for scores that know what the record's loss would be without it.

    Args:
        loss: ``(N,)`` losses, any unit.

    Raises:
        MemguardError: for NaN or infinite losses, or a wrong shape.

    Example:
        >>> loss_score([0.5, 2.0])
        array([-0.5, -2. ])
    """
    score: Floats = -finite(loss, "loss")
    return score


def logit_scale(probability: ArrayLike | None = None, *, loss: ArrayLike | None = None) -> Floats:
    """``log(p / (1 - p))`` of the probability that a model gives to the truth, from ``p`` or from its loss.

    On this scale the confidences of one record are near to normal (arXiv 2112.03570, section IV-C), as
    ``lira`` and ``bavaria`` assume. From a loss in nats ``p = exp(-loss)``, and the logit is
    ``-loss - log(1 - exp(-loss))`` without cancellation: prefer the loss where you have it, since a
    probability near 1 in 32 bits has lost its digits (all losses below 6e-8 become p = 1). The loss of a
    whole sequence is to be summed, not averaged, for ``p`` to be a probability; an average still gives a
    score that can be ranked.

    Args:
        probability: Any shape, in [0, 1].
        loss: Any shape, nats, not negative. Pass one of the two.

    Returns:
        Logits of the same shape, at most 53 log 2 = 36.7 (p = 1, or a loss of 0); p = 0 counts as 2.2e-308.

    Raises:
        MemguardError: for NaN, probabilities outside [0, 1], negative or infinite losses, or none or both.

    Example:
        >>> logit_scale([0.5, 0.9, 1.0]).round(2), logit_scale(loss=[0.105360515657826]).round(2)
        (array([ 0.  ,  2.2 , 36.74]), array([2.2]))
    """
    if (probability is None) == (loss is None):
        raise MemguardError(
            "logit_scale got " + ("both probability and loss" if loss is not None else "neither"),
            "one of them defines the confidence",
            "pass a probability, or loss=",
        )
    if probability is not None:
        p = np.asarray(probabilities(probability, "probability"), dtype=np.float64)
        logit = np.log(np.maximum(p, np.finfo(np.float64).tiny)) - np.log1p(-np.minimum(p, 1.0 - 2.0**-53))
        likely: Floats = np.minimum(logit, _SUREST)
        return likely
    nats = np.asarray(loss, dtype=np.float64)
    flat = finite(nats.ravel(), "loss")
    if np.any(flat < 0):
        raise MemguardError(
            f"{int(np.count_nonzero(flat < 0))} of {flat.size} values in loss are negative",
            "minus their exponential is no probability",
            "pass cross entropies in nats, or use loss_score for other losses",
        )
    nats = np.maximum(nats, 2.0**-54)
    scaled: Floats = np.minimum(-nats - np.log(-np.expm1(-nats)), _SUREST)
    return scaled


def attack_r(target: ArrayLike, reference: ArrayLike, in_mask: ArrayLike) -> ReferenceScores:
    """Share of the OUT models whose score on the record the audited model beats, ties one half (Attack-R).

    In Ye et al. (arXiv 2111.09679, section 4) a record is called a member if its loss is below a quantile of
    its losses under reference models that did not train on it; the rank within them is the score that all
    these thresholds share. (The RMIA paper writes it as the share of OUT models with ``p / p_out >= 1``, which
    counts a tie as beaten; here it counts one half, so that a model that equals all others scores 0.5.)
    With K OUT models it has only 2 K + 1 levels: at a false positive rate below about 1 / K it cannot
    separate anything. No distribution is assumed.

    Args:
        target: ``(N,)`` scores of the audited model, higher = fits better (confidence, or minus the loss).
        reference: ``(K, N)`` the same of the reference models.
        in_mask: ``(K, N)`` whether model k trained on record n; those models are left out.

    Returns:
        Shares in [0, 1]; NaN, and counted, for a record without an OUT model.

    Raises:
        MemguardError: for NaN, infinities, wrong shapes, or a mask without any OUT model.

    Example:
        >>> attack_r([2.0, 1.0], [[1.0, 1.0], [3.0, 0.0], [0.0, 9.0]], [[0, 0], [0, 0], [0, 1]]).score
        array([0.66666667, 0.75      ])
    """
    now, scores, mask = reference_models(target, reference, in_mask, needs_in=False)
    beaten, n_out = np.empty(len(now)), np.empty(len(now), dtype=np.int64)
    for at, x in blocks(scores):
        out = ~mask[:, at]
        n_out[at] = np.count_nonzero(out, axis=0)
        wins = np.count_nonzero(out & (x < now[at]), axis=0)
        beaten[at] = (wins + np.count_nonzero(out & (x <= now[at]), axis=0)) / 2
    share = np.divide(beaten, n_out, out=np.full(len(now), np.nan), where=n_out > 0)
    return ReferenceScores(score=share, n_in=len(scores) - n_out, n_out=n_out)


def min_k_percent(
    token_losses: ArrayLike,
    lengths: ArrayLike | None = None,
    *,
    mask: ArrayLike | None = None,
    k: float = 20.0,
    mu: ArrayLike | None = None,
    sigma: ArrayLike | None = None,
) -> Floats:
    """Mean log-probability of the ``k`` % least likely tokens of each sequence (Min-K%, arXiv 2310.16789).

    A sequence that a model has not seen tends to hold a few tokens that surprise it; in one that it has
    memorized even its rarest tokens are expected. With ``mu`` and ``sigma``, the mean and standard deviation
    of the log-probability over the vocabulary at each position (both under the model's own prediction), each
    token's log-probability is standardized first: Min-K%++ (arXiv 2404.02936, eq. 3). Neither knows how hard
    a sequence is without training on it: a benign sequence of common codes scores high too.

    Args:
        token_losses: Nats of each token: ``(B, T)`` padded, or ``(L,)``, the sequences one after the other.
        lengths: ``(B,)`` tokens of each sequence, counted from its first; needed for ``(L,)``.
        mask: ``(B, T)`` which tokens count, instead of ``lengths``. What lies outside may be anything.
        k: Per cent, in (0, 100]; of n tokens ``floor(k n / 100)`` are used, at least one.
        mu: Mean log-probability at each position, shape of ``token_losses``.
        sigma: Its standard deviation, same shape; values below 1e-6 count as 1e-6.

    Returns:
        ``(B,)``, larger = more likely a member; NaN for a sequence without tokens.

    Raises:
        MemguardError: for NaN or infinite tokens that count, wrong shapes, ``k`` outside (0, 100], or only one
            of ``mu`` and ``sigma``.

    Example:
        >>> min_k_percent([[1.0, 5.0, 2.0, 0.0], [3.0, 1.0, 0.0, 0.0]], [4, 2], k=50)
        array([-3.5, -3. ])
        >>> min_k_percent([1.0, 5.0, 2.0, 0.0, 3.0, 1.0], [4, 2], k=50)
        array([-3.5, -3. ])
    """
    if not 0.0 < k <= 100.0:
        raise MemguardError(f"k = {k!r}", "it is a percentage of the tokens", "pass k in (0, 100]")
    surprise = np.asarray(token_losses, dtype=np.float64)
    if (mu is None) != (sigma is None):
        raise MemguardError(
            f"only {'mu' if sigma is None else 'sigma'} was given",
            "tokens are standardized by both or by neither",
            "pass mu= and sigma=",
        )
    if mu is not None and sigma is not None:
        middle, spread = np.asarray(mu, dtype=np.float64), np.asarray(sigma, dtype=np.float64)
        if not middle.shape == spread.shape == surprise.shape:
            raise MemguardError(
                f"mu and sigma have shapes {middle.shape} and {spread.shape}, token_losses {surprise.shape}",
                "tokens would be standardized by those of others",
                "pass one value of each per token",
            )
        surprise = (surprise + middle) / np.maximum(spread, _LEAST_SPREAD)
    parts = []
    for rows in _sequences(surprise, lengths, mask):
        rows.sort(axis=1)
        n = np.count_nonzero(rows > -np.inf, axis=1)
        use = np.where(n > 0, np.maximum(np.floor(n * (k / 100.0) + 1e-9), 1), 0)
        kept = np.arange(rows.shape[1], 0, -1) <= use[:, None]
        total = np.where(kept, rows, 0.0).sum(axis=1)
        parts.append(np.divide(-total, use, out=np.full(len(n), np.nan), where=use > 0))
    return np.concatenate(parts)


def _sequences(values: Floats, lengths: ArrayLike | None, mask: ArrayLike | None) -> Iterator[Floats]:
    """Blocks of sequences, one per row, minus infinity where there is no token."""
    counts = None if lengths is None else np.asarray(lengths)
    inside = None if mask is None else np.asarray(mask)
    fits = False
    if values.ndim == 2:
        if counts is None:
            inside = np.ones(values.shape, dtype=np.bool_) if inside is None else inside
            fits = inside.shape == values.shape and inside.dtype == np.bool_
        elif inside is None and counts.shape == values.shape[:1] and counts.size:
            fits = bool(counts.min() >= 0 and counts.max() <= values.shape[1])
            inside = np.arange(values.shape[1]) < counts[:, None]
    elif values.ndim == 1 and counts is not None and inside is None and counts.ndim == 1 and counts.size:
        fits = bool(counts.min() >= 0 and counts.sum() == len(values))
    if not fits or values.size == 0:
        shapes = [None if a is None else np.asarray(a).shape for a in (lengths, mask)]
        raise MemguardError(
            f"token_losses has shape {values.shape}, lengths {shapes[0]}, mask {shapes[1]}",
            "tokens would be given to the wrong sequence",
            "pass (B, T) with lengths up to T or booleans of the same shape, or (L,) with lengths that sum to L",
        )
    finite(values if inside is None else values[inside], "token_losses", allow_empty=True)
    if inside is not None:
        step = max(1, _TOKENS // values.shape[1])
        for start in range(0, len(values), step):
            yield np.where(inside[start : start + step], values[start : start + step], -np.inf)
    elif counts is not None:
        ends = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        step = max(1, _TOKENS // max(int(counts.max()), 1))
        for start in range(0, len(counts), step):
            some = counts[start : start + step]
            rows = np.full((len(some), max(int(some.max()), 1)), -np.inf)
            rows[np.arange(rows.shape[1]) < some[:, None]] = values[ends[start] : ends[start + len(some)]]
            yield rows
