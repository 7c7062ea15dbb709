"""Canaries: made-up patients, planted by coins, and what the model gives away about the coins."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from memguard.adapters.base import ModelAdapter
from memguard.attacks.canary_exposure import ExposureResult, exposure
from memguard.attacks.difference import mean_difference
from memguard.attacks.epsilon import EpsilonBound, epsilon_one_run
from memguard.attacks.estimate import Estimate
from memguard.attacks.membership import auc, required_held_out, supported_fprs, tpr_at_fpr
from memguard.errors import DataError, MemguardError
from memguard.probes.asked import Asked, Budget
from memguard.probes.embedding.hidden import first_tokens
from memguard.probes.result import DELTA, Cell, NotTested, ProbeResult, Table
from memguard.probes.subject import Subject
from memguard.records.canaries import Canaries
from memguard.records.content import Ragged

__all__ = ["CanaryProbe"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

_BLOCK = 64  # canaries whose alternatives are asked at once
_QUESTION = "How much did the model keep of made-up patients that were planted in its training data?"


@dataclass(frozen=True, kw_only=True, eq=False)
class CanaryProbe:
    """Exposure, membership and a lower bound on epsilon, from planted canaries.

    Each of m canaries was planted by a fair coin of its own. How the coins fell is compared with the losses of the
    canaries; how far down the losses of alternatives, drawn in the same way and never planted, a planted one stands is
    its exposure. Pass the canaries, and the target is asked, or losses.

    Attributes:
        canaries: Made by `memguard.records.canaries.make_canaries`, each with alternatives of its own.
        included: ``(m,)`` booleans, how the coins fell; instead of canaries, with losses.
        canary_loss: ``(m,)`` losses, any number that is small when the model knows the canary.
        alternative_loss: ``(R,)`` losses of alternatives of all canaries, or ``(m, R)`` of each one's own. Without
            them the canaries that the coins left out stand in.
        claimed_epsilon: What the training is said to hold, with a canary as the unit; a bound above it is an alarm.
        delta: Of the claim; ``None``: that of the promise which an audit compares with, 1e-5 where there is none.
        alternatives: Most alternatives of a canary that are asked; ``R`` of them show ``log2(R + 1)`` bits.
        extrapolate: Fit a law to the losses of the alternatives, for larger exposures; see `memguard.attacks.exposure`.
        fprs: False-positive rates of interest.
        confidence: Of all intervals and of the bound.

    Raises:
        DataError: If lengths differ, or there are neither canaries nor losses with coins.

    Guarantees:
        The bound exceeds the epsilon of an (epsilon, delta)-DP training with probability at most 1 - ``confidence``,
        whatever the losses, if the coins were fair and independent of all else. Its unit is the canary: one record
        each says nothing about patients with several. Canaries that the model does not know show nothing about
        patients who are unlike them.

    References:
        Carlini et al., arXiv 1802.08232 (exposure); Steinke, Nasr and Jagielski, arXiv 2305.08846 (epsilon from one
        run).

    Example:
        >>> from memguard.records.content import Ragged, RecordContent
        >>> rng = np.random.default_rng(0)
        >>> coins = rng.random(200) < 0.5
        >>> probe = CanaryProbe(included=coins, canary_loss=rng.normal(4, 1, 200) - 4 * coins,
        ...                     alternative_loss=rng.normal(4, 1, 500), claimed_epsilon=1.0)
        >>> class Nobody:
        ...     kind, in_mask = "none", np.zeros((0, 0), bool)
        >>> nothing = RecordContent.from_codes(Ragged.from_lists([]))
        >>> asked = Asked(target=None, references=Nobody(), loss=np.zeros(0), reference_loss=np.zeros((0, 0)))
        >>> found = probe.run(Subject(n_members=0, patient=np.zeros(0, int), content=nothing), asked, Budget())
        >>> found.numbers["epsilon_lower_bound"].low > 1.0, found.numbers["exposure.minus_held_out"].low > 3
        (True, True)
        >>> found.answer[:5]
        'ALARM'
    """

    canaries: Canaries | None = None
    included: ArrayLike | None = None
    canary_loss: ArrayLike | None = None
    alternative_loss: ArrayLike | None = None
    claimed_epsilon: float | None = None
    delta: float | None = None
    alternatives: int = 63
    extrapolate: bool = False
    fprs: Sequence[float] = (0.1, 0.01)
    confidence: float = 0.95
    name: str = field(default="canary", init=False)
    needs: Sequence[str] = field(default=(), init=False)

    def __post_init__(self) -> None:
        if self.canaries is not None:
            return
        if self.included is None or self.canary_loss is None:
            raise DataError(
                "neither canaries nor coins with losses",
                "there is nothing to ask",
                "pass canaries=, or included= and canary_loss=",
            )
        coins, own = np.shape(self.included), np.shape(self.canary_loss)
        others = own if self.alternative_loss is None else np.shape(self.alternative_loss)
        if len(coins) != 1 or coins != own or (len(others) == 2 and others[:1] != own):
            raise DataError(
                f"coins, losses and losses of alternatives of shape {coins}, {own} and {others}",
                "coins would be given to the wrong canary",
                "pass one truth value and one loss for each canary, planted or not",
            )

    @property
    def _delta(self) -> float:
        return DELTA if self.delta is None else self.delta

    def run(self, subject: Subject, asked: Asked, budget: Budget) -> ProbeResult:
        """Ask about the canaries. They are no part of the subject, so there is no evidence record by record."""
        started = time.perf_counter()
        gaps: list[NotTested] = []
        if self.canaries is None:
            coins = np.asarray(self.included).astype(np.bool_)
            loss = np.asarray(self.canary_loss, dtype=np.float64)
            others = (
                np.zeros(0)
                if self.alternative_loss is None
                else np.asarray(self.alternative_loss, np.float64)
            )
        elif asked.target is None or "log_probs" not in asked.target.abilities:
            why = "the model gives no token probabilities"
            gaps.append(NotTested(what="Canaries", why=why, fix="pass included= and canary_loss="))
            return ProbeResult(probe=self.name, question=_QUESTION, not_tested=gaps)
        else:
            coins = self.canaries.included
            loss, others = _ask(asked.target, self.canaries, self.alternatives)
        coins, loss, others = _finite(coins, loss, others, gaps)
        numbers: dict[str, Estimate] = {}
        self._exposures(loss, coins, others, numbers, gaps)
        # beside alternatives of its own, how hard a canary is drops out
        score = others.mean(axis=1) - loss if others.ndim == 2 and others.size else -loss
        self._membership(score, coins, numbers, gaps)
        bound = self._bound(score, coins, numbers, gaps)
        alarm = (
            bound is not None and self.claimed_epsilon is not None and bound.epsilon > self.claimed_epsilon
        )
        return ProbeResult(
            probe=self.name,
            question=_QUESTION,
            answer=self._answer(numbers, bound, alarm, int(coins.sum()), len(coins)),
            numbers=numbers,
            tables={"canaries": self._table(numbers, bound, coins, others.shape[-1])},
            bounds=() if bound is None else (bound,),
            settings={
                "canaries": len(coins),
                "planted": int(coins.sum()),
                "alternatives": others.shape[-1],
                "delta": self._delta,
                "claimed_epsilon": self.claimed_epsilon,
                "largest_certifiable_epsilon": None if bound is None else bound.largest,
                "alarm": alarm,
                "extrapolate": self.extrapolate,
            },
            notes=self._notes(bound),
            not_tested=gaps,
            seconds=time.perf_counter() - started,
        )

    def _exposures(
        self, loss: Floats, coins: Bools, others: Floats, numbers: dict[str, Estimate], gaps: list[NotTested]
    ) -> None:
        how = "extrapolate" if self.extrapolate else "interpolate"
        space = None if self.canaries is None or others.ndim == 1 else self.canaries.space
        own = others.size > 0

        def bits(which: Bools, alternatives: Floats) -> ExposureResult:
            rows = alternatives[which] if alternatives.ndim == 2 else alternatives
            return exposure(loss[which], rows, method=how, space=space, confidence=self.confidence)  # type: ignore[arg-type]

        stand_in = others if own else loss[~coins]
        if not coins.any() or not stand_in.size:
            gaps.append(
                NotTested(
                    what="Exposure",
                    why=f"{int(coins.sum())} canaries were planted, and there are {stand_in.size} alternatives",
                    fix="plant canaries by coin flips, and draw alternatives in the same way",
                )
            )
            return
        found = bits(coins, stand_in)
        numbers["exposure.mean"] = found.mean
        if not own or coins.all():
            gaps.append(
                NotTested(
                    what="Exposure of canaries that were not planted",
                    why="there are none beside the alternatives",
                    fix="draw alternatives of their own",
                )
            )
            return
        null = bits(~coins, others)
        numbers["exposure.held_out_mean"] = null.mean
        numbers["exposure.minus_held_out"] = mean_difference(
            np.concatenate([found.value, null.value]),
            np.arange(len(coins)),
            np.repeat([True, False], [len(found.value), len(null.value)]),
            confidence=self.confidence,
        )

    def _membership(
        self, score: Floats, coins: Bools, numbers: dict[str, Estimate], gaps: list[NotTested]
    ) -> None:
        left = int(np.count_nonzero(~coins))
        if not coins.any() or not left:
            why = f"{int(coins.sum())} of {len(coins)} canaries were planted"
            gaps.append(NotTested(what="Membership of canaries", why=why, fix="flip a fair coin for each"))
            return
        numbers["auc"] = auc(score, coins, confidence=self.confidence)
        for fpr in self.fprs:
            if fpr in supported_fprs(left, self.fprs):
                numbers[f"tpr_at_fpr_{fpr:g}"] = tpr_at_fpr(score, coins, fpr, confidence=self.confidence)
            else:
                gaps.append(
                    NotTested(
                        what=f"TPR of canaries at a false-positive rate of {fpr:g}",
                        why=f"{left} canaries were not planted",
                        fix=f"leave out at least {required_held_out(fpr)}",
                    )
                )

    def _bound(
        self, score: Floats, coins: Bools, numbers: dict[str, Estimate], gaps: list[NotTested]
    ) -> EpsilonBound | None:
        try:
            bound = epsilon_one_run(score, coins, delta=self._delta, confidence=self.confidence)
        except MemguardError as error:
            gaps.append(
                NotTested(what="Epsilon from one run", why=f"{error.seen}: {error.why}", fix=error.fix)
            )
            return None
        numbers["epsilon_lower_bound"] = Estimate(
            value=bound.epsilon,
            low=bound.epsilon,
            high=math.inf,
            n=bound.n,
            method=f"{bound.method}, lower bound, delta {self._delta:g}, at most {bound.largest:.2f} can be shown",
            confidence=self.confidence,
        )
        return bound

    def _answer(
        self, numbers: dict[str, Estimate], bound: EpsilonBound | None, alarm: bool, planted: int, m: int
    ) -> str:
        parts = [f"{planted} of {m} canaries were planted."]
        if "auc" in numbers:
            parts.append(f"Their losses tell planted ones from others with an AUC of {numbers['auc']:.2f}.")
        if bound is not None:
            parts.append(
                f"The training has an epsilon of at least {bound.epsilon:.2f} ({100 * self.confidence:g} % confidence, "
                f"delta {self._delta:g}); {m} canaries could have shown {bound.largest:.2f}."
            )
        if alarm:
            parts.insert(
                0, f"ALARM: the lower bound is above the claimed epsilon of {self.claimed_epsilon:g}."
            )
        return " ".join(parts)

    def _table(
        self, numbers: dict[str, Estimate], bound: EpsilonBound | None, coins: Bools, alternatives: int
    ) -> Table:
        words = {
            "exposure.mean": "Exposure of planted canaries, bits",
            "exposure.held_out_mean": "Exposure of canaries not planted, bits",
            "exposure.minus_held_out": "Exposure, planted minus not planted, bits",
            "auc": "AUC, planted against not planted",
            **{f"tpr_at_fpr_{fpr:g}": f"TPR at FPR {fpr:g}" for fpr in self.fprs},
            "epsilon_lower_bound": "Epsilon, lower bound",
        }
        rows: list[list[Cell]] = [[words[key], value.n, value] for key, value in numbers.items()]
        if bound is not None:
            rows.append(["Largest epsilon that so many canaries can show", bound.n, round(bound.largest, 2)])
        if self.claimed_epsilon is not None:
            rows.append(["Claimed epsilon", None, self.claimed_epsilon])
        note = (
            f"{int(coins.sum())} canaries planted, {int((~coins).sum())} not, {alternatives} alternatives. Without any "
            "memory the mean exposure is not 0 but about 1.4 bits, a little less with few alternatives."
        )
        return Table(title="Canaries", columns=["What", "Canaries", "Value"], rows=rows, note=note)

    def _notes(self, bound: EpsilonBound | None) -> list[str]:
        notes = [
            "The unit is the canary: a bound for canaries of one record says nothing about patients with several."
        ]
        claimed = self.claimed_epsilon
        if bound is not None and claimed is not None and bound.largest <= claimed:
            notes.append(
                f"So many canaries can show an epsilon of {bound.largest:.2f} at most, which is not above the claim of "
                f"{claimed:g}: whatever the model had done, this test could not have refuted it."
            )
        if bound is not None and bound.epsilon == 0.0:
            notes.append("A bound of 0 does not show that nothing leaks.")
        return notes


def _ask(target: ModelAdapter, canaries: Canaries, most: int) -> tuple[Floats, Floats]:
    """Nats per token of the canaries ``(m,)``, and of as many alternatives of each ``(m, R)``."""
    fewer = dataclasses.replace(canaries, others=canaries.others[:, :most])
    m, r = len(fewer), fewer.n_alternatives
    other = np.empty((m, r))
    for start in range(0, m if r else 0, _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, m))
        other[rows] = _nats(target, fewer.alternatives(rows)).reshape(len(rows), r)
    return _nats(target, fewer.sequences), other if r else np.zeros(0)


def _nats(target: ModelAdapter, sequences: Ragged) -> Floats:
    read = first_tokens(sequences, target.longest)
    token = np.maximum(target.log_probs(read), -745.0)  # a probability of zero is the smallest that is not
    predicted = ~np.isnan(token)
    rows, n = read.rows[predicted], len(read)
    count = np.bincount(rows, minlength=n)
    total = np.bincount(rows, weights=-token[predicted], minlength=n)
    return np.asarray(np.divide(total, count, out=np.full(n, np.nan), where=count > 0), dtype=np.float64)


def _finite(
    coins: Bools, loss: Floats, others: Floats, gaps: list[NotTested]
) -> tuple[Bools, Floats, Floats]:
    """Canaries and alternatives whose losses are numbers; the others are counted."""
    known = np.isfinite(loss)
    if others.ndim == 2:
        known &= np.isfinite(others).all(axis=1)
        others = others[known]
    elif not np.isfinite(others).all():
        bad = int(np.count_nonzero(~np.isfinite(others)))
        gaps.append(
            NotTested(what=f"{bad} of the alternatives", why="their loss is not a number", fix="measure it")
        )
        others = others[np.isfinite(others)]
    if not known.all():
        bad = int(np.count_nonzero(~known))
        gaps.append(
            NotTested(what=f"{bad} of the canaries", why="a loss of theirs is not a number", fix="measure it")
        )
    return coins[known], loss[known], others
