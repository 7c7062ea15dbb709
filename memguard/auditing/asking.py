"""The probes of an audit, one after another: what cannot be asked is said, and a fault costs one probe."""

from __future__ import annotations

import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from memguard.errors import MemguardError, MemguardWarning
from memguard.probes.asked import Asked, Budget, Probe
from memguard.probes.result import NotTested, ProbeResult
from memguard.probes.subject import Subject

__all__ = ["ask_all", "lacking"]

_WHOLE = "the whole test"
_QUESTIONS = {
    "membership": "Can somebody tell from the model's answers that a patient was in the training data?",
    "attribute": "Does the model know sensitive codes of its training patients better than it could without them?",
    "perturbation": "Does a hit fall away when the person's own facts are changed?",
    "trajectory": "Given the beginning of a patient's record, does the model write how it went on?",
    "embedding": "Can a sensitive attribute be read from embeddings better for training patients?",
    "copies": "Can near-duplicates and patients with several like records be extracted?",
    "canary": "How much did the model keep of made-up patients that were planted in its training data?",
}


def ask_all(
    probes: Sequence[Probe],
    subject: Subject,
    asked: Asked,
    budget: Budget,
    budgets: Mapping[str, Budget] | None = None,
    *,
    told: Callable[[str], Any] = lambda text: None,
) -> list[ProbeResult]:
    """Ask every probe.

    Args:
        probes: In the order of the report.
        subject: Whom it is about.
        asked: The model and its references.
        budget: Of each.
        budgets: Of those named, in its place.
        told: Called with a line before each probe.

    Returns:
        One result a probe. One that could not be asked has only ``not_tested``.
    """
    found = []
    for probe in probes:
        told(f"{probe.name} ...")
        start = time.perf_counter()
        own = (budgets or {}).get(probe.name, budget)
        found.append(replace(_ask(probe, subject, asked, own), seconds=time.perf_counter() - start))
    return found


def _ask(probe: Probe, subject: Subject, asked: Asked, budget: Budget) -> ProbeResult:
    gap = lacking(probe, subject, asked)
    question = getattr(probe, "question", _QUESTIONS.get(probe.name, f"What does {probe.name} find?"))
    if gap is not None:
        return ProbeResult(probe=probe.name, question=question, not_tested=(gap,))
    try:
        return probe.run(subject, asked, budget)
    except MemguardError as error:
        gap = NotTested(what=_WHOLE, why=f"{error.seen}: {error.why}", fix=error.fix)
    except Exception as error:  # a fault in one probe must not cost the others
        warnings.warn(
            MemguardWarning(
                f"the probe {probe.name} failed:\n{traceback.format_exc()}",
                "the report says that it was not tested",
                "report this",
            ),
            stacklevel=3,
        )
        gap = NotTested(what=_WHOLE, why=f"a fault ({type(error).__name__}: {error})", fix="report this")
    return ProbeResult(probe=probe.name, question=question, not_tested=(gap,))


def lacking(probe: Probe, subject: Subject, asked: Asked) -> NotTested | None:
    """Which abilities that a probe needs the model has not; ``None`` where it has all."""
    needed = [one for one in probe.needs if asked.target is None or one not in asked.target.abilities]
    if not needed:
        return None
    words = {
        "log_probs": "probabilities of codes",
        "generate": "continuations",
        "embed": "embeddings",
    }
    named = " and ".join(words.get(one, one) for one in needed)
    if subject.content.kind != "codes":
        why, fix = f"records are feature vectors, and a probe of {named} needs code sequences", ""
    elif asked.target is None:
        why, fix = f"the model could not be asked for {named}", "pass adapter= (docs/adapters.md)"
    else:
        why, fix = f"the model cannot be asked for {named}", "pass an adapter= that can"
    return NotTested(what=_WHOLE, why=why, fix=fix)
