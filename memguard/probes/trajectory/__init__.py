"""T1: can the model rebuild a patient's record from its beginning, better than models that never saw the patient?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from memguard.adapters.base import ModelAdapter
from memguard.errors import AbilityError, DataError, MemguardError
from memguard.probes.asked import Asked, Budget
from memguard.probes.clock import Clock
from memguard.probes.result import NotTested, ProbeResult
from memguard.probes.strangers import never_saw
from memguard.probes.subject import Subject
from memguard.probes.trajectory.answers import Answers, tier_result
from memguard.probes.trajectory.asking import Questions, Sampling, assign
from memguard.probes.trajectory.reading import Reader
from memguard.probes.trajectory.summary import TierResult, curves, evidence, flags, numbers, tables
from memguard.probes.trajectory.tiers import TierPlan, draw
from memguard.probes.trajectory.transport import Ground, pot
from memguard.probes.trajectory.wording import answer_text, notes
from memguard.records.small_cells import MIN_CELL

__all__ = ["TrajectoryProbe"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

_TIERS = ("codes_10", "codes_20", "codes_50", "demographics", "none")
_PATIENTS = 100  # of each side, where the budget names no number
_TARGET_SHARE = 0.4  # of the time, where references are to be asked too
_QUESTION = "Given the beginning of a patient's record, does the model write how it went on?"


@dataclass(frozen=True, kw_only=True)
class TrajectoryProbe:
    """Continue the records of members and of never-trained patients, and compare with what really came.

    For each of ``tiers`` as many members as never-trained patients are drawn, one record of each. The target and
    references that never saw the patient continue the prompt; prompts count as output nowhere. Compared are the
    distance by optimal transport, codes at the same place, codes in common, and runs that stand there word for word.

    Guarantees:
        A number "minus held-out" is (what the target does beyond the references) for members, minus the same for
        never-trained patients, with an interval over patients. Without references it is the target alone, and a
        difference between the groups counts as leak. A low distance by itself shows routine care, not memory.
        Flags are p-values against never-trained patients: if a patient was not memorized, and is exchangeable with
        them, P(p <= a) <= a.

    Args:
        tiers: What the attacker knows: ``"none"`` (begin token), ``"demographics"`` (static prefix), ``"codes_n"``
            (the first n codes as well). Asked in this order, while time lasts.
        horizon: Tokens of a continuation at most.
        fewest_codes: Codes that a true continuation needs; patients without are counted and left out everywhere.
        code_vectors: ``(V, D)`` for the distance; ``None`` for those of the first reference, else of the target.
        time_cost: Of moving a code through the whole horizon, where opposite codes cost 1.
        references: Each patient is compared with so many references at most, everybody with the same number.
        temperature: Of sampling.
        top_p: Of sampling.
        neighbours: Other patients among whom the nearest is sought; 0 for no ratio.
        neighbour_samples: Samples of each patient that it is sought for.
        rate: False discovery rate of the flags.
        confidence: Of the intervals.

    References:
        Tonekaboni et al., "An investigation of memorization risk in healthcare foundation models", NeurIPS 2025,
        arXiv 2510.12950 (test T1, tiers of attackers); conformal p-values: arXiv 2104.08279, Theorem 2.

    Example:
        >>> TrajectoryProbe(tiers=("codes_10",)).name
        'trajectory'
    """

    tiers: Sequence[str] = _TIERS
    horizon: int = 50
    fewest_codes: int = 5
    code_vectors: ArrayLike | None = None
    time_cost: float = 0.5
    references: int = 4
    temperature: float = 1.0
    top_p: float = 1.0
    neighbours: int = 20
    neighbour_samples: int = 2
    rate: float = 0.1
    confidence: float = 0.95

    name = "trajectory"
    needs: Sequence[str] = ("generate",)

    def __post_init__(self) -> None:
        if self.horizon < 1 or not 1 <= self.fewest_codes <= self.horizon or not self.tiers:
            raise MemguardError(
                f"tiers={tuple(self.tiers)}, horizon={self.horizon}, fewest_codes={self.fewest_codes}",
                "nothing could be compared",
                "name a tier, and ask for at least one code within the horizon",
            )

    def run(self, subject: Subject, asked: Asked, budget: Budget) -> ProbeResult:
        """Ask; see `Probe.run`."""
        clock = Clock(budget.seconds)
        probe = self._light() if budget.size == "light" else self
        target, gaps = asked.target, list[NotTested]()
        if target is None or "generate" not in target.abilities or subject.content.codes is None:
            why = "the records are features" if subject.content.codes is None else "the model cannot generate"
            gaps.append(
                NotTested(what="continuations", why=why, fix="audit a next-code model with an adapter")
            )
            return ProbeResult(probe=self.name, question=_QUESTION, not_tested=gaps)
        reader = Reader.of(subject, target.vocabulary)
        out = probe._out(subject, asked, gaps)
        ground, source = probe._ground(target, asked, len(out) > 0, gaps)
        sampling = Sampling(
            samples=max(min(budget.samples, 4) if budget.size == "light" else budget.samples, 1),
            temperature=self.temperature,
            top_p=self.top_p,
            seed=budget.seed,
        )
        patients = _PATIENTS if budget.patients is None else budget.patients
        plans = probe._plans(subject, reader, out, target.longest, patients, budget.seed, gaps)
        questions = [
            Questions(subject, reader, plan, ground, sampling, self.horizon, target.longest) for plan in plans
        ]
        results = probe._measure(questions, out, asked, clock, gaps)
        if not results:
            return ProbeResult(probe=self.name, question=_QUESTION, not_tested=gaps)
        flagged, how = flags(results, self.rate)
        found = {k: v for r in results for k, v in numbers(r, self.confidence).items()}
        return ProbeResult(
            probe=self.name,
            question=_QUESTION,
            answer=answer_text(results, found, sampling.samples),
            numbers=found,
            evidence={k: v for r in results for k, v in evidence(r).items()},
            tables=tables(results),
            curves=curves(results),
            flagged=flagged,
            settings={
                "horizon": self.horizon,
                "fewest_codes": self.fewest_codes,
                "samples": sampling.samples,
                "temperature": self.temperature,
                "top_p": self.top_p,
                "time_cost": self.time_cost,
                "times": "days of gap tokens" if reader.has_times else "places",
                "code_vectors": source,
                "references": max(r.depth for r in results),
                "rate": self.rate,
                "seed": budget.seed,
            },
            notes=notes(results, how, source, reader),
            not_tested=gaps,
        )

    def _light(self) -> TrajectoryProbe:
        """What is affordable while a model trains: one tier, no neighbours."""
        return replace(self, tiers=tuple(self.tiers)[:1], neighbours=0, references=min(self.references, 1))

    def _out(self, subject: Subject, asked: Asked, gaps: list[NotTested]) -> Bools:
        """``(K, n)`` references that never saw a record's patient; empty where they cannot be asked."""
        models = asked.references
        none = np.zeros((0, len(subject)), np.bool_)
        if len(models) == 0 or self.references == 0:
            gaps.append(
                NotTested(
                    what="what the model does beyond models that never saw the patient",
                    why="there are no reference models",
                    fix="train a pool of references; until then members are compared with never-trained patients alone",
                )
            )
            return none
        first = next(iter(models.adapters()))
        if models.kind == "counts" or "generate" not in first.abilities:
            gaps.append(
                NotTested(
                    what="what the model does beyond models that never saw the patient",
                    why=f"references of the kind {models.kind!r} cannot write continuations that leave the patient out",
                    fix="train a pool of references",
                )
            )
            return none
        return never_saw(models.in_mask, subject.patient)

    def _ground(
        self, target: ModelAdapter, asked: Asked, referenced: bool, gaps: list[NotTested]
    ) -> tuple[Ground | None, str]:
        """Costs of the distance, and whose vectors they are made from."""
        vectors, source = self.code_vectors, "given"
        if vectors is None and referenced:
            vectors, source = next(iter(asked.references.adapters())).code_vectors(), "of the first reference"
        if vectors is None:
            vectors, source = target.code_vectors(), "of the target"
        if vectors is None:
            gaps.append(
                NotTested(
                    what="distance by optimal transport",
                    why="no model has vectors of its codes",
                    fix="pass code_vectors= with one vector for each token",
                )
            )
            return None, "none"
        if len(np.asarray(vectors)) < target.vocabulary:
            raise DataError(
                f"{len(np.asarray(vectors))} code vectors for {target.vocabulary} tokens",
                "a distance would be computed between the wrong codes",
                "pass code_vectors of shape (V, D)",
            )
        ground = Ground(vectors, time_cost=self.time_cost)
        try:
            pot()
        except MemguardError as error:
            gaps.append(NotTested(what="distance by optimal transport", why=error.seen, fix=error.fix))
            return None, "none"
        return ground, source

    def _plans(
        self,
        subject: Subject,
        reader: Reader,
        out: Bools,
        longest: int | None,
        patients: int,
        seed: int,
        gaps: list[NotTested],
    ) -> list[TierPlan]:
        plans = []
        for tier in self.tiers:
            plan = draw(
                subject,
                reader,
                tier,
                out=out,
                horizon=self.horizon,
                fewest=self.fewest_codes,
                longest=longest,
                patients=patients,
                references=self.references,
                seed=seed,
            )
            if len(plan.rows) < 2 * MIN_CELL:
                why = (
                    f"fewer than {MIN_CELL} patients of a side have it and {self.fewest_codes} codes after it"
                )
                gaps.append(NotTested(what=f"tier {tier}", why=why, fix="ask with a shorter prompt"))
                continue
            plans.append(plan)
        return plans

    def _measure(
        self, questions: list[Questions], out: Bools, asked: Asked, clock: Clock, gaps: list[NotTested]
    ) -> list[TierResult]:
        """Ask the target at every tier, then each reference, while time lasts."""
        assert asked.target is not None
        share = _TARGET_SHARE if len(out) else 1.0
        targets, ratios = list[dict[str, Floats]](), list[Floats]()
        for q in questions:
            if targets and clock.over(share):
                why = f"the time of {clock.seconds:g} s was used up" if clock.seconds is not None else ""
                gaps.append(NotTested(what=f"tier {q.plan.tier}", why=why, fix="allow more seconds"))
                continue
            made, each = q.ask(asked.target, np.arange(len(q.patient)))
            targets.append(q.measure(made, each))
            ratio = np.zeros(0)
            if q.ground is not None and self.neighbours:
                distance = targets[-1]["distance"]
                ratio = q.neighbour_ratio(
                    made, distance, samples=self.neighbour_samples, others=self.neighbours
                )
            ratios.append(ratio)
        questions = questions[: len(targets)]
        references = self._references(questions, out, asked, clock, gaps)
        return [
            tier_result(q, target, ratio, reference)
            for q, target, ratio, reference in zip(questions, targets, ratios, references, strict=True)
        ]

    def _references(
        self, questions: list[Questions], out: Bools, asked: Asked, clock: Clock, gaps: list[NotTested]
    ) -> list[Answers]:
        """What each reference says at each tier about the patients that it never saw and is compared for."""
        answers = [
            Answers.of(assign(out[:, q.plan.rows], q.plan.references, q.sampling.seed)) for q in questions
        ]
        if len(out) == 0 or not any(a.wanted.any() for a in answers):
            return answers
        left = 0
        for k, adapter in enumerate(asked.references.adapters()):
            if "generate" not in adapter.abilities:
                raise AbilityError(
                    f"reference {k} cannot generate",
                    "the patients would be compared with fewer references than others",
                    "use references of one kind",
                )
            for q, answer in zip(questions, answers, strict=True):
                who = np.flatnonzero(answer.wanted[k])
                if who.size == 0:
                    continue
                if clock.over():
                    left += 1
                    continue
                answer.add(k, who, q.measure(*q.ask(adapter, who)))
        if left:
            gaps.append(
                NotTested(
                    what=f"{left} of the questions to references (a reference at a tier)",
                    why=f"the time of {clock.seconds:g} s was used up",
                    fix="allow more seconds, or fewer patients or samples",
                )
            )
        return answers
