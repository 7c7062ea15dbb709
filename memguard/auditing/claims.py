"""The promise that an audit compares its bounds with, from the ledger of the training and never from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from memguard.errors import DataError, MemguardError, PrivacyError
from memguard.privacy.ledger import Ledger
from memguard.privacy.plan import fingerprint_of
from memguard.privacy.statement import Statement
from memguard.records.patients import PatientMap
from memguard.report.audit import EpsilonClaim, NoClaim

__all__ = ["Promise", "promise_of"]

Promise = tuple[EpsilonClaim | None, NoClaim | None]

_HOW = (
    "pass claim= with the DPSGD callback, the path of its ledger (memguard-dp/<run>.jsonl) or of its statement, or an "
    "EpsilonClaim"
)
_ENDING = "-statement"


def promise_of(
    given: Any, *, members: PatientMap | None = None, weights: str = "", trainers: tuple[Any, ...] = ()
) -> Promise:
    """The claim, or why there is none.

    Args:
        given: ``"auto"``: of the `DPSGD` callback of a Trainer, if the audited weights are those with which its
            training ended. Such a callback; the path of a ledger, of a statement beside it, or of a folder with one
            ledger; a `Statement`; an `EpsilonClaim`, as it is. ``None`` for no claim.
        members: Of the training data, canaries included: the ledger must be about them.
        weights: Hash of the audited weights (`memguard.capture.weights.weights_hash`).
        trainers: Where ``"auto"`` looks.

    Returns:
        The claim, or the reasons why there is none; neither where nobody promised anything.

    Raises:
        MemguardError: If what was given is none of these, or cannot be read.

    Guarantees:
        Epsilon, delta and unit are those of the ledger, all starts and repeated steps counted. That the audited weights
        come from its run is shown where they are those with which it ended, and otherwise taken from whoever named
        the ledger; the source of the claim says which.

    Example:
        >>> promise_of(EpsilonClaim(epsilon=8.0, delta=1e-3, unit="patient"))[0].epsilon, promise_of(None)
        (8.0, (None, None))
    """
    if given is None:
        return None, None
    if isinstance(given, EpsilonClaim):
        return given, None
    if isinstance(given, Statement):
        return _from_statement(given, members)
    if isinstance(given, str) and given == "auto":
        return _found(trainers, members, weights)
    if _states(given):
        return _from_callback(given, members, weights)
    if isinstance(given, str | Path):
        return _from_path(Path(given), members, weights)
    raise DataError(
        f"claim= of type {type(given).__name__}", "it promises nothing that can be compared", _HOW
    )


# -- where it is -----------------------------------------------------------------------------------------------


def _states(one: Any) -> bool:
    """Whether it is a callback that keeps a ledger (`memguard.DPSGD`)."""
    return hasattr(one, "ledger_path") and callable(getattr(one, "statement", None))


def _found(trainers: tuple[Any, ...], members: PatientMap | None, weights: str) -> Promise:
    callbacks = [one for trainer in trainers for one in getattr(trainer, "callbacks", None) or ()]
    private = next((one for one in callbacks if _states(one)), None)
    if private is None:
        return None, None
    if private.ledger_path is None:
        why = "a DPSGD callback is in the Trainer, and no training has begun with it"
        return None, NoClaim(reasons=(f"{why}; if the model was trained with it before, {_HOW}",))
    try:
        return _from_callback(private, members, weights, sure=True)
    except MemguardError as error:
        return None, NoClaim(reasons=(str(error),), source=f"the ledger of run {private.ledger_path.stem}")


def _from_callback(one: Any, members: PatientMap | None, weights: str, *, sure: bool = False) -> Promise:
    if one.ledger_path is None:
        raise PrivacyError(
            "a DPSGD callback with which no training has begun", "it promises nothing yet", _HOW
        )
    return _from_ledger(Path(one.ledger_path), members, weights, sure=sure)


def _from_path(path: Path, members: PatientMap | None, weights: str) -> Promise:
    if path.is_dir():
        found = sorted(path.glob("*.jsonl"))
        if len(found) != 1:
            names = ", ".join(one.name for one in found) or "no ledger"
            raise DataError(
                f"{path} holds {names}",
                "it is not known which training made the audited model",
                "pass claim= with the path of its ledger",
            )
        return _from_ledger(found[0], members, weights)
    if path.suffix == ".jsonl":
        return _from_ledger(path, members, weights)
    if path.suffix not in (".json", ".txt"):
        raise DataError(
            f"claim={str(path)!r}, which is no ledger and no statement",
            "a checkpoint can be rolled back, and what its steps have shown cannot",
            _HOW,
        )
    ledger = path.with_name(f"{path.stem.removesuffix(_ENDING)}.jsonl")
    if ledger.is_file():
        return _from_ledger(ledger, members, weights)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error})", "what was promised is not known", _HOW) from error
    return _from_statement(Statement.from_json(text), members)


# -- what it says ----------------------------------------------------------------------------------------------


def _from_ledger(path: Path, members: PatientMap | None, weights: str, *, sure: bool = False) -> Promise:
    if not path.is_file():
        raise DataError(
            f"no ledger {path.name}", "what was spent is not known, and nothing is promised", _HOW
        )
    ledger = Ledger.read(path.parent, path.stem)
    statement = Statement.from_ledger(ledger)
    source = f"the ledger of run {ledger.run}, {statement.steps:,} steps"
    reasons = list(statement.no_guarantee)
    if members is not None and ledger.fingerprint and ledger.fingerprint != fingerprint_of(members):
        owners = f"{statement.n_owners} {statement.unit}s there" if statement.n_owners else "others there"
        n = members.n_patients if statement.unit == "patient" else len(members)
        reasons.append(
            f"the ledger is about other training data than those that are audited ({owners}, {n} here, another "
            "fingerprint): audit with the data of the training, its canaries included, and the record_to_patient of "
            "DPSGD"
        )
    ends = [str(entry["weights"]) for entry in ledger.tally.events if entry.get("weights")]
    if weights and weights in ends:
        source += "; the audited weights are those with which it ended"
    elif sure and not reasons:
        reasons.append(
            "the Trainer of the model ran a private training, and the audited weights are not those with which it "
            f"ended: if they come from it, as an earlier checkpoint does, pass claim= with the path of {path.name}"
        )
    else:
        source += "; nobody checked that the audited weights come from it, and they are not those with which it ended"
    return _judged(statement, reasons, source)


def _from_statement(statement: Statement, members: PatientMap | None) -> Promise:
    source = (
        f"a statement of run {statement.run}; its ledger was not there, so that nobody checked the statement, nor "
        "that the audited weights come from this run"
    )
    reasons = list(statement.no_guarantee)
    n = None if members is None else members.n_patients if statement.unit == "patient" else len(members)
    if n is not None and statement.n_owners not in (None, n):
        reasons.append(
            f"the statement is about {statement.n_owners} {statement.unit}s, and {n} are in the training data that are "
            "audited"
        )
    return _judged(statement, reasons, source)


def _judged(statement: Statement, reasons: list[str], source: str) -> Promise:
    if not reasons and statement.delta is not None:
        claim = EpsilonClaim(
            epsilon=statement.epsilon,
            delta=statement.delta,
            unit=statement.unit,
            statement=statement.text(),
            source=source,
        )
        return claim, None
    return None, NoClaim(
        reasons=tuple(reasons) or ("the statement names no delta",), statement=statement.text(), source=source
    )
