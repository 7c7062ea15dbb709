"""The epsilon that is reported: two independent accountants, and the larger of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from memguard import __version__
from memguard.errors import PrivacyError
from memguard.privacy.accounting.libraries import pld_epsilon, prv_epsilon, version_of
from memguard.privacy.accounting.mixture import mixture_epsilon
from memguard.privacy.accounting.phases import Phase, check_count, check_delta, merged
from memguard.privacy.accounting.rdp import rdp_epsilon

__all__ = ["BEYOND", "Epsilon", "epsilon", "patient_epsilon"]

_PRV, _PLD, _OWN, _RDP = "PRV", "PLD", "PLD (memguard)", "RDP"
_TOLERANCE = (0.02, 0.01)
# By RDP: no promise that is worth the minutes of a finer accountant, whose grids grow with epsilon.
BEYOND = 200.0
_LOOSE = f"above {BEYOND:g} nothing finer is computed"
_CHECKED = 50.0  # for a patient of several records: above, dp-accounting takes its time to find the same


@dataclass(frozen=True)
class Epsilon:
    """An epsilon, how it was computed, and what the other accountants say.

    Attributes:
        value: Epsilon of adding or removing one unit of privacy; infinite without noise.
        delta: Probability that comes with it.
        accountant: ``"PRV"``, ``"PLD"`` (dp-accounting), ``"PLD (memguard)"``, ``"RDP"``, or ``"exact"`` where there
            is nothing to compute (no step, no noise).
        version: Name and version of the library that computed it.
        others: Epsilons of the other accountants, by name. All of them are upper bounds.
        note: What went otherwise than it should: an accountant that could not run, or two that disagree. Empty
            if nothing did.

    Example:
        >>> Epsilon(1.84, 1e-5, "PRV", "opacus 1.6.0", {"RDP": 2.1})
        Epsilon(value=1.84, delta=1e-05, accountant='PRV', version='opacus 1.6.0', others={'RDP': 2.1}, note='')
    """

    value: float
    delta: float
    accountant: str
    version: str
    others: dict[str, float] = field(default_factory=dict)
    note: str = ""


def epsilon(history: Sequence[Phase], delta: float) -> Epsilon:
    """Epsilon of a run for one unit of privacy, as it goes into a statement.

    PRV (Opacus) and PLD (dp-accounting; memguard's own composition where that is not installed) are computed and the
    larger is reported. They should agree within .02 + 1 %; where they do not, the note says so. Where one cannot run,
    for want of memory or time, the other stands beside memguard's composition; where that fails too, RDP is reported,
    which is always valid and usually larger; so it is where RDP exceeds 200. The Gaussian (GDP) approximation is
    never used: it understates epsilon, by half in places.

    Args:
        history: Phases of the run; of several runs on the same patients, all of them.
        delta: In (0, 1); see :func:`resolve_delta`.

    Returns:
        The epsilon with its accountant. For adding or removing one unit of whatever was sampled and clipped: with
        records sampled and clipped one by one it is a record's, and a patient's is :func:`patient_epsilon`.

    Raises:
        PrivacyError: If delta lies outside (0, 1).

    Guarantees:
        Holds for Poisson sampling, for contributions clipped one by one, for noise independent at every step and
        for the released parameters of every step. It says nothing about early stopping, tuning or other use of
        the same data outside the history.

    Example:
        >>> spent = epsilon([Phase(1.0, 0.01, 1000)], 1e-5)
        >>> round(spent.value, 2), spent.accountant, spent.note
        (1.84, 'PRV', '')
    """
    check_delta(delta)
    exact = _exact(history, delta)
    if exact is not None:
        return exact
    found: dict[str, float] = {}
    notes: list[str] = []
    quick = rdp_epsilon(history, delta)
    if quick > BEYOND:
        return _larger(found, [_LOOSE], quick, delta)
    _try(found, notes, _PRV, lambda: prv_epsilon(history, delta))
    _try(found, notes, _PLD, lambda: pld_epsilon(history, delta))
    if len(found) < 2:
        _try(found, notes, _OWN, lambda: mixture_epsilon(history, delta))
        _unless_resolved(found, notes)
    return _larger(found, notes, quick, delta)


def patient_epsilon(history: Sequence[Phase], delta: float, records: int) -> Epsilon:
    """What a run with the record as the unit promises a patient who has several records.

    Each record is drawn and clipped by itself, so a batch may hold several records of one patient, and together
    they move the sum by as many clipping norms. Computed by memguard's composition of the dominating mixture of
    Gaussians, and by that of dp-accounting where it is installed, the records are few and ours gives at most 50; the
    larger is reported. Where RDP exceeds 200 for a single record, neither is computed.

    Args:
        history: Phases of the run, at the level of records.
        delta: In (0, 1); for a patient, at most one over the number of patients.
        records: The largest number of records that a patient of the training data has.

    Returns:
        Epsilon of adding or removing the patient with all records. With one record, that of :func:`epsilon`.

    Raises:
        PrivacyError: If an argument is out of range.

    Guarantees:
        Valid for every patient with at most that many records. Where neither composition is computed, a
        looser bound is reported and noted: all records join whenever one does, accounted by RDP.

    Source:
        Charles et al., arXiv 2407.07737 (sampling by example, promise by user).

    Example:
        >>> run = [Phase(2.0, 0.01, 2000)]
        >>> round(patient_epsilon(run, 1e-5, records=10).value, 1)
        12.8
    """
    records = check_count(records, "records", least=1)
    if records == 1:
        return epsilon(history, delta)
    check_delta(delta)
    exact = _exact(history, delta)
    if exact is not None:
        return exact
    found: dict[str, float] = {}
    notes: list[str] = []
    if rdp_epsilon(history, delta) > BEYOND:
        notes.append(_LOOSE)
    else:
        _try(found, notes, _OWN, lambda: mixture_epsilon(history, delta, records))
        if found.get(_OWN, 0.0) <= _CHECKED:
            _try(found, notes, _PLD, lambda: pld_epsilon(history, delta, records))
    _unless_resolved(found, notes)
    return _larger(found, notes, rdp_epsilon(_joined(history, records), delta), delta)


def _joined(history: Sequence[Phase], records: int) -> list[Phase]:
    """All records at once whenever one is drawn: never less is moved than by the records one by one."""
    phases = []
    for phase in merged(history):
        any_drawn = -math.expm1(records * math.log1p(-phase.sample_rate)) if phase.sample_rate < 1 else 1.0
        phases.append(Phase(phase.noise_multiplier / records, any_drawn, phase.steps))
    return phases


def _exact(history: Sequence[Phase], delta: float) -> Epsilon | None:
    """No step spends nothing; a step without noise spends everything."""
    phases = merged(history)
    version = f"memguard {__version__}"
    if not phases:
        return Epsilon(0.0, delta, "exact", version, note="no step drew anyone")
    if any(phase.noise_multiplier == 0 for phase in phases):
        return Epsilon(math.inf, delta, "exact", version, note="steps without noise promise nothing")
    return None


def _try(found: dict[str, float], notes: list[str], name: str, compute: Callable[[], float | None]) -> None:
    try:
        value = compute()
    except PrivacyError as failure:
        notes.append(f"{name} not computed: {failure.seen}")
    else:
        if value is not None:
            found[name] = value


def _unless_resolved(found: dict[str, float], notes: list[str]) -> None:
    """Our composition refuses a delta that rounding drowns; the libraries answer, and nothing checks them."""
    if _OWN not in found and found:
        notes.append(f"{', '.join(found)} not used, for want of a second accountant that agrees")
        found.clear()


def _larger(found: dict[str, float], notes: list[str], rdp: float, delta: float) -> Epsilon:
    if not found:
        return Epsilon(
            rdp, delta, _RDP, f"memguard {__version__}", {}, "; ".join([*notes, "RDP reported instead"])
        )
    largest = max(found, key=lambda name: found[name])
    least = min(found, key=lambda name: found[name])
    if found[largest] - found[least] > _TOLERANCE[0] + _TOLERANCE[1] * found[least]:
        notes.append(
            f"{largest} gives {found[largest]:.4g} and {least} {found[least]:.4g}, further apart than they should be; "
            "the larger is reported"
        )
    others = {name: value for name, value in found.items() if name != largest} | {_RDP: rdp}
    libraries = {_PRV: lambda: version_of("opacus"), _PLD: lambda: version_of("dp-accounting")}
    version = libraries.get(largest, lambda: f"memguard {__version__}")()
    return Epsilon(found[largest], delta, largest, version, others, "; ".join(notes))
