"""What a private training promises to whom, and what it does not: derived from its ledger and from nothing else."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from memguard.errors import DataError, PrivacyError
from memguard.privacy.accounting import Epsilon, epsilon, patient_epsilon
from memguard.privacy.ledger import Ledger, OtherRun
from memguard.privacy.outside import assumptions, broken_at, no_guarantee, noted, outside
from memguard.privacy.wording import statement_text

__all__ = ["SCHEMA", "Statement"]

SCHEMA = "memguard.dp-statement/1"
_RECORDS = (2, 5, 10)


@dataclass(frozen=True, kw_only=True)
class Statement:
    """The guarantee of a run, as its ledger has it.

    Attributes:
        run: Id of the run.
        as_of: Time of the last entry that has one, UTC.
        versions: Library -> version, when the run was created.
        unit: ``"patient"`` or ``"record"``: whose presence is protected.
        adjacency: Which two data sets the promise compares.
        engine: How contributions were computed; empty if not known.
        average: ``"mean"`` or ``"sum"``: what is clipped of a patient's records.
        n_owners: Patients (or records) in the data set, taken as public.
        most_records: Largest number of records that one patient has; ``None`` if not known.
        max_records: At most so many of them in a step; ``None``: all.
        sampling: As it was done.
        max_grad_norms: C, one a phase, equal neighbours once. So are the next three.
        noise_multipliers: Standard deviation of the noise over C.
        sample_rates: Stratum -> probabilities.
        expected_patients: What the noisy sum was divided by.
        steps: Optimizer steps written down, repeated ones and possible ones included.
        planned_steps: Steps planned for the whole lineage; ``None`` if not known.
        starts: How often training started or was resumed.
        whole: Whether the ledger could be read to its end; if not, counts are those before the break.
        ended: Whether the last start came to its end.
        cut_off: Entries that a kill left unfinished.
        target_epsilon: That the noise was chosen for; ``None`` if the noise was given.
        delta: Of the promise; ``None`` before the first phase.
        epsilons: Stratum -> epsilon. Empty where there is no guarantee.
        record_epsilons: With the record as the unit: records of a patient -> epsilon of that patient.
        together: Epsilon of this run and the other runs that can be added, if there are any.
        no_guarantee: Why there is none; empty where there is one.
        outside: What the ledger has seen that epsilon does not cover.
        fed_back: Whether what was found about patients changed the training; epsilon does not count that.
        assumes: What is taken for granted.
        noted: What else stands in the ledger.

    Guarantees:
        Epsilon bounds what anybody learns from the weights about whether one patient (or record) was in the data,
        given Poisson sampling, clipping and noise as written down. The ledger is what the training wrote: it does
        not prove that the code which wrote it did so.

    Example:
        >>> import tempfile
        >>> with Ledger.create(tempfile.mkdtemp(), fingerprint="f", facts={"unit": "patient", "n_owners": 9}) as ledger:
        ...     statement = Statement.from_ledger(ledger)
        >>> print(statement.text().splitlines()[0])
        NO GUARANTEE of differential privacy: no private step was taken.
        >>> Statement.from_json(statement.to_json()) == statement
        True
    """

    run: str
    as_of: str
    versions: dict[str, str]
    unit: str
    adjacency: str
    engine: str
    average: str
    n_owners: int | None
    most_records: int | None
    max_records: int | None
    sampling: tuple[str, ...]
    max_grad_norms: tuple[float, ...]
    noise_multipliers: tuple[float, ...]
    sample_rates: dict[str, tuple[float, ...]]
    expected_patients: tuple[float, ...]
    steps: int
    planned_steps: int | None
    starts: int
    whole: bool
    ended: bool
    cut_off: int
    target_epsilon: float | None
    delta: float | None
    epsilons: dict[str, Epsilon]
    record_epsilons: dict[int, Epsilon]
    together: Epsilon | None
    no_guarantee: tuple[str, ...]
    outside: tuple[str, ...]
    fed_back: bool
    assumes: tuple[str, ...]
    noted: tuple[str, ...]

    @classmethod
    def from_ledger(cls, ledger: Ledger, others: Sequence[OtherRun] | None = None) -> Statement:
        """State what a ledger holds. Takes seconds: accountants run.

        Args:
            ledger: Of the run.
            others: Other runs on the same patients; by default those whose ledgers lie in the same folder.
        """
        if others is None:
            others = Ledger.others(ledger.folder, ledger.fingerprint, but=ledger.run)
        tally, facts = ledger.tally, ledger.facts
        taken = tally.taken() or tally.phases
        last = tally.phases[-1] if tally.phases else {}
        reasons = no_guarantee(ledger, others)
        spent, by_records, together = _spent(ledger, others, reasons)
        events = tally.events
        starts = [entry["kind"] for entry in events if entry["kind"] in ("started", "resumed", "ended")]
        planned = last.get("planned_steps")
        rates = {
            name: _each([phase["rates"][name] for phase in taken if name in phase["rates"]])
            for name in tally.strata
        }
        return cls(
            run=ledger.run,
            as_of=max((str(entry["time"]) for entry in events if "time" in entry), default=""),
            versions=dict(facts.get("versions", {})),
            unit=str(facts.get("unit", "")),
            adjacency=str(facts.get("adjacency", "")),
            engine=str(facts.get("engine", "")),
            average=str(facts.get("average", "mean")),
            n_owners=facts.get("n_owners"),
            most_records=facts.get("most_records"),
            max_records=facts.get("max_records"),
            sampling=_each([str(phase.get("sampling")) for phase in taken]),
            max_grad_norms=_each([float(phase["max_grad_norm"]) for phase in taken]),
            noise_multipliers=_each([float(phase["noise_multiplier"]) for phase in taken]),
            sample_rates=rates,
            expected_patients=_each([float(phase["expected_patients"]) for phase in taken]),
            steps=tally.n_steps,
            planned_steps=None if planned is None else sum(tally.steps[:-1]) + int(planned),
            starts=sum(kind != "ended" for kind in starts),
            whole=not broken_at(ledger),
            ended=starts[-1:] == ["ended"],
            cut_off=sum(int(entry["lines"]) for entry in events if entry["kind"] == "torn"),
            target_epsilon=last.get("target_epsilon"),
            delta=last.get("delta"),
            epsilons=spent,
            record_epsilons=by_records,
            together=together,
            no_guarantee=tuple(reasons),
            outside=tuple(outside(ledger, others, None if together is None else together.value)),
            fed_back=any(entry["kind"] == "feedback" for entry in events),
            assumes=tuple(assumptions(ledger)),
            noted=tuple(noted(ledger)),
        )

    @property
    def epsilon(self) -> float:
        """The largest over strata; infinite where there is no guarantee."""
        if self.no_guarantee:
            return math.inf
        return max(one.value for one in self.epsilons.values())

    def text(self) -> str:
        """As a page of plain text; the first line says whether there is a guarantee."""
        return statement_text(self)

    def to_json(self) -> str:
        """As JSON, with its schema; an infinite epsilon is the word ``"inf"``."""
        return json.dumps({"schema": SCHEMA, **_plain(dataclasses.asdict(self))}, indent=2, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Statement:
        """Read what :meth:`to_json` wrote; keys that this version does not know are left out.

        Raises:
            DataError: If it is something else.
        """
        try:
            body = json.loads(text)
            if not isinstance(body, dict) or body.get("schema") != SCHEMA:
                raise KeyError("schema")
            known = {each.name for each in dataclasses.fields(cls)}
            given = {name: value for name, value in body.items() if name in known}
            for name in _TUPLES:
                given[name] = tuple(given[name])
            given["sample_rates"] = {name: tuple(rates) for name, rates in given["sample_rates"].items()}
            given["epsilons"] = {name: _epsilon(one) for name, one in given["epsilons"].items()}
            given["record_epsilons"] = {int(r): _epsilon(one) for r, one in given["record_epsilons"].items()}
            given["together"] = None if given["together"] is None else _epsilon(given["together"])
            return cls(**given)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"this is no statement of the form {SCHEMA} ({type(error).__name__}: {error})",
                "what it promises cannot be read",
                "pass the text that Statement.to_json gave",
            ) from None


_TUPLES = (
    "sampling", "max_grad_norms", "noise_multipliers", "expected_patients", "no_guarantee", "outside", "assumes",
    "noted",
)  # fmt: skip


def _spent(
    ledger: Ledger, others: Sequence[OtherRun], reasons: list[str]
) -> tuple[dict[str, Epsilon], dict[int, Epsilon], Epsilon | None]:
    """By stratum, by records of a patient, and with the other runs; nothing where there is a reason against it."""
    if reasons:
        return {}, {}, None
    delta = float(ledger.tally.phases[-1]["delta"])
    worst = ledger.history()
    unit, most = ledger.facts.get("unit"), ledger.facts.get("most_records")
    try:
        spent = {name: epsilon(ledger.history(name), delta) for name in ledger.strata}
        several = (
            sorted({r for r in (*_RECORDS, most or 0) if 1 < r <= (most or r)}) if unit == "record" else []
        )
        by_records = {r: patient_epsilon(worst, delta, r) for r in several}
        more = [
            phase for other in others if other.unit == unit and not other.problem for phase in other.history
        ]
        together = epsilon([*worst, *more], delta) if more else None
    except PrivacyError as problem:
        reasons.append(f"epsilon could not be computed: {problem.seen}")
        return {}, {}, None
    if not all(math.isfinite(one.value) for one in spent.values()):
        reasons.append("epsilon is infinite")
        return {}, {}, None
    return spent, by_records, together


def _each(values: list[Any]) -> tuple[Any, ...]:
    """In order, equal neighbours once."""
    return tuple(v for at, v in enumerate(values) if at == 0 or v != values[at - 1])


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _epsilon(body: dict[str, Any]) -> Epsilon:
    known = {each.name for each in dataclasses.fields(Epsilon)}
    given = {name: value for name, value in body.items() if name in known}
    others = {name: float(value) for name, value in given.pop("others").items()}
    return Epsilon(**{**given, "value": float(given["value"]), "others": others})
