"""T4, membership: can anybody tell from the model's answers that a patient was in the training data?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from memguard.attacks.membership import loss_gap, required_held_out, supported_fprs
from memguard.errors import MemguardError
from memguard.probes.asked import Asked, Budget
from memguard.probes.attacked.asking import token_log_probs
from memguard.probes.attacked.draft import Draft
from memguard.probes.attacked.flagged import flag
from memguard.probes.attacked.judged import comparable, judge, log_roc, strongest, usable
from memguard.probes.attacked.nulls import blind, epsilon
from memguard.probes.attacked.scored import Attack, loss_attack, min_k_attack, reference_attacks
from memguard.probes.attacked.told import POOLED, answer_of, table_of
from memguard.probes.attacked.units import Units, drawn_rows, patient_units
from memguard.probes.clock import Clock
from memguard.probes.result import DELTA, ProbeResult
from memguard.probes.subject import Subject

__all__ = ["MembershipProbe"]

Ints = NDArray[np.int64]


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
        delta: Of that bound. ``None``: that of the promise which an audit compares with, 1e-5 where there is none.
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
    delta: float | None = None
    confidence: float = 0.95
    name: str = field(default="membership", init=False)
    needs: Sequence[str] = field(default=(), init=False)

    def run(self, subject: Subject, asked: Asked, budget: Budget) -> ProbeResult:
        """Attack. A light budget asks nothing of the model: losses alone, no Min-K %, no blind baseline."""
        draft = Draft()
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
            delta = DELTA if self.delta is None else self.delta
            epsilon(attacks, member, delta, self.confidence, draft)
        basis = flag(
            subject,
            rows,
            units,
            attacks,
            by=self.flag_by,
            rate=self.flag_rate,
            unit=asked.loss_unit,
            confidence=self.confidence,
            draft=draft,
        )
        titles = {a.name: a.title for a in attacks}
        draft.notes.insert(0, POOLED)
        return ProbeResult(
            probe=self.name,
            question=question,
            answer=answer_of(draft, best, names, titles, basis),
            numbers=draft.numbers,
            evidence=draft.evidence,
            tables={"attacks": table_of(attacks, len(eligible), draft, self.confidence)},
            curves={"roc": log_roc(attacks, member, names["auc"], titles)},
            flagged=draft.flagged,
            bounds=draft.bounds,
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
        )

    def _attacks(
        self, subject: Subject, asked: Asked, budget: Budget, rows: Ints, units: Units, draft: Draft
    ) -> list[Attack]:
        attacks = [loss_attack(units)]
        try:
            attacks += self._min_k(subject, asked, budget, rows, units, draft)
        except MemguardError as error:  # the other attacks need losses alone
            draft.miss(self._title, f"{error.seen}: {error.why}", error.fix)
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
            blind(subject, rows, budget.seed, draft)
        return attacks

    @property
    def _title(self) -> str:
        return f"Min-K %, K = {self.min_k:g}"

    def _min_k(
        self, subject: Subject, asked: Asked, budget: Budget, rows: Ints, units: Units, draft: Draft
    ) -> list[Attack]:
        what, target = self._title, asked.target
        if budget.size == "light":
            draft.miss(what, "it asks the model for every token", "run the full audit")
            return []
        if target is None or "log_probs" not in target.abilities or subject.content.codes is None:
            table = subject.content.codes is None
            draft.miss(
                what,
                "records are feature vectors without tokens"
                if table
                else "the model gives no token probabilities",
                "" if table else "pass an adapter that gives log_probs",
            )
            return []
        log_prob, read, cut, missed = token_log_probs(
            target, subject, rows, clock=Clock(budget.seconds), seed=budget.seed
        )
        if cut:
            draft.notes.append(f"{cut} sequences are longer than the model reads and were cut for Min-K %.")
        if missed:
            draft.miss(
                f"Min-K % of {missed} of {len(rows)} records", "the time was spent", "allow more seconds"
            )
        found = min_k_attack(units, log_prob, read, subject.patient[rows], self.min_k)
        if usable(found, units.member):
            return [found]
        draft.miss(what, "no token of one side has a probability", "look for sequences of one token")
        return []

    def _offline_a(self, asked: Asked) -> float:
        if self.offline_a is not None:
            return self.offline_a
        return 1.0 if asked.loss_unit == "nats/token" else 0.3
