"""What the monitor says where nothing is memorized: members that the model never learns from.

    python -m benchmarks.null_flags --runs 20 --kind moving

The Trainer feeds the monitor "members" as usual, but their gradients never reach the weights:

- ``still``: a model trained on other patients before, and a learning rate of zero;
- ``moving``: the model learns during the run, from other patients alone.

Every flag is then false. Printed: share of runs with a flag (to be held against the rate), mean AUC, share of
p-values below some levels, and the memorized share.
"""

import argparse
import logging
import tempfile
import warnings
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from torch.nn import functional as F

from memguard import LeakageMonitor
from recipes.nafld_next_code import NafldData, NextCode, Patients, pad


class Untouched(NextCode):
    """Learns from other patients inside the step; the batch of the Trainer only yields its loss."""

    def __init__(self, others: list[torch.Tensor], *, moving: bool, dropout: float, **kwargs) -> None:
        super().__init__(**kwargs)
        self.others, self.moving = others, moving
        for part in self.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = dropout
        self.inner = torch.optim.AdamW(self.parameters(), lr=self.lr)

    def learn(self, n: int) -> None:
        rows = torch.randint(len(self.others), (n,))
        batch = pad([self.others[row] for row in rows]).to(self.device)
        with torch.enable_grad():
            loss = F.cross_entropy(self(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten(), ignore_index=0)
            self.inner.zero_grad()
            loss.backward()
            self.inner.step()
            self.inner.zero_grad()

    def on_train_batch_start(self, batch, batch_idx) -> None:
        if self.moving:
            self.learn(len(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def one_run(seed: int, args: argparse.Namespace, folder: Path) -> dict[str, float | np.ndarray]:
    pl.seed_everything(seed, verbose=False)
    data = NafldData(folder / "meds", 3 * args.patients, args.held_out, seed=seed)
    everybody = Patients(data.sequences, "train")
    order = np.random.default_rng(seed).permutation(
        len(everybody)
    )  # ids may be in an order that means something
    members = torch.utils.data.Subset(everybody, order[: args.patients].tolist())
    others = [everybody[i] for i in order[args.patients :]]
    model = Untouched(
        others, moving=args.kind == "moving", dropout=args.dropout, vocabulary=len(data.sequences.vocabulary),
        width=args.width,
    )  # fmt: skip
    if args.kind == "still":
        for _ in range(args.epochs * args.patients // 64):
            model.learn(64)
    monitor = LeakageMonitor(dirpath=folder / "out", final_evaluation=True, seed=seed)
    trainer = pl.Trainer(
        max_epochs=args.epochs, accelerator="cpu", callbacks=[monitor], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(members, batch_size=64, shuffle=True, collate_fn=pad)
    trainer.fit(model, loader, data.val_dataloader())
    last = monitor.report.curve[-1]
    return {
        "flags": monitor.flags.height,
        "live": max((point.flagged_patients or 0) for point in monitor.curve[:-1]),
        "auc": last.auc.value,
        "covers": last.auc.low <= 0.5 <= last.auc.high,
        "share_low": last.memorized_share.low if last.memorized_share else np.nan,
        "share": last.memorized_share.value if last.memorized_share else np.nan,
        "fit": last.surrogate_fit if last.surrogate_fit is not None else np.nan,
        "blind": last.blind_auc.value,
        "p": monitor.patients["p"].to_numpy(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=100)
    parser.add_argument("--kind", choices=["still", "moving"], default="moving")
    parser.add_argument("--patients", type=int, default=800)
    parser.add_argument("--held-out", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--dropout", type=float, default=0.1)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    found = []
    for run in range(args.runs):
        with tempfile.TemporaryDirectory() as folder:
            found.append(one_run(args.first_seed + run, args, Path(folder)))
        now = found[-1]
        print(
            f"run {run}: flags {now['flags']} (live {now['live']}), AUC {now['auc']:.3f}, share {now['share']:.2f} "
            f"(low {now['share_low']:.2f}), fit {now['fit']:.2f}, p<.01 {np.mean(now['p'] < 0.01):.4f}, "
            f"blind {now['blind']:.3f}, p<.1 {np.mean(now['p'] < 0.1):.3f}, p<.5 {np.mean(now['p'] < 0.5):.3f}",
            flush=True,
        )
    p = np.concatenate([one["p"] for one in found])
    n = len(found)
    print(f"\n{args.kind}, dropout {args.dropout}: {n} runs")
    print(
        f"runs with a flag at the end: {np.mean([f['flags'] > 0 for f in found]):.2f}, live: "
        f"{np.mean([f['live'] > 0 for f in found]):.2f} (rate .10, 2 s.e. {2 * np.sqrt(0.09 / n):.2f})"
    )
    print(
        f"AUC {np.mean([f['auc'] for f in found]):.3f}, "
        f"interval covers .5 in {np.mean([f['covers'] for f in found]):.2f}"
    )
    print(
        f"share of p-values <= .01: {np.mean(p <= 0.01):.4f}; .1: {np.mean(p <= 0.1):.3f}; .5: {np.mean(p <= 0.5):.3f}"
    )
    print(f"lower end of the memorized share above 0: {np.mean([f['share_low'] > 0 for f in found]):.2f}")


if __name__ == "__main__":
    main()
