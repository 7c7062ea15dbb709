"""One watched fit: what the hooks hand in, and what a look needs, put together on every rank."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np

from memguard.callbacks.evaluation import Evaluation
from memguard.callbacks.gather import everybody, n_ranks
from memguard.callbacks.opening import open_watch
from memguard.callbacks.reference import add_reference
from memguard.capture import Capture, Observation, collect
from memguard.capture.heldout import HeldOutSource
from memguard.capture.sides import batch_key, check_sides
from memguard.errors import DataError, MemguardError, MemguardWarning
from memguard.probes.budget import final_budget
from memguard.probes.look import Look
from memguard.probes.sides import Floats, Ints, WatchSettings
from memguard.probes.watch import Watch
from memguard.references.early_stopped import State, initial_state
from memguard.report.words import in_epochs

__all__ = ["WatchSession"]

SideName = Literal["train", "held_out"]

_FLUSH = 64  # observations kept on the device before they are moved together


class WatchSession:
    """Capture, held-out source and watch of one fit.

    Args:
        capture: Installed by the owner.
        heldout: As the monitor takes it.
        record_to_patient: As the monitor takes it.
        settings: Of the watch.
        notes: Where caveats are kept, by default in a list of its own.

    Attributes:
        watch: ``None`` until both sides are known.
        notes: Caveats for the report, each once.
        held_step: Optimizer step at which the held-out losses were measured.
    """

    def __init__(
        self,
        capture: Capture,
        heldout: Any,
        record_to_patient: Any,
        settings: WatchSettings,
        notes: list[str] | None = None,
    ) -> None:
        self.capture, self.record_to_patient, self.settings = capture, record_to_patient, settings
        self.source = HeldOutSource(heldout, capture)
        self.watch: Watch | None = None
        self.notes = [] if notes is None else notes
        self.held_step = -1
        self._buffers: dict[SideName, list[Observation]] = {"train": [], "held_out": []}
        self._ids: dict[SideName, list[tuple[Ints, Any]]] = {"train": [], "held_out": []}
        self._evaluation: Evaluation | None = None
        self._initial: State | None = None
        self._held_now: Floats | None = None  # of the last validation, in full precision
        self._without_held_out: list[float] = []

    def note(self, text: str) -> None:
        """Keep a caveat for the report, once."""
        if text not in self.notes:
            self.notes.append(text)

    # -- opening -------------------------------------------------------------------------------------------

    def open(self, trainer: pl.Trainer) -> bool:
        """Resolve both sides; put off while the run has not made its validation loaders yet.

        Returns:
            Whether the watch was opened by this call.
        """
        if self.watch is not None:
            return False
        if self.source.free and trainer.val_dataloaders is None and trainer.enable_validation:
            return False
        watch = open_watch(
            self.capture,
            self.source,
            self.record_to_patient,
            self.settings,
            strict=not getattr(trainer, "fast_dev_run", False),
        )
        self.watch, self._evaluation = watch, Evaluation(self.capture, self.source, watch)
        if watch.members.patients.unit == "record":
            self.note("No patient ids were found: every number here is about records, not about patients.")
        return True

    # -- what steps reveal ---------------------------------------------------------------------------------

    def observe(self, side: SideName, seen: Observation) -> None:
        """Keep the losses of a step; in the first epoch also what its records hold.

        Raises:
            DataError: If the batch lacks the entry that names the patients.
        """
        key = batch_key(self.record_to_patient)
        if key is not None and seen.patient is None:
            raise DataError(
                f"a {side.replace('_', '-')} batch without an entry {key!r}",
                "its losses cannot be given to patients",
                "pass record_to_patient= with the name of an entry of every batch, or one id per record",
            )
        watch = self.watch
        if watch is not None:
            store = (watch.members if side == "train" else watch.held_out).store
            if not store.complete:
                try:
                    store.add(seen.positions, **seen.content())
                except MemguardError as error:
                    self.note(f"The contents of the records could not be read: {error}")
        buffer = self._buffers[side]
        buffer.append(seen)
        if len(buffer) >= _FLUSH:
            self.flush()

    def begin_validation(self) -> None:
        """Forget earlier held-out losses of this epoch: the last validation counts."""
        self._buffers["held_out"].clear()
        self._held_now = None
        if self.watch is not None and self.source.free:
            self.watch.held_out.traces.merge([])

    def flush(self) -> None:
        """Move what was observed from the device into the watch."""
        if self.watch is None:
            return
        for side, buffer in self._buffers.items():
            if buffer:
                self.watch.unit = buffer[-1].unit
                (self.watch.members if side == "train" else self.watch.held_out).add(*collect(buffer))
                if batch_key(self.record_to_patient) is not None:
                    self._ids[side] += [(seen.positions, seen.patient) for seen in buffer]
                buffer.clear()

    def merge_ranks(self) -> None:
        """Give every rank what all ranks saw; repeats with which samplers pad an epoch count once."""
        if self.watch is None:
            return
        self.flush()
        if n_ranks() > 1:
            self.watch.merge(everybody(self.watch.payload()))
        key = batch_key(self.record_to_patient)
        if key is not None and (any(self._ids.values()) or n_ranks() > 1):
            found = everybody({side: _columns(pairs) for side, pairs in self._ids.items()})
            if self.watch.name_patients(found, source=f"the batch entry {key!r}"):
                check_sides(self.watch.members.patients, self.watch.held_out.patients)
            self._ids = {"train": [], "held_out": []}

    def close_epoch(self, epoch: int, step: int) -> None:
        """The epoch is over: its losses become a snapshot, of two bytes each."""
        if self.watch is None:
            return
        self.merge_ranks()
        if np.isfinite(self.watch.held_out.traces.current).any():
            self._held_now = self.watch.held_out.traces.current.copy()
        self.watch.close_epoch(epoch, step)

    # -- looking -------------------------------------------------------------------------------------------

    def look(self, *, epoch: float, step: int, rank_members: bool, evaluate: bool = False) -> Look | None:
        """Look at the members and at all held-out patients.

        Args:
            epoch: Epochs finished.
            step: Optimizer steps taken.
            rank_members: Whether to score every member.
            evaluate: Whether to evaluate the held-out patients even though a validation loop does.

        Returns:
            ``None``, with a warning, where validation gave no loss per record.
        """
        evaluation = self._evaluation
        if evaluation is None:
            return None
        watch = evaluation.watch
        if evaluate or not self.source.free:
            evaluation.refresh_held_out()
            self.held_step = step
        self.merge_ranks()
        if not np.isfinite(watch.held_out.traces.current).any():
            self._warn_no_held_out(epoch)
            return None
        look = watch.look(epoch=epoch, step=step, sample_loss=evaluation.sample(), rank=rank_members)
        if watch.contents.copies:
            self.note(
                f"{watch.contents.copies:,} held-out records are equal to a training record: they may be the same "
                "patient under two ids, and make leakage look smaller than it is."
            )
        return look

    def look_between(self, *, epoch: float, step: int) -> Look | None:
        """Look between two validations, at a sample of the held-out patients."""
        evaluation = self._evaluation
        if evaluation is None:
            return None
        watch = evaluation.watch
        self.flush()
        held = evaluation.held_out_sample()
        return watch.look(
            epoch=epoch, step=step, sample_loss=evaluation.sample(), held_out_loss=held, rank=False
        )

    def final_look(
        self, last: Look, final_evaluation: Literal["auto"] | bool, *, epochs: int, step: int
    ) -> Look | None:
        """Look again with members evaluated as the held-out patients were, as many as the budget allows.

        Args:
            last: The last look, which says who is most likely memorized.
            final_evaluation: ``True``, ``False`` or ``"auto"``.
            epochs: Epochs finished.
            step: Optimizer steps taken.

        Returns:
            ``None`` where the budget is zero, or no loss is a number any more: the look before stands.
        """
        evaluation = self._evaluation
        if evaluation is None:
            return None
        watch = evaluation.watch
        trained = int(watch.members.seen.sum())
        rows = watch.candidates(last, final_budget(trained, epochs, final_evaluation))
        if rows.size == 0:
            return None
        # Not the snapshot's: rounded losses against exact ones put all the small ones on the wrong side.
        held = self._held_now if self._held_now is not None else watch.held_out.traces.current
        if self.held_step != step:
            held = evaluation.held_out()
        if not np.isfinite(held).any():
            return None
        sample_loss, members = evaluation.sample(), evaluation.members(rows)
        if not np.isfinite(members).any():
            return None
        look = watch.look(
            epoch=epochs, step=step, sample_loss=sample_loss, held_out_loss=held, member_loss=members
        )
        if rows.size < trained and last.step == step:  # measured already, on losses kept in full precision
            look = replace(look, membership=last.membership)
        return look

    def keep_initial(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Keep the weights before the first step, from which a reference model is to start."""
        if trainer.global_step == 0:
            self._initial = initial_state(module)
        else:  # a reference from here would have seen the members
            self.note("No reference was trained: the run was resumed, and its first weights are gone.")

    def train_reference(self, trainer: pl.Trainer, module: pl.LightningModule, budget: float) -> None:
        """Train a reference model from the weights that were kept, if any were, and let the watch have its losses.

        Args:
            trainer: Of the run.
            module: Of the run.
            budget: Optimizer steps that it may take, as a share of the run's.
        """
        if self.watch is None or self._initial is None:
            return
        said = add_reference(
            trainer,
            module,
            self._initial,
            budget=budget,
            capture=self.capture,
            source=self.source,
            watch=self.watch,
        )
        self.note(said)

    def _warn_no_held_out(self, epoch: float) -> None:
        said = ": validation gave no loss per record, so there is no membership number."
        self._without_held_out.append(epoch)
        self.notes[:] = [note for note in self.notes if not note.endswith(said)]
        self.note(in_epochs(self._without_held_out) + said)
        warnings.warn(
            MemguardWarning(
                "no loss of a held-out record was seen in validation",
                "there is nothing to compare the members with",
                "return the loss from validation_step, or pass per_record_loss=",
            ),
            stacklevel=3,
        )


def _columns(pairs: list[tuple[Ints, Any]]) -> tuple[Ints, list[Any]]:
    given = [
        (at, ids.tolist() if hasattr(ids, "tolist") else list(ids)) for at, ids in pairs if ids is not None
    ]
    positions = np.concatenate([*(at for at, _ in given), np.zeros(0, np.int64)]).astype(np.int64)
    return positions, [one for _, ids in given for one in ids]
