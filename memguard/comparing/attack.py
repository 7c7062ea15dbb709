"""Every attack on every model of an arm, each with the models of the arm's other seeds as its references."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memguard.attacks import likelihood_ratio, logit_scale, variance_inference
from memguard.attacks.reference import Moments
from memguard.comparing.outcomes import ArmRuns

__all__ = ["Scores", "attack", "by_seed", "cells", "statistics"]

Floats = NDArray[np.float64]
_FOLDS = 3  # fits of a prior for an arm, each from the seeds of the other folds
_LEAST_CELL = 20  # patients with whom a variance of their own is taken
_LEAST = 1e-300  # stands for a probability of zero


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Membership scores of one attack on an arm at one stage; first the model of a seed that saw the patient.

    Attributes:
        attack: Name, with the signal it reads.
        signal: Number of that signal.
        scores: ``(2, S, P)``.
    """

    attack: str
    signal: int
    scores: Floats


def by_seed(arm: ArmRuns, values: NDArray[Any]) -> Floats:
    """``(2, S, P)`` from ``(K, P)``: of each seed, the model that trained on the patient, then the one that did not.

    Example:
        >>> import numpy as np
        >>> from types import SimpleNamespace
        >>> arm = SimpleNamespace(seed=np.array([7, 7]), inside=np.array([[True, False], [False, True]]))
        >>> by_seed(arm, np.array([[1.0, 2.0], [3.0, 4.0]]))[:, 0].tolist()
        [[1.0, 4.0], [3.0, 2.0]]
    """
    order = np.argsort(arm.seed, kind="stable").reshape(-1, 2)
    first, second = (values[order[:, i]].astype(np.float64) for i in (0, 1))
    inside = arm.inside[order[:, 0]]
    return np.stack([np.where(inside, first, second), np.where(inside, second, first)])


def statistics(loss: Floats, unit: str) -> dict[str, Floats]:
    """What attacks rank by, higher = fits better: minus the loss; of whole records also the logit of exp(-loss).

    Args:
        loss: Any shape.
        unit: ``"nats/token"`` or ``"nats/record"``.
    """
    found = {"": -loss}
    if unit == "nats/record" and bool(np.all(loss >= 0)):
        found[" on logits"] = logit_scale(loss=loss)
    return found


def cells(strata: Sequence[NDArray[np.bool_]], patients: int) -> NDArray[np.int64]:
    """Disjoint cells that overlapping strata cut the patients into; the small ones together are one.

    Args:
        strata: ``(P,)`` each.
        patients: P.

    Returns:
        ``(P,)`` codes from 0 without a gap.
    """
    if not len(strata):
        return np.zeros(patients, dtype=np.int64)
    code = np.unique(np.stack(list(strata)), axis=1, return_inverse=True)[1].reshape(-1)
    few = np.bincount(code)[code] < _LEAST_CELL
    code = np.where(few, code.max() + 1, code)
    if 0 < np.count_nonzero(few) < _LEAST_CELL:  # too few even together: to the largest cell
        code[few] = np.bincount(code[~few]).argmax() if not few.all() else 0
    codes: NDArray[np.int64] = np.unique(code, return_inverse=True)[1].reshape(-1)
    return codes


def attack(arm: ArmRuns, stage: int, *, unit: str, cell: NDArray[np.int64]) -> Iterator[Scores]:
    """Scores of every attack on every model of an arm, over every signal that was measured at this stage.

    The attacks: the loss alone; LiRA with one variance for all patients, with one for each cell of the strata, and
    with each patient's own; BaVarIA; RMIA's continuous score (on the deployed model's losses, held-out patients are
    its population). References are the models of the arm's other seeds: each has one that saw the patient and one
    that did not. Scores that are not finite throughout are left out.

    Args:
        arm: The runs.
        stage: Of the training.
        unit: Of the losses.
        cell: ``(P,)`` codes, see `cells`.
    """
    for g in arm.measured(stage):
        name = arm.signals[g]
        for suffix, values in statistics(arm.loss[:, stage, g].astype(np.float64), unit).items():
            stat = by_seed(arm, values)
            population = arm.held_out[:, stage].astype(np.float64) if g == 0 and not suffix else None
            for label, score in _attacks(arm, stat, cell, population, alone=not suffix).items():
                found = _score(score, stat)
                if np.all(np.isfinite(found)):
                    yield Scores(attack=f"{label}{suffix}, {name}", signal=g, scores=found)


_Score = Callable[[NDArray[np.int64], NDArray[np.int64]], Floats]


def _attacks(
    arm: ArmRuns, stat: Floats, cell: NDArray[np.int64], population: Floats | None, *, alone: bool
) -> dict[str, _Score]:
    """Attack -> scores ``(2, targets, P)`` of the models of some seeds by those of others."""
    kept: dict[bytes, Moments] = {}

    def of(references: NDArray[np.int64]) -> Moments:
        key = references.tobytes()
        if key not in kept:
            kept[key] = _moments(stat[:, references])
        return kept[key]

    found: dict[str, _Score] = {}
    if alone:
        found["loss"] = lambda targets, references: stat[:, targets]
    if np.ptp(stat) <= 0.0:  # everybody alike: nothing is to be learned from references
        return found

    def ratio(variance: str, strata: NDArray[np.int64] | None = None) -> _Score:
        return lambda targets, references: likelihood_ratio.log_ratio(
            stat[:, targets], of(references), variance, strata=strata
        )

    found["LiRA, one variance"] = ratio("pooled")
    if cell.any():
        found["LiRA, variance of the stratum"] = ratio("pooled", cell)
    found["LiRA, variance of the patient"] = ratio("per_record")
    found["BaVarIA"] = _bavaria(stat, of)
    if alone:
        found["RMIA"] = _rmia(arm, stat, population)
    return found


def _bavaria(stat: Floats, of: Callable[[NDArray[np.int64]], Moments]) -> _Score:
    """The constants of its prior come from the seeds of other folds than the target's, once for each fold."""
    seeds = np.arange(stat.shape[1])
    folds = min(_FOLDS, len(seeds))
    priors: dict[int, variance_inference.Prior] = {}

    def score(targets: NDArray[np.int64], references: NDArray[np.int64]) -> Floats:
        m, out = of(references), np.empty((2, len(targets), stat.shape[2]))
        everyone = slice(0, stat.shape[2])
        with np.errstate(all="ignore"):
            for fold in np.unique(targets % folds):
                if fold not in priors:
                    priors[fold] = variance_inference.fit_prior(of(seeds[seeds % folds != fold]))
                prior = variance_inference.fit_prior(m, like=priors[fold])
                mine = targets % folds == fold
                now = stat[:, targets[mine]]
                out[:, mine] = variance_inference.log_ratio(now, m, prior, "normal", everyone)
        return out

    return score


def _rmia(arm: ArmRuns, stat: Floats, population: Floats | None) -> _Score:
    """Log of the probability over its mean under IN and OUT models, less the median over unseen patients."""
    likely = np.exp(np.minimum(stat, 700.0))
    order = np.argsort(arm.seed, kind="stable").reshape(-1, 2)  # (S, 2) models of each seed
    unseen = None if population is None else np.exp(np.minimum(-population, 700.0))

    def score(targets: NDArray[np.int64], references: NDArray[np.int64]) -> Floats:
        mean = likely[:, references].mean(axis=(0, 1))
        found: Floats = _log(likely[:, targets]) - _log(mean)
        if unseen is None:
            return found
        models = order[targets]
        mean = unseen[order[references].ravel()].mean(axis=0)
        centre = np.median(_log(unseen[models]) - _log(mean), axis=2)  # (targets, 2)
        first = arm.inside[models[:, 0]]
        seen = np.where(first, centre[:, :1], centre[:, 1:])
        found -= np.stack([seen, centre.sum(axis=1)[:, None] - seen])
        return found

    return score


def _log(p: Floats) -> Floats:
    logs: Floats = np.log(np.maximum(p, _LEAST))
    return logs


def _score(score: _Score, stat: Floats) -> Floats:
    seeds = np.arange(stat.shape[1])
    found = np.empty_like(stat)
    for one in seeds:
        found[:, one : one + 1] = score(np.array([one]), np.delete(seeds, one))
    return found


def _moments(stat: Floats) -> Moments:
    """Of the models of some seeds, ``(2, R, P)``: each patient has R models that saw it and R that did not."""
    n = np.full(stat.shape[2], float(stat.shape[1]))
    mean = stat.mean(axis=1)
    off = stat - mean[:, None]
    square = np.einsum("arp,arp->ap", off, off)
    return Moments(
        n_in=n,
        n_out=n,
        mean_in=mean[0],
        mean_out=mean[1],
        square_in=square[0],
        square_out=square[1],
        scale=float(stat.std()),
    )
