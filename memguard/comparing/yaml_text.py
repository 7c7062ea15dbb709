"""YAML as people write it: numbers like 1e-3 are numbers, and no name stands twice."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from memguard.errors import MemguardError

__all__ = ["read_yaml"]


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Plain values alone; no code of the file runs."""


# YAML 1.1 takes 1e-3 for text, since it has no dot and its exponent may have no sign: a learning rate of text.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_yaml(path: str | Path) -> Any:
    """The plain values of a YAML file.

    Args:
        path: Of the file.

    Raises:
        MemguardError: If it cannot be read, or a name stands twice: all but the last would be lost.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "some.yaml").write_text("lr: 1e-3")
        ...     read_yaml(Path(folder) / "some.yaml")
        {'lr': 0.001}
    """
    try:
        loader = _Loader(Path(path).read_text(encoding="utf-8"))
        try:
            node = loader.get_single_node()
            twice = _twice(node, set())
            found = None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except (
        OSError,
        ValueError,
        RecursionError,
        yaml.YAMLError,
    ) as error:  # a date that is none is a ValueError
        raise MemguardError(
            f"{path} cannot be read ({error})",
            "nothing can be taken in its place",
            "pass the path of a YAML file",
        ) from error
    if twice:
        raise MemguardError(
            f"{path} has {twice}", "one of the two would be passed over in silence", "leave one, or rename it"
        )
    return found


def _twice(node: Any, seen: set[int]) -> str:
    """The first name that stands twice in one mapping, with its line; empty where there is none."""
    if node is None or id(node) in seen:
        return ""
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        names: set[str] = set()
        for name, value in node.value:
            if isinstance(name, yaml.ScalarNode):
                if name.value in names:
                    return f"{name.value}: twice (line {name.start_mark.line + 1})"
                names.add(name.value)
            if found := _twice(value, seen):
                return found
    elif isinstance(node, yaml.SequenceNode):
        return next((found for value in node.value if (found := _twice(value, seen))), "")
    return ""
