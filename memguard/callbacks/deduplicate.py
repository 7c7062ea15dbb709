"""Near-duplicates and over-represented patients counted for less, as a Lightning callback."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from memguard.callbacks.weighing import Weighing
from memguard.capture import Capture
from memguard.capture.contents import read_contents, rows_of
from memguard.capture.ids import Positions
from memguard.capture.losses import CapturedLoss
from memguard.capture.sides import batch_key, fingerprint
from memguard.capture.weigh import WeightRule
from memguard.errors import AmbiguousLossError, DataError, MemguardError
from memguard.mitigations.arguments import is_number, is_whole
from memguard.mitigations.duplicates import cluster_weights, even_patients
from memguard.records.content import RecordContent
from memguard.records.duplicates import near_duplicates
from memguard.records.patients import PatientMap, resolve_patients
from memguard.records.small_cells import MIN_CELL, patients_logged

__all__ = ["Deduplicate"]

_KEY = "memguard/deduplicate"


class Deduplicate(Weighing):
    """Let near-duplicate records, and patients with many records, count for less from the first step on.

    Before training the contents of all training records are read once (a pass of the validation step without a
    gradient, which leaves no trace on the run), near-duplicates are found among them by the Jaccard index of their
    codes, and each record gets a weight that stays: a cluster of near-duplicates counts like one record, and after
    that no patient counts for more records than the patient with the fewest has. Module, data, returned and logged
    loss stay as they are; the denominator stays too, so that gradients become smaller, not noisier.

    Logged metrics, constant over the epochs: ``memguard/deduplicate/patients``, patients with a record that counts for
    less than one (1 to 4 are logged as 4), and ``memguard/deduplicate/mean_weight``, the mean weight of the training
    records (1 where fewer than 5 patients are concerned). Beside a LeakageMonitor its ``min_cell`` counts instead of 5,
    and its report says how many patients were concerned.

    Args:
        threshold: Least similarity of near-duplicates, above 0 and up to 1; a chain of them is one cluster.
        power: 1: a cluster counts like one record. 0: like all of its records.
        patients: Whether to even out patients. Where many have several records this changes what the model is fitted
            to: the average patient in the place of the average record.
        min_codes: Sequences with fewer codes are compared with nobody: short ones are alike by chance. Feature vectors
            are compared by columns (continuous ones in 20 bands); few columns are alike by chance too.
        record_to_patient: Of the training records, as :class:`~memguard.LeakageMonitor` takes it; ``"auto"`` is what
            the monitor was given, where there is one.
        record_ids: ``None``, positions are followed through the loaders; or a function ``batch -> positions``, or the
            name of an entry of the batch. Beside a LeakageMonitor that one's argument counts.
        train_loader: Which training loader to weigh, where there are several.
        seed: Of the hashes by which candidates are found.

    Raises:
        PrivacyError: Beside `DPSGD`: weights that depend on the data of others void the claim.
        MemguardError: At the start of ``fit``, with manual optimization; at the second run of a step on one batch
            (LBFGS).
        AmbiguousLossError: At the start, if the contents cannot be read (no validation step); at the first step, if its
            loss cannot be taken apart by record.
        IndexTrackingError: At the start, if the loader cannot be followed.
        DataError: When a run is resumed with other records or other arguments.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[Deduplicate()], logger=False, enable_checkpointing=False)
        >>> trainer.callbacks[0].weights is None
        True

    Note:
        It gives no guarantee. Measured against attacks with reference models (``docs/results/mitigations.md``):
        patients with several copies are found far less often, at no loss for others. A record that nobody resembles is
        memorized as before, and a patient with a single record gains weight in comparison. Near-duplicates are found
        with a probability of .99 at the threshold and more above it.
    """

    weights_depend_on: Literal["record", "data"] = "data"

    def __init__(
        self,
        *,
        threshold: float = 0.8,
        power: float = 1.0,
        patients: bool = True,
        min_codes: int = 8,
        record_to_patient: Any = "auto",
        record_ids: str | Callable[[Any], Any] | None = None,
        train_loader: str | int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(record_ids, train_loader)
        if not is_number(threshold) or not 0 < threshold <= 1:
            raise MemguardError(
                f"threshold={threshold!r}",
                "every pair of records or none would be near",
                "pass 0 < threshold <= 1",
            )
        cluster_weights([1], power)
        for name, value in (("min_codes", min_codes), ("seed", seed)):
            if not is_whole(value, 0):
                raise MemguardError(
                    f"{name}={value!r}",
                    "records could not be compared",
                    f"pass {name}= as a whole number from 0",
                )
        self.threshold, self.power, self.patients, self.min_codes = threshold, power, patients, min_codes
        self.record_to_patient, self.seed = record_to_patient, seed
        self._weights: NDArray[np.float32] | None = None
        self._concerned = 0
        self._mean = 1.0
        self._unit = "patient"
        self._fingerprint = ""
        self._state: dict[str, Any] | None = None

    @property
    def weights(self) -> NDArray[np.float32] | None:
        """Of the records ``(N,)`` of the training set; ``None`` before a training."""
        return None if self._weights is None else self._weights.copy()

    @property
    def touched(self) -> NDArray[np.bool_] | None:
        """Training records ``(N,)`` that counted for less than one; ``None`` before a training."""
        return None if self._weights is None else self._weights < 1

    @override
    def said(self) -> str:
        cell, n = self._cell(), self._concerned
        count = (
            f"no {self._unit}"
            if not n
            else f"{n:,} {self._unit}s"
            if n >= cell
            else f"fewer than {cell} {self._unit}s"
        )
        also = " and patients with many records" if self.patients else ""
        return (
            f"Deduplicate(threshold={self.threshold:g}): {count} of the members had records that counted for less than "
            f"one, as near-duplicates{also} do. This depends on the data and gives no guarantee."
        )

    # -- the weights ---------------------------------------------------------------------------------------

    @override
    def _rule(self, trainer: pl.Trainer, capture: Capture) -> WeightRule:
        rows = rows_of(capture.tracker.loader("train"), capture.tracker.n_records("train"))
        members = self._members(capture)
        content, ids = None, dict[int, Any]()
        if self._state is None or members is None:
            content, ids = self._read(capture, rows)
        if members is None:
            members = self._named(ids, len(rows), capture)
        self._fingerprint, self._unit = fingerprint(members, members), members.unit
        if self._state is not None:
            weights = self._resumed(self._state, len(members))
        else:
            assert content is not None
            part = content.take(rows)
            found = near_duplicates(
                part,
                PatientMap.of_records(len(rows)),
                threshold=self.threshold,
                min_codes=self.min_codes if part.kind == "codes" else 1,
                seed=self.seed,
            )
            of_rows = cluster_weights(found.cluster_size, self.power)
            if self.patients:
                of_rows = even_patients(of_rows, members.code[rows])
            weights = np.ones(len(members), np.float32)
            weights[rows] = of_rows
        self._state = None
        self._weights = weights
        self._concerned = int(np.unique(members.code[rows][weights[rows] < 1]).size)
        self._mean = float(weights[rows].mean(dtype=np.float64)) if rows.size else 1.0
        return self._of_step

    def _read(self, capture: Capture, rows: Positions) -> tuple[RecordContent, dict[int, Any]]:
        try:
            return read_contents(capture, rows)
        except AmbiguousLossError as error:
            if self._monitor is not None:
                raise
            # What is advised is an argument of the monitor, and there is none.
            raise AmbiguousLossError(
                f"Deduplicate could not read the training records: {error.seen}",
                error.why,
                "return one loss of torch.nn.functional from validation_step, give the module a method "
                "per_record_loss(batch), or put a LeakageMonitor(per_record_loss=) beside Deduplicate",
            ) from error

    def _members(self, capture: Capture) -> PatientMap | None:
        """The patient of each training record; ``None`` where only batches tell."""
        given = self.record_to_patient
        if self._monitor is not None and isinstance(given, str) and given == "auto":
            given = self._monitor.record_to_patient
        given = given.get("train", "auto") if isinstance(given, Mapping) else given
        key = batch_key(given)
        if key is None:
            tracker = capture.tracker
            return resolve_patients(tracker.dataset("train"), tracker.n_records("train"), given)
        if key != capture.patient_key:
            raise MemguardError(
                f"Deduplicate(record_to_patient={key!r}) beside callbacks that do not read this entry of the batch",
                "the patients of its records would not be known",
                "pass the same record_to_patient= to LeakageMonitor and to Deduplicate",
            )
        return None

    def _named(self, ids: Mapping[int, Any], n_rows: int, capture: Capture) -> PatientMap:
        if len(ids) < n_rows:
            raise DataError(
                f"{n_rows - len(ids)} training records without an entry {capture.patient_key!r} in their batch",
                "their patients are not known",
                "pass record_to_patient= with the name of an entry of every batch, or one id per record",
            )
        at = np.fromiter(ids, np.int64, len(ids))
        return PatientMap.from_observed(at, list(ids.values()), n_records=capture.tracker.n_records("train"))

    def _of_step(self, positions: Positions, captured: CapturedLoss) -> Tensor | None:
        assert self._weights is not None
        weights = self._weights[positions]
        if (weights == 1).all():  # no bit of this step is changed
            return None
        return torch.from_numpy(weights).to(captured.loss.device, non_blocking=True)

    # -- what is told --------------------------------------------------------------------------------------

    def _cell(self) -> int:
        return MIN_CELL if self._monitor is None else self._monitor.outputs.min_cell

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        cell = self._cell()
        values = {
            f"{_KEY}/patients": float(patients_logged(self._concerned, cell)),
            # It would tell of fewer than so many patients.
            f"{_KEY}/mean_weight": self._mean if self._concerned >= cell else 1.0,
        }
        for name, value in values.items():
            # Every rank has the same numbers: there is nothing to reduce.
            pl_module.log(name, value, on_step=False, on_epoch=True, batch_size=1, sync_dist=False)

    # -- state ---------------------------------------------------------------------------------------------

    def _settings(self) -> str:
        return f"{self.threshold:g} {self.power:g} {self.patients} {self.min_codes} {self.seed}"

    def _resumed(self, state: Mapping[str, Any], n: int) -> NDArray[np.float32]:
        known = state.get("version"), state.get("fingerprint"), state.get("settings")
        if known != (1, self._fingerprint, self._settings()) or state["weights"].numel() != n:
            raise DataError(
                "a checkpoint whose Deduplicate had other records or other arguments (or is of another version)",
                "weights would be given to other records, or change in the middle of a training",
                "resume with the data set and the arguments of the run, or take its state out of the checkpoint",
            )
        found: NDArray[np.float32] = state["weights"].numpy().copy()
        return found

    @override
    def state_dict(self) -> dict[str, Any]:
        if self._weights is None:
            return dict(self._state or {})
        return {
            "version": 1,
            "fingerprint": self._fingerprint,
            "settings": self._settings(),
            "weights": torch.from_numpy(self._weights.copy()),
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state = state_dict or None
