"""Chapters 9, 10 and 13: the training, what was done about memorization, utility."""

from __future__ import annotations

import functools
from typing import Any

from memguard.attacks.estimate import Estimate
from memguard.report.audit.blocks import Block, Bullets, Chapter, Facts, Figure, Para, TableBlock
from memguard.report.audit.data import AuditReport
from memguard.report.audit.opening import answers
from memguard.report.audit.wording import cell_text, written
from memguard.report.data import CurvePoint, WatchReport
from memguard.report.figures import curve_figure
from memguard.report.table import thin
from memguard.report.text import DASH, cell, estimate, number, percent

__all__ = ["mitigations", "training", "utility"]


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
    elif not report.answers.get("mitigations"):
        blocks.append(Para("No mitigation was seen or named. That does not say that there was none."))
    blocks.append(
        Para(
            "Label smoothing, dropout, weight decay and early stopping are not counted as protection of single "
            "patients: a mitigation is shown by an audit with it and one without it, at the same utility.",
            soft=True,
        )
    )
    return Chapter(10, "Mitigations", [*blocks, Facts(answers(report, 10))])


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
