"""Chapters 11 and 12: what differential privacy promises, and what was shown against it."""

from __future__ import annotations

from memguard.report.audit.blocks import Alarm, Block, Bullets, Chapter, Para, Pre, TableBlock
from memguard.report.audit.data import AuditReport
from memguard.report.audit.promises import EpsilonClaim, EpsilonShown, NoClaim
from memguard.report.audit.wording import figure, named
from memguard.report.text import DASH, percent

__all__ = ["epsilon", "promise"]

_PROMISE = "Differential privacy: the promise"
_SHOWN = "Differential privacy: what was shown"
_UNBOUNDED = (
    "Nothing then bounds what leaks: every number in this report is what these attacks found, not what any attack "
    "could find."
)


def promise(report: AuditReport) -> Chapter:
    """11: what differential privacy promises, in the words of its statement; or why it promises nothing."""
    claim = report.claim
    if claim is None:
        return Chapter(11, _PROMISE, _nothing(report.no_claim))
    line = (
        f"epsilon = {claim.epsilon:.4g} at delta = {claim.delta:g}, for the presence of one {claim.unit}. It covers "
        "what the statement says and nothing else; this report, the flags and every other number computed from the "
        "data lie outside of it."
    )
    source = (
        f"Read from {claim.source}."
        if claim.source
        else "These numbers were given to the audit by hand: no ledger was read, and nobody checked them."
    )
    blocks: list[Block] = [Para(line), Para(source)]
    if claim.unit != report.unit:
        blocks.append(
            Alarm(
                f"The promise is for one {claim.unit} and this audit counts {report.unit}s: it does not cover all "
                f"records of a {report.unit} together."
                if claim.unit == "record"
                else f"The promise is for one {claim.unit} and this audit counts {report.unit}s."
            )
        )
    if claim.statement:
        blocks.append(Pre(claim.statement, "Statement of differential privacy"))
    else:
        said = "The statement (adjacency, accountant, sampling, clip, noise, steps, what lies outside) was not given."
        blocks.append(Para(said))
    return Chapter(11, _PROMISE, blocks)


def _nothing(void: NoClaim | None) -> list[Block]:
    if void is None:
        return [Para(f"No promise of differential privacy was given to the audit. {_UNBOUNDED}")]
    blocks: list[Block] = [
        Alarm("No promise of differential privacy can be claimed for this model."),
        Bullets(void.reasons, title="Why there is no claim"),
        Para(f"Read from {void.source}. {_UNBOUNDED}" if void.source else _UNBOUNDED),
    ]
    return [*blocks, Pre(void.statement, "Statement of differential privacy")] if void.statement else blocks


def epsilon(report: AuditReport) -> Chapter:
    """12: lower bounds of epsilon beside the promise."""
    claim = report.claim
    if not report.shown:
        said = (
            "No lower bound of epsilon was measured. It needs patients whose presence a fair coin decided before the "
            "training, or planted canaries."
        )
        if claim is not None:
            said += " The promise was therefore neither tested nor contradicted here."
        return Chapter(12, _SHOWN, [Para(said)])
    blocks: list[Block] = []
    rows = []
    for bound in report.shown:
        clash = None if claim is None else bound.contradicts(claim)
        if clash and claim is not None:
            blocks.append(Alarm(_contradicted(bound, claim)))
        rows.append(_row(bound, claim, clash))
    head = ("test", "epsilon at least", "claimed", "verdict", "at most showable", "guesses", "how")
    note = (
        "A bound of 0 says that nothing was shown, not that nothing leaks. At most showable: the bound if every guess "
        "had been right; an epsilon above it cannot be seen with so few coins."
    )
    words = frozenset({0, 3, 6})
    table = TableBlock("Lower bounds of epsilon.", head, rows, note=note, words=words)
    return Chapter(12, _SHOWN, [*blocks, table, Bullets(_reading(report), title="How to read it")])


def _contradicted(bound: EpsilonShown, claim: EpsilonClaim) -> str:
    return (
        f"{bound.probe}: epsilon is at least {bound.epsilon:.2f} at delta {bound.delta:g} with "
        f"{percent(bound.confidence)} confidence, and {claim.epsilon:.2f} at delta {claim.delta:g} is claimed. The "
        f"claim is false at this confidence: a training that keeps it gives so high a bound in at most "
        f"{percent(1 - bound.confidence)} of audits. Treat it as void, and look for the mistake in the training, in "
        "its account, or in the coins."
    )


def _reading(report: AuditReport) -> list[str]:
    """What the bounds prove beside the claim, and what they do not."""
    claim, shown = report.claim, report.shown
    wrong = min(1.0, sum(1 - one.confidence for one in shown))
    said = [
        "A bound is about the training, not about this one model alone: with fair coins, a training of a smaller "
        "epsilon gives so high a bound with the stated small probability, whatever attack was used.",
    ]
    if claim is None:
        said.append("There is no claim that it could contradict.")
    else:
        said += [
            "A bound below the claim does not confirm it. It is what one attack on so many coins could show; the "
            "true epsilon may lie anywhere above the bound, also above the claim.",
            "A bound above the claim refutes it at the stated confidence: then the training, its account or the "
            "coins are not what they are said to be.",
        ]
    if len(shown) > 1:
        said.append(
            f"{len(shown)} bounds were computed, each at a confidence of its own: the chance that any of them lies "
            f"above the true epsilon is at most {percent(wrong)}."
        )
    return said


def _row(bound: EpsilonShown, claim: EpsilonClaim | None, clash: bool | None) -> tuple[str, ...]:
    at = f"{figure(bound.epsilon, 2)} at {bound.delta:g}, {percent(bound.confidence)} confidence"
    coins = "canarie" if "canar" in bound.probe else bound.unit
    return (
        named(bound.probe),
        at,
        DASH if claim is None else f"{claim.epsilon:.4g} at {claim.delta:g}",
        _verdict(bound, claim, clash),
        figure(bound.largest, 2),
        f"{bound.correct:,} of {bound.guesses:,} right, {bound.n:,} {coins}s with a coin",
        f"{bound.method}; assumes {bound.assumption}; threshold {bound.threshold}",
    )


def _verdict(bound: EpsilonShown, claim: EpsilonClaim | None, clash: bool | None) -> str:
    if claim is None:
        return "no claim"
    if clash is None:
        if bound.delta < claim.delta:
            return "cannot be compared: its delta is smaller than that of the claim"
        return f"cannot be compared: the claim is for one {claim.unit}, a coin decided on one {bound.unit}"
    if clash:
        return "contradicts the claim"
    if bound.largest <= claim.epsilon:
        return "does not contradict it, and could not have: too few coins"
    return "does not contradict it"
