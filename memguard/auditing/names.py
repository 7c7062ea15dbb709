"""What the tokens of a model are called, as far as the user or his objects say it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memguard.errors import DataError

__all__ = ["names_of"]

_ATTRIBUTES = ("vocabulary", "vocab", "code_vocabulary", "tokenizer", "token_names", "code_names")
_INSIDE = ("sequences", "dataset", "train_dataset", "metadata", "config")


def names_of(vocabulary: Any, owners: Sequence[Any] = (), *, size: int | None = None) -> tuple[str, ...]:
    """Name of each token.

    Args:
        vocabulary: Names in order; a mapping from name to token; an object with ``names`` (as
            `memguard.records.Vocabulary`), ``get_vocab()`` (as tokenizers of Hugging Face) or ``token_to_id``;
            ``"auto"`` to look for one on the owners; ``None`` for none.
        owners: Where ``"auto"`` looks: datamodule, data sets, module.
        size: Tokens of the model: a vocabulary of another size is refused, or on ``"auto"`` passed over.

    Returns:
        Names, ``tok<i>`` for a token without one; empty where none are known.

    Raises:
        DataError: If it cannot be read, or does not fit the model.

    Example:
        >>> names_of({"PAD": 0, "LAB//hdl": 2}, size=3)
        ('PAD', 'tok1', 'LAB//hdl')
    """
    if vocabulary is None:
        return ()
    if isinstance(vocabulary, str):
        if vocabulary != "auto":
            raise DataError(
                f"vocabulary={vocabulary!r}",
                "codes would have no names",
                "pass the names of all tokens, in order",
            )
        for found in _candidates(owners):
            names = _read(found)
            if names and (size is None or len(names) == size):
                return names
        return ()
    names = _read(vocabulary)
    if not names:
        empty = hasattr(vocabulary, "__len__") and not len(vocabulary)
        raise DataError(
            "an empty vocabulary" if empty else f"a vocabulary of type {type(vocabulary).__name__}",
            "codes would have no names",
            "pass the names of all tokens in order, or a mapping from name to token; None for no names",
        )
    if size is not None and len(names) > size:
        raise DataError(
            f"{len(names)} names for a model of {size} tokens",
            "the vocabulary is not the model's: every code would be called by a wrong name",
            "pass the vocabulary that the model was trained with",
        )
    return (*names, *(f"tok{i}" for i in range(len(names), size or 0)))


def _candidates(owners: Sequence[Any]) -> list[Any]:
    found = []
    for owner in owners:
        for inner in (owner, *(getattr(owner, name, None) for name in _INSIDE)):
            found += [getattr(inner, name, None) for name in _ATTRIBUTES]
    return [one for one in found if one is not None]


def _read(given: Any) -> tuple[str, ...]:
    for name in ("names", "get_vocab", "token_to_id", "code_to_index", "stoi"):
        inner = getattr(given, name, None)
        if inner is not None and not isinstance(given, Mapping):
            return _read(inner() if callable(inner) else inner)
    if isinstance(given, Mapping):
        pairs = [(key, value) for key, value in given.items()]
        if pairs and all(isinstance(key, int) for key, _ in pairs):
            pairs = [(value, key) for key, value in pairs]
        if not pairs or not all(isinstance(key, str) and isinstance(value, int) for key, value in pairs):
            return ()
        names = {value: key for key, value in pairs if value >= 0}
        return tuple(names.get(i, f"tok{i}") for i in range(max(names, default=-1) + 1))
    if isinstance(given, Sequence) and not isinstance(given, str | bytes):
        return tuple(given) if all(isinstance(one, str) for one in given) else ()
    return ()
