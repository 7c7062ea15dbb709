"""Callbacks and schedulers beside a private training: which of them look at private data, and act on what they see."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from memguard.privacy.guards.finding import Finding

__all__ = [
    "GRADIENT_HOOKS",
    "PUBLIC_METRICS",
    "is_a",
    "overrides",
    "scan_callbacks",
    "scan_plateau",
    "scheduled_rates",
]

GRADIENT_HOOKS = ("on_before_zero_grad", "on_after_backward", "on_before_optimizer_step")
PUBLIC_METRICS = frozenset({"memguard/dp/epsilon", "memguard/dp/noise_multiplier", "memguard/dp/sample_rate"})
_LIGHTNING = ("lightning.", "pytorch_lightning.", "lightning_fabric.")
_OURS = ("memguard.",)

_TUNERS = {"LearningRateFinder": "lr_find", "BatchSizeFinder": "scale_batch_size"}


def is_a(thing: object, name: str) -> bool:
    """Whether something is of a class of that name or of a subclass, in ``lightning`` or ``pytorch_lightning``.

    Example:
        >>> import torch
        >>> is_a(torch.optim.LBFGS([torch.zeros(1)]), "LBFGS")
        True
    """
    return any(base.__name__ == name for base in type(thing).__mro__)


def overrides(thing: object, hook: str) -> bool:
    """Whether a callback or module has a hook of its own, not that of Lightning or memguard.

    Example:
        >>> from lightning.pytorch.callbacks import Callback, LambdaCallback
        >>> overrides(Callback(), "on_after_backward")
        False
        >>> overrides(LambdaCallback(on_after_backward=lambda *args: None), "on_after_backward")
        True
    """
    if hook in getattr(thing, "__dict__", {}):
        return True
    owner = next((base for base in type(thing).__mro__ if hook in vars(base)), None)
    return owner is not None and not f"{owner.__module__}.".startswith((*_LIGHTNING, *_OURS))


def scan_callbacks(callbacks: Iterable[Any], module: nn.Module) -> list[Finding]:
    """Findings about the callbacks of a Trainer.

    Args:
        callbacks: Of the Trainer.
        module: Which they act on.

    Returns:
        Findings. Weight averaging (StochasticWeightAveraging, EMA) is post-processing of noisy weights and none,
        unless the model has BatchNorm layers whose statistics it would compute again from the data.

    Example:
        >>> from lightning.pytorch.callbacks import EarlyStopping
        >>> [(f.id, f.severity) for f in scan_callbacks([EarlyStopping("val_loss")], nn.Linear(1, 1))]
        [('static/early_stopping', 'ledger')]
    """
    found: list[Finding] = []
    for callback in callbacks:
        found += _weighing(callback)
        if type(callback).__module__.startswith(_OURS):
            continue
        found += _known(callback, module)
        hooks = [hook for hook in GRADIENT_HOOKS if overrides(callback, hook)]
        if hooks:
            found.append(
                Finding(
                    "static/callback_hooks",
                    f"{type(callback).__name__} overrides {', '.join(hooks)}",
                    "there it sees gradients: none before the noisy sum is in place, the noisy sum afterwards; both are"
                    " covered, and so is what it changes there",
                    "nothing, unless it looks at the batch or the loss as well",
                    severity="ledger",
                )
            )
    return found


def _weighing(callback: Any) -> list[Finding]:
    """What a callback that weighs records says of its weights, by an attribute ``weights_depend_on``."""
    on = getattr(callback, "weights_depend_on", None)
    if on is None:
        return []
    name = type(callback).__name__
    said = callback.said().partition(":")[0] if callable(getattr(callback, "said", None)) else name
    if on == "record":
        return [
            Finding(
                "mitigation/record",
                said,
                "its weights follow from each record by itself and act before clipping, so that epsilon holds with "
                "them as without; it adds no guarantee of its own",
                "nothing",
                severity="ledger",
            )
        ]
    return [
        Finding(
            "mitigation/data",
            said,
            "its weights depend on the data of others, so that a patient acts on more than his own contribution",
            f"take {name} or DPSGD out of callbacks=",
        )
    ]


def scan_plateau(configs: Iterable[Any]) -> list[Finding]:
    """Findings about learning-rate schedulers.

    Args:
        configs: Lightning's, or schedulers.

    Example:
        >>> import torch
        >>> adam = torch.optim.Adam([torch.zeros(1)])
        >>> scan_plateau([torch.optim.lr_scheduler.ReduceLROnPlateau(adam)])[0].id
        'static/plateau'
    """
    found = []
    for config in configs:
        scheduler = getattr(config, "scheduler", config)
        monitor = getattr(config, "monitor", None)
        if (getattr(config, "reduce_on_plateau", False) or is_a(scheduler, "ReduceLROnPlateau")) and (
            monitor not in PUBLIC_METRICS
        ):
            what = f"ReduceLROnPlateau on {monitor!r}" if monitor else "ReduceLROnPlateau"
            found.append(
                _monitored(
                    "static/plateau",
                    what,
                    "the learning rate of later steps",
                    "a schedule of the step number",
                )
            )
    return found


def scheduled_rates(callbacks: Iterable[Any], configs: Iterable[Any]) -> set[str]:
    """Names of logged learning rates that follow the number of the step alone, and so nobody's data.

    Args:
        callbacks: Of the Trainer.
        configs: Lightning's, of the learning-rate schedulers.

    Returns:
        What a LearningRateMonitor logs; nothing where a scheduler follows a metric that is not public.

    Example:
        >>> from lightning.pytorch.callbacks import LearningRateMonitor
        >>> monitor = LearningRateMonitor()
        >>> monitor.lrs = {"lr-Adam": [0.1]}
        >>> scheduled_rates([monitor], [])
        {'lr-Adam'}
    """
    if scan_plateau(configs):
        return set()
    monitors = [callback for callback in callbacks if is_a(callback, "LearningRateMonitor")]
    return {name for monitor in monitors for name in monitor.lrs}


def _known(callback: Any, module: nn.Module) -> list[Finding]:
    name = type(callback).__name__
    for tuner, call in _TUNERS.items():
        if is_a(callback, tuner):
            return [
                Finding(
                    "static/tuner",
                    f"{name} (also what Tuner.{call} adds)",
                    "it trains on private patients and rolls everything back but what it learned of them, steps that "
                    "no accountant sees",
                    "choose the value on public or synthetic data, or in a run of its own whose epsilon is added",
                )
            ]
    if is_a(callback, "GradientAccumulationScheduler"):
        return [
            Finding(
                "static/accumulation",
                name,
                "a draw of patients is cut in a fixed number of parts; another number merges or tears draws",
                "leave it out; memguard accumulates by itself when a draw is larger than a physical batch",
            )
        ]
    if is_a(callback, "BaseFinetuning"):
        return [
            Finding(
                "static/finetuning",
                name,
                "parameters that are thawed during training are unknown to the clipping",
                "freeze and thaw before fit, and fit again for the next phase with the same ledger",
            )
        ]
    if is_a(callback, "SpikeDetection"):
        return [
            Finding(
                "static/spike",
                name,
                "it ends training and leaves batches out by the loss of private data",
                "leave it out; clipping bounds what a spike can do",
            )
        ]
    if is_a(callback, "StochasticWeightAveraging") and any(
        isinstance(m, _BatchNorm) for m in module.modules()
    ):
        return [
            Finding(
                "static/swa_batch_norm",
                f"{name} with BatchNorm layers",
                "at the end it computes their statistics again from private data, without noise",
                "replace BatchNorm by GroupNorm, or use EMAWeightAveraging",
            )
        ]
    monitor = getattr(callback, "monitor", None)
    if monitor is None or monitor in PUBLIC_METRICS:
        return []
    if is_a(callback, "EarlyStopping"):
        return [
            _monitored(
                "static/early_stopping",
                f"{name} on {monitor!r}",
                "the number of steps",
                "a fixed number of steps",
            )
        ]
    if is_a(callback, "Checkpoint"):
        return [
            _monitored(
                "static/checkpoint",
                f"{name} on {monitor!r}",
                "which weights are kept",
                "the last weights (monitor=None)",
            )
        ]
    return []


def _monitored(name: str, what: str, acts_on: str, instead: str) -> Finding:
    return Finding(
        name,
        what,
        f"{acts_on} then depends on the metric: if it is of training patients, outside of their epsilon; if of "
        "held-out patients, it is private to those, who have no guarantee at all",
        f"use {instead}, a metric of public data, or release the model knowing that the choice is not covered",
        severity="ledger",
        warn=True,
    )
