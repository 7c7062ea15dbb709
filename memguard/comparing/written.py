"""A study written down: YAML in, a `Study` out. Its model, data and callbacks are named as LightningCLI names them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from memguard.comparing.study import Arm, Study
from memguard.errors import MemguardError

__all__ = ["made", "read_study"]

_STUDY = (
    "seeds",
    "stages",
    "control",
    "fpr",
    "hardest",
    "tolerance",
    "record_to_patient",
    "strata",
    "per_record_loss",
    "vocabulary",
    "seed",
)
_ARM = ("model", "trainer", "callbacks")
_FUNCTIONS = ("per_record_loss", "strata")  # may be named by an import path


def read_study(path: str | Path) -> Study:
    """Read a study from a YAML file.

    ``model`` and ``data`` are a ``class_path`` with ``init_args``; ``trainer`` are arguments of a Trainer;
    ``callbacks`` a list of class paths, with ``init_args`` where there are any. What stands under an arm is laid over
    what stands above: its own ``init_args``, trainer arguments, and ``callbacks`` in addition.

    Args:
        path: Of the file.

    Raises:
        MemguardError: If it cannot be read, or something in it cannot be imported or made; every arm's module and
            callbacks are made once for that.

    Example:
        >>> import tempfile
        >>> text = '''
        ... model: {class_path: lightning.pytorch.demos.boring_classes.BoringModel}
        ... data: {class_path: lightning.pytorch.demos.boring_classes.BoringDataModule}
        ... trainer: {max_epochs: 2}
        ... baseline: none
        ... seeds: 4
        ... arms:
        ...   none: {}
        ...   shorter: {trainer: {max_epochs: 1}}
        ... '''
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "study.yaml").write_text(text)
        ...     study = read_study(Path(folder) / "study.yaml")
        >>> study.seeds, study.arms["shorter"].trainer, study.arms["shorter"].settings
        (4, {'max_epochs': 1}, {'trainer.max_epochs': 1})
    """
    import yaml

    try:
        given = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise MemguardError(
            f"{path} cannot be read ({error})", "there is no study", "pass the path of a YAML file"
        ) from error
    if not isinstance(given, Mapping) or not isinstance(given.get("arms"), Mapping):
        raise MemguardError(
            f"{path} without arms:",
            "there is nothing to compare",
            "write arms: with a name for each, and under it what sets it apart",
        )
    _only(given, ("model", "data", "trainer", "callbacks", "baseline", "arms", *_STUDY), str(path))
    for name in ("model", "data", "baseline"):
        if name not in given:
            raise MemguardError(f"{path} without {name}:", "a study needs it", f"write {name}: into it")
    arms = {str(name): _arm(str(name), given, more or {}) for name, more in given["arms"].items()}
    settings = {name: given[name] for name in _STUDY if name in given}
    for name in _FUNCTIONS:
        if isinstance(settings.get(name), str):
            settings[name] = _imported(settings[name])
    return Study(data=partial(made, given["data"]), arms=arms, baseline=str(given["baseline"]), **settings)


def made(given: Any) -> Any:
    """What a class path with its arguments makes; lists and arguments within are made too.

    Args:
        given: ``{"class_path": ..., "init_args": {...}}``, a class path alone, or a plain value.

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
    _only(given, ("class_path", "init_args"), str(given["class_path"]))
    owner = _imported(given["class_path"])
    arguments = {str(name): made(value) for name, value in (given.get("init_args") or {}).items()}
    try:
        return owner(**arguments)
    except TypeError as error:
        raise MemguardError(
            f"{given['class_path']} cannot be made ({error})",
            "its arm could not be trained",
            "correct its init_args",
        ) from error


def _imported(path: Any) -> Any:
    module, _, name = str(path).replace(":", ".").rpartition(".")
    try:
        return getattr(importlib.import_module(module or "memguard"), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise MemguardError(
            f"{path} cannot be imported ({error})",
            "an arm could not be trained",
            "write package.module.Class, and start where that can be imported",
        ) from error


def _arm(name: str, base: Mapping[str, Any], more: Any) -> Arm:
    if not isinstance(more, Mapping):
        raise MemguardError(
            f"arm {name!r} is {more!r}",
            "what sets it apart is unknown",
            "write model:, trainer: or callbacks: under it",
        )
    _only(more, _ARM, f"arm {name!r}")
    model = _laid_over(_named(base["model"]), more.get("model") or {})
    callbacks = [_named(one) for one in [*(base.get("callbacks") or []), *(more.get("callbacks") or [])]]
    arm = Arm(
        model=partial(made, model),
        callbacks=_Callbacks(callbacks),
        trainer=_laid_over(base.get("trainer") or {}, more.get("trainer") or {}),
        settings=_flat(more),
    )
    arm.model()
    arm.callbacks()
    return arm


class _Callbacks:
    """Makes the callbacks of an arm, new ones each time; can be sent to other processes."""

    def __init__(self, given: list[Any]) -> None:
        self.given = given

    def __call__(self) -> list[Any]:
        return [made(one) for one in self.given]


def _named(given: Any) -> Any:
    """A class path alone is one without arguments."""
    return {"class_path": given} if isinstance(given, str) else given


def _laid_over(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """``more`` over ``base``; another class takes no arguments of the first one."""
    if "class_path" in more and more["class_path"] != base.get("class_path"):
        return dict(more)
    found = dict(base)
    for name, value in more.items():
        old = found.get(name)
        found[name] = (
            _laid_over(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
        )
    return found


def _flat(given: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """What sets an arm apart, a line each: names joined by dots, without the words of the format."""
    found: dict[str, Any] = {}
    for name, value in given.items():
        path = above if name == "init_args" else f"{above}.{name}".strip(".")
        if name == "callbacks":
            for one in value:
                named = _named(one)
                owner = str(named["class_path"]).rpartition(".")[2]
                found |= _flat(named.get("init_args") or {}, owner) or {owner: True}
        elif isinstance(value, Mapping):
            found |= _flat(value, path)
        elif name == "class_path":
            found[above] = str(value).rpartition(".")[2]
        else:
            found[path] = value if isinstance(value, str | int | float | bool | None) else str(value)
    return found


def _only(given: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    unknown = [str(name) for name in given if name not in known]
    if unknown:
        raise MemguardError(
            f"{where} has {', '.join(unknown)}",
            "it would be passed over in silence",
            f"write only {', '.join(known)}",
        )
