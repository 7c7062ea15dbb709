"""On which canaries to guess: rules whose choice does not use the labels, or pays for having used them.

A guess is "in" or "out". Which canaries are guessed on may depend on the scores in any way; it may depend on who was
included only through `Split`, which looks at other canaries. All rules use the order of the scores alone, except for
the number given to `Explicit`; canaries of equal score are treated alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from memguard.attacks._checks import Floats, share
from memguard.errors import MemguardError

__all__ = ["Bonferroni", "Explicit", "Guesses", "Rule", "Split", "guesses_of", "mid_ranks"]

Side = Literal["both", "in", "out"]
_FRACTIONS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0)
_FEWEST = 4  # guesses; fewer cannot show anything at usual confidence


@dataclass(frozen=True)
class Bonferroni:
    """Try several numbers of guesses, and divide the error among them: valid whatever the scores look like.

    Attributes:
        fractions: Shares of the canaries to guess on, the most extreme ones first.
        sides: ``"both"`` guesses in at the upper end and out at the lower one, ``"in"`` and ``"out"`` at one end only.

    Example:
        >>> Bonferroni().describe()
        'Bonferroni over 16 sets of guesses fixed by the order of the scores'
    """

    fractions: Sequence[float] = _FRACTIONS
    sides: Sequence[Side] = ("both", "in")

    def describe(self) -> str:
        """The rule in words."""
        many = len(self.fractions) * len(self.sides)
        return f"Bonferroni over {many} sets of guesses fixed by the order of the scores"


@dataclass(frozen=True)
class Split:
    """Choose the set of guesses on some canaries, with their labels, and test it on the others.

    Attributes:
        fraction: Share of the canaries that the choice may look at.
        seed: Which ones.

    Example:
        >>> Split(0.3).describe()
        'chosen on 30 % of the canaries, tested on the others'
    """

    fraction: float = 0.5
    seed: int = 0

    def describe(self) -> str:
        """The rule in words."""
        return f"chosen on {100 * self.fraction:g} % of the canaries, tested on the others"


@dataclass(frozen=True)
class Explicit:
    """Numbers fixed before the scores were seen.

    Attributes:
        above: Guess in where the score is at least this.
        below: Guess out where the score is less than this; ``None``: never.

    Example:
        >>> Explicit(2.0).describe()
        'in at 2 and above, fixed beforehand'
    """

    above: float
    below: float | None = None

    def describe(self) -> str:
        """The rule in words."""
        out = "" if self.below is None else f", out below {self.below:g}"
        return f"in at {self.above:g} and above{out}, fixed beforehand"


Rule = Bonferroni | Split | Explicit


@dataclass(frozen=True, eq=False)
class Guesses:
    """One set of guesses.

    Attributes:
        guess: ``(m,)`` int8: 1 in, -1 out, 0 abstained.
        correct: Guesses that are right.
        total: Guesses.
        level: Error that this set may spend.
        n: Canaries whose labels the test may use.
        usable: ``(m,)``, which those are.
    """

    guess: NDArray[np.int8]
    correct: int
    total: int
    level: float
    n: int
    usable: NDArray[np.bool_]


def mid_ranks(scores: Floats) -> Floats:
    """Rank of each score as a share in (0, 1), equal scores alike.

    Example:
        >>> mid_ranks(np.array([3.0, 1.0, 1.0, 7.0]))
        array([0.625, 0.25 , 0.25 , 0.875])
    """
    _, group, count = np.unique(scores, return_inverse=True, return_counts=True)
    return ((np.cumsum(count) - count / 2) / len(scores))[group.reshape(-1)]


def guesses_of(rule: Rule, scores: Floats, included: NDArray[np.bool_], level: float) -> list[Guesses]:
    """The sets of guesses that a rule makes, with the error that each may spend.

    Args:
        rule: How to choose.
        scores: ``(m,)``, larger = more likely included.
        included: ``(m,)``.
        level: Error to spend in all.

    Raises:
        MemguardError: if the rule is not one of the three, or is given impossible numbers.

    Example:
        >>> scores, included = np.arange(10.0), np.arange(10) >= 5
        >>> [(one.correct, one.total) for one in guesses_of(Explicit(7.0), scores, included, 0.05)]
        [(3, 3)]
    """
    if isinstance(rule, Explicit):
        below = rule.above if rule.below is None else rule.below
        if not np.isfinite([rule.above, below]).all() or below > rule.above:
            raise MemguardError(
                f"Explicit(above={rule.above!r}, below={rule.below!r})",
                "a score would be guessed in and out at once, or compared with no number",
                "pass finite numbers with below <= above",
            )
        out = np.zeros(len(scores), np.bool_) if rule.below is None else scores < rule.below
        guess = np.where(scores >= rule.above, 1, np.where(out, -1, 0)).astype(np.int8)
        return [_count(guess, included, level)]
    if isinstance(rule, Split):
        return [_split(rule, scores, included, level)]
    if isinstance(rule, Bonferroni):
        sets = list(_sets(rule, scores))
        return [_count(guess, included, level / len(sets)) for guess in sets]
    raise MemguardError(
        f"threshold = {rule!r}",
        "no rule says on which canaries to guess",
        "pass Bonferroni(), Split() or Explicit(t)",
    )


def _sets(rule: Bonferroni, scores: Floats) -> Iterator[NDArray[np.int8]]:
    fractions = np.asarray(rule.fractions, dtype=np.float64)
    strange = set(rule.sides) - {"both", "in", "out"}
    if fractions.size == 0 or not rule.sides or strange or not np.all((fractions > 0) & (fractions <= 1)):
        raise MemguardError(
            f"fractions={rule.fractions!r}, sides={rule.sides!r}",
            "there would be no guess, or one on more canaries than there are",
            'pass fractions in (0, 1] and sides out of "both", "in" and "out"',
        )
    rank = mid_ranks(scores)
    for side in rule.sides:
        extreme = {"both": np.abs(rank - 0.5), "in": rank, "out": 1.0 - rank}[side]
        ordered = np.sort(extreme)[::-1]
        for fraction in fractions:
            k = min(max(int(np.ceil(fraction * len(scores))), _FEWEST), len(scores))
            chosen = extreme >= ordered[k - 1]
            if side == "both":
                guess = np.where(chosen, np.sign(rank - 0.5), 0)
            else:
                guess = np.where(chosen, 1 if side == "in" else -1, 0)
            yield guess.astype(np.int8)


def _count(
    guess: NDArray[np.int8],
    included: NDArray[np.bool_],
    level: float,
    usable: NDArray[np.bool_] | None = None,
) -> Guesses:
    usable = np.ones(len(guess), np.bool_) if usable is None else usable
    right = np.count_nonzero(((guess == 1) & included) | ((guess == -1) & ~included))
    return Guesses(guess, int(right), int(np.count_nonzero(guess)), level, int(usable.sum()), usable)


def _split(rule: Split, scores: Floats, included: NDArray[np.bool_], level: float) -> Guesses:
    share(rule.fraction, "Split.fraction")
    chosen = np.zeros(len(scores), np.bool_)
    size = round(rule.fraction * len(scores))
    chosen[np.random.default_rng(rule.seed).permutation(len(scores))[:size]] = True
    if size < _FEWEST or len(scores) - size < _FEWEST:
        raise MemguardError(
            f"Split({rule.fraction:g}) of {len(scores)} canaries",
            "one side has too few of them",
            "pass another fraction, or more canaries",
        )
    known, truth = scores[chosen], included[chosen]
    best, cuts = -np.inf, (np.inf, -np.inf)
    for guess in _sets(Bonferroni(sides=("both", "in", "out")), known):
        found = _count(guess, truth, level)
        if not found.total:
            continue
        # what the tested half would show if it looked like this one: a normal lower bound for the log odds
        wrong = found.total - found.correct + 0.5
        right = found.correct + 0.5
        worth = np.log(right / wrong) - 1.645 * np.sqrt(1 / right + 1 / wrong)
        if worth > best:
            above = known[guess == 1].min() if (guess == 1).any() else np.inf
            below = known[guess == -1].max() if (guess == -1).any() else -np.inf
            best, cuts = worth, (above, below)
    guess = np.where(scores >= cuts[0], 1, np.where(scores <= cuts[1], -1, 0))
    guess[chosen] = 0
    return _count(guess.astype(np.int8), included, level, ~chosen)
