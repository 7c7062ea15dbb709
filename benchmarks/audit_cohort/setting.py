"""A half-model as the target of an audit, the other half-models as its references."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.audit_cohort.models import World
from benchmarks.cohort import HIV, SENSITIVE, STRATA, VOCABULARY
from memguard.adapters.base import ModelAdapter
from memguard.adapters.causal import CausalAdapter
from memguard.probes.asked import Asked
from memguard.probes.subject import Subject
from memguard.records.content import RecordContent

__all__ = ["CATEGORIES", "Pool", "Setting", "adapters_of", "audit_of", "null_of", "sensitive_codes"]

CATEGORIES = ("planted", "inferable")


def sensitive_codes() -> np.ndarray:
    """``(V, 2)``: the eight planted codes, and the one that two others announce."""
    out = np.zeros((VOCABULARY, 2), dtype=bool)
    out[list(SENSITIVE), 0] = True
    out[HIV, 1] = True
    return out


def _logits(model: nn.Module, tokens: Tensor) -> Tensor:
    flat = model(tokens, torch.ones_like(tokens, dtype=torch.bool))
    return flat.view(*tokens.shape, -1)


def adapters_of(world: World) -> list[ModelAdapter]:
    """All models of a world, ready to be asked."""
    adapters: list[ModelAdapter] = []
    for model in world.models:
        adapters.append(CausalAdapter(model, logits=_logits, vocabulary=VOCABULARY, batch=512))
    return adapters


@dataclass
class Pool:
    """References already in memory."""

    models: list[ModelAdapter]
    in_mask: np.ndarray
    kind: str = "pool"

    def __len__(self) -> int:
        return len(self.models)

    def adapters(self) -> Iterator[ModelAdapter]:
        """Each in order."""
        return iter(self.models)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a probe is given, and the truth.

    Attributes:
        subject: Members first.
        asked: Target and references.
        stratum: ``(N + M,)`` of each record of the subject.
    """

    subject: Subject
    asked: Asked
    stratum: np.ndarray


def audit_of(
    world: World, adapters: list[ModelAdapter], target: int, n_references: int | None = None
) -> Setting:
    """Model ``target`` with its members and the patients that it never saw."""
    inside = world.inside[target]
    return _setting(world, adapters, target, np.flatnonzero(inside), np.flatnonzero(~inside), n_references)


def null_of(world: World, adapters: list[ModelAdapter], target: int, seed: int) -> Setting:
    """A model trained on other patients: both sides are drawn from those that it never saw."""
    outside = np.flatnonzero(~world.inside[target])
    ids = np.random.default_rng([seed, 7]).permutation(np.unique(world.cohort.patient[outside]))
    first = np.isin(world.cohort.patient[outside], ids[: len(ids) // 2])
    return _setting(world, adapters, target, outside[first], outside[~first], None)


def _setting(
    world: World,
    adapters: list[ModelAdapter],
    target: int,
    members: np.ndarray,
    held_out: np.ndarray,
    n_references: int | None,
) -> Setting:
    rows = np.concatenate([members, held_out])
    stratum = world.cohort.stratum[rows]
    subject = Subject(
        n_members=len(members),
        patient=world.cohort.patient[rows].astype(np.int64),
        content=RecordContent.from_codes(world.cohort.codes.take(rows)),
        static=np.full(len(rows), 3, np.int64),
        strata={name: stratum == i for i, name in enumerate(STRATA)},
    )
    others = [k for k in range(len(adapters)) if k != target][:n_references]
    pool = Pool([adapters[k] for k in others], world.inside[others][:, rows])
    asked = Asked(
        target=adapters[target],
        references=pool,
        loss=np.full(len(rows), np.nan),
        reference_loss=np.full((len(others), len(rows)), np.nan),
    )
    return Setting(subject=subject, asked=asked, stratum=stratum)
