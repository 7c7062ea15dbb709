"""What must be refused or survived: the right words, a training that is not lost, nothing left on the trainer."""

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from _runs import Forecaster, Visits, loaders, trainer, watched
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, default_collate

from memguard import LeakageMonitor, check
from memguard.capture.order import has_own_order
from memguard.errors import (
    AmbiguousLossError,
    DataError,
    HeldOutError,
    IndexTrackingError,
    MemguardWarning,
    PatientOverlapError,
)
from memguard.probes.watch import Watch

pytestmark = pytest.mark.filterwarnings("ignore")


class Stream(IterableDataset):
    def __iter__(self):
        return iter([{"codes": row} for row in Visits(64, 1).codes])


class SizedStream(Stream):
    def __len__(self):
        return 64


class Rows(Visits):
    def __getitem__(self, i):
        return {"codes": self.codes[i], "row": i, "mrn": int(self.patient_ids[i])}


def dropping(samples):
    return default_collate(samples[:-1])


def by_length(samples):
    return default_collate(sorted(samples, key=lambda one: -int((one["codes"] > 0).sum())))


def held(n=160, first=10_000, kind=Visits, **options):
    return DataLoader(kind(n, 2, first_patient=first), 64, **options)


def train(kind=Visits, **options):
    return DataLoader(kind(240, 1), 32, **options)


def attributes(run, module):
    """Names of what hangs on the parts of a run; what Lightning itself adds in a fit is left out."""
    parts = run, run.strategy, run.precision_plugin, run.fit_loop, run.fit_loop.epoch_loop, module
    return [set(vars(part)) - {"_lightning_module", "_model", "_fx_cache"} for part in parts]


REFUSED = {
    "no held-out": ({"held": None}, HeldOutError, "pass heldout="),
    "no such loader": ({"options": {"heldout": "val:3"}}, HeldOutError, "loader number 3.*pass heldout="),
    "few": ({"held": held(10)}, HeldOutError, "10 held-out patients.*hold out at least 20"),
    "overlap": ({"held": held(160, 200)}, PatientOverlapError, "40 of 160.*split by patient"),
    "stream": ({"train": DataLoader(Stream(), 16)}, IndexTrackingError, "Stream.*map-style"),
    "held stream": ({"held": DataLoader(Stream(), 16)}, IndexTrackingError, "Stream.*map-style"),
    "sized stream": ({"held": DataLoader(SizedStream(), 16)}, IndexTrackingError, "SizedStream.*map-style"),
    "own stream": (
        {"options": {"heldout": DataLoader(SizedStream(), 16)}},
        IndexTrackingError,
        "SizedStream, an IterableDataset.*pass heldout=",
    ),
    "sorted": ({"train": train(collate_fn=by_length)}, IndexTrackingError, "training loader.*record_ids="),
    "held sorted": (
        {"held": held(collate_fn=by_length)},
        IndexTrackingError,
        "held-out loader.*record_ids=",
    ),
    "ids": (
        {"options": {"record_to_patient": [1, 2]}},
        DataError,
        "2 ids for 240 records.*one id per record",
    ),
    "key": (
        {"options": {"record_to_patient": "mrn"}},
        DataError,
        "without an entry 'mrn'.*record_to_patient=",
    ),
    "failing ids": (
        {"options": {"record_ids": lambda batch: batch["row"]}},
        IndexTrackingError,
        "record_ids failed with KeyError.*pass record_ids=",
    ),
    "failing loss": (
        {"options": {"per_record_loss": lambda module, batch: {}["loss"]}},
        AmbiguousLossError,
        "per_record_loss failed with KeyError.*per_record_loss=",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_the_argument_that_helps_and_without_a_trace(tmp_path, case):
    given, error, words = REFUSED[case]
    module, data = Forecaster(), (given.get("train", train()), given.get("held", held()))
    monitor = LeakageMonitor(dirpath=tmp_path / "w", **given.get("options", {}))
    run = trainer(tmp_path, monitor, epochs=1)
    plain = attributes(run, module)
    on_loaders = [set(vars(loader)) for loader in data if loader is not None]
    with pytest.raises(error, match=words):
        run.fit(module, *data)
    assert run.global_step <= 1
    fresh = trainer(tmp_path / "b", epochs=1)
    fresh.fit(Forecaster(), *loaders())
    usual = attributes(fresh, module)
    assert all(
        now <= before | after
        for now, before, after in zip(attributes(run, module), plain, usual, strict=True)
    )
    assert [set(vars(loader)) for loader in data if loader is not None] == on_loaders
    assert not any(vars(module)[name] for name in vars(module) if name.endswith("_hooks"))


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


class Diverging(Forecaster):
    def loss(self, batch):
        codes = batch["codes"]
        logits = self.out(self.rnn(self.embed(codes[:, :-1]))[0])
        if self.current_epoch >= 1:
            logits = logits * float("nan")
        return F.cross_entropy(logits.transpose(1, 2), codes[:, 1:], ignore_index=0)


class EmptyEpoch(Forecaster):
    def training_step(self, batch, batch_idx):
        return None if self.current_epoch == 1 else super().training_step(batch, batch_idx)


def test_an_epoch_without_a_step_is_a_gap_and_no_more(tmp_path):
    monitor, run, _ = watched(tmp_path, module=EmptyEpoch(), epochs=4)
    assert run.state.finished
    assert [point.epoch for point in monitor.curve] == [1, 2, 3, 4]
    assert monitor.watch.members.traces.epochs == [0, 2, 3]


def test_of_a_run_that_diverges_the_last_good_look_stands(tmp_path):
    monitor, run, _ = watched(tmp_path, module=Diverging(), epochs=3)
    assert run.state.finished
    assert [point.epoch for point in monitor.curve] == [1]
    assert monitor.report.notes[0].startswith("Epochs 2 to 3: validation gave no loss per record")
    assert "At epoch 1 " in monitor.report.verdict()


@pytest.mark.parametrize("error", [ValueError("a fault"), DataError("seen", "why", "fix")])
def test_a_look_that_fails_ends_the_watch_and_not_the_training(tmp_path, monkeypatch, error):
    *_, unwatched = watched(tmp_path / "a", epochs=4)
    look = Watch.look

    def failing(self, **options):
        if options["epoch"] == 2:
            raise error
        return look(self, **options)

    monkeypatch.setattr(Watch, "look", failing)
    with pytest.warns(MemguardWarning, match="a fault|seen. why. fix"):
        monitor, run, module = watched(tmp_path / "b", epochs=4)
    assert run.state.finished
    assert torch.equal(weights(module), weights(unwatched))
    assert [point.epoch for point in monitor.curve] == [1]
    assert any("The watch ended at step 16" in note for note in monitor.report.notes)
    assert (tmp_path / "b" / "watch" / "watch.html").exists()
    assert not {"training_step", "validation_step", "process_dataloader"} & set(vars(run.strategy))
    with pytest.raises(type(error)):
        watched(tmp_path / "c", epochs=2, monitor=LeakageMonitor(dirpath=tmp_path / "c", on_problem="raise"))


def test_held_out_batches_that_lose_records_cost_the_numbers_and_not_the_training(tmp_path):
    data = train(), held(collate_fn=dropping)
    with pytest.warns(MemguardWarning, match="drops or mixes records"):
        monitor, run, _ = watched(tmp_path, data=data, epochs=2)
    assert run.state.finished
    assert monitor.report is None
    result = check(Forecaster(), train_dataloaders=data[0], val_dataloaders=data[1], verbose=False)
    assert not result.ok


def test_patients_named_by_batches_are_checked_when_they_are_known(tmp_path):
    def fit(folder, theirs, **options):
        monitor = LeakageMonitor(record_to_patient="mrn", dirpath=tmp_path / folder, **options)
        return watched(tmp_path / folder, data=(train(Rows), theirs), monitor=monitor, epochs=2)

    with pytest.warns(MemguardWarning, match="a held-out batch without an entry 'mrn'"):
        monitor, run, _ = fit("a", held())
    assert (run.state.finished, monitor.curve) == (True, [])
    both = held(160, 200, Rows)
    with pytest.warns(MemguardWarning, match="40 of 160 held-out patients are also trained on"):
        monitor, run, _ = fit("b", both)
    assert (run.state.finished, monitor.curve) == (True, [])
    with pytest.raises(PatientOverlapError):
        fit("c", both, on_problem="raise")


def test_a_loss_function_that_fails_late_is_a_warning(tmp_path):
    calls = []

    def own(module, batch):
        calls.append(1)
        if len(calls) > 20:
            raise KeyError("lab")
        codes = batch["codes"]
        logits = module.out(module.rnn(module.embed(codes[:, :-1]))[0])
        loss = F.cross_entropy(logits.transpose(1, 2), codes[:, 1:], ignore_index=0, reduction="none")
        return loss.sum(1) / (codes[:, 1:] > 0).sum(1)

    monitor = LeakageMonitor(per_record_loss=own, dirpath=tmp_path / "w")
    with pytest.warns(MemguardWarning, match="per_record_loss failed with KeyError"):
        monitor, run, _ = watched(tmp_path, monitor=monitor, epochs=3)
    assert run.state.finished
    assert [point.epoch for point in monitor.curve] == [1]


def test_a_sorting_collate_function_is_followed_by_record_ids(tmp_path):
    def fit(folder, collate, **options):
        monitor = LeakageMonitor(dirpath=tmp_path / folder, final_evaluation=True, **options)
        data = train(Rows, collate_fn=collate), held(kind=Rows, collate_fn=collate)
        pl.seed_everything(0, verbose=False)
        module = Forecaster(dropout=0.0)
        module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.0)
        watched(tmp_path / folder, data=data, monitor=monitor, module=module, epochs=2)
        return monitor

    plain, ordered = fit("a", None), fit("b", by_length, record_ids="row")
    for side in ("members", "held_out"):
        one, other = getattr(plain.watch, side), getattr(ordered.watch, side)
        np.testing.assert_allclose(one.traces.array(), other.traces.array(), rtol=1e-3)
        np.testing.assert_array_equal(one.tokens, other.tokens)
    sample = [monitor.watch._sample_rows[0] for monitor in (plain, ordered)]
    np.testing.assert_allclose(*sample, rtol=1e-4)


def test_an_order_of_its_own_is_only_claimed_where_it_is_certain():
    lengths = torch.tensor([3, 5, 2, 5, 1, 4])

    def batches(collate, records=lengths):
        return lambda rows: [collate([records[row] for row in rows])]

    def packed(rows):
        return {"flat": torch.cat([torch.ones(int(n)) for n in rows]), "lengths": list(map(int, rows))}

    assert not has_own_order(batches(torch.stack), 6)
    assert not has_own_order(batches(packed), 6)
    assert not has_own_order(batches(torch.stack, torch.ones(6)), 6)  # all alike: nothing can be told
    assert not has_own_order(batches(lambda rows: object()), 6)
    assert not has_own_order(batches(lambda rows: 1 / 0), 6)
    assert not has_own_order(batches(torch.stack), 1)
    assert has_own_order(batches(lambda rows: torch.stack(rows).sort().values), 6)
    assert has_own_order(batches(lambda rows: packed(sorted(rows))), 6)
    assert has_own_order(batches(lambda rows: (np.sort(np.array(rows)), "one site")), 6)
