"""Sensitive codes on the synthetic cohort: what T2 and T5 find, and how often they are wrong.

Planted codes stand at a random place and follow from nothing; the inferable one follows from two others. Truth is
known, so that recall is of planted members, and every call of a patient that the target never saw is false.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.audit_cohort.setting import CATEGORIES, Setting, sensitive_codes
from benchmarks.cohort import FIRST_AGE, FIRST_CODE, FIRST_SEX, STRATA
from memguard.attacks import auc
from memguard.probes.asked import Budget
from memguard.probes.attribute import AttributeProbe
from memguard.probes.attribute.verdict import Judged
from memguard.probes.perturbation import PerturbationProbe

__all__ = ["IDENTIFIERS", "Rates", "attribute_rates", "perturbation_rates", "probes"]

IDENTIFIERS = {"age": range(FIRST_AGE, FIRST_SEX), "sex": range(FIRST_SEX, FIRST_CODE)}
PLANTED, INFERABLE = STRATA.index("planted sensitive"), STRATA.index("inferable sensitive")


def probes(ks: tuple[int, ...], k: int) -> tuple[AttributeProbe, PerturbationProbe]:
    """The two probes with the cohort's own codes."""
    sensitive = sensitive_codes()
    return (
        AttributeProbe(ks=ks, sensitive=sensitive, categories=CATEGORIES),
        PerturbationProbe(k=k, sensitive=sensitive, categories=CATEGORIES, identifiers=IDENTIFIERS),
    )


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Shares of patients of one audit.

    Attributes:
        planted: Members with a planted code.
        inferable: Members with the inferable one.
        never: Patients that the target never saw, with a sensitive code.
        recall: Planted members called memorized, and not inferable (T5: patient-level).
        recall_flags: Planted members among the flags (Benjamini-Hochberg).
        false: Never-trained patients called memorized, inferable or not.
        false_planted: The same of never-trained patients with a planted code.
        inferable_called: Inferable members called memorized and *not* inferable.
        inferable_both: Inferable members called both.
        planted_inferred: Planted members called inferable.
        called: Members called memorized, inferable or not, whatever their stratum.
        any_flag: Whether any member is flagged.
        auc: Of the score, planted members against inferable members.
    """

    planted: int
    inferable: int
    never: int
    recall: float
    recall_flags: float
    false: float
    false_planted: float
    inferable_called: float
    inferable_both: float
    planted_inferred: float
    called: float
    any_flag: bool
    auc: float


def _rates(verdict: Judged, stratum: np.ndarray) -> Rates:
    member, kind = verdict.member, verdict.classes
    planted, inferable = member & (stratum == PLANTED), member & (stratum == INFERABLE)
    memorized = verdict.memorized

    def share(of: np.ndarray, among: np.ndarray) -> float:
        return float(of[among].mean()) if among.any() else float("nan")

    both = planted | inferable
    return Rates(
        planted=int(planted.sum()),
        inferable=int(inferable.sum()),
        never=verdict.n_null,
        recall=share(kind == 0, planted),
        recall_flags=share(verdict.flagged, planted),
        false=share(memorized, ~member),
        false_planted=share(memorized, ~member & (stratum == PLANTED)),
        inferable_called=share(kind == 0, inferable),
        inferable_both=share(kind == 2, inferable),
        planted_inferred=share(verdict.inferable, planted),
        called=share(memorized, member),
        any_flag=bool(verdict.flagged.any()),
        auc=auc(verdict.score[both], planted[both]).value
        if planted.any() and inferable.any()
        else float("nan"),
    )


def attribute_rates(setting: Setting, ks: tuple[int, ...], seed: int = 0) -> dict[int, Rates]:
    """T2 by k."""
    probe, _ = probes(ks, max(ks))
    found = probe.examined(setting.subject, setting.asked, Budget(seed=seed))
    out = {}
    for each, verdict, known in found:
        rows = each.items.row[known[verdict.strongest]]
        out[each.k] = _rates(verdict, setting.stratum[rows])
    return out


def perturbation_rates(setting: Setting, k: int, seed: int = 0) -> Rates:
    """T5."""
    _, probe = probes((k,), k)
    found, _, gaps = probe.examine(setting.subject, setting.asked, Budget(seed=seed))
    if found is None:
        raise RuntimeError(gaps[-1].why)
    verdict, known = probe.judge(found)
    return _rates(verdict, setting.stratum[found.items.row[known[verdict.strongest]]])
