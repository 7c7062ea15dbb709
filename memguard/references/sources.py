"""What a module's code says: a change of code is a change of the model, a change of a comment is not."""

from __future__ import annotations

import ast
import hashlib
import inspect
import re
import sys
import textwrap
from collections.abc import Iterable
from types import CodeType, FunctionType
from typing import Any

__all__ = ["code_of", "plain"]

# Libraries: their versions stand for their code.
_LIBRARIES = frozenset(
    {
        "lightning",
        "lightning_fabric",
        "lightning_utilities",
        "memguard",
        "numpy",
        "pytorch_lightning",
        "scipy",
        "torch",
        "torchmetrics",
        "transformers",
    }
) | set(sys.stdlib_module_names) - {"__main__"}
_PLAIN = (bool, int, float, str, bytes, type(None))
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def code_of(things: Iterable[Any]) -> dict[str, str]:
    """A hash of the code of classes and functions, and of what of their own modules they use.

    Args:
        things: Classes (with their bases) and functions. Those of libraries are left out.

    Returns:
        Qualified name -> hash of its syntax tree without comments and docstrings, or of its bytecode where there is
        no source. Plain constants that are used (a learning rate in capitals) stand by their value.

    Guarantees:
        Names that a function looks up itself are followed into functions, classes and constants of the same
        module or of others of the user's; what is reached through an attribute or an object is not.

    Example:
        >>> code_of([textwrap.dedent])  # of the standard library
        {}
    """
    found: dict[str, str] = {}
    waiting = list(things)
    while waiting:
        one = inspect.unwrap(waiting.pop()) if callable(waiting[-1]) else waiting.pop()
        one = getattr(one, "__func__", one)
        if isinstance(one, type):
            waiting += [base for base in one.__mro__[1:] if not _of_library(base)]
        if not isinstance(one, type | FunctionType) or _of_library(one):
            continue
        name = f"{one.__module__}.{one.__qualname__}"
        digest = _hash(_text(one))
        if found.get(name) == digest:
            continue
        # Two lambdas of one line have one name.
        found[name if name not in found else f"{name}#{digest[:6]}"] = digest
        for function in _functions(one):
            _follow(function, waiting, found)
    return found


def plain(value: Any) -> Any:
    """A value as JSON has it: primitives as they are, everything else as its text without addresses.

    Example:
        >>> plain({"lr": 0.1, "sizes": (1, 2), "act": object()})
        {'lr': 0.1, 'sizes': [1, 2], 'act': '<object object>'}
    """
    if isinstance(value, dict) or hasattr(value, "items"):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, float | int | str | bool | type(None)):
        return value
    return _ADDRESS.sub("", repr(value))[:500]


def _of_library(thing: Any) -> bool:
    return str(getattr(thing, "__module__", "builtins")).partition(".")[0] in _LIBRARIES


def _functions(one: type | FunctionType) -> list[FunctionType]:
    if isinstance(one, FunctionType):
        return [one]
    members: list[Any] = []
    for value in vars(one).values():
        members += (
            [value.fget, value.fset] if isinstance(value, property) else [getattr(value, "__func__", value)]
        )
    return [
        m for m in (inspect.unwrap(m) if callable(m) else m for m in members) if isinstance(m, FunctionType)
    ]


def _follow(function: FunctionType, waiting: list[Any], found: dict[str, str]) -> None:
    named = set(_names(function.__code__))
    used = [(name, function.__globals__[name]) for name in sorted(named) if name in function.__globals__]
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    used += [(name, cell.cell_contents) for name, cell in cells if _filled(cell)]
    for name, value in used:
        if isinstance(value, type | FunctionType):
            waiting.append(value)
        elif not name.startswith("__") and _constant(value):
            found[f"{function.__module__}.{name}"] = repr(value)[:200]


def _constant(value: Any) -> bool:
    return all(isinstance(part, _PLAIN) for part in (value if isinstance(value, tuple) else (value,)))


def _names(code: CodeType) -> list[str]:
    inner = [name for const in code.co_consts if isinstance(const, CodeType) for name in _names(const)]
    return [*code.co_names, *inner]


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _text(one: type | FunctionType) -> str:
    if isinstance(one, type):
        # By its functions: where two classes have one name, the source of a class may be that of the other.
        parts = [_text(function) for function in _functions(one)]
        plain_ones = [f"{name}={value!r}" for name, value in vars(one).items() if _constant(value)]
        return "\n".join(parts + [part for part in plain_ones if not part.startswith("__")])
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(one)))
    except (OSError, TypeError, SyntaxError):  # typed in, or a lambda in the middle of a line
        return _bytecode(one.__code__)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and _is_docstring(body[0]):
            body[0] = ast.Pass()
    return ast.dump(tree)


def _is_docstring(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _bytecode(code: CodeType) -> str:
    consts = [_bytecode(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return f"{code.co_code.hex()}{code.co_names}{consts}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
