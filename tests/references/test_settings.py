"""What is taken over from a Trainer."""

from __future__ import annotations

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from _reference_models import Net, records
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, WeightedRandomSampler

from memguard.errors import ReferenceModelError
from memguard.references.data import TrainingData
from memguard.references.settings import Settings

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}


def test_a_trainer_and_its_arguments_say_the_same():
    given = {
        "max_epochs": 3,
        "precision": "bf16-mixed",
        "accumulate_grad_batches": 2,
        "gradient_clip_val": 0.5,
        "gradient_clip_algorithm": "value",
        "limit_train_batches": 4,
        **QUIET,
    }
    one, two = Settings.of(pl.Trainer(**given)), Settings.of(given)
    assert one.primitives() == two.primitives()
    again = one.trainer()
    assert again.precision == "bf16-mixed" and again.accumulate_grad_batches == 2 and again.max_epochs == 3
    assert Settings.of({"max_epochs": 1, "precision": 32}).precision == "32-true"


def test_a_run_that_was_stopped_gives_its_epochs_and_schedules_their_length():
    class Stop(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.should_stop = trainer.current_epoch == 1

    trainer = pl.Trainer(max_epochs=5, callbacks=[Stop()], enable_model_summary=False, **QUIET)
    trainer.fit(Net(), DataLoader(records(), batch_size=20))
    found = Settings.of(trainer)
    assert (found.max_epochs, found.epochs, found.last_epoch) == (5, 2, 2)
    assert not found.left_out, "what Lightning adds by itself changes nothing"
    inner = found.trainer()
    inner.fit(Net(), DataLoader(records(), batch_size=20))
    assert inner.current_epoch == 2


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ({"max_epochs": 1, "plugins": []}, "plugins"),
        ({"max_epochs": 1, "devices": 2}, "devices=2"),
        ({}, "neither max_epochs"),
    ],
)
def test_what_would_be_lost_is_refused(given, seen):
    with pytest.raises(ReferenceModelError, match=seen):
        Settings.of(given)


def test_loaders_are_read_and_refused():
    members, held_out = records(30), records(10, seed=1)
    first = DataLoader(members, batch_size=4, shuffle=True, drop_last=True)
    found = TrainingData.from_loaders(first, DataLoader(held_out), np.arange(40))
    assert (found.batch_size, found.shuffle, found.drop_last, len(found)) == (4, True, True, 40)
    assert torch.equal(found.dataset[30][0], held_out[0][0])
    assert not TrainingData.from_loaders(DataLoader(members), DataLoader(held_out), np.arange(40)).shuffle
    by_hand = DataLoader(members, batch_sampler=BatchSampler(RandomSampler(members), 5, drop_last=True))
    given = TrainingData.from_loaders(by_hand, DataLoader(held_out), np.arange(40))
    assert (given.batch_size, given.drop_last, given.shuffle) == (5, True, True)
    own = DataLoader(members, batch_sampler=[[0, 1], [2]])
    with pytest.raises(ReferenceModelError, match="a loader that draws with list"):
        TrainingData.from_loaders(own, DataLoader(held_out), np.arange(40))
    weighted = DataLoader(members, sampler=WeightedRandomSampler(torch.ones(30), 30))
    with pytest.raises(ReferenceModelError, match="WeightedRandomSampler"):
        TrainingData.from_loaders(weighted, DataLoader(held_out), np.arange(40))
    with pytest.raises(ReferenceModelError, match="39 patients for 40"):
        TrainingData.from_loaders(first, DataLoader(held_out), np.arange(39))
    with pytest.raises(ReferenceModelError, match="type list"):
        TrainingData.from_loaders([1], DataLoader(held_out), np.arange(39))


class Module(pl.LightningDataModule):
    """Changes batches on their way."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale, self.times = scale, 0

    def setup(self, stage):
        self.times += 1

    def train_dataloader(self):
        return DataLoader(records(28), batch_size=8, shuffle=True)

    def val_dataloader(self):
        return [DataLoader(records(12, seed=1), batch_size=8)]

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch[0] * self.scale, batch[1]


def test_a_datamodule_keeps_its_hooks_and_is_set_up_once():
    from memguard.references.halves import halves
    from memguard.references.pool import train_pool

    patient = np.arange(40)
    masks = halves(patient, patient < 28, 2)
    found = []
    for scale in (1.0, 0.0):
        module = Module(scale)
        data = TrainingData.from_datamodule(module, patient)
        settings = {"max_epochs": 1, "accelerator": "cpu"}
        pool = train_pool(Net, data, in_mask=masks, trainer=settings, progress=False)
        assert module.times == 1 and module.trainer is None
        assert "datamodule changes batches" in pool.notes[0]
        found.append(next(pool.modules()).net[0].weight)
    fresh = next(iter(Net().parameters()))
    assert found[0].shape == fresh.shape and not torch.equal(found[0], found[1])


class NoHooks(Module):
    on_after_batch_transfer = pl.LightningDataModule.on_after_batch_transfer


def test_a_datamodule_without_hooks_is_not_needed():
    assert TrainingData.from_datamodule(NoHooks(1.0), np.arange(40)).hooks() is None
