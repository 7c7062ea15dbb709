"""Plausible patients who never lived, put into the training data by fair coins to measure what a model learns by heart.

A canary of code sequences has the demographics of one patient, events of two others, and a *secret*: rare codes at late
places, drawn at random from a known number of equally likely ones. Other secrets in the same canary, drawn alike and
never trained on, are its alternatives: `memguard.attacks.exposure` ranks the loss of the canary among theirs. The coins
that decided which canaries were included are what `memguard.attacks.epsilon_one_run` guesses.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import perm

import numpy as np
from numpy.typing import ArrayLike, NDArray

from memguard.errors import DataError
from memguard.records._canary_draws import body_values, heads, pools, secrets, template
from memguard.records._canary_sets import Canaries, FeatureCanaries
from memguard.records.codes import CodeNames
from memguard.records.content import Ragged

__all__ = ["Canaries", "FeatureCanaries", "coin_flips", "make_canaries", "make_feature_canaries"]

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

_TRIES = 200  # draws of one canary before the records are called too few


def make_canaries(
    sequences: Ragged,
    m: int,
    *,
    names: Sequence[str] | CodeNames | None = None,
    static: ArrayLike | None = None,
    sensitive: ArrayLike | None = None,
    rare: ArrayLike | None = None,
    planted: int = 3,
    n_rare: int = 64,
    events: str = "patients",
    n_alternatives: int = 255,
    seed: int = 0,
) -> Canaries:
    """Draw canaries from the records of members.

    Demographics of one record, the first events of a second, the last events of a third from the same place on: the
    length is as in the data. Then ``planted`` events of the second half give way to the secret.

    Args:
        sequences: ``N`` sequences of members, without padding, as the training data hold them.
        m: How many canaries; half of them, by fair coins, will be included. 200 or more let `epsilon_one_run` show
            something: it cannot exceed about ``log(m)`` even where everything is memorized.
        names: Name of each token; tells demographics and events apart. Without names all tokens are events.
        static: ``(N,)`` number of leading demographic tokens; overrides what ``names`` says.
        sensitive: Tokens, such as ``np.flatnonzero(table.label(names).of("hiv"))``: the first code of each secret is
            one of these.
        rare: Tokens that the other codes are drawn from; the ``n_rare`` events that the fewest records carry, one at
            least, where not given.
        planted: Codes of a secret.
        n_rare: See ``rare``.
        events: ``"patients"`` for pieces of records; ``"codes"`` for events drawn one by one as often as they occur,
            which is less plausible and holds no piece of a record.
        n_alternatives: Secrets drawn beside each canary's own.
        seed: The same seed gives the same canaries and the same coins. Keep it as confidential as the file.

    Returns:
        The canaries; none is a copy of a record or of another canary.

    Raises:
        DataError: Too few records, events or equally likely secrets.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> records = Ragged.from_lists([rng.integers(1, 40, size=12).tolist() for _ in range(50)])
        >>> canaries = make_canaries(records, 20, n_alternatives=7, seed=1)
        >>> len(canaries), int(canaries.sequences.lengths.max()), len(canaries.alternatives([0, 3]))
        (20, 12, 14)
        >>> at = canaries.sequences.offsets[:-1, None] + canaries.place
        >>> bool(np.all(canaries.sequences.values[at] == canaries.secret))
        True
    """
    if m < 1 or planted < 1 or n_alternatives < 0 or events not in ("patients", "codes"):
        raise DataError(
            f"m = {m}, planted = {planted}, n_alternatives = {n_alternatives}, events = {events!r}",
            "there would be no canary",
            "pass m >= 1, planted >= 1, n_alternatives >= 0 and events 'patients' or 'codes'",
        )
    head, is_event = heads(sequences, names, static)
    body = sequences.lengths - head
    usable = np.flatnonzero(body >= max(2 * planted, 2))
    if len(usable) < 3:
        raise DataError(
            f"{len(usable)} records with {max(2 * planted, 2)} events or more",
            "a canary is made of three",
            "pass more records, or lower planted=",
        )
    first, rest = pools(sequences, head, is_event, sensitive, rare, planted, n_rare)
    space = (len(first) or 1) * perm(len(rest), planted - (len(first) > 0))
    if space < n_alternatives + 1:
        raise DataError(
            f"{space} equally likely secrets for a canary and {n_alternatives} alternatives",
            "each may be drawn once",
            "pass more tokens in rare= or sensitive=, raise planted= or n_rare=, or lower n_alternatives=",
        )
    rng = np.random.default_rng([seed, 1])
    taken = {sequences[i].tobytes() for i in range(len(sequences))}
    made: list[NDArray[np.int32]] = []
    drawn = np.empty((m, n_alternatives + 1, planted), dtype=np.int64)
    place, donor = np.empty((m, planted), dtype=np.int64), np.empty((m, 3), dtype=np.int64)
    longest = int(sequences.lengths.max())
    flat = body_values(sequences, head) if events == "codes" else None
    for i in range(m):
        for _ in range(_TRIES):
            row, n_static, who = template(sequences, head, usable, flat, longest, rng)
            late = (
                n_static
                + (len(row) - n_static) // 2
                + np.arange(len(row) - n_static - (len(row) - n_static) // 2)
            )
            late = late[is_event[row[late]]]
            if len(late) < planted:
                continue
            where = np.sort(rng.choice(late, planted, replace=False))
            drawn[i] = secrets(first, rest, planted, n_alternatives + 1, rng)
            row[where] = drawn[i, 0]
            if row.tobytes() not in taken:
                break
        else:
            raise DataError(
                f"{_TRIES} draws that gave no canary",
                "too few events stand in the second half of the records, or every draw was a copy",
                "pass more or longer records, or lower planted=",
            )
        taken.add(row.tobytes())
        made.append(row)
        place[i], donor[i] = where, who
    return Canaries(
        sequences=Ragged.from_lengths(np.concatenate(made), [len(row) for row in made]),
        included=coin_flips(m, seed),
        place=place,
        secret=drawn[:, 0],
        others=drawn[:, 1:],
        space=space,
        donor=donor,
        seed=seed,
    )


def make_feature_canaries(
    x: ArrayLike,
    y: ArrayLike | None = None,
    *,
    m: int,
    kind: str = "mislabelled",
    n_alternatives: int = 255,
    seed: int = 0,
) -> FeatureCanaries:
    """Draw canary rows for a table from the rows of members.

    Args:
        x: ``(N, ...)`` features of members.
        y: ``(N,)`` their labels.
        m: How many canaries; half of them, by fair coins, will be included.
        kind: ``"mislabelled"``: a member's features with a label that is not his, drawn as often as it occurs among
            the rows that have another. ``"shuffled"``: each feature from a row of its own, so that every value occurs
            and their combination does not; the label from one more row.
        n_alternatives: Rows drawn alike, never trained on, for all canaries.
        seed: The same seed gives the same canaries and the same coins.

    Returns:
        The canaries; none is a copy of a member's features and label, or of another canary.

    Raises:
        DataError: Too few rows or labels.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(100, 4))
        >>> y = (x[:, 0] > 0).astype(int)
        >>> canaries = make_feature_canaries(x, y, m=10, n_alternatives=20)
        >>> bool(np.all(canaries.y != y[canaries.donor])), canaries.other_x.shape
        (True, (20, 4))
    """
    features, labels = np.asarray(x), None if y is None else np.asarray(y)
    n, need = len(features), m + n_alternatives
    if m < 1 or n_alternatives < 0 or kind not in ("mislabelled", "shuffled"):
        raise DataError(
            f"m = {m}, n_alternatives = {n_alternatives}, kind = {kind!r}",
            "there would be no canary",
            "pass m >= 1, n_alternatives >= 0 and kind 'mislabelled' or 'shuffled'",
        )
    if labels is not None and labels.shape != (n,):
        raise DataError(
            f"labels of shape {labels.shape} for {n} rows",
            "labels would go to the wrong row",
            "pass one for each row",
        )
    if kind == "mislabelled" and (labels is None or len(np.unique(labels)) < 2 or n < need):
        raise DataError(
            f"{n} rows with {0 if labels is None else len(np.unique(labels))} different labels",
            f"{need} rows are given a label that is not theirs",
            "pass y= with two labels or more, lower m= or n_alternatives=, or ask for kind='shuffled'",
        )
    rng = np.random.default_rng([seed, 1])
    flat = features.reshape(n, -1)
    taken = {_key(flat[i], None if labels is None else labels[i]) for i in range(n)}
    order = rng.permutation(n) if kind == "mislabelled" else np.full(need + _TRIES, -1)
    kept: list[tuple[int, NDArray[np.generic], np.generic | None]] = []
    for donor in order.tolist():
        row, label = _row(flat, labels, donor, rng)
        key = _key(row, label)
        if key not in taken and len(kept) < need:
            taken.add(key)
            kept.append((donor, row, label))
    if len(kept) < need:
        raise DataError(
            f"{len(kept)} of {need} canaries that are no copies",
            "a copy of a member is no canary",
            "pass more rows, or lower m= or n_alternatives=",
        )
    made = np.stack([row for _, row, _ in kept]).reshape(need, *features.shape[1:])
    named = np.array([label for _, _, label in kept]) if labels is not None else np.zeros(0)
    return FeatureCanaries(
        x=made[:m],
        y=named[:m],
        included=coin_flips(m, seed),
        other_x=made[m:],
        other_y=named[m:],
        donor=np.array([donor for donor, _, _ in kept[:m]], dtype=np.int64),
        kind=kind,
        seed=seed,
    )


def _row(
    flat: NDArray[np.generic], labels: NDArray[np.generic] | None, donor: int, rng: np.random.Generator
) -> tuple[NDArray[np.generic], np.generic | None]:
    """One drawn row with its label; without a donor each feature comes from a row of its own."""
    if donor < 0:
        row = flat[rng.integers(0, len(flat), flat.shape[1]), np.arange(flat.shape[1])]
        return row, None if labels is None else labels[rng.integers(len(flat))]
    assert labels is not None
    return flat[donor], rng.choice(labels[labels != labels[donor]])


def _key(row: NDArray[np.generic], label: np.generic | None) -> tuple[bytes, object]:
    return row.tobytes(), None if label is None else label.item()


def coin_flips(m: int, seed: int) -> Bools:
    """Fair and independent, from a stream of their own: what a canary is like says nothing of its coin.

    Example:
        >>> coin_flips(6, 3).tolist() == coin_flips(6, 3).tolist(), coin_flips(4000, 0).mean().round(1)
        (True, np.float64(0.5))
    """
    return np.asarray(np.random.default_rng([seed, 2]).integers(0, 2, size=m) == 1, dtype=np.bool_)
