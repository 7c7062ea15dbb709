"""Canaries in the form of the items of the user's own data set."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset

from memguard.capture.fetch import fetch
from memguard.errors import DataError
from memguard.records.canaries import Canaries, FeatureCanaries

__all__ = ["CanaryItems", "MakeItem", "WithCanaries", "contains_canaries", "item_maker"]

MakeItem: TypeAlias = "Callable[[Any, Any], Any]"

_LOOKED_AT = 16  # items of the user's that tell the form
_CODES = ("codes", "code", "input_ids", "tokens", "concept_ids")
_IDS = ("patient_id", "patient_ids", "subject_id", "subject_ids")
_FEATURES, _LABELS = ("x", "features", "inputs"), ("y", "label", "labels", "target")
_HOW = "pass make_item= with a function (canary, patient id) -> item"


class CanaryItems(Dataset[Any]):
    """Canaries as items.

    Args:
        canaries: Of sequences or of a table.
        rows: ``(k,)`` which of them.
        make_item: From the codes ``(T,)`` of a canary, or its features and label, and its patient id, to an item.
        ids: ``(k,)`` of patients that are nobody.
    """

    def __init__(
        self,
        canaries: Canaries | FeatureCanaries,
        rows: ArrayLike,
        make_item: MakeItem,
        ids: Sequence[Any],
    ) -> None:
        self.canaries, self.rows = canaries, np.asarray(rows, dtype=np.int64)
        self.make_item, self.ids = make_item, list(ids)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Any:
        return self.make_item(_content(self.canaries, int(self.rows[i])), self.ids[i])


class WithCanaries(ConcatDataset[Any]):
    """The user's records, then the canaries. The user's data set is only read.

    Args:
        dataset: The user's.
        items: The canaries to train on.
        patient_ids: Of all records; ``None`` where the user's records have none.

    Attributes:
        memguard_canaries: True: whoever delivers data can ask for it.
        canary_rows: ``(k,)`` positions of the canaries.
        canaries: All of them, with their coins.
    """

    memguard_canaries = True

    def __init__(self, dataset: Dataset[Any], items: CanaryItems, patient_ids: NDArray[Any] | None) -> None:
        super().__init__([dataset, items])
        n = len(dataset)  # type: ignore[arg-type]
        self.canary_rows, self.canaries = np.arange(n, n + len(items)), items.canaries
        if patient_ids is not None:
            self.patient_ids = patient_ids


def contains_canaries(data: Any) -> bool:
    """Whether a data set, a loader or a collection of them holds canaries somewhere inside.

    Example:
        >>> from torch.utils.data import DataLoader, Subset
        >>> data = WithCanaries([1, 2], CanaryItems(None, [], None, []), None)
        >>> contains_canaries({"a": [DataLoader(Subset(data, [0]))]}), contains_canaries([1, 2])
        (True, False)
    """
    waiting, seen = [data], set()
    while waiting:
        one = waiting.pop()
        if getattr(one, "memguard_canaries", False) is True:
            return True
        if id(one) in seen or isinstance(one, str | bytes | Tensor | np.ndarray):
            continue
        seen.add(id(one))
        inner = [getattr(one, name, None) for name in ("dataset", "datasets", "iterables")]
        if isinstance(one, Mapping):
            inner += one.values()
        elif isinstance(
            one, list | tuple
        ):  # of loaders or data sets; a list of records is not walked through
            inner += [part for part in one if hasattr(part, "dataset") or hasattr(part, "datasets")]
            inner += [part for part in one if isinstance(part, Mapping)] if len(one) <= _LOOKED_AT else []
            inner += [part for part in one if hasattr(part, "memguard_canaries")]
        waiting += [part for part in inner if part is not None and not callable(part)]
    return False


def item_maker(
    dataset: Any,
    canaries: Canaries | FeatureCanaries,
    *,
    field: str | tuple[str, str] | None,
    pad: int | None,
) -> MakeItem:
    """How a canary becomes an item like those of a data set: a tensor, a pair, a dictionary or a dataclass.

    Args:
        dataset: The user's; a few items are looked at.
        canaries: To be given that form.
        field: Entry of a dictionary or dataclass that holds the codes; of a table, the entries of features and label.
        pad: The token that fills short sequences, where all items have one length.

    Raises:
        DataError: The form is not known, or an entry of the item cannot be made for a canary.
    """
    n = min(_LOOKED_AT, len(dataset))
    if n == 0:
        raise DataError("a training data set without records", "the form of an item is not known", _HOW)
    examples = fetch(dataset, np.arange(n), collate_fn=_alone, batch_size=n)[0]
    first = examples[0]
    if isinstance(canaries, FeatureCanaries):
        return _Row(first, canaries, field if isinstance(field, tuple) else None)
    return _Sequence(examples, canaries, field if isinstance(field, str) else None, pad)


class _Sequence:
    """Codes in an item."""

    def __init__(
        self, examples: Sequence[Any], canaries: Canaries, field: str | None, pad: int | None
    ) -> None:
        self.like = first = examples[0]
        self.field = (
            None if _is_codes(first) else _one_of(_entries(first), (field,) if field else _CODES, "codes")
        )
        codes = [_entries(one)[self.field] if self.field else one for one in examples]
        if not all(map(_is_codes, codes)):
            raise DataError(
                f"codes of type {type(codes[0]).__name__}, {getattr(codes[0], 'dtype', '')}",
                "a canary is a sequence of whole numbers",
                _HOW,
            )
        lengths, longest = {len(one) for one in codes}, int(canaries.sequences.lengths.max(initial=0))
        same = len(codes) > 1 and len(lengths) == 1 and set(canaries.sequences.lengths.tolist()) != lengths
        self.width = lengths.pop() if same else None
        self.pad = pad
        if self.width is not None and (pad is None or longest > self.width):
            raise DataError(
                f"items of {self.width} codes each and canaries of up to {longest}",
                "a canary must look like any other record",
                "pass pad= with the token that fills short sequences, and make canaries no longer than the items",
            )
        self.others = {} if self.field is None else self._others(examples, codes)

    def _others(self, examples: Sequence[Any], codes: Sequence[Any]) -> dict[str, str]:
        """What each other entry of the item is made from."""
        kinds = {}
        for name in _entries(examples[0]):
            if name == self.field:
                continue
            values = [_entries(one)[name] for one in examples]
            if name in _IDS:
                kinds[name] = "id"
            elif all(value is None for value in values):
                kinds[name] = "none"
            elif _all(values, codes, lambda value, one: np.array_equal(value, one)):
                kinds[name] = "codes"
            elif _all(values, codes, lambda value, one: np.array_equal(value, one != self.pad)):
                kinds[name] = "mask"
            else:
                raise DataError(
                    f"an item whose entry {name!r} is neither an id nor told by its codes",
                    "a canary would be known by it, or lack it",
                    _HOW,
                )
        return kinds

    def __call__(self, content: Any, patient_id: Any) -> Any:
        codes = np.asarray(content, dtype=np.int64)
        if self.width is not None:
            codes = np.concatenate([codes, np.full(self.width - len(codes), self.pad, dtype=np.int64)])
        if self.field is None:
            return _as(self.like, codes)
        entries = _entries(self.like)
        made = {self.field: _as(entries[self.field], codes)}
        for name, kind in self.others.items():
            if kind == "id":
                made[name] = _id_like(entries[name], patient_id)
            else:
                value = {"codes": codes, "mask": codes != self.pad, "none": None}[kind]
                made[name] = None if value is None else _as(entries[name], value)
        return _rebuilt(self.like, made)


class _Row:
    """Features and label in an item."""

    def __init__(self, first: Any, canaries: FeatureCanaries, field: tuple[str, str] | None) -> None:
        self.like = first
        self.keys: tuple[Any, ...] = ()
        if isinstance(first, Tensor | np.ndarray):
            parts = [first]
        elif isinstance(first, tuple | list) and not hasattr(first, "_fields"):
            parts, self.keys = list(first), tuple(range(len(first)))
        else:
            entries = _entries(first)
            wanted = field or (_one_of(entries, _FEATURES, "features"), _one_of(entries, _LABELS, "labels"))
            more = sorted(set(map(str, entries)) - set(wanted) - set(_IDS))
            if more or not set(wanted) <= set(entries):
                raise DataError(
                    f"an item with the entries {', '.join(map(str, entries))}",
                    "a canary has features and a label",
                    f"{_HOW}, or field=(features, label) where there is nothing else",
                )
            parts, self.keys = [entries[name] for name in wanted], wanted
        self.parts = parts
        if len(parts) != (2 if len(canaries.y) else 1) or np.shape(parts[0]) != canaries.x.shape[1:]:
            raise DataError(
                f"items of {len(parts)} parts, the first of shape {tuple(np.shape(parts[0]))}, and canaries with "
                f"features of shape {canaries.x.shape[1:]} {'and labels' if len(canaries.y) else 'without labels'}",
                "a canary must look like any other record",
                _HOW,
            )

    def __call__(self, content: Any, patient_id: Any) -> Any:
        made = [_as(part, value) for part, value in zip(self.parts, content, strict=True)]
        if not self.keys:
            return made[0]
        if isinstance(self.like, tuple | list):
            return type(self.like)(made)
        entries = _entries(self.like)
        ids = {name: _id_like(entries[name], patient_id) for name in entries if name in _IDS}
        return _rebuilt(self.like, {**dict(zip(self.keys, made, strict=True)), **ids})


def _content(canaries: Canaries | FeatureCanaries, row: int) -> Any:
    if isinstance(canaries, Canaries):
        return canaries.sequences[row]
    return (canaries.x[row], canaries.y[row]) if len(canaries.y) else (canaries.x[row],)


def _alone(items: list[Any]) -> list[Any]:
    return items


def _is_codes(item: Any) -> bool:
    if not isinstance(item, Tensor | np.ndarray) or item.ndim != 1:
        return False
    return np.asarray(item).dtype.kind in "iu"


def _entries(item: Any) -> dict[Any, Any]:
    """Of a dictionary, a dataclass or a named tuple."""
    if isinstance(item, Mapping):
        return dict(item)
    if dataclasses.is_dataclass(item) and not isinstance(item, type):
        return {part.name: getattr(item, part.name) for part in dataclasses.fields(item)}
    if hasattr(item, "_asdict"):
        return dict(item._asdict())
    raise DataError(
        f"items of type {type(item).__name__}", "a canary cannot be given a form that is not known", _HOW
    )


def _rebuilt(like: Any, made: dict[Any, Any]) -> Any:
    if isinstance(like, Mapping):
        return type(like)(**made) if type(like) is not dict else made
    if dataclasses.is_dataclass(like) and not isinstance(like, type):
        return dataclasses.replace(like, **made)
    return like._replace(**made)


def _one_of(entries: Mapping[Any, Any], names: Sequence[str], what: str) -> str:
    found = [name for name in names if name in entries]
    if len(found) != 1:
        raise DataError(
            f"an item with the entries {', '.join(map(str, entries))}",
            f"it is not certain which of them holds the {what}",
            "pass field= with its name",
        )
    return found[0]


def _all(values: Sequence[Any], codes: Sequence[Any], same: Callable[[Any, Any], bool]) -> bool:
    arrays = [np.asarray(value) if isinstance(value, Tensor | np.ndarray) else None for value in values]
    return all(
        value is not None and value.ndim == 1 and same(value, np.asarray(one))
        for value, one in zip(arrays, codes, strict=True)
    )


def _as(like: Any, value: Any) -> Any:
    """A value with the type that the user's has."""
    if isinstance(like, Tensor):
        return torch.as_tensor(np.array(value)).to(like.dtype)
    if isinstance(like, np.ndarray | np.generic):
        made = np.asarray(value).astype(like.dtype)
        return made if isinstance(like, np.ndarray) else made[()]
    return type(like)(value)


def _id_like(like: Any, patient_id: Any) -> Any:
    return _as(like, patient_id) if isinstance(like, Tensor | np.ndarray | np.generic) else patient_id
