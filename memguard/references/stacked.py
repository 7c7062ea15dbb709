"""K references as one: their weights stacked, one step of `torch.func.vmap` for all of them.

Small models spend most of a step on starting operations, not on arithmetic; a stack starts each operation once.
Each reference keeps its own weights, batches and order of records, so that it is the model that a Trainer would have
trained from the same seed, but for rounding (and for dropout, which draws other numbers).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from memguard.capture.stillness import forked_rng, still_generators
from memguard.errors import ReferenceModelError
from memguard.references.job import Job, Step, Trained, cpu_state
from memguard.references.stackable import Schedule, Unattached, optimizer_of
from memguard.references.together import Group, together

__all__ = ["AT_ONCE", "Stack", "stacked"]

AT_ONCE = 32  # references in one stack: more gain nothing on a CPU, and a killed stack is lost as a whole
_DEVICES = {"cpu": "cpu", "gpu": "cuda", "cuda": "cuda", "mps": "mps"}


def stacked(jobs: list[Job], step: Step) -> Iterator[tuple[Job, Trained]]:
    """Train the references as stacks.

    Args:
        jobs: What to train, of one pool; ask `why_not_stacked` first.
        step: Told how many batches were trained on.

    Yields:
        Each job with its reference, all of a stack when the stack is done.

    Raises:
        ReferenceModelError: If the module cannot be trained so.

    Guarantees:
        Each optimizer step of each reference is on the same records as with ``sequential``. Sums are taken in
        another order: weights agree to rounding, which training may amplify.
    """
    for start in range(0, len(jobs), AT_ONCE):
        yield from _together(jobs[start : start + AT_ONCE], step)


def _together(jobs: list[Job], step: Step) -> Iterator[tuple[Job, Trained]]:
    began = time.perf_counter()
    seed = jobs[0].seeds[2]
    with forked_rng(seed), still_generators(jobs[0].data.dataset, seed=seed), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*performance drop because we have not yet implemented.*")
        stack = Stack(jobs)
        while stack.active:
            step(stack.step())
    seconds = (time.perf_counter() - began) / len(jobs)
    for k, job in enumerate(jobs):
        steps, epochs = stack.steps[k], stack.epochs[k]
        yield job, Trained(state=stack.done[k], steps=steps, epochs=epochs, seconds=seconds)


class _Step(nn.Module):
    """``forward`` is the training step, so that `functional_call` can give it other weights."""

    def __init__(self, module: pl.LightningModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: Any, batch_idx: int) -> Tensor:
        found = self.module.training_step(batch, batch_idx)
        loss = found["loss"] if isinstance(found, dict) else found
        if not isinstance(loss, Tensor) or loss.ndim > 1 or loss.numel() != 1:
            raise ReferenceModelError(
                f"a training step that returns {type(found).__name__}",
                "a stack needs the loss of each of its models",
                'pass backend="sequential"',
            )
        return loss.reshape(())


class Stack:
    """K models between two steps.

    Attributes:
        steps: Optimizer steps of each.
        epochs: Epochs of each.
        done: State of each that has finished.
        active: Those that have not.
    """

    def __init__(self, jobs: list[Job]) -> None:
        settings = self.settings = jobs[0].settings
        self.jobs = jobs
        modules = [job.module() for job in jobs]
        self.device = _device(settings.accelerator)
        self.module = modules[0].train()
        self.tensors = {
            name: torch.stack([dict(_named(one))[name].detach() for one in modules]).to(self.device)
            for name, _ in _named(self.module)
        }
        trainable = {name for name, value in self.module.named_parameters() if value.requires_grad}
        for name in trainable:
            self.tensors[name].requires_grad_()
        self.buffers = {name: self.tensors[name].clone() for name, _ in self.module.named_buffers()}
        self.module.to(self.device)
        self.schedule = self._schedule()
        self.optimizer = self._optimizer()
        self.stepped = [value for group in self.optimizer.param_groups for value in group["params"]]
        for name in ("log", "log_dict"):
            object.__setattr__(self.module, name, _nothing)
        self.wrapped = _Step(self.module)
        self.body = vmap(self._loss, in_dims=(0, 0, None), randomness="different")
        self.loaders = [job.loader(workers=0) for job in jobs]
        self.batches: list[Iterator[Any] | None] = [None] * len(jobs)
        self.place = [0] * len(jobs)  # in the epoch
        self.steps, self.epochs = [0] * len(jobs), [0] * len(jobs)
        self.done: dict[int, dict[str, Tensor]] = {}
        self.active = list(range(len(jobs)))

    def step(self) -> int:
        """One optimizer step of all that are not done.

        Returns:
            Batches trained on.
        """
        batches = [(k, self.place[k], self._next(k)) for k in self.active]
        self.take(batches)
        first = self.active[0]
        ended = {k: self._ended(k) for k in self.active}
        self.schedule.ended(self.place[first] or self.jobs[first].batches, self.epochs[first], ended[first])
        self._finish()
        return len(batches)

    def take(self, batches: list[tuple[int, int, Any]]) -> None:
        """Move the weights by one step.

        Args:
            batches: Number of a model, place in its epoch, and its batch.
        """
        for value in self.stepped:  # zero_grad of an optimizer takes a tenth of so small a step
            value.grad = None
        for group in together(batches, self.device):
            # Of the sum: no model's loss depends on another's weights, so each gets its own gradient.
            self.losses(group).sum().backward()  # type: ignore[no-untyped-call]
        self._clip()
        for mine, theirs in zip(
            self.optimizer.param_groups, self.schedule.optimizer.param_groups, strict=True
        ):
            mine.update(
                {key: value for key, value in theirs.items() if key not in ("params", "fused", "foreach")}
            )
        self.optimizer.step()

    def losses(self, group: Group) -> Tensor:
        """Loss of each model of a group on its own batch, ``(len(group.models),)``."""
        tensors = self.tensors
        if len(group.models) < len(self.jobs):
            at = torch.tensor(group.models, device=self.device)
            tensors = {name: value.index_select(0, at) for name, value in tensors.items()}
        found: Tensor = self.body(tensors, group.batch, group.batch_idx)
        return found

    def changed_buffers(self) -> list[str]:
        """Buffers that a step wrote to."""
        return [name for name, value in self.buffers.items() if not torch.equal(self.tensors[name], value)]

    def _loss(self, tensors: dict[str, Tensor], batch: Any, batch_idx: int) -> Tensor:
        given = {f"module.{name}": value for name, value in tensors.items()}
        found: Tensor = functional_call(self.wrapped, given, (batch, batch_idx))
        for name, value in tensors.items():
            if given[f"module.{name}"] is not value:
                raise ReferenceModelError(
                    f"a training step that replaces {name}",
                    "a stack would lose what it writes",
                    'pass backend="sequential"',
                )
        return found

    def _schedule(self) -> Schedule:
        job = self.jobs[0]
        steps = [self.settings.max_steps] if self.settings.max_steps >= 0 else []
        if self.settings.max_epochs is not None and self.settings.max_epochs >= 0:
            steps.append(self.settings.max_epochs * job.batches)
        # Lightning's own trainer would ask for data to be set up before it said how long training is.
        facts = Unattached(
            max_epochs=self.settings.max_epochs,
            max_steps=self.settings.max_steps,
            num_training_batches=job.batches,
            accumulate_grad_batches=1,
            estimated_stepping_batches=min(steps) if steps else float("inf"),
        )
        object.__setattr__(self.module, "_trainer", facts)
        found = optimizer_of(self.module)
        object.__setattr__(self.module, "_trainer", Unattached())
        if isinstance(found, str):
            raise ReferenceModelError(
                found, "a stack steps all its models at once", 'pass backend="sequential"'
            )
        if found.scheduler is not None and len({job.batches for job in self.jobs}) > 1:
            raise ReferenceModelError(
                "halves with epochs of different lengths and a learning rate that changes",
                "the models of a stack have one learning rate at a time",
                'pass backend="sequential"',
            )
        return found

    def _optimizer(self) -> torch.optim.Optimizer:
        """The user's optimizer over stacked weights: it works weight by weight, and does not see the stack."""
        source = self.schedule.optimizer
        names = {id(value): name for name, value in self.module.named_parameters()}
        groups = [
            {
                **{key: value for key, value in group.items() if key not in ("params", "foreach", "fused")},
                "params": [
                    self.tensors[names[id(value)]] for value in group["params"] if value.requires_grad
                ],
            }
            for group in source.param_groups
        ]
        return type(source)(groups, fused=self.device.type in ("cpu", "cuda"))  # type: ignore[call-arg]

    def _clip(self) -> None:
        limit = self.settings.gradient_clip_val
        if not limit:
            return
        grads = [value.grad for value in self.stepped if value.grad is not None]
        if self.settings.gradient_clip_algorithm == "value":
            for grad in grads:
                grad.clamp_(-limit, limit)
            return
        norm = torch.stack([grad.flatten(1).norm(dim=1) for grad in grads]).norm(dim=0)
        scale = (limit / (norm + 1e-6)).clamp(
            max=1.0
        )  # as torch.nn.utils.clip_grad_norm_ does, for each model
        for grad in grads:
            grad.mul_(scale.view(-1, *[1] * (grad.ndim - 1)))

    def _next(self, k: int) -> Any:
        iterator = self.batches[k]
        if iterator is None:
            iterator = self.batches[k] = iter(self.loaders[k])
        return next(iterator)

    def _ended(self, k: int) -> bool:
        """Count a step of a model; whether it ended an epoch."""
        self.steps[k] += 1
        self.place[k] += 1
        if self.place[k] < self.jobs[k].batches:
            return False
        self.place[k], self.batches[k] = 0, None
        self.epochs[k] += 1
        return True

    def _finish(self) -> None:
        for k in [k for k in self.active if self.steps[k] >= self.jobs[k].total]:
            self.done[k] = self.state(k)
            self.active.remove(k)

    def state(self, k: int) -> dict[str, Tensor]:
        """A copy of one model's state, under all of its names."""
        with torch.no_grad():
            for name, value in _named(self.module):
                value.copy_(self.tensors[name][k])
        return cpu_state(self.module)


def _named(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _nothing(*args: Any, **kwargs: Any) -> None:
    """A stack logs nothing."""


def _device(accelerator: str) -> torch.device:
    name = _DEVICES.get(accelerator)
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
