"""Listen to the training and validation steps of a run, and evaluate records outside them.

:class:`StepCapture` shadows ``trainer.strategy.training_step`` and ``.validation_step`` on the instance, so
that a ``with`` block surrounds exactly the user's step: under DDP, LBFGS, manual optimization, and when it
raises.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor

from memguard.capture.call import LossCall
from memguard.capture.evaluation import PerRecordLoss, evaluate, override_of, run_override
from memguard.capture.graph import GraphRoute
from memguard.capture.ids import IndexTracker, Positions, Stage
from memguard.capture.layout import LayoutMemory, UndecidedLayoutError
from memguard.capture.losses import CapturedLoss, LossCapture, attribute, loss_of
from memguard.capture.shadow import Shadows
from memguard.capture.weigh import RandomStates, Weigher, random_states, rerun_of
from memguard.errors import AmbiguousLossError, MemguardError, MemguardWarning

__all__ = ["StepCapture", "evaluate"]

_PATIENCE = 100  # steps


class StepCapture:
    """Keeps the loss and the positions of the records of the last step.

    Args:
        tracker: Tells the positions.
        per_record_loss: ``(module, batch) -> (B,)`` losses; replaces listening. A module method of that name
            is found by itself.

    Attributes:
        last_train: ``(positions, captured, batch)`` of the last training step; None if it gave nothing.
        batch_train: The same for every call of the training step on the last batch: more than one where the batch
            is trained on in pieces, as by the loop engine of DP-SGD.
        last_val: The same for each validation loader.
        accepted: Signature of the call that was accepted as training loss.
        problem: What went wrong in the last step, for the owner to raise or to report.
        n_taken: Training steps whose losses were taken since :meth:`install`.
        undecided: Steps whose losses were not, as their labels fit with records first and with positions first.
        weigher: Gives the records of a training step their weights; ``None``, all count as they are.
    """

    def __init__(self, tracker: IndexTracker, *, per_record_loss: PerRecordLoss | None = None) -> None:
        self.tracker = tracker
        self.per_record_loss = per_record_loss
        self.memory = LayoutMemory()
        self.graph = GraphRoute()
        self.accepted: tuple[str, str] | None = None
        self.last_train: tuple[Positions, CapturedLoss, Any] | None = None
        self.batch_train: list[tuple[Positions, CapturedLoss, Any]] = []
        self.last_val: dict[int, tuple[Positions, CapturedLoss, Any]] = {}
        self.problem: MemguardError | None = None
        self.n_taken = self.undecided = 0
        self.weigher: Weigher | None = None
        self.on_problem: Callable[[MemguardError, Stage], None] = _raise
        self.enabled: dict[Stage, bool] = {"train": True, "val": True}
        self._trainer: Any = None
        self._module: Any = None
        self._shadows = Shadows()
        self._last_arrival = -1
        self._batch = -1
        self._taken: list[
            tuple[Any, Positions]
        ] = []  # batches of this step, for a private step that repeats them

    def install(self, trainer: Any, pl_module: Any) -> None:
        """Begin to listen; call in ``setup("fit")``. A second call starts afresh."""
        self.restore()
        self._trainer, self._module, self.n_taken, self.undecided = trainer, pl_module, 0, 0
        self.graph = GraphRoute()
        strategy = trainer.strategy
        train, val = strategy.training_step, strategy.validation_step

        def training_step(*args: Any, **kwargs: Any) -> Any:
            return self._train(train, args, kwargs)

        def validation_step(*args: Any, **kwargs: Any) -> Any:
            return self._val(val, args, kwargs)

        for name, replacement in (("training_step", training_step), ("validation_step", validation_step)):
            self._shadows.put(strategy, name, replacement)

    def restore(self) -> None:
        """Give the strategy its methods back: idempotent, for ``teardown`` and ``on_exception``."""
        self._shadows.restore()
        self._trainer = self._module = None
        self.last_train = None
        self.batch_train = []
        self.last_val.clear()
        self._taken.clear()
        self._last_arrival = self._batch = -1

    def this_batch(self) -> list[tuple[Positions, CapturedLoss, Any]]:
        """:attr:`batch_train`, empty if the training step was not called on the batch that the loop is at."""
        return self.batch_train if self._batch == self._loop_batch() else []

    # -- the two steps ---

    def _train(self, step: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        arrival = self.tracker.arrivals
        again = arrival == self._last_arrival  # LBFGS evaluates one batch several times; the first one counts
        if again and self.weigher is not None:
            if not self.weigher.private:
                self.weigher.refuse_again()
            return self._again(self.weigher, step, args, kwargs)
        if again or not self.enabled["train"] or self._trainer is None:
            return step(*args, **kwargs)
        self._last_arrival = arrival
        self.last_train = None
        if self._batch != self._loop_batch():
            self._batch, self.batch_train = self._loop_batch(), []
            self._taken.clear()
        batch = args[0] if args else next(iter(kwargs.values()), None)
        states = random_states() if self.weigher is not None and self._override() is not None else None
        returned, calls = self._heard(step, args, kwargs)
        like = None
        if loss_of(returned) is None:
            if not self._manual():
                return returned  # the step skipped this batch
            like = self.accepted
        if calls is None:
            if self.weigher is not None:
                self.weigher.missed += 1
            return returned  # another graph than the proven one: from the next step on, calls are listened to
        self.last_train = self._settle(calls, returned, batch, "train", 0, like)
        if self.last_train is not None:
            self.batch_train.append(self.last_train)
            self.accepted = self.last_train[1].signature or self.accepted
            self.n_taken += 1
            self.graph.compare(loss_of(returned), calls)
            if self.weigher is not None:
                if self.weigher.private:
                    self._taken.append((batch, self.last_train[0]))
                return self._weighed(self.weigher, returned, calls, states)
        return returned

    def _again(
        self, weigher: Weigher, step: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A batch that a private step runs a second time: weighed as at the first, and not taken again."""
        batch = args[0] if args else next(iter(kwargs.values()), None)
        positions = next((at for one, at in reversed(self._taken) if one is batch), None)
        returned, calls = self._heard(step, args, kwargs)
        if loss_of(returned) is None:
            return returned
        if positions is None or calls is None:
            raise AmbiguousLossError(
                "a private step ran on a batch that was not seen before",
                "its tokens cannot be weighed",
                'pass DPSGD(engine="loop"), or take what weighs tokens out of callbacks=',
            )
        captured = attribute(calls, returned, len(positions), batch=batch, memory=self.memory)
        return weigher.step(returned, calls, positions, captured)

    def _weighed(
        self, weigher: Weigher, returned: Any, calls: list[LossCall], states: RandomStates | None
    ) -> Any:
        assert self.last_train is not None
        positions, captured, batch = self.last_train
        override = self._override()
        rerun = None
        if override is not None and states is not None:
            rerun = rerun_of(override, self._module, batch, states)
        return weigher.step(returned, calls, positions, captured, rerun)

    def _heard(
        self, step: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, list[LossCall] | None]:
        """Run the training step; the calls that may be its loss, ``None`` if a proven graph fails to tell."""
        if self._override() is not None:
            return step(*args, **kwargs), []
        private = self.weigher is not None and self.weigher.private  # may be at work in the graph itself
        if self.graph.proven and not private:
            returned = step(*args, **kwargs)
            call = self.graph.call(loss_of(returned))
            return returned, None if call is None else [call]
        with LossCapture() as seen:
            returned = step(*args, **kwargs)
        return returned, _wanted(seen.calls, returned)

    def _val(self, step: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        trainer = self._trainer
        if not self.enabled["val"] or trainer is None or trainer.sanity_checking or not _fitting(trainer):
            return step(*args, **kwargs)
        with LossCapture() as seen:
            returned = step(*args, **kwargs)
        dataloader_idx = args[2] if len(args) > 2 and isinstance(args[2], int) else 0
        self.last_val.pop(dataloader_idx, None)
        batch = args[0] if args else None
        found = self._settle(seen.calls, returned, batch, "val", dataloader_idx, self.accepted)
        if found is not None:
            self.last_val[dataloader_idx] = found
        return returned

    def _settle(
        self,
        calls: list[LossCall],
        returned: Any,
        batch: Any,
        stage: Stage,
        dataloader_idx: int,
        like: tuple[str, str] | None,
    ) -> tuple[Positions, CapturedLoss, Any] | None:
        try:
            positions = self.tracker.positions(batch, stage=stage, dataloader_idx=dataloader_idx)
            override = self._override()
            if override is not None:
                captured = run_override(
                    override,
                    self._module,
                    batch,
                    len(positions),
                    trainer=self._trainer,
                    training=stage == "train",
                )
            else:
                captured = attribute(
                    calls, returned, len(positions), like=like, batch=batch, memory=self.memory
                )
            return positions, captured, batch
        except MemguardError as problem:
            if isinstance(problem, UndecidedLayoutError) and self._may_wait(stage):
                self._wait(problem, stage)
                return None
            self.problem = problem
            if stage == "train" and self.weigher is not None and self.weigher.private:
                raise
            self.on_problem(problem, stage)
            return None

    def _may_wait(self, stage: Stage) -> bool:
        """Whether this step may go by until another batch tells the layout; a weigher must have every batch."""
        return self.undecided < _PATIENCE and (stage == "val" or self.weigher is None)

    def _wait(self, problem: MemguardError, stage: Stage) -> None:
        self.undecided += 1
        if self.undecided == 1:
            warnings.warn(
                MemguardWarning(
                    f"{stage} step: {problem}", "its losses are not taken, those of later steps are", ""
                ),
                stacklevel=2,
            )

    def _loop_batch(self) -> int:
        """Number of the batch that the training loop is at, over all epochs."""
        return int(self._trainer.fit_loop.epoch_loop.batch_progress.total.ready) if self._trainer else -1

    def _override(self) -> PerRecordLoss | None:
        return override_of(self._module, self.per_record_loss)

    def _manual(self) -> bool:
        return not getattr(self._module, "automatic_optimization", True)


def _wanted(calls: list[LossCall], returned: Any) -> list[LossCall]:
    """Where a training step returns nothing (manual optimization), only a call with a gradient can be it."""
    if loss_of(returned) is None:
        return [call for call in calls if isinstance(call.result, Tensor) and call.result.requires_grad]
    return calls


def _fitting(trainer: Any) -> bool:
    return bool(getattr(trainer.state.fn, "value", trainer.state.fn) == "fit")


def _raise(problem: MemguardError, stage: Stage) -> None:
    if isinstance(problem, AmbiguousLossError) and stage == "val":
        return
    raise problem
