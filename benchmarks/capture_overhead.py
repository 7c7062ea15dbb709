"""What capture alone adds to an epoch: two Trainers take turns at every batch, one with it and one without it.

    python -m benchmarks.capture_overhead

With capture, positions and losses of every record are kept at each step and gathered at the end of the epoch. The bar:
at most 3 % on the transformer of at least 1M parameters; the MLP, whose step costs next to nothing, is the worst case.
"""

from __future__ import annotations

from collections.abc import Callable

import lightning.pytorch as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.turns import measure, options, prepare, size, table
from memguard.capture import Capture, LossTraces, Observation, collect


class Model(pl.LightningModule):
    """Logits ``(N, classes)`` and targets ``(N,)`` from `compare`, their mean cross-entropy, AdamW."""

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(*self.compare(batch))
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 1e-3)


class Transformer(Model):
    """Next-code model: 2 layers, width 128, 4,000 codes."""

    def __init__(self, vocabulary=4000, width=128, length=128):
        super().__init__()
        self.embed, self.place = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True, dropout=0.1)
        self.body = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(width, vocabulary)

    def compare(self, batch):
        given, target = batch[0][:, :-1], batch[0][:, 1:]
        mask = nn.Transformer.generate_square_subsequent_mask(given.shape[1])
        hidden = self.embed(given) + self.place(torch.arange(given.shape[1]))
        return self.head(self.body(hidden, mask=mask, is_causal=True)).flatten(0, 1), target.flatten()

    @staticmethod
    def data(n):
        return TensorDataset(torch.randint(0, 4000, (n, 65)))


class Mlp(Model):
    """The worst case: a step that costs next to nothing."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 2))

    def compare(self, batch):
        return self.net(batch[0]), batch[1]

    @staticmethod
    def data(n):
        return TensorDataset(torch.randn(n, 32), torch.randint(0, 2, (n,)))


class Watch(pl.Callback):
    """Capture, and nothing that is done with what it finds but one loss a record and epoch."""

    def __init__(self, n: int) -> None:
        self.capture, self.traces = Capture(), LossTraces(n)
        self.seen: list[Observation] = []

    def setup(self, trainer, pl_module, stage) -> None:
        self.capture.install(trainer, pl_module)

    def teardown(self, trainer, pl_module, stage) -> None:
        self.capture.restore()

    def on_train_batch_end(self, *args) -> None:
        self.seen.append(self.capture.last_train)

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        positions, loss, _ = collect(self.seen)
        self.seen.clear()
        self.traces.add(positions, loss)
        self.traces.close(trainer.current_epoch)


def arms(model: type[Transformer] | type[Mlp], batch_size: int, steps: int) -> Callable:
    """Makes the arms; both see the same data, shuffled alike."""

    def make(watched: bool):
        data = model.data(batch_size * steps)
        order = torch.Generator().manual_seed(0)
        loader = DataLoader(data, batch_size, shuffle=True, generator=order)
        return model(), loader, [Watch(len(data))] if watched else []

    return make


def main(argv: list[str] | None = None) -> None:
    parser = options(__doc__.splitlines()[0])
    parser.add_argument(
        "--steps",
        type=int,
        default=50,
        help="of the transformer in an epoch; the MLP takes ten times as many",
    )
    args = parser.parse_args(argv)
    prepare(args.threads)
    for model, batch_size, steps in ((Transformer, 16, args.steps), (Mlp, 64, 10 * args.steps)):
        seconds = measure(arms(model, batch_size, steps), epochs=args.epochs, repeats=args.repeats)
        print(f"{model.__name__}, {size(model()):,} parameters, {args.threads} thread(s)\n{table(seconds)}")


if __name__ == "__main__":
    main()
