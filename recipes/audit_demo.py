"""A full audit of a small next-code model on real patients: train, train references, ask, report.

    python -m recipes.audit_demo                       # NAFLD; below ten minutes on two cores
    python -m recipes.audit_demo --data mimic          # 100 hospital patients, with the warnings that so few deserve

The model is trained past its best held-out epoch, so that there is something to find. References are trained on
random halves of the patients, members and held-out ones alike, and are kept in the output folder: a second run does
not train them again.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

import lightning.pytorch as pl
import torch

from memguard import Audit, LeakageMonitor, MemguardWarning, audit
from memguard.probes.asked import Budget
from recipes.mimic_demo import MimicData
from recipes.nafld_next_code import NafldData, NextCode

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> Audit:
    """Train, audit, and print what was found.

    Args:
        argv: Command line; `None` reads the real one.

    Returns:
        The audit.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=("nafld", "mimic"), default="nafld")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--patients", type=int, help="to train on: 2,400 of NAFLD, 60 of the MIMIC-IV demo")
    parser.add_argument(
        "--held-out", type=int, default=1200, help="never trained on; of MIMIC all others are"
    )
    parser.add_argument("--references", type=int, default=8)
    parser.add_argument("--backend", default="auto", help="how references are trained; ray uses every core")
    parser.add_argument(
        "--asked", type=int, default=60, help="patients of each side whom slow probes ask about"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="by default runs/audit_<data>")
    args = parser.parse_args(argv)
    start = time.perf_counter()
    warnings.filterwarnings("ignore", ".*does not have many workers.*")  # the data are in memory already
    warnings.filterwarnings("ignore", ".*treespec, LeafSpec.*")  # Lightning's own, about PyTorch
    warnings.filterwarnings("once", category=MemguardWarning)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    torch.set_num_threads(1)  # one core is enough for so small a model

    out = args.out or Path(f"runs/audit_{args.data}")
    pl.seed_everything(args.seed, verbose=False)
    data: NafldData | MimicData
    if args.data == "nafld":
        data = NafldData(out / "meds", args.patients or 2400, args.held_out, seed=args.seed)
        names = data.sequences.vocabulary
    else:
        data = MimicData(args.patients or 60, windows=12, seed=args.seed)
        names = data.vocabulary.names
    model = NextCode(vocabulary=len(names))
    monitor = LeakageMonitor(dirpath=out / "memguard", seed=args.seed)
    trainer = pl.Trainer(
        max_epochs=args.epochs,
        accelerator="cpu",
        callbacks=[monitor],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(model, data)
    trained = time.perf_counter() - start
    found = audit(
        model,
        data,
        monitor=monitor,
        references=args.references,
        vocabulary=names,
        sensitive=Path(__file__).parent / "data" / "nafld_sensitive.toml" if args.data == "nafld" else None,
        backend=args.backend,
        budget=Budget(patients=args.asked, samples=5, seed=args.seed),
        folder=out / "audit",
        seed=args.seed,
    )
    files = found.save(out / "audit")
    seconds = time.perf_counter() - start
    print(f"\n{fill(str(found), 100)}\n")
    for section in found.report.sections:
        print(fill(f"{section.probe}: {section.answer or 'not tested'}", 100, subsequent_indent="  "))
    print(
        f"\nTrained in {trained:.0f} s, audited in {seconds - trained:.0f} s. The page: {files.get('page')}"
    )
    return found


if __name__ == "__main__":
    main()
