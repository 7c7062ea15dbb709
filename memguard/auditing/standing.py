"""What stays the same from look to look: whom the probes ask about, how, and beside which counts."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memguard.adapters.base import ModelAdapter
from memguard.auditing.asking import lacking
from memguard.auditing.choice import Setting, choose
from memguard.auditing.light import LightProbes
from memguard.auditing.light_counts import references_of
from memguard.auditing.planted import canaries_by, find_planted, marked_rows
from memguard.auditing.sides import Losses, Sides, joined
from memguard.auditing.subjects import mask_of, static_of
from memguard.auditing.way import ask_through, sensitive_of
from memguard.errors import MemguardError
from memguard.probes.asked import Asked, Models, Probe
from memguard.probes.attribute import AttributeProbe
from memguard.probes.result import NotTested, ProbeResult
from memguard.probes.subject import Subject
from memguard.probes.watch import Watch

__all__ = ["Standing", "known_of", "prepare_standing"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_CANARIES = (
    "{:,} planted canaries are among the training records: they count in the monitor's own numbers, and in those of no "
    "probe but the canary probe."
)
# Records that are read to know the speed, and codes that a probe lets the model write, about.
_READ, _WRITTEN = 64, 20


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
        notes: What a reader has to know.
        gaps: What could not be found out.
        known: Of `known_of`, when this was made.
        reading: Seconds that the model takes to read one record.
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
    notes: tuple[str, ...]
    gaps: tuple[NotTested, ...]
    known: tuple[int, int]
    reading: float
    seed: int

    def expected(self, probe: Probe) -> float:
        """Seconds that a probe takes at least, before it was ever asked: it reads every patient whom it asks about.

        One that lets the model write has it read a record again for each code.
        """
        if not probe.needs:
            return 0.0
        times = _WRITTEN if "generate" in probe.needs else 1
        return self.reading * 2 * self.light.patients * times

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
    planted, canaries = _planted(light, sides, data, dataset)
    keep = np.concatenate(_observed(watch)) & np.concatenate(
        [side.patients.code >= 0 for side in (watch.members, watch.held_out)]
    )
    keep[planted] = False  # made up: nobody is to be asked about them as if they were patients
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
    setting = Setting(sensitive=sensitive_of(light.sensitive, names, gaps), canaries=canaries)
    probes, missing = _chosen(light, setting)
    references, reference_loss = references_of(light, subject, found, probes, sides.target.loss[rows], seed)
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
        notes=() if planted.size == 0 else (_CANARIES.format(planted.size),),
        gaps=tuple(gaps),
        known=known_of(watch) or (0, 0),
        reading=0.0 if found is None else _reading(found, subject),
        seed=seed,
    )


def _planted(light: LightProbes, sides: Sides, data: Any, dataset: Any) -> tuple[Ints, Any]:
    """Positions of planted canaries among the training records, and the canaries."""
    if sides.content.observed.all():
        found = find_planted(sides, training=dataset, data=data, given=light.canaries, probes=light.probes)
        return found.rows, light.canaries if light.canaries is not None else found.canaries
    # Not every record was seen yet: marks tell, and contents cannot.
    rows = marked_rows(dataset)
    canaries = light.canaries if light.canaries is not None else canaries_by(data)
    return np.zeros(0, np.int64) if rows is None else rows, canaries


def _observed(watch: Watch) -> tuple[Bools, Bools]:
    return watch.members.store.observed & watch.members.seen, watch.held_out.store.observed


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
            probes += [_lighter(made) if isinstance(one, str) else made for made in choose([one], setting)]
        except MemguardError as error:
            name = one if isinstance(one, str) else one.name
            missing[name] = NotTested(what=name, why=f"{error.seen}: {error.why}", fix=error.fix)
    return probes, missing


def _lighter(probe: Probe) -> Probe:
    """Without what no curve shows and what takes most of the time: bootstraps of the class form."""
    return replace(probe, class_patients=0) if isinstance(probe, AttributeProbe) else probe


def _reading(adapter: ModelAdapter, subject: Subject) -> float:
    """Seconds a record, from reading a few."""
    lengths = np.asarray(subject.sequences.lengths)
    fits = (lengths > 1) & (lengths <= (adapter.longest or np.inf))
    rows = np.flatnonzero(fits)[:_READ]
    if not rows.size or "log_probs" not in adapter.abilities:
        return 0.0
    start = time.perf_counter()
    adapter.log_probs(subject.sequences.take(rows), patient=subject.patient[rows])
    return (time.perf_counter() - start) / rows.size


def _said(gap: NotTested, gaps: Sequence[NotTested]) -> NotTested:
    """Why a model cannot be asked, with what was seen when it was tried."""
    seen = next((one for one in gaps if one.what.startswith("Probabilities")), None)
    if seen is None:
        return gap
    return NotTested(what=gap.what, why=f"{gap.why} ({seen.why})", fix=gap.fix or seen.fix)
