"""Mitigations as Lightning callbacks: the monitor's live flags become weights of records, on an unmodified module."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from memguard.callbacks.gather import everybody
from memguard.callbacks.monitor import LeakageMonitor
from memguard.callbacks.stated import Stated
from memguard.capture.ids import Positions
from memguard.capture.losses import CapturedLoss
from memguard.capture.weigh import Weigher
from memguard.errors import DataError, MemguardError, PrivacyError
from memguard.mitigations import Books, drop_weights, floor_weights, reweight, severity_weights, worst
from memguard.probes.look import Look
from memguard.probes.memorization import Memorization
from memguard.probes.watch import Watch
from memguard.records.small_cells import patients_logged

__all__ = ["DropFlagged", "FloorFlagged", "Reweight"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float32]


class Mitigation(pl.Callback):
    """What the callbacks share: they follow a monitor's looks, and weigh the records of each training step."""

    def __init__(self, monitor: LeakageMonitor | None = None) -> None:
        self.monitor = monitor
        self._begin()

    def _begin(self) -> None:
        self._watched: LeakageMonitor | None = None
        self._weigher: Weigher | None = None
        self._look: Look | None = None
        self._concerned: Bools | None = None  # (N,) records whose weight may be below one
        self._value: Floats | None = None  # (N,) what the policy needs to know of each
        self._peak: Floats | None = (
            None  # (N,) how severe the patient was while flagged, at worst; -inf: never
        )
        self._touched: list[tuple[Positions, Tensor]] = []
        self._books: Books | None = None
        self._state: dict[str, Any] | None = None

    # -- what differs --------------------------------------------------------------------------------------

    def _judge(self, watch: Watch, found: Memorization, peak: Floats) -> tuple[Bools, Floats]:
        """Records ``(N,)`` that are concerned, and a value ``(N,)`` of each, after a look; ``peak`` is kept for it."""
        raise NotImplementedError

    def _weigh(self, loss: Tensor, value: Tensor, concerned: Tensor) -> Tensor:
        """Weights ``(B,)`` of the records of a step."""
        raise NotImplementedError

    def _done(self) -> str:
        """What is done to a patient, in words."""
        raise NotImplementedError

    # -- the life of a fit ---------------------------------------------------------------------------------

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        state = self._state
        self._begin()
        self._state, name = state, type(self).__name__
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if any(isinstance(one, Stated) for one in callbacks):
            raise PrivacyError(
                f"{name} beside DPSGD in one Trainer",
                "weights that depend on the data of others void the guarantee of differential privacy",
                f"take {name} or DPSGD out of callbacks=",
            )
        if not getattr(pl_module, "automatic_optimization", True):
            raise MemguardError(
                f"{name} on {type(pl_module).__name__}, which has manual optimization",
                "its backward pass may be over before weights can be applied",
                "set automatic_optimization = True, or weigh the losses in training_step",
            )
        found = [one for one in callbacks if isinstance(one, LeakageMonitor)]
        chosen = [one for one in found if self.monitor is None or one is self.monitor]
        if len(chosen) != 1:
            raise MemguardError(
                f"{name} in a Trainer with {len(found)} LeakageMonitor",
                "it acts on the flags of exactly one that watches the same training",
                "add a LeakageMonitor to callbacks=, and where there are several say which by monitor=",
            )
        self._watched = chosen[0]

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Every callback's setup is over: the capture of the monitor is there, wherever it stands in the list.
        capture = None if self._watched is None else self._watched.capture
        if capture is not None:
            self._weigher = capture.steps.weigher = capture.steps.weigher or Weigher()
            self._weigher.rules.append(self._weights)

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._follow()

    def _follow(self) -> None:
        """Take over what the monitor has found since the last step."""
        monitor = self._watched
        if monitor is None or monitor.watch is None:
            return
        watch = monitor.watch
        if self._books is None:
            self._open(watch)
        look = monitor.last_look
        if look is None or look is self._look:
            return
        self._look = look
        if look.memorization is not None:
            assert self._peak is not None
            self._concerned, self._value = self._judge(watch, look.memorization, self._peak)

    def _open(self, watch: Watch) -> None:
        n = len(watch.members.patients)
        self._books, self._concerned = Books(watch.members.patients.code), np.zeros(n, np.bool_)
        self._value, self._peak = np.full(n, np.nan, np.float32), np.full(n, -np.inf, np.float32)
        state, self._state = self._state, None
        if state is None:
            return
        if (
            state.get("version") != 1
            or state.get("fingerprint") != watch.fingerprint
            or state["concerned"].numel() != n
        ):
            raise DataError(
                f"a checkpoint whose {type(self).__name__} acted on other data sets (or by another version)",
                "weights would be given to other patients",
                "resume with the data sets of the run, or take the callback's state out of the checkpoint",
            )
        self._concerned, self._value = state["concerned"].numpy().copy(), state["value"].numpy().copy()
        self._peak = state["peak"].numpy().copy()
        self._books.ever = state["ever"].numpy().copy()

    def _weights(self, positions: Positions, captured: CapturedLoss) -> Tensor | None:
        """The rule that the weigher asks at each training step."""
        if self._concerned is None or self._value is None:
            return None
        concerned = self._concerned[positions]
        if not concerned.any():  # no bit of this step is changed
            return None
        loss = captured.loss
        value = torch.from_numpy(self._value[positions]).to(loss.device, non_blocking=True)
        weights = self._weigh(loss, value, torch.from_numpy(concerned).to(loss.device, non_blocking=True))
        if loss.device.type == "cpu" and bool((weights == 1).all()):
            return None
        self._touched.append((positions, weights))
        return weights

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        monitor = self._watched
        if monitor is None or monitor.watch is None or self._books is None:
            return
        parts = [part for of_rank in everybody(self._given()) for part in of_rank]
        self._touched.clear()
        epoch, cell = self._books.close(parts, monitor.watch.members.seen), monitor.outputs.min_cell
        key = f"memguard/{_key(type(self).__name__)}"
        values = {
            f"{key}/patients": float(patients_logged(epoch.patients, cell)),
            # It would tell of fewer than so many patients.
            f"{key}/mean_weight": epoch.mean_weight if epoch.patients >= cell else 1.0,
        }
        for name, value in values.items():
            # Every rank has the same numbers: there is nothing to reduce.
            pl_module.log(name, value, on_step=False, on_epoch=True, batch_size=1, sync_dist=False)
        self._tell(monitor, self._books.patients, cell)

    def _given(self) -> list[tuple[Positions, NDArray[np.float64]]]:
        """Positions and weights of this process's steps of the epoch under way, off the device."""
        return [(at, weights.to("cpu", torch.float64).numpy()) for at, weights in self._touched]

    def _tell(self, monitor: LeakageMonitor, patients: int, cell: int) -> None:
        name, weigher = type(self).__name__, self._weigher
        count = (
            "no patient"
            if not patients
            else (f"{patients:,} patients" if patients >= cell else f"fewer than {cell} patients")
        )
        said = (
            f"{name}: {count} of the members {self._done()}. This depends on the data and gives no guarantee."
        )
        missed = 0 if weigher is None else weigher.missed
        stopped = None if monitor.capture is None else monitor.capture.problems.get("train")
        if missed:
            said += f" {missed:,} steps could not be weighed and were trained on as they were."
        if stopped is not None:
            said += " It ended early, with the capture of losses."
        monitor.note(said, replaces=f"{name}: ")

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            self._end()

    @override
    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self._end()

    def _end(self) -> None:
        """Let go of the run; what was found stays, for a checkpoint that is saved after it."""
        self._weigher = None

    # -- state ---------------------------------------------------------------------------------------------

    @override
    def state_dict(self) -> dict[str, Any]:
        watch = None if self._watched is None else self._watched.watch
        if self._state is not None:  # loaded, and not opened yet
            return self._state
        if watch is None:
            return {}
        self._follow()  # a checkpoint at the end of an epoch holds what its look has found
        if self._books is None or self._concerned is None or self._value is None or self._peak is None:
            return {}
        return {
            "version": 1,
            "fingerprint": watch.fingerprint,
            "concerned": torch.from_numpy(self._concerned.copy()),
            "value": torch.from_numpy(self._value.copy()),
            "peak": torch.from_numpy(self._peak.copy()),
            "ever": torch.from_numpy(self._books.with_open(self._given())),
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state = state_dict or None


class _OfFlagged(Mitigation):
    """Acts on flagged patients, all their records."""

    def __init__(
        self, *, sticky: bool = True, most: float = 0.1, monitor: LeakageMonitor | None = None
    ) -> None:
        if not 0 < most <= 1:
            raise MemguardError(
                f"most={most}", "it is a share of the patients", "pass most= above 0 and at most 1"
            )
        super().__init__(monitor)
        self.sticky, self.most = sticky, most

    def _judge(self, watch: Watch, found: Memorization, peak: Floats) -> tuple[Bools, Floats]:
        code = watch.members.patients.code
        flagged, severity = found.flagged(watch.settings.flag_rate), np.full(code.max() + 1, -np.inf)
        severity[found.patient[flagged]] = found.severity[flagged]
        if not self.sticky:
            peak[:] = -np.inf
        np.maximum(peak, severity[code], out=peak)
        room = int(self.most * np.unique(code[watch.members.seen]).size)
        return worst(peak, peak > -np.inf, room, of=code), watch.expected


class FloorFlagged(_OfFlagged):
    """Train on a flagged patient's record only while its loss is above that of a model that never saw it.

    After each of the monitor's looks the patients that it flags are remembered. From then on their records count in a
    step only if their loss is at least the loss that the monitor expects of a model that never trained on them; the
    others of the batch count as before, over the same denominator. Module, returned and logged loss stay as they are,
    and nothing changes by a bit in a step without such a record.

    Logged metrics: ``memguard/floor_flagged/patients``, patients with a record held back in the epoch (1 to
    ``min_cell - 1`` are logged as ``min_cell - 1``), and ``memguard/floor_flagged/mean_weight``, the mean weight of all
    training records. The monitor's report says how many patients were ever held back.

    Args:
        sticky: Whether a patient once flagged stays so. If not, the flags of the last look count.
        most: Share of the patients that may be concerned at a time, the most severe first; with ``sticky`` a patient is
            as severe as at worst.
        monitor: Whose flags, where the Trainer has several monitors.

    Raises:
        PrivacyError: Beside `DPSGD`: weights that depend on the data of others void the claim.
        MemguardError: At the start of ``fit``, with manual optimization or without a monitor.
        AmbiguousLossError: At the first step, if its loss cannot be taken apart by record.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> callbacks = [LeakageMonitor(), FloorFlagged()]
        >>> trainer = Trainer(callbacks=callbacks, logger=False, enable_checkpointing=False)

    Note:
        It gives no guarantee, and nothing has been measured yet about what it does to an attack with reference models.
        What was learned before a patient is flagged stays, and patients like the flagged ones pay for it: the model
        knows less of them.
    """

    def _weigh(self, loss: Tensor, value: Tensor, concerned: Tensor) -> Tensor:
        return floor_weights(loss, value, concerned)

    def _done(self) -> str:
        return "were held at the loss expected of a model that never saw them"


class DropFlagged(_OfFlagged):
    """Stop training on flagged patients.

    After each of the monitor's looks the patients that it flags are left out of the training loss (weight zero over the
    same denominator). Module, returned and logged loss stay as they are.

    Logged metrics: ``memguard/drop_flagged/patients`` and ``memguard/drop_flagged/mean_weight``, as for `FloorFlagged`.

    Args:
        sticky: Whether a patient once flagged stays so. If not, a patient who is forgotten is trained on again.
        most: Share of the patients that may be concerned at a time, the most severe first; with ``sticky`` a patient is
            as severe as at worst.
        monitor: Whose flags, where the Trainer has several monitors.

    Raises:
        PrivacyError: Beside `DPSGD`: weights that depend on the data of others void the claim.
        MemguardError: At the start of ``fit``, with manual optimization or without a monitor.
        AmbiguousLossError: At the first step, if its loss cannot be taken apart by record.

    Example:
        >>> DropFlagged(most=0.05).sticky
        True

    Note:
        It gives no guarantee, and nothing has been measured yet about what it does to an attack with reference models.
        What was learned before a patient was flagged stays, and patients like the flagged ones pay for it.
    """

    def _weigh(self, loss: Tensor, value: Tensor, concerned: Tensor) -> Tensor:
        return drop_weights(concerned).to(loss.dtype)

    def _done(self) -> str:
        return "were left out of training once flagged"


class Reweight(Mitigation):
    """Let patients count less the further they stand out from patients who were never trained on.

    The weight of a patient is one while the gap between expected and actual loss lies within the range of never-trained
    patients (95 %), and falls linearly to ``lowest`` at one more such range above it. It follows each of the monitor's
    looks; there is no threshold at which a patient is in or out.

    Logged metrics: ``memguard/reweight/patients`` and ``memguard/reweight/mean_weight``, as for `FloorFlagged`.

    Args:
        lowest: Smallest weight.
        monitor: Whose scores, where the Trainer has several monitors.

    Raises:
        PrivacyError: Beside `DPSGD`: weights that depend on the data of others void the claim.
        MemguardError: At the start of ``fit``, with manual optimization or without a monitor.
        AmbiguousLossError: At the first step, if its loss cannot be taken apart by record.

    Example:
        >>> Reweight(lowest=0.1).lowest
        0.1

    Note:
        It gives no guarantee, and nothing has been measured about what it does to an attack with reference models.
    """

    def __init__(self, *, lowest: float = 0.0, monitor: LeakageMonitor | None = None) -> None:
        reweight([0.0], start=0, stop=1, lowest=lowest)
        super().__init__(monitor)
        self.lowest = lowest

    def _judge(self, watch: Watch, found: Memorization, peak: Floats) -> tuple[Bools, Floats]:
        of_patient = np.ones(watch.members.patients.n_patients, np.float32)
        of_patient[found.patient] = severity_weights(
            found.severity_low, found.severity_high, lowest=self.lowest
        )
        weights = of_patient[watch.members.patients.code]
        return weights < 1, weights

    def _weigh(self, loss: Tensor, value: Tensor, concerned: Tensor) -> Tensor:
        return torch.where(concerned, value, torch.ones_like(value))

    def _done(self) -> str:
        return "counted for less than one in training"


def _key(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).strip("_")
