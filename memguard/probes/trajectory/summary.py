"""From what was measured at each tier to numbers, evidence, tables and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memguard.attacks.conformal import benjamini_hochberg, conformal_p_values
from memguard.attacks.difference import mean_difference
from memguard.attacks.estimate import Estimate
from memguard.probes.result import Cell, Curve, Evidence, Table
from memguard.probes.trajectory.tiers import TierPlan

__all__ = ["TierResult", "curves", "evidence", "flags", "numbers", "tables"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

HOW = ("best", "mean")
Row = list[Cell]
_WORDS = {"none": "begin token", "demographics": "demographics"}


@dataclass(frozen=True, kw_only=True)
class TierResult:
    """What the models said at one tier.

    Attributes:
        plan: Who was asked.
        patient: ``(n,)`` whose each record is.
        member: ``(n,)`` the side.
        target: Measure -> ``(n, samples)`` of the target.
        reference: Measure -> how (``"best"``, ``"mean"``, ``"most"``: the best of all) -> ``(n,)`` of the references
            that never saw the patient, NaN where too few of them were asked.
        depth: References in each patient's comparison; 0 for none.
        ratio: ``(n,)`` nearest-neighbour ratio, NaN where not known; empty where not asked.
    """

    plan: TierPlan
    patient: Ints
    member: Bools
    target: Mapping[str, Floats]
    reference: Mapping[str, Mapping[str, Floats]]
    depth: int
    ratio: Floats

    @property
    def words(self) -> str:
        """The tier in words."""
        tier = self.plan.tier
        return _WORDS.get(tier, f"first {tier.removeprefix('codes_')} codes")

    def best(self, name: str, how: str) -> Floats:
        """``(n,)`` of the target: of the sample that comes nearest, or of all in the mean."""
        values = self.target[name]
        if how == "mean":
            return np.asarray(values.mean(axis=1), dtype=np.float64)
        return np.asarray(values.min(axis=1) if name == "distance" else values.max(axis=1), dtype=np.float64)

    def beyond(self, name: str, how: str) -> Floats:
        """``(n,)`` how much closer the target comes than the references; without references, how close it comes."""
        own = self.best(name, how)
        other = self.reference[name][how] if self.depth else np.zeros(len(own))
        return other - own if name == "distance" else own - other

    def counted(self) -> Bools:
        """``(n,)`` patients with a comparison."""
        if not self.depth:
            return np.ones(len(self.patient), np.bool_)
        return np.isfinite(next(iter(self.reference.values()))["mean"])


def numbers(result: TierResult, confidence: float) -> dict[str, Estimate]:
    """Members minus never-trained patients, of every measure, best of the samples and mean."""
    out, kept, tier = {}, result.counted(), result.plan.tier
    patient, member = result.patient[kept], result.member[kept]
    for name in result.target:
        for how in HOW:
            out[f"{tier}.{name}.{how}.minus_held_out"] = mean_difference(
                result.beyond(name, how)[kept], patient, member, confidence=confidence
            )
    known = np.isfinite(result.ratio) if result.ratio.size else np.zeros(0, np.bool_)
    if known.any() and len(np.unique(result.member[known])) == 2:
        out[f"{tier}.neighbour_ratio.minus_held_out"] = mean_difference(
            result.ratio[known], result.patient[known], result.member[known], confidence=confidence
        )
    return out


def evidence(result: TierResult) -> dict[str, Evidence]:
    """What the files of records and the strata need: the best sample's distance and verbatim information."""
    units = {"distance": "transport distance", "information": "nats of the heaviest verbatim run"}
    beyond = "closer than references" if result.depth else "closer to the truth"
    out, kept = {}, result.counted()
    for name in ("distance", "information"):
        if name not in result.target:
            continue
        value, member = result.beyond(name, "best"), result.member
        p = np.full(len(value), np.nan)
        p[kept & member] = conformal_p_values(value[kept & member], value[kept & ~member])
        out[f"{result.plan.tier}.{name}"] = Evidence(
            name=f"{units[name]}, {beyond if name == 'distance' else 'best sample'}, {result.words}",
            row=result.plan.rows[kept],
            value=value[kept],
            p_value=p[kept],
        )
    return out


def flags(results: Sequence[TierResult], rate: float) -> tuple[Ints, str]:
    """Members who stand out at the tier with most patients, and how they were found, in words.

    The tier is chosen by the number of patients alone, never by what the models said.
    """
    chosen = max(results, key=lambda r: int(r.counted().sum()))
    found = evidence(chosen)
    name = "distance" if f"{chosen.plan.tier}.distance" in found else "information"
    p_value = found[f"{chosen.plan.tier}.{name}"].p_value
    assert p_value is not None
    kept = chosen.counted()
    member = chosen.member[kept]
    flagged = benjamini_hochberg(p_value[member], rate)
    n_null = int(np.count_nonzero(~member))
    text = (
        f"Flags: conformal p-values of {int(member.sum())} members against {n_null} never-trained patients by "
        f"{name} at the tier {chosen.words!r}, Benjamini-Hochberg at {rate:g}; the smallest p-value that so many "
        f"patients allow is {1 / (n_null + 1):.2g}."
    )
    return chosen.patient[kept][member][flagged], text


def tables(results: Sequence[TierResult]) -> dict[str, Table]:
    """One row a tier: how close the models come, and how much stands there verbatim."""
    distance, verbatim, asked = list[Row](), list[Row](), list[Row]()
    for r in results:
        kept = r.counted()
        member = kept & r.member, kept & ~r.member
        counts = *r.plan.available, *r.plan.short, *r.plan.unreferenced
        asked.append([r.words, int(member[0].sum()), int(member[1].sum()), *counts])
        if "distance" in r.target:
            for how in HOW:
                own = r.best("distance", how)
                refs = r.reference["distance"][how] if r.depth else np.full(len(own), np.nan)
                means = [_mean(values[side]) for values in (own, refs) for side in member]
                distance.append(
                    [r.words, how, *means, _mean(r.ratio[member[0]] if r.ratio.size else r.ratio)]
                )
                distance[-1].append(_mean(r.ratio[member[1]] if r.ratio.size else r.ratio))
        best = [_mean(r.best(name, how)[side]) for name, how in _VERBATIM for side in member]
        longest = [int(r.best("run", "best")[side].max(initial=0)) for side in member]
        beyond = (
            [
                float((r.best("run", "best") - r.reference["run"]["most"])[side].max(initial=-np.inf))
                for side in member
            ]
            if r.depth
            else [None, None]
        )
        verbatim.append([r.words, *best, *longest, *beyond])
    out = {
        "asked": Table(
            title="Who was asked",
            columns=(
                "the attacker knows",
                *_sides("asked"),
                *_sides("could be asked"),
                *_sides("too short"),
                *_sides("too few references"),
            ),
            rows=asked,
            note="Patients without a record that is long enough count in no rate, neither above nor below the line.",
        ),
        "verbatim": Table(
            title="What stands in the continuation word for word",
            columns=(
                "the attacker knows",
                *_sides("same code at the same place, mean"),
                *_sides("same code at the same place, best"),
                *_sides("codes in common, mean"),
                *_sides("longest run, best"),
                *_sides("information of the heaviest run in nats, best"),
                *_sides("longest run of anybody"),
                *_sides("the most that a run is longer than every reference's"),
            ),
            rows=verbatim,
            note="Time, padding and other structural tokens are left out. A code that everybody has weighs 0 nats, "
            "one that a single patient has weighs the log of the number of patients.",
        ),
    }
    if distance:
        out["distance"] = Table(
            title="Distance of the continuation from the truth",
            columns=(
                "the attacker knows",
                "of the samples",
                *_sides("target"),
                *_sides("references"),
                *_sides("nearest-neighbour ratio"),
            ),
            rows=distance,
            note="Ratio: distance to the own truth over that to the nearest other patient's, of samples that are not "
            "chosen by it; low = this patient and not a typical one. A low distance alone may be routine care.",
        )
    return out


_VERBATIM = (
    ("exact_match", "mean"),
    ("exact_match", "best"),
    ("overlap", "mean"),
    ("run", "best"),
    ("information", "best"),
)


def curves(results: Sequence[TierResult]) -> dict[str, Curve]:
    """Distance over what the attacker knows."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for r in sorted(results, key=lambda r: _known(r.plan.tier)):
        if "distance" not in r.target or r.plan.tier == "none":
            continue
        kept, x = r.counted(), _known(r.plan.tier)
        for side, word in ((True, "members"), (False, "never-trained")):
            chosen = kept & (r.member == side)
            lines.setdefault(f"target, {word}", []).append(
                (x, float(r.best("distance", "mean")[chosen].mean()))
            )
            if r.depth:
                mean = float(r.reference["distance"]["mean"][chosen].mean())
                lines.setdefault(f"references, {word}", []).append((x, mean))
    if not lines:
        return {}
    return {
        "distance": Curve(
            title="Distance of continuations from the truth",
            x="codes known beyond demographics",
            y="transport distance, mean of the samples",
            lines=lines,
        )
    }


def _known(tier: str) -> float:
    return float(tier.removeprefix("codes_")) if tier.startswith("codes_") else 0.0


def _mean(values: Floats) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else None


def _sides(what: str) -> tuple[str, str]:
    return f"{what}: members", f"{what}: never-trained"
