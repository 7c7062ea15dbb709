"""How the audited model was trained, as far as the Trainer knows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl

from memguard.errors import ReferenceModelError

__all__ = ["Settings"]

_ACCELERATORS = {"CPUAccelerator": "cpu", "CUDAAccelerator": "gpu", "MPSAccelerator": "mps"}
# Arguments of a Trainer that do not change what is learned, or that a reference has its own of.
_WITHOUT_EFFECT = frozenset(
    {
        "barebones",
        "benchmark",
        "callbacks",
        "check_val_every_n_epoch",
        "default_root_dir",
        "detect_anomaly",
        "enable_autolog_hparams",
        "enable_checkpointing",
        "enable_model_summary",
        "enable_progress_bar",
        "fast_dev_run",
        "inference_mode",
        "limit_predict_batches",
        "limit_test_batches",
        "limit_val_batches",
        "log_every_n_steps",
        "logger",
        "max_time",
        "min_epochs",
        "min_steps",
        "num_sanity_val_steps",
        "profiler",
        "strategy",
        "use_distributed_sampler",
        "val_check_interval",
    }
)
# Callbacks that are part of how a model is trained; a reference is trained without them.
_CHANGES_TRAINING = frozenset(
    {
        "BackboneFinetuning",
        "DPSGD",
        "EMAWeightAveraging",
        "GradientAccumulationScheduler",
        "LambdaCallback",
        "ModelPruning",
        "StochasticWeightAveraging",
        "WeightAveraging",
    }
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a reference takes over from the Trainer of the audited model.

    Attributes:
        max_epochs: Length of training that schedulers see; ``None`` or -1 where only steps bound it.
        max_steps: Optimizer steps, -1 for no bound.
        epochs: Epochs after which training ends in any case, ``None`` for ``max_epochs``: those of a run that
            was stopped early.
        precision: As the Trainer has it.
        accumulate_grad_batches: Batches of an optimizer step, those of all processes of the run together.
        gradient_clip_val: Norm or value, ``None`` for none.
        gradient_clip_algorithm: ``"norm"`` or ``"value"``.
        accelerator: ``"cpu"``, ``"gpu"``, ``"mps"`` or ``"auto"``; always one device.
        limit_train_batches: Batches of an epoch, or a share of them.
        left_out: Callbacks of the run that a reference is trained without although they change training.
    """

    max_epochs: int | None = None
    max_steps: int = -1
    epochs: int | None = None
    precision: str = "32-true"
    accumulate_grad_batches: int = 1
    gradient_clip_val: float | None = None
    gradient_clip_algorithm: str | None = None
    accelerator: str = "auto"
    limit_train_batches: float = 1.0
    left_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_epochs in (None, -1) and self.max_steps == -1 and self.epochs is None:
            raise ReferenceModelError(
                "neither max_epochs nor max_steps",
                "a reference would be trained without end",
                "pass the max_epochs with which the audited model was trained",
            )

    @classmethod
    def of(cls, trainer: pl.Trainer | Mapping[str, Any] | Settings) -> Settings:
        """Read them from a Trainer, or from the arguments of one.

        Args:
            trainer: A Trainer; one that has fitted gives the epochs that it really ran. Or its arguments by
                name, and ``epochs`` where wanted.

        Raises:
            ReferenceModelError: If an argument is unknown, or the length of training is.

        Example:
            >>> settings = Settings.of({"max_epochs": 3, "precision": "bf16-mixed", "logger": False})
            >>> settings.max_epochs, settings.precision
            (3, 'bf16-mixed')
        """
        if isinstance(trainer, Settings):
            return trainer
        if isinstance(trainer, Mapping):
            return cls(**_arguments(trainer))
        ran = trainer.current_epoch if trainer.state.finished and trainer.current_epoch else None
        short = ran is not None and (trainer.max_epochs in (None, -1) or ran < int(trainer.max_epochs or 0))
        return cls(
            max_epochs=trainer.max_epochs,
            max_steps=trainer.max_steps,
            epochs=ran if short else None,
            precision=str(trainer.precision),
            # Processes average the gradients of their batches, as one process does with batches that it accumulates.
            accumulate_grad_batches=trainer.accumulate_grad_batches * trainer.world_size,
            gradient_clip_val=trainer.gradient_clip_val,
            gradient_clip_algorithm=_text(trainer.gradient_clip_algorithm),
            accelerator=_ACCELERATORS.get(type(trainer.accelerator).__name__, "auto"),
            limit_train_batches=trainer.limit_train_batches,
            left_out=tuple(
                sorted(
                    {
                        type(one).__name__
                        for one in getattr(trainer, "callbacks", ())
                        if any(base.__name__ in _CHANGES_TRAINING for base in type(one).__mro__)
                        and not _default(one)
                    }
                )
            ),
        )

    def trainer(self, callbacks: Sequence[pl.Callback] = (), **changed: Any) -> pl.Trainer:
        """A quiet Trainer with these settings: no logger, no files, no validation, one device."""
        found: dict[str, Any] = {
            "max_epochs": self.max_epochs if self.max_epochs is not None else -1,
            "max_steps": self.max_steps,
            "precision": self.precision,
            "accumulate_grad_batches": self.accumulate_grad_batches,
            "gradient_clip_val": self.gradient_clip_val,
            "gradient_clip_algorithm": self.gradient_clip_algorithm,
            "accelerator": self.accelerator,
            "limit_train_batches": self.limit_train_batches,
        }
        return pl.Trainer(
            **{**found, **changed},
            devices=1,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            logger=False,
            callbacks=[_Until(self.epochs), *callbacks],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )

    @property
    def last_epoch(self) -> int | None:
        """Epochs that a reference trains at most, ``None`` where only steps bound it."""
        ends = [int(n) for n in (self.max_epochs, self.epochs) if n is not None and n >= 0]
        return min(ends) if ends else None

    def primitives(self) -> dict[str, Any]:
        """For a hash and for a report."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "left_out"}


class _Until(pl.Callback):
    """Ends training after so many epochs."""

    def __init__(self, epochs: int | None) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.epochs is not None and trainer.current_epoch + 1 >= self.epochs:
            trainer.should_stop = True


def _arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    known = {field.name for field in dataclasses.fields(Settings)}
    unknown = sorted(set(given) - known - _WITHOUT_EFFECT - {"devices", "num_nodes"})
    if unknown:
        raise ReferenceModelError(
            f"Trainer argument {', '.join(unknown)}",
            "it may change what a reference learns, and is not taken over",
            f"pass only {', '.join(sorted(known - {'left_out'}))}",
        )
    found = {name: given[name] for name in given if name in known}
    for name in ("devices", "num_nodes"):
        if given.get(name, 1) not in (1, "1", "auto", [0]):
            raise ReferenceModelError(
                f"{name}={given[name]}",
                "a reference is trained on one device, with fewer records in a step than the audited model had",
                "leave it out and multiply accumulate_grad_batches by the number of processes",
            )
    if "precision" in found:
        found["precision"] = {"32": "32-true", "64": "64-true", "16": "16-mixed", "bf16": "bf16-mixed"}.get(
            str(found["precision"]), str(found["precision"])
        )
    if "gradient_clip_algorithm" in found:
        found["gradient_clip_algorithm"] = _text(found["gradient_clip_algorithm"])
    return found


def _text(value: Any) -> str | None:
    return None if value is None else str(getattr(value, "value", value))


def _default(callback: pl.Callback) -> bool:
    """Lightning adds a scheduler of accumulation to every Trainer that changes nothing by itself."""
    return (
        type(callback).__name__ == "GradientAccumulationScheduler"
        and len(getattr(callback, "scheduling", {})) <= 1
    )
