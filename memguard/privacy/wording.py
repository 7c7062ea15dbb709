"""A statement as plain text, for the person who decides about a model."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memguard.privacy.accounting import Epsilon
    from memguard.privacy.statement import Statement

__all__ = ["bound", "most_found", "statement_text"]

_WIDTH = 118
_LABEL = 12
_FALSE_POSITIVES = 0.01


def statement_text(statement: Statement) -> str:
    """All of a statement; its first line says whether there is a guarantee.

    Args:
        statement: To put into words.
    """
    rows = [
        ("Unit", _unit(statement)),
        ("Mechanism", _mechanism(statement)),
        ("Sampling", _sampling(statement)),
        ("Noise", _noise(statement)),
        ("Steps", _steps(statement)),
        *([] if statement.no_guarantee else _spent(statement)),
    ]
    lines = [*_wrap(_verdict(statement), ""), ""]
    for label, text in rows:
        lines += _wrap(f"{label:<{_LABEL}}{text}", " " * _LABEL)
    if not statement.no_guarantee:
        lines += ["", *_wrap(_COVERED, "")]
    lines += _list(
        "Outside of it:" if not statement.no_guarantee else "What touched the data besides:",
        statement.outside,
    )
    if not statement.no_guarantee:
        lines += _list("It rests on this:", statement.assumes)
    lines += _list("Also in the ledger:", statement.noted)
    versions = ", ".join(f"{name} {version}" for name, version in statement.versions.items())
    lines += [
        "",
        *_wrap(f"Derived from the ledger of run {statement.run}, as of {statement.as_of} ({versions}).", ""),
    ]
    return "\n".join(lines)


_COVERED = (
    "Covered: the weights after every step, and what is computed from them and nothing else private. Not covered: "
    "other outputs of the run, and trainings on these people whose ledgers lie elsewhere."
)


def _verdict(statement: Statement) -> str:
    if statement.no_guarantee:
        return f"NO GUARANTEE of differential privacy: {'; '.join(statement.no_guarantee)}."
    worst = max(statement.epsilons.values(), key=lambda one: one.value)
    text = (
        f"Differential privacy for every {statement.unit}: epsilon = {bound(worst.value)} at "
        f"delta = {bound(worst.delta)}"
    )
    if statement.unit == "record":
        text += " for ONE RECORD, less for a patient with several"
    if statement.target_epsilon is not None and worst.value > statement.target_epsilon * (1 + 1e-6):
        text += f", ABOVE the target of {_number(statement.target_epsilon)}"
    if statement.fed_back:
        text += ", NOT COUNTING what was fed back into the training"
    things = len(statement.outside)
    return text + (f"; {things} thing{'s' * (things > 1)} outside of it, below." if things else ".")


def _unit(statement: Statement) -> str:
    if not statement.unit:
        return "not known"
    held = "" if statement.n_owners is None else f"; {statement.n_owners:,} {statement.unit}s"
    return f"{statement.unit}; neighbouring data sets: {statement.adjacency}{held}"


def _mechanism(statement: Statement) -> str:
    norms = ", then ".join(map(_number, statement.max_grad_norms)) or "?"
    what = (
        "gradient of a record"
        if statement.unit == "record"
        else f"{statement.average} gradient of a patient's records"
    )
    text = f"Gaussian (DP-SGD): the {what} is clipped to a norm of {norms} over all layers together"
    if statement.unit == "patient":
        most = statement.max_records
        text += ", all records used" if most is None else f", at most {most} records used in a step"
    return f"{text}; engine: {statement.engine or 'not known'}"


def _sampling(statement: Statement) -> str:
    if not statement.sample_rates:
        return "none"
    rates = "; ".join(
        f"{'' if len(statement.sample_rates) == 1 else f'{name} '}{', then '.join(map(_number, each))}"
        for name, each in statement.sample_rates.items()
    )
    drawn = f"each {statement.unit} is in a step with probability {rates}, independently of the others"
    divisor = ", then ".join(map(_number, statement.expected_patients))
    return (
        f"{', then '.join(statement.sampling)}: {drawn}; the sum is divided by the expected number ({divisor})"
        if statement.sampling == ("poisson",)
        else f"{', then '.join(statement.sampling)}; rates given: {rates}"
    )


def _noise(statement: Statement) -> str:
    if not statement.noise_multipliers:
        return "none"
    multipliers = ", then ".join(map(_number, statement.noise_multipliers))
    target = (
        ""
        if statement.target_epsilon is None
        else f", for a target of epsilon = {_number(statement.target_epsilon)}"
    )
    return f"multiplier {multipliers} (its standard deviation over the clipping norm){target}"


def _steps(statement: Statement) -> str:
    planned = "" if statement.planned_steps is None else f" of {statement.planned_steps:,} planned"
    starts = "1 start" if statement.starts == 1 else f"{statement.starts} starts"
    ended = "ended" if statement.ended else "not ended, or cut off"
    torn = (
        f"; {statement.cut_off} unfinished entries count as steps where they may have been"
        if statement.cut_off
        else ""
    )
    if not statement.whole:
        return f"not known; {statement.steps:,} before the place where the ledger is broken"
    return f"{statement.steps:,} counted{planned}, in {starts}; {ended}{torn}"


def _spent(statement: Statement) -> list[tuple[str, str]]:
    single = len(statement.epsilons) == 1
    rows = [
        ("Epsilon", f"{'' if single else f'stratum {name}: '}{_accounted(one)}")
        for name, one in statement.epsilons.items()
    ]
    most = most_found(statement.epsilon, statement.delta or 0.0, _FALSE_POSITIVES)
    rows.append(
        (
            "Meaning",
            f"an attack on the weights that wrongly says of {_FALSE_POSITIVES:.0%} of absent {statement.unit}s that "
            f"they took part can find at most {math.ceil(round(most * 1000, 9)) / 10:g}% of those who did",
        )
    )
    if statement.unit == "record":
        each = ", ".join(f"{r} records {bound(one.value)}" for r, one in statement.record_epsilons.items())
        if each:
            text = f"a patient is promised LESS than a record; epsilon of a patient with {each}"
            if statement.most_records is not None:
                text += f" ({statement.most_records} is the most that one patient has)"
        elif statement.most_records == 1:
            text = "no patient has more than one record"
        else:
            text = "how much less a patient with several records is promised is not known"
        rows.append(("Patients", text))
    return rows


def most_found(epsilon: float, delta: float, false_positives: float) -> float:
    """Largest true-positive rate of a membership attack that (epsilon, delta)-differential privacy leaves possible.

    Args:
        epsilon: At least 0.
        delta: In [0, 1].
        false_positives: Rate at which the attack is wrong about those who did not take part.

    Guarantees:
        No attack with any knowledge finds a larger share. One that finds so many need not exist.

    References:
        Kairouz, Oh and Viswanath 2015, arXiv:1311.0776, Theorem 2.1.

    Example:
        >>> round(most_found(1.0, 1e-5, 0.01), 4), round(most_found(8.0, 1e-5, 0.01), 4)
        (0.0272, 0.9997)
    """
    by_excess = math.exp(min(epsilon, 700.0)) * false_positives + delta
    by_misses = 1.0 - math.exp(-epsilon) * (1.0 - delta - false_positives)
    return min(by_excess, by_misses, 1.0)


def _accounted(one: Epsilon) -> str:
    others = ", ".join(f"{name} {bound(value)}" for name, value in one.others.items())
    text = f"{bound(one.value)} at delta {bound(one.delta)} by {one.accountant} ({one.version})"
    return text + (f"; beside it {others}" if others else "") + (f"; {one.note}" if one.note else "")


def _number(value: float) -> str:
    return f"{value:.6g}"


def bound(value: float) -> str:
    """An upper bound with three digits, rounded up.

    Example:
        >>> bound(7.981), bound(2.0), bound(0.03771)
        ('7.99', '2', '0.0378')
    """
    if not 0 < value < math.inf:
        return f"{value:g}"
    unit = 10.0 ** (math.floor(math.log10(value)) - 2)
    return f"{math.ceil(round(value / unit, 6)) * unit:.6g}"


def _list(title: str, items: Iterable[str]) -> list[str]:
    items = list(items)
    if not items:
        return []
    return ["", title, *(line for item in items for line in _wrap(f"- {item}", "  "))]


def _wrap(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
