"""What is compared: arms, each a way to train the same model on the same patients."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl

from memguard.auditing.subjects import Strata
from memguard.comparing.outcomes import LEAST_SEEDS
from memguard.errors import MemguardError

__all__ = ["Arm", "Study"]

_OURS = {
    "enable_checkpointing",
    "enable_model_summary",
    "enable_progress_bar",
    "default_root_dir",
    "fast_dev_run",
    "devices",
    "num_nodes",
    "strategy",
    "callbacks",
    "logger",
    "barebones",
}


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to train.

    Attributes:
        model: Makes a new module with new weights.
        callbacks: Makes its callbacks, new ones for each training: mitigations, early stopping, a checkpoint of the
            best epoch (the weights of a ``ModelCheckpoint`` with ``monitor=`` are what is judged at the end).
        trainer: Arguments of its Trainer.
        settings: What sets it apart, in primitives; shown on the page.

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> Arm(model=BoringModel, trainer={"max_epochs": 2}).settings
        {}
    """

    model: Callable[[], pl.LightningModule]
    callbacks: Callable[[], Sequence[pl.Callback]] = list
    trainer: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        taken = sorted(_OURS & set(self.trainer))
        if taken:
            raise MemguardError(
                f"trainer argument {', '.join(taken)}",
                "every arm is trained on one device, without files and loggers, so that arms differ in nothing else",
                "leave it out of trainer=; callbacks are an argument of their own",
            )
        unknown = sorted(set(self.trainer) - set(inspect.signature(pl.Trainer.__init__).parameters))
        if unknown:
            raise MemguardError(
                f"trainer argument {', '.join(map(str, unknown))}",
                "a Trainer has none of that name, and no model of the arm could be trained",
                "correct its name in trainer=",
            )


@dataclass(frozen=True, kw_only=True)
class Study:
    """Arms, and how they are compared.

    A *seed* divides the training patients into two halves and trains a model of every arm on each: the same halves in
    every arm. Every model is attacked with the models of all other seeds of its own arm as references.

    Attributes:
        data: Makes the LightningDataModule, or the pair of loaders ``(train, held out)``. The held-out patients are
            divided by patient: the arms validate on one part, and are judged on the other.
        arms: By name.
        baseline: Name of the arm that the others are compared with.
        seeds: How many, 3 or more; 8 give each model 14 references.
        stages: At how many points of a training, evenly spread over its steps, a model is judged; the last is its end.
            What arms do at equal utility is read from these.
        control: Whether the baseline is trained once more with other random weights and orders on the same halves. How
            much two arms differ that differ in nothing is read from it.
        fpr: False-positive rate at which true-positive rates are told.
        hardest: Share of the patients that counts as the hardest.
        tolerance: Relative loss of utility that still counts as none.
        record_to_patient: As `LeakageMonitor` takes it.
        per_record_loss: As `LeakageMonitor` takes it, for every arm.
        strata: Groups of patients beside those that records tell, as `audit` takes them.
        vocabulary: Names of the tokens, as `audit` takes it.
        seed: Of halves, weights and orders.

    Raises:
        MemguardError: If there is nothing to compare.
    """

    data: Callable[[], Any]
    arms: Mapping[str, Arm]
    baseline: str
    seeds: int = 8
    stages: int = 4
    control: bool = True
    fpr: float = 0.01
    hardest: float = 0.05
    tolerance: float = 0.01
    record_to_patient: Any = "auto"
    per_record_loss: Any = None
    strata: Strata = None
    vocabulary: Any = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.baseline not in self.arms:
            raise MemguardError(
                f"baseline {self.baseline!r} and arms {', '.join(map(repr, self.arms)) or 'none'}",
                "there is nothing that the arms could be compared with",
                "name one of the arms as baseline=",
            )
        if self.control_name in self.arms:
            raise MemguardError(
                f"an arm called {self.control_name!r}",
                "so is the control",
                "give it another name, or control=False",
            )
        for name, low, high in (("seeds", LEAST_SEEDS, 1000), ("stages", 1, 100)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise MemguardError(
                    f"{name}={value!r}",
                    "each model needs references of its own arm, and an interval needs several seeds"
                    if name == "seeds"
                    else "a model is judged at its end at least",
                    f"pass {name}= as a whole number from {low} to {high}",
                )
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise MemguardError(
                f"seed={self.seed!r}", "halves are drawn from it", "pass seed= as a whole number from 0"
            )
        if not isinstance(self.control, bool):
            raise MemguardError(
                f"control={self.control!r}",
                "whether the baseline is trained again would be a guess",
                "pass control= as true or false",
            )
        if self.per_record_loss is not None and not callable(self.per_record_loss):
            raise MemguardError(
                f"per_record_loss={self.per_record_loss!r}",
                "no loss can be computed with it",
                "pass a function (module, batch) -> (B,), in YAML by its import path",
            )
        for name in ("fpr", "hardest", "tolerance"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
                raise MemguardError(f"{name}={value!r}", "it is a share", f"pass {name}= between 0 and 1")

    @property
    def control_name(self) -> str:
        """What the control arm is called."""
        return f"{self.baseline}, trained again"

    @property
    def trained(self) -> dict[str, Arm]:
        """Every arm that is trained, the control among them."""
        again = {self.control_name: self.arms[self.baseline]} if self.control else {}
        return {**self.arms, **again}
