"""Whether references are models of the same kind as the audited one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memguard.errors import ReferenceModelError

__all__ = ["Match", "match"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_SPREAD_FROM = 4  # references from which on their spread is used


@dataclass(frozen=True, kw_only=True)
class Match:
    """References beside the audited model; a difference is that of a reference minus that of the model.

    Attributes:
        target_held_out: Mean loss of the audited model on held-out patients.
        target_gap: That minus its mean loss on members.
        held_out: ``(K,)`` mean loss of each reference on all patients that it never saw.
        gap: ``(K,)`` that minus its mean loss on those it was trained on.
        outside: ``(K,)`` difference on patients that neither of the two was trained on.
        inside: ``(K,)`` difference on patients that both were trained on; NaN where there are none.
        allowed_outside: Difference up to which a reference matches.
        allowed_inside: The same on patients that both were trained on.
        tolerance: Spreads of the references that are allowed.
        floor: Share of ``target_held_out`` that is allowed in any case.
        unit: Of the losses.
    """

    target_held_out: float
    target_gap: float
    held_out: Floats
    gap: Floats
    outside: Floats
    inside: Floats
    allowed_outside: float
    allowed_inside: float
    tolerance: float
    floor: float
    unit: str

    @property
    def failed(self) -> tuple[int, ...]:
        """References whose losses are no numbers."""
        return _where(~np.isfinite(self.outside))

    @property
    def underfit(self) -> tuple[int, ...]:
        """References that learned their own patients less well than the audited model did."""
        return _where(self.inside > self.allowed_inside)

    @property
    def overfit(self) -> tuple[int, ...]:
        """References that learned their own patients by heart where the audited model did not."""
        return _where(self.inside < -self.allowed_inside)

    @property
    def unlike(self) -> tuple[int, ...]:
        """References that differ from the audited model on patients that neither knows."""
        return _where(np.abs(self.outside) > self.allowed_outside)

    @property
    def matches(self) -> bool:
        """Whether all references match."""
        return not (self.failed or self.underfit or self.overfit or self.unlike)

    def __str__(self) -> str:
        """For a report."""
        n = len(self.held_out)
        loss, gap = _range(self.held_out), _range(self.gap)
        said = [
            f"{n} reference{'s' if n > 1 else ''}: held-out loss {loss} {self.unit} (audited model "
            f"{self.target_held_out:.3f}), gap to the loss on trained patients {gap} ({self.target_gap:.3f})."
        ]
        for who, what in (
            (self.failed, "gave no number"),
            (
                self.underfit,
                "underfit: a patient's loss under them is not what training on the patient would give",
            ),
            (self.overfit, "fit their own patients more closely than the audited model fits its members"),
            (self.unlike, "differ from the audited model on patients that neither was trained on"),
        ):
            if who:
                said.append(f"References {', '.join(map(str, who))} {what}.")
        limits = f"{self.allowed_outside:.3f} on unknown patients, {self.allowed_inside:.3f} on known ones"
        said.append(
            f"They {'match' if self.matches else 'do not all match'} the audited model (allowed: {limits}; "
            f"{self.tolerance:g} spreads of the references, and at least {100 * self.floor:g} % of the held-out loss)."
        )
        return " ".join(said)


def match(
    loss: Floats,
    reference_loss: Floats,
    in_mask: Bools,
    member: Bools,
    patient: Ints,
    *,
    tolerance: float = 3.0,
    floor: float = 0.05,
    unit: str = "nats",
) -> Match:
    """Compare references with the audited model on the same patients.

    Each patient counts once, with the mean over the records. A reference is compared on the held-out patients that it
    was not trained on either, and on the members that it was trained on: what makes a patient hard is then the same on
    both sides. A difference is allowed up to ``tolerance`` times the spread of that difference over the references
    (1.4826 times the median distance from their median, with four references or more), and at least up to
    ``floor`` times the audited model's held-out loss.

    Args:
        loss: ``(N + M,)`` eval-mode losses of the audited model; NaN where not measured.
        reference_loss: ``(K, N + M)`` of the references.
        in_mask: ``(K, N + M)`` what each was trained on.
        member: ``(N + M,)`` what the audited model was trained on.
        patient: ``(N + M,)`` codes.
        tolerance: In spreads.
        floor: Share of the held-out loss.
        unit: Of the losses, for words.

    Returns:
        Numbers and words.

    Raises:
        ReferenceModelError: If shapes differ, or no held-out patient was left out of a reference.

    Guarantees:
        The tolerance is a convention, not a test with an error rate. References are usually trained on fewer patients
        than the audited model, so that a somewhat higher held-out loss is expected. References that do not match make
        comparisons weaker, and "members minus never-trained" still compares like with like.

    Example:
        >>> member = np.array([True] * 4 + [False] * 4)
        >>> masks = np.array([[True, False] * 4, [False, True] * 4])
        >>> loss = np.where(member, 1.0, 2.0)
        >>> found = match(loss, np.where(masks, 1.0, 2.05), masks, member, np.arange(8))
        >>> found.matches, found.outside.round(2).tolist(), found.inside.tolist()
        (True, [0.05, 0.05], [0.0, 0.0])
        >>> match(loss, np.where(masks, 1.9, 2.0), masks, member, np.arange(8)).underfit
        (0, 1)
    """
    loss, reference_loss = np.asarray(loss, np.float64), np.asarray(reference_loss, np.float64)
    in_mask, member = np.asarray(in_mask, bool), np.asarray(member, bool)
    k, n = in_mask.shape if in_mask.ndim == 2 else (0, 0)
    if k == 0 or reference_loss.shape != (k, n) or any(np.shape(a) != (n,) for a in (loss, member, patient)):
        raise ReferenceModelError(
            f"losses {np.shape(loss)}, of references {reference_loss.shape}, masks {in_mask.shape}",
            "losses would be compared with those of other records",
            "pass (N + M,) losses of the audited model and (K, N + M) of its references",
        )
    held_out, gap, outside, inside = (np.full(k, np.nan) for _ in range(4))
    for one in range(k):
        out, both = ~in_mask[one], in_mask[one]
        held_out[one] = _mean(reference_loss[one], out, patient)
        gap[one] = held_out[one] - _mean(reference_loss[one], both, patient)
        difference = reference_loss[one] - loss
        outside[one] = _mean(difference, out & ~member, patient)
        inside[one] = _mean(difference, both & member, patient)
        if not (out & ~member).any():
            raise ReferenceModelError(
                f"reference {one} was trained on all held-out patients",
                "nobody is a stranger to it and to the audited model",
                "draw masks with halves(), which divides the held-out patients too",
            )
    target = _mean(loss, ~member, patient)
    return Match(
        target_held_out=target,
        target_gap=target - _mean(loss, member, patient),
        held_out=held_out,
        gap=gap,
        outside=outside,
        inside=inside,
        allowed_outside=_allowed(outside, tolerance, floor * abs(target)),
        allowed_inside=_allowed(inside, tolerance, floor * abs(target)),
        tolerance=tolerance,
        floor=floor,
        unit=unit,
    )


def _mean(value: Floats, rows: Bools, patient: Ints) -> float:
    """Mean over patients of the mean over their records; NaN where nothing was measured."""
    kept = rows & ~np.isnan(value)
    if not kept.any():
        return float("nan")
    _, code = np.unique(patient[kept], return_inverse=True)
    with np.errstate(invalid="ignore"):
        return float((np.bincount(code, weights=value[kept]) / np.bincount(code)).mean())


def _allowed(difference: Floats, tolerance: float, least: float) -> float:
    finite = difference[np.isfinite(difference)]
    if finite.size < _SPREAD_FROM:
        return least
    return max(least, tolerance * 1.4826 * float(np.median(np.abs(finite - np.median(finite)))))


def _where(which: Bools) -> tuple[int, ...]:
    return tuple(int(k) for k in np.flatnonzero(which))


def _range(values: Floats) -> str:
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return "unknown"
    low, high = finite.min(), finite.max()
    return f"{low:.3f}" if finite.size == 1 else f"{low:.3f} to {high:.3f}"
