"""Chapters 9 to 13: the training, what was done about memorization, promises and what contradicts them, utility."""

from __future__ import annotations

import functools
from typing import Any

from memguard.attacks.estimate import Estimate
from memguard.report.audit.blocks import Alarm, Block, Bullets, Chapter, Facts, Figure, Para, Pre, TableBlock
from memguard.report.audit.data import AuditReport
from memguard.report.audit.opening import answers
from memguard.report.audit.parts import EpsilonShown
from memguard.report.audit.wording import cell_text, figure, named, written
from memguard.report.data import CurvePoint, WatchReport
from memguard.report.figures import curve_figure
from memguard.report.table import thin
from memguard.report.text import DASH, cell, estimate, number, percent

__all__ = ["epsilon", "mitigations", "promise", "training", "utility"]


def training(report: AuditReport) -> Chapter:
    """9: how leakage grew while the model trained, where a monitor watched."""
    watch = report.watch
    if watch is None:
        said = "No monitor watched the training, so it is not known when leakage began. Pass monitor= to the audit."
        return Chapter(9, "Leakage during training", [Para(said)])
    blocks: list[Block] = [Para(watch.verdict())]
    if watch.curve:
        blocks.append(_curve(watch))
    blocks += [Bullets(watch.notes, title="Noted during the training")] if watch.notes else []
    last = watch.curve[-1] if watch.curve else None
    facts = [
        (
            "Loss gap",
            f"{written(last.loss_gap)} {watch.loss_unit}" if last and last.loss_gap else DASH,
            False,
        ),
        ("Tracked", f"{percent(last.coverage)} of the training records" if last else DASH, False),
        ("First leak", _first(watch), False),
    ]
    return Chapter(9, "Leakage during training", [*blocks, Facts(facts)])


def _first(watch: WatchReport) -> str:
    first = watch.first_above_chance
    if first is None:
        return "at no look on were all later AUC intervals above chance"
    return f"from epoch {first.epoch:g} on every AUC interval lies above chance"


def _curve(watch: WatchReport) -> Figure:
    first, last = watch.curve[0], watch.curve[-1]
    return Figure(
        name="watch",
        title="Losses and leakage over training",
        description=f"Membership AUC goes from {estimate(first.auc)} at epoch {first.epoch:g} to {estimate(last.auc)} "
        f"at epoch {last.epoch:g}; chance is .50. The table below has every look.",
        draw=functools.partial(_draw, watch),
        table=functools.partial(_looks, watch),
        caption="Train loss (dashed), held-out loss, and below them the membership AUC with its interval, each for one "
        "look. The vertical line is the best held-out epoch.",
        wide=True,
    )


def _draw(watch: WatchReport, colors: Any) -> Any:
    return curve_figure(watch, colors)


def _looks(watch: WatchReport, most: int) -> TableBlock:
    def row(point: CurvePoint) -> tuple[str, ...]:
        losses = (number(point.train_loss), number(point.held_out_loss))
        flagged = cell(point.flagged_patients, watch.min_cell)
        return (f"{point.epoch:g}", *losses, estimate(point.auc), flagged, percent(point.coverage))

    shown = thin(list(watch.curve), most)
    head = ("epoch", "train loss", "held-out loss", "membership AUC", "flagged", "tracked")
    note = (
        ""
        if len(shown) == len(watch.curve)
        else f"{len(shown)} of {len(watch.curve)} looks; report.json has all."
    )
    return TableBlock(
        f"Looks during training, losses in {watch.loss_unit}.",
        head,
        [row(p) for p in shown],
        note,
        folded=True,
    )


def mitigations(report: AuditReport) -> Chapter:
    """10: what was done, as far as somebody said so."""
    blocks: list[Block] = []
    if report.mitigations:
        blocks.append(Bullets(report.mitigations, title="What was done"))
    else:
        blocks.append(Para("No mitigation was named to the audit. That does not say that there was none."))
    blocks.append(
        Para(
            "Label smoothing, dropout, weight decay and early stopping are not counted as protection of single "
            "patients: a mitigation is shown by an audit with it and one without it, at the same utility.",
            soft=True,
        )
    )
    return Chapter(10, "Mitigations", [*blocks, Facts(answers(report, 10))])


def promise(report: AuditReport) -> Chapter:
    """11: what differential privacy promises, in the words of its statement."""
    claim = report.claim
    if claim is None:
        said = (
            "No promise of differential privacy was given to the audit. Nothing then bounds what leaks: every number "
            "in this report is what these attacks found, not what any attack could find."
        )
        return Chapter(11, "Differential privacy: the promise", [Para(said)])
    line = (
        f"epsilon = {claim.epsilon:.4g} at delta = {claim.delta:g}, for the presence of one {claim.unit}. It covers "
        "what the statement says and nothing else; this report, the flags and every other number computed from the "
        "data lie outside of it."
    )
    blocks: list[Block] = [Para(line)]
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
    return Chapter(11, "Differential privacy: the promise", blocks)


def epsilon(report: AuditReport) -> Chapter:
    """12: lower bounds of epsilon beside the promise."""
    title = "Differential privacy: what was shown"
    if not report.shown:
        said = (
            "No lower bound of epsilon was measured. It needs patients whose presence a fair coin decided before the "
            "training, or planted canaries."
        )
        return Chapter(12, title, [Para(said)])
    blocks: list[Block] = []
    rows = []
    for bound in report.shown:
        clash = None if report.claim is None else bound.contradicts(report.claim)
        if clash and report.claim is not None:
            blocks.append(
                Alarm(
                    f"{bound.probe}: epsilon is at least {bound.epsilon:.2f} with {percent(bound.confidence)} "
                    f"confidence, and {report.claim.epsilon:.2f} is claimed. One of them is wrong; treat the claim as "
                    "void until it is known which."
                )
            )
        rows.append(_bound(bound, report, clash))
    head = ("test", "epsilon at least", "claimed", "verdict", "at most showable", "guesses", "how")
    note = (
        "A bound of 0 says that nothing was shown, not that nothing leaks. At most showable: the bound if every guess "
        "had been right; an epsilon above it cannot be seen with so few coins."
    )
    words = frozenset({0, 3, 6})
    return Chapter(
        12, title, [*blocks, TableBlock("Lower bounds of epsilon.", head, rows, note=note, words=words)]
    )


def _bound(bound: EpsilonShown, report: AuditReport, clash: bool | None) -> tuple[str, ...]:
    claim = report.claim
    verdict = (
        "no claim"
        if claim is None
        else "cannot be compared"
        if clash is None
        else ("contradicts the claim" if clash else "does not contradict it")
    )
    at = f"{figure(bound.epsilon, 2)} at {bound.delta:g}, {percent(bound.confidence)} confidence"
    return (
        named(bound.probe),
        at,
        DASH if claim is None else f"{claim.epsilon:.4g} at {claim.delta:g}",
        verdict,
        figure(bound.largest, 2),
        f"{bound.correct:,} of {bound.guesses:,} right, {bound.n:,} {bound.unit}s with a coin",
        f"{bound.method}; assumes {bound.assumption}; threshold {bound.threshold}",
    )


def utility(report: AuditReport) -> Chapter:
    """13: what the model is good for."""
    blocks: list[Block] = []
    if report.utility:
        rows = [
            (
                one.name,
                written(one.value) if isinstance(one.value, Estimate) else cell_text(one.value),
                one.data or DASH,
                one.note or DASH,
            )
            for one in report.utility
        ]
        head = ("metric", "value", "on which patients", "note")
        blocks.append(TableBlock("Utility, as the user gave it.", head, rows, words=frozenset({0, 2, 3})))
    else:
        blocks.append(
            Para(
                "No utility was given. Leakage can only be weighed against what the model is good for: pass its "
                "metrics to the audit."
            )
        )
    return Chapter(13, "Utility", [*blocks, Facts(answers(report, 13))])
