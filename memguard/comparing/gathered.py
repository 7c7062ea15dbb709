"""From measured runs to the arrays that are attacked: patients instead of records, arms beside one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from memguard.callbacks.dpsgd import DPSGD
from memguard.comparing.kept import Measured
from memguard.comparing.measuring import SIGNALS
from memguard.comparing.outcomes import TAKEN, ArmRuns, Outcomes
from memguard.comparing.population import Population
from memguard.comparing.study import Arm, Study
from memguard.comparing.training import Run
from memguard.errors import DataError

__all__ = ["gathered", "whole"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float32]


def gathered(
    study: Study,
    population: Population,
    arms: Mapping[str, Arm],
    runs: Sequence[Run],
    found: Sequence[Measured],
) -> Outcomes:
    """The outcomes of a study.

    Args:
        study: What was compared.
        population: On whom.
        arms: By name.
        runs: All of them.
        found: Each measured.
    """
    p = population.n_patients
    loss = {at: _of_patients(population, one) for at, one in enumerate(found)}
    everybody = p + population.judging.size
    tokens = np.bincount(population.patient, weights=population.tokens, minlength=everybody).astype(np.int64)
    known = tokens > 0  # an arm that loses NaN on a patient must not take the patient out of the study
    pool, held_out = np.flatnonzero(known[:p]), p + np.flatnonzero(known[p:])
    return Outcomes(
        arms=[
            _arm(
                name,
                arm,
                [(run, found[at], loss[at]) for at, run in enumerate(runs) if run.arm == name],
                (pool, held_out),
                population,
            )
            for name, arm in arms.items()
        ],
        baseline=study.baseline,
        control=study.control_name if study.control else None,
        strata={name: mask[pool] for name, mask in population.strata.items()},
        held_out_strata={name: mask[held_out] for name, mask in population.strata.items()},
        tokens=tokens[pool],
        judging=population.judging[held_out - p],
        unit="nats/token" if population.sides.target.unit == "nats/token" else "nats/record",
    )


def whole(run: Run, one: Measured, population: Population) -> Measured:
    """The same run, if its model has a loss on every record.

    Args:
        run: Which one.
        one: Measured.
        population: On whom.

    Raises:
        DataError: If a record with predicted tokens has none.
    """
    known = population.tokens > 0
    bad = ~np.isfinite(one.loss[:, 0][:, known])
    if bad.any():
        raise DataError(
            f"a model of arm {run.arm!r} (seed {run.seed}, half {run.half + 1}) has no finite loss on"
            f" {int(bad.any(axis=0).sum())} of {int(known.sum())} records",
            "it diverged, or its code leaves records out: without them it would be compared on other patients",
            "correct the arm, or compare the others with --arms, arms= in Python; what was trained is kept",
        )
    return one


def _of_patients(population: Population, one: Measured) -> Floats:
    """``(T, G, P + H)``; where a way of asking is as the deployed model at every stage, NaN."""
    stages, ways, _ = one.loss.shape
    out = np.full((stages, ways, population.n_patients + population.judging.size), np.nan, np.float32)
    for stage in range(stages):
        for way in range(ways):
            if np.isfinite(one.loss[stage, way]).any():
                out[stage, way] = population.of_patients(one.loss[stage, way].astype(np.float64))
    return out


def _arm(
    name: str,
    arm: Arm,
    parts: Sequence[tuple[Run, Measured, Floats]],
    kept: tuple[NDArray[np.int64], NDArray[np.int64]],
    population: Population,
) -> ArmRuns:
    pool, held_out = kept
    loss = np.stack([one for _, _, one in parts])  # (K, T, G, P + H)
    for way in range(1, len(SIGNALS)):
        for stage in range(loss.shape[1]):
            other = loss[:, stage, way]
            absent = np.isnan(other).all(axis=1)
            if not absent.all():  # of some models only: the others are the same as deployed
                other[absent] = loss[absent, stage, 0]
    private = [one for one in arm.callbacks() if isinstance(one, DPSGD)]
    codes = [0, SIGNALS.index("by the baseline's code")]
    by_codes = loss[:, -1, codes][..., held_out].mean(axis=0, dtype=np.float64)
    epsilon = [one.epsilon for _, one, _ in parts]
    metrics = set.intersection(*(set(one.metrics) for _, one, _ in parts)) - TAKEN
    return ArmRuns(
        name=name,
        inside=np.stack([run.patients[pool] for run, _, _ in parts]),
        seed=np.array([run.seed for run, _, _ in parts]),
        loss=loss[..., pool],
        held_out=loss[:, :, 0][..., held_out],
        held_out_by_codes=by_codes if np.isfinite(by_codes).all() else None,
        epochs=np.stack([one.epochs for _, one, _ in parts]),
        seconds=np.array([one.seconds for _, one, _ in parts]),
        signals=SIGNALS,
        same=[
            name for way, name in enumerate(SIGNALS) if way and all(one.same[-1, way] for _, one, _ in parts)
        ],
        touched=None
        if any(one.touched is None for _, one, _ in parts)
        else np.stack([_patients_touched(one, population)[pool] for _, one, _ in parts]),
        metrics={key: np.array([one.metrics[key] for _, one, _ in parts]) for key in sorted(metrics)},
        epsilon=None if any(one is None for one in epsilon) else np.array(epsilon, np.float64),
        guarantee=f"DP-SGD, the {private[0].settings.unit} as the unit" if private else "",
        settings=dict(arm.settings),
    )


def _patients_touched(one: Measured, population: Population) -> NDArray[np.bool_]:
    found = np.zeros(population.n_patients, np.bool_)
    assert one.touched is not None
    found[population.patient[: population.n_training][one.touched]] = True
    return found
