"""A made-up audit with the shape of a real one. Nothing in it was measured."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
from fake_watch import report as watched

from memguard.attacks.estimate import Estimate
from memguard.findings import Gap, Grid, Lines
from memguard.report.audit import (
    AuditReport,
    EpsilonClaim,
    EpsilonShown,
    Provenance,
    References,
    SideCounts,
    Stratum,
    Utility,
    from_probe,
    side_of,
    tails_of,
    threats_of,
)


def about(
    value: float, half: float = 0.02, n: int = 2900, method: str = "clustered DeLong, logit"
) -> Estimate:
    return Estimate(value=value, low=value - half, high=value + half, n=n, method=method)


@dataclass(frozen=True, kw_only=True)
class Found:
    """As ``memguard.probes.result.ProbeResult``, which reports may not import."""

    probe: str
    question: str
    answer: str = ""
    numbers: dict[str, Estimate] = field(default_factory=dict)
    evidence: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, Any] = field(default_factory=dict)
    flagged: Any = field(default_factory=lambda: np.zeros(0, np.int64))
    settings: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    not_tested: tuple[Any, ...] = ()
    seconds: float = 12.5


def subject(members: int = 2000, held_out: int = 900, seed: int = 0) -> SimpleNamespace:
    """Patients with one to three records, members first; strata of every size."""
    rng = np.random.default_rng(seed)
    sides = [np.repeat(np.arange(n), rng.integers(1, 4, n)) for n in (members, held_out)]
    patient = np.concatenate([sides[0], sides[1] + members])
    drawn = rng.random(members + held_out)
    tiny = np.isin(np.arange(members + held_out), [3, 4, members + 1])
    groups = {"rare code": drawn < 0.06, "age 75 and over": drawn > 0.8, "site of three patients": tiny}
    strata = {name: mask[patient] for name, mask in groups.items()}
    return SimpleNamespace(n_members=len(sides[0]), patient=patient, strata=strata)


def evidence(one: SimpleNamespace, name: str, shift: float, seed: int, share: float = 0.1) -> SimpleNamespace:
    """Normal noise for everybody, and ``shift`` more for some of the members; p-values of members."""
    rng = np.random.default_rng(seed)
    row = np.arange(len(one.patient))
    member = row < one.n_members
    own = rng.normal(size=one.patient.max() + 1)
    own[rng.random(own.size) < share] += shift
    value = np.where(member, own[one.patient], rng.normal(size=one.patient.max() + 1)[one.patient])
    above = (1 + (value[~member][None, :] >= value[:, None]).sum(1)) / (1 + (~member).sum())
    return SimpleNamespace(name=name, row=row, value=value, p_value=np.where(member, above, np.nan))


def table(title: str, columns: list[str], rows: list[list[Any]], note: str = "") -> Grid:
    return Grid(title=title, columns=columns, rows=rows, note=note)


def curve(
    title: str, x: str, y: str, lines: dict[str, Any], *, log: bool = False, bands: Any = None
) -> Lines:
    return Lines(title=title, x=x, y=y, lines=lines, log=log, bands=bands or {})


def _roc(power: float, n: int = 900) -> list[tuple[float, float]]:
    fpr = np.unique(np.geomspace(1, n, 120).astype(int)) / n
    return [(float(x), float(x**power)) for x in fpr]


@functools.cache
def found(one_seed: int = 0) -> tuple[Found, ...]:
    one = subject(seed=one_seed)
    rocs = {
        "LiRA": _roc(0.45),
        "RMIA": _roc(0.55),
        "loss": _roc(0.8),
        "Chance": [(1 / 900, 1 / 900), (1.0, 1.0)],
    }
    band = [(x, 0.7 * y, min(1.0, 1.25 * y)) for x, y in _roc(0.45)[::8]]
    known = [0, 1, 2, 5, 10, 20, 50]
    rises = [(float(k), 0.02 + 0.5 * k / (k + 12)) for k in known]
    flat = [(float(k), 0.02 + 0.08 * k / (k + 12)) for k in known]
    membership = Found(
        probe="membership",
        question="Can an attacker who holds a patient's record tell whether the model was trained on it?",
        answer="The strongest attack (LiRA with 8 reference models) reaches an AUC of .71.",
        numbers={
            "loss.auc": about(0.58),
            "lira.auc": about(0.71),
            "strongest.auc": about(0.71, method="LiRA: clustered DeLong, logit, Bonferroni over 5 attacks"),
            "tpr_at_fpr_0.01": about(0.083, 0.03, method="Clopper-Pearson and order statistics"),
            "blind.auc": about(0.503),
            "memorized_share": about(0.12, 0.05, method="Storey"),
            "epsilon_lower_bound": Estimate(value=1.3, low=1.3, high=float("inf"), n=900, method="one run"),
        },
        evidence={"score": evidence(one, "likelihood ratio, nats", 3.0, 1)},
        curves={
            "roc": curve(
                "Who is called a member",
                "False-positive rate, share of held-out patients",
                "True-positive rate, share of members",
                rocs,
                log=True,
                bands={"LiRA": band},
            )
        },
        tables={
            "attacks": table(
                "Every attack",
                ["attack", "n", "AUC", "TPR at FPR 0.01"],
                [
                    ["LiRA, 8 references", 2900, about(0.71), about(0.083, 0.03)],
                    ["RMIA", 2900, about(0.66), about(0.05, 0.02)],
                    ["loss", 2900, about(0.58), None],
                ],
                "The strongest is named for each number by itself.",
            )
        },
        flagged=np.arange(0, 120, 2),
        settings={"seed": 7, "references": 8, "fprs": "0.01, 0.001"},
        notes=(
            "Rates are pooled over patients: they are not the risk of any one of them (arXiv 2605.25819).",
        ),
        not_tested=(
            Gap(
                what="TPR at FPR 0.001",
                why="900 held-out patients resolve no rate below 1/900",
                fix="hold out at least 1,000 patients",
            ),
        ),
        seconds=41.0,
    )
    attribute = Found(
        probe="attribute",
        question="Does the model give away a sensitive diagnosis, and is that memory or inference?",
        answer="Memorized for 14 patients; inferable from the prompt for many more.",
        numbers={
            "k20.memorized.minus_held_out": about(0.06, 0.02, 600, "clustered difference of means"),
            "k20.member_auc": about(0.8, 0.03, 600),
        },
        evidence={
            "memorization.k20": evidence(one, "memorization evidence, nats", 4.0, 2, 0.05),
            "inference.k20": evidence(one, "inference evidence, nats", 0.0, 3),
        },
        tables={
            "categories": table(
                "By category of harm",
                ["category", "patients", "memorized", "inferable", "flagged", "minus held-out"],
                [
                    ["substance use", 240, 0.11, 0.4, 12, about(0.09, 0.04, 240)],
                    ["mental health", 331, 0.06, 0.5, 2, about(0.05, 0.04, 331)],
                    ["HIV", 3, 0.33, 0.33, 1, about(0.33, 0.3, 3)],
                ],
                "The categories are a proxy and need clinical and legal review.",
            )
        },
        curves={
            "by k": curve(
                "What the model says of a sensitive code, by how much the attacker knows",
                "codes known beyond demographics",
                "probability of the code, mean",
                {"members": rises, "held-out": flat, "references, members": [(x, y * 1.1) for x, y in flat]},
                bands={"members": [(x, y - 0.03, y + 0.03) for x, y in rises]},
            )
        },
        flagged=np.array([4, 8, 15]),
        settings={"seed": 7, "k": "0, 1, 2, 5, 10, 20, 50", "rate": 0.1},
        seconds=88.0,
    )
    embedding = Found(
        probe="embedding",
        question="Can a diagnosis be read from frozen embeddings better for members than for held-out patients?",
        answer="No category differs.",
        numbers={
            "strongest.minus_held_out": about(0.004, 0.015, 2900, "difference of AUCs, Bonferroni over 4")
        },
        settings={"folds": 5},
    )
    trajectory = Found(
        probe="trajectory",
        question="Does the model give back what happened to a patient when it is told how his record begins?",
        not_tested=(
            Gap(what="generation", why="the model cannot generate", fix="pass an adapter with generate"),
        ),
        seconds=0.0,
    )
    return membership, attribute, embedding, trajectory


def subgroups() -> Found:
    return Found(
        probe="subgroups",
        question="Who bears the leak?",
        numbers={"membership.everybody.auc": about(0.71), "membership.rare code.auc": about(0.81, 0.08, 170)},
    )


def strata() -> list[Stratum]:
    """Numbers of three groups, one of them too small to have any."""
    rows = []
    how = "clustered difference, Bonferroni over 3 strata"
    for number, null, values in (
        ("minus_held_out", 0.0, (about(0.9, 0.4, 170, how), about(0.2, 0.25, 580, how), None)),
        ("auc", 0.5, (about(0.81, 0.08, 170), about(0.69, 0.06, 580), None)),
    ):
        sizes = (("rare code", 125, 45), ("age 75 and over", 400, 180), ("site of three patients", 2, 1))
        for (name, members, held_out), value in zip(sizes, values, strict=True):
            rows.append(
                Stratum(
                    probe="membership",
                    number=number,
                    stratum=name,
                    estimate=value,
                    n_members=members,
                    n_held_out=held_out,
                    null=null,
                    note="" if value else "too few patients",
                )
            )
    return rows


def report(**changes: Any) -> AuditReport:
    one, results = subject(), found()
    sections = [from_probe(result, one) for result in results]
    tried, gaps = threats_of(sections)
    sections.append(from_probe(subgroups(), one, headline=""))
    values: dict[str, Any] = {
        "version": "0.1.0.dev0",
        "created": "2026-01-31T09:12:44Z",
        "members": side_of(one, member=True),
        "held_out": side_of(one, member=False),
        "patients_source": "dataset.index (subject_id, end)",
        "flag_rate": 0.1,
        "provenance": Provenance(
            model="next-code transformer, 0.73 M parameters",
            checkpoint="sha256:5f0c2ab1d4e99c3b7a60",
            dataset="NAFLD event sequences, fingerprint 5f0c2ab1",
            versions={"memguard": "0.1.0.dev0", "torch": "2.13.0", "numpy": "2.4.6"},
            seeds={"audit": 7, "training": 0},
            commands=["memguard audit --checkpoint last.ckpt --out audit/"],
            config={"budget": "full", "references": 8},
            seconds=402.0,
        ),
        "references": References(
            kind="pool", count=8, comparison={"held-out loss": 2.31, "of the target": 2.29}, alike=True
        ),
        "threats": tried,
        "not_tested": gaps,
        "sections": sections,
        "strata": strata(),
        "tail": [row for result in results for row in tails_of(result, one)],
        "watch": watched(),
        "mitigations": ["Early stopping at epoch 24; not counted as protection of single patients."],
        "claim": EpsilonClaim(
            epsilon=8.0, delta=1e-5, unit="patient", statement="epsilon = 8\n  unit  patient"
        ),
        "shown": [shown()],
        "utility": [Utility(name="top-1 accuracy", value=about(0.41, 0.01), data="900 held-out patients")],
        "answers": {"intended_use": "Research on the course of fatty liver disease.", "users": "Two groups."},
        "notes": ["The audit ran on two cores."],
    }
    return AuditReport(**{**values, **changes})


def shown(**changes: Any) -> EpsilonShown:
    values: dict[str, Any] = {
        "probe": "membership",
        "epsilon": 1.3,
        "delta": 1e-5,
        "confidence": 0.95,
        "n": 900,
        "guesses": 80,
        "correct": 66,
        "largest": 4.9,
        "method": "one run",
        "assumption": "none",
        "threshold": "explicit",
    }
    return EpsilonShown(**{**values, **changes})


def bare(**changes: Any) -> AuditReport:
    """Of which nothing is known but its sides."""
    side = SideCounts(n_patients=100, n_records=130)
    values: dict[str, Any] = {
        "version": "0",
        "created": "2026-01-01T00:00:00Z",
        "members": side,
        "held_out": side,
    }
    return AuditReport(**{**values, **changes})


__all__ = ["Gap", "about", "bare", "evidence", "found", "report", "shown", "subject", "table"]
