"""From what the models left behind to the comparison: leakage, utility, paired differences, matched levels."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from memguard import __version__
from memguard.attacks import Estimate
from memguard.attacks._checks import share
from memguard.comparing.attack import attack, cells
from memguard.comparing.described import notes, summary
from memguard.comparing.groups import Members, fixed, hardest, large_strata, untouched
from memguard.comparing.intervals import Number, difference, estimate
from memguard.comparing.judge import judge
from memguard.comparing.matched import Bar, bars
from memguard.comparing.outcomes import ArmRuns, Outcomes
from memguard.comparing.seen import by_two_codes, seen_before
from memguard.comparing.strongest import Leakage, strongest
from memguard.comparing.untouched import reaudit
from memguard.comparing.utility import held_out_loss, of_seeds, over_seeds, unseen_loss
from memguard.errors import MemguardError, ResolutionError
from memguard.records.small_cells import MIN_CELL
from memguard.report.comparison import Comparison, Group, Level, Point, Row, Untouched

__all__ = ["compute"]

Bools = NDArray[np.bool_]
_WORDS = {
    "all": "every patient of the pool",
    "hardest": "for each seed, the patients whose losses differ most between models that saw them and models that did"
    " not, in the other seeds and on average over all arms",
}


def compute(
    outcomes: Outcomes,
    *,
    fpr: float = 0.01,
    hardest: float = 0.05,
    tolerance: float = 0.01,
    confidence: float = 0.95,
) -> Comparison:
    """Judge arms of training beside a baseline.

    Each model is attacked with the models of its arm's other seeds as references; of all attacks and signals the
    strongest counts, in each group by itself. Intervals are delete-one-seed jackknives: a seed leaves as a target, and
    threshold and strongest attack are chosen again without it. Differences from the baseline are paired. They
    speak of other seeds over the same patients, not of other patients. References, constants of BaVarIA's prior and
    the disjoint cells of the strata stay as they are when a seed is left out.

    Args:
        outcomes: Of all arms.
        fpr: Share of non-members that an attack may call members.
        hardest: Share of the patients that are the hardest to protect; see `memguard.comparing.groups.hardest`.
        tolerance: Relative loss of utility that counts as none.
        confidence: Of every interval.

    Returns:
        The comparison, with the sentences that may be concluded and those that may not.

    Raises:
        ResolutionError: If there are fewer than ``1 / fpr`` pairs of a model and a patient that it never saw.
        MemguardError: If a share is not in (0, 1), or there are fewer patients than may be reported.
    """
    for name, value in (
        ("fpr", fpr),
        ("hardest", hardest),
        ("tolerance", tolerance),
        ("confidence", confidence),
    ):
        share(value, name)
    _enough(outcomes, fpr)
    work = _Work(outcomes=outcomes, fpr=fpr, hardest=hardest, tolerance=tolerance, confidence=confidence)
    return work.comparison()


def _enough(outcomes: Outcomes, fpr: float) -> None:
    pairs = (outcomes.seeds - 1) * outcomes.pool
    if pairs * fpr < 1.0:
        raise ResolutionError(
            f"{pairs} pairs of a model and a patient that it never saw, for a false positive rate of {fpr:g}",
            "less than one of them may be called a member, so the rate would be a guess",
            "compare on more patients or seeds, or ask for a higher rate",
        )
    judging = int(np.count_nonzero(outcomes.judging))
    if min(outcomes.pool, judging, len(outcomes.judging) - judging) < MIN_CELL:
        raise MemguardError(
            f"{outcomes.pool} patients in the pool, {judging} of {len(outcomes.judging)} held-out patients judge",
            f"fewer than {MIN_CELL} patients are not reported",
            "compare on more patients",
        )


@dataclass(kw_only=True)
class _Work:
    """One comparison in the making; what several rows need is computed once."""

    outcomes: Outcomes
    fpr: float
    hardest: float
    tolerance: float
    confidence: float
    leakages: dict[tuple[str, int], Leakage] = field(default_factory=dict)
    numbers: dict[tuple[str, int, str, str], Number | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        o = self.outcomes
        self.base = o.arm(o.baseline)
        self.strata, self.small = large_strata(o)
        self.cell = cells(list(self.strata.values()), o.pool)
        self.groups: dict[str, Members] = {
            "all": fixed(np.ones(o.pool, dtype=np.bool_), o.seeds),
            "hardest": hardest(o.arms, o.unit, self.hardest),
            **{name: fixed(mask, o.seeds) for name, mask in self.strata.items()},
        }
        nobody = np.zeros(len(o.judging), dtype=np.bool_)
        self.judges: dict[str, Bools] = {
            "all": o.judging,
            "hardest": nobody,
            **{name: o.judging & o.held_out_strata.get(name, nobody) for name in self.strata},
        }
        self.alone = {arm.name: untouched(arm) for arm in o.arms}
        self.bars = bars(o, self.tolerance)
        first = [self.base, *(arm for arm in o.arms if arm is not self.base)]
        self.arms = first

    # -- numbers -------------------------------------------------------------------------------------------

    def leakage(self, arm: ArmRuns, stage: int) -> Leakage:
        """What is found of each group; at the last stage with AUCs and the untouched patients of other arms."""
        key = (arm.name, stage)
        if key not in self.leakages:
            last = stage == arm.stages - 1
            attacks = attack(arm, stage, unit=self.outcomes.unit, cell=self.cell)
            groups = {**self.groups, **(self._alone_under(arm) if last else {})}
            self.leakages[key] = strongest(attacks, groups, self.fpr, areas=last)
        return self.leakages[key]

    def _alone_under(self, arm: ArmRuns) -> dict[str, Members]:
        """Groups of untouched patients that this arm is attacked on: its own, or everybody's."""
        shared = arm.name in (self.outcomes.baseline, self.outcomes.control)
        return {
            f"untouched by {name}": members
            for name, members in self.alone.items()
            if members is not None and members.enough and (shared or name == arm.name)
        }

    def number(self, arm: ArmRuns, stage: int, group: str, measure: str) -> Number | None:
        """One number, or ``None`` where there are too few patients for it."""
        key = (arm.name, stage, group, measure)
        if key not in self.numbers:
            self.numbers[key] = self._number(arm, stage, group, measure)
        return self.numbers[key]

    def _number(self, arm: ArmRuns, stage: int, group: str, measure: str) -> Number | None:
        if measure == "held_out_loss":
            judges = self.judges[group]
            return None if np.count_nonzero(judges) < MIN_CELL else held_out_loss(arm, stage, judges)
        if measure == "unseen_loss":
            return unseen_loss(arm, stage, self.groups[group], self.judges[group])
        if measure in arm.metrics:
            values = of_seeds(arm, arm.metrics[measure])
            return over_seeds(values, arm.models) if np.all(np.isfinite(values)) else None
        if measure not in ("tpr", "tpr_as_deployed", "auc"):
            return None
        return self.leakage(arm, stage).numbers[group, measure]

    def at_bar(self, arm: ArmRuns, bar: Bar, group: str, measure: str) -> Number | None:
        """The same at the stage where the arm first meets a level; without a seed, where it then first meets it."""
        number = self.number(arm, bar.stages[arm.name], group, measure)
        if number is None:
            return None
        stages = bar.without[arm.name]
        moved = [self.number(arm, stage, group, measure) for stage in stages]
        without = [one.without[s] for s, one in enumerate(moved) if one is not None]
        return Number(
            value=number.value,
            without=np.array(without),
            patients=number.patients,
            kind=number.kind,
            attack=number.attack,
            pairs=number.pairs,
        )

    # -- rows ----------------------------------------------------------------------------------------------

    def rows(self) -> list[Row]:
        """At the end of training, then at each level."""
        names = dict.fromkeys(name for arm in self.arms for name in arm.metrics)
        hidden = any(len(arm.measured(arm.stages - 1)) > 1 for arm in self.arms)
        final = ["tpr", *(["tpr_as_deployed"] if hidden else []), "auc", "held_out_loss", "unseen_loss"]
        found: list[Row] = []
        for arm in self.arms:
            last, base_last = arm.stages - 1, self.base.stages - 1
            for group in self.groups:
                for measure in [*final, *(names if group == "all" else ())]:
                    mine = self.number(arm, last, group, measure)
                    base = self.number(self.base, base_last, group, measure)
                    found += self._row(arm, "final", last, group, measure, mine, base)
        for bar in self.bars:
            for arm in self.arms:
                if arm.name not in bar.stages:
                    continue
                for group in self.groups:
                    for measure in ("tpr", "held_out_loss", "unseen_loss"):
                        mine = self.at_bar(arm, bar, group, measure)
                        base = self.at_bar(self.base, bar, group, measure)
                        found += self._row(arm, bar.name, bar.stages[arm.name], group, measure, mine, base)
        return found

    def _row(
        self,
        arm: ArmRuns,
        name: str,
        stage: int,
        group: str,
        measure: str,
        mine: Number | None,
        base: Number | None,
    ) -> list[Row]:
        if mine is None:
            return []
        minus = adjusted = None
        if arm is not self.base and base is not None:
            minus = difference(mine, base, self.confidence)
            if group == "hardest" and measure == "tpr":
                adjusted = difference(mine, base, self._together())
        return [
            Row(
                arm=arm.name,
                stage=name,
                epoch=float(arm.epochs[:, stage].mean()),
                group=group,
                measure=measure,
                attack=mine.attack,
                value=estimate(mine, self.confidence),
                minus_baseline=minus,
                adjusted=adjusted,
            )
        ]

    def _together(self) -> float:
        """Confidence of one interval with which all arms together have the confidence asked for."""
        judged = [a for a in self.arms if a.name not in (self.outcomes.baseline, self.outcomes.control)]
        return 1.0 - (1.0 - self.confidence) / max(len(judged), 1)

    def points(self) -> list[Point]:
        """Every stage of every arm in every group."""
        found = []
        for arm in self.arms:
            for stage in range(arm.stages):
                leakage = self.leakage(arm, stage)
                for group in self.groups:
                    judges = self.judges["all" if group == "hardest" else group]
                    enough = np.count_nonzero(judges) >= MIN_CELL
                    found.append(
                        Point(
                            arm=arm.name,
                            stage=stage,
                            epoch=float(arm.epochs[:, stage].mean()),
                            group=group,
                            utility=held_out_loss(arm, stage, judges).value if enough else float("nan"),
                            tpr=leakage.numbers[group, "tpr"].value,
                        )
                    )
        return found

    def untouched(self) -> list[Untouched]:
        """One for each arm that says whom it touched, where enough patients were left alone."""
        name = self.outcomes.control
        again = None if name is None else self.outcomes.arm(name)
        found = []
        for arm in self.arms:
            members = self.alone[arm.name]
            if members is None or not members.enough or arm is self.base:
                continue
            found.append(
                reaudit(
                    arm.name,
                    f"untouched by {arm.name}",
                    members,
                    self.leakage(arm, arm.stages - 1),
                    self.leakage(self.base, self.base.stages - 1),
                    None if again is None else self.leakage(again, again.stages - 1),
                    self.confidence,
                )
            )
        return found

    def beside_private(self) -> dict[tuple[str, str, str], Estimate]:
        """(level, arm, private arm) -> difference of the TPR on the hardest, where both met the level."""
        private = [arm for arm in self.arms if arm.private]
        others = [arm for arm in self.arms if not arm.private and arm is not self.base]
        found = {}
        for bar in self.bars:
            for one in others:
                for other in private:
                    if one.name in bar.stages and other.name in bar.stages:
                        a, b = (self.at_bar(arm, bar, "hardest", "tpr") for arm in (one, other))
                        if a is not None and b is not None:
                            found[bar.name, one.name, other.name] = difference(a, b, self.confidence)
        return found

    # -- all of it -----------------------------------------------------------------------------------------

    def comparison(self) -> Comparison:
        """Everything, and the sentences."""
        o = self.outcomes
        rows = self.rows()
        attacks = dict.fromkeys(name for one in self.leakages.values() for name in one.attacks)
        found = Comparison(
            version=__version__,
            baseline=o.baseline,
            control=o.control,
            seeds=o.seeds,
            models=self.base.models,
            patients=o.pool,
            held_out=len(o.judging),
            unit=o.unit,
            fpr=self.fpr,
            confidence=self.confidence,
            hardest_share=self.hardest,
            tolerance=self.tolerance,
            attacks=tuple(attacks),
            groups=tuple(
                Group(
                    name=name,
                    patients=members.patients,
                    held_out=int(self.judges[name].sum()),
                    words=_WORDS.get(name, ""),
                )
                for name, members in self.groups.items()
            ),
            arms=tuple(summary(arm) for arm in self.arms),
            rows=tuple(rows),
            points=tuple(self.points()),
            levels=tuple(self._level(bar) for bar in self.bars),
            untouched=tuple(self.untouched()),
            notes=tuple(notes(o, self.small, self.judges, self.alone)),
        )
        judged = [arm for arm in o.arms if arm.name not in (o.baseline, o.control)]
        seen = {arm.name: seen_before(arm, self.base, o.judging) for arm in judged}
        codes = {arm.name: by_two_codes(arm, o.judging) for arm in judged}
        return judge(
            found,
            self.beside_private(),
            seen={name: one for name, one in seen.items() if one is not None},
            codes={name: one for name, one in codes.items() if one is not None},
        )

    def _level(self, bar: Bar) -> Level:
        epochs = {
            name: float(self.outcomes.arm(name).epochs[:, at].mean()) for name, at in bar.stages.items()
        }
        return Level(name=bar.name, limit=bar.limit, words=bar.words, reached=epochs)
