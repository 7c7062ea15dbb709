"""Which records are in a batch: every loader of the matrix, by content; and the ones that must be refused."""

from __future__ import annotations

import dataclasses
import random
from typing import NamedTuple

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from _modules import (
    Classifier,
    Codes,
    Driver,
    NextCode,
    Rows,
    assert_exact,
    assert_same_run,
    fit,
    loaders,
    rng_state,
    seed_everything,
    trainer,
)
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    WeightedRandomSampler,
)

from memguard.capture import Capture, IndexTracker
from memguard.capture.loaders import track_loader
from memguard.errors import IndexTrackingError, MemguardError

pytestmark = pytest.mark.filterwarnings("ignore")


class Many(Rows):
    def __getitems__(self, indices):
        return [(self.x[i], self.y[i]) for i in indices]


class Unsized(Sampler):
    def __init__(self, n):
        self.n = n

    def __iter__(self):
        return iter(torch.randperm(self.n).tolist())


class Slow(Rows):
    """Even records take longer, so that workers overtake each other."""

    def __getitem__(self, i):
        if i % 2 == 0:
            torch.randn(120, 120) @ torch.randn(120, 120)
        return super().__getitem__(i)


def sampled(data=Rows, n=44, **kwargs):
    def make():
        dataset = data(n)
        settings = {k: v(dataset) if callable(v) and k != "collate_fn" else v for k, v in kwargs.items()}
        return (DataLoader(dataset, **{"batch_size": 8, **settings}),)

    return make


def subset():
    dataset = Subset(Rows(60), list(range(59, 15, -1)))
    return (DataLoader(dataset, batch_size=8, shuffle=True),)


LOADERS = {
    "shuffle": loaders(val=False),
    "sequential": loaders(val=False, shuffle=False),
    "drop_last": loaders(val=False, drop_last=True),
    "workers": loaders(val=False, num_workers=2),
    "persistent": loaders(val=False, num_workers=2, persistent_workers=True, prefetch_factor=3),
    "unordered": loaders(val=False, data=Slow, num_workers=2, in_order=False),
    "weighted": sampled(sampler=lambda d: WeightedRandomSampler(torch.arange(1.0, 45), 44)),
    "batch_sampler": sampled(batch_size=1, batch_sampler=lambda d: BatchSampler(RandomSampler(d), 6, True)),
    "getitems": sampled(data=Many, shuffle=True),
    "unsized": sampled(sampler=lambda d: Unsized(len(d))),
    "whole_batches": sampled(batch_size=None, sampler=lambda d: BatchSampler(RandomSampler(d), 7, False)),
    "generator": sampled(shuffle=True, generator=lambda d: torch.Generator().manual_seed(5)),
}


@pytest.mark.parametrize("name", LOADERS)
def test_every_loader(name):
    plain = fit(Classifier, LOADERS[name], watched=False)
    watched = fit(Classifier, LOADERS[name], watched=True)
    if name != "unordered":  # the order of batches is then a race, with or without us
        assert_same_run(plain, watched)
    assert_exact(*watched[:2])


def test_subset_gives_positions_in_the_subset():
    module, driver, _, run = fit(Classifier, subset, watched=True)
    dataset = run.train_dataloader.dataset
    for (positions, _, _), (ids, _) in zip(driver.train, module.noted["train"], strict=True):
        assert [dataset.indices[p] for p in positions] == ids.tolist()


TRAINERS = {
    "accumulate": {"accumulate_grad_batches": 3},
    "limit": {"limit_train_batches": 3},
    "limit_share": {"limit_train_batches": 0.5, "limit_val_batches": 0.5},
    "overfit": {"overfit_batches": 2},
    "fast_dev_run": {"fast_dev_run": True},
    "val_check_interval": {"val_check_interval": 2},
    "val_check_share": {"val_check_interval": 0.5},
    "val_every_2": {"check_val_every_n_epoch": 2},
    "reload": {"reload_dataloaders_every_n_epochs": 1},
    "sanity": {"num_sanity_val_steps": 2},
    "clip": {"gradient_clip_val": 0.1},
    "bf16": {"precision": "bf16-mixed"},
    "bf16_true": {"precision": "bf16-true"},
    "double": {"precision": "64-true"},
    "no_inference_mode": {"inference_mode": False},
    "max_steps": {"max_epochs": -1, "max_steps": 9},
}


@pytest.mark.parametrize("name", TRAINERS)
def test_every_trainer_setting(name):
    settings = TRAINERS[name]
    plain = fit(Classifier, loaders(), watched=False, **settings)
    watched = fit(Classifier, loaders(), watched=True, **settings)
    assert_same_run(plain, watched)
    module, driver = watched[:2]
    if name == "sanity":
        del module.noted["val"][:2]
    if name == "bf16_true":  # record numbers survive bfloat16 only up to 256; losses are by hand in float32
        assert_exact(module, driver, rtol=0.02, atol=0.02)
        return
    loose = {"rtol": 0.02, "atol": 0.02} if name == "bf16" else {}
    assert_exact(module, driver, **loose)
    if module.noted["val"]:
        assert_exact(module, driver, stage="val", **loose)


def test_the_users_loader_is_never_touched():
    loader = DataLoader(Rows(), batch_size=8, shuffle=True, num_workers=2, persistent_workers=True)
    before = dict(loader.__dict__)
    seen = []

    class Look(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            inside = trainer.train_dataloader
            seen.append(
                (type(inside).__name__, isinstance(inside, DataLoader), inside.dataset is loader.dataset)
            )
            seen.append((inside.sampler is loader.sampler, inside.collate_fn is loader.collate_fn))

    seed_everything()
    run = trainer([Driver(), Look()])
    run.fit(Classifier(), loader)
    assert seen == [("DataLoader", True, True), (True, True)]
    assert loader.__dict__ == before
    assert type(loader) is DataLoader
    assert run.train_dataloader is loader


@dataclasses.dataclass
class Boxed:
    x: torch.Tensor
    y: torch.Tensor


class Named(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


class Opaque:
    __slots__ = ("x", "y")

    def __init__(self, x, y):
        self.x, self.y = x, y

    def to(self, device):
        return self


KINDS = {
    "dict": lambda x, y: {"x": x, "y": y},
    "list": lambda x, y: [x, y],
    "tuple": lambda x, y: (x, y),
    "dataclass": Boxed,
    "namedtuple": Named,
    "opaque": Opaque,
    "tensor": lambda x, y: torch.cat([x, y[:, None].float()], 1),
    "nested": lambda x, y: {"in": [x, {"deep": y}], "name": "batch"},
}


@pytest.mark.parametrize(
    ("kind", "workers"), [*((kind, 0) for kind in KINDS), ("opaque", 2), ("dataclass", 2)]
)
def test_every_batch_type_arrives_as_it_was(kind, workers):
    box = KINDS[kind]

    def collate(samples):
        return box(torch.stack([x for x, _ in samples]), torch.stack([y for _, y in samples]))

    class Open(Classifier):
        def unbox(self, batch):
            if kind == "tensor":
                return batch[:, :-1], batch[:, -1].long()
            if kind == "nested":
                return batch["in"][0], batch["in"][1]["deep"]
            if isinstance(batch, dict):
                return batch["x"], batch["y"]
            return (batch.x, batch.y) if hasattr(batch, "x") else tuple(batch)

        def training_step(self, batch, batch_idx):
            expected = type(box(torch.zeros(1, 5), torch.zeros(1)))
            assert type(batch) is expected
            loss = self.loss(self.unbox(batch), "train")
            self.losses.append(loss.detach())
            return {"loss": loss}

    make = loaders(val=False, collate_fn=collate, num_workers=workers)
    plain = fit(Open, make, watched=False, max_epochs=1)
    watched = fit(Open, make, watched=True, max_epochs=1)
    assert_same_run(plain, watched)
    assert_exact(*watched[:2])


@pytest.mark.parametrize("mode", ["max_size_cycle", "min_size", "max_size"])
@pytest.mark.parametrize("chosen", ["a", 1])
def test_combined_loader_follows_the_chosen_one(mode, chosen):
    class Two(Classifier):
        def training_step(self, batch, batch_idx):
            part = batch["a" if chosen == "a" else "b"]
            if part is None:
                return None
            other = batch["b" if chosen == "a" else "a"]
            if other is not None:
                self.net(self.scale(other[0]))
            return self.loss(part, "train")

    def make():
        both = {
            "a": DataLoader(Rows(30), batch_size=8, shuffle=True),
            "b": DataLoader(Rows(50, seed=3), batch_size=8, shuffle=True, num_workers=0),
        }
        return (CombinedLoader(both, mode),)

    driver = Driver(train_loader=chosen)
    module, driver, _, _ = fit(Two, make, watched=True, driver=driver)
    driver.train = [seen for seen in driver.train if seen is not None]
    assert_exact(module, driver)


def test_several_loaders_are_refused_unless_one_is_chosen():
    class Two(Classifier):
        def training_step(self, batch, batch_idx):
            return self.loss(batch["a"], "train")

    with pytest.raises(IndexTrackingError, match="train_loader="):
        fit(Two, lambda: ({"a": loaders(val=False)()[0], "b": loaders(val=False)()[0]},), watched=True)


def test_several_validation_loaders():
    class Two(Classifier):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            return self.loss(batch, "val")

    def make():
        val = [DataLoader(Rows(n, seed=n), batch_size=8) for n in (20, 30)]
        return DataLoader(Rows(), batch_size=8, shuffle=True), val

    module, driver, _, _ = fit(Two, make, watched=True, num_sanity_val_steps=0)
    assert_exact(module, driver)
    assert_exact(module, driver, stage="val")


def test_a_second_iterator_does_not_confuse():
    class Peeks(Classifier):
        def on_train_start(self):
            for _ in self.trainer.train_dataloader:
                pass
            self.other = iter(self.trainer.train_dataloader)

        def on_train_batch_start(self, batch, batch_idx):
            next(self.other, None)

        def training_step(self, batch, batch_idx):
            next(iter(self.trainer.train_dataloader))
            next(self.other, None)
            return super().training_step(batch, batch_idx)

    plain = fit(Peeks, loaders(val=False), watched=False)
    watched = fit(Peeks, loaders(val=False), watched=True)
    assert_same_run(plain, watched)
    assert_exact(*watched[:2])


def test_skipped_batches():
    class Skips(Classifier):
        def training_step(self, batch, batch_idx):
            return None if batch_idx == 1 else super().training_step(batch, batch_idx)

        def on_train_batch_start(self, batch, batch_idx):
            return -1 if batch_idx == 4 else None

    module, driver, _, _ = fit(Skips, loaders(val=False), watched=True)
    assert driver.train[1] is None
    driver.train = [seen for seen in driver.train if seen is not None]
    assert_exact(module, driver)


def test_mid_epoch_resume(tmp_path):
    class Stop(Exception):
        pass

    class Break(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 3:
                trainer.save_checkpoint(tmp_path / "mid.ckpt")
                raise Stop

    def run(watched):
        seed_everything()
        module, driver = Classifier(), Driver()
        with pytest.raises(Stop):
            trainer([*([driver] if watched else []), Break()]).fit(module, *loaders(val=False)())
        seed_everything(5)
        module, driver = Classifier(), Driver()
        resumed = trainer([driver] if watched else [])
        resumed.fit(module, *loaders(val=False)(), ckpt_path=tmp_path / "mid.ckpt")
        return module, driver, rng_state(), resumed

    plain, watched = run(False), run(True)
    assert_same_run(plain, watched)
    assert_exact(*watched[:2])


@pytest.mark.parametrize("tune", ["batch_size", "lr"])
def test_tuners(tune, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder

    class Data(pl.LightningDataModule):
        batch_size = 4

        def train_dataloader(self):
            return DataLoader(Rows(), batch_size=self.batch_size, shuffle=True)

        def val_dataloader(self):
            return DataLoader(Rows(24, seed=1), batch_size=8)

    class Tuned(Classifier):
        lr = 1e-3

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), self.lr)

    def run(watched):
        seed_everything()
        finder = (
            BatchSizeFinder(max_trials=2, steps_per_trial=2, batch_arg_name="batch_size")
            if tune == "batch_size"
            else LearningRateFinder(num_training_steps=6)
        )
        module, driver = Tuned(), Driver()
        if tune == "batch_size":
            del module.batch_size
        tuned = trainer([*([driver] if watched else []), finder], logger=False)
        tuned.fit(module, datamodule=Data())
        return module, driver, rng_state(), tuned

    plain, watched = run(False), run(True)
    assert_same_run(plain, watched)
    module, driver = watched[:2]
    trials = len(module.noted["train"]) - len(driver.train)
    assert trials > 0
    del module.noted["train"][:trials]
    del module.noted["val"][: -len(driver.val)]
    assert_exact(module, driver)
    assert_exact(module, driver, stage="val")


def test_worker_init_fn_reaches_the_users_dataset():
    class Marked(Rows):
        mark = 0

        def __getitem__(self, i):
            x, y = super().__getitem__(i)
            return x + torch.tensor([0, 0, 0, 0, float(self.mark)]), y

    def init(worker):
        info = torch.utils.data.get_worker_info()
        assert isinstance(info.dataset, Marked)
        info.dataset.mark = 100

    make = loaders(val=False, data=Marked, num_workers=2, worker_init_fn=init)
    watched = fit(Classifier, make, watched=True, max_epochs=1)
    assert_same_run(fit(Classifier, make, watched=False, max_epochs=1), watched)
    assert_exact(*watched[:2])


def test_dataset_randomness_is_the_same():
    class Crops(Rows):
        def __init__(self, n, seed=0):
            super().__init__(n, seed)
            self.rng = random.Random(3)

        def __getitem__(self, i):
            x, y = super().__getitem__(i)
            noise = torch.randn(5) * 0.1 + np.random.rand() + self.rng.random()
            noise[0] = 0
            return x + noise, y

    plain = fit(Classifier, loaders(val=False, data=Crops), watched=False)
    watched = fit(Classifier, loaders(val=False, data=Crops), watched=True)
    assert_same_run(plain, watched)
    assert_exact(*watched[:2])


# -- refusals ---


class Stream(IterableDataset):
    def __iter__(self):
        return iter(Rows())


class Rewrites(DataLoader):
    def __iter__(self):
        for x, y in super().__iter__():
            yield x.flip(0), y.flip(0)


class Own:
    def __iter__(self):
        return iter([(Rows().x[:8], Rows().y[:8])])

    def __len__(self):
        return 1


def drops(samples):
    return torch.utils.data.default_collate(samples[1:])


class Pairs(Rows):
    def __getitem__(self, pair):
        return super().__getitem__(pair[0])


REFUSED = {
    "iterable": (lambda: (DataLoader(Stream(), batch_size=8),), "IterableDataset"),
    "own_iter": (lambda: (Rewrites(Rows(), batch_size=8),), "overrides __iter__"),
    "own_loader": (lambda: (Own(),), "not a torch DataLoader"),
    "drops": (lambda: (DataLoader(Rows(), batch_size=8, collate_fn=drops),), "drops or mixes"),
    "pairs": (
        lambda: (DataLoader(Pairs(), batch_size=8, sampler=[(i, 0) for i in range(44)]),),
        "whole numbers",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_at_the_first_step_and_everything_is_restored(name):
    make, message = REFUSED[name]
    seed_everything()
    driver = Driver()
    run = trainer([driver])
    with pytest.raises(MemguardError, match=message):
        run.fit(Classifier(log=False), *make())
    for owner in (run.strategy, run.precision_plugin):
        assert not {"training_step", "validation_step", "process_dataloader", "convert_input"} & set(
            vars(owner)
        )


def test_verify_refuses_before_the_first_step():
    class Early(Driver):
        def on_train_start(self, trainer, pl_module):
            self.capture.verify()

    with pytest.raises(IndexTrackingError, match="map-style dataset"):
        fit(Classifier, REFUSED["iterable"][0], watched=True, driver=Early())


def test_record_ids_replace_tracking():
    driver = Driver(record_ids=lambda batch: batch[0][:, 0].long())
    module, driver, _, _ = fit(Classifier, loaders(), watched=True, driver=driver)
    assert_exact(module, driver)
    driver = Driver(record_ids=lambda batch: batch[0][:, 0].long())
    module, driver, _, _ = fit(Classifier, REFUSED["iterable"][0], watched=True, driver=driver)
    assert_exact(module, driver)


def test_record_ids_of_another_kind_are_numbered():
    tracker = IndexTracker(lambda batch: batch)
    assert tracker.positions(["p9", "p2", "p9"], stage="train").tolist() == [0, 1, 0]
    assert tracker.positions(["p2"], stage="val").tolist() == [0]
    assert tracker.n_records("train") == 2
    with pytest.raises(IndexTrackingError, match="no entry"):
        IndexTracker("row").positions({}, stage="train")


@pytest.mark.parametrize(
    "ids", [lambda batch: batch[0][:, 0].long() + 1000, lambda batch: ["a"] * len(batch[0])]
)
def test_record_ids_that_are_no_positions_of_a_data_set_are_refused(ids):
    with pytest.raises(IndexTrackingError, match="not positions in the train dataset of 44"):
        fit(Classifier, loaders(), watched=True, driver=Driver(record_ids=ids))


def test_patient_entry_of_the_batch():
    def collate(samples):
        batch = torch.utils.data.default_collate(samples)
        return {"codes": batch["codes"], "keep": batch["keep"], "subject": batch["codes"][:, 0] + 1000}

    seen = []

    class Patients(Driver):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append((self.capture.last_train.patient, self.capture.last_train.positions))

    driver = Patients(record_to_patient="subject")
    fit(NextCode, loaders(data=Codes, collate_fn=collate, val=False), watched=True, driver=driver)
    assert all((patient == positions + 1000).all() for patient, positions in seen)
    assert len(seen) == 12


def test_tracked_loader_alone():
    loader = DataLoader(ConcatDataset([Rows(5), Rows(4)]), batch_size=4, sampler=SequentialSampler(range(9)))
    tracked = track_loader(loader)
    assert len(tracked) == len(loader)
    for batch, plain in zip(tracked, loader, strict=True):
        assert torch.equal(batch[0], plain[0])
    iterator = iter(tracked)
    batches = [next(iterator), next(iterator)]
    index, problem = tracked._memguard_track.claim(batches[1])
    assert (index, problem) == ([4, 5, 6, 7], "")
    assert tracked._memguard_track.claim(batches[0]) is None  # older than one that was claimed
    assert tracked._memguard_track.claim([1]) is None


def test_getitems_that_gives_too_few():
    class Short(Rows):
        def __getitems__(self, indices):
            return [(self.x[i], self.y[i]) for i in indices[1:]]

    with pytest.raises(IndexTrackingError, match="asked for 8 records and gave 7"):
        fit(Classifier, sampled(data=Short), watched=True)


def test_capture_is_installed_again_for_a_second_fit():
    seed_everything()
    driver = Driver()
    loader = loaders(val=False)()[0]
    combined = CombinedLoader({"a": loader}, "min_size")

    class Only(Classifier):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch["a"], batch_idx)

    module = Only()
    for _ in range(2):
        trainer([driver]).fit(module, combined)
    assert combined.flattened[0] is loader
    assert_exact(module, driver)
    assert isinstance(driver.capture, Capture)


def test_nested_combined_loaders():
    class Two(Classifier):
        def training_step(self, batch, batch_idx):
            self.net(self.scale(batch["a"][0][0]))
            return self.loss(batch["a"][1], "train")

    def make():
        return (
            {
                "a": [DataLoader(Rows(40), batch_size=8, shuffle=True)] * 2,
                "b": DataLoader(Rows(16), batch_size=4),
            },
        )

    module, driver, _, _ = fit(Two, make, watched=True, driver=Driver(train_loader="a.1"))
    assert_exact(module, driver)


def test_poisson_batches_may_be_empty():
    from opacus.data_loader import DPDataLoader

    class Sometimes(Classifier):
        def training_step(self, batch, batch_idx):
            if len(batch[0]) < 2:  # batch norm needs two
                return None
            return super().training_step(batch, batch_idx)

    def make():
        return (DPDataLoader(Rows(), sample_rate=0.05, generator=torch.Generator().manual_seed(3)),)

    plain = fit(Sometimes, make, watched=False, max_epochs=4)
    watched = fit(Sometimes, make, watched=True, max_epochs=4)
    assert_same_run(plain, watched)
    module, driver = watched[:2]
    driver.train = [seen for seen in driver.train if seen is not None]
    assert_exact(module, driver)


def test_a_batch_without_records():
    class Plain(Classifier):
        def __init__(self):
            super().__init__()
            self.net[1] = torch.nn.Identity()

        def training_step(self, batch, batch_idx):
            return self.loss(batch, "train") if len(batch[0]) else self.empty(batch)

        def empty(self, batch):
            loss = torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1].long(), reduction="sum")
            self.note("train", batch[0][:, 0], torch.zeros(0))
            return loss

    def collate(samples):
        if samples:
            return torch.utils.data.default_collate(samples)
        return torch.zeros(0, 5), torch.zeros(0, dtype=torch.long)

    def make():
        return (DataLoader(Rows(), batch_sampler=[[1, 2], [], [3]], collate_fn=collate),)

    module, driver, _, _ = fit(Plain, make, watched=True)
    assert_exact(module, driver)
    assert [len(seen[0]) for seen in driver.train] == [2, 0, 1] * 2


def test_fetch_from_a_dataset_that_collates_by_itself():
    found = []

    class Fetches(Driver):
        def on_train_epoch_end(self, trainer, pl_module):
            found.append(self.capture.fetch("train", [3, 9, 1], batch_size=2))

    fit(Classifier, LOADERS["whole_batches"], watched=True, driver=Fetches())
    assert [batch[0][:, 0].tolist() for batch in found[0]] == [[3.0, 9.0], [1.0]]


def test_reloading_does_not_pile_up():
    driver = Driver()
    counts = []

    class Counts(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            counts.append(len(driver.capture.tracker._tracks))

    seed_everything()

    class Makes(Classifier):
        def train_dataloader(self):
            return loaders(val=False)()[0]

    trainer([driver, Counts()], max_epochs=6, reload_dataloaders_every_n_epochs=1).fit(Makes())
    assert max(counts) <= 3


class Stateful(DataLoader):
    """Resumes in the middle of an epoch, in the manner of torchdata's StatefulDataLoader."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.next_iter_state = None

    def __iter__(self):
        self._iterator = _Resumable(self, self.next_iter_state)
        self.next_iter_state = None
        return self._iterator

    def state_dict(self):
        return {"order": list(self._iterator.order), "done": self._iterator.done} if self._iterator else {}

    def load_state_dict(self, state):
        self._iterator = None
        self.next_iter_state = state


Stateful.__iter__.__module__ = "torchdata.stateful_dataloader.imitated"


class _Resumable:
    def __init__(self, loader, state):
        self.loader = loader
        self.order = state["order"] if state else torch.randperm(len(loader.dataset)).tolist()
        self.done = state["done"] if state else 0

    def __next__(self):
        part = self.order[self.done * 8 : (self.done + 1) * 8]
        if not part:
            raise StopIteration
        self.done += 1
        return self.loader.collate_fn([self.loader.dataset[i] for i in part])

    def __iter__(self):
        return self


def test_stateful_loader_resumes_exactly(tmp_path):
    class Stop(Exception):
        pass

    class Break(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 3:
                trainer.save_checkpoint(tmp_path / "mid.ckpt")
                raise Stop

    def run(watched):
        seed_everything()
        begun = Classifier()
        with pytest.raises(Stop):
            trainer([*([Driver()] if watched else []), Break()]).fit(begun, Stateful(Rows(), batch_size=8))
        seed_everything(5)
        module, driver = Classifier(), Driver()
        resumed = trainer([driver] if watched else [], max_epochs=1)
        resumed.fit(module, Stateful(Rows(), batch_size=8), ckpt_path=tmp_path / "mid.ckpt")
        return begun, module, driver, rng_state()

    plain, watched = run(False), run(True)
    assert_same_run(plain[1:], watched[1:])
    assert_exact(*watched[1:3])
    seen = [*watched[0].noted.train, *watched[1].noted.train]
    assert sorted(torch.cat([ids for ids, _ in seen]).tolist()) == list(range(44))


def test_torchdata_stateful_loader():
    loader = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
    make = lambda: (loader(Rows(), batch_size=8, shuffle=True, num_workers=2),)  # noqa: E731
    watched = fit(Classifier, make, watched=True)
    assert_same_run(fit(Classifier, make, watched=False), watched)
    assert_exact(*watched[:2])


def test_a_step_that_takes_the_iterator_is_refused():
    class Takes(Classifier):
        def training_step(self, dataloader_iter):
            batch, batch_idx, _ = next(dataloader_iter)
            return super().training_step(batch, batch_idx)

    with pytest.raises(IndexTrackingError, match="did not come out of"):
        fit(lambda: Takes(log=False), loaders(val=False), watched=True)


@pytest.mark.parametrize("broken", [False, True])
def test_two_captures_in_one_run(broken):
    class Breaks(Classifier):
        def training_step(self, batch, batch_idx):
            if broken and self.global_step == 7:
                raise ZeroDivisionError
            return super().training_step(batch, batch_idx)

    seed_everything()
    first, second = Driver(), Driver()
    module, run = Breaks(), trainer([first, second])
    if broken:
        with pytest.raises(ZeroDivisionError):
            run.fit(module, *loaders()())
    else:
        run.fit(module, *loaders()())
    assert_exact(module, first)
    assert_exact(module, second)
    assert not {"training_step", "validation_step", "process_dataloader"} & set(vars(run.strategy))
    assert "convert_input" not in vars(run.precision_plugin)
    assert type(run.train_dataloader) is DataLoader
    assert "_memguard_track" not in vars(run.train_dataloader)


def test_a_collate_function_that_fills_one_object_again():
    buffer = {"x": None, "y": None}

    def collate(samples):
        buffer["x"], buffer["y"] = (torch.stack(part) for part in zip(*samples, strict=True))
        return buffer

    class Reads(Classifier):
        def loss(self, batch, stage):
            return super().loss((batch["x"], batch["y"]), stage)

    module, driver, _, _ = fit(Reads, loaders(val=False, collate_fn=collate), watched=True)
    assert_exact(module, driver)


@pytest.mark.slow
def test_spawned_workers():
    make = loaders(val=False, num_workers=1, multiprocessing_context="spawn")
    watched = fit(Classifier, make, watched=True, max_epochs=1)
    assert_same_run(fit(Classifier, make, watched=False, max_epochs=1), watched)
    assert_exact(*watched[:2])
