"""Who is asked: the model that is audited, and models that never saw the patient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from memguard.adapters.base import ModelAdapter
from memguard.probes.result import ProbeResult
from memguard.probes.subject import Subject

__all__ = ["Asked", "Budget", "Models", "Probe"]


class Models(Protocol):
    """Reference models, one at a time in memory.

    Attributes:
        kind: ``"none"``, ``"counts"`` (the n-gram surrogate, leaving the patient out), ``"early-stopped"``,
            ``"twins"`` or ``"pool"``.
        in_mask: ``(K, N + M)`` whether reference k was trained on the record.
    """

    @property
    def kind(self) -> str:
        """Of the models."""
        ...

    @property
    def in_mask(self) -> NDArray[np.bool_]:
        """What each was trained on."""
        ...

    def __len__(self) -> int: ...

    def adapters(self) -> Iterator[ModelAdapter]:
        """Each reference in order, ready to be asked."""
        ...


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a probe may spend.

    Attributes:
        size: ``"light"`` while training, ``"full"`` after it.
        patients: At most so many of each side are asked; ``None`` for all.
        samples: Continuations of each prompt, where a probe samples.
        seconds: Wall time after which a probe stops asking and says what it left out; ``None`` for no limit.
        seed: Of every draw.
    """

    size: Literal["light", "full"] = "full"
    patients: int | None = None
    samples: int = 20
    seconds: float | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The target and its references.

    Attributes:
        target: ``None`` where no adapter fits the module: then only losses are known.
        references: Of the same kind.
        loss: ``(N + M,)`` eval-mode loss of the target, NaN where not measured.
        reference_loss: ``(K, N + M)`` of the references.
        loss_unit: ``"nats/token"`` or ``"nats/record"``.
        tokens: ``(N + M,)`` predicted tokens of each record.
    """

    target: ModelAdapter | None
    references: Models
    loss: NDArray[np.float64]
    reference_loss: NDArray[np.float64]
    loss_unit: str = "nats/token"
    tokens: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))


class Probe(Protocol):
    """One kind of leak. Constructed with its settings; the monitor asks it lightly, the audit in full.

    Attributes:
        name: As in ``LeakageMonitor(probes=[name])`` and in gates.
        needs: Abilities without which nothing can be asked.
    """

    @property
    def name(self) -> str:
        """Of the probe."""
        ...

    @property
    def needs(self) -> Sequence[str]:
        """Abilities that it needs."""
        ...

    def run(self, subject: Subject, asked: Asked, budget: Budget) -> ProbeResult:
        """Ask. What cannot be asked goes to ``not_tested``; nothing is raised for a model that is not able to."""
        ...
