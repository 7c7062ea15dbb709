"""Near-duplicates and repeated patients: who can be extracted although counterfactual scores are blind to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from memguard.attacks.conformal import benjamini_hochberg
from memguard.attacks.estimate import Estimate
from memguard.errors import MemguardError
from memguard.probes.asked import Asked, Budget
from memguard.probes.clock import Clock
from memguard.probes.copies.asking import Beginning
from memguard.probes.copies.groups import Groups, find_groups
from memguard.probes.copies.references import beyond_references
from memguard.probes.copies.rule import Extractable, extractable, fewest_null
from memguard.probes.copies.sampling import draw_sample
from memguard.probes.copies.summary import (
    PromptResult,
    Sample,
    group_table,
    numbers,
    prompt_table,
    size_table,
)
from memguard.probes.result import Evidence, NotTested, ProbeResult
from memguard.probes.subject import Subject
from memguard.probes.trajectory.reading import Reader
from memguard.records.small_cells import MIN_CELL

__all__ = ["CopiesProbe"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_PATIENTS, _LIGHT = 600, 60  # records of each kind, where the budget names no number
_QUESTION = "Which records have near copies in the training data, and does the model give those away?"


@dataclass(frozen=True, kw_only=True)
class CopiesProbe:
    """Find records with near copies, and measure directly how far they can be extracted.

    Copies strengthen each other: the model learns what they share, and yet loses little when one of them is missing,
    so that every score that leaves a patient out looks low. Here nothing is left out: the model is shown the beginning
    of a record and asked for the rest, once for its likeliest continuation and once for the probability of the true
    one. The same is asked of members without copies and of never-trained patients.

    A record is extractable where the mean log-probability of its true rest stands out from never-trained patients
    (conformal p-value at most ``error``), and verbatim where the information of the heaviest run in the likeliest
    continuation does.

    Guarantees:
        Of records that are exchangeable with never-trained patients' at most a share ``error`` is extractable, on
        average; their own rate is measured on halves of them that judge each other. Never-trained patients who are
        themselves copies of members are kept among them, which makes the rule stricter; numbers ``..._without_copies``
        leave them out. Intervals take a group of copies as one unit. The search may miss copies below ``threshold``.

    Args:
        prompts: What is shown: ``"half"`` (static prefix and half of the rest), or ``"codes_n"`` (static prefix and n
            codes). Flags and p-values come from the first.
        threshold: Least Jaccard similarity of two records' codes.
        min_codes: Records with fewer codes are compared with nobody.
        horizon: Tokens of the rest at most.
        fewest_codes: Codes that the rest needs; records without are counted and left out everywhere.
        error: Of the rule.
        rate: False discovery rate of the flags.
        confidence: Of the intervals.

    References:
        Near-duplicates lower self-influence and are extractable: Meeus et al., arXiv 2506.20481. Extraction in
        probability: Hayes et al., arXiv 2410.19482. Conformal p-values: Bates et al., arXiv 2104.08279, Theorem 2.

    Example:
        >>> CopiesProbe(threshold=0.8).prompts
        ('half', 'codes_10')
    """

    prompts: Sequence[str] = ("half", "codes_10")
    threshold: float = 0.7
    min_codes: int = 8
    horizon: int = 50
    fewest_codes: int = 3
    error: float = 0.05
    rate: float = 0.1
    confidence: float = 0.95

    name = "copies"
    needs: Sequence[str] = ("log_probs", "generate")

    def __post_init__(self) -> None:
        fits = 0 < self.error < 1 and 0 < self.rate < 1 and 0 < self.threshold <= 1
        if not fits or not self.prompts or not 1 <= self.fewest_codes <= self.horizon:
            raise MemguardError(
                f"error={self.error}, rate={self.rate}, threshold={self.threshold}, prompts={tuple(self.prompts)}, "
                f"fewest_codes={self.fewest_codes}, horizon={self.horizon}",
                "nothing could be found or judged",
                "pass shares between 0 and 1, a prompt, and at least one code within the horizon",
            )

    def run(self, subject: Subject, asked: Asked, budget: Budget) -> ProbeResult:
        """Search, then ask; see `Probe.run`."""
        clock, gaps = Clock(budget.seconds), list[NotTested]()
        probe = replace(self, prompts=tuple(self.prompts)[:1]) if budget.size == "light" else self
        if subject.content.codes is None:
            gaps.append(
                NotTested(what="copies", why="the records are features", fix="audit a next-code model")
            )
            return ProbeResult(probe=self.name, question=_QUESTION, not_tested=gaps)
        groups = find_groups(subject, threshold=self.threshold, min_codes=self.min_codes, seed=budget.seed)
        results = probe._ask(subject, asked, budget, groups, clock, gaps)
        found = {k: v for r in results for k, v in numbers(r, self.confidence).items()}
        tables = {"groups": group_table(groups, subject), "sizes": size_table(groups, subject)}
        if results:
            tables["prompts"] = prompt_table(results, subject)
        flagged, note = self._flags(subject, results)
        return ProbeResult(
            probe=self.name,
            question=_QUESTION,
            answer=self._answer(subject, groups, results, found),
            numbers=found,
            evidence=_evidence(subject, groups, results),
            tables=tables,
            flagged=flagged,
            settings={
                "threshold": self.threshold,
                "min_codes": self.min_codes,
                "prompts": ", ".join(probe.prompts),
                "horizon": self.horizon,
                "fewest_codes": self.fewest_codes,
                "error": self.error,
                "rate": self.rate,
                "seed": budget.seed,
            },
            notes=[*note, *_notes(subject, groups, self.threshold)],
            not_tested=gaps,
        )

    def _ask(
        self,
        subject: Subject,
        asked: Asked,
        budget: Budget,
        groups: Groups,
        clock: Clock,
        gaps: list[NotTested],
    ) -> list[PromptResult]:
        target = asked.target
        if target is None or "log_probs" not in target.abilities:
            gaps.append(
                NotTested(
                    what="whether copies can be extracted",
                    why="the model cannot be asked for probabilities",
                    fix="audit a next-code model with an adapter",
                )
            )
            return []
        if "generate" not in target.abilities:
            gaps.append(NotTested(what="greedy continuations", why="the model cannot generate"))
        reader = Reader.of(subject, target.vocabulary)
        light = budget.size == "light"
        most = budget.patients if budget.patients is not None else _LIGHT if light else _PATIENTS
        results = list[PromptResult]()
        for prompt in self.prompts:
            if results and clock.over():
                gaps.append(
                    NotTested(what=f"prompt {prompt}", why="the time was used up", fix="allow more seconds")
                )
                continue
            sample, cut = draw_sample(
                subject,
                reader,
                groups,
                prompt,
                longest=target.longest,
                most=most,
                seed=budget.seed,
                horizon=self.horizon,
                fewest=self.fewest_codes,
                gaps=gaps,
            )
            if sample is None:
                continue
            begin = Beginning.of(subject, reader, sample.rows, cut, self.horizon, target.longest)
            measured = {"log_prob": begin.log_prob(target, subject.patient[sample.rows])}
            if "generate" in target.abilities:
                measured |= begin.greedy(target)
            tests = self._tests(sample, measured, budget.seed, gaps, prompt)
            beyond = (
                {}
                if light
                else beyond_references(subject, asked, groups, begin, measured["log_prob"], clock, gaps)
            )
            results.append(
                PromptResult(prompt=prompt, sample=sample, measured=measured, tests=tests, beyond=beyond)
            )
        return results

    def _tests(
        self, sample: Sample, measured: dict[str, Floats], seed: int, gaps: list[NotTested], prompt: str
    ) -> dict[str, Extractable]:
        null = sample.kinds["held_out"]
        if int(null.sum()) < fewest_null(self.error):
            gaps.append(
                NotTested(
                    what=f"which records are extractable, {prompt}",
                    why=f"{int(null.sum())} never-trained patients cannot support an error of {self.error:g}",
                    fix=f"hold out {fewest_null(self.error)} patients or pass a larger error",
                )
            )
            return {}
        return {
            name: extractable(measured[name], null, error=self.error, seed=seed)
            for name in ("log_prob", "information")
            if name in measured
        }

    def _flags(self, subject: Subject, results: Sequence[PromptResult]) -> tuple[Ints, list[str]]:
        """Patients with copies whose records stand out: the least p-value of a patient times the records asked."""
        if not results or "log_prob" not in results[0].tests:
            return np.zeros(0, np.int64), []
        sample = results[0].sample
        copied = sample.kinds["copied"]
        patient, code, records = np.unique(
            subject.patient[sample.rows[copied]], return_inverse=True, return_counts=True
        )
        least = np.ones(len(patient))
        np.minimum.at(least, code.reshape(-1), results[0].tests["log_prob"].p_value[copied])
        flagged = benjamini_hochberg(np.minimum(least * records, 1.0), self.rate)
        n_null = int(sample.kinds["held_out"].sum())
        note = (
            f"Flags: {len(patient)} patients with copies; each one's least conformal p-value against {n_null} "
            f"never-trained patients times the patient's records asked about, Benjamini-Hochberg at {self.rate:g}. "
            f"Extractable and verbatim: p at most {self.error:g}."
        )
        return patient[flagged], [note]

    def _answer(
        self,
        subject: Subject,
        groups: Groups,
        results: Sequence[PromptResult],
        found: dict[str, Estimate],
    ) -> str:
        n_groups, records, patients = groups.counts(subject, groups.copied)
        if 0 < patients < MIN_CELL:
            return f"Fewer than {MIN_CELL} patients have records with near copies among the members."
        text = f"{records} records of {patients} members have near copies among the members, in {n_groups} groups."
        key = f"{results[0].prompt}.extractable.copied.minus_held_out" if results else ""
        if key in found:
            text += (
                f" Shown the {results[0].words}, the share whose rest is extractable is {found[key]} above that of "
                "never-trained patients."
            )
        return text


def _evidence(subject: Subject, groups: Groups, results: Sequence[PromptResult]) -> dict[str, Evidence]:
    found = {
        "similarity": Evidence(
            name="Jaccard similarity to the nearest other record of either side, 0 below the threshold",
            row=np.arange(len(subject)),
            value=groups.similarity,
        )
    }
    for r in results:
        p = r.tests["log_prob"].p_value if "log_prob" in r.tests else np.full(len(r.sample.rows), np.nan)
        found[f"{r.prompt}.log_prob"] = Evidence(
            name=f"log-probability of the true rest, nats/code, {r.words}",
            row=r.sample.rows,
            value=r.measured["log_prob"],
            p_value=p,
        )
    return found


def _notes(subject: Subject, groups: Groups, threshold: float) -> list[str]:
    notes = []
    across = int(np.unique(subject.patient[groups.across]).size)
    if across:
        many = f"{across}" if across >= MIN_CELL else f"fewer than {MIN_CELL}"
        notes.append(
            f"Copies across the split: {many} never-trained patients have records that are near copies of members'. "
            "They blur the line that members are compared with, in every probe; evidence 'similarity' names them."
        )
    notes.append(
        f"Similarity is the Jaccard index of the codes of two records, at least {threshold:g}; the search finds a "
        "pair at the threshold with probability .99, and short records that are alike by chance too."
    )
    return notes
