"""A made-up comparison with the shape of a real one. Nothing in it was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from memguard.attacks.estimate import Estimate
from memguard.report.comparison.data import (
    ArmSummary,
    Comparison,
    Group,
    Level,
    Point,
    Row,
    Untouched,
)

STRATA = ("rare code", "age 75 and over", "more than 40 visits", "site B")
# name -> (final loss, TPR of all, how much of the baseline's leakage is left, epsilon)
ARMS: dict[str, tuple[float, float, float | None]] = {
    "plain": (2.41, 1.0, None),
    "plain, new seeds": (2.412, 1.01, None),
    "early stopping": (2.39, 0.7, None),
    "weight decay .1": (2.40, 0.95, None),
    "dropout .3": (2.385, 0.8, None),
    "label smoothing .1": (2.43, 0.55, None),
    "goldfish": (2.46, 0.62, None),
    "FloorFlagged": (2.42, 0.74, None),
    "DropFlagged": (2.44, 0.71, None),
    "masked at evaluation": (2.41, 1.0, None),
    "DP-SGD, epsilon 8": (2.71, 0.16, 8.0),
    "DP-SGD, epsilon 3": (2.86, 0.08, 3.0),
    "DP-SGD, epsilon 1": (3.12, 0.04, 1.0),
}
CONTROL = "plain, new seeds"


def about(
    value: float,
    half: float = 0.02,
    n: int = 2000,
    method: str = "jackknife over seeds",
    least: float = -math.inf,
) -> Estimate:
    return Estimate(value=value, low=max(least, value - half), high=value + half, n=n, method=method)


def _tpr(left: float, group: str) -> float:
    base = {"all": 0.12, "hardest": 0.71, "rare code": 0.44}.get(group, 0.2)
    return 0.01 + (base - 0.01) * left


def _rows(name: str, groups: Sequence[str], stage: str, epoch: float, arms: dict[str, Any]) -> list[Row]:
    loss, left, _ = arms[name]
    base = next(iter(arms))
    numbers: list[tuple[str, str, float, float]] = [("all", "held_out_loss", loss, arms[base][0])]
    for group in groups:
        numbers.append((group, "tpr", _tpr(left, group), _tpr(1.0, group)))
        numbers.append((group, "tpr_as_deployed", _tpr(left, group) * 0.9, _tpr(1.0, group) * 0.9))
        numbers.append((group, "auc", 0.5 + 0.3 * left, 0.8))
        if group != "hardest":
            numbers.append((group, "unseen_loss", loss + 0.4 * (1 - left), arms[base][0]))
    numbers.append(("all", "val/auprc", 0.61 - 0.05 * (1 - left), 0.61))
    rows = []
    for group, measure, value, baseline in numbers:
        other = name != base
        decided = other and (group, measure) == ("hardest", "tpr")
        n = 16 if measure == "val/auprc" else 2000
        rows.append(
            Row(
                arm=name, stage=stage, epoch=epoch, group=group, measure=measure,
                attack="bavaria, as trained" if measure in ("tpr", "auc") else "",
                value=about(value, n=n, least=0.0),
                minus_baseline=about(value - baseline, 0.03) if other else None,
                adjusted=about(value - baseline, 0.05) if decided else None,
            )
        )  # fmt: skip
    return rows


def comparison(
    *,
    arms: dict[str, tuple[float, float, float | None]] | None = None,
    strata: Sequence[str] = STRATA,
    stages: int = 5,
    control: str | None = CONTROL,
    nobody: bool = True,
    **changed: Any,
) -> Comparison:
    """Every part is filled; ``nobody`` adds a level of utility that no arm reaches."""
    arms = ARMS if arms is None else arms
    baseline = next(iter(arms))
    control = control if control in arms else None
    groups = ["all", "hardest", *strata]
    rows, points = [], []
    levels = [
        Level(
            name=name,
            limit=limit,
            words=words,
            reached={arm: 6.0 + i for i, (arm, (loss, *_)) in enumerate(arms.items()) if loss <= limit},
        )
        for name, limit, words in (
            ("baseline's end", 2.415, "the mean loss of plain when its training ends"),
            ("best + 5 %", 2.52, "the lowest mean loss of plain and 5 % more"),
            *([("best", 0.5, "the lowest mean loss of plain over its stages")] if nobody else []),
        )
    ]
    for name, (loss, left, _) in arms.items():
        rows += _rows(name, groups, "final", 20.0, arms)
        for level in levels:
            if name in level.reached:
                rows += _rows(name, groups[:2], level.name, level.reached[name], arms)
        for group in groups:
            for stage in range(stages):
                done = (stage + 1) / stages
                points.append(
                    Point(
                        arm=name, stage=stage, epoch=20 * done, group=group,
                        utility=math.nan if group == "site B" else loss + 1.3 * (1 - done) ** 2,
                        tpr=_tpr(left * done**2, group),
                    )
                )  # fmt: skip
    values: dict[str, Any] = {
        "version": "0.1.0",
        "created": "2026-01-31T09:00:00+00:00",
        "baseline": baseline,
        "control": control,
        "seeds": 8,
        "models": 16,
        "patients": 2000,
        "held_out": 600,
        "attacks": [f"{attack}, {signal}" for attack in ("lira pooled", "lira in strata", "bavaria", "rmia")
                    for signal in ("as deployed", "as trained")],
        "groups": [
            Group(name="all", patients=2000, held_out=300),
            Group(name="hardest", patients=100, held_out=0, words="easiest to find in the other seeds"),
            *(Group(name=one, patients=120 + 7 * i, held_out=20 + i) for i, one in enumerate(strata)),
        ],
        "arms": [
            ArmSummary(
                name=name,
                settings={"learning rate": 1e-3, "epochs": 20, "clip": epsilon is not None},
                epsilon=epsilon,
                seconds=41.0 * (2.4 if epsilon else 1.0),
                touched_share=0.06 if "Flagged" in name else None,
                guarantee=f"(epsilon {epsilon:g}, delta 1e-05) for patients, add or remove" if epsilon else "",
                signals=["as deployed", "as trained"],
                notes=["Two of 16 runs were resumed."] if name == "goldfish" else [],
            )
            for name, (_, _, epsilon) in arms.items()
        ],
        "rows": rows,
        "points": points,
        "levels": levels,
        "untouched": [
            Untouched(
                arm=name, patients=patients, attack="bavaria, as trained", tpr=about(0.14), baseline_tpr=about(0.09),
                difference=about(0.05, 0.02), newly_exposed=17, newly_hidden=3,
                control_difference=about(0.004, 0.02) if control else None,
                control_newly_exposed=6 if control else None, control_newly_hidden=0 if control else None,
            )
            for name, patients in (("FloorFlagged", 1840), ("DropFlagged", 3))
            if name in arms
        ],
        "may": [
            "“DP-SGD, epsilon 3” lowers the share of the hardest 5 % that is found by .64 (all arms: .59 to .69), at "
            "a held-out loss that is .45 higher.",
        ],
        "may_not": [
            "That “masked at evaluation” protects anybody: it hides its losses as deployed, and attacks as trained "
            "find as many.",
            "That “label smoothing .1” is as good as differential privacy: no heuristic is a guarantee.",
            "Anything about site B: no held-out patient of it was judged.",
        ],
        "notes": ["Stratum “site C” has fewer than 5 patients and is left out."],
    }  # fmt: skip
    return Comparison(**{**values, **changed})
