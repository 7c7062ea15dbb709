"""From what a prompt brought to light to numbers and tables: copied, single and never-trained records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memguard.attacks.difference import mean_difference
from memguard.attacks.estimate import Estimate
from memguard.probes.copies.groups import Groups
from memguard.probes.copies.rule import Extractable
from memguard.probes.result import Cell, Table
from memguard.probes.subject import Subject
from memguard.records.small_cells import MIN_CELL

__all__ = ["PromptResult", "Sample", "group_table", "numbers", "prompt_table", "size_table"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Records that were asked about.

    Attributes:
        rows: ``(n,)`` positions in the subject.
        kinds: Name -> ``(n,)``: ``copied``, of which ``near_duplicate`` and ``repeated`` (which may overlap),
            ``single`` members, and ``held_out``.
        unit: ``(n,)`` what is independent of the rest: groups of copies count once, as a patient does.
        clean: ``(n,)`` never-trained patients' records that are no near copy of a member's.
    """

    rows: Ints
    kinds: Mapping[str, Bools]
    unit: Ints
    clean: Bools

    def two(self, one: str, other: str, also: Bools | None = None) -> tuple[Bools, Bools]:
        """Which records enter a difference, and which of those are on its first side; a unit on both is left out."""
        first, second = self.kinds[one], self.kinds[other] if also is None else self.kinds[other] & also
        second = second & ~np.isin(self.unit, self.unit[first])
        return first | second, first


@dataclass(frozen=True, kw_only=True)
class PromptResult:
    """What was measured with one prompt.

    Attributes:
        prompt: Its name.
        sample: Whom.
        measured: Measure -> ``(n,)``: ``log_prob`` in nats per code, ``exact_match``, ``run``, ``information``.
        tests: Measure -> the rule applied to it; empty where there are too few never-trained patients.
        beyond: ``"patient"`` and ``"copies"`` -> ``(n,)`` nats per code that the target gives beyond references that
            never saw the patient, or none of the copies; NaN where every reference saw them.
    """

    prompt: str
    sample: Sample
    measured: Mapping[str, Floats]
    tests: Mapping[str, Extractable]
    beyond: Mapping[str, Floats]

    @property
    def words(self) -> str:
        """The prompt in words."""
        return (
            "first half"
            if self.prompt == "half"
            else self.prompt.replace("codes_", "demographics and codes ")
        )


def numbers(result: PromptResult, confidence: float) -> dict[str, Estimate]:
    """Differences of copied and single members from never-trained patients, and from each other."""
    sample, out = result.sample, {}

    def difference(name: str, value: Floats, one: str, other: str, also: Bools | None = None) -> None:
        used, first = sample.two(one, other, also)
        used = used & np.isfinite(value)
        sides = [np.unique(sample.unit[used & side]).size for side in (first, ~first)]
        if min(sides) >= MIN_CELL:
            out[f"{result.prompt}.{name}"] = mean_difference(
                value[used], sample.unit[used], first[used], confidence=confidence
            )

    kinds = [k for k in ("copied", "near_duplicate", "repeated", "single") if k in sample.kinds]
    shares = {"extractable": "log_prob", "verbatim": "information"}
    for kind in kinds:
        for name, measure in shares.items():
            if measure in result.tests:
                hit = result.tests[measure].hit
                difference(f"{name}.{kind}.minus_held_out", hit, kind, "held_out")
                if kind == "copied":
                    also = sample.clean
                    difference(f"{name}.{kind}.minus_held_out_without_copies", hit, kind, "held_out", also)
        for measure, value in result.measured.items():
            difference(f"{measure}.{kind}.minus_held_out", value, kind, "held_out")
        for against, value in result.beyond.items():
            difference(f"beyond_{against}.{kind}.minus_held_out", value, kind, "held_out")
    for name, measure in shares.items():
        if measure in result.tests and {"copied", "single"} <= set(kinds):
            difference(f"{name}.copied.minus_single", result.tests[measure].hit, "copied", "single")
    return out


def prompt_table(results: Sequence[PromptResult], subject: Subject) -> Table:
    """One row a prompt and kind of record."""
    rows = list[list[Cell]]()
    words = {"near_duplicate": "near-duplicates", "held_out": "never-trained", "single": "without copies"}
    for r in results:
        for kind, which in r.sample.kinds.items():
            n = int(np.unique(subject.patient[r.sample.rows[which]]).size)
            if n < MIN_CELL:
                continue
            shares = [
                _mean(r.tests[m].hit[which]) if m in r.tests else None for m in ("log_prob", "information")
            ]
            measured = [
                _mean(r.measured[m][which]) if m in r.measured else None
                for m in ("log_prob", "exact_match", "run", "information")
            ]
            beyond = [_mean(r.beyond[k][which]) if k in r.beyond else None for k in ("patient", "copies")]
            rows.append([r.words, words.get(kind, kind), int(which.sum()), n, *shares, *measured, *beyond])
    return Table(
        title="How much of the rest a model gives away that is shown the beginning",
        columns=(
            "shown",
            "records",
            "asked",
            "patients",
            "extractable",
            "verbatim",
            "log-probability, nats/code",
            "codes at their place, greedy",
            "longest run, greedy",
            "information of the heaviest run, nats",
            "nats/code beyond references without the patient",
            "nats/code beyond references without any copy",
        ),
        rows=rows,
        note="Extractable: the probability of the true rest stands out from never-trained patients at the stated "
        "error; verbatim: what the likeliest continuation has word for word does. References that saw a copy know "
        "the patient too, which is why a number beyond references without the patient understates copies.",
    )


def group_table(groups: Groups, subject: Subject) -> Table:
    """How many groups, records and patients have copies."""
    rows = list[list[Cell]]()
    which = {
        "any copy among members": groups.copied,
        "near-duplicates: copies in other patients": groups.between,
        "repeats: copies in the same patient": groups.within,
    }
    for words, mask in which.items():
        found, records, patients = groups.counts(subject, mask)
        few = 0 < patients < MIN_CELL
        rows.append([words, None, None, None] if few else [words, found, records, patients])
    across = int(np.unique(subject.patient[groups.across]).size)
    few = 0 < across < MIN_CELL
    rows.append(
        ["never-trained patients who are copies of members", None, None, None]
        if few
        else ["never-trained patients who are copies of members", None, int(groups.across.sum()), across]
    )
    return Table(
        title="Records with near copies",
        columns=("copies", "groups", "records", "patients"),
        rows=rows,
        note=f"Numbers of fewer than {MIN_CELL} patients are not shown.",
    )


def size_table(groups: Groups, subject: Subject) -> Table:
    """Groups by number of records."""
    rows = list[list[Cell]]()
    for low, high in ((2, 2), (3, 4), (5, 8), (9, 16), (17, None)):
        mask = groups.copied & (groups.size >= low) & (groups.size <= (high or np.inf))
        found, records, patients = groups.counts(subject, mask)
        word = f"{low}" if low == high else f"{low}-{high}" if high else f"{low} or more"
        few = 0 < patients < MIN_CELL
        rows.append([word, None, None] if few else [word, found, records])
    return Table(
        title="Sizes of the groups",
        columns=("records of a group", "groups", "records"),
        rows=rows,
        note=f"Numbers of fewer than {MIN_CELL} patients are not shown.",
    )


def _mean(values: Floats) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else None
