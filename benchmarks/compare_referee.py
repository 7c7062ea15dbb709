"""The referee of comparisons, tried on trained models of real patients (SUPPORT2): whom must it not let win?

    OMP_NUM_THREADS=1 python -m benchmarks.compare_referee        # about 20 minutes of one core

Three arms are the baseline again with other weights and another order, so that every difference is chance. A fourth
hides its losses when it is evaluated: it says which outcome is likelier and not how sure it is. All of them over
``--seeds`` seeds, and again in studies of ``--part`` seeds each. What was trained lies in ``--out`` and is not trained
again.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from memguard import Arm, Study
from memguard.comparing.compare import run_study
from memguard.comparing.compute import compute
from memguard.comparing.outcomes import ArmRuns, Outcomes
from memguard.report.comparison import Comparison
from recipes.support2_mortality import Mortality, Support2Data

ALIKE = ("like it, 1", "like it, 2")
HIDES = "hides its losses"
RUN = {"max_epochs": 10, "accelerator": "cpu"}
PATIENTS, HELD_OUT = 2400, 2000


class Masked(Mortality):
    """In evaluation every patient gets one of two logits: which outcome is likelier, and nothing of how sure."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits if self.training else torch.sign(logits)


def again(draws: int) -> Mortality:
    """The baseline's module, at another place in the stream of random numbers."""
    torch.rand(draws)
    return Mortality(57)


def data() -> Support2Data:
    return Support2Data(PATIENTS, HELD_OUT, seed=1)


def study(seeds: int) -> Study:
    arms = {"none": Arm(model=partial(Mortality, 57), trainer=RUN)}
    for number, name in enumerate(ALIKE, 1):
        arms[name] = Arm(model=partial(again, number), trainer=RUN, settings={"again": number})
    arms[HIDES] = Arm(model=partial(Masked, 57), trainer=RUN, settings={"hides": True})
    return Study(data=data, arms=arms, baseline="none", seeds=seeds, stages=1)


def part(outcomes: Outcomes, seeds: Sequence[int]) -> Outcomes:
    """Some of the seeds, as a study of its own."""

    def cut(arm: ArmRuns) -> ArmRuns:
        rows = np.isin(arm.seed, seeds)
        whole: dict[str, Any] = {
            name: getattr(arm, name)[rows]
            for name in ("inside", "seed", "loss", "held_out", "epochs", "seconds")
        }
        return replace(arm, **whole, metrics={name: values[rows] for name, values in arm.metrics.items()})

    return replace(outcomes, arms=[cut(arm) for arm in outcomes.arms])


def differences(found: Comparison) -> list[tuple[str, str, str, bool, str]]:
    """Arm, group, measure, whether the interval has 0 in it, and the interval."""
    return [
        (
            row.arm,
            row.group,
            row.measure,
            row.minus_baseline.covers(0.0),
            f"{row.minus_baseline.value:+.4f} [{row.minus_baseline.low:+.4f}, {row.minus_baseline.high:+.4f}]",
        )
        for row in found.rows
        if row.stage == "final" and row.minus_baseline is not None
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--part", type=int, default=5, help="seeds of the smaller studies")
    parser.add_argument("--out", type=Path, default=Path("runs/compare_referee"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    given = study(args.seeds)
    outcomes = run_study(given, folder=args.out)
    alike = {*ALIKE, given.control_name}
    found = compute(outcomes)
    print(f"\n{args.seeds} seeds")
    for arm, group, measure, covers, told in differences(found):
        print(f"  {arm:24} {group:8} {measure:16} {told}{'' if covers else '   <- without 0'}")
    print("  may be concluded:", *(found.may or ["nothing"]), sep="\n    ")
    for name in ("none", HIDES):
        deployed, most = (found.row(name, "all", of).value for of in ("tpr_as_deployed", "tpr"))
        print(
            f"  {name}: found {most.value:.4f}, {deployed.value:.4f} where only the deployed losses are asked"
        )

    asked: Counter[str] = Counter()
    covered: Counter[str] = Counter()
    wins: Counter[str] = Counter()
    studies = args.seeds // args.part
    for number in range(studies):
        one = compute(part(outcomes, range(number * args.part, (number + 1) * args.part)))
        for arm, group, measure, covers, _ in differences(one):
            if arm in alike:
                asked[f"{group}, {measure}"] += 1
                covered[f"{group}, {measure}"] += covers
        for name in (*sorted(alike), HIDES):
            wins[name] += any(name in sentence for sentence in one.may)
    print(f"\n{studies} studies of {args.part} seeds, three arms like the baseline in each")
    for name, count in asked.items():
        print(f"  {name:26} 0 in {covered[name]} of {count} intervals")
    print("  studies that let an arm win:", dict(wins))


if __name__ == "__main__":
    main()
