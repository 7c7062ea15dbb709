"""Mitigations compared on the synthetic cohort, whose strata are known: a next-code model and a classifier.

    OMP_NUM_THREADS=1 python -m benchmarks.compare_cohort --model next-code --cohort 11
    OMP_NUM_THREADS=1 python -m benchmarks.compare_cohort --model classifier --cohort 11

What was trained lies in ``--out`` and is not trained again.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.cohort import LONGEST, PHENOTYPES, STRATA, Cohort, make_cohort
from benchmarks.private_cohort.model import PAD, NextCode, Records
from memguard import (
    DPSGD,
    Arm,
    Deduplicate,
    DropFlagged,
    FloodFlagged,
    FloorFlagged,
    GoldfishLoss,
    LeakageMonitor,
    LeakageStopping,
    Reweight,
    Study,
    compare,
)
from memguard.report.comparison import Comparison

FOUND = ("all", "hardest", "unique", "repeated patient", "ordinary")


class Sequences(NextCode):
    """The benchmark's transformer with the mean over codes as its loss."""

    def __init__(
        self,
        *,
        width: int = 48,
        layers: int = 2,
        rate: float = 3e-3,
        dropout: float = 0.0,
        decay: float = 0.0,
    ) -> None:
        super().__init__(length=LONGEST + 2, width=width, layers=layers, rate=rate)
        self.drop, self.decay = nn.Dropout(dropout), decay

    def forward(self, x: Tensor) -> Tensor:
        h = self.codes(x) + self.places(torch.arange(x.shape[1]).expand_as(x))
        for block in self.blocks:
            h = self.drop(block(h))
        return self.head(self.norm(h))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[:, :-1]).transpose(1, 2), batch[:, 1:], ignore_index=PAD)

    def validation_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[:, :-1]).transpose(1, 2), batch[:, 1:], ignore_index=PAD)
        self.log("val_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        found = super().configure_optimizers()
        for group in found["optimizer"].param_groups:
            group["weight_decay"] = self.decay
        return found


class Phenotypes(pl.LightningModule):
    """A perceptron from the codes that a record carries to one of twelve phenotypes."""

    def __init__(
        self,
        width: int = 64,
        rate: float = 1e-3,
        dropout: float = 0.0,
        decay: float = 0.0,
        sgd: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        drop = [nn.Dropout(dropout)] if dropout else []
        self.net = nn.Sequential(
            nn.Linear(598, width),
            nn.ReLU(),
            *drop,
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, PHENOTYPES),
        )
        self.rate, self.decay, self.sgd = rate, decay, sgd

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        logits = self.net(batch[0])
        loss = F.cross_entropy(logits, batch[1])
        self.log("val_loss", loss)
        self.log("val_accuracy", (logits.argmax(1) == batch[1]).float().mean())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        kind = torch.optim.SGD if self.sgd else torch.optim.AdamW
        return kind(self.parameters(), lr=self.rate, weight_decay=self.decay)


class Table(TensorDataset):
    def __init__(self, cohort: Cohort) -> None:
        super().__init__(torch.from_numpy(cohort.multi_hot()), torch.from_numpy(cohort.label))
        self.patient_ids = cohort.patient


def loaders(kind: str, seed: int, n: int, held_out: int) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Both sides of a cohort."""
    sides = make_cohort(seed, n=n, n_held_out=held_out)
    data = [
        Table(side) if kind == "classifier" else Records(side.codes, side.patient, LONGEST + 3)
        for side in sides
    ]
    return DataLoader(data[0], batch_size=64, shuffle=True), DataLoader(data[1], batch_size=256)


def strata(seed: int, n: int, held_out: int) -> dict[str, np.ndarray]:
    """The cohort's strata, name -> truth value of each record, members first."""
    sides = make_cohort(seed, n=n, n_held_out=held_out)
    of_record = np.concatenate([side.stratum for side in sides])
    return {name: of_record == number for number, name in enumerate(STRATA)}


def watched(*kinds: Any) -> list[pl.Callback]:
    """A monitor and what acts on its flags."""
    return [LeakageMonitor(), *[kind() for kind in kinds]]


def stopping() -> list[pl.Callback]:
    """End at the lowest loss on held-out patients."""
    early = pl.callbacks.EarlyStopping("val_loss", patience=2)
    return [early, pl.callbacks.ModelCheckpoint(monitor="val_loss")]


def limited() -> list[pl.Callback]:
    """End where the watched curve is shown to be over a limit."""
    return [LeakageMonitor(), LeakageStopping(0.6)]


def private(**settings: Any) -> list[pl.Callback]:
    """DP-SGD."""
    return [DPSGD(**settings)]


def arms(kind: str) -> dict[str, Arm]:
    """The arms of one kind of model."""
    model: Any = Phenotypes if kind == "classifier" else Sequences
    epochs = 30 if kind == "classifier" else 10
    run = {"max_epochs": epochs, "accelerator": "cpu"}
    # Chosen on cohort 12, so no other cohort's tables were looked at. With noise plain SGD is better than AdamW, which
    # makes steps of one size of it.
    quick: dict[str, Any] = {"rate": 1e-2, "width": 32, "layers": 1}
    private_run, batch = {**run, "max_epochs": 24}, 128
    if kind == "classifier":
        quick, batch = {"rate": 2.0, "width": 256, "sgd": True}, 256
        private_run = {**run, "max_epochs": 16}

    def dp(epsilon: float, unit: str = "patient") -> Arm:
        settings = {"target_epsilon": epsilon, "unit": unit, "expected_batch_size": batch}
        told = {"epsilon": epsilon, "unit": unit, **quick, **private_run}
        return Arm(
            model=partial(model, **quick),
            trainer=private_run,
            callbacks=partial(private, **settings),
            settings=told,
        )

    found = {
        "none": Arm(model=model, trainer=run),
        "early stopping": Arm(model=model, trainer=run, callbacks=stopping),
        "dropout": Arm(model=partial(model, dropout=0.2), trainer=run, settings={"dropout": 0.2}),
        "weight decay": Arm(model=partial(model, decay=1.0), trainer=run, settings={"weight_decay": 1.0}),
        "floor": Arm(model=model, trainer=run, callbacks=partial(watched, FloorFlagged)),
        "flood": Arm(model=model, trainer=run, callbacks=partial(watched, FloodFlagged)),
        "drop": Arm(model=model, trainer=run, callbacks=partial(watched, DropFlagged)),
        "reweight": Arm(model=model, trainer=run, callbacks=partial(watched, Reweight)),
    }
    found["leakage stopping"] = Arm(model=model, trainer=run, callbacks=limited)
    found["deduplicate"] = Arm(model=model, trainer=run, callbacks=lambda: [Deduplicate()])
    if kind == "next-code":
        found["goldfish"] = Arm(model=model, trainer=run, callbacks=lambda: [GoldfishLoss()])
        found["DP-SGD by record, epsilon 100"] = dp(100, "record")
        found["DP-SGD by patient, epsilon 100"] = dp(100)
    else:  # what the private arms are without clipping and noise
        wide = {**quick, "rate": 0.2}
        found["wide, SGD"] = Arm(model=partial(model, **wide), trainer=private_run, settings=wide)
    for epsilon in (500, 50, 8) if kind == "classifier" else (8,):
        found[f"DP-SGD by patient, epsilon {epsilon}"] = dp(epsilon)
    return found


def study(kind: str, cohort: int, n: int, held_out: int, seeds: int) -> Study:
    """The study of one kind of model on one cohort."""
    return Study(
        data=partial(loaders, kind, cohort, n, held_out),
        arms=arms(kind),
        baseline="none",
        seeds=seeds,
        stages=5,
        strata=strata(cohort, n, held_out),
        seed=cohort,
    )


def table(found: Comparison) -> str:
    """Where training ends: utility, and who is found."""
    lines = [f"| arm | held-out loss | {' | '.join(f'TPR {name}' for name in FOUND)} | unseen unique, loss |"]
    lines.append("|---" * (len(FOUND) + 3) + "|")
    for arm in found.names():
        cells = [found.row(arm, "all", "held_out_loss"), *[found.find(arm, name, "tpr") for name in FOUND]]
        cells.append(found.find(arm, "unique", "unseen_loss"))
        told = [
            "-" if one is None else f"{one.value.value:.3f} [{one.value.low:.2f}, {one.value.high:.2f}]"
            for one in cells
        ]
        lines.append(f"| {arm} | {' | '.join(told)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=("next-code", "classifier"), default="next-code")
    parser.add_argument("--cohort", type=int, default=11)
    parser.add_argument("--records", type=int, default=2000, help="each model trains on half")
    parser.add_argument("--held-out", type=int, default=1200)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--arms", nargs="+")
    parser.add_argument("--out", type=Path, default=Path("runs/compare_cohort"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    out = args.out / f"{args.model}-{args.cohort}"
    given = study(args.model, args.cohort, args.records, args.held_out, args.seeds)
    found = compare(given, folder=out, arms=args.arms)
    found.save(out)
    print(f"\n{found}\n\n{table(found)}\n\nThe page: {out}/comparison.html")


if __name__ == "__main__":
    main()
