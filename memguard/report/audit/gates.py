"""Gates: conditions on numbers of the report that must not hold, for pipelines that release models."""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from memguard.errors import DataError
from memguard.report.audit.data import AuditReport
from memguard.report.audit.parts import Number

__all__ = ["Condition", "Gate", "GateResult", "evaluate"]

_OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_PARTS = ("value", "low", "high", "n")
_CONDITION = re.compile(
    r"^(?P<name>\S+)\.(?P<part>value|low|high|n)\s*(?P<operator>>=|<=|>|<)\s*(?P<limit>[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?)$",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One comparison.

    Attributes:
        name: ``"probe.number"``, as in `AuditReport.numbers`; numbers may have dots in their names.
        part: ``"value"``, ``"low"``, ``"high"`` or ``"n"`` of it.
        operator: ``">"``, ``">="``, ``"<"`` or ``"<="``.
        limit: What it is compared with.
    """

    name: str
    part: str
    operator: str
    limit: float

    def holds(self, numbers: Mapping[str, Number]) -> tuple[bool | None, str]:
        """Whether it does, and why; ``None`` where the number was not measured."""
        number = numbers.get(self.name)
        if number is None:
            near = difflib.get_close_matches(self.name, numbers, n=3, cutoff=0.5)
            hint = f" (there is {', '.join(near)})" if near else ""
            return None, f"{self.name} was not measured{hint}"
        seen = float(getattr(number.estimate, self.part))
        if math.isnan(seen):
            return None, f"{self.name}.{self.part} has no value"
        said = "" if _OPERATORS[self.operator](seen, self.limit) else "not "
        return not said, f"{self.name}.{self.part} = {seen:.6g}, {said}{self.operator} {self.limit:g}"


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Conditions under which a release fails: ``and`` binds closer than ``or``.

    Attributes:
        text: As it was written.
        either: Of which one group must hold as a whole.
    """

    text: str
    either: tuple[tuple[Condition, ...], ...]

    @classmethod
    def parse(cls, text: str) -> Gate:
        """Read a gate.

        Args:
            text: Such as ``"membership.tpr_at_fpr_0.01.high > .05 and membership.flagged.value >= 5"``.

        Raises:
            DataError: If it cannot be read; what it should look like is said.

        Example:
            >>> gate = Gate.parse("membership.tpr_at_fpr_0.01.high > .05")
            >>> gate.either[0][0].name, gate.either[0][0].part, gate.either[0][0].limit
            ('membership.tpr_at_fpr_0.01', 'high', 0.05)
        """
        groups = re.split(r"\s+or\s+", text.strip(), flags=re.IGNORECASE)
        either = tuple(
            tuple(_condition(one, text) for one in re.split(r"\s+and\s+", group, flags=re.IGNORECASE))
            for group in groups
        )
        return cls(text=text.strip(), either=either)


def _condition(text: str, whole: str) -> Condition:
    found = _CONDITION.match(text.strip())
    if found is None or "." not in found["name"]:
        raise DataError(
            f"a gate that cannot be read: {whole!r}",
            "a release could pass a gate that was never asked",
            "write probe.number.part, an operator and a limit, such as membership.auc.high > .6; "
            f"the part is one of {', '.join(_PARTS)}, the operator one of {' '.join(_OPERATORS)}",
        )
    return Condition(
        name=found["name"],
        part=found["part"].lower(),
        operator=found["operator"],
        limit=float(found["limit"]),
    )


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """How one gate came out.

    Attributes:
        gate: As it was written.
        status: ``"fails"`` where its condition holds, ``"passes"`` where it does not, ``"not evaluable"`` where a
            number that decides was not measured.
        ok: Whether a release may go on by this gate.
        reason: The numbers behind it.
    """

    gate: str
    status: Literal["fails", "passes", "not evaluable"]
    ok: bool
    reason: str

    def __str__(self) -> str:
        return f"{'pass' if self.ok else 'FAIL'}  {self.gate}  ({self.reason})"


def evaluate(
    gates: Iterable[Gate | str], report: AuditReport, *, missing: Literal["fail", "pass"] = "fail"
) -> list[GateResult]:
    """Ask each gate of a report.

    A number that was not measured cannot decide. Where the other conditions decide without it they do; where they
    do not the gate is not evaluable, and that fails unless asked otherwise: a test that broke down must not release
    a model.

    Args:
        gates: Gates or their text.
        report: The audit.
        missing: What a gate that is not evaluable does.

    Raises:
        DataError: If a gate cannot be read.

    Example:
        >>> from memguard.report.audit.parts import SideCounts
        >>> side = SideCounts(n_patients=900, n_records=1400)
        >>> report = AuditReport(version="0.1.0", created="2026-01-31", members=side, held_out=side)
        >>> print(*evaluate(["membership.auc.high > .6"], report))
        FAIL  membership.auc.high > .6  (membership.auc was not measured)
    """
    numbers = report.numbers()
    return [_result(Gate.parse(one) if isinstance(one, str) else one, numbers, missing) for one in gates]


def _result(gate: Gate, numbers: Mapping[str, Number], missing: str) -> GateResult:
    groups = [[condition.holds(numbers) for condition in group] for group in gate.either]
    answers = [_all([answer for answer, _ in group]) for group in groups]
    holds = True if True in answers else None if None in answers else False
    reason = "; ".join(why for group in groups for _, why in group)
    if holds is None:
        return GateResult(gate=gate.text, status="not evaluable", ok=missing == "pass", reason=reason)
    return GateResult(gate=gate.text, status="fails" if holds else "passes", ok=not holds, reason=reason)


def _all(answers: list[bool | None]) -> bool | None:
    return False if False in answers else None if None in answers else True
