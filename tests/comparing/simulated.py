"""Outcomes of made-up trainings: losses of patients in and out of the halves, with groups and known effects."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from memguard.comparing.outcomes import ArmRuns, Outcomes

__all__ = ["Cohort", "outcomes", "runs"]


@dataclass
class Cohort:
    """Patients: how hard each is, how much each is memorized, how much its losses scatter; one rare stratum."""

    patients: int = 400
    held_out: int = 120
    seeds: int = 8
    stages: int = 3
    rare: float = 0.15
    draw: int = 0
    level: np.ndarray = field(init=False)

    def __post_init__(self):
        rng = np.random.default_rng([self.draw, 77])
        everyone = self.patients + self.held_out
        self.is_rare = rng.random(everyone) < self.rare
        self.level = 2.0 + 0.4 * rng.normal(size=everyone) + 0.5 * self.is_rare
        self.gap = rng.gamma(1.0, 0.12, everyone) + 0.35 * self.is_rare * rng.random(everyone)
        self.scatter = 0.12 * np.exp(0.3 * rng.normal(size=everyone))
        halves = np.argsort(rng.random((self.seeds, self.patients)), axis=1) < self.patients // 2
        self.inside = np.stack([halves, ~halves], axis=1).reshape(2 * self.seeds, self.patients)
        self.seed = np.repeat(np.arange(self.seeds), 2)
        # what a seed does to all arms alike: its half and its initial weights
        self.shared = 0.01 * np.repeat(rng.normal(size=self.seeds), 2)


def runs(
    cohort: Cohort,
    name: str,
    draw: int,
    *,
    memory: float = 1.0,
    rare_memory: float | None = None,
    price: float = 0.0,
    rare_price: float = 0.0,
    touched: float | None = None,
    **settings,
) -> ArmRuns:
    """An arm: ``memory`` scales what members gain, ``price`` is added to everybody unseen (and seen)."""
    rng = np.random.default_rng([cohort.draw, draw, 5])
    k, t, p = 2 * cohort.seeds, cohort.stages, cohort.patients
    grown = np.linspace(1.0 / t, 1.0, t)[None, :, None]
    learned = (0.2 * (1 - np.linspace(1.0 / t, 1.0, t)))[None, :, None]
    scale = np.where(cohort.is_rare, memory if rare_memory is None else rare_memory, memory)
    gap = (cohort.gap * scale)[:p] * cohort.inside[:, None] * grown
    noise = cohort.scatter * rng.normal(size=(k, t, p + cohort.held_out))
    base = cohort.level + price + rare_price * cohort.is_rare
    base = base + cohort.shared[:, None, None] + 0.004 * rng.normal(size=(k, 1, 1)) + learned + noise
    if touched is not None:
        settings["touched"] = cohort.inside & (rng.random((k, p)) < touched)
    return ArmRuns(
        name=name,
        inside=cohort.inside,
        seed=cohort.seed,
        loss=(base[..., :p] - gap)[:, :, None].astype(np.float32),
        held_out=base[..., p:].astype(np.float32),
        epochs=np.tile(np.arange(1.0, t + 1), (k, 1)),
        seconds=np.full(k, 10.0),
        **settings,
    )


def outcomes(cohort: Cohort, *arms: ArmRuns, control: str | None = None) -> Outcomes:
    """With strata ``rare`` and ``common``; the first arm is the baseline."""
    p = cohort.patients
    return Outcomes(
        arms=arms,
        baseline=arms[0].name,
        strata={"rare": cohort.is_rare[:p], "common": ~cohort.is_rare[:p]},
        held_out_strata={"rare": cohort.is_rare[p:], "common": ~cohort.is_rare[p:]},
        tokens=np.full(p, 50),
        judging=np.arange(cohort.held_out) % 2 == 0,
        control=control,
    )
