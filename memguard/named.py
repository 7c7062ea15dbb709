"""Classes and functions by their names, as a command line or a file of settings gives them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from memguard.errors import MemguardError

__all__ = ["called", "imported", "made"]


def imported(path: Any, given_as: str = "class_path") -> Any:
    """What stands at an import path.

    Args:
        path: ``package.module.name``; a colon may stand in the place of the last dot.
        given_as: Before the path in an error: the option or the key that it was given as.

    Raises:
        MemguardError: If it cannot be imported.

    Example:
        >>> imported("datetime.timedelta")
        <class 'datetime.timedelta'>
        >>> imported("datetime.timedeltas", "--model")
        Traceback (most recent call last):
        memguard.errors.MemguardError: --model datetime.timedeltas cannot be imported (...)...
    """
    module, _, name = str(path).replace(":", ".").rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise MemguardError(
            f"{given_as} {path} cannot be imported ({error})",
            "nothing can be taken in its place",
            "write package.module.Class, and start where that can be imported",
        ) from error


def called(owner: Any, arguments: Mapping[str, Any], given_as: str = "init_args") -> Any:
    """What a class makes of its arguments.

    Args:
        owner: The class, or a function.
        arguments: By name.
        given_as: Option or key of the arguments, for an error.

    Raises:
        MemguardError: If it refuses them.

    Example:
        >>> import datetime
        >>> called(datetime.timedelta, {"hour": 2})
        Traceback (most recent call last):
        memguard.errors.MemguardError: timedelta cannot be made (...). ... correct init_args.
    """
    try:
        return owner(**arguments)
    except MemguardError:
        raise
    except (TypeError, ValueError, RuntimeError, OSError) as error:  # as constructors refuse arguments
        raise MemguardError(
            f"{getattr(owner, '__name__', owner)} cannot be made ({type(error).__name__}: {error})",
            "nothing can be taken in its place",
            f"correct {given_as}",
        ) from error


def made(given: Any) -> Any:
    """What a class path with its arguments makes; those within lists and arguments are made too.

    Args:
        given: ``{"class_path": ..., "init_args": {...}}`` as LightningCLI writes it; any other value is itself.

    Raises:
        MemguardError: If it cannot be imported, or refuses its arguments.

    Example:
        >>> made({"class_path": "datetime.timedelta", "init_args": {"hours": 2}}), made([1, "b"])
        (datetime.timedelta(seconds=7200), [1, 'b'])
    """
    if isinstance(given, list):
        return [made(one) for one in given]
    if not isinstance(given, Mapping):
        return given
    if "class_path" not in given:
        return {name: made(value) for name, value in given.items()}
    path, arguments = given["class_path"], given.get("init_args") or {}
    beside = sorted(str(name) for name in given if name not in ("class_path", "init_args"))
    if beside or not isinstance(arguments, Mapping):
        seen = f"{', '.join(beside)} beside" if beside else f"{arguments!r} as init_args of"
        raise MemguardError(
            f"{seen} class_path {path}",
            "it would be passed over in silence",
            "write arguments under init_args:, each as name: value",
        )
    owner = imported(path)
    return called(
        owner, {str(name): made(value) for name, value in arguments.items()}, f"init_args of {path}"
    )
