"""One watched fit: what the hooks hand in, and what a look needs, put together on every rank."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
from numpy.typing import NDArray

from memguard.callbacks.gather import everybody, n_ranks, rank
from memguard.callbacks.heldout import HeldOutSource
from memguard.callbacks.opening import batch_key, check_sides, open_watch
from memguard.capture import Capture, CapturedLoss, Fetched, Observation, collect
from memguard.errors import DataError, MemguardError, MemguardWarning
from memguard.probes.sides import WatchSettings
from memguard.probes.watch import Look, Watch
from memguard.records.surrogate import MIN_HELD_OUT
from memguard.references.early_stopped import State, mean_loss, train_reference
from memguard.report.words import in_epochs

__all__ = ["WatchSession"]

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
SideName = Literal["train", "held_out"]

_FLUSH = 64  # observations kept on the device before they are moved together
_FINAL_SHARE = 0.02  # of the training time that the final pass may cost on "auto"
_FORWARD = 1 / 3  # cost of evaluating a record, in units of training on it


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
        self._sample_windows: tuple[Ints, Fetched] | None = None
        self._held_windows: Fetched | None = None
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
        self.watch = open_watch(
            self.capture,
            self.source,
            self.record_to_patient,
            self.settings,
            strict=not getattr(trainer, "fast_dev_run", False),
        )
        if self.watch.members.patients.unit == "record":
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
        watch = self.watch
        if watch is None:
            return None
        if evaluate or not self.source.free:
            self._evaluate_all_held_out()
            self.held_step = step
        self.merge_ranks()
        if not np.isfinite(watch.held_out.traces.current).any():
            self._warn_no_held_out(epoch)
            return None
        look = watch.look(epoch=epoch, step=step, sample_loss=self._sample_loss(), rank=rank_members)
        if watch.contents.copies:
            self.note(
                f"{watch.contents.copies:,} held-out records are equal to a training record: they may be the same "
                "patient under two ids, and make leakage look smaller than it is."
            )
        return look

    def look_between(self, *, epoch: float, step: int) -> Look | None:
        """Look between two validations, at a sample of the held-out patients."""
        watch = self.watch
        if watch is None:
            return None
        self.flush()
        if self._held_windows is None:
            n = self.source.n_records
            size = min(n, max(self.settings.sample_size(len(watch.members.tokens)), 200))
            rows = np.sort(np.random.default_rng(self.settings.seed).permutation(n)[:size])
            self._held_windows = self.source.windows(_mine(rows))
        held = self._held_out_losses(self._held_windows)
        return watch.look(
            epoch=epoch, step=step, sample_loss=self._sample_loss(), held_out_loss=held, rank=False
        )

    def final_look(self, last: Look, final_evaluation: bool | str, *, epochs: int, step: int) -> Look | None:
        """Look again with members evaluated as the held-out patients were, as many as the budget allows.

        Args:
            last: The last look, which says who is most likely memorized.
            final_evaluation: ``True``, ``False`` or ``"auto"``.
            epochs: Epochs finished.
            step: Optimizer steps taken.

        Returns:
            ``None`` where the budget is zero, or no loss is a number any more: the look before stands.
        """
        watch = self.watch
        if watch is None or final_evaluation is False:
            return None
        trained = int(watch.members.seen.sum())
        budget = trained
        if final_evaluation == "auto":
            budget = min(trained, int(_FINAL_SHARE * max(epochs, 1) * trained / _FORWARD))
        rows = watch.candidates(last, budget)
        if rows.size == 0:
            return None
        # Not the snapshot's: rounded losses against exact ones put all the small ones on the wrong side.
        held = self._held_now if self._held_now is not None else watch.held_out.traces.current
        if self.held_step != step:
            held = self._held_out_losses(self.source.windows(_mine(np.arange(self.source.n_records))))
        if not np.isfinite(held).any():
            return None
        sample_loss = self._sample_loss()
        members = self._member_losses(self.capture.fetch("train", _mine(rows)))
        if not np.isfinite(members).any():
            return None
        look = watch.look(
            epoch=epochs, step=step, sample_loss=sample_loss, held_out_loss=held, member_loss=members
        )
        if rows.size < trained and last.step == step:
            look = replace(
                look, membership=last.membership
            )  # measured already, on losses kept in full precision
        return look

    def train_reference(
        self, trainer: pl.Trainer, module: pl.LightningModule, initial: State, budget: float
    ) -> None:
        """Train one early-stopped reference on half of the held-out patients, and keep its losses for the score.

        Args:
            trainer: Of the run.
            module: Of the run.
            initial: Its weights before the first step.
            budget: Optimizer steps that it may take, as a share of the run's.
        """
        watch = self.watch
        if watch is None:
            return
        inside, outside = watch.held_back()
        n_left = np.unique(watch.held_out.patients.code[outside]).size
        if n_left < MIN_HELD_OUT or n_ranks() > 1:
            why = "more than one process" if n_ranks() > 1 else f"{n_left} held-out patients left beside it"
            self.note(f"No reference was trained: {why}.")
            return
        referee = self.source.windows(outside)
        loader = self.capture.tracker.loader("train")

        def losses(run: pl.Trainer, model: pl.LightningModule, windows: Fetched) -> list[CapturedLoss]:
            return self.capture.evaluate(windows, trainer=run, module=model)

        try:
            found = train_reference(
                trainer,
                module,
                initial,
                self.source.dataset,
                inside,
                referee=lambda run, model: mean_loss(losses(run, model, referee)),
                collate_fn=self.source.collate_fn,
                batch_size=getattr(loader, "batch_size", None) or 64,
                max_steps=max(int(budget * trainer.global_step), 1),
                seed=self.settings.seed,
            )
            members = np.full(len(watch.members.tokens), np.nan, np.float32)
            trained = self.capture.fetch("train", np.flatnonzero(watch.members.seen))
            for at, one in zip(trained.positions, losses(trainer, found.module, trained), strict=True):
                members[at] = one.loss.float().cpu().numpy()
            held = np.full(len(watch.held_out.tokens), np.nan, np.float32)
            for at, one in zip(referee.positions, losses(trainer, found.module, referee), strict=True):
                held[at] = one.loss.float().cpu().numpy()
        except Exception as error:  # the run itself is trained: a second training that fails must not cost it
            warnings.warn(
                MemguardWarning(
                    f"the reference model could not be trained ({error!r})",
                    "the expected losses rest on the zero-cost features alone",
                    "pass reference_budget=0, or let the module train without a validation loop",
                ),
                stacklevel=2,
            )
            self.note(f"No reference was trained: {type(error).__name__}.")
            return
        watch.reference = members, held
        self.note(
            f"One reference was trained on {inside.size:,} held-out records ({found.epochs} epochs, best "
            f"{found.best_epoch}, "
            f"{found.steps} steps); the {n_left:,} other held-out patients give the p-values."
        )

    def _sample_loss(self) -> Floats:
        """Eval-mode losses of the member sample; the ranks share the work."""
        assert self.watch is not None
        sample = self.watch.draw_sample()
        if self._sample_windows is None or not np.array_equal(self._sample_windows[0], sample):
            self._sample_windows = sample, self.capture.fetch("train", _mine(sample))
        return self._member_losses(self._sample_windows[1])[sample]

    def _member_losses(self, windows: Fetched) -> Floats:
        assert self.watch is not None
        captured = self.capture.evaluate(windows)
        mine = [(at, c.loss.float().cpu().numpy()) for at, c in zip(windows.positions, captured, strict=True)]
        loss = np.full(len(self.watch.members.tokens), np.nan, np.float32)
        for parts in everybody(mine):
            for at, values in parts:
                loss[at] = values
        return loss

    def _held_out_losses(self, windows: Fetched) -> Floats:
        assert self.watch is not None
        positions, loss, _, _ = self.source.evaluate(windows)
        held = np.full(len(self.watch.held_out.tokens), np.nan, np.float32)
        for at, values in everybody((positions, loss)):
            held[at] = values
        return held

    def _evaluate_all_held_out(self) -> None:
        """Held-out data of the monitor's own: evaluated whole at each look."""
        assert self.watch is not None
        windows = self._held_windows
        if windows is None or self.source.free:  # for a validation loop these are a sample
            windows = self.source.windows(_mine(np.arange(self.source.n_records)))
        if not self.source.free:
            self._held_windows = windows
        side = self.watch.held_out
        wanted = not side.store.complete
        positions, loss, tokens, contents = self.source.evaluate(windows, contents=wanted)
        for at, content in zip(windows.positions, contents, strict=False):
            side.store.add(at, **content)
        side.traces.merge([])
        side.add(positions, loss, tokens)

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


def _mine(rows: Ints) -> Ints:
    """This rank's part of work that all ranks share out."""
    return rows[rank() :: n_ranks()]


def _columns(pairs: list[tuple[Ints, Any]]) -> tuple[Ints, list[Any]]:
    given = [
        (at, ids.tolist() if hasattr(ids, "tolist") else list(ids)) for at, ids in pairs if ids is not None
    ]
    positions = np.concatenate([*(at for at, _ in given), np.zeros(0, np.int64)]).astype(np.int64)
    return positions, [one for _, ids in given for one in ids]
