"""One tree of errors and warnings: what was seen, why it would make a number wrong, what fixes it."""

from __future__ import annotations

__all__ = [
    "AbilityError",
    "AmbiguousLossError",
    "DataError",
    "HeldOutError",
    "IndexTrackingError",
    "MemguardError",
    "MemguardWarning",
    "PatientOverlapError",
    "PrivacyError",
    "ReferenceModelError",
    "ResolutionError",
]


def _compose(seen: str, why: str, fix: str) -> str:
    return " ".join(f"{part.rstrip('.')}." for part in (seen, why, fix) if part)


class MemguardError(Exception):
    """Root of every error that memguard raises on purpose.

    Args:
        seen: What was found in the data, the model or the call.
        why: Which number it would make wrong.
        fix: The argument or the change that settles it.

    Example:
        >>> print(MemguardError("3 ids for 4 records", "losses would be given to the wrong patient",
        ...                     "pass record_ids= with one id per record"))
        3 ids for 4 records. losses would be given to the wrong patient. pass record_ids= with one id per record.
    """

    def __init__(self, seen: str, why: str = "", fix: str = "") -> None:
        self.seen, self.why, self.fix = seen, why, fix
        super().__init__(_compose(seen, why, fix))


class AmbiguousLossError(MemguardError):
    """No single captured call is the loss that the step returned."""


class IndexTrackingError(MemguardError):
    """Which records are in a batch cannot be told for certain."""


class PatientOverlapError(MemguardError):
    """A patient stands on both sides of a split."""


class HeldOutError(MemguardError):
    """There are no, or too few, held-out patients to compare with."""


class PrivacyError(MemguardError):
    """What was asked for would break, or falsify, a differential privacy guarantee."""


class DataError(MemguardError):
    """A data set does not have the form that it claims."""


class AbilityError(MemguardError):
    """A model cannot be asked this, or an adapter does not fit it."""


class ReferenceModelError(MemguardError):
    """Reference models cannot be trained, kept or compared."""


class ResolutionError(MemguardError):
    """A number was asked for that this many patients cannot support."""


class MemguardWarning(UserWarning):
    """Root of every warning: training goes on, and a number is missing or carries a caveat.

    Example:
        >>> print(MemguardWarning("no held-out data", "no membership number can be given", "pass heldout="))
        no held-out data. no membership number can be given. pass heldout=.
    """

    def __init__(self, seen: str, why: str = "", fix: str = "") -> None:
        self.seen, self.why, self.fix = seen, why, fix
        super().__init__(_compose(seen, why, fix))
