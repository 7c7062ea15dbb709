"""Attacks of the field: which were tried by the probes that ran, and which were not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from memguard.findings import Gap
from memguard.report.audit.parts import Section, Threat

__all__ = ["threats_of"]


@dataclass(frozen=True)
class _Known:
    name: str
    access: str
    knowledge: str
    words: tuple[str, ...]
    why_not: str = "no probe of it was run"
    fix: str = "name its probe in probes="


_BY_PROBE = (
    _Known(
        "Membership inference",
        "the loss of whole records, and models that never saw them",
        "the whole record of the patient",
        ("membership",),
    ),
    _Known(
        "Inference of a sensitive attribute",
        "probabilities of the next code, or samples",
        "the first codes of the record, none to fifty of them",
        ("attribute", "sensitive"),
    ),
    _Known(
        "Extraction: records given back word for word",
        "samples of what follows a prompt",
        "nothing, age and sex, or the first codes of the record",
        ("trajectory", "extraction"),
    ),
    _Known(
        "Attributes read from embeddings",
        "the vector after the last code",
        "the record without the attribute",
        ("embedding",),
    ),
    _Known(
        "Leaks that stand or fall with the person's own facts",
        "probabilities of the next code",
        "the record with age, sex or a rare code changed",
        ("perturb",),
    ),
    _Known(
        "Extraction of near-duplicates and of repeated patients",
        "probabilities of the next code",
        "the first codes of the record",
        ("duplicate", "repeat", "copies"),
    ),
    _Known(
        "Planted canaries",
        "the loss of planted records",
        "which records were planted, not whether by the coin",
        ("canar", "one_run", "exposure"),
        why_not="no canary was planted before the training, or none was named",
        fix="train on memguard.PlantedCanaries(datamodule), or pass canaries= with those that were planted",
    ),
)
_NEVER = (
    Gap(
        what="Model inversion: a typical or average record of a group computed from the weights",
        why="no probe here does it, and what it gives need not be of any patient",
    ),
    Gap(
        what="Reconstruction of training records from weights or gradients",
        why="no probe here does it; with gradients, as in federated training, it is a threat of its own",
    ),
    Gap(
        what="Property inference: facts about all training patients together",
        why="the question here is the single patient",
    ),
    Gap(
        what="An attacker who can change the training data, or compare several releases of the model",
        why="one finished model was audited",
        fix="audit each release, and never hand on two whose training patients differ by few",
    ),
)


def threats_of(sections: Iterable[Section]) -> tuple[tuple[Threat, ...], tuple[Gap, ...]]:
    """Attacks tried, and those that were not with the reason.

    A probe stands for an attack where the attack's word is in its name. A probe that could measure nothing
    (no numbers, tables or curves) tried nothing, and its own reasons are given.

    Args:
        sections: Of the report.

    Example:
        >>> tried, gaps = threats_of([Section(probe="membership", question="?")])
        >>> len(tried), gaps[0].what, gaps[0].why
        (0, 'Membership inference', 'the probe membership could measure nothing')
    """
    ran = list(sections)
    tried: list[Threat] = []
    gaps: list[Gap] = []
    for known in _BY_PROBE:
        probes = [one for one in ran if any(word in one.probe.lower() for word in known.words)]
        able = [one.probe for one in probes if one.numbers or one.tables or one.curves]
        if able:
            threat = Threat(
                name=known.name, access=known.access, knowledge=known.knowledge, probes=tuple(able)
            )
            tried.append(threat)
        elif probes:
            named = ", ".join(one.probe for one in probes)
            said = [gap for one in probes for gap in one.not_tested]
            reasons = "; ".join(dict.fromkeys(gap.why for gap in said if gap.why))
            why = f"the probe {named} could measure nothing{f': {reasons}' if reasons else ''}"
            gaps.append(Gap(what=known.name, why=why, fix=next((gap.fix for gap in said if gap.fix), "")))
        else:
            gaps.append(Gap(what=known.name, why=known.why_not, fix=known.fix))
    return tuple(tried), (*gaps, *_NEVER)
