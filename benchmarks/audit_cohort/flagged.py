"""Whom the membership test of an audit flags on the synthetic cohort, by stratum and by length of training.

    OMP_NUM_THREADS=1 python -m benchmarks.audit_cohort.flagged --cache runs/audit_cohort

A model trained far too long has memorized nearly everybody, and then no stratum can be flagged much more often than
it occurs: the ceiling of the ratio is one over the share of the members that are flagged. So models are trained for
several lengths, and each length stands beside its held-out loss.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from benchmarks.audit_cohort.models import Recipe, load_world
from benchmarks.audit_cohort.setting import adapters_of, audit_of
from benchmarks.cohort import STRATA
from memguard.attacks.aggregate import by_patient
from memguard.probes.asked import Asked, Budget
from memguard.probes.attacked import MembershipProbe
from memguard.probes.strata import enrichment


def losses(adapter, sequences) -> np.ndarray:
    """Nats a predicted token of each record."""
    log_p = adapter.log_probs(sequences)
    keep = np.isfinite(log_p)
    total = np.bincount(sequences.rows[keep], -log_p[keep], minlength=len(sequences))
    return total / np.maximum(np.bincount(sequences.rows[keep], minlength=len(sequences)), 1)


def run(seed: int, epochs: int, args: argparse.Namespace) -> None:
    """Print a row: the first half-model is audited, the others are its references."""
    world = load_world(seed, args.models, Recipe(n=args.records, epochs=epochs), args.cache)
    adapters = adapters_of(world)
    setting = audit_of(world, adapters, 0)
    subject, pool = setting.subject, setting.asked.references
    loss = losses(adapters[0], subject.sequences)
    tokens = np.maximum(subject.sequences.lengths - 1, 0)
    reference = np.stack([losses(one, subject.sequences) for one in pool.adapters()])
    asked = Asked(
        target=adapters[0],
        references=pool,
        loss=loss,
        reference_loss=reference,
        tokens=tokens.astype(np.int64),
    )
    found = MembershipProbe().run(subject, asked, Budget(seed=seed))
    member = subject.member
    patient, first = np.unique(subject.patient[member], return_index=True)
    stratum = setting.stratum[member][first]
    flagged = np.isin(patient, found.flagged)
    held = by_patient(subject.patient[~member], (loss * tokens)[~member], tokens[~member].astype(float))
    cells = []
    for i, _ in enumerate(STRATA):
        mine = stratum == i
        k, n = int((flagged & mine).sum()), int(flagged.sum())
        ratio = enrichment(k, n, int(mine.sum()), len(patient)) if n else None
        cells.append(
            "n/a" if ratio is None else f"{ratio.value:.1f} ({flagged[mine].mean():.0%} of {mine.sum()})"
        )
    ceiling = f"{len(patient) / flagged.sum():.1f}" if flagged.any() else "n/a"
    strongest = found.numbers["strongest.auc"]
    print(
        f"| {seed} | {epochs} | {np.mean(held.nats_per_token):.3f} | {strongest.value:.3f} | {flagged.mean():.0%} | "
        f"{ceiling} | " + " | ".join(cells) + " |",
        flush=True,
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[2])
    parser.add_argument("--epochs", type=int, nargs="+", default=[2, 3, 4, 5, 6, 8, 16])
    parser.add_argument("--records", type=int, default=4000)
    parser.add_argument("--models", type=int, default=8)
    parser.add_argument("--cache", type=Path, default=Path("runs/audit_cohort"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("Share of the flags over share of the members; in brackets, how many of the stratum are flagged.\n")
    print(f"| seed | epochs | held-out loss | AUC | flagged | ceiling | {' | '.join(STRATA)} |")
    print("|---" * (6 + len(STRATA)) + "|")
    for seed in args.seeds:
        for epochs in args.epochs:
            run(seed, epochs, args)


if __name__ == "__main__":
    main()
