"""What a finished run leaves in the folder of a study: arrays in one file, named by a hash of all that made it."""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray

import memguard
from memguard.capture.stillness import forked_rng
from memguard.comparing.measuring import SIGNALS
from memguard.comparing.study import Arm
from memguard.comparing.training import Run
from memguard.errors import MemguardWarning
from memguard.named import made
from memguard.owner_only import make_folder, write_whole
from memguard.references.recipe import content_hash, module_recipe, versions
from memguard.references.sources import code_of, plain

__all__ = ["Kept", "Measured", "arm_recipe", "function_recipe", "recipe_of"]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One run, measured.

    Attributes:
        loss: ``(T, G, N + M)`` of all records by stage and way of asking.
        same: ``(T, G)`` whether a way of asking gives the losses of the deployed model, where ``loss`` is NaN.
        epochs: ``(T,)``.
        touched: ``(N,)`` training records that a mitigation ever gave less weight; ``None`` without one.
        steps: Optimizer steps.
        epsilon: What was spent, ``None`` without a promise.
        metrics: As the module logs them.
        seconds: Of the training.
    """

    loss: NDArray[np.float32]
    same: NDArray[np.bool_]
    epochs: NDArray[np.float64]
    touched: NDArray[np.bool_] | None = None
    steps: int = 0
    epsilon: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0


class Kept:
    """Finished runs in a folder, readable by their owner alone.

    Args:
        folder: Made when missing.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     kept = Kept(Path(folder))
        ...     loss, same = np.zeros((1, 3, 2), np.float32), np.ones((1, 3), bool)
        ...     kept.put({"seed": 1}, Measured(loss=loss, same=same, epochs=np.ones(1), steps=4))
        ...     kept.get({"seed": 1}).steps, kept.get({"seed": 2})
        (4, None)
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "runs"
        make_folder(self.folder)

    def path(self, recipe: Mapping[str, Any]) -> Path:
        """Where a run lies, or will lie."""
        return self.folder / f"{content_hash(recipe)}.npz"

    def put(self, recipe: Mapping[str, Any], run: Measured, *, baseline: str = "") -> None:
        """Write a run, whole or not at all; ``baseline`` names the code that was asked beside the arm's own."""
        rest = {
            "recipe": recipe,
            "baseline": baseline,
            "signals": SIGNALS,
            "steps": run.steps,
            "epsilon": run.epsilon,
            "metrics": dict(run.metrics),
            "seconds": run.seconds,
        }
        body = io.BytesIO()
        arrays: dict[str, Any] = {"loss": run.loss, "same": run.same, "epochs": run.epochs}
        if run.touched is not None:
            arrays["touched"] = run.touched
        np.savez_compressed(body, rest=np.frombuffer(json.dumps(rest).encode(), np.uint8), **arrays)
        write_whole(self.path(recipe), body.getvalue())

    def get(self, recipe: Mapping[str, Any], *, baseline: str = "") -> Measured | None:
        """A run that was kept; ``None`` where there is none, or it was asked by the code of another baseline.

        Where it is damaged there is none either, and a warning.
        """
        path = self.path(recipe)
        if not path.is_file():
            return None
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
                rest = json.loads(stored["rest"].tobytes())
                if rest.get("baseline", baseline) != baseline:
                    return None
                return Measured(
                    loss=stored["loss"],
                    same=stored["same"],
                    epochs=stored["epochs"],
                    touched=stored["touched"] if "touched" in stored.files else None,
                    steps=int(rest["steps"]),
                    epsilon=rest["epsilon"],
                    metrics=rest["metrics"],
                    seconds=float(rest["seconds"]),
                )
        except Exception as error:  # a file that was cut off or changed fails in many ways
            warnings.warn(
                MemguardWarning(
                    f"a kept run cannot be read ({path.name}: {error})",
                    "its numbers would be wrong",
                    "nothing to do: it is trained again",
                ),
                stacklevel=2,
            )
            return None


def recipe_of(run: Run, arm: Mapping[str, Any], *, data: str, study: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that would change a run, as primitives.

    Args:
        run: Which one.
        arm: How it is trained, of `arm_recipe`.
        data: Fingerprint of the data.
        study: Settings of the study that bear on it.
    """
    return {
        **arm,
        "data": data,
        "patients": np.packbits(run.patients).tobytes().hex(),
        "seeds": list(run.seeds),
        "study": plain(dict(study)),
        "versions": {**versions(), "memguard": memguard.__version__},
    }


def arm_recipe(arm: Arm) -> dict[str, Any]:
    """Everything of an arm that would change its runs, as primitives."""
    with forked_rng(0):
        module = arm.model()
        callbacks = list(arm.callbacks())
    with forked_rng(0):
        arm.model()
        again = list(arm.callbacks())
    return {
        **module_recipe(module),
        **_untold(arm, module),
        "callbacks": _steady([_told(one) for one in callbacks], [_told(one) for one in again]),
        "callback code": code_of([type(one) for one in callbacks]),
        "trainer": plain(dict(arm.trainer)),
    }


def function_recipe(function: Any) -> dict[str, Any]:
    """A function as primitives: its code, what it closes over, and the arguments that a partial one has.

    Args:
        function: Or an object that can be called.

    Example:
        >>> from functools import partial
        >>> function_recipe(partial(round, ndigits=2))
        {'arguments': {'ndigits': 2}, 'code': {}, 'closed over': {}}
    """
    given: dict[str, Any] = {}
    if isinstance(function, partial):
        given = {**_named(function), **function.keywords}
        function = function.func
    closed = {}
    if inspect.isfunction(function):
        seen = inspect.getclosurevars(function)
        known = {**seen.globals, **seen.nonlocals}
        closed = {
            name: value for name, value in known.items() if not (callable(value) or inspect.ismodule(value))
        }
    elif not isinstance(function, type) and hasattr(function, "__dict__"):
        closed, function = dict(vars(function)), type(function)
    return {
        "arguments": plain({name: _inner(value) for name, value in given.items()}),
        "code": code_of([function]),
        "closed over": plain({name: _inner(value) for name, value in sorted(closed.items())}),
    }


def _untold(arm: Arm, module: pl.LightningModule) -> dict[str, Any]:
    """What neither class nor hyperparameters say of a new module: who made it, of what, and with which weights."""
    found: dict[str, Any] = {}
    function: Any = arm.model
    given: dict[str, Any] = {}
    if isinstance(function, partial):
        function, given = function.func, {**function.keywords, **_named(function)}
    if function is made and isinstance(arm.model, partial):  # of a file
        given = dict(arm.model.args[0].get("init_args") or {})
    elif function is not type(module):
        found["made by"] = function_recipe(arm.model)
    told = plain(dict(module.hparams))
    more = {name: value for name, value in plain(given).items() if name not in told or told[name] != value}
    if more:
        found["arguments"] = more
    try:
        with forked_rng(0):
            like: str | None = _weights(type(module)(**module.hparams))
    except Exception:  # it did not keep what it was made of
        like = None
    with forked_rng(0):
        weights = _weights(arm.model())
    if weights != like:
        found["initial weights"] = weights
    return found


def _named(given: partial[Any]) -> dict[str, Any]:
    """Positional arguments of a partial function by their names."""
    try:
        return dict(inspect.signature(given.func).bind_partial(*given.args).arguments)
    except (TypeError, ValueError):
        return {str(at): value for at, value in enumerate(given.args)}


def _weights(module: pl.LightningModule) -> str:
    hasher = hashlib.sha256()
    for name, value in module.state_dict().items():
        hasher.update(name.encode())
        if isinstance(value, torch.Tensor):
            value = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        hasher.update(np.asarray(value).tobytes() if isinstance(value, np.ndarray) else repr(value).encode())
    return hasher.hexdigest()[:16]


def _told(callback: pl.Callback) -> list[Any]:
    """Class and settings of a callback that has not run yet."""
    known = {name: plain(_inner(value)) for name, value in sorted(vars(callback).items())}
    return [f"{type(callback).__module__}.{type(callback).__qualname__}", known]


def _steady(one: Any, other: Any) -> Any:
    """What is the same in two things that were made alike: clocks and random names are no settings."""
    if isinstance(one, dict) and isinstance(other, dict):
        both = {name: (value, other[name]) for name, value in one.items() if name in other}
        return {name: _steady(*pair) for name, pair in both.items()}
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [_steady(*pair) for pair in zip(one, other, strict=True)]
    return one if one == other or one != one else None


def _inner(value: Any) -> Any:
    return dict(vars(value)) if hasattr(value, "__dict__") and not callable(value) else value
