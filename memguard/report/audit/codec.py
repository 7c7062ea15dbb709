"""Dataclasses to JSON and back by their own type hints, so that no field can be forgotten in one direction."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, Union

from memguard.errors import DataError
from memguard.report.data import WatchReport, plain

__all__ = ["decode", "encode", "hints"]

_T = TypeVar("_T")


def encode(value: Any) -> Any:
    """Primitives that JSON has; numbers that are not finite become ``None``.

    Args:
        value: A dataclass, a mapping, a sequence or a primitive; numpy scalars are unwrapped.

    Example:
        >>> from memguard.attacks.estimate import Estimate
        >>> encode(Estimate(value=.5, low=float("-inf"), high=.6, n=9, method="x"))["low"] is None
        True
    """
    if isinstance(value, WatchReport):
        return json.loads(value.to_json())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {_key(key): encode(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(one) for one in value]
    return plain(value)


def _key(key: object) -> str:
    return repr(float(key)) if isinstance(key, float) else str(key)


def decode(kind: type[_T], value: Any) -> _T:
    """What `encode` wrote, as the given type. Keys that the type does not know are left out.

    Args:
        kind: A dataclass, or any type that one of its fields has.
        value: What JSON held.

    Raises:
        DataError: If the value has not the form of the type.

    Example:
        >>> from memguard.attacks.estimate import Estimate
        >>> decode(Estimate, encode(Estimate(value=.5, low=.4, high=.6, n=9, method="x"))).high
        0.6
    """
    try:
        result: _T = _decode(kind, value)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"a report that cannot be read ({error!r})",
            "its numbers may be cut off or belong to something else",
            "write it again with AuditReport.to_json",
        ) from error
    return result


@functools.cache
def hints(kind: type) -> dict[str, Any]:
    """Field -> resolved type of a dataclass, in order.

    Example:
        >>> from memguard.attacks.estimate import Estimate
        >>> hints(Estimate)["n"]
        <class 'int'>
    """
    return typing.get_type_hints(kind)


def _decode(kind: Any, value: Any) -> Any:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return _one_of(inner, value)
    if origin is Literal:
        if value not in inner:
            raise ValueError(f"{value!r} is none of {inner}")
        return value
    if kind is WatchReport:
        return WatchReport.from_json(json.dumps(value))
    if dataclasses.is_dataclass(kind):
        known = {name: one for name, one in hints(typing.cast(type, kind)).items() if name in value}
        fields = {name: _decode(one, value[name]) for name, one in known.items()}
        return typing.cast(type, kind)(**fields)
    if origin is not None and issubclass(origin, Mapping):
        return {inner[0](key): _decode(inner[1], one) for key, one in value.items()}
    if origin is not None and issubclass(origin, (Sequence, tuple)):
        return _row(inner, origin, value)
    if kind is float:
        return math.nan if value is None else _number(value)
    if type(value) is not kind and kind is not Any:
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value


def _row(inner: tuple[Any, ...], origin: type, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is no list")
    if origin is tuple and inner[-1] is not Ellipsis:
        return tuple(_decode(kind, one) for kind, one in zip(inner, value, strict=True))
    return tuple(_decode(inner[0], one) for one in value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{value!r} is no number")
    return float(value)


def _one_of(kinds: tuple[Any, ...], value: Any) -> Any:
    """The member of a union that fits; primitives keep the type that JSON gave them."""
    if value is None:
        if type(None) in kinds:
            return None
        return math.nan if float in kinds else _decode(kinds[0], value)
    if isinstance(value, (dict, list)):
        built = [kind for kind in kinds if dataclasses.is_dataclass(kind) or typing.get_origin(kind)]
        if built:
            return _decode(built[0], value)
    if type(value) in kinds:
        return value
    if float in kinds:
        return _number(value)
    raise TypeError(f"{value!r} is none of {kinds}")
