"""Losses of chosen records, outside the training step, with the module's own validation step."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from memguard.capture.layout import LayoutMemory, UndecidedLayoutError, tensors_in
from memguard.capture.losses import CapturedLoss, LossCapture, attribute, from_override
from memguard.capture.stillness import untouched
from memguard.errors import AmbiguousLossError

__all__ = ["PerRecordLoss", "evaluate", "silenced", "step_arguments", "to_device"]

PerRecordLoss = Callable[[Any, Any], Any]


def evaluate(
    trainer: Any,
    module: Any,
    batches: Iterable[Any],
    *,
    per_record_loss: PerRecordLoss | None = None,
    like: tuple[str, str] | None = None,
    batch_sizes: Sequence[int] | None = None,
    dataloader_idx: int = 0,
    memory: LayoutMemory | None = None,
) -> list[CapturedLoss]:
    """The loss of each record in batches, in evaluation mode, without a trace on the run.

    The module's ``validation_step`` runs on each batch, moved and converted as the Trainer would, with
    ``log`` and ``log_dict`` silenced and the loggers replaced by dummies. Everything of
    :func:`~memguard.capture.stillness.untouched` is restored, torchmetrics states bitwise. Collective calls
    are not made here; those that a user's step makes itself run on whichever rank calls this.

    Args:
        trainer: The Trainer of the run.
        module: The LightningModule.
        batches: Raw batches as the collate function gives them (:func:`memguard.capture.fetch.fetch`).
        per_record_loss: Replaces the validation step: ``(module, batch) -> (B,)``.
        like: Signature of the accepted training loss; finds the loss where the validation step returns none.
        batch_sizes: B of each batch; taken from ``batches.sizes`` or from the batch's tensors otherwise.
        dataloader_idx: Passed on to a validation step that asks for it.
        memory: What the training steps proved about flattened losses.

    Returns:
        One :class:`CapturedLoss` for each batch, in order; tensors stay on the module's device and are no
        inference tensors.

    Raises:
        AmbiguousLossError: If no loss can be given to the records, with what to add.
    """
    override = override_of(module, per_record_loss)
    if override is None and not _has_validation_step(module):
        raise AmbiguousLossError(
            f"{type(module).__name__} has no validation_step",
            "the training step must not be run again: it would log, count and draw random numbers",
            "add a validation_step, or pass per_record_loss=",
        )
    sizes = batch_sizes if batch_sizes is not None else getattr(batches, "sizes", None)
    memory = memory if memory is not None else LayoutMemory()

    def one(number: int, batch: Any) -> CapturedLoss:
        size = sizes[number] if sizes is not None else infer_batch_size(batch)
        batch = to_device(trainer, module, _copied(batch), dataloader_idx)
        with _precision(trainer):
            if override is not None:
                return normal(from_override(_called(override, module, batch), batch_size=size))
            with LossCapture() as seen:
                step = module.validation_step
                returned = step(*step_arguments(step, batch, number, dataloader_idx))
            captured = attribute(seen.calls, returned, size, like=like, batch=batch, memory=memory)
            seen.calls.clear()
        return normal(captured)

    found: dict[int, CapturedLoss] = {}
    undecided = []
    with _validation_grad_mode(trainer), untouched(module), silenced(trainer, module):
        for number, batch in enumerate(batches):
            try:
                found[number] = one(number, batch)
            except UndecidedLayoutError:
                undecided.append((number, batch))
        for number, batch in undecided:  # the others may have told how rows are laid out
            found[number] = one(number, batch)
    return [found[number] for number in sorted(found)]


def infer_batch_size(batch: Any) -> int:
    """B of a batch of which only the tensors are known: the first dimension that most of them share.

    Example:
        >>> import torch
        >>> infer_batch_size({"x": torch.zeros(4, 3), "y": torch.zeros(4), "scale": torch.ones(1)})
        4
    """
    rows = [int(tensor.shape[0]) for _, tensor in tensors_in(batch) if tensor.dim()]
    if not rows:
        raise AmbiguousLossError(
            f"a batch of type {type(batch).__name__} has no tensors to tell its size by",
            "losses cannot be shared out among its records",
            "pass per_record_loss=",
        )
    return max(rows, key=lambda row: (rows.count(row), -rows.index(row)))


def normal(captured: CapturedLoss) -> CapturedLoss:
    """The same capture with tensors that may be used outside inference mode."""
    fields = vars(captured)
    if not any(isinstance(value, Tensor) and value.is_inference() for value in fields.values()):
        return captured
    with torch.inference_mode(False):
        changed: dict[str, Any] = {
            name: value.clone() for name, value in fields.items() if isinstance(value, Tensor)
        }
    return dataclasses.replace(captured, **changed)


def override_of(module: Any, given: PerRecordLoss | None) -> PerRecordLoss | None:
    """The function that replaces listening: the argument, or the module's own ``per_record_loss``."""
    if given is not None:
        return given
    method = getattr(module, "per_record_loss", None)
    return (lambda _module, batch: method(batch)) if callable(method) else None


def run_override(
    override: PerRecordLoss,
    module: Any,
    batch: Any,
    batch_size: int | None,
    *,
    trainer: Any = None,
    training: bool = False,
) -> CapturedLoss:
    """Call a user's ``per_record_loss`` in the precision of the step, leaving no trace on module and randomness."""
    with untouched(module), _precision(trainer, training):
        return from_override(_called(override, module, batch), batch_size=batch_size)


def _called(override: PerRecordLoss, module: Any, batch: Any) -> Any:
    try:
        return override(module, batch)
    except Exception as error:
        raise AmbiguousLossError(
            f"per_record_loss failed with {error!r}",
            "the losses of the batch are not known",
            "give per_record_loss= a function (module, batch) that takes every batch of the run",
        ) from error


def _has_validation_step(module: Any) -> bool:
    from lightning.pytorch.utilities.model_helpers import is_overridden

    try:
        return bool(is_overridden("validation_step", module))
    except ValueError:  # not a lightning.pytorch module (pytorch_lightning has classes of its own)
        return callable(getattr(module, "validation_step", None))


def step_arguments(
    step: Callable[..., Any], batch: Any, batch_idx: int, dataloader_idx: int = 0
) -> list[Any]:
    """What a Trainer would pass to a user's step: as many of batch and numbers as it takes.

    Example:
        >>> step_arguments(lambda batch: batch, "batch", 0), step_arguments(lambda batch, idx: batch, "batch", 0)
        (['batch'], ['batch', 0])
    """
    parameters = inspect.signature(step).parameters
    some = [p for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    most = 3 if any(p.kind is p.VAR_POSITIONAL for p in parameters.values()) else len(some)
    given = [batch, batch_idx, dataloader_idx][: max(1, min(most, 3))]
    return given if "dataloader_idx" in parameters else given[:2]


def _copied(batch: Any) -> Any:
    """The same batch may be evaluated again, and a step may write into it."""
    from lightning_utilities.core.apply_func import apply_to_collection

    return apply_to_collection(batch, Tensor, torch.clone)


def to_device(trainer: Any, module: Any, batch: Any, dataloader_idx: int = 0) -> Any:
    """Convert and move a batch as the Trainer does, the user's hooks included."""
    if trainer is None:
        return batch
    # The class's own method: the tracker may be listening on the instance, and this batch is not the run's.
    precision = trainer.precision_plugin
    batch = type(precision).convert_input(precision, batch)
    before = getattr(module, "_on_before_batch_transfer", None)
    if before is not None:
        batch = before(batch, dataloader_idx=dataloader_idx)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=dataloader_idx)


def _precision(trainer: Any, training: bool = False) -> contextlib.AbstractContextManager[Any]:
    if trainer is None:
        return contextlib.nullcontext()
    plugin = trainer.precision_plugin
    context: contextlib.AbstractContextManager[Any] = (
        plugin.train_step_context() if training else plugin.val_step_context()
    )
    return context


def _validation_grad_mode(trainer: Any) -> contextlib.AbstractContextManager[Any]:
    """Inference mode exactly where the Trainer's validation loop uses it: metric states depend on it."""
    loop = getattr(getattr(getattr(trainer, "fit_loop", None), "epoch_loop", None), "val_loop", None)
    if loop is None or not getattr(loop, "inference_mode", True):
        return contextlib.ExitStack()
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if distributed and torch.distributed.get_backend() == "gloo":
        return contextlib.ExitStack()
    if (
        type(trainer.strategy).__name__ == "FSDPStrategy"
        or type(trainer.accelerator).__name__ == "XLAAccelerator"
    ):
        return contextlib.ExitStack()
    return torch.inference_mode()


@contextlib.contextmanager
def silenced(trainer: Any, module: Any) -> Iterator[None]:
    """No value reaches a logger, a progress bar or ``callback_metrics``."""
    from lightning.pytorch.loggers.logger import DummyLogger

    parts = [part for part in module.modules() if callable(getattr(part, "log_dict", None))]
    before = [
        (part, name, part.__dict__.get(name, _ABSENT))
        for part in parts
        for name in ("log", "log_dict", "print")
    ]
    loggers = list(trainer.loggers) if trainer is not None else []
    try:
        for part, name, _ in before:
            object.__setattr__(part, name, _nothing)
        if loggers:
            trainer.loggers = [DummyLogger()]
        yield
    finally:
        for part, name, value in before:
            if value is _ABSENT:
                part.__dict__.pop(name, None)
            else:
                object.__setattr__(part, name, value)
        if loggers:
            trainer.loggers = loggers


_ABSENT = object()


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None
