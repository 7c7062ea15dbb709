"""The JSON Schema of the report: made from the dataclasses, shipped as a file, and checked on both ways."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import re
import types
import typing
import warnings
from collections.abc import Mapping
from importlib import resources
from typing import Any, Literal, Union

from memguard.errors import DataError, MemguardWarning
from memguard.report.audit.codec import hints
from memguard.report.data import SCHEMA as WATCH
from memguard.report.data import WatchReport

__all__ = ["FILE", "build", "check", "shipped"]

FILE = "schema/audit-1.json"


def build() -> dict[str, Any]:
    """The schema, from the type hints and docstrings of the dataclasses.

    The shipped file is this, printed: ``python -m memguard.report.audit.schema``. A test compares them.

    Example:
        >>> build()["properties"]["schema"]
        {'const': 'memguard.audit/1'}
    """
    from memguard.report.audit.data import SCHEMA, AuditReport

    parts: dict[str, Any] = {}
    body = _object(AuditReport, parts)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:memguard:audit:1",
        "title": "memguard audit report",
        **body,
        "required": ["schema", *body["required"]],
        "properties": {"schema": {"const": SCHEMA}, **body["properties"]},
        "$defs": dict(sorted(parts.items())),
    }


def _object(kind: type, parts: dict[str, Any]) -> dict[str, Any]:
    said = _attributes(kind)
    properties: dict[str, Any] = {}
    required: list[str] = []
    for one in dataclasses.fields(kind):
        text = {"description": said[one.name]} if one.name in said else {}
        properties[one.name] = {**text, **_form(hints(kind)[one.name], parts)}
        if one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING:
            required.append(one.name)
    return {"type": "object", "required": required, "properties": properties}


def _attributes(kind: type) -> dict[str, str]:
    """Name -> text of the docstring's block of attributes, without its markup."""
    block = re.search(r"^Attributes:\n(.*?)(?=^\S|\Z)", inspect.getdoc(kind) or "", re.DOTALL | re.MULTILINE)
    found = re.findall(
        r"^    (\w+): (.*?)(?=^    \w|\Z)", block[1] if block else "", re.DOTALL | re.MULTILINE
    )
    return {
        name: re.sub(r"\s+", " ", text).strip().replace("`", "").replace("None", "null")
        for name, text in found
    }


def _form(kind: Any, parts: dict[str, Any]) -> dict[str, Any]:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return {"anyOf": [_form(one, parts) for one in inner]}
    if origin is Literal:
        return {"enum": list(inner)}
    if kind is WatchReport:
        return {"type": "object", "required": ["schema"], "properties": {"schema": {"const": WATCH}}}
    if dataclasses.is_dataclass(kind):
        name = typing.cast(type, kind).__name__
        if name not in parts:
            parts[name] = {}
            parts[name] = _object(typing.cast(type, kind), parts)
        return {"$ref": f"#/$defs/{name}"}
    if origin is not None and issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": _form(inner[1], parts)}
    if origin is tuple and inner[-1] is not Ellipsis:
        each = [_form(one, parts) for one in inner]
        return {"type": "array", "prefixItems": each, "minItems": len(each), "maxItems": len(each)}
    if origin is not None:
        return {"type": "array", "items": _form(inner[0], parts)}
    return dict(_PRIMITIVES[kind])


_PRIMITIVES: dict[Any, dict[str, Any]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    bool: {"type": "boolean"},
    float: {"type": ["number", "null"]},
    type(None): {"type": "null"},
}


@functools.cache
def shipped() -> dict[str, Any]:
    """The schema that is in the package."""
    text = resources.files("memguard.report").joinpath(FILE).read_text(encoding="utf-8")
    body: dict[str, Any] = json.loads(text)
    return body


def check(body: Any) -> None:
    """Refuse what the shipped schema does not allow.

    Without ``jsonschema`` a `MemguardWarning` says that nothing was checked; reading still checks every type.

    Args:
        body: What JSON held, or would hold.

    Raises:
        DataError: If it does not keep to the schema; the first place where it does not is named.

    Example:
        >>> check({"schema": "memguard.audit/1"})
        Traceback (most recent call last):
        ...
        memguard.errors.DataError: a report that does not keep to its schema at the top: 'version' is a required ...
    """
    try:
        from jsonschema import Draft202012Validator
        from jsonschema.exceptions import best_match
    except ImportError as error:
        warning = MemguardWarning(
            f"the report was not compared with its schema ({error})",
            "a file that another program wrote or changed could be misread",
            "pip install memguard-ehr[audit]",
        )
        warnings.warn(warning, stacklevel=3)
        return
    wrong = best_match(Draft202012Validator(shipped()).iter_errors(body))
    if wrong is not None:
        place = ".".join(str(one) for one in wrong.absolute_path) or "the top"
        raise DataError(
            f"a report that does not keep to its schema at {place}: {wrong.message[:300]}",
            "its numbers may be cut off or belong to something else",
            "write it with AuditReport.to_json, and change it only through AuditReport",
        )


if __name__ == "__main__":
    print(json.dumps(build(), indent=1))
