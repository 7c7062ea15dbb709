"""Everything a monitor needs from the running steps, in one object."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch

from memguard.capture.content import batch_content
from memguard.capture.evaluation import PerRecordLoss, evaluate
from memguard.capture.fetch import Fetched, fetch, source_of
from memguard.capture.ids import IndexTracker, Positions, RecordIds, Stage, entry_of
from memguard.capture.losses import CapturedLoss
from memguard.capture.steps import StepCapture
from memguard.errors import IndexTrackingError, MemguardError, MemguardWarning

__all__ = ["Capture", "Observation", "collect"]

_Array = np.ndarray[Any, np.dtype[Any]]


class Observation:
    """The records of one step and their losses; reading a number moves it to the CPU, not before.

    Attributes:
        positions: ``(B,)`` int64 positions in the dataset.
        unit: ``"nats/token"``, ``"nats/record"`` or ``"loss/record"``.
        route: How the loss was found.
        patient: ``(B,)`` ids from the batch, if ``record_to_patient`` names an entry of it.

    Example:
        >>> import torch
        >>> captured = CapturedLoss(loss=torch.tensor([0.5]), tokens=torch.tensor([3]), route="")
        >>> seen = Observation(np.array([7]), captured)
        >>> seen.loss, seen.tokens
        (array([0.5], dtype=float32), array([3]))
    """

    __slots__ = ("_batch", "_names", "captured", "patient", "positions")

    def __init__(
        self,
        positions: Positions,
        captured: CapturedLoss,
        batch: Any = None,
        patient: Any = None,
        names: frozenset[str] = frozenset(),
    ) -> None:
        self.positions, self.captured, self.patient = positions, captured, patient
        self._batch, self._names = batch, names

    @property
    def loss(self) -> _Array:
        """``(B,)`` float32."""
        loss: _Array = self.captured.loss.detach().to("cpu", torch.float32).numpy()
        return loss

    @property
    def tokens(self) -> _Array:
        """``(B,)`` int64, predicted positions."""
        tokens: _Array = self.captured.tokens.detach().to("cpu", torch.int64).numpy()
        return tokens

    @property
    def unit(self) -> str:
        """Unit of the loss."""
        return self.captured.unit

    @property
    def route(self) -> str:
        """How the loss was found."""
        return self.captured.route

    def content(self) -> dict[str, Any]:
        """The records as codes or features (:func:`~memguard.capture.content.batch_content`).

        Raises:
            MemguardError: If the step is over: an observation does not keep its batch alive.
        """
        if self._batch is None:
            raise MemguardError("the batch of this step is gone", "", "read content() before the next step")
        return batch_content(self._batch, self.captured, names=self._names)

    def release(self) -> None:
        """Let go of the batch and the targets; positions, losses and token counts stay."""
        self._batch = None
        kept = self.captured
        if kept.targets is not None or kept.mask is not None:
            self.captured = CapturedLoss(
                loss=kept.loss, tokens=kept.tokens, unit=kept.unit, route=kept.route, signature=kept.signature
            )


def collect(observations: Sequence[Observation]) -> tuple[Positions, _Array, _Array]:
    """Many observations as three arrays, with one transfer from the device.

    Warns:
        MemguardWarning: If losses of records with targets are NaN or infinite.

    Returns:
        positions ``(n,)`` int64, loss ``(n,)`` float32, tokens ``(n,)`` int64, in order of observation.

    Example:
        >>> collect([])
        (array([], dtype=int64), array([], dtype=float32), array([], dtype=int64))
    """
    if not observations:
        return np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.int64)
    loss = torch.cat([seen.captured.loss.detach() for seen in observations]).cpu().numpy()
    tokens = torch.cat([seen.captured.tokens.detach() for seen in observations]).cpu().numpy()
    wrong = int((~np.isfinite(loss) & (tokens > 0)).sum())
    if wrong:
        warnings.warn(
            MemguardWarning(
                f"{wrong} of {len(loss)} losses are NaN or infinite",
                "their records count as not seen, and the model may have diverged",
                "look at the learning rate, the precision and the inputs of these steps",
            ),
            stacklevel=2,
        )
    return np.concatenate([seen.positions for seen in observations]), loss, tokens


class Capture:
    """Positions and losses of the records of every step of a fit.

    Install in ``setup("fit")``, restore in ``teardown`` *and* ``on_exception``. Read :attr:`last_train` in
    ``on_train_batch_end`` and :meth:`last_val` in ``on_validation_batch_end``.

    Args:
        per_record_loss: ``(module, batch) -> (B,)`` losses; a module method of that name is found by itself.
        record_ids: ``(batch) -> ids`` or the name of an entry of the batch; None follows the loaders.
        record_to_patient: If a string, the entry of the batch that names each record's patient.
        train_loader: Which training loader to follow, where there are several.
        on_problem: ``"raise"`` at once; ``"warn"``: one warning, then no more capture in that stage;
            ``"auto"``: raise while nothing is lost (the first step), warn later.

    Example:
        >>> capture = Capture()
        >>> capture.last_train is None, capture.route
        (True, 'dataset positions')
    """

    def __init__(
        self,
        per_record_loss: PerRecordLoss | None = None,
        record_ids: RecordIds = None,
        *,
        record_to_patient: Any = None,
        train_loader: str | int | None = None,
        on_problem: Literal["auto", "raise", "warn"] = "auto",
    ) -> None:
        self.tracker = IndexTracker(record_ids, train_loader=train_loader)
        self.steps = StepCapture(self.tracker, per_record_loss=per_record_loss)
        self.steps.on_problem = self._problem
        self.per_record_loss = per_record_loss
        self.patient_key = record_to_patient if isinstance(record_to_patient, str) else None
        self.on_problem = on_problem
        self.problems: dict[Stage, MemguardError] = {}
        self._trainer: Any = None
        self._module: Any = None
        self._train: tuple[Any, Observation] | None = None
        self._val: dict[int, tuple[Any, Observation]] = {}

    def install(self, trainer: Any, pl_module: Any) -> None:
        """Begin; a second call starts afresh."""
        self._trainer, self._module = trainer, pl_module
        self.problems.clear()
        self.steps.enabled = {"train": True, "val": True}
        self.tracker.install(trainer)
        self.steps.install(trainer, pl_module)

    def restore(self) -> None:
        """Give trainer, strategy and loaders back as they were; idempotent."""
        self.steps.restore()
        self.tracker.restore()
        self._train = None
        self._val.clear()
        self._trainer = self._module = None

    def verify(self) -> None:
        """Refuse loaders that cannot be followed before the first step; for ``on_train_start``."""
        self.tracker.verify("train")

    @property
    def last_train(self) -> Observation | None:
        """The last training step; None if it gave no loss."""
        found = self.steps.last_train
        if found is None:
            return None
        if self._train is None or self._train[0] is not found:
            if self._train is not None:
                self._train[1].release()
            self._train = (found, self._observe(found, "train"))
        return self._train[1]

    def take_train(self) -> list[Observation]:
        """What the training step has shown of the batch that the loop is at: one observation for each call of it.

        Call it once in ``on_train_batch_end``. More than one where the batch is trained on in pieces; none where the
        step was not called, or gave no loss.
        """
        found = self.steps.this_batch()
        if len(found) > 1:
            return [self._observe(one, "train") for one in found]
        return [self.last_train] if found and self.last_train is not None else []

    def last_val(self, dataloader_idx: int = 0) -> Observation | None:
        """The last validation step of a loader; None if it gave no loss."""
        found = self.steps.last_val.get(dataloader_idx)
        if found is None:
            return None
        before = self._val.get(dataloader_idx)
        if before is None or before[0] is not found:
            if before is not None:
                before[1].release()
            self._val[dataloader_idx] = (found, self._observe(found, "val", dataloader_idx))
        return self._val[dataloader_idx][1]

    @property
    def route(self) -> str:
        """How records are told apart."""
        return self.tracker.route

    @property
    def names(self) -> frozenset[str]:
        """Entries of the batch that name its records and patients."""
        given = (self.patient_key, self.tracker.record_ids)
        return frozenset(name for name in given if isinstance(name, str))

    @property
    def accepted(self) -> tuple[str, str] | None:
        """Signature of the loss that training was found to use."""
        return self.steps.accepted

    def evaluate(
        self, batches: Iterable[Any], *, dataloader_idx: int = 0, trainer: Any = None, module: Any = None
    ) -> list[CapturedLoss]:
        """:func:`~memguard.capture.steps.evaluate` with what this run has learned about its loss.

        Args:
            batches: Raw batches.
            dataloader_idx: For a validation step that asks for it.
            trainer: Another Trainer than the run's, for another model of the same class.
            module: That model.
        """
        return evaluate(
            trainer or self._trainer, module or self._module, batches, per_record_loss=self.per_record_loss,
            like=self.accepted, memory=self.steps.memory, dataloader_idx=dataloader_idx,
        )  # fmt: skip

    def fetch(
        self, stage: Stage, positions: Any, *, batch_size: int | None = None, dataloader_idx: int = 0
    ) -> Fetched:
        """Records of a followed loader, collated as it does (:func:`~memguard.capture.fetch.fetch`)."""
        loader = self.tracker.loader(stage, dataloader_idx)
        dataset, collate, most = source_of(loader, self.tracker.whole_batches(stage, dataloader_idx))
        size = batch_size or getattr(loader, "batch_size", None) or 64
        found = fetch(dataset, positions, collate, min(size, most))
        if self.tracker.record_ids is not None:  # the collate function may have an order of its own
            found.positions = [
                self._named(batch, at, stage) for batch, at in zip(found, found.positions, strict=True)
            ]
        return found

    def _named(self, batch: Any, asked: Positions, stage: Stage) -> Positions:
        given = self.tracker.positions(batch, stage=stage)
        if not np.array_equal(np.sort(given), np.sort(asked)):
            raise IndexTrackingError(
                f"record_ids gives other positions than those of the {len(asked)} {stage} records that were read",
                "the losses that a look measures would belong to other records",
                "give for each record of the batch the index that the dataset's __getitem__ takes",
            )
        return given

    def _observe(
        self, found: tuple[Positions, CapturedLoss, Any], stage: Stage, dataloader_idx: int = 0
    ) -> Observation:
        positions, captured, batch = found
        batch = self.tracker.part(batch, stage=stage, dataloader_idx=dataloader_idx)
        patient = entry_of(batch, self.patient_key) if self.patient_key else None
        return Observation(positions, captured, batch, patient, self.names)

    def _problem(self, problem: MemguardError, stage: Stage) -> None:
        first = stage not in self.problems
        self.problems.setdefault(stage, problem)
        early = stage == "train" and self.steps.n_taken == 0
        if self.on_problem == "raise" or (self.on_problem == "auto" and early):
            raise problem
        self.steps.enabled[stage] = False
        if first:
            warnings.warn(
                MemguardWarning(f"{stage} step: {problem}", "no further losses are taken there", ""),
                stacklevel=2,
            )
