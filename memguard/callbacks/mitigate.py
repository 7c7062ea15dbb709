"""Mitigations as Lightning callbacks: the monitor's live flags become weights of records, on an unmodified module."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from memguard.callbacks.mitigation import Bools, Floats, Mitigation
from memguard.callbacks.monitor import LeakageMonitor
from memguard.errors import MemguardError
from memguard.mitigations import (
    at_worst,
    drop_weights,
    flood_weights,
    floor_weights,
    reweight,
    severity_weights,
    worst,
)
from memguard.mitigations.arguments import is_number
from memguard.probes.memorization import Memorization
from memguard.probes.watch import Watch

__all__ = ["DropFlagged", "FloodFlagged", "FloorFlagged", "Reweight"]


class _OfFlagged(Mitigation):
    """Acts on flagged patients, all their records."""

    def __init__(
        self, *, sticky: bool = True, most: float = 0.1, monitor: LeakageMonitor | None = None
    ) -> None:
        if not is_number(most) or not 0 < most <= 1:
            raise MemguardError(
                f"most={most!r}", "it is a share of the patients", "pass most= above 0 and at most 1"
            )
        super().__init__(monitor)
        self.sticky, self.most = sticky, float(most)

    def _open(self, watch: Watch) -> None:
        n = watch.members.patients.n_patients
        if n and self._room(n) < 1:  # 0 where the batches name them, one after the other
            raise MemguardError(
                f"most={self.most:g} of {n} training patients",
                "that is less than one of them, and nobody could be concerned",
                f"pass most= of at least 1/{n}",
            )
        super()._open(watch)

    def _room(self, n_patients: int) -> int:
        """How many patients may be concerned; .29 of 100 are 29, whatever their product in binary."""
        return int(self.most * n_patients + 1e-9)

    def _judge(self, watch: Watch, found: Memorization, peak: Floats) -> tuple[Bools, Floats]:
        code = watch.members.patients.code
        flagged = found.flagged(watch.settings.flag_rate)
        before = peak if self.sticky else np.full_like(peak, -np.inf)
        peak[:] = at_worst(before, code, found.patient, found.severity, flagged)
        room = self._room(np.unique(code[watch.members.seen]).size)
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
        It gives no guarantee. Measured against attacks with reference models (``docs/results/mitigations.md``): it
        helps little, for what was learned before a patient is flagged stays, and patients like the flagged ones pay
        for it: the model knows less of them.
    """

    def _weigh(self, loss: Tensor, value: Tensor, concerned: Tensor) -> Tensor:
        return floor_weights(loss, value, concerned)

    def _done(self) -> str:
        return "were held at the loss expected of a model that never saw them"


class FloodFlagged(_OfFlagged):
    """Train on a flagged patient's record towards the loss of a model that never saw it, from above and from below.

    As `FloorFlagged`, but where a flagged record's loss is below the loss that the monitor expects of a model that
    never trained on it, its gradient counts with the opposite sign (times ``strength``): the step raises the loss, and
    no longer does so once it is back at the expectation. What was learned of a patient before the flag is so
    unlearned, which holding still does not do.

    Logged metrics: ``memguard/flood_flagged/patients`` and ``memguard/flood_flagged/mean_weight``, as for
    `FloorFlagged`; a weight may be below zero.

    Args:
        strength: How much a record below its expectation counts, from above 0 to 1.
        sticky: Whether a patient once flagged stays so. If not, the flags of the last look count.
        most: Share of the patients that may be concerned at a time, the most severe first; with ``sticky`` a patient is
            as severe as at worst.
        monitor: Whose flags, where the Trainer has several monitors.

    Raises:
        PrivacyError: Beside `DPSGD`: weights that depend on the data of others void the claim.
        MemguardError: At the start of ``fit``, with manual optimization or without a monitor.
        AmbiguousLossError: At the first step, if its loss cannot be taken apart by record.

    References:
        Ishida et al. 2020, "Do we need zero training loss after achieving zero training error?", arXiv:2002.08709,
        equation 2 (flooding of a batch's mean loss at one constant; here of single records, each at its own).

    Example:
        >>> FloodFlagged(strength=0.5).strength
        0.5

    Note:
        It gives no guarantee. Measured against attacks with reference models (``docs/results/mitigations.md``): on a
        synthetic cohort it takes most of the exposure of rare patients away, on real histories a quarter of that of the
        hardest where training went on too long, and nothing where it was stopped in time; on a classifier of real
        patients it showed no protection. In next-code models patients like the flagged ones pay for it: the model knows
        less of them.
    """

    def __init__(
        self,
        *,
        strength: float = 1.0,
        sticky: bool = True,
        most: float = 0.1,
        monitor: LeakageMonitor | None = None,
    ) -> None:
        if not is_number(strength) or not 0 < strength <= 1:
            raise MemguardError(
                f"strength={strength!r}",
                "records would be held still, or pushed away harder than they were learned",
                "pass strength= above 0 and at most 1, or take FloorFlagged for 0",
            )
        super().__init__(sticky=sticky, most=most, monitor=monitor)
        self.strength = float(strength)

    def _weigh(self, loss: Tensor, value: Tensor, concerned: Tensor) -> Tensor:
        return flood_weights(loss, value, concerned, strength=self.strength)

    def _done(self) -> str:
        return "were trained towards the loss expected of a model that never saw them"


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
        It gives no guarantee. Measured against attacks with reference models (``docs/results/mitigations.md``): it
        helps little, for what was learned before a patient was flagged stays, and patients like the flagged ones pay
        for it.
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
        It gives no guarantee. Measured against attacks with reference models (``docs/results/mitigations.md``): no
        protection of the hardest patients was shown on real patients, and little on synthetic ones.
    """

    def __init__(self, *, lowest: float = 0.0, monitor: LeakageMonitor | None = None) -> None:
        reweight([0.0], start=0, stop=1, lowest=lowest)
        super().__init__(monitor)
        self.lowest = float(lowest)

    def _judge(self, watch: Watch, found: Memorization, peak: Floats) -> tuple[Bools, Floats]:
        of_patient = np.ones(watch.members.patients.n_patients, np.float32)
        of_patient[found.patient] = severity_weights(
            found.severity_low, found.severity_high, lowest=self.lowest
        )
        code = watch.members.patients.code  # -1 where no batch has named the patient yet
        weights = np.where(code >= 0, of_patient[code], 1).astype(np.float32)
        return weights < 1, weights

    def _weigh(self, loss: Tensor, value: Tensor, concerned: Tensor) -> Tensor:
        return torch.where(concerned, value, torch.ones_like(value))

    def _done(self) -> str:
        return "counted for less than one in training"
