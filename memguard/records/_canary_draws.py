"""Pieces that canaries are drawn from: demographics, events, places and secrets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from memguard.errors import DataError
from memguard.records.codes import CodeNames, parse_codes, static_prefix
from memguard.records.content import Ragged

__all__ = ["body_values", "heads", "pools", "secrets", "template"]

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


def heads(
    sequences: Ragged, names: Sequence[str] | CodeNames | None, static: ArrayLike | None
) -> tuple[Ints, Bools]:
    """Leading demographic tokens of each record, and which tokens are events."""
    size = int(sequences.values.max(initial=0)) + 1
    head, event = np.zeros(len(sequences), np.int64), np.ones(size, np.bool_)
    if names is not None:
        known = names if isinstance(names, CodeNames) else parse_codes(names)
        head, event = static_prefix(sequences, known), known.event
    if static is not None:
        head = np.asarray(static, dtype=np.int64)
        if head.shape != (len(sequences),) or np.any(head < 0) or np.any(head > sequences.lengths):
            raise DataError(
                f"static of shape {head.shape} for {len(sequences)} records, or beyond their ends",
                "demographics and events would be mixed up",
                "pass static= with the number of leading demographic tokens of each record",
            )
    return head, event


def body_values(sequences: Ragged, head: Ints) -> NDArray[np.int32]:
    inner = np.arange(len(sequences.values)) - np.repeat(sequences.offsets[:-1], sequences.lengths)
    return sequences.values[inner >= np.repeat(head, sequences.lengths)]


def pools(
    sequences: Ragged,
    head: Ints,
    is_event: Bools,
    sensitive: ArrayLike | None,
    rare: ArrayLike | None,
    planted: int,
    n_rare: int,
) -> tuple[Ints, Ints]:
    """Tokens that the first and the other codes of a secret are drawn from; the first is empty without `sensitive`."""
    first = np.unique(np.asarray([] if sensitive is None else sensitive, dtype=np.int64))
    if sensitive is not None and len(first) == 0:
        raise DataError(
            "an empty sensitive=", "no sensitive code can be planted", "pass tokens, or leave it out"
        )
    if rare is None:
        pairs = np.unique(sequences.rows * len(is_event) + sequences.values)
        carriers = np.bincount(pairs % len(is_event), minlength=len(is_event))
        choice = np.flatnonzero((carriers > 0) & is_event & ~np.isin(np.arange(len(is_event)), first))
        rest = np.sort(choice[np.argsort(carriers[choice], kind="stable")[:n_rare]])
    else:
        rest = np.setdiff1d(np.asarray(rare, dtype=np.int64), first)
    both = np.concatenate([first, rest])
    if both.size and (both.min() < 0 or both.max() >= len(is_event) or not is_event[both].all()):
        raise DataError(
            f"tokens from {both.min()} to {both.max()} to be planted, of which some are no events",
            "a secret of demographics or padding would not look like a record",
            "pass event tokens of the vocabulary, with names= for all of it",
        )
    if len(rest) < planted - (len(first) > 0):
        raise DataError(
            f"{len(rest)} rare tokens for secrets of {planted}", "no code is planted twice", "raise n_rare="
        )
    return first, rest


def template(
    sequences: Ragged,
    head: Ints,
    usable: Ints,
    flat: NDArray[np.int32] | None,
    longest: int,
    rng: np.random.Generator,
) -> tuple[NDArray[np.int32], int, Ints]:
    """A record of three, how many of its tokens are demographic, and whose they are."""
    who = rng.choice(usable, 3, replace=False)
    front = sequences[who[0]][: head[who[0]]]
    one, other = (sequences[k][head[k] :] for k in who[1:])
    if flat is None:
        cut = int(rng.integers(1, min(len(one), len(other))))
        row = np.concatenate([front, one[:cut], other[cut:]])
    else:
        row = np.concatenate([front, rng.choice(flat, len(other))])
        who = np.array([who[0], -1, -1])
    return row[:longest].astype(np.int32), len(front), who


def secrets(first: Ints, rest: Ints, planted: int, n: int, rng: np.random.Generator) -> Ints:
    """``n`` different ordered secrets, each equally likely.

    Args:
        first: Tokens for the first code; empty for none of its own.
        rest: Tokens for the others, each at most once in a secret.
        planted: Codes of a secret, S.
        n: No more than there are.
        rng: Where chance comes from.

    Returns:
        ``(n, S)``.

    Example:
        >>> found = secrets(np.array([9]), np.arange(3), 3, 6, np.random.default_rng(0))
        >>> sorted(map(tuple, found.tolist()))
        [(9, 0, 1), (9, 0, 2), (9, 1, 0), (9, 1, 2), (9, 2, 0), (9, 2, 1)]
    """
    k = planted - (len(first) > 0)
    sizes = [len(first)] * (len(first) > 0) + [len(rest) - j for j in range(k)]
    space = 1
    for size in sizes:
        space *= size
    if space <= 1 << 20:
        digits = np.stack(np.unravel_index(rng.choice(space, n, replace=False), sizes), axis=1)
    else:  # so many that few come twice; those are drawn anew
        digits = np.empty((0, len(sizes)), dtype=np.int64)
        while len(digits) < n:
            more = np.stack([rng.integers(0, size, n) for size in sizes], axis=1)
            digits = np.concatenate([digits, more])
            digits = digits[np.sort(np.unique(digits, axis=0, return_index=True)[1])][:n]
    columns = [first[digits[:, 0]]] if len(first) else []
    chosen = np.empty((n, 0), dtype=np.int64)
    for j in range(k):
        digit = digits[:, (len(first) > 0) + j]
        for taken in np.sort(chosen, axis=1).T:  # the digit-th of those that are left
            digit = digit + (digit >= taken)
        chosen = np.column_stack([chosen, digit])
    return np.column_stack([*columns, *(rest[column] for column in chosen.T)]).astype(np.int64)
