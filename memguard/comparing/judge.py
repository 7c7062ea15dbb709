"""From the numbers of a comparison to the sentences that may be concluded, and those that may not."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from memguard.attacks import Estimate
from memguard.comparing.matched import best_within
from memguard.report.comparison import Comparison, Row

__all__ = ["ENOUGH_SEEDS", "judge"]

ENOUGH_SEEDS = 6
"""With fewer an interval over seeds is so wide that only large effects show."""


def judge(
    found: Comparison,
    beside: Mapping[tuple[str, str, str], Estimate],
    *,
    seen: Mapping[str, tuple[float, float]] | None = None,
    codes: Mapping[str, tuple[float, float]] | None = None,
) -> Comparison:
    r"""The same comparison with its sentences.

    Primary endpoint: the share of the hardest patients that the strongest attack over all signals finds when training
    ends. An arm wins if the interval of its paired difference from the baseline lies below 0, at a confidence that
    holds for all arms together (Bonferroni), and if it is further from the baseline than new seeds alone are. Matched
    utility is looked at only for arms that win, so that it needs no correction of its own. No arm wins whose models
    know patients whom they were not given.

    Args:
        found: With its rows.
        beside: (level, arm, private arm) -> difference of the TPR on the hardest, arm minus private arm.
        seen: Arms whose models know patients whom they were not given, of `memguard.comparing.seen.seen_before`.
        codes: Held-out losses by two codes, of `memguard.comparing.seen.by_two_codes`.

    Example:
        >>> from memguard.report.comparison import ArmSummary
        >>> alone = Comparison(version="0", baseline="plain", seeds=8, models=16, patients=900, held_out=300,
        ...                    arms=[ArmSummary(name="plain")])
        >>> print(*judge(alone, {}).may_not, sep="\n")
        That anything here beats DP-SGD: no DP-SGD arm was run, and the baseline to beat is missing.
        That a patient whom no attack found is not memorized: the attacks bound leakage from below.
    """
    sentences = _Sentences(found=found, beside=beside, seen=seen or {}, codes=codes or {})
    return dataclasses.replace(found, may=tuple(sentences.may()), may_not=tuple(sentences.may_not()))


@dataclasses.dataclass(kw_only=True)
class _Sentences:
    found: Comparison
    beside: Mapping[tuple[str, str, str], Estimate]
    seen: Mapping[str, tuple[float, float]]
    codes: Mapping[str, tuple[float, float]]

    def __post_init__(self) -> None:
        f = self.found
        self.judged = [name for name in f.names() if name not in (f.baseline, f.control)]
        self.private = [one.name for one in f.arms if one.epsilon is not None]
        self.heuristics = [name for name in self.judged if name not in self.private]
        self.won = [name for name in self.judged if self._wins(name) and name not in self.seen]
        self.level = best_within(f.tolerance)
        self.strata = [one.name for one in f.groups if one.name not in ("all", "hardest")]

    def _row(self, arm: str, group: str, measure: str, stage: str = "final") -> Row | None:
        return self.found.find(arm, group, measure, stage)

    def _minus(self, arm: str, group: str, measure: str, stage: str = "final") -> Estimate | None:
        row = self._row(arm, group, measure, stage)
        return None if row is None else row.minus_baseline

    def _below(self, arm: str, group: str, measure: str) -> bool:
        minus = self._minus(arm, group, measure)
        return minus is not None and minus.high < 0.0

    def _wins(self, arm: str) -> bool:
        row = self._row(arm, "hardest", "tpr")
        if row is None or row.adjusted is None or not row.adjusted.high < 0.0:
            return False
        noise = self._noise()
        return noise is None or abs(row.adjusted.value) > abs(noise.value)

    def _noise(self) -> Estimate | None:
        control = self.found.control
        return None if control is None else self._minus(control, "hardest", "tpr")

    # -- may -----------------------------------------------------------------------------------------------

    def may(self) -> Iterator[str]:
        for arm in self.won:
            row = self._row(arm, "hardest", "tpr")
            base = self._row(self.found.baseline, "hardest", "tpr")
            if row is None or row.adjusted is None or base is None:
                continue
            yield " ".join(
                [
                    f"{arm} exposes the hardest {_percent(self.found.hardest_share)} of the patients less: the"
                    f" strongest attack finds {_rate(row.value.value)} of them, under {self.found.baseline}"
                    f" {_rate(base.value.value)}"
                    f" (difference {_points(row.adjusted)}, {_together(row.adjusted, len(self.judged))}).",
                    self._utility(arm),
                    self._matched(arm),
                    *self._prices(arm),
                    *self._rises(arm),
                    self._promise(arm),
                ]
            ).strip()
        for arm in self.judged:
            row = self._row(arm, "hardest", "tpr")
            if row is not None and row.adjusted is not None and row.adjusted.low > 0.0:
                yield (
                    f"{arm} exposes the hardest patients more than {self.found.baseline} does"
                    f" (difference {_points(row.adjusted)}, {_together(row.adjusted, len(self.judged))})."
                )

    def _utility(self, arm: str) -> str:
        minus = self._minus(arm, "all", "held_out_loss")
        base = self._row(self.found.baseline, "all", "held_out_loss")
        if minus is None or base is None:
            return "What it costs in held-out loss was not measured."
        room = self.found.tolerance * abs(base.value.value)
        within = f"{100 * self.found.tolerance:g} %"
        if minus.high <= room:
            return f"Its held-out loss is no worse within {within} (difference {_loss(minus)})."
        if minus.low > 0.0:
            return f"It pays with held-out loss: {_loss(minus)} more, {_relative(minus, base.value.value)}."
        return f"That its held-out loss is no worse within {within} is not shown (difference {_loss(minus)})."

    def _matched(self, arm: str) -> str:
        row = self._row(arm, "hardest", "tpr", self.level)
        if self._stages() == 1:
            return "Of equal utility nothing is said: with one stage the baseline could not stop earlier."
        if row is None:
            return f"It never came within {self._bar()}, so nothing is said of equal utility."
        if row.adjusted is None:
            return ""
        if row.adjusted.high < 0.0:
            return f"The difference stands at equal utility ({self._bar()}): {_points(row.adjusted)}."
        if row.adjusted.low == row.adjusted.value == row.adjusted.high == 0.0:
            return f"At equal utility ({self._bar()}) nothing has changed yet: the same patients are found."
        return f"At equal utility ({self._bar()}) no difference is shown: {_points(row.adjusted)}."

    def _stages(self) -> int:
        return sum(one.arm == self.found.baseline and one.group == "all" for one in self.found.points)

    def _bar(self) -> str:
        return f"{100 * self.found.tolerance:g} % of the baseline's best held-out loss"

    def _prices(self, arm: str) -> Iterator[str]:
        """What patients pay whom the model never saw, by stratum, the dearest first."""
        paid: list[tuple[float, str]] = []
        for group in self.strata:
            minus = self._minus(arm, group, "unseen_loss")
            base = self._row(self.found.baseline, group, "unseen_loss")
            if minus is not None and base is not None and minus.low > 0.0:
                told = f"{group} {_loss(minus)}, {_relative(minus, base.value.value)}"
                paid.append((-minus.value, told))
        if paid:
            yield (
                "Patients whom the model never saw pay with a higher loss:"
                f" {'; '.join(told for _, told in sorted(paid))}."
            )

    def _rises(self, arm: str) -> Iterator[str]:
        """Where more is found than under the baseline."""
        more = []
        for group in self.strata:
            minus = self._minus(arm, group, "tpr")
            if minus is not None and minus.low > 0.0:
                more.append(f"{group} {_points(minus)}")
        if more:
            yield f"Leakage rises: {'; '.join(more)}."

    def _promise(self, arm: str) -> str:
        one = self.found.arm(arm)
        if one.epsilon is None:
            return "It gives no guarantee."
        words = f" ({one.guarantee})" if one.guarantee else ""
        return f"It guarantees epsilon {one.epsilon:.3g} at most{words}."

    # -- may not -------------------------------------------------------------------------------------------

    def may_not(self) -> Iterator[str]:
        for arm in self.judged:
            yield from self._known(arm)
            yield from self._only_hidden(arm)
            yield from self._only_average(arm)
            yield from self._by_codes(arm)
        yield from self._free()
        yield from self._beside_private()
        yield from self._within_noise()
        heuristics = [arm for arm in self.won if arm in self.heuristics]
        if heuristics:
            yield (
                f"That {_names(heuristics)} protect{'s' if len(heuristics) == 1 else ''} from attacks that were not"
                " tried: heuristics give no guarantee, and an attack made for one of them may find more."
            )
        equal = [
            arm
            for arm in self.judged
            if arm not in self.won and arm not in self.seen and not self._worse(arm)
        ]
        if equal:
            yield (
                f"That {_names(equal)} and {self.found.baseline} are alike: what is not shown in"
                f" {self.found.seeds} seeds may still be there{self._reach(equal)}."
            )
        if self.found.seeds < ENOUGH_SEEDS:
            yield (
                f"That small effects are absent: with {self.found.seeds} seeds an interval has"
                f" {self.found.seeds - 1} degrees of freedom, and only large effects show."
            )
        yield from self._one_signal()
        yield "That a patient whom no attack found is not memorized: the attacks bound leakage from below."

    def _worse(self, arm: str) -> bool:
        row = self._row(arm, "hardest", "tpr")
        return row is not None and row.adjusted is not None and row.adjusted.low > 0.0

    def _known(self, arm: str) -> Iterator[str]:
        """Strangers who are none: attacks that tell members from them find nobody."""
        if arm in self.seen:
            mine, base = self.seen[arm]
            yield (
                f"That {arm} exposes anybody less: patients of the study whom its models were not given lose"
                f" {mine:+.4f} beside held-out ones, under {self.found.baseline} {base:+.4f}, as if the models had seen"
                " them. Then members cannot be told from them, and attacks find nobody. See what its weights were"
                " trained on before, and what its code reads."
            )

    def _by_codes(self, arm: str) -> Iterator[str]:
        """A held-out loss that is the arm's way of computing it."""
        base = self._row(self.found.baseline, "all", "held_out_loss")
        if arm in self.codes and base is not None:
            own, plain = self.codes[arm]
            if abs(own - plain) > self.found.tolerance * abs(base.value.value):
                yield (
                    f"That the held-out loss of {arm} is the work of its training: its own code makes {own:.4f} of its"
                    f" weights, the baseline's code {plain:.4f} (under {self.found.baseline} {base.value.value:.4f})."
                )

    def _only_hidden(self, arm: str) -> Iterator[str]:
        """A drop for those who read the deployed model's losses, and none for those who train it further."""
        for group, whom in (("hardest", "the hardest patients"), ("all", "patients")):
            if self._below(arm, group, "tpr_as_deployed") and not self._below(arm, group, "tpr"):
                seen = self._minus(arm, group, "tpr_as_deployed")
                whole = self._minus(arm, group, "tpr")
                if seen is None or whole is None:
                    continue
                signals = self.found.arm(arm).signals[1:]
                yield (
                    f"That {arm} protects {whom}: it hides its losses, it does not protect. Attacks on the deployed"
                    f" model's losses find fewer ({_points(seen)}), attacks on its losses"
                    f" {' or '.join(signals) or 'by other signals'} do not ({_points(whole)})."
                )
                return

    def _only_average(self, arm: str) -> Iterator[str]:
        """Less is found on average, and nothing is shown of the hardest."""
        if arm in self.won or arm in self.seen:
            return
        fewer = [
            name
            for name, measure in (("the AUC over all patients", "auc"), ("the TPR over all patients", "tpr"))
            if self._below(arm, "all", measure)
        ]
        row = self._row(arm, "hardest", "tpr")
        if fewer and row is not None and row.adjusted is not None:
            yield (
                f"That {arm} protects the most vulnerable: {' and '.join(fewer)} fell, but on the hardest"
                f" patients no difference is shown ({_points(row.adjusted)},"
                f" {_together(row.adjusted, len(self.judged))})."
            )

    def _free(self) -> Iterator[str]:
        """Prices and rises of arms that did not win: a reader may take them for harmless."""
        for arm in self.judged:
            if arm in self.won:
                continue
            costs = [*self._prices(arm), *self._rises(arm)]
            if costs:
                yield f"That {arm} costs nobody anything. {' '.join(costs)}"

    def _beside_private(self) -> Iterator[str]:
        if not self.private:
            yield "That anything here beats DP-SGD: no DP-SGD arm was run, and the baseline to beat is missing."
            return
        alone = []
        for arm in self.won:
            if arm not in self.heuristics:
                continue
            met = {dp: self.beside.get((self.level, arm, dp)) for dp in self.private}
            known = {dp: one for dp, one in met.items() if one is not None}
            if not known:
                alone.append(arm)
                continue
            dp, worst = max(known.items(), key=lambda item: item[1].high)
            if not worst.high < 0.0:
                yield (
                    f"That {arm} beats DP-SGD at equal utility: against {dp} the difference on the hardest patients"
                    f" is {_points(worst)}, and {dp} has a guarantee."
                )
        if alone:
            yield (
                f"That {_names(alone)} beat{'s' if len(alone) == 1 else ''} DP-SGD at equal utility: not both came"
                f" within {self._bar()}, so there is nothing to compare."
            )

    def _within_noise(self) -> Iterator[str]:
        """Differences no larger than that of the baseline from itself."""
        noise = self._noise()
        if noise is None:
            if self.judged:
                yield (
                    "That a change of single patients is the work of an arm: the baseline was not trained again with"
                    " other seeds, and what seeds alone change is not known."
                )
            return
        small = []
        for arm in self.judged:
            row = self._row(arm, "hardest", "tpr")
            if row is None or row.adjusted is None or not row.adjusted.high < 0.0:
                continue
            if abs(row.adjusted.value) <= abs(noise.value):
                small.append(arm)
        if small:
            yield (
                f"That {_names(small)} protect{'s' if len(small) == 1 else ''} the hardest patients: training the"
                f" baseline again with other seeds changes as much ({_points(noise)})."
            )

    def _one_signal(self) -> Iterator[str]:
        """Ways of asking that some arm could be asked in and a winner could not."""
        asked = {
            name: {*self.found.arm(name).signals[1:], *self.found.arm(name).same}
            for name in self.found.names()
        }
        ways = [way for one in self.found.arms for way in (*one.signals[1:], *one.same)]
        lacking: dict[tuple[str, ...], list[str]] = {}
        for arm in self.won:
            missing = tuple(way for way in dict.fromkeys(ways) if way not in asked[arm])
            if missing or not asked[arm]:
                lacking.setdefault(missing if asked[arm] else (), []).append(arm)
        for missing, arms in lacking.items():
            which = (
                f"its losses {' and '.join(missing)} could not" if missing else "no other signal of it could"
            )
            yield (
                f"That {_names(arms)} would stand against whoever reads more than the deployed model's losses, where"
                f" that shows more: {which} be measured."
            )

    def _reach(self, arms: list[str]) -> str:
        ends = [one for one in (self._minus(arm, "hardest", "tpr") for arm in arms) if one is not None]
        if not ends:
            return ""
        low, high = min(one.low for one in ends), max(one.high for one in ends)
        return f" (on the hardest patients anything from {100 * low:+.1f} to {100 * high:+.1f} points)"


def _names(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _percent(share: float) -> str:
    return f"{100 * share:g} %"


def _rate(value: float) -> str:
    return f"{100 * value:.1f} %"


def _points(one: Estimate) -> str:
    return f"{100 * one.value:+.1f} points [{100 * one.low:+.1f}, {100 * one.high:+.1f}]"


def _loss(one: Estimate) -> str:
    return f"{one.value:+.4f} [{one.low:+.4f}, {one.high:+.4f}]"


def _relative(one: Estimate, base: float) -> str:
    return f"{100 * one.value / abs(base):+.1f} %" if base else "of a loss of zero"


def _together(one: Estimate, arms: int) -> str:
    if arms < 2:
        return f"{_percent(one.confidence)} interval"
    return f"an interval that holds for all {arms} arms together"
