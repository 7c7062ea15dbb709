"""Every kind of training loader with private draws: what is in the batches, and which loaders are refused."""

from __future__ import annotations

import random

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

from memguard.capture.ids import IndexTracker
from memguard.capture.loaders import track_loader
from memguard.errors import MemguardWarning, PrivacyError
from memguard.privacy.draws import whole_draw
from memguard.privacy.loader import EachAlone, offered, private_loader, reader
from memguard.privacy.sampling import PatientSampler

N = 40
OWNER = np.arange(N) // 2


class Rows(Dataset):
    """Record i is {"id": i, "x": i / 2}."""

    def __len__(self):
        return N

    def __getitem__(self, i):
        return {"id": i, "x": torch.tensor([i / 2])}


class Many(Rows):
    def __getitems__(self, indices):
        return [self[i] for i in indices]


class Whole(Rows):
    """Collates by itself."""

    def __getitem__(self, indices):
        assert isinstance(indices, list)
        return {"id": torch.tensor(indices), "x": torch.tensor(indices)[:, None] / 2}


class Stateful(DataLoader):
    """As torchdata's: iterates as torch does, and has a state."""

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        raise AssertionError


class Own(DataLoader):
    def __init__(self, path):
        super().__init__(Rows(), batch_size=4, shuffle=True, collate_fn=doubled)


class Buckets(Sampler):
    """Batches of similar records."""

    def __init__(self, n=N, size=6, *, drop_last=False, replicas=1):
        self.n, self.batch_size, self.drop_last, self.num_replicas = n, size, drop_last, replicas

    def __iter__(self):
        cuts = [
            list(range(at, min(at + self.batch_size, self.n))) for at in range(0, self.n, self.batch_size)
        ]
        if self.drop_last:
            cuts = [cut for cut in cuts if len(cut) == self.batch_size]
        random.shuffle(cuts)
        return iter(cuts[:: self.num_replicas])

    def __len__(self):
        return len(list(iter(self)))


class Mine(Sampler):
    def __init__(self, give):
        self.give = give

    def __iter__(self):
        return iter(self.give)


def doubled(samples):
    return {**default_collate(samples), "doubled": True}


def draws(**kwargs):
    given = {
        "rates": 0.3,
        "steps": 6,
        "chunks": 3,
        "max_records": None,
        "seed": bytes(range(16)),
        "carrier": 7,
    }
    return PatientSampler(OWNER, **{**given, **kwargs})


def ids(batch):
    if isinstance(batch, list):
        return [i for one in batch for i in ids(one)]
    return torch.as_tensor(batch["id"]).reshape(-1).tolist()


def wrapped(sampler):
    return DistributedSamplerWrapper(sampler, num_replicas=2, rank=0)


LOADERS = {
    "sequential": lambda: DataLoader(Rows(), batch_size=4),
    "shuffle": lambda: DataLoader(Rows(), batch_size=4, shuffle=True, drop_last=True),
    "random, fewer": lambda: DataLoader(Rows(), sampler=RandomSampler(Rows(), num_samples=10)),
    "batch sampler": lambda: DataLoader(Rows(), batch_sampler=BatchSampler(RandomSampler(Rows()), 6, True)),
    "distributed": lambda: DataLoader(Rows(), sampler=DistributedSampler(Rows(), num_replicas=2, rank=1)),
    "injected": lambda: DataLoader(Rows(), batch_size=4, sampler=wrapped(RandomSampler(Rows()))),
    "subset sampler of all": lambda: DataLoader(Rows(), sampler=SubsetRandomSampler(range(N))),
    "getitems": lambda: DataLoader(Many(), batch_size=4, shuffle=True),
    "whole": lambda: DataLoader(
        Whole(), batch_size=None, sampler=BatchSampler(RandomSampler(Rows()), 5, False)
    ),
    "whole, injected": lambda: DataLoader(
        Whole(), batch_size=None, sampler=wrapped(BatchSampler(SequentialSampler(Rows()), 5, False))
    ),
    "alone": lambda: DataLoader(Rows(), batch_size=None, shuffle=True),
    "alone, injected": lambda: DataLoader(
        Rows(), batch_size=None, sampler=DistributedSampler(Rows(), num_replicas=2, rank=0)
    ),
    "stateful": lambda: Stateful(Rows(), batch_size=4, shuffle=True),
    "own init": lambda: Own("somewhere"),
    "tracked": lambda: track_loader(DataLoader(Rows(), batch_size=4, shuffle=True)),
    "private": lambda: private_loader(DataLoader(Rows(), batch_size=4), draws()),
}
CUSTOM = {
    "buckets": lambda: DataLoader(Rows(), batch_sampler=Buckets()),
    "buckets, last dropped": lambda: DataLoader(Rows(), batch_sampler=Buckets(drop_last=True)),
    "buckets, shared": lambda: DataLoader(Rows(), batch_sampler=Buckets(size=5, replicas=2)),
    "whole buckets": lambda: DataLoader(Whole(), batch_size=None, sampler=Buckets()),
    "own order": lambda: DataLoader(Rows(), sampler=Mine(range(N - 1, -1, -1)), batch_size=4),
    "tensors": lambda: DataLoader(Rows(), sampler=Mine(torch.randperm(N)), batch_size=4),
    "a list": lambda: DataLoader(Rows(), sampler=list(range(N)), batch_size=4),
}


def check(loader, sampler):
    """Two passes: what is in each batch is what was drawn, and each draw comes whole."""
    seen = set()
    for _ in range(2):
        chunks = []
        for batch in loader:
            chunk = sampler.take(ids(batch))
            seen.update(chunk.positions.tolist())
            chunks.append(chunk)
        assert len(chunks) == len(loader) == 18
        for at in range(0, 18, 3):
            whole_draw(chunks[at : at + 3])
    assert len(seen) > N / 2


@pytest.mark.parametrize("name", LOADERS)
def test_every_loader(name):
    loader, sampler = LOADERS[name](), draws()
    private = private_loader(loader, sampler)
    assert type(private) is DataLoader
    assert private.dataset is loader.dataset
    check(private, sampler)


@pytest.mark.parametrize("name", CUSTOM)
def test_own_samplers_are_replaced_with_a_warning(name):
    loader, sampler = CUSTOM[name](), draws()
    state = random.getstate(), torch.get_rng_state()
    with pytest.warns(MemguardWarning, match="Poisson draws take its place"):
        private = private_loader(loader, sampler)
    assert random.getstate() == state[0] and torch.equal(torch.get_rng_state(), state[1])
    check(private, sampler)


def test_settings_stay():
    generator = torch.Generator()
    loader = DataLoader(
        Rows(),
        batch_size=4,
        shuffle=True,
        num_workers=2,
        collate_fn=doubled,
        timeout=30,
        worker_init_fn=id,
        multiprocessing_context="fork",
        generator=generator,
        prefetch_factor=3,
        persistent_workers=True,
        in_order=False,
    )
    before = dict(vars(loader))
    private = private_loader(loader, draws())
    for name in (
        "dataset",
        "num_workers",
        "collate_fn",
        "timeout",
        "worker_init_fn",
        "multiprocessing_context",
        "generator",
        "prefetch_factor",
        "persistent_workers",
        "pin_memory",
    ):
        assert getattr(private, name) is getattr(loader, name), name
    assert private.in_order
    assert vars(loader) == before
    assert private_loader(DataLoader(Rows(), pin_memory=True), draws()).pin_memory


class Slow(Rows):
    def __getitem__(self, i):
        if i % 4 == 0:
            torch.randn(150, 150) @ torch.randn(150, 150)
        return super().__getitem__(i)


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("world", [1, 2])
def test_workers(persistent, world):
    loader = DataLoader(
        Slow(), batch_size=4, shuffle=True, num_workers=2, in_order=False, persistent_workers=persistent
    )
    shares = []
    for rank in range(world):
        sampler = draws(rank=rank, world=world)
        private = private_loader(loader, sampler)
        shares.append([[sampler.take(ids(batch)) for batch in private] for _ in range(2)])
        whole_draw(shares[-1][1][:3])
    for at in range(18):
        parts = [set(share[1][at].positions.tolist()) for share in shares]
        assert len(set.union(*parts)) == sum(map(len, parts))
        assert len({share[1][at].draw for share in shares}) == 1


def test_an_epoch_that_is_cut_short_with_workers():
    sampler = draws()
    private = private_loader(DataLoader(Rows(), num_workers=2, persistent_workers=True), sampler)
    for _ in range(3):
        taken = []
        for batch in private:
            taken.append(sampler.take(ids(batch)))
            if len(taken) == 6:
                break
        whole_draw(taken[:3]), whole_draw(taken[3:])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", ["shuffle", "getitems", "whole", "alone", "own init"])
def test_capture_tells_the_positions_of_private_batches(name, workers):
    sampler = draws(rates=0.1, max_records=1)  # rare enough for empty parts
    loader = LOADERS[name]()
    if workers:
        how = {"batch_size": None} if loader.batch_sampler is None else {"batch_size": 4}
        if name == "whole":
            how["sampler"] = loader.sampler
        loader = DataLoader(loader.dataset, num_workers=workers, persistent_workers=True, **how)
    tracked = track_loader(private_loader(loader, sampler))
    empty = 0
    for _ in range(2):
        chunks = []
        for batch in tracked:
            index, problem = tracked._memguard_track.claim(batch)
            assert not problem
            assert ids(batch) == list(index)
            chunks.append(sampler.take(index))
            empty += chunks[-1].empty
        assert [chunk.part for chunk in chunks] == [0, 1, 2] * 6
    assert empty > 0


class Step(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch["x"]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


@pytest.mark.parametrize("workers", [0, 2])
def test_each_step_of_a_trainer_is_one_whole_draw(workers):
    sampler, tracker, steps, chunks = draws(), IndexTracker(), [], []

    class Private(pl.Callback):
        def setup(self, trainer, pl_module, stage):
            tracker.install(trainer)
            below = trainer.strategy.process_dataloader
            trainer.strategy.process_dataloader = lambda loader: below(private_loader(loader, sampler))

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            chunks.append(sampler.take(ids(batch)))

        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            assert tracker.positions(None, stage="train").tolist() in (chunks[-1].positions.tolist(), [7])
            steps.append(whole_draw(chunks))
            chunks.clear()

    trainer = pl.Trainer(
        max_epochs=3,
        accumulate_grad_batches=3,
        callbacks=[Private()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    trainer.fit(Step(), DataLoader(Rows(), batch_size=4, shuffle=True, num_workers=workers))
    assert len(steps) == len(set(steps)) == trainer.global_step == 18


# -- which records ---


def test_a_public_subset_is_kept():
    loader = DataLoader(Rows(), sampler=SubsetRandomSampler(range(0, N, 2)))
    assert offered(loader).tolist() == list(range(0, N, 2))
    with pytest.raises(PrivacyError, match="offers 20 of 40") as error:
        private_loader(loader, draws())
    assert "Subset(" in error.value.fix
    owner = np.where(np.arange(N) % 2 == 0, OWNER, -1)
    sampler = PatientSampler(owner, rates=1.0, steps=1, chunks=1, max_records=None, seed=bytes(8))
    (batch,) = private_loader(loader, sampler)
    assert ids(batch) == list(range(0, N, 2))


def test_a_subset_as_dataset():
    sampler = PatientSampler(OWNER[:10], rates=1.0, steps=1, chunks=1, max_records=None, seed=bytes(8))
    (batch,) = private_loader(DataLoader(Subset(Rows(), list(range(30, 40)))), sampler)
    assert ids(batch) == list(range(30, 40))


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(N))


class Changes(DataLoader):
    def __iter__(self):
        for batch in super().__iter__():
            yield batch, batch


REFUSED = {
    "stream": (lambda: DataLoader(Stream(), batch_size=4), "IterableDataset"),
    "list": (lambda: [1, 2], "not a torch DataLoader"),
    "own iter": (lambda: Changes(Rows()), "overrides __iter__"),
    "other length": (lambda: DataLoader(Subset(Rows(), range(30))), "30 records"),
    "weighted": (
        lambda: DataLoader(Rows(), sampler=WeightedRandomSampler(torch.ones(N), N)),
        "WeightedRandomSampler",
    ),
    "weighted without replacement": (
        lambda: DataLoader(Rows(), sampler=WeightedRandomSampler(torch.ones(N), N, replacement=False)),
        "WeightedRandomSampler",
    ),
    "weighted, injected": (
        lambda: DataLoader(Rows(), sampler=wrapped(WeightedRandomSampler(torch.ones(N), N))),
        "WeightedRandomSampler",
    ),
    "weighted in batches": (
        lambda: DataLoader(
            Rows(), batch_sampler=BatchSampler(WeightedRandomSampler(torch.ones(N), N), 4, False)
        ),
        "WeightedRandomSampler",
    ),
    "replacement": (
        lambda: DataLoader(Rows(), sampler=RandomSampler(Rows(), replacement=True)),
        "with replacement",
    ),
    "twice": (
        lambda: DataLoader(Rows(), sampler=SubsetRandomSampler([*range(N), 3])),
        "record 3 more than once",
    ),
    "of a part": (lambda: DataLoader(Rows(), sampler=SequentialSampler(range(12))), "offers 12 of 40"),
    "of more": (lambda: DataLoader(Rows(), sampler=RandomSampler(range(50))), "position 49"),
}
REFUSED_CUSTOM = {
    "leaves out": (lambda: DataLoader(Rows(), sampler=Mine(range(30))), "offers 30 of 40"),
    "leaves out in batches": (
        lambda: DataLoader(Rows(), batch_sampler=Buckets(n=20, drop_last=True)),
        "offers 18 of 40",
    ),
    "repeats": (lambda: DataLoader(Rows(), sampler=Mine([*range(N), 5])), "record 5 more than once"),
    "never ends": (lambda: DataLoader(Rows(), sampler=Mine(iter(int, 1))), "record 0 more than once"),
    "keys": (lambda: DataLoader(Rows(), sampler=Mine("abc")), "not whole numbers"),
    "half of a part": (
        lambda: DataLoader(Rows(), batch_sampler=Buckets(n=20, size=5, replicas=2)),
        "offers 10 of 40",
    ),
}


@pytest.mark.filterwarnings("ignore::memguard.errors.MemguardWarning")
@pytest.mark.parametrize("name", [*REFUSED, *REFUSED_CUSTOM])
def test_what_cannot_be_drawn_by_coins_is_refused(name):
    make, seen = {**REFUSED, **REFUSED_CUSTOM}[name]
    with pytest.raises(PrivacyError, match=seen) as error:
        private_loader(make(), draws())
    assert error.value.why and error.value.fix


# -- read again ---


@pytest.mark.filterwarnings("ignore::memguard.errors.MemguardWarning")
@pytest.mark.parametrize("name", [*LOADERS, *CUSTOM])
def test_reading_chosen_records_is_what_the_loader_does(name):
    loader = {**LOADERS, **CUSTOM}[name]()
    sampler = draws()
    private = private_loader(loader, sampler)
    read, read_private = reader(loader), reader(private)
    for batch in private:
        positions = ids(batch)
        again = read(positions)
        assert ids(again) == ids(read_private(positions)) == positions
        if isinstance(private.collate_fn, EachAlone):
            assert not isinstance(read(positions[:1]), list)
        else:
            assert set(batch) == set(again)
            assert torch.equal(batch["x"], again["x"])
            assert len(ids(read([3]))) == 1


def test_reading_takes_arrays_of_positions():
    assert reader(DataLoader(TensorDataset(torch.arange(9))))(np.array([4, 2]))[0].tolist() == [4, 2]


def test_records_that_are_read_once_are_the_same_alone_and_together():
    class Crops(Dataset):
        reads = 0

        def __len__(self):
            return 6

        def __getitem__(self, i):
            self.reads += 1
            return {"x": torch.rand(3), "i": i}

    def spoils(records):
        batch = default_collate(records)
        for record in records:
            record.clear()
        return batch

    data = Crops()
    read = reader(DataLoader(data, batch_size=2, collate_fn=spoils), once=True)
    together, alone = read([4, 1]), read([1])
    assert torch.equal(together["x"][1:], alone["x"])
    assert alone["i"].tolist() == [1]
    assert data.reads == 2
    again = reader(DataLoader(data, batch_size=2))
    assert not torch.equal(again([1])["x"], again([1])["x"])
