"""What a finished run leaves in the folder of a study: arrays in one file, named by a hash of all that made it."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
from numpy.typing import NDArray

import memguard
from memguard.capture.stillness import forked_rng
from memguard.comparing.measuring import SIGNALS
from memguard.comparing.study import Arm
from memguard.comparing.training import Run
from memguard.errors import MemguardWarning
from memguard.owner_only import make_folder, write_whole
from memguard.references.recipe import content_hash, module_recipe, versions
from memguard.references.sources import code_of, plain

__all__ = ["Kept", "Measured", "recipe_of"]


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

    def put(self, recipe: Mapping[str, Any], run: Measured) -> None:
        """Write a run, whole or not at all."""
        rest = {
            "recipe": recipe,
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

    def get(self, recipe: Mapping[str, Any]) -> Measured | None:
        """A run that was kept; ``None`` where there is none, or with a warning where it is damaged."""
        path = self.path(recipe)
        if not path.is_file():
            return None
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
                rest = json.loads(stored["rest"].tobytes())
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


def recipe_of(run: Run, arm: Arm, *, data: str, study: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that would change a run, as primitives.

    Args:
        run: Which one.
        arm: How it is trained.
        data: Fingerprint of the data.
        study: Settings of the study that bear on it.
    """
    with forked_rng(0):
        module = arm.model()
        callbacks = list(arm.callbacks())
    return {
        **module_recipe(module),
        "callbacks": [_told(one) for one in callbacks],
        "callback code": code_of([type(one) for one in callbacks]),
        "trainer": plain(dict(arm.trainer)),
        "data": data,
        "patients": np.packbits(run.patients).tobytes().hex(),
        "seeds": list(run.seeds),
        "study": plain(dict(study)),
        "versions": {**versions(), "memguard": memguard.__version__},
    }


def _told(callback: pl.Callback) -> list[Any]:
    """Class and settings of a callback that has not run yet."""
    known = {name: plain(_inner(value)) for name, value in sorted(vars(callback).items())}
    return [f"{type(callback).__module__}.{type(callback).__qualname__}", known]


def _inner(value: Any) -> Any:
    return dict(vars(value)) if hasattr(value, "__dict__") and not callable(value) else value
