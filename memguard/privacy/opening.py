"""Begin or go on with a private run: the ledger first, then the noise that is left to add."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from memguard.errors import PrivacyError
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
            found = _open(plan, settings, folder, state, planned, rates, fixed_noise, seeds, facts)
        except Exception as error:  # every process must stop, not only this one
            found = error
    if isinstance(found, Exception):
        broadcast(found if rank == 0 else None)
        raise found
    told = broadcast(
        None if found is None else (found.run, str(found.folder), found._before, found.noise_multiplier)
    )
    if isinstance(told, Exception):
        raise told
    if isinstance(found, PrivateRun):
        return found
    run, where, history, noise = told
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
    rates: Mapping[str, float],
    fixed_noise: float,
    seeds: Mapping[str, str],
    facts: Mapping[str, Any],
) -> PrivateRun:
    delta = delta_for(settings, plan)
    if state is None:
        ledger = Ledger.create(folder, fingerprint=plan.fingerprint, facts={**plan.facts(), **facts})
        history: dict[str, list[Phase]] = {}
    else:
        where = folder if (folder / f"{state['run']}.jsonl").exists() else Path(state["folder"])
        ledger = Ledger.resume(
            where,
            state["run"],
            fingerprint=plan.fingerprint,
            facts=plan.facts(),
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
        elif history and any(p.noise_multiplier != noise for phases in history.values() for p in phases):
            raise PrivacyError(
                "individual budgets in a run that is resumed with another length or other rates",
                "the rates were chosen so that all budgets are spent at the planned end",
                "resume with the same max_epochs, strata and budgets",
            )
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
