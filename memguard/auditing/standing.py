"""What stays the same from look to look: whom the probes ask about, how, and beside which counts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memguard.adapters.base import ModelAdapter
from memguard.attacks.estimate import Estimate
from memguard.auditing.asking import lacking
from memguard.auditing.choice import Setting, choose
from memguard.auditing.light import LightProbes
from memguard.auditing.models import CountModels, NoModels
from memguard.auditing.sides import Losses, Sides, joined
from memguard.auditing.subjects import mask_of, static_of
from memguard.auditing.way import ask_through, sensitive_of
from memguard.errors import MemguardError
from memguard.probes.asked import Asked, Models, Probe
from memguard.probes.result import NotTested, ProbeResult
from memguard.probes.strata import breakdown
from memguard.probes.subject import Subject
from memguard.probes.watch import Watch
from memguard.report.audit.nulls import headline_of, null_of
from memguard.report.audit.parts import Number

__all__ = ["Standing", "expected_seconds", "known_of", "prepare_standing", "shown"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_COUNTED = 2_000_000  # codes that are counted at most: some seconds, and 200 MB
_COUNTING, _SCORING = (
    3e-6,
    8e-6,
)  # seconds a code, on a slow core; only what is expected before anything is known


@dataclass(frozen=True, kw_only=True, eq=False)
class Standing:
    """Whom to ask, about whom, and beside what; made once, and again when more records have been seen.

    Attributes:
        light: Settings.
        probes: Those that can be asked.
        missing: Name -> why a probe cannot be asked.
        subject: Records of both sides that have been seen.
        rows: ``(n,)`` their positions among all N + M, members first.
        adapter: How the model is asked; ``None`` where it cannot be.
        references: Counts, or none.
        reference_loss: ``(K, n)`` of the references, NaN where not measured.
        strata: Those that the user gave.
        gaps: What could not be found out.
        known: Of `known_of`, when this was made.
        seed: Of every draw.
    """

    light: LightProbes
    probes: tuple[Probe, ...]
    missing: Mapping[str, NotTested]
    subject: Subject
    rows: Ints
    adapter: ModelAdapter | None
    references: Models
    reference_loss: Floats
    strata: Mapping[str, Bools]
    gaps: tuple[NotTested, ...]
    known: tuple[int, int]
    seed: int

    def ask(self, name: str, watch: Watch, seconds: float | None) -> ProbeResult:
        """Ask one probe about the weights as they are now.

        Args:
            name: Of the probe.
            watch: With the losses of the look.
            seconds: After which the probe is to stop; ``None`` for no limit.
        """
        probe = next(one for one in self.probes if one.name == name)
        asked = Asked(
            target=self.adapter,
            references=self.references,
            loss=_losses(watch)[self.rows],
            reference_loss=self.reference_loss,
            loss_unit=watch.unit,
            tokens=_tokens(watch)[self.rows],
        )
        return probe.run(self.subject, asked, self.light.budget(name, seconds, self.seed))


def known_of(watch: Watch) -> tuple[int, int] | None:
    """Records of each side that can be asked about; ``None`` while the contents of some that were seen are not here.

    A run that is resumed knows which members were trained on, and gathers what they hold anew.
    """
    inside, outside = _observed(watch)
    if not inside.any() or not outside.any() or not inside[watch.members.seen].all():
        return None
    return int(inside.sum()), int(outside.sum())


def expected_seconds(watch: Watch, light: LightProbes) -> float:
    """What making a `Standing` costs about, before one was made."""
    if light.references == "none" or watch.members.store.kind != "codes":
        return 0.0
    sides = [int(side.tokens.sum()) for side in (watch.members, watch.held_out)]
    return _COUNTING * min(sides[0], _COUNTED) + _SCORING * (sides[1] if "membership" in light.names else 0)


def prepare_standing(
    light: LightProbes,
    watch: Watch,
    module: Any,
    *,
    data: Any = None,
    dataset: Any = None,
    seed: int = 0,
    adapter: ModelAdapter | None = None,
) -> Standing:
    """Make it, from what the watch has seen.

    Args:
        light: Settings.
        watch: After a look.
        module: With the weights of that look: its losses are the proof that it is asked in the right way.
        data: Datamodule of the run, if any.
        dataset: Of the training, if known.
        seed: Of every draw.
        adapter: One that was proved before.

    Raises:
        MemguardError: If the contents of the records are not known.
    """
    sides = _sides(watch)
    canary_rows = np.asarray(getattr(dataset, "canary_rows", ()), np.int64)
    keep = np.concatenate(_observed(watch)) & np.concatenate(
        [side.patients.code >= 0 for side in (watch.members, watch.held_out)]
    )
    keep[canary_rows] = False  # made up: nobody is to be asked about them as if they were patients
    rows = np.flatnonzero(keep)
    gaps: list[NotTested] = []
    owners = (data, getattr(data, "datamodule", None), dataset, module)
    names, found = ask_through(
        module,
        owners,
        sides,
        vocabulary=light.vocabulary,
        adapter=adapter if adapter is not None else light.adapter,
        gaps=gaps,
    )
    n = len(sides.content)
    subject = Subject(
        n_members=int(np.count_nonzero(rows < len(sides.members))),
        patient=sides.patient[rows],
        content=sides.content if rows.size == n else sides.content.take(rows),
        names=names,
        static=static_of(sides, names, light.static, n)[rows],
        unit=sides.members.unit,
    )
    given = light.strata(subject) if callable(light.strata) else light.strata or {}
    strata = {name: _stratum(name, values, sides, rows, subject) for name, values in given.items()}
    planted = getattr(data, "canaries", None) if getattr(data, "memguard_canaries", False) is True else None
    setting = Setting(
        sensitive=sensitive_of(light.sensitive, names, gaps),
        canaries=light.canaries if light.canaries is not None else planted,
    )
    probes, missing = _chosen(light, setting)
    references, reference_loss = _references(light, subject, found, probes, sides.target.loss[rows], seed)
    asked = Asked(
        target=found, references=references, loss=sides.target.loss[rows], reference_loss=reference_loss
    )
    for probe in probes:
        gap = lacking(probe, subject, asked)
        if gap is not None:
            missing[probe.name] = _said(gap, gaps)
    return Standing(
        light=light,
        probes=tuple(one for one in probes if one.name not in missing),
        missing=missing,
        subject=subject,
        rows=rows,
        adapter=found,
        references=references,
        reference_loss=reference_loss,
        strata=strata,
        gaps=tuple(gaps),
        known=known_of(watch) or (0, 0),
        seed=seed,
    )


def shown(result: ProbeResult, standing: Standing, *, min_cell: int = 5) -> dict[str, Estimate]:
    """The numbers of a probe that become curves: the one that decides in an audit, an AUC beside it, and strata.

    Args:
        result: Of the probe.
        standing: Which strata the user gave.
        min_cell: Numbers of fewer patients are left out.
    """
    numbers = {name: Number(estimate=one, null=null_of(name)) for name, one in result.numbers.items()}
    usable = {
        name: one
        for name, one in numbers.items()
        if math.isfinite(one.estimate.value) and one.estimate.n >= min_cell
    }
    head = headline_of(usable)
    beside = head.replace("memorized.", "auc.").removesuffix(".minus_held_out")
    found = {name: usable[name].estimate for name in dict.fromkeys((head, beside)) if name in usable}
    if standing.strata and result.evidence:
        evidence = next(iter(result.evidence.values()))
        parts = breakdown(evidence, standing.subject, standing.strata, min_cell=min_cell).numbers
        for name in standing.strata:
            key = f"{name}.minus_held_out"
            if key in parts and math.isfinite(parts[key].value) and parts[key].n >= min_cell:
                found[f"strata.{key}"] = parts[key]
    return found


def _observed(watch: Watch) -> tuple[Bools, Bools]:
    sides = (watch.members, watch.held_out)
    inside, outside = (
        side.store.content().observed if side.store.n_observed else np.zeros(len(side.tokens), np.bool_)
        for side in sides
    )
    return inside & watch.members.seen, outside


def _losses(watch: Watch) -> Floats:
    return np.concatenate(watch.measured).astype(np.float64)


def _tokens(watch: Watch) -> Ints:
    return np.concatenate([watch.members.tokens, watch.held_out.tokens]).astype(np.int64)


def _sides(watch: Watch) -> Sides:
    losses = Losses(loss=_losses(watch), tokens=_tokens(watch), unit=watch.unit, route="")
    return Sides(
        members=watch.members.patients,
        held_out=watch.held_out.patients,
        content=joined(watch.members.store.content(), watch.held_out.store.content()),
        target=losses,
    )


def _stratum(name: str, values: Any, sides: Sides, rows: Ints, subject: Subject) -> Bools:
    whole = np.asarray(values)
    if whole.shape == (len(subject),) and len(subject) != len(sides.content):  # made from the subject
        return whole.astype(np.bool_)
    return mask_of(name, values, sides, len(sides.content))[rows]


def _chosen(light: LightProbes, setting: Setting) -> tuple[list[Probe], dict[str, NotTested]]:
    wanted = list(light.names) if isinstance(light.probes, str) else list(light.probes)
    if light.probes == "all" and setting.canaries is not None and "canary" not in wanted:
        wanted.append("canary")
    probes: list[Probe] = []
    missing: dict[str, NotTested] = {}
    for one in wanted:
        try:
            probes += choose([one], setting)
        except MemguardError as error:
            name = one if isinstance(one, str) else one.name
            missing[name] = NotTested(what=name, why=f"{error.seen}: {error.why}", fix=error.fix)
    return probes, missing


def _references(
    light: LightProbes,
    subject: Subject,
    adapter: ModelAdapter | None,
    probes: Sequence[Probe],
    loss: Floats,
    seed: int,
) -> tuple[Models, Floats]:
    """Counts of the members' records. The model knows nothing of held-out patients, and neither do the counts."""
    codes = subject.content.codes
    if light.references == "none" or codes is None or not subject.n_members:
        return NoModels(len(subject)), np.zeros((0, len(subject)))
    size = adapter.vocabulary if adapter is not None else int(codes.values.max(initial=0)) + 1
    counts = CountModels(codes, subject.patient, size, _counted(subject, seed))
    # Only these read losses of references; they are dear where there are many records.
    read = any(one.name == "membership" or not type(one).__module__.startswith("memguard.") for one in probes)
    return counts, counts.losses(np.flatnonzero(np.isfinite(loss) & read))


def _counted(subject: Subject, seed: int) -> Bools:
    """Members' records, those of patients drawn at random where there are too many to count."""
    member = subject.member
    lengths = np.asarray(subject.sequences.lengths)
    if lengths[member].sum() <= _COUNTED:
        return member
    patients, code = np.unique(subject.patient[member], return_inverse=True)
    order = np.random.default_rng([seed, 47]).permutation(patients.size)
    size = np.bincount(code, weights=lengths[member], minlength=patients.size)[order]
    drawn = patients[order[np.cumsum(size) <= _COUNTED]]
    return member & np.isin(subject.patient, drawn)


def _said(gap: NotTested, gaps: Sequence[NotTested]) -> NotTested:
    """Why a model cannot be asked, with what was seen when it was tried."""
    seen = next((one for one in gaps if one.what.startswith("Probabilities")), None)
    if seen is None:
        return gap
    return NotTested(what=gap.what, why=f"{gap.why} ({seen.why})", fix=gap.fix or seen.fix)
