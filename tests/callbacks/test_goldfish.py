"""GoldfishLoss in a Trainer: the training is that on the loss written by hand, alone, watched and private."""

from __future__ import annotations

import json
from functools import partial

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from _private import Codes, Gpt, Recorder, Rnn, padded, plain_gradient
from _private import private as _private
from _runs import Forecaster, loaders, trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from memguard import LeakageMonitor
from memguard.callbacks.goldfish import GoldfishLoss
from memguard.errors import AmbiguousLossError, IndexTrackingError, MemguardError
from memguard.mitigations.goldfish import goldfish_kept, goldfish_keys

pytestmark = pytest.mark.filterwarnings("ignore")
V, T, K, H, SEED = 20, 12, 3, 4, 7


def goldfish(**more):
    return GoldfishLoss(K, H, seed=SEED, **more)


def by_hand(logits, targets, counted, weight=None):
    """Each record's mean over the tokens that stay, with the share that the record has in the mean over all tokens."""
    kept = goldfish_kept(targets, counted, K, goldfish_keys(H, SEED))
    each = -logits.log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    mass = (torch.ones(V) if weight is None else weight).to(each)[targets.clamp(min=0)] * counted
    means = (each * mass * kept).sum(1) / (mass * kept).sum(1)
    return (means * mass.sum(1) / mass.sum()).sum()


class Records(Dataset):
    def __init__(self, n=48, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.codes = torch.randint(1, V, (n, T), generator=generator)
        lengths = torch.randint(4, T + 1, (n, 1), generator=generator)
        self.codes = self.codes.masked_fill(torch.arange(T) >= lengths, 0)
        self.patient_ids = np.arange(n) // 2

    def __len__(self):
        return len(self.codes)

    def __getitem__(self, i):
        return {"codes": self.codes[i], "at": i}


WEIGHT = torch.linspace(0.2, 2, V)


class Lstm(pl.LightningModule):
    """``way`` says how the loss is written, ``hand`` trains on the loss written by hand."""

    def __init__(self, way, hand=False, dropout=0.0):
        super().__init__()
        self.way, self.hand = way, hand
        self.embed, self.rnn = nn.Embedding(V, 16), nn.LSTM(16, 16, batch_first=True)
        self.drop, self.out = nn.Dropout(dropout), nn.Linear(16, V)

    def loss(self, codes):
        y = codes[:, 1:]
        hidden = self.drop(self.rnn(self.embed(codes[:, :-1]))[0])
        if self.hand:
            weight = WEIGHT if self.way == "weights, ignored" else None
            return by_hand(self.out(hidden), y, y != 0, weight)
        if self.way == "classes second":
            return F.cross_entropy(self.out(hidden).transpose(1, 2), y, ignore_index=0)
        if self.way == "flattened before the head":
            return F.cross_entropy(self.out(hidden.reshape(-1, 16)), y.reshape(-1), ignore_index=0)
        logits = self.out(hidden)
        if self.way == "weights, ignored":
            marked = y.masked_fill(y == 0, -1).reshape(-1)
            return F.cross_entropy(logits.reshape(-1, V), marked, weight=WEIGHT.to(logits), ignore_index=-1)
        each = F.cross_entropy(logits.transpose(1, 2), y, reduction="none", ignore_index=0)
        return each.sum() / (y != 0).sum()

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch["codes"])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch["codes"]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)


class Gpt2(Lstm):
    """Labels are shifted inside the model."""

    def __init__(self, hand=False):
        transformers = pytest.importorskip("transformers")
        super().__init__("", hand)
        sizes = {"vocab_size": V, "n_positions": T, "n_embd": 16, "n_layer": 2, "n_head": 2}
        quiet = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        self.net = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **quiet))

    def loss(self, codes):
        out = self.net(codes, attention_mask=(codes != 0).long(), labels=codes.masked_fill(codes == 0, -100))
        if self.hand:
            return by_hand(out.logits[:, :-1], codes[:, 1:], codes[:, 1:] != 0)
        return out.loss


def fitted(tmp_path, make, *callbacks, n=48, epochs=2, held_out=True, **options):
    pl.seed_everything(0, verbose=False)
    module = make()
    run = trainer(tmp_path, *callbacks, epochs=epochs, **{"logger": False, "precision": "64-true", **options})
    train = DataLoader(Records(n), batch_size=8, shuffle=True)
    run.fit(module, train, DataLoader(Held(), batch_size=20) if held_out else None)
    return [p.detach().clone() for p in module.parameters()]


class Held(Records):
    def __init__(self):
        super().__init__(60, seed=9)
        self.patient_ids = 1000 + np.arange(60)


def same(a, b, atol=1e-9):
    for one, other in zip(a, b, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=atol)


WAYS = {
    **{
        way: partial(Lstm, way)
        for way in ("classes second", "flattened before the head", "weights, ignored", "none, then pooled")
    },
    "GPT-2": Gpt2,
}


@pytest.mark.parametrize("way", WAYS)
def test_training_is_that_on_the_loss_by_hand(tmp_path, way):
    make = WAYS[way]
    found = fitted(tmp_path, make, goldfish(), held_out=False)
    same(found, fitted(tmp_path, partial(make, hand=True), held_out=False), atol=1e-6)
    with pytest.raises(AssertionError):
        same(found, fitted(tmp_path, make, held_out=False), atol=1e-3)


@pytest.mark.parametrize("options", [{"accumulate_grad_batches": 3}, {"gradient_clip_val": 0.05}], ids=str)
def test_accumulation_and_clipping_need_nothing_else(tmp_path, options):
    make = WAYS["classes second"]
    found = fitted(tmp_path, make, goldfish(), **options)
    same(found, fitted(tmp_path, partial(make, hand=True), **options), atol=1e-7)


@pytest.mark.parametrize("first", ["monitor", "goldfish"])
def test_a_monitor_changes_nothing_and_its_report_says_it(tmp_path, first):
    make = partial(Lstm, "classes second", dropout=0.2)
    alone = fitted(tmp_path / "a", make, goldfish(), precision="32-true")
    monitor = LeakageMonitor(dirpath=tmp_path / "watch", final_evaluation=False)
    fish = goldfish()
    order = (monitor, fish) if first == "monitor" else (fish, monitor)
    watched = fitted(tmp_path / "b", make, *order, precision="32-true")
    assert all(torch.equal(a, b) for a, b in zip(alone, watched, strict=True))
    said = [note for note in monitor.report.notes if "GoldfishLoss" in note]
    assert len(said) == 1 and "one in 3" in said[0] and "no guarantee" in said[0]
    assert fish.touched.shape == (48,) and fish.touched.all()


def test_a_resumed_run_is_the_same(tmp_path):
    def go(folder, epochs, **kwargs):
        pl.seed_everything(0, verbose=False)
        keep = ModelCheckpoint(tmp_path / folder, filename="last", save_on_train_epoch_end=True)
        run = trainer(tmp_path, goldfish(), keep, epochs=epochs, logger=False, enable_checkpointing=True)
        module = Lstm("classes second")
        run.fit(module, DataLoader(Records(), batch_size=8), **kwargs)
        return [p.detach().clone() for p in module.parameters()], keep.best_model_path

    whole, _ = go("whole", 3)
    _, path = go("half", 1)
    again, _ = go("half2", 3, ckpt_path=path)
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))


def test_trainer_and_loader_are_as_before(tmp_path):
    fish, data = goldfish(), DataLoader(Records(), batch_size=8)
    run = trainer(tmp_path, fish, epochs=1, logger=False)
    run.fit(Lstm("classes second"), data)
    assert run.train_dataloader is data
    for part in (run.strategy, run.precision_plugin):
        assert not any(callable(value) and "memguard" in repr(value) for value in vars(part).values())
    assert fish._own is None and fish._weigher is None
    run.fit_loop.max_epochs = 2
    run.fit(Lstm("classes second"), data)  # a second fit of one Trainer


# -- what is refused -------------------------------------------------------------------------------------


class Labels(Forecaster):
    """One label a record: no tokens."""

    def loss(self, batch):
        codes = batch["codes"]
        return F.cross_entropy(self.out(self.rnn(self.embed(codes[:, :-1]))[0][:, -1]), codes[:, -1])


class Given(Forecaster):
    def per_record_loss(self, batch):
        codes = batch["codes"]
        logits = self.out(self.drop(self.rnn(self.embed(codes[:, :-1]))[0]))
        return F.cross_entropy(logits.transpose(1, 2), codes[:, 1:], reduction="none").mean(1)


class ByHand(Forecaster):
    automatic_optimization = False


class Lbfgs(Forecaster):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), max_iter=3)


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield from (Records()[i] for i in range(16))


@pytest.mark.parametrize(
    ("module", "error", "match"),
    [
        (Labels, AmbiguousLossError, "tokens are not known"),
        (Given, AmbiguousLossError, "per_record_loss"),
        (ByHand, MemguardError, "manual optimization"),
        (Lbfgs, MemguardError, "LBFGS"),
    ],
)
def test_refusals(tmp_path, module, error, match):
    run = trainer(tmp_path, goldfish(), logger=False)
    with pytest.raises(error, match=match):
        run.fit(module(), loaders(60, 40)[0])


def test_a_stream_needs_ids(tmp_path):
    def go(fish):
        trainer(tmp_path, fish, epochs=1, logger=False).fit(
            Lstm("classes second"), DataLoader(Stream(), batch_size=8)
        )

    with pytest.raises(IndexTrackingError, match="IterableDataset"):
        go(goldfish())


# -- beside DP-SGD ---------------------------------------------------------------------------------------


private = partial(_private, max_grad_norm=0.3)


def private_trainer(tmp_path, *callbacks, **options):
    return trainer(tmp_path, *callbacks, logger=False, default_root_dir=tmp_path, **options)


def oracle(module, codes):
    logits = module(codes[:, :-1])
    each = F.cross_entropy(logits.transpose(1, 2), codes[:, 1:], reduction="none", ignore_index=0)
    counted = codes[:, 1:] != 0
    kept = goldfish_kept(codes[:, 1:], counted, K, goldfish_keys(H, SEED)) & counted
    return (each * kept).sum() / kept.sum()


class FlatHead(Rnn):
    """Its head gives the very tensor that goes into the loss."""

    def forward(self, codes):
        hidden = self.rnn(self.embed(codes))[0]
        return self.head(hidden.reshape(-1, hidden.shape[-1])).reshape(*hidden.shape[:2], -1)

    def loss(self, codes):
        hidden = self.rnn(self.embed(codes[:, :-1]))[0]
        logits = self.head(hidden.reshape(-1, hidden.shape[-1]))
        return F.cross_entropy(logits, codes[:, 1:].flatten(), ignore_index=0)


class Transposed(Gpt):
    def loss(self, codes):
        return F.cross_entropy(self(codes[:, :-1]).transpose(1, 2), codes[:, 1:], ignore_index=0)


class Pooled(Gpt):
    """The step pools the losses of tokens itself."""

    def loss(self, codes):
        logits = self(codes[:, :-1]).transpose(1, 2)
        each = F.cross_entropy(logits, codes[:, 1:], reduction="none", ignore_index=0)
        return (each * (codes[:, 1:] != 0)).sum() / (codes[:, 1:] != 0).sum()


@pytest.mark.parametrize("engine", ["loop", "opacus"])
@pytest.mark.parametrize("make", [Gpt, partial(Gpt, functional=True), FlatHead, Transposed, Pooled], ids=str)
def test_private_updates_are_those_of_the_weighed_loss_by_hand(tmp_path, make, engine):
    torch.manual_seed(0)
    data, module, dpsgd = Codes(records=30), make(), private(engine=engine, checks=True)
    recorder = Recorder(dpsgd)
    run = private_trainer(tmp_path, goldfish(), dpsgd, recorder, max_steps=4, max_epochs=50)
    run.fit(module, DataLoader(data, batch_size=12, shuffle=True, collate_fn=padded))
    assert len(recorder.steps) == 4
    for weights, positions, grads in recorder.steps:
        settings = {"clip": 0.3, "expected": dpsgd._run.plan.expected_owners}
        given = (data, weights, positions, data.patient_ids)
        weighed = plain_gradient(module, lambda m, row: oracle(m, padded([data[row]])), *given, **settings)
        plain = plain_gradient(module, lambda m, row: m.loss(padded([data[row]])), *given, **settings)
        for name, right in weighed.items():
            torch.testing.assert_close(grads[name], right, rtol=1e-4, atol=1e-6)
        if positions:
            assert max(float((grads[name] - plain[name]).abs().max()) for name in plain) > 1e-3


def test_it_stands_in_the_ledger_as_composing(tmp_path):
    torch.manual_seed(0)
    dpsgd = private(engine="auto", noise_multiplier=1.0)
    run = private_trainer(tmp_path, dpsgd, goldfish(), max_steps=3, max_epochs=50)
    run.fit(Gpt(), DataLoader(Codes(records=30), batch_size=12, collate_fn=padded))
    entries = [json.loads(line) for line in dpsgd.ledger_path.read_text().splitlines()]
    (entry,) = [one for one in entries if one["kind"] == "mitigation"]
    assert entry["depends_on"] == "record" and entry["name"] == "GoldfishLoss"
    statement = dpsgd.statement()
    assert not statement.no_guarantee and not any("Goldfish" in one for one in statement.outside)
    (said,) = [one for one in statement.noted if "GoldfishLoss(k=3, h=4)" in one]
    assert "before clipping" in said


def test_watched_and_private(tmp_path):
    torch.manual_seed(0)

    class Watched(Gpt):
        def validation_step(self, batch, batch_idx):
            return self.loss(batch)

    held = Codes(records=40, patients=40, seed=3)
    held.patient_ids = held.patient_ids + 500
    monitor, dpsgd = (
        LeakageMonitor(dirpath=tmp_path / "watch", final_evaluation=False),
        private(engine="opacus"),
    )
    run = private_trainer(tmp_path, monitor, goldfish(), dpsgd, epochs=2)
    run.fit(
        Watched(),
        DataLoader(Codes(records=30), batch_size=12, collate_fn=padded),
        DataLoader(held, batch_size=20, collate_fn=padded),
    )
    assert any("GoldfishLoss" in note for note in monitor.report.notes)
    assert monitor.curve
