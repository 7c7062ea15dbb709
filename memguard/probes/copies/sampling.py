"""Whom to ask: records with copies, members without, and never-trained patients."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from memguard.probes.copies.asking import cut_at
from memguard.probes.copies.groups import Groups
from memguard.probes.copies.summary import Sample
from memguard.probes.result import NotTested
from memguard.probes.subject import Subject
from memguard.probes.trajectory.reading import Reader
from memguard.probes.trajectory.tiers import prompts_and_truth
from memguard.records.small_cells import MIN_CELL

__all__ = ["draw_sample"]

Ints = NDArray[np.int64]


def draw_sample(
    subject: Subject,
    reader: Reader,
    groups: Groups,
    prompt: str,
    *,
    longest: int | None,
    most: int,
    seed: int,
    horizon: int,
    fewest: int,
    gaps: list[NotTested],
) -> tuple[Sample | None, Ints]:
    """Copied records in whole groups, and one record each of members without copies and of never-trained patients.

    Args:
        subject: The records.
        reader: Which tokens are codes.
        groups: Which records have copies.
        prompt: What is shown.
        longest: Tokens that the model can read.
        most: Records of each kind.
        seed: Of the draw.
        horizon: Tokens of the rest at most.
        fewest: Codes that the rest needs.
        gaps: Takes in what is left out.

    Returns:
        The sample, ``None`` where a side has too few patients, and the tokens of each prompt.
    """
    cut = cut_at(subject, reader, prompt)
    _, after = prompts_and_truth(subject, np.arange(len(subject)), cut, horizon, longest)
    enough = (cut > 0) & (reader.count(after) >= fewest)
    order = np.random.default_rng([seed, 2]).permutation(len(subject))
    single = subject.member & ~np.isin(groups.unit, groups.unit[groups.copied])
    sides = {}
    for name, which in {"single": single, "held_out": ~subject.member}.items():
        rows = order[(which & enough)[order]]
        _, first = np.unique(subject.patient[rows], return_index=True)
        sides[name] = rows[np.sort(first)][:most]
    units = groups.unit[order[(groups.copied & enough)[order]]]
    _, first = np.unique(units, return_index=True)
    copied = np.zeros(0, np.int64)
    for unit in units[np.sort(first)]:  # whole groups, in random order, while there is room
        if len(copied) >= most:
            break
        members = np.flatnonzero((groups.unit == unit) & groups.copied & enough)
        copied = np.concatenate([copied, members])
    left = int((groups.copied & enough).sum()) - len(copied)
    if left:
        why = f"{most} records of a kind were asked about at most"
        gaps.append(
            NotTested(what=f"{left} records with copies, {prompt}", why=why, fix="pass a larger budget")
        )
    short = int((groups.copied & ~enough).sum())
    if short:
        why = f"they have no such prompt with {fewest} codes after it"
        gaps.append(NotTested(what=f"{short} records with copies, {prompt}", why=why))
    few = {"members with copies": copied, "never-trained patients": sides["held_out"]}
    for name, chosen in few.items():
        if np.unique(subject.patient[chosen]).size < MIN_CELL:
            why = f"fewer than {MIN_CELL} {name} have such a prompt and {fewest} codes after it"
            gaps.append(NotTested(what=f"prompt {prompt}", why=why))
            return None, cut
    rows = np.concatenate([copied, sides["single"], sides["held_out"]])
    is_copied = np.arange(len(rows)) < len(copied)
    sample = Sample(
        rows=rows,
        kinds={
            "copied": is_copied,
            "near_duplicate": is_copied & groups.between[rows],
            "repeated": is_copied & groups.within[rows],
            "single": subject.member[rows] & ~is_copied,
            "held_out": ~subject.member[rows],
        },
        unit=groups.unit[rows],
        clean=~subject.member[rows] & ~groups.across[rows],
    )
    return sample, cut[rows]
