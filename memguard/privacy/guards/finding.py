"""What a guard says: nothing, or what it saw, which promise that breaks, and what settles it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from memguard.errors import MemguardWarning, PrivacyError

__all__ = ["FALSE_ALARM", "Finding", "Verdict"]

FALSE_ALARM = 1e-6
"""Chance, at most, that a guard with a statistical test says something of a correct training."""


@dataclass(frozen=True)
class Finding:
    """One thing that breaks the guarantee, or that lies outside of it.

    Attributes:
        id: Its name in the ledger and in tests, ``"subject/what"``.
        seen: What was found.
        why: Which promise it breaks, or what the promise does not cover.
        fix: The change that settles it.
        severity: ``"refuse"``: with it, the epsilon would be false. ``"ledger"``: epsilon holds for what it covers,
            and the statement has to say what this adds.
        warn: Whether a user should read of it before training, though training may go on.

    Example:
        >>> found = Finding("steps/lost", "9 of 10 steps", "epsilon counts 9", "count them all")
        >>> print(found.error())
        9 of 10 steps. epsilon counts 9. count them all.
    """

    id: str
    seen: str
    why: str
    fix: str
    severity: Literal["refuse", "ledger"] = "refuse"
    warn: bool = False

    def error(self) -> PrivacyError:
        """As an error to raise."""
        return PrivacyError(self.seen, self.why, self.fix)

    def warning(self) -> MemguardWarning:
        """As a warning to issue."""
        return MemguardWarning(self.seen, self.why, self.fix)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a guard found.

    Attributes:
        finding: ``None`` where nothing speaks against the training.

    Example:
        >>> Verdict(finding=None).ok
        True
    """

    finding: Finding | None

    @property
    def ok(self) -> bool:
        """Whether nothing was found. That is evidence about what was looked at, not a proof."""
        return self.finding is None

    def require(self) -> None:
        """Raise the finding, if it is one to refuse.

        Raises:
            PrivacyError: With what was seen, why it matters, and the fix.
        """
        if self.finding is not None and self.finding.severity == "refuse":
            raise self.finding.error()
