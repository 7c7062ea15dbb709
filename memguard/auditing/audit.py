"""The full audit of a trained model, from the model and its data to the report."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from numpy.typing import ArrayLike

from memguard.attacks.estimate import Estimate
from memguard.auditing.examine import Audit, Options, examine
from memguard.auditing.folder import writable
from memguard.auditing.live import in_a_run
from memguard.auditing.models import Wanted
from memguard.auditing.subjects import Strata
from memguard.errors import DataError
from memguard.probes.asked import Budget, Probe
from memguard.records.sensitivity import Sensitive, SensitivityTable
from memguard.references.pool import Name
from memguard.report.audit import Utility

__all__ = ["audit"]


def audit(
    model: pl.LightningModule,
    data: Any,
    *,
    monitor: Any = None,
    heldout: Any = None,
    record_to_patient: Any = None,
    per_record_loss: Any = None,
    record_ids: Any = None,
    references: Wanted = 8,
    factory: Any = None,
    trainer: Any = None,
    probes: str | Sequence[str | Probe] = "all",
    vocabulary: Any = "auto",
    static: int | ArrayLike | str = "auto",
    sensitive: SensitivityTable | Sensitive | str | Path | None = None,
    strata: Strata = None,
    adapter: Any = None,
    canaries: Any = None,
    claim: Any = "auto",
    utility: Sequence[Utility] | Mapping[str, Estimate | float] = (),
    answers: Mapping[str, str] | None = None,
    budget: Budget | None = None,
    folder: str | Path = "memguard-audit",
    backend: Name = "auto",
    seed: int = 0,
    progress: bool = True,
) -> Audit:
    """Ask what somebody could get out of a trained model about one patient, who is exposed, and how sure that is.

    Every question is put to the model about its members and about patients whom it never saw, and to reference
    models that never saw the member; the finding is the difference, with an interval over patients. What cannot be
    asked stands in the report as not tested.

    Args:
        model: Trained. It is copied and not touched.
        data: The LightningDataModule of the training, or a pair of loaders ``(train, held_out)``.
        monitor: The `LeakageMonitor` that watched the training: its curves and flags go into the report, and its
            settings are taken where this call gives none.
        heldout: As `LeakageMonitor` takes it; ``"val"`` by default.
        record_to_patient: As `LeakageMonitor` takes it.
        per_record_loss: As `LeakageMonitor` takes it.
        record_ids: As `LeakageMonitor` takes it.
        references: How many models to train on random halves of all patients: each costs about as much as half of
            the training. ``"counts"``: none, but n-gram counts without the patient stand in (sequence models).
            ``"none"``. Or a `ReferencePool`.
        factory: Makes a new module like the model; from its hyperparameters when not given.
        trainer: The Trainer of the training or its arguments; the model's own when not given.
        probes: ``"all"``, names (``"membership"``, ``"attribute"``, ``"perturbation"``, ``"trajectory"``,
            ``"embedding"``, ``"copies"``, ``"canary"``), or probes with settings of their own.
        vocabulary: What the tokens are called (`memguard.auditing.names.names_of`).
        static: How many leading tokens of a record say who the patient is; from the names on ``"auto"``.
        sensitive: Which codes are sensitive: a table, or a TOML file of one; memguard's own by default, which needs
            clinical and legal review.
        strata: Subgroups beside those that the records tell: name -> ``(N + M,)`` truth values, or patient ids.
        adapter: How the model is asked for probabilities, continuations and embeddings; found when not given.
        canaries: Planted records (`memguard.records.canaries`), with the coins that were thrown; those of a
            `PlantedCanaries` datamodule are found. They are asked about by the canary test alone, and taken out
            of the members for all others.
        claim: A promise of differential privacy that the bounds are compared with: a `DPSGD` callback, the path of its
            ledger or statement, or an `EpsilonClaim` by hand. ``"auto"``: of the `DPSGD` callback of the model's own
            Trainer. What the ledger says counts, also that there is no guarantee; a checkpoint is never asked.
        utility: Numbers that say what the model is good for: name -> number.
        answers: What only people can say (`memguard.report.audit.QUESTIONS`).
        budget: What the probes may spend.
        folder: Where references are kept, so that a second audit does not train them again.
        backend: How references are trained: ``"auto"``, ``"sequential"``, ``"stacked"`` or ``"ray"``.
        seed: Of every draw.
        progress: Whether to say what is going on.

    Returns:
        Report and results; ``audit(...).save(folder)`` writes them.

    Raises:
        MemguardError: If records, patients or losses cannot be told, so that nothing could be measured; if the model
            fails on the data; if an argument cannot be used.

    Guarantees:
        Every number is a lower end of what these attacks can show, not of what all attacks can. That nothing was
        found does not show that nothing is there.

    References:
        Tonekaboni et al., arXiv 2510.12950 (the six tests); the source of each number stands with its probe.

    Example:
        >>> from memguard import audit
        >>> audit(model, datamodule, references=8).save("audit/")  # doctest: +SKIP
    """
    start = time.perf_counter()
    if not isinstance(model, pl.LightningModule):
        raise DataError(
            f"a model of type {type(model).__name__}",
            "losses are those of the training step of a LightningModule",
            "pass the LightningModule that was trained, with its weights loaded",
        )
    if isinstance(references, int) or references in ("twins", "early-stopped"):
        writable(folder)
    options = Options(
        references=references, factory=factory, trainer=trainer, probes=probes, vocabulary=vocabulary, static=static,
        sensitive=sensitive, strata=strata, adapter=adapter, canaries=canaries, claim=claim, utility=utility,
        answers=answers or {}, budget=budget or Budget(seed=seed), folder=folder, backend=backend, seed=seed,
        progress=progress,
    )  # fmt: skip
    paired = isinstance(data, tuple | list) and len(data) == 2
    watched = (
        "val" if paired else getattr(monitor, "heldout", "val")
    )  # loaders that are given here come first
    known = {
        "heldout": heldout if heldout is not None else watched,
        "record_to_patient": record_to_patient
        if record_to_patient is not None
        else getattr(monitor, "record_to_patient", "auto"),
        "per_record_loss": per_record_loss or getattr(monitor, "per_record_loss", None),
        "record_ids": record_ids or getattr(monitor, "record_ids", None),
    }
    precision = getattr(model._trainer, "precision", None)
    return in_a_run(
        model,
        data,
        lambda run: examine(run, options, model=model, data=data, monitor=monitor, start=start),
        precision=precision,
        **known,
    )
