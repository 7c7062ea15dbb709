"""A study written down: YAML in, a `Study` out. Its model, data and callbacks are named as LightningCLI names them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from memguard.capture.stillness import forked_rng
from memguard.comparing.study import Arm, Study
from memguard.comparing.yaml_text import read_yaml
from memguard.errors import MemguardError
from memguard.named import imported, made

__all__ = ["read_study"]

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
    given = read_yaml(path)
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
    for name in (given["baseline"], *given["arms"]):
        if name is None or isinstance(name, bool):
            raise MemguardError(
                f"{path} has an arm that goes by {name!r}",
                "YAML reads no, off, yes, on and null as values, so that two such names would be one",
                'write the name in quotes, as in "no":',
            )
    base, data = _apart(given, str(path)), _named(given["data"], "data:")
    for name, one in (("model:", base["model"]), ("data:", data)):
        _class_of(one, name)
    arms = {str(name): _arm(str(name), base, more) for name, more in given["arms"].items()}
    settings = {name: given[name] for name in _STUDY if name in given}
    for name in _FUNCTIONS:
        if isinstance(settings.get(name), str):
            settings[name] = imported(settings[name], f"{name}:")
    return Study(data=partial(made, data), arms=arms, baseline=str(given["baseline"]), **settings)


def _arm(name: str, base: Mapping[str, Any], given: Any) -> Arm:
    where = f"arm {name!r}"
    if given is not None and not isinstance(given, Mapping):
        raise MemguardError(
            f"{where} is {given!r}",
            "what sets it apart is unknown",
            "write model:, trainer: or callbacks: under it",
        )
    _only(given or {}, _ARM, where)
    more = _apart(given or {}, where)
    callbacks = [*base["callbacks"], *more["callbacks"]]
    arm = Arm(
        model=partial(made, _laid_over(base["model"], more["model"])),
        callbacks=_Callbacks(callbacks),
        trainer=_laid_over(base["trainer"], more["trainer"]),
        settings=_flat(more),
    )
    with forked_rng(0):
        parts = [(arm.model(), pl.LightningModule), *((one, pl.Callback) for one in arm.callbacks())]
    for one, kind in parts:
        if not isinstance(one, kind):
            raise MemguardError(
                f"{where} has a {type(one).__name__} where a {kind.__name__} belongs",
                "it could not be trained",
                "correct its class_path",
            )
    return arm


def _apart(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What arms may differ in, each in its form; empty where nothing is written."""
    trainer, callbacks = given.get("trainer") or {}, given.get("callbacks") or []
    for name, value, kind, form in (
        ("trainer", trainer, Mapping, "arguments as name: value"),
        ("callbacks", callbacks, list, "a list of class paths, with init_args: where there are any"),
    ):
        if not isinstance(value, kind):
            raise MemguardError(
                f"{where} has {name}: {value!r}", "its arms would be unknown", f"write {form}"
            )
    model = given.get("model")
    return {
        "model": {} if model is None else _named(model, f"model: of {where}"),
        "trainer": trainer,
        "callbacks": [_class_of(_named(one, f"callbacks: of {where}"), where) for one in callbacks],
    }


class _Callbacks:
    """Makes the callbacks of an arm, new ones each time; can be sent to other processes."""

    def __init__(self, given: list[Any]) -> None:
        self.given = given

    def __call__(self) -> list[Any]:
        return [made(one) for one in self.given]


def _named(given: Any, where: str) -> dict[str, Any]:
    """A class path alone is one without arguments."""
    if not isinstance(given, str | Mapping):
        raise MemguardError(
            f"{where} {given!r}",
            "no class is named",
            "write class_path:, and init_args: where it takes any",
        )
    found = {"class_path": given} if isinstance(given, str) else dict(given)
    if found.get("init_args") is None:
        found.pop("init_args", None)
    elif not isinstance(found["init_args"], Mapping):
        raise MemguardError(
            f"{where} init_args: {found['init_args']!r}",
            "arguments go by their names",
            "write each as name: value",
        )
    return found


def _class_of(given: dict[str, Any], where: str) -> dict[str, Any]:
    if "class_path" not in given:
        raise MemguardError(f"{where} without class_path:", "no class is named", "write class_path: into it")
    return given


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
                owner = str(one["class_path"]).rpartition(".")[2]
                found |= _flat(one.get("init_args") or {}, owner) or {owner: True}
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
