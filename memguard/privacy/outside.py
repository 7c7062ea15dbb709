"""What a ledger says against a guarantee: why there is none, what lies outside of it, and what it rests on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from memguard.errors import PrivacyError
from memguard.privacy.chain import Entry
from memguard.privacy.ledger import Ledger, OtherRun
from memguard.privacy.tally import KINDS
from memguard.privacy.wording import bound

__all__ = ["assumptions", "broken_at", "no_guarantee", "noted", "outside"]

_NAMES_SHOWN = 6


def no_guarantee(ledger: Ledger, others: Sequence[OtherRun] = ()) -> list[str]:
    """Why no epsilon can be given; empty where one can.

    Args:
        ledger: Of the run.
        others: Other runs on the same patients, whose noise must have been other noise.

    Example:
        >>> import tempfile
        >>> ledger = Ledger.create(tempfile.mkdtemp(), fingerprint="f", facts={"unit": "patient", "n_owners": 9})
        >>> no_guarantee(ledger)
        ['no private step was taken']
        >>> ledger.close()
    """
    tally, found = ledger.tally, []
    if problem := broken_at(ledger):
        found.append(problem)
    try:
        ledger.seeds(others)
    except PrivacyError as problem:
        found.append(f"{problem.seen}: its noise can be subtracted")
    if not tally.n_steps:
        found.append("no private step was taken")
    taken = tally.taken()
    if any(phase["noise_multiplier"] <= 0 for phase in taken):
        bare = sum(
            n for phase, n in zip(tally.phases, tally.steps, strict=True) if phase["noise_multiplier"] <= 0
        )
        found.append(f"{bare} of {tally.n_steps} steps were taken without noise (noise multiplier 0)")
    other = sorted({str(phase["sampling"]) for phase in taken if phase.get("sampling") != "poisson"})
    if other:
        found.append(f"the sampling was {', '.join(other)}, and epsilon is computed for Poisson sampling")
    if tally.failed:
        found.append(f"steps were taken although a check had failed: {', '.join(tally.failed)}")
    weighed = [one for one in _by_kind(ledger).get("mitigation", []) if one.get("depends_on") != "record"]
    if weighed:
        names = _names(weighed, "name") or "a mitigation"
        found.append(
            f"records were weighed by the data of others ({names}), so that a patient acts on more than his own "
            "contribution"
        )
    return found


def broken_at(ledger: Ledger) -> str:
    """Where the chain of a ledger does not hold; empty if it does."""
    try:
        ledger.verify()
    except PrivacyError as problem:
        return problem.seen
    return ""


def outside(ledger: Ledger, others: Sequence[OtherRun] = (), together: float | None = None) -> list[str]:
    """What the ledger has seen that epsilon does not cover, in words.

    Args:
        ledger: Of the run.
        others: Other runs on the same patients.
        together: Epsilon of this run and of those others that can be added to it.
    """
    kinds = _by_kind(ledger)
    said: list[str] = []
    for kind, words in _WORDS.items():
        own = [entry for entry in kinds.get(kind, []) if "seen" in entry]
        said += dict.fromkeys(map(_told, own))
        rest = [entry for entry in kinds.get(kind, []) if "seen" not in entry]
        if rest:
            said.append(words(rest))
    said += dict.fromkeys(_told(entry) for entry in kinds.get("note", []) if "seen" in entry)
    unknown = {kind: len(entries) for kind, entries in kinds.items() if kind not in KINDS}
    said += [
        f'{n} entries of the kind "{kind}", which this version of memguard does not know.'
        for kind, n in unknown.items()
    ]
    return said + _other_runs(ledger, others, together)


def noted(ledger: Ledger) -> list[str]:
    """What else stands in the ledger and changes nothing.

    Args:
        ledger: Of the run.
    """
    kinds = _by_kind(ledger)
    texts = [f"{str(entry['text']).rstrip('.')}." for entry in kinds.get("note", []) if "text" in entry]
    texts += [
        f"{_told(entry)[:-1]}{_since(entry)}."
        for entry in kinds.get("mitigation", [])
        if entry.get("depends_on") == "record" and "seen" in entry
    ]
    refused = kinds.get("refused", [])
    texts += [f"Refused: {_told(entry)}" for entry in refused if "seen" in entry]
    what = _names([entry for entry in refused if "seen" not in entry], "what")
    return list(dict.fromkeys([*texts, *([f"Refused: {what}."] if what else [])]))


def assumptions(ledger: Ledger) -> list[str]:
    """What is taken for granted, in words.

    Args:
        ledger: Of the run.
    """
    facts, people = ledger.facts, "patients" if ledger.facts.get("unit") == "patient" else "records"
    weights = facts.get("initial_weights")
    said = [
        f"The initial weights are taken as public{f' ({weights})' if weights else ''}: what they were trained on "
        "earlier is not protected.",
        f"The number of {people}, the sample rate and all settings are taken as public.",
        "Noise and samples come from a pseudo-random generator seeded by the operating system at every start, not from "
        "a cryptographic one; attacks on floating-point rounding of the noise are not excluded.",
    ]
    if len(ledger.strata) > 1:
        origin = (
            "The strata were derived from the data: the stratum of a patient is itself not protected, and adding a "
            "patient may have moved others."
            if facts.get("strata_from_data")
            else "The stratum of each patient is taken as public."
        )
        said.append(origin)
    return said


# -- words for entries ---------------------------------------------------------------------------------------


def _by_kind(ledger: Ledger) -> dict[str, list[Entry]]:
    kinds: dict[str, list[Entry]] = {}
    for entry in ledger.tally.events:
        kinds.setdefault(entry["kind"], []).append(entry)
    return kinds


def _told(entry: Entry) -> str:
    """An entry that brings its own words."""
    text = str(entry["seen"]).strip().rstrip(".")
    why = str(entry.get("why") or "").strip().rstrip(".")
    text = f"{text}: {why}" if why else text
    return f"{text[:1].upper()}{text[1:]}."


def _since(entry: Entry) -> str:
    """From which step on, where it is not the first."""
    step = int(entry.get("at_step", 0))
    return f" (in a start at step {step:,})" if step else ""


def _names(entries: Iterable[Entry], *keys: str) -> str:
    """What entries name under any of some keys, each once; empty if they name nothing."""
    found: dict[str, None] = {}
    for entry in entries:
        for key in keys:
            value = entry.get(key, [])
            found |= dict.fromkeys(map(str, value if isinstance(value, list) else [value]))
    names = list(found)
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _whose(entries: Sequence[Entry]) -> str:
    """On whom a monitored number was measured."""
    measured = {str(entry.get("patients", "unknown")) for entry in entries}
    if measured == {"held-out"}:
        return "its held-out patients are not protected"
    if "training" in measured:
        return "it was computed from training patients without noise"
    return "the patients behind it are not protected"


def _early_stop(entries: list[Entry]) -> str:
    on = _names(entries, "monitor") or "a metric"
    return f"Early stopping on {on}: the end of training depends on it, and {_whose(entries)}."


def _monitored(entries: list[Entry]) -> str:
    on = _names(entries, "monitor") or "a metric"
    return f"Checkpoints chosen by {on}: the weights that were kept depend on it, and {_whose(entries)}."


def _probe(entries: list[Entry]) -> str:
    what = _names(entries, "what") or "before training"
    return (
        f"Checks read gradients without noise ({what}); whether training went on depends on what they found."
    )


def _feedback(entries: list[Entry]) -> str:
    what = _names(entries, "what") or "flags"
    return (
        f"Findings about patients changed the training ({what}): the weights depend on them, and epsilon does not "
        "count that."
    )


def _tuner(entries: list[Entry]) -> str:
    what = _names(entries, "what", "name") or "tuning"
    steps = sum(int(entry.get("steps", 0)) for entry in entries)
    return (
        f"A tuner ran on these patients ({what}{f', {steps} steps without noise' if steps else ''}): its settings tell "
        "something of them."
    )


def _private_log(entries: list[Entry]) -> str:
    keys = _names(entries, "keys") or "curves"
    return f"Logged without noise: {keys}. Whoever reads the logs learns more than epsilon allows for."


_WORDS = {
    "feedback": _feedback,
    "tuner": _tuner,
    "early_stop": _early_stop,
    "monitored_checkpoint": _monitored,
    "private_log": _private_log,
    "probe": _probe,
}


def _other_runs(ledger: Ledger, others: Sequence[OtherRun], together: float | None) -> list[str]:
    unit, said = ledger.facts.get("unit"), []
    same = [other for other in others if not other.problem and other.unit == unit]
    if same:
        steps = sum(other.n_steps for other in same)
        runs = "another run" if len(same) == 1 else f"{len(same)} other runs"
        total = (
            f"all together promise epsilon = {bound(together)}"
            if together is not None and math.isfinite(together)
            else "no epsilon holds for all together"
        )
        said.append(
            f"{runs.capitalize()} trained on the same data ({steps} steps; ledgers beside this one): {total}."
        )
    for other in others:
        if other.problem:
            said.append(f"What the run {other.run} spent is not known: {other.problem}.")
        elif other.unit != unit:
            said.append(
                f"The run {other.run} trained on the same data with the {other.unit} as the unit; its {other.n_steps} "
                "steps are not in any number here."
            )
    return said
