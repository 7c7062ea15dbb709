"""Is every step accounted for? Counts, draws, seeds: the bookkeeping of a private training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memguard.privacy.guards.finding import Finding, Verdict

__all__ = ["Draws", "Seeds", "Steps", "fresh_seeds", "one_draw_each", "steps_accounted"]


@dataclass(frozen=True, kw_only=True)
class Steps(Verdict):
    """What :func:`steps_accounted` found.

    Attributes:
        accounted: Steps that the accountant knows.
        taken: Steps of the optimizer.
        scheduled: Draws that were made, where told.
    """

    accounted: int
    taken: int
    scheduled: int | None


@dataclass(frozen=True, kw_only=True)
class Draws(Verdict):
    """What :func:`one_draw_each` found.

    Attributes:
        dropped: Patients who were drawn and did not reach the update of that step.
        foreign: Patients in an update who were not drawn for it.
        twice: Contributions beyond the first of a patient in one update.
        skipped: Draws without an update.
    """

    dropped: int
    foreign: int
    twice: int
    skipped: int


@dataclass(frozen=True, kw_only=True)
class Seeds(Verdict):
    """What :func:`fresh_seeds` found.

    Attributes:
        repeated: Fingerprints that occur more than once.
    """

    repeated: tuple[str, ...]


def steps_accounted(
    accounted: int, taken: int, *, scheduled: int | None = None, interrupted: int = 0
) -> Steps:
    """Compare the steps of the accountant with those that the optimizer took on private data, ever.

    Args:
        accounted: Steps in the history that epsilon is computed from.
        taken: Steps of the optimizer over all starts, those of tuners and of runs that were thrown away too.
        scheduled: Draws that were made, empty ones too; each must become a step.
        interrupted: How often the run was killed. A step is written down before it is taken, so that each kill may
            leave one more accounted than taken.

    Returns:
        The verdict. There is no chance in this test.

    Guarantees:
        Fewer steps accounted than taken: epsilon is too small. Draws without a step: whether a step happened depends
        on the data (an empty batch, a loss of NaN, an overflow), which no accountant covers. Equal counts do not show
        that a step's noise and sampling were as accounted.

    Example:
        >>> steps_accounted(10, 10).ok, steps_accounted(11, 10, interrupted=1).ok
        (True, True)
        >>> steps_accounted(6, 10).finding.id, steps_accounted(9, 9, scheduled=10).finding.id
        ('steps/unaccounted', 'steps/skipped')
    """
    finding = None
    if accounted < taken:
        finding = Finding(
            "steps/unaccounted",
            f"{taken} steps of the optimizer, {accounted} of them accounted",
            "epsilon covers the steps that are accounted; a tuner, a rollback or a resume without the accountant's "
            "state leaves some out",
            "compute epsilon from a ledger that only grows, outside of the checkpoint, and tune on other data",
        )
    elif accounted > taken + interrupted:
        finding = Finding(
            "steps/overcounted",
            f"{accounted} steps accounted, {taken} taken and {interrupted} interruptions",
            "epsilon is larger than what was spent, and something else may not be as it seems",
            "write one entry for each step",
        )
    elif scheduled is not None and taken < scheduled - interrupted:
        finding = Finding(
            "steps/skipped",
            f"{scheduled} draws, {taken} steps",
            "a step that is left out because of what was drawn tells what was drawn",
            "take a step with noise for every draw, also for an empty one or one whose loss is not finite",
        )
    return Steps(finding=finding, accounted=accounted, taken=taken, scheduled=scheduled)


def one_draw_each(drawn: Sequence[Sequence[int]], used: Sequence[Sequence[int]]) -> Draws:
    """Is each update made of one whole draw, each patient once?

    Args:
        drawn: Patients of each draw, in order.
        used: Patients whose contributions were in each update, one entry for each contribution.

    Returns:
        The verdict. There is no chance in this test.

    Guarantees:
        Whoever is in an update twice contributes up to 2 C. Patients who are drawn and dropped (micro-batches that
        are overwritten, an epoch cut in the middle of a draw) make the sampling another than the one accounted.

    Example:
        >>> one_draw_each([[1, 2], [3]], [[2, 1], [3]]).ok
        True
        >>> found = one_draw_each([[1, 2], [3]], [[2], [3, 3]])
        >>> found.dropped, found.foreign, found.twice
        (1, 0, 1)
    """
    dropped = foreign = twice = 0
    for draw, update in zip(drawn, used, strict=False):
        dropped += len(set(draw) - set(update))
        foreign += len(set(update) - set(draw))
        twice += len(update) - len(set(update))
    skipped = abs(len(drawn) - len(used))
    finding = None
    if dropped or foreign or twice or skipped:
        s = ["" if n == 1 else "s" for n in (dropped, twice, skipped)]
        finding = Finding(
            "draws/torn",
            f"{dropped} patient{s[0]} drawn and dropped, {foreign} in an update without being drawn, "
            f"{twice} contribution{s[1]} too many, {skipped} draw{s[2]} without update",
            "sensitivity and amplification are computed for updates of one draw, each patient once",
            "cut every draw in the same number of parts, sum them all, and step once",
        )
    return Draws(finding=finding, dropped=dropped, foreign=foreign, twice=twice, skipped=skipped)


def fresh_seeds(fingerprints: Sequence[str]) -> Seeds:
    """Has every start, and every rank that adds noise or draws by itself, had a seed of its own?

    Args:
        fingerprints: Of the seeds, as the ledger keeps them.

    Returns:
        The verdict. Two equal fingerprints of 128 bits or more are no coincidence.

    Guarantees:
        Equal seeds mean equal noise, or equal draws. Different ones do not show that they were drawn well.

    Example:
        >>> fresh_seeds(["a1", "b2", "a1"]).repeated
        ('a1',)
    """
    repeated = tuple(sorted({each for each in fingerprints if list(fingerprints).count(each) > 1}))
    finding = None
    if repeated:
        finding = Finding(
            "seeds/repeated",
            f"{len(repeated)} seed{'s' if len(repeated) > 1 else ''} used more than once in {len(fingerprints)} starts",
            "the same noise comes again, and the difference of two updates has none",
            "seed from the operating system at every start, apart from seed_everything",
        )
    return Seeds(finding=finding, repeated=repeated)
