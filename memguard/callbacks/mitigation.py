"""What the callbacks on live flags share: they follow a monitor's looks, and weigh the records of each step."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from memguard.callbacks.following import missed, monitor_of
from memguard.callbacks.gather import everybody
from memguard.callbacks.monitor import LeakageMonitor
from memguard.callbacks.weighing import check_weighable
from memguard.capture.ids import Positions
from memguard.capture.losses import CapturedLoss
from memguard.capture.weigh import Weigher
from memguard.errors import DataError, MemguardWarning
from memguard.mitigations import Books
from memguard.probes.look import Look
from memguard.probes.memorization import Memorization
from memguard.probes.watch import Watch
from memguard.records.small_cells import patients_logged

__all__ = ["Bools", "Floats", "Mitigation"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float32]


class Mitigation(pl.Callback):
    """What the callbacks share: they follow a monitor's looks, and weigh the records of each training step."""

    weights_depend_on: Literal["record", "data"] = "data"

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
        self._ranked = False  # whether any look could have flagged somebody
        self._refused = ""  # why the newest look that said why could not
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
        self._state = state
        check_weighable(self, trainer, pl_module)
        self._watched = monitor_of(trainer, type(self).__name__, "acts on the flags", self.monitor)

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
        if look.memorization is None:
            self._refused = look.refused or self._refused
        else:
            self._ranked = True
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
        self._peak, self._ranked = state["peak"].numpy().copy(), bool(state.get("ranked", True))
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
        self._books.patient = monitor.watch.members.patients.code  # batches may name them one after the other
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

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        monitor = self._watched
        if monitor is None or getattr(trainer, "fast_dev_run", False):
            return
        name, idle, said = type(self).__name__, self._idle(monitor), missed(self._weigher, monitor.capture)
        if idle:
            warnings.warn(
                MemguardWarning(
                    f"{name} did nothing: {idle}",
                    "nobody could be flagged, and the model learned from all records as they are",
                    "hold out 100 patients or more where these are too few; GoldfishLoss, Deduplicate and DPSGD need "
                    "no ranking",
                ),
                stacklevel=2,
            )
        elif said:
            warnings.warn(
                MemguardWarning(f"{name}:{said}", "the model learned from them as they were", ""),
                stacklevel=2,
            )

    def _idle(self, monitor: LeakageMonitor) -> str:
        """Why nobody could be flagged so far; empty where somebody could."""
        look = monitor.last_look
        if self._ranked or (look is not None and look.memorization is not None):
            return ""
        why = self._refused or ("" if look is None else look.refused)
        return "no look ranked the patients" + (f" ({why})" if why else "")

    def _given(self) -> list[tuple[Positions, NDArray[np.float64]]]:
        """Positions and weights of this process's steps of the epoch under way, off the device."""
        return [(at, weights.to("cpu", torch.float64).numpy()) for at, weights in self._touched]

    def _tell(self, monitor: LeakageMonitor, patients: int, cell: int) -> None:
        name = type(self).__name__
        count = (
            "no patient"
            if not patients
            else (f"{patients:,} patients" if patients >= cell else f"fewer than {cell} patients")
        )
        idle = self._idle(monitor)
        said = (
            f"{name}: {idle}, so that it did nothing."
            if idle
            else f"{name}: {count} of the members {self._done()}. This depends on the data and gives no guarantee."
        )
        monitor.mitigated(name, said + missed(self._weigher, monitor.capture))

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

    @property
    def touched(self) -> Bools | None:
        """``(N,)`` training records that ever counted for less than one; ``None`` before the first step."""
        return None if self._books is None else self._books.with_open(self._given())

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
            "ranked": self._ranked,
            "ever": torch.from_numpy(self._books.with_open(self._given())),
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state = state_dict or None


def _key(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).strip("_")
