"""The audit inside a run that is under way: sides, names, references, probes, report."""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import polars
from numpy.typing import ArrayLike

import memguard
from memguard.attacks.estimate import Estimate
from memguard.auditing.asking import ask_all
from memguard.auditing.choice import Setting, choose
from memguard.auditing.claims import promise_of
from memguard.auditing.compared import compared
from memguard.auditing.composed import parts_of, shown_of
from memguard.auditing.described import (
    command_line,
    dataset_fingerprint,
    hardware,
    model_line,
    versions,
)
from memguard.auditing.live import LiveRun
from memguard.auditing.models import Wanted, prepare
from memguard.auditing.planted import find_planted
from memguard.auditing.planted_losses import by_loss
from memguard.auditing.sides import Sides, read_sides
from memguard.auditing.subjects import Strata, make_subject
from memguard.auditing.way import ask_through, sensitive_of
from memguard.capture.weights import weights_hash
from memguard.probes.asked import Asked, Budget, Probe
from memguard.probes.result import NotTested, ProbeResult
from memguard.probes.subject import Subject
from memguard.records.sensitivity import Sensitive, SensitivityTable
from memguard.references.pool import Name
from memguard.report.audit import (
    AuditReport,
    Provenance,
    Utility,
    records_frame,
    side_of,
    threats_of,
)
from memguard.report.private import HashedIds

__all__ = ["Audit", "Options", "examine"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What an audit is to do; see `audit` for the meaning of each."""

    references: Wanted = 8
    factory: Any = None
    trainer: Any = None
    probes: str | Sequence[str | Probe] = "all"
    vocabulary: Any = "auto"
    static: int | ArrayLike | str = "auto"
    sensitive: SensitivityTable | Sensitive | str | Path | None = None
    strata: Strata = None
    adapter: Any = None
    canaries: Any = None
    claim: Any = "auto"
    utility: Sequence[Utility] | Mapping[str, Estimate | float] = ()
    answers: Mapping[str, str] = field(default_factory=dict)
    budget: Budget = field(default_factory=Budget)
    folder: str | Path = "memguard-audit"
    backend: Name = "auto"
    seed: int = 0
    progress: bool = True


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What an audit found.

    Attributes:
        report: For people.
        results: Of each probe, with evidence record by record: keep it to yourself.
        subject: Whom it is about.
        ids: Patient id of each code.
        flags: The monitor's flags, where there was one.
        key_folder: Whose key hashes the ids; ``None`` for the folder that `save` is given.
    """

    report: AuditReport
    results: tuple[ProbeResult, ...]
    subject: Subject
    ids: tuple[Any, ...]
    flags: polars.DataFrame | None = None
    key_folder: Path | None = None

    def __str__(self) -> str:
        return self.report.verdict()

    def save(self, folder: str | Path = "memguard-audit") -> dict[str, Path]:
        """Write JSON, page, Markdown, model card, and one row a patient with hashed ids; for the owner alone.

        Args:
            folder: Made when missing.

        Returns:
            Name -> path of what was written.
        """
        hashed = HashedIds.in_folder(self.key_folder or folder)
        rows = records_frame(self.results, self.subject, hashed=hashed, ids=self.ids, flags=self.flags)
        return self.report.save(folder, rows)


def examine(
    run: LiveRun,
    options: Options,
    *,
    model: pl.LightningModule,
    data: Any = None,
    monitor: Any = None,
    start: float | None = None,
) -> Audit:
    """The audit inside a run that is under way; arguments as `audit` takes them."""
    start = time.perf_counter() if start is None else start
    told = _teller(options.progress)
    told("reading the records of both sides ...")
    sides = read_sides(run)
    training = run.capture.tracker.dataset("train")
    planted = find_planted(
        sides, training=training, held_out=run.source.dataset, data=data, given=options.canaries,
        probes=options.probes,
    )  # fmt: skip
    checkpoint = weights_hash(model)
    claim, no_claim = promise_of(
        options.claim,
        members=sides.members,
        weights=checkpoint,
        trainers=(model._trainer, options.trainer),
    )
    sides = sides.without(planted.rows)
    gaps: list[NotTested] = []
    names, adapter = ask_through(
        run.module,
        (data, training, model),
        sides,
        vocabulary=options.vocabulary,
        adapter=options.adapter,
        gaps=gaps,
    )
    subject, unknown = make_subject(sides, names=names, static=options.static, strata=options.strata)
    gaps += unknown
    told(f"{subject.n_patients(True):,} members, {subject.n_patients(False):,} never-trained {subject.unit}s")
    prepared = prepare(
        run,
        sides,
        options.references,
        model=model,
        datamodule=data if isinstance(data, pl.LightningDataModule) else None,
        factory=options.factory,
        trainer=options.trainer,
        backend=options.backend,
        folder=Path(options.folder) / "references",
        seed=options.seed,
        progress=options.progress,
    )
    gaps += prepared.gaps
    models, reference_loss, alike = compared(prepared, options.references, adapter, subject, sides)
    asked = Asked(
        target=adapter,
        references=models,
        loss=sides.target.loss,
        reference_loss=reference_loss,
        loss_unit=sides.target.unit,
        tokens=sides.target.tokens,
    )
    setting = Setting(
        sensitive=sensitive_of(options.sensitive, names, gaps),
        canaries=by_loss(run, options.canaries if options.canaries is not None else planted.canaries, data),
        claim=claim,
        comparable=claim is not None and claim.unit in planted.units,
    )
    budgets = {"membership": replace(options.budget, patients=None)}  # its losses are all there already
    results = ask_all(choose(options.probes, setting), subject, asked, options.budget, budgets, told=told)
    parts, everything = parts_of(results, subject)
    threats, untested = threats_of(parts.sections)
    watch = getattr(monitor, "report", None)
    report = AuditReport(
        version=memguard.__version__,
        created=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        unit="patient" if subject.unit == "patient" else "record",
        members=side_of(subject, member=True),
        held_out=side_of(subject, member=False),
        patients_source=f"{sides.members.source}; held out: {sides.held_out.source}",
        flag_rate=0.1,
        provenance=Provenance(
            model=model_line(model),
            checkpoint=checkpoint,
            dataset=dataset_fingerprint(sides),
            versions=versions(),
            seeds={"audit": options.seed},
            commands=[line] if (line := command_line()) else [],
            config=_settings(options, sides),
            hardware=hardware(),
            seconds=time.perf_counter() - start,
        ),
        references=alike,
        threats=threats,
        not_tested=(*gaps, *untested),
        sections=parts.sections,
        strata=parts.strata,
        tail=parts.tail,
        watch=watch,
        canaries=planted.n,
        claim=claim,
        no_claim=no_claim,
        shown=shown_of(results, subject, claim, {"canary": planted.units}),
        utility=_utility(options.utility),
        mitigations=tuple(getattr(monitor, "mitigations", ())),
        answers=options.answers,
        notes=(*sides.notes, *([planted.note] if planted.note else [])),
    )
    folder = getattr(monitor, "dirpath", None) if watch is not None else None
    return Audit(
        report=report,
        results=everything,
        subject=subject,
        ids=tuple(sides.ids),
        flags=getattr(monitor, "flags", None) if folder is not None else None,
        key_folder=folder,
    )


def _settings(options: Options, sides: Sides) -> dict[str, str | int | float | bool | None]:
    wanted, probes = options.references, options.probes
    return {
        "references": wanted if isinstance(wanted, int | str) else len(wanted),
        "probes": probes if isinstance(probes, str) else str([str(one) for one in probes]),
        "loss": f"{sides.target.route} ({sides.target.unit})",
    }


def _utility(given: Any) -> tuple[Utility, ...]:
    if isinstance(given, Mapping):
        return tuple(Utility(name=name, value=value) for name, value in given.items())
    return tuple(given)


def _teller(progress: bool) -> Any:
    return (lambda text: print(f"audit: {text}", flush=True)) if progress else (lambda text: None)
