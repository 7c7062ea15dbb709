"""One private training over all its resumes: what it may spend, what it has spent, and where that is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from memguard.errors import PrivacyError
from memguard.owner_only import write_whole
from memguard.privacy.accounting import Phase, epsilon, noise_multiplier_for, rdp_epsilon, resolve_delta
from memguard.privacy.guards.finding import Finding
from memguard.privacy.ledger import Ledger
from memguard.privacy.plan import EVERYBODY, Plan

if TYPE_CHECKING:
    from memguard.privacy.statement import Statement

__all__ = ["PrivateRun", "RunSettings", "delta_for", "noise_for", "rates_for"]

# How the ledger calls what the static scan finds.
_KINDS = {
    "static/early_stopping": "early_stop",
    "static/checkpoint": "monitored_checkpoint",
    "static/plateau": "feedback",
}


_NUMBERS = (
    "target_epsilon", "noise_multiplier", "max_grad_norm", "sample_rate", "expected_batch_size", "max_records",
    "physical_batch_size",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What a person asked for; see :class:`memguard.DPSGD` for each.

    Raises:
        PrivacyError: If it is not clear how much noise is meant.
    """

    target_epsilon: float | None = None
    noise_multiplier: float | None = None
    delta: float | str = "1/n"
    max_grad_norm: float = 1.0
    unit: Literal["patient", "record"] = "patient"
    record_to_patient: Any = "auto"
    sample_rate: float | None = None
    expected_batch_size: float | None = None
    max_records: int | None = None
    physical_batch_size: int | None = None
    average: Literal["mean", "sum"] = "mean"
    engine: Literal["auto", "opacus", "loop"] = "auto"
    budgets: Mapping[str, float] | None = None
    strata: Mapping[Any, str] | Sequence[str] | None = None
    strata_from_data: bool = True
    checks: bool = True

    def __post_init__(self) -> None:
        ways = {
            "target_epsilon": self.target_epsilon,
            "noise_multiplier": self.noise_multiplier,
            "budgets": self.budgets,
        }
        given = [name for name, value in ways.items() if value is not None]
        if len(given) != 1:
            raise PrivacyError(
                f"{' and '.join(given) or 'none of target_epsilon, noise_multiplier and budgets'} given",
                "how much noise is added must follow from exactly one of them",
                "pass target_epsilon=8, for example",
            )
        for name in _NUMBERS:
            value = getattr(self, name)
            if value is not None and (
                isinstance(value, bool) or not isinstance(value, int | float | np.number)
            ):
                raise PrivacyError(
                    f"{name}={value!r}, a {type(value).__name__}",
                    "it is read as no number",
                    f"pass {name}= as a number (YAML reads 1e-5 as text and 1.0e-5 as a number)",
                )
        for name in ("target_epsilon", "max_grad_norm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise PrivacyError(
                    f"{name}={value}", "no noise can be found for it", "pass a positive number"
                )
        if self.noise_multiplier is not None and not 0 <= self.noise_multiplier < float("inf"):
            raise PrivacyError(
                f"noise_multiplier={self.noise_multiplier}", "it scales the noise", "pass a number from 0"
            )
        if (self.budgets is None) != (self.strata is None):
            raise PrivacyError(
                "budgets= without strata=" if self.strata is None else "strata= without budgets=",
                "a budget belongs to a stratum of patients",
                "pass both: budgets={'rare': 1, 'other': 8}, strata={patient id: 'rare', ...}",
            )
        for name, choices in (("average", ("mean", "sum")), ("engine", ("auto", "opacus", "loop"))):
            if getattr(self, name) not in choices:
                raise PrivacyError(
                    f"{name}={getattr(self, name)!r}", "it is not known", f"pass one of {', '.join(choices)}"
                )


class PrivateRun:
    """Counts the steps of a private training and writes them down before they are taken.

    Every process holds one and counts; only the one with a ``ledger`` (rank 0) writes.

    Args:
        plan: The public constants.
        settings: What was asked for.
        ledger: Of this lineage; ``None`` on other ranks.
        history: Phases spent before this start, for each stratum.
        rates: Sample rate of each stratum.
        noise_multiplier: From now on.
        delta: Of the promise.
        planned: Optimizer steps planned from now on; ``None`` if training has no planned end.
        folder: Where the ledger lies.
        run: Name of the lineage.

    Attributes:
        before: Phases spent before this start, for each stratum.
    """

    def __init__(
        self,
        plan: Plan,
        settings: RunSettings,
        ledger: Ledger | None,
        *,
        history: Mapping[str, Sequence[Phase]],
        rates: Mapping[str, float],
        noise_multiplier: float,
        delta: float,
        planned: int | None,
        folder: Path,
        run: str,
    ) -> None:
        self.plan, self.settings, self.ledger = plan, settings, ledger
        self.rates, self.noise_multiplier, self.delta = dict(rates), noise_multiplier, delta
        self.planned, self.folder, self.run = planned, Path(folder), run
        self.before = {name: list(phases) for name, phases in history.items()}
        self._since = 0
        self._known: tuple[int, float] | None = None
        self._mark: Mapping[str, Any] = {}

    # -- spending ------------------------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """Optimizer steps over the whole lineage."""
        return max((sum(p.steps for p in phases) for phases in self.before.values()), default=0) + self._since

    def spend(self, global_step: int) -> None:
        """Write down a step that is about to be taken. After this returns it counts, whatever happens.

        Raises:
            PrivacyError: If the step would exceed what was promised.
        """
        if self.exhausted():
            raise PrivacyError(
                f"a step more than the {self.planned} that the noise was chosen for",
                "it would spend more than was promised",
                "fit again for more epochs (the noise is then chosen anew for them), or pass noise_multiplier=",
            )
        if self.ledger is not None:
            self.ledger.step(global_step)
        self._since += 1

    def history(self, stratum: str) -> list[Phase]:
        """Phases of a stratum, this start included."""
        now = Phase(self.noise_multiplier, self.rates[stratum], self._since)
        return [*self.before.get(stratum, []), *([now] if self._since else [])]

    def epsilon_now(self) -> float:
        """An upper bound that is quick to compute, the largest over strata.

        By Rényi divergences; never above what the noise was planned for, since epsilon grows with the steps.
        """
        spent = max(rdp_epsilon(self.history(name), self.delta) for name in self.rates)
        if self.planned is None or self._since > self.planned:
            return spent
        return min(spent, self._planned_for())

    def epsilon(self) -> float:
        """The tight accountant's, the largest over strata."""
        if self._known is None or self._known[0] != self.steps:
            spent = max(epsilon(self.history(name), self.delta).value for name in self.rates)
            self._known = (self.steps, spent)
        return self._known[1]

    def _planned_for(self) -> float:
        """Epsilon at the planned end."""
        if self.settings.target_epsilon is not None:
            return self.settings.target_epsilon
        return max(self.settings.budgets.values()) if self.settings.budgets else float("inf")

    def exhausted(self) -> bool:
        """Whether a further step would exceed what the noise, or the rates, were chosen for."""
        return self.settings.noise_multiplier is None and self.planned is not None and self.complete

    @property
    def complete(self) -> bool:
        """Whether all planned steps were taken; always, where there is no planned end."""
        return self.planned is None or self._since >= self.planned

    # -- the record ----------------------------------------------------------------------------------------

    @property
    def ledger_path(self) -> Path:
        """The file that the statement is derived from."""
        return self.folder / f"{self.run}.jsonl"

    def write(self, kind: str, **facts: Any) -> None:
        """An entry of the ledger, on the process that writes."""
        if self.ledger is not None:
            self.ledger.append(kind, **facts)

    def note(self, finding: Finding) -> None:
        """A finding that does not break the guarantee, and that the statement reports."""
        if finding.id == "mitigation/record":
            name = finding.seen.partition("(")[0]
            self.write(
                "mitigation",
                name=name,
                depends_on="record",
                seen=finding.seen,
                why=finding.why,
                at_step=self.steps,
            )
            return
        kind = _KINDS.get(finding.id, "note")
        self.write(kind, id=finding.id, seen=finding.seen, why=finding.why)

    def end(self, *, step: int, why: str, weights: str = "") -> None:
        """Training is over; with a hash of the weights, so that a model can be told to be of this run."""
        self.write("ended", at_step=step, why=why, **({"weights": weights} if weights else {}))

    def statement(self) -> Statement:
        """Derived from the file, not from memory."""
        from memguard.privacy.statement import Statement

        ledger = self.ledger if self.ledger is not None else Ledger.read(self.folder, self.run)
        return Statement.from_ledger(
            ledger, others=Ledger.others(self.folder, self.plan.fingerprint, but=self.run)
        )

    def write_statement(self) -> Statement:
        """As text and JSON beside the ledger."""
        statement = self.statement()
        for suffix, text in (("txt", statement.text()), ("json", statement.to_json())):
            path = self.folder / f"{self.run}-statement.{suffix}"
            write_whole(path, f"{text}\n".encode())
        return statement

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint: where the ledger is, and how many steps it must hold at least."""
        mark = self._mark if self.ledger is None else self.ledger.mark()
        return {
            "version": 1, "run": self.run, "folder": str(self.folder), "steps": self.steps, "parts": self.plan.parts,
            **mark,
        }  # fmt: skip

    def close(self) -> None:
        """Let go of the ledger's file; the statement can still be read."""
        if self.ledger is not None:
            self._mark = self.ledger.mark()
            self.ledger.close()
            self.ledger = None


def noise_for(
    settings: RunSettings, plan: Plan, delta: float, planned: int | None, history: Sequence[Phase]
) -> float:
    """The noise multiplier of a run with one budget for all, from now on.

    Args:
        settings: With ``target_epsilon`` or ``noise_multiplier``.
        plan: With the sample rate.
        delta: Of the promise.
        planned: Steps to come.
        history: Steps taken, with their noise.

    Raises:
        PrivacyError: If the number of steps is not known, or the budget is spent.
    """
    if settings.noise_multiplier is not None:
        return settings.noise_multiplier
    assert settings.target_epsilon is not None
    if planned is None:
        raise PrivacyError(
            "target_epsilon= in a training without a planned end",
            "the noise of a step follows from how many steps there will be",
            "pass Trainer(max_epochs=) or max_steps=, or DPSGD(noise_multiplier=)",
        )
    if history and planned:
        last = history[-1]
        # A run cut off after a checkpoint goes on as if nothing had happened.
        going_on = [*history[:-1], Phase(last.noise_multiplier, last.sample_rate, last.steps + planned)]
        same_rate = last.sample_rate == plan.sample_rate
        if same_rate and epsilon(going_on, delta).value <= settings.target_epsilon:
            return last.noise_multiplier
    try:
        return noise_multiplier_for(settings.target_epsilon, delta, plan.sample_rate, planned, spent=history)
    except PrivacyError as problem:
        if not history:
            raise
        raise PrivacyError(
            f"{sum(phase.steps for phase in history)} steps have spent epsilon {epsilon(history, delta).value:.4g} of "
            f"target_epsilon={settings.target_epsilon:g}, and {planned} are to come ({problem.seen})",
            "no noise takes back what was spent; steps that were repeated after a rollback count again",
            "raise target_epsilon=, train for fewer steps, or stop here",
        ) from problem


def delta_for(settings: RunSettings, plan: Plan) -> float:
    """The number behind ``delta="1/n"``."""
    return resolve_delta(settings.delta, plan.n_owners)


def rates_for(
    settings: RunSettings, plan: Plan, planned: int | None, delta: float
) -> tuple[dict[str, float], float]:
    """Sample rate of each stratum, and the noise multiplier where individual budgets fix it (NaN otherwise)."""
    if settings.budgets is None:
        return {EVERYBODY: plan.sample_rate}, float("nan")
    if planned is None:
        raise PrivacyError(
            "budgets= in a training without a planned end",
            "the rates follow from how many steps there will be",
            "pass Trainer(max_epochs=) or max_steps=",
        )
    from memguard.privacy.budgets import idp_sample_rates

    counts = plan.counts()
    unknown = sorted(set(counts) - set(settings.budgets))
    if unknown:
        raise PrivacyError(
            f"strata without a budget: {', '.join(unknown)}",
            "nothing would be promised to them",
            "add them to budgets=",
        )
    found = idp_sample_rates(
        {name: settings.budgets[name] for name in counts}, counts,
        sample_rate=plan.sample_rate, steps=planned, delta=delta,
    )  # fmt: skip
    return dict(found.rates), found.noise_multiplier
