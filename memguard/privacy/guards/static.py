"""What a Trainer and a module are set up to do: what breaks the guarantee, and what lies outside of it."""

from __future__ import annotations

from typing import Any

from torch import nn

from memguard.privacy.guards.batch_statistics import batch_statistics
from memguard.privacy.guards.finding import Finding
from memguard.privacy.guards.static_callbacks import (
    GRADIENT_HOOKS,
    is_a,
    overrides,
    scan_callbacks,
    scan_plateau,
)
from memguard.privacy.guards.static_loaders import scan_loaders

__all__ = ["scan"]


def scan(trainer: Any, module: nn.Module) -> list[Finding]:
    """Read off a Trainer and a module what would make epsilon false, and what epsilon does not cover.

    Optimizers, schedulers and loaders come into being while a fit starts: call it in ``setup("fit")``, and again in
    ``on_train_start`` for those; what is not there yet is not judged. ``fast_dev_run``, ``limit_train_batches``,
    ``max_steps``, bfloat16, weight averaging and schedulers of the step number change nothing and are not findings.

    Args:
        trainer: A Lightning Trainer, of ``lightning`` or ``pytorch_lightning``.
        module: The LightningModule that it fits.

    Returns:
        Findings, those to refuse first. Empty: nothing known to break or weaken the guarantee was seen.

    Guarantees:
        It knows what is listed in its source. A callback of one's own that reads data in ``on_train_batch_start`` and
        acts on them is not seen by any scan.

    Example:
        >>> import lightning.pytorch as pl
        >>> from lightning.pytorch.callbacks import LearningRateFinder
        >>> class Net(pl.LightningModule):
        ...     pass
        >>> trainer = pl.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False,
        ...                      enable_model_summary=False, accelerator="cpu", callbacks=[LearningRateFinder()])
        >>> [(found.id, found.severity) for found in scan(trainer, Net())]
        [('static/tuner', 'refuse')]
    """
    found = [
        *scan_callbacks(getattr(trainer, "callbacks", []), module),
        *_optimizers(trainer, module),
        *scan_plateau(getattr(trainer.strategy, "lr_scheduler_configs", [])),
        *_precision(trainer),
        *_strategy(trainer.strategy),
        *_clipping(trainer),
        *_module(module),
        *_overfit(trainer),
        *scan_loaders(_source(trainer)),
    ]
    layers = batch_statistics(module).finding
    if layers is not None:
        found.append(layers)
    return sorted(found, key=lambda finding: finding.severity != "refuse")


def _optimizers(trainer: Any, module: Any) -> list[Finding]:
    found = []
    optimizers = list(getattr(trainer, "optimizers", []))
    if getattr(module, "automatic_optimization", True) is False:
        found.append(
            Finding(
                "static/manual",
                "automatic_optimization = False",
                "a training step that steps its own optimizers does so with gradients that nobody clipped or noised",
                "use automatic optimization with one optimizer",
            )
        )
    if len(optimizers) > 1:
        found.append(
            Finding(
                "static/optimizers",
                f"{len(optimizers)} optimizers",
                "each would clip its own part to C, so that one patient changes up to C times the root of their number",
                "give all parameters to one optimizer, in groups if they need different learning rates",
            )
        )
    if any(is_a(each, "LBFGS") for each in optimizers):
        found.append(
            Finding(
                "static/lbfgs",
                "the optimizer LBFGS",
                "it computes the loss several times for one step, and each time is a look at private data",
                "use SGD, Adam or AdamW",
            )
        )
    return found


def _precision(trainer: Any) -> list[Finding]:
    precision = str(getattr(trainer, "precision", "32-true"))
    if precision not in {"16-mixed", "16-true", "16", "transformer-engine-float16"} and not getattr(
        trainer, "scaler", None
    ):
        return []
    return [
        Finding(
            "static/float16",
            f"precision {precision}",
            "the loss is scaled before the gradients are clipped, and steps are skipped when a private gradient "
            "overflows",
            'use precision="bf16-mixed" or "32-true"',
        )
    ]


def _strategy(strategy: Any) -> list[Finding]:
    name = type(strategy).__name__
    known = is_a(strategy, "SingleDeviceStrategy") or is_a(strategy, "DDPStrategy")
    if not known or "XLA" in name:
        return [
            Finding(
                "static/strategy",
                f"the strategy {name}",
                "it shards parameters or gradients, or runs steps of its own, so that no process sees a patient's "
                "whole gradient to clip it",
                'use a single device or strategy="ddp"',
            )
        ]
    for attribute, argument in (
        ("_ddp_comm_hook", "ddp_comm_hook"),
        ("_model_averaging_period", "model_averaging_period"),
    ):
        if getattr(strategy, attribute, None) is not None:
            return [
                Finding(
                    "static/ddp_hook",
                    f"DDPStrategy({argument}=...)",
                    "it replaces the sum of gradients over processes, which must be the sum of clipped ones",
                    f"leave {argument} out",
                )
            ]
    return []


def _clipping(trainer: Any) -> list[Finding]:
    value = getattr(trainer, "gradient_clip_val", None)
    if not value:
        return []
    return [
        Finding(
            "static/gradient_clip_val",
            f"gradient_clip_val = {value}",
            "it shortens the update after the noise is in, which costs no privacy and much utility: the norm is "
            "mostly noise, so that every update is scaled down by a similar factor",
            "leave it out; max_grad_norm bounds what each patient contributes",
            severity="ledger",
            warn=True,
        )
    ]


def _module(module: Any) -> list[Finding]:
    found = []
    hooks = [
        hook
        for hook in (*GRADIENT_HOOKS, "optimizer_step", "configure_gradient_clipping")
        if overrides(module, hook)
    ]
    if hooks:
        found.append(
            Finding(
                "static/module_hooks",
                f"{type(module).__name__} overrides {', '.join(hooks)}",
                "these see gradients: none before the step is made, noisy ones after, which they may read and change; "
                "an optimizer step that is left out depending on the data would be outside of epsilon",
                "nothing, if the step is taken every time; steps are counted",
                severity="ledger",
            )
        )
    if overrides(module, "backward"):
        found.append(
            Finding(
                "static/backward",
                f"{type(module).__name__} overrides backward",
                "gradients are taken for each patient by memguard, and this method would not be called",
                "put what it does into the loss that training_step returns",
            )
        )
    return found


def _overfit(trainer: Any) -> list[Finding]:
    share = getattr(trainer, "overfit_batches", 0)
    if not share:
        return []
    return [
        Finding(
            "static/overfit_batches",
            f"overfit_batches = {share}",
            "validation runs on training patients, and its metrics are private to them; patients are still drawn by "
            "chance for each step, so the same batches do not come again",
            "leave it out of runs whose metrics are shown to others",
            severity="ledger",
            warn=True,
        )
    ]


def _source(trainer: Any) -> Any:
    """The training loaders, if they are known yet; the user's method that makes them is not called."""
    loaders = getattr(trainer, "train_dataloader", None)
    if loaders is not None:
        return loaders
    source = getattr(getattr(getattr(trainer, "fit_loop", None), "_data_source", None), "instance", None)
    return None if hasattr(source, "train_dataloader") else source
