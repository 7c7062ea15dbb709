"""What the trained models of a comparison left behind: the arrays between training and arithmetic, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from memguard.errors import DataError, MemguardError

__all__ = ["LEAST_SEEDS", "TAKEN", "ArmRuns", "Outcomes"]

LEAST_SEEDS = 3
"""With fewer seeds a model that is attacked has one other seed to learn from, and nothing is left to vary."""
TAKEN = frozenset({"tpr", "tpr_as_deployed", "auc", "held_out_loss", "unseen_loss"})
"""Names that a logged metric cannot have."""
_GROUPS = frozenset({"all", "hardest"})

Bools = NDArray[np.bool_]
Numbers = NDArray[np.floating[Any]]


@dataclass(frozen=True, kw_only=True, eq=False)
class ArmRuns:
    """One way to train: K = 2 S models, two for each of S seeds, each trained on one half of P pool patients.

    Attributes:
        name: Unique among the arms.
        inside: ``(K, P)`` pool patients that each model trained on. The two models of a seed split the pool.
        seed: ``(K,)`` which division of the pool a model belongs to.
        loss: ``(K, T, G, P)`` mean loss of each pool patient at each of T stages of the training (the last one is what
            would be deployed) by each of G signals. Signal 0 is the deployed model's own loss. Another one may be NaN
            throughout a stage: it equals signal 0 there, or could not be measured.
        held_out: ``(K, T, H)`` the same of held-out patients, as deployed.
        held_out_by_codes: ``(2, H)`` at the end, mean over the models: as deployed, and by the baseline's code with the
            arm's weights; ``None`` where that gives what is deployed, or cannot be asked.
        epochs: ``(K, T)`` epochs of training at each stage.
        signals: G names.
        same: Those of them that were asked at the end of every training and gave what signal 0 gives.
        seconds: ``(K,)`` of training.
        touched: ``(K, P)`` patients whom a mitigation ever weighed below one; ``None`` where nothing says so.
        metrics: Name -> ``(K,)`` numbers logged by the user's own validation step on the judging half.
        epsilon: ``(K,)`` what is guaranteed of each model; ``None`` without a guarantee.
        guarantee: In words; empty without one.
        settings: What makes the arm different, name -> primitive.
        notes: What a reader must know of these runs.
    """

    name: str
    inside: Bools
    seed: NDArray[np.integer[Any]]
    loss: Numbers
    held_out: Numbers
    epochs: Numbers
    seconds: Numbers
    held_out_by_codes: Numbers | None = None
    signals: Sequence[str] = ("as deployed",)
    same: Sequence[str] = ()
    touched: Bools | None = None
    metrics: Mapping[str, Numbers] = field(default_factory=dict)
    epsilon: Numbers | None = None
    guarantee: str = ""
    settings: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def models(self) -> int:
        """K."""
        return len(self.inside)

    @property
    def stages(self) -> int:
        """T."""
        return int(self.loss.shape[1])

    @property
    def private(self) -> bool:
        """Whether every model has a finite epsilon."""
        return self.epsilon is not None and bool(np.all(np.isfinite(self.epsilon)))

    def measured(self, stage: int) -> tuple[int, ...]:
        """Signals that every model has at this stage; signal 0 is always among them."""
        whole = np.isfinite(self.loss[:, stage]).all(axis=(0, 2))
        return tuple(int(g) for g in np.flatnonzero(whole))


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcomes:
    """Everything that the models of a comparison left behind.

    Attributes:
        arms: With the baseline among them. All have the same seeds and the same halves, model by model.
        baseline: Name of the arm that the others are compared with.
        strata: Name -> ``(P,)`` pool patients of it. They may overlap.
        held_out_strata: Name -> ``(H,)`` held-out patients of the stratum of that name.
        tokens: ``(P,)`` predicted tokens (or records) of each pool patient.
        judging: ``(H,)`` held-out patients that judge; the others are those that an arm may choose by.
        unit: Of the losses.
        control: Name of the arm that is the baseline trained again on the same halves with other seeds of weights
            and order; ``None`` where there is none.

    Raises:
        DataError: If an array has not the form above, arms differ in their halves, or losses as deployed are not
            finite.
        MemguardError: With fewer than 3 seeds, or if the baseline or the control is none of the arms.

    Example:
        >>> import numpy as np
        >>> half = np.random.default_rng(0).random((4, 60)) < 0.5
        >>> inside, seed = np.stack([half, ~half], axis=1).reshape(8, 60), np.repeat(np.arange(4), 2)
        >>> loss = 2.0 - inside[:, None, None, :] + np.zeros((8, 1, 1, 60))
        >>> runs = ArmRuns(name="plain", inside=inside, seed=seed, loss=loss, held_out=np.full((8, 1, 20), 2.0),
        ...                epochs=np.full((8, 1), 5.0), seconds=np.full(8, 9.0))
        >>> found = Outcomes(arms=[runs], baseline="plain", strata={}, held_out_strata={}, tokens=np.full(60, 30),
        ...                  judging=np.arange(20) % 2 == 0)
        >>> found.seeds, found.arm("plain").measured(0)
        (4, (0,))
    """

    arms: Sequence[ArmRuns]
    baseline: str
    strata: Mapping[str, Bools]
    held_out_strata: Mapping[str, Bools]
    tokens: NDArray[Any]
    judging: Bools
    unit: Literal["nats/token", "nats/record"] = "nats/token"
    control: str | None = None

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names):
            raise MemguardError(
                f"arms named {names}",
                "numbers of two arms would go by one name",
                "give each arm a name of its own",
            )
        for role, name in (("baseline", self.baseline), ("control", self.control)):
            if name is not None and name not in names:
                raise MemguardError(
                    f"{role} {name!r} is none of the arms {names}",
                    "there would be nothing to compare with",
                    f"name one of the arms as {role}=",
                )
        if self.control == self.baseline:
            raise MemguardError(
                f"{self.baseline!r} is baseline and control",
                "its difference from itself says nothing of new seeds",
                "train the baseline again with other seeds, or leave control= out",
            )
        if self.unit not in ("nats/token", "nats/record"):
            raise DataError(
                f"unit {self.unit!r}", "losses could be misread", "pass nats/token or nats/record"
            )
        self._check_patients()
        first = self.arm(self.baseline)
        for arm in self.arms:
            self._check(arm)
            if not (np.array_equal(arm.seed, first.seed) and np.array_equal(arm.inside, first.inside)):
                raise DataError(
                    f"arm {arm.name!r} has other seeds or halves than {first.name!r}",
                    "differences would no longer be paired",
                    "train every arm on the same halves, with its models in the same order",
                )
            _check_halves(arm)

    def arm(self, name: str) -> ArmRuns:
        """The runs of this name.

        Raises:
            MemguardError: If there are none.
        """
        for one in self.arms:
            if one.name == name:
                return one
        raise MemguardError(f"no arm {name!r}", "there are no models of it", "use a name among arms")

    @property
    def seeds(self) -> int:
        """S."""
        return len(np.unique(self.arms[0].seed))

    @property
    def pool(self) -> int:
        """P, patients in the pool."""
        return int(np.shape(self.arms[0].inside)[-1])

    def _check_patients(self) -> None:
        n_pool, n_held_out = self.pool, np.size(self.judging)
        _truths(self.judging, (n_held_out,), "judging")
        if not 0 < int(np.count_nonzero(self.judging)) < n_held_out:
            raise DataError(
                f"{int(np.count_nonzero(self.judging))} of {n_held_out} held-out patients judge",
                "those who judge utility and those by whom a stage is chosen must be different people",
                "pass judging with both truth values",
            )
        _shaped(self.tokens, (n_pool,), "tokens")
        for name, mask in self.strata.items():
            _truths(mask, (n_pool,), f"strata[{name!r}]")
        for name, mask in self.held_out_strata.items():
            _truths(mask, (n_held_out,), f"held_out_strata[{name!r}]")
        wrong = sorted(set(self.held_out_strata) - set(self.strata)) + sorted(_GROUPS & set(self.strata))
        if wrong:
            raise DataError(
                f"strata named {', '.join(map(repr, wrong))}",
                "held-out strata go with those of the pool, and 'all' and 'hardest' are taken",
                "give each stratum one name on both sides",
            )

    def _check(self, arm: ArmRuns) -> None:
        """Shapes and values of one arm."""
        n_models, n_pool = len(arm.inside), self.pool
        stages, signals = (*np.shape(arm.loss), 0, 0, 0)[1], len(arm.signals)
        _truths(arm.inside, (n_models, n_pool), f"{arm.name}: inside")
        _shaped(arm.seed, (n_models,), f"{arm.name}: seed")
        _shaped(arm.loss, (n_models, stages, signals, n_pool), f"{arm.name}: loss")
        _shaped(arm.held_out, (n_models, stages, len(self.judging)), f"{arm.name}: held_out")
        _shaped(arm.epochs, (n_models, stages), f"{arm.name}: epochs")
        _shaped(arm.seconds, (n_models,), f"{arm.name}: seconds")
        if arm.held_out_by_codes is not None:
            _shaped(arm.held_out_by_codes, (2, len(self.judging)), f"{arm.name}: held_out_by_codes")
        if arm.touched is not None:
            _truths(arm.touched, (n_models, n_pool), f"{arm.name}: touched")
        if arm.epsilon is not None:
            _shaped(arm.epsilon, (n_models,), f"{arm.name}: epsilon")
        if stages < 1 or signals < 1:
            raise DataError(
                f"arm {arm.name!r} has {stages} stages and {signals} signals",
                "there is nothing to attack",
                "measure at least the deployed model, as deployed",
            )
        for name, values in arm.metrics.items():
            _shaped(values, (n_models,), f"{arm.name}: metric {name}")
            if name in TAKEN:
                raise DataError(
                    f"a logged metric named {name!r}",
                    "a number of that name is there",
                    "log it by another name",
                )
        for what, array in (("loss as deployed", arm.loss[:, :, 0]), ("held_out", arm.held_out)):
            bad = array.size - int(np.count_nonzero(np.isfinite(array)))
            if bad:
                raise DataError(
                    f"{bad} of {array.size} values of {what} in arm {arm.name!r} are NaN or infinite",
                    "its models diverged or were not measured, and any rank of theirs would be a guess",
                    "leave the arm out, and say so in the notes",
                )


def _check_halves(arm: ArmRuns) -> None:
    """Every seed has two models that split the pool, and there are enough seeds."""
    seeds, counts = np.unique(arm.seed, return_counts=True)
    if len(seeds) < LEAST_SEEDS:
        raise MemguardError(
            f"{len(seeds)} seeds",
            "each model is attacked with those of the other seeds, and intervals are taken over seeds",
            f"train at least {LEAST_SEEDS}, better 8",
        )
    for seed, count in zip(seeds, counts, strict=True):
        mine = arm.inside[arm.seed == seed]
        if count != 2 or not bool(np.all(mine[0] != mine[1])):
            raise DataError(
                f"seed {seed} of arm {arm.name!r} has {count} models that do not split the pool",
                "each patient must be in exactly one of the two halves of a seed",
                "pass two models for each seed, each trained on the patients that the other did not see",
            )


def _shaped(array: Any, shape: tuple[int, ...], name: str) -> None:
    if not isinstance(array, np.ndarray) or array.shape != shape or math.prod(shape) == 0:
        raise DataError(
            f"{name} is {type(array).__name__} of shape {np.shape(array)}, and {shape} is needed",
            "numbers would be given to the wrong model or patient",
            "pass an array with the axes that ArmRuns and Outcomes name",
        )


def _truths(array: Any, shape: tuple[int, ...], name: str) -> None:
    _shaped(array, shape, name)
    if array.dtype != np.bool_:
        raise DataError(
            f"{name} holds {array.dtype}", "a patient is in it or not", "pass an array of booleans"
        )
