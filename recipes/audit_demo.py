"""A full audit of a small model on real patients: train, train references, ask, report.

    python -m recipes.audit_demo                       # NAFLD; below ten minutes on two cores
    python -m recipes.audit_demo --data mimic          # 100 hospital patients, with the warnings that so few deserve
    python -m recipes.audit_demo --data support2       # a classifier of a table, with strata that the table names

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
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch

from memguard import Audit, LeakageMonitor, MemguardWarning, audit
from memguard.probes.asked import Budget

from .mimic_demo import MimicData
from .nafld_next_code import NafldData, NextCode
from .support2_mortality import Mortality, Support2Data

__all__ = ["main"]

Data = NafldData | MimicData | Support2Data
NAFLD_SENSITIVE = Path(__file__).parent / "data" / "nafld_sensitive.toml"


def nafld(args: argparse.Namespace, out: Path) -> tuple[pl.LightningModule, Data, dict[str, Any]]:
    """Next codes of the patients of one county, with a table of codes that stand in for sensitive ones."""
    data = NafldData(out / "meds", args.patients or 2400, args.held_out or 1200, seed=args.seed)
    names = data.sequences.vocabulary
    return NextCode(vocabulary=len(names)), data, {"vocabulary": names, "sensitive": NAFLD_SENSITIVE}


def mimic(args: argparse.Namespace, out: Path) -> tuple[pl.LightningModule, Data, dict[str, Any]]:
    """Next codes of hospital patients: diagnoses are ICD-9 and ICD-10, which memguard's own table reads."""
    data = MimicData(args.patients or 50, windows=12, seed=args.seed, last=True)
    names = data.vocabulary.names
    return NextCode(vocabulary=len(names)), data, {"vocabulary": names}


def support2(args: argparse.Namespace, out: Path) -> tuple[pl.LightningModule, Data, dict[str, Any]]:
    """Death in hospital from a table: only its owner knows which columns are age, sex and race."""
    data = Support2Data(args.patients or 4000, args.held_out or 2000, seed=args.seed)
    table = data.table
    rows = np.concatenate([table.rows("train"), table.rows("tuning")])  # as the two loaders number them
    strata = {"elderly": table.age[rows] >= 80}
    for level in ("sex: female", "sex: male", "race: black", "race: white"):
        # columns are standardized: only who belongs to a level is above zero
        strata[level.replace(": ", "_")] = table.x[rows, table.features.index(level)] > 0
    return Mortality(features=len(table.features)), data, {"strata": strata}


RECIPES = {"nafld": (nafld, 12), "mimic": (mimic, 12), "support2": (support2, 30)}


def main(argv: Sequence[str] | None = None) -> Audit:
    """Train, audit, and print what was found.

    Args:
        argv: Command line; `None` reads the real one.

    Returns:
        The audit.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=sorted(RECIPES), default="nafld")
    parser.add_argument("--epochs", type=int, help="12; 30 of SUPPORT2")
    parser.add_argument(
        "--patients", type=int, help="to train on: 2,400 of NAFLD, 50 of the MIMIC-IV demo, 4,000 of SUPPORT2"
    )
    parser.add_argument(
        "--held-out",
        type=int,
        help="never trained on: 1,200 of NAFLD, 2,000 of SUPPORT2; of MIMIC all others are",
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
    make, epochs = RECIPES[args.data]
    model, data, known = make(args, out)
    monitor = LeakageMonitor(dirpath=out / "memguard", seed=args.seed)
    trainer = pl.Trainer(
        max_epochs=args.epochs or epochs,
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
        backend=args.backend,
        budget=Budget(patients=args.asked, samples=5, seed=args.seed),
        folder=out / "audit",
        seed=args.seed,
        **known,
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
