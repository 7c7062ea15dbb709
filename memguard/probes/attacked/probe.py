"""T4, membership: can anybody tell from the model's answers that a patient was in the training data?"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from memguard.attacks.conformal import benjamini_hochberg, conformal_p_values, storey_share
from memguard.attacks.difference import mean_difference
from memguard.attacks.epsilon import epsilon_one_run
from memguard.attacks.estimate import Estimate
from memguard.attacks.membership import loss_gap, required_held_out, supported_fprs
from memguard.errors import MemguardError
from memguard.probes.asked import Asked, Budget
from memguard.probes.attacked.asking import token_log_probs
from memguard.probes.attacked.judged import comparable, judge, log_roc, strongest, usable
from memguard.probes.attacked.scored import Attack, loss_attack, min_k_attack, reference_attacks
from memguard.probes.attacked.units import Units, drawn_rows, patient_units
from memguard.probes.blind import blind_baseline
from memguard.probes.result import Evidence, NotTested, ProbeResult, Table
from memguard.probes.subject import Subject

__all__ = ["MembershipProbe"]

Ints = NDArray[np.int64]

# The likelihood ratio shown record by record: fixed beforehand, since the attack that looks best was chosen by labels.
_RATIO = ("bavaria", "lira_pooled", "lira_fixed", "loss")
_POOLED = (
    "Rates are pooled over patients: a false-positive rate of .01 means that 1 % of the held-out patients are called "
    "members. For one given patient the rate may be many times higher or lower (arXiv 2605.25819)."
)


@dataclass(frozen=True, kw_only=True)
class MembershipProbe:
    """Every membership attack that the losses and references at hand allow, over patients.

    A patient's records are added up before anything is compared, so that each patient counts once and every interval
    is over patients. Of all attacks the strongest is named, for each number by itself; its interval is widened to hold
    for whichever attack was chosen (Bonferroni over the attacks).

    Attributes:
        fprs: False-positive rates of interest; those that the held-out patients cannot support are not tested.
        min_k: Per cent of the tokens in Min-K %.
        offline_a: Of offline RMIA: how far OUT models are trusted to stand for the mean with IN models. ``None``: 1 for
            sequences, whose probabilities are so small that any other line would forget the OUT models and leave the
            loss attack; .3, the choice of its authors for images, for one prediction a record.
        flag_by: Attack whose p-values flag patients, chosen before the scores are seen. The difference to references
            rises with what the target knows. An online likelihood ratio need not: where references did not learn what
            the target did, a patient far beyond their IN scores looks like no member. ``"loss"`` stands in without
            references.
        flag_rate: False-discovery rate of the flags.
        coins: Whether a fair coin of his own put each patient into the training data or among the held-out ones;
            then a lower bound on epsilon is given.
        delta: Of that bound.
        confidence: Of all intervals.

    Guarantees:
        Numbers are lower bounds on what an attacker can do: a low AUC of these attacks does not show that nobody is
        memorized. P-values are valid where a patient who left no trace is exchangeable with the held-out ones; if the
        sides differ by period or site (``blind.auc``), they are not. Flags hold the false-discovery rate on average
        over held-out sets.

    References:
        Carlini et al., arXiv 2112.03570 (LiRA; TPR at low FPR); Zarifzadeh et al., arXiv 2312.03262 (RMIA);
        Brännvall, arXiv 2603.11799 (BaVarIA); Ye et al., arXiv 2111.09679 (Attack-R); Shi et al., arXiv 2310.16789
        (Min-K %); Steinke et al., arXiv 2305.08846 (epsilon from one run).

    Example:
        >>> from memguard.records.content import Ragged, RecordContent
        >>> class Pool:
        ...     kind, in_mask = "pool", np.random.default_rng(1).random((6, 200)) < 0.5
        >>> rng = np.random.default_rng(0)
        >>> hard = rng.normal(4, 1, 200)
        >>> then = hard - 0.5 * Pool.in_mask + 0.1 * rng.normal(size=(6, 200))
        >>> asked = Asked(target=None, references=Pool(), reference_loss=then,
        ...               loss=hard - 0.5 * (np.arange(200) < 100) + 0.1 * rng.normal(size=200))
        >>> content = RecordContent.from_codes(Ragged.from_lists([[1, 2]] * 200))
        >>> subject = Subject(n_members=100, patient=np.arange(200), content=content)
        >>> found = MembershipProbe(fprs=(0.1,)).run(subject, asked, Budget(size="light"))
        >>> found.numbers["loss.auc"].high < 0.8 < 0.95 < found.numbers["lira.auc"].low
        True
    """

    fprs: Sequence[float] = (0.1, 0.01, 0.001)
    min_k: float = 20.0
    offline_a: float | None = None
    flag_by: str = "difference"
    flag_rate: float = 0.1
    coins: bool = False
    delta: float = 1e-5
    confidence: float = 0.95
    name: str = field(default="membership", init=False)
    needs: Sequence[str] = field(default=(), init=False)

    def run(self, subject: Subject, asked: Asked, budget: Budget) -> ProbeResult:
        """Attack. A light budget asks nothing of the model: losses alone, no Min-K %, no blind baseline."""
        started = time.perf_counter()
        draft = _Draft()
        rows = drawn_rows(subject, budget.patients, budget.seed)
        units = patient_units(subject, asked, rows)
        question = "Can somebody tell from the model's answers that a patient was in the training data?"
        sides = [int(np.count_nonzero(units.member == side)) for side in (True, False)]
        if min(sides) == 0:
            draft.miss(
                "Membership",
                f"there are losses of {sides[0]} members and {sides[1]} held-out patients",
                "evaluate patients of both sides",
            )
            return ProbeResult(probe=self.name, question=question, not_tested=draft.gaps)
        attacks = self._attacks(subject, asked, budget, rows, units, draft)
        if units.records_left_out:
            draft.miss(
                f"{units.records_left_out} of {len(rows)} records", "their loss is not a number", "measure it"
            )
        if units.references_left_out:
            draft.miss(
                f"{units.references_left_out} references", "none of their losses is a number", "ask them"
            )
        n_out = sides[1]
        for fpr in self.fprs:
            if fpr not in supported_fprs(n_out, self.fprs):
                draft.miss(
                    f"TPR at a false-positive rate of {fpr:g}",
                    f"{n_out} held-out patients cannot show so low a rate",
                    f"hold out at least {required_held_out(fpr)} patients",
                )
        judged = {a.name: judge(a, units.member, self.fprs, confidence=self.confidence) for a in attacks}
        for attack in attacks:
            draft.numbers |= {f"{attack.name}.{key}": value for key, value in judged[attack.name].items()}
        eligible = comparable(attacks, units.member)
        variants = comparable([a for a in attacks if a.name.startswith("lira_")], units.member)
        if variants:
            found, _ = strongest(variants, units.member, self.fprs, confidence=self.confidence)
            draft.numbers |= {f"lira.{key}": value for key, value in found.items()}
        best, names = strongest(eligible, units.member, self.fprs, confidence=self.confidence)
        draft.numbers |= {f"strongest.{key}": value for key, value in best.items()}
        draft.numbers |= {key: value for key, value in best.items() if key.startswith("tpr")}
        member = units.member
        draft.numbers["loss_gap"] = loss_gap(
            units.loss[member], units.loss[~member], confidence=self.confidence
        )
        if self.coins:
            self._epsilon(attacks, member, draft)
        basis = self._flag(subject, rows, units, attacks, asked.loss_unit, draft)
        titles = {a.name: a.title for a in attacks}
        draft.notes.insert(0, _POOLED)
        return ProbeResult(
            probe=self.name,
            question=question,
            answer=self._answer(draft, best, names, titles, basis),
            numbers=draft.numbers,
            evidence=draft.evidence,
            tables={"attacks": self._table(attacks, len(eligible), draft)},
            curves={"roc": log_roc(attacks, member, names["auc"], titles)},
            flagged=draft.flagged,
            settings={
                "references": asked.references.kind,
                "reference_models": len(units.reference),
                "mode": "none" if not len(units.reference) else "online" if units.two_sided else "offline",
                "attacks": ", ".join(titles),
                "strongest": names["auc"],
                "selection": "Bonferroni over attacks",
                "flagged_by": basis,
                "flag_rate": self.flag_rate,
                "min_k": self.min_k,
                "offline_a": self._offline_a(asked),
                "loss_unit": asked.loss_unit,
                "unit": subject.unit,
                "member_patients": sides[0],
                "held_out_patients": sides[1],
                "budget": budget.size,
                "seed": budget.seed,
            },
            notes=draft.notes,
            not_tested=draft.gaps,
            seconds=time.perf_counter() - started,
        )

    def _attacks(
        self, subject: Subject, asked: Asked, budget: Budget, rows: Ints, units: Units, draft: _Draft
    ) -> list[Attack]:
        attacks = [loss_attack(units)]
        what = f"Min-K %, K = {self.min_k:g}"
        if budget.size == "light":
            draft.miss(what, "it asks the model for every token", "run the full audit")
        elif (
            asked.target is None or "log_probs" not in asked.target.abilities or subject.content.codes is None
        ):
            draft.miss(what, "the model gives no token probabilities", "pass an adapter that gives log_probs")
        else:
            log_prob, read, cut, missed = token_log_probs(
                asked.target, subject, rows, seconds=budget.seconds, seed=budget.seed
            )
            found = min_k_attack(units, log_prob, read, subject.patient[rows], self.min_k)
            if usable(found, units.member):
                attacks.append(found)
            else:
                draft.miss(what, "no token of one side has a probability", "look for sequences of one token")
            if cut:
                draft.notes.append(
                    f"{cut} sequences are longer than the model reads and were cut for Min-K %."
                )
            if missed:
                draft.miss(
                    f"Min-K % of {missed} of {len(rows)} records", "the time was spent", "allow more seconds"
                )
        more, gaps = reference_attacks(
            units, asked.references.kind, offline_a=self._offline_a(asked), seed=budget.seed
        )
        draft.gaps.extend(gaps)
        for attack in more:
            if usable(attack, units.member):
                attacks.append(attack)
            else:
                draft.miss(attack.title, "no patient of one side has a score", "train more references")
        if budget.size == "full":
            self._blind(subject, rows, budget.seed, draft)
        return attacks

    def _offline_a(self, asked: Asked) -> float:
        if self.offline_a is not None:
            return self.offline_a
        return 1.0 if asked.loss_unit == "nats/token" else 0.3

    def _blind(self, subject: Subject, rows: Ints, seed: int, draft: _Draft) -> None:
        """The null of the whole comparison: what the records alone say."""
        inside, outside = rows[subject.member[rows]], rows[~subject.member[rows]]
        try:
            found = blind_baseline(
                subject.content.take(inside),
                subject.content.take(outside),
                subject.patient[inside],
                subject.patient[outside],
                seed=seed,
            )
        except MemguardError as error:
            draft.miss(
                "What the records alone tell (blind baseline)", f"{error.seen}: {error.why}", error.fix
            )
            return
        draft.numbers["blind.auc"] = found
        if found.low > 0.5:
            draft.notes.append(
                f"Members and held-out patients differ without any model (blind AUC {found:.2f}): part of every "
                "number here is that difference, and p-values are too small."
            )

    def _epsilon(self, attacks: Sequence[Attack], member: NDArray[np.bool_], draft: _Draft) -> None:
        level = 1.0 - (1.0 - self.confidence) / len(attacks)
        best: tuple[float, Estimate] | None = None
        for attack in attacks:
            known = np.isfinite(attack.score)
            try:
                bound = epsilon_one_run(
                    attack.score[known], member[known], delta=self.delta, confidence=level
                )
            except MemguardError as error:
                draft.miss("Epsilon from one run", f"{error.seen}: {error.why}", error.fix)
                return
            if best is None or bound.epsilon > best[0]:
                how = f"{attack.title}: one run, at most {bound.largest:.2f}, Bonferroni over {len(attacks)} attacks"
                best = (
                    bound.epsilon,
                    Estimate(
                        value=bound.epsilon,
                        low=bound.epsilon,
                        high=float("inf"),
                        n=bound.n,
                        method=how,
                        confidence=self.confidence,
                    ),
                )
        if best is not None:
            draft.numbers["epsilon_lower_bound"] = best[1]

    def _flag(
        self,
        subject: Subject,
        rows: Ints,
        units: Units,
        attacks: Sequence[Attack],
        unit: str,
        draft: _Draft,
    ) -> str:
        by_name = {a.name: a for a in attacks}
        basis = by_name.get(self.flag_by, by_name["loss"])
        if basis.name != self.flag_by:
            draft.miss(
                f"Patients flagged by {self.flag_by}", "there is no such score here", "train reference models"
            )
        ratio = next(by_name[name] for name in _RATIO if name in by_name)
        draft.evidence["score"] = _evidence(subject, rows, units, ratio.score, ratio.title)
        if "difference" in by_name:
            gap = by_name["difference"].score
            draft.evidence["severity"] = _evidence(subject, rows, units, gap, f"severity, {unit}")
            known = np.isfinite(gap)
            draft.numbers["severity.minus_held_out"] = mean_difference(
                gap[known], units.patient[known], units.member[known], confidence=self.confidence
            )
        known = np.isfinite(basis.score)
        inside, outside = known & units.member, known & ~units.member
        p = conformal_p_values(basis.score[inside], basis.score[outside])
        flagged = benjamini_hochberg(p, self.flag_rate)
        draft.flagged = units.patient[inside][flagged]
        n_out = int(np.count_nonzero(outside))
        try:
            draft.numbers["memorized_share"] = storey_share(p, n_null=n_out, confidence=self.confidence)
        except MemguardError as error:
            draft.miss("Share of members that stand out", f"{error.seen}: {error.why}", error.fix)
        if 1.0 / (n_out + 1) > self.flag_rate:
            draft.miss(
                "Which patients stand out",
                f"with {n_out} held-out patients no p-value is below 1/{n_out + 1}, and none can be flagged at "
                f"a false-discovery rate of {self.flag_rate:g}",
                f"hold out at least {required_held_out(self.flag_rate)} patients",
            )
        draft.notes.append(
            f"Flagged are patients whose score ({basis.title}) stands out among held-out patients, at a "
            f"false-discovery rate of {self.flag_rate:g} (Benjamini-Hochberg over {len(p)} conformal p-values, "
            f"none below 1/{n_out + 1})."
        )
        if basis.name == "loss":
            draft.notes.append(
                "Without references a patient whose record is easy for any model scores like a memorized one."
            )
        return basis.name

    def _table(self, attacks: Sequence[Attack], eligible: int, draft: _Draft) -> Table:
        rates = [key for key in draft.numbers if key.startswith("strongest.tpr")]
        keys = ["auc", "advantage", *(key.removeprefix("strongest.") for key in rates)]
        heads = ["AUC", "Advantage", *(f"TPR at FPR {key.removeprefix('tpr_at_fpr_')}" for key in keys[2:])]
        order = sorted(attacks, key=lambda a: -draft.numbers[f"{a.name}.auc"].value)
        rows = [
            [
                a.title,
                draft.numbers[f"{a.name}.auc"].n,
                *(draft.numbers.get(f"{a.name}.{key}") for key in keys),
            ]
            for a in order
        ]
        strong = [draft.numbers.get(f"strongest.{key}") for key in keys]
        rows.insert(0, ["Strongest, of each number", draft.numbers["strongest.auc"].n, *strong])
        if "blind.auc" in draft.numbers:
            blind = draft.numbers["blind.auc"]
            rows.append(["No model (records alone)", blind.n, blind, *([None] * (len(keys) - 1))])
        percent = f"{100 * self.confidence:g} %"
        return Table(
            title="Membership attacks, over patients",
            columns=["Attack", "Patients", *heads],
            rows=rows,
            note=(
                f"Intervals at {percent}, of each attack by itself; those of the first row hold for whichever attack "
                f"is the strongest (Bonferroni over {eligible} attacks; one that scores few patients cannot be it). "
                "The advantage is that of the best threshold and above 0 by chance. " + _POOLED
            ),
        )

    def _answer(
        self,
        draft: _Draft,
        best: dict[str, Estimate],
        names: dict[str, str],
        titles: dict[str, str],
        basis: str,
    ) -> str:
        says = f"The strongest attack on AUC is {titles[names['auc']]}: {best['auc']:.2f}."
        low = [key for key in best if key.startswith("tpr")]
        if low:
            fpr = low[-1].removeprefix("tpr_at_fpr_")
            says += f" At a false-positive rate of {fpr}, {titles[names[low[-1]]]} finds {best[low[-1]]:.1%} of them."
        n = len(draft.flagged)
        return says + f" {n:,} patients stand out by {titles[basis]}." if n else says + " Nobody stands out."


@dataclass
class _Draft:
    """What has been found so far."""

    numbers: dict[str, Estimate] = field(default_factory=dict)
    evidence: dict[str, Evidence] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    gaps: list[NotTested] = field(default_factory=list)
    flagged: Ints = field(default_factory=lambda: np.zeros(0, np.int64))

    def miss(self, what: str, why: str, fix: str) -> None:
        self.gaps.append(NotTested(what=what, why=why, fix=fix))


def _evidence(subject: Subject, rows: Ints, units: Units, value: NDArray[np.float64], name: str) -> Evidence:
    """A patient's value and p-value at each of his records that was asked."""
    known = np.isfinite(value)
    inside = known & units.member
    p = np.full(len(units), np.nan)
    if inside.any() and (known & ~units.member).any():
        p[inside] = conformal_p_values(value[inside], value[known & ~units.member])
    place = np.minimum(np.searchsorted(units.patient, subject.patient[rows]), len(units) - 1)
    mine = (units.patient[place] == subject.patient[rows]) & known[place]
    return Evidence(name=name, row=rows[mine], value=value[place[mine]], p_value=p[place[mine]])
