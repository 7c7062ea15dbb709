"""Whether a ledger is the one that a run may go on with, and what other runs have spent on the same patients."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memguard.errors import PrivacyError
from memguard.privacy.tally import reused

if TYPE_CHECKING:
    from memguard.privacy.accounting import Phase

__all__ = ["FORMAT", "OtherRun", "check_claim", "check_same", "check_seeds", "existing", "not_of"]

FORMAT = 1
# What a resumed run must share with the run that it resumes: the promise would otherwise be made to other people.
_FIXED = (
    "unit", "adjacency", "n_owners", "n_records", "most_records", "max_records", "average", "strata",
    "strata_fingerprint",
)  # fmt: skip
_NAMES = {
    "fingerprint": "fingerprint of the data set",
    "n_owners": "number of patients or records (n_owners)",
}


@dataclass(frozen=True, kw_only=True)
class OtherRun:
    """Another training on the same data set, from its own ledger.

    Attributes:
        run: Its id.
        unit: ``"patient"`` or ``"record"``.
        n_steps: Steps that it took.
        history: Its steps by noise and rate, at the highest rate of each phase.
        seeds: Fingerprints of its seeds.
        facts: With which it was created.
        problem: Why its ledger cannot be relied on; empty if it can.
    """

    run: str
    unit: str
    n_steps: int
    history: tuple[Phase, ...]
    seeds: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""


def existing(folder: str | Path, run: str) -> Path:
    """The file of a run.

    Raises:
        PrivacyError: If it is not there.
    """
    path = Path(folder) / f"{run}.jsonl"
    if not path.is_file():
        raise PrivacyError(
            f"no ledger {path}",
            "what the run has spent so far is not known, and its epsilon would begin at zero again",
            "put the file there, or pass the folder that holds it as folder=; without it, begin anew without the "
            "checkpoint",
        )
    return path


def not_of(created: Mapping[str, Any], run: str) -> str:
    """What is wrong with the first entry of the ledger of a run; empty if nothing is."""
    if not created:
        return "it does not say which run it is of (its first line is missing)"
    if created.get("format") != FORMAT:
        return f"it has the format {created.get('format')}, and this version of memguard reads {FORMAT}"
    if created.get("run") != run:
        return f"it is the ledger of the run {created.get('run')}"
    return ""


def check_claim(name: str, held: int, steps: int, mark: Mapping[str, Any], hashed: str) -> None:
    """Refuse a ledger that holds less than a checkpoint knows of.

    Args:
        name: Of the file.
        held: Steps in it.
        steps: That the checkpoint knows of.
        mark: What the ledger gave when the checkpoint was written; without a hash only the steps are compared.
        hashed: Hash of the line that the mark names.

    Raises:
        PrivacyError: With both numbers.
    """
    steps = max(steps, int(mark.get("steps", 0)))
    if held < steps:
        raise PrivacyError(
            f"the ledger {name} holds {held} steps, the checkpoint knows of {steps}",
            "steps that were taken would not be counted, and epsilon would come out too small",
            "put back the file as it was when the checkpoint was written, or begin anew without the checkpoint",
        )
    if mark.get("chain") and hashed != mark["chain"]:
        raise PrivacyError(
            f"line {mark['line'] + 1} of the ledger {name} is not the one that the checkpoint knows",
            "this is a copy that went another way, and the steps of the checkpoint's own way are not in it",
            "put back the file that the checkpoint's run wrote, or begin anew without the checkpoint",
        )


def check_same(then: Mapping[str, Any], fingerprint: str | None, facts: Mapping[str, Any]) -> None:
    """Refuse to go on with other patients or another unit.

    Args:
        then: Facts with which the run was created.
        fingerprint: Of the data set now; ``None`` if not known.
        facts: Now; those that may change are not looked at.

    Raises:
        PrivacyError: With everything that differs, then and now.
    """
    now = {name: facts[name] for name in _FIXED if name in facts}
    if fingerprint is not None:
        now["fingerprint"] = fingerprint
    differ = [
        f"{_NAMES.get(name, name)} {_short(then.get(name))} then, {_short(value)} now"
        for name, value in now.items()
        if then.get(name) != _as_read(value)
    ]
    if differ:
        raise PrivacyError(
            f"the run {then.get('run')} was begun with other data or settings: {'; '.join(differ)}",
            "its steps would be promised to people, or in a unit, that they do not fit",
            "resume with the data set and the settings of the run, or begin a new run without the checkpoint",
        )


def check_seeds(used: Sequence[str], seeds: Any) -> None:
    """Refuse a start without new seeds.

    Args:
        used: Fingerprints of all earlier starts.
        seeds: Use -> fingerprint.

    Raises:
        PrivacyError: If none are given, or one was used before.
    """
    if not isinstance(seeds, Mapping) or not seeds or not all(isinstance(one, str) for one in seeds.values()):
        raise PrivacyError(
            f"a start with seeds={seeds!r}",
            "it could not be told whether its noise was used before",
            'pass seeds={"noise": fingerprint, "sampling": fingerprint}',
        )
    whose = dict.fromkeys(used, "by an earlier start of this run")
    for use, seed in seeds.items():
        if seed in whose:
            raise reused(seed, whose[seed])
        whose[seed] = f"as {use} of this start"


def _as_read(value: Any) -> Any:
    """A fact as it comes back from a file."""
    return json.loads(json.dumps(value, default=lambda one: one.item()))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
