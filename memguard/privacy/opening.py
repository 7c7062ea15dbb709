"""Begin or go on with a private run: the ledger first, then the noise that is left to add."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from memguard.errors import MemguardWarning, PrivacyError
from memguard.privacy.accounting import Phase
from memguard.privacy.ledger import Ledger
from memguard.privacy.plan import Plan
from memguard.privacy.run import PrivateRun, RunSettings, delta_for, noise_for

__all__ = ["open_run"]


def open_run(
    plan: Plan,
    settings: RunSettings,
    *,
    folder: Path,
    state: Mapping[str, Any] | None,
    global_step: int,
    planned: int | None,
    planned_in_all: int | None,
    rates: Mapping[str, float],
    fixed_noise: float,
    seeds: Mapping[str, str],
    facts: Mapping[str, Any],
    rank: int = 0,
    broadcast: Callable[[Any], Any] = lambda one: one,
) -> PrivateRun:
    """Create the ledger of a run, or find the one that a checkpoint belongs to.

    Args:
        plan: The public constants.
        settings: What was asked for.
        folder: Of the ledger.
        state: Of the checkpoint (:meth:`PrivateRun.state_dict`).
        global_step: Optimizer steps that the Trainer stands at.
        planned: Optimizer steps to come.
        planned_in_all: Optimizer steps that the rates of individual budgets were found for.
        rates: Sample rate of each stratum.
        fixed_noise: Noise multiplier that the rates were found with; NaN where it is still to be found.
        seeds: Fingerprints of the seeds of this start, by use.
        facts: More for the ledger: engine, versions.
        rank: Of this process; the others learn from rank 0.
        broadcast: Gives every process what rank 0 has.

    Raises:
        PrivacyError: Where a run would go on without the record of what it has spent.
    """
    if state is None and global_step > 0:
        raise PrivacyError(
            f"training goes on from step {global_step}, and the checkpoint holds no state of DPSGD",
            "what its steps have spent is not known, so no epsilon could be given",
            "resume from a checkpoint of a run with DPSGD, or start anew with Trainer.fit(ckpt_path=None)",
        )
    found: Any = None
    if rank == 0:
        try:
            found = _open(
                plan, settings, folder, state, planned, planned_in_all, rates, fixed_noise, seeds, facts
            )
        except Exception as error:  # every process must stop, not only this one
            found = error
    if isinstance(found, Exception):
        broadcast(found if rank == 0 else None)
        raise found
    told = broadcast(
        None
        if found is None
        else (found.run, str(found.folder), found.before, found.noise_multiplier, found.planned)
    )
    if isinstance(told, Exception):
        raise told
    if isinstance(found, PrivateRun):
        return found
    run, where, history, noise, planned = told
    return PrivateRun(
        plan, settings, None, history=history, rates=rates, noise_multiplier=noise,
        delta=delta_for(settings, plan), planned=planned, folder=Path(where), run=run,
    )  # fmt: skip


def _open(
    plan: Plan,
    settings: RunSettings,
    folder: Path,
    state: Mapping[str, Any] | None,
    planned: int | None,
    planned_in_all: int | None,
    rates: Mapping[str, float],
    fixed_noise: float,
    seeds: Mapping[str, str],
    facts: Mapping[str, Any],
) -> PrivateRun:
    delta = delta_for(settings, plan)
    known = {
        **plan.facts(),
        "average": settings.average,
        "strata_from_data": settings.budgets is not None and settings.strata_from_data,
    }
    if state is None:
        ledger = Ledger.create(folder, fingerprint=plan.fingerprint, facts={**known, **facts})
        history: dict[str, list[Phase]] = {}
    else:
        where = folder if (folder / f"{state['run']}.jsonl").exists() else Path(state["folder"])
        ledger = Ledger.resume(
            where,
            state["run"],
            fingerprint=plan.fingerprint,
            facts=known,
            steps=int(state["steps"]),
            mark=state,
        )
        folder = where
        history = {name: ledger.history(name) for name in rates}
    try:
        noise = fixed_noise
        if settings.budgets is None:
            (only,) = rates
            noise = noise_for(settings, plan, delta, planned, history.get(only, []))
        elif history:
            planned = _left_of_budgets(planned, planned_in_all, history, noise, rates)
        ledger.phase(
            noise_multiplier=noise,
            rates=dict(rates),
            expected_patients=plan.expected_owners,
            max_grad_norm=settings.max_grad_norm,
            delta=delta,
            target_epsilon=settings.target_epsilon,
            planned_steps=planned,
        )
        kind, at = ("started", 0) if state is None else ("resumed", int(state["steps"]))
        ledger.append(kind, seeds=dict(seeds), at_step=at)
    except BaseException:
        ledger.close()
        raise
    return PrivateRun(
        plan, settings, ledger, history=history, rates=rates, noise_multiplier=noise,
        delta=delta, planned=planned, folder=folder, run=ledger.run,
    )  # fmt: skip


def _left_of_budgets(
    planned: int | None,
    planned_in_all: int | None,
    history: Mapping[str, Sequence[Phase]],
    noise: float,
    rates: Mapping[str, float],
) -> int | None:
    """Steps that a resumed run with individual budgets may still take: they are spent together at the planned end."""
    same = all(
        (phase.noise_multiplier, phase.sample_rate) == (noise, rates[name])
        for name, phases in history.items()
        for phase in phases
    )
    if not same:
        raise PrivacyError(
            "individual budgets in a run that is resumed with another length or other rates",
            "the rates were chosen so that all budgets are spent at the planned end",
            "resume with the same max_epochs, strata and budgets",
        )
    if planned is None or planned_in_all is None:
        return planned
    left = planned_in_all - max(sum(phase.steps for phase in phases) for phases in history.values())
    if left < planned:
        if left <= 0:
            raise PrivacyError(
                "the individual budgets are spent",
                "steps that were repeated after a rollback count again",
                "stop here, or begin a new run with budgets of its own",
            )
        warnings.warn(
            MemguardWarning(
                f"{planned} steps to come, and budgets for {left}",
                "steps that were repeated after a rollback count again",
                "nothing: training stops when the budgets are spent",
            ),
            stacklevel=2,
        )
    return min(planned, left)
