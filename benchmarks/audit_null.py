"""A full audit of models that never saw the patients whom it is told they were trained on.

    OMP_NUM_THREADS=1 python -m benchmarks.audit_null --runs 20

Each run draws three groups of real patients (NAFLD) at random: the model is trained on the first, and
`memguard.audit` is told that it was trained on the second, with the third held out. References are trained as in
any audit, on halves of the second and third. Whatever a test finds is then an error. Printed for each test: how
often its deciding number's interval lay above the null (a 95 % interval may in 2.5 % of the runs), how often the null
was outside the interval on either side (5 %), and how often it flagged anybody (at most the false-discovery rate,
10 %).
"""

from __future__ import annotations

import argparse
import logging
import math
import tempfile
import time
import warnings
from collections import defaultdict
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import DataLoader, Subset

from memguard import audit
from memguard.probes.asked import Budget
from memguard.report.audit.verdict import finding
from recipes.nafld_next_code import NafldData, NextCode, Patients, pad

SENSITIVE = Path(__file__).parent.parent / "recipes" / "data" / "nafld_sensitive.toml"


def one_run(seed: int, args: argparse.Namespace, folder: Path):
    """The audit of a model of other patients."""
    pl.seed_everything(seed, verbose=False)
    n, others = args.patients, 2 * args.patients // 2
    data = NafldData(args.meds, n + others, n, seed=seed)
    everybody = Patients(data.sequences, "train")
    order = np.random.default_rng(seed).permutation(len(everybody)).tolist()
    model = NextCode(vocabulary=len(data.sequences.vocabulary), width=args.width)
    trainer = pl.Trainer(
        max_epochs=args.epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip

    def loader(rows, shuffle):
        return DataLoader(Subset(everybody, rows), batch_size=48, shuffle=shuffle, collate_fn=pad)

    trainer.fit(model, loader(order[n:], True))
    held = DataLoader(Patients(data.sequences, "tuning"), batch_size=48, collate_fn=pad)
    return audit(
        model, (loader(order[:n], True), held), references=args.references, trainer=trainer,
        record_to_patient=None, vocabulary=data.sequences.vocabulary, sensitive=SENSITIVE,
        budget=Budget(patients=args.asked, samples=5, seed=seed), folder=folder, seed=seed, progress=False,
    )  # fmt: skip


def main() -> None:
    """Print a line a run, then the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=500)
    parser.add_argument("--patients", type=int, default=600, help="of each of the three groups")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--references", type=int, default=4)
    parser.add_argument("--asked", type=int, default=60)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    above, outside, flagged, runs = defaultdict(int), defaultdict(int), defaultdict(int), defaultdict(int)
    judged, names = defaultdict(int), {}
    with tempfile.TemporaryDirectory() as meds:
        args.meds = Path(meds)
        for run in range(args.runs):
            start = time.perf_counter()
            with tempfile.TemporaryDirectory() as folder:
                found = one_run(args.first_seed + run, args, Path(folder))
            said = []
            for section in found.report.sections:
                runs[section.probe] += 1
                deciding = section.deciding
                if (
                    deciding is not None
                    and deciding.null is not None
                    and not math.isnan(deciding.estimate.low)
                ):
                    judged[section.probe] += 1
                    names[section.probe] = section.headline
                    estimate = deciding.estimate
                    above[section.probe] += estimate.low > deciding.null
                    outside[section.probe] += not estimate.low <= deciding.null <= estimate.high
                    said.append(
                        f"{section.probe} {estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
                    )
                flagged[section.probe] += bool(section.n_flagged)
                if finding(section) == "found":
                    said.append(f"{section.probe}: FOUND ({section.n_flagged} flagged)")
            print(f"run {run} ({time.perf_counter() - start:.0f} s): {'; '.join(said)}", flush=True)
    print("\n| test | deciding number | runs judged | above the null | null outside | runs with a flag |")
    print("|---|---|---|---|---|---|")
    for probe, n in runs.items():
        print(
            f"| {probe} | {names.get(probe, 'none')} | {judged[probe]} of {n} | {above[probe]} | {outside[probe]} | "
            f"{flagged[probe]} |"
        )


if __name__ == "__main__":
    main()
