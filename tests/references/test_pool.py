"""References of a pool: what they saw, whom they equal, what they leave as it was."""

from __future__ import annotations

import random
import warnings

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from _reference_models import SETTINGS, Broken, Net, Tied, data, same, sides
from torch.nn import functional as F

from memguard.errors import MemguardWarning, ReferenceModelError
from memguard.references.halves import halves
from memguard.references.job import Job
from memguard.references.pool import train_pool
from memguard.references.sequential import fit
from memguard.references.settings import Settings


def pool(factory=Net, n=40, k=4, *, seed=0, **changed):
    patient, member = sides(n)
    options = {"trainer": SETTINGS, "backend": "sequential", "progress": False, "seed": seed, **changed}
    return train_pool(factory, data(n), in_mask=halves(patient, member, k, seed=seed), **options)


def test_a_reference_is_what_a_plain_loop_from_the_same_seeds_gives():
    found = pool(k=2)
    job = Job(
        k=1,
        factory=Net,
        data=data(),
        rows=np.flatnonzero(found.in_mask[1]),
        settings=Settings.of(SETTINGS),
        seed=0,
    )
    module, loader = job.module(), job.loader()
    optimizer = module.configure_optimizers()
    for _ in range(2):
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(module(x), y).backward()
            optimizer.step()
    assert same(list(found.modules())[1], module)


def test_the_order_of_training_does_not_matter_and_seeds_do():
    found = pool(k=3)
    alone = [
        fit(
            Job(k=k, factory=Net, data=data(), rows=np.flatnonzero(found.in_mask[k]), settings=s, seed=0),
            lambda n: None,
        )
        for s in [Settings.of(SETTINGS)]
        for k in (2, 0, 1)
    ]
    states = [list(m.state_dict().values()) for m in found.modules()]
    for one, k in zip(alone, (2, 0, 1), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.state.values(), states[k], strict=True))
    other = pool(k=3, seed=1)
    assert not any(same(a, b) for a, b in zip(found.modules(), other.modules(), strict=True))


def test_a_reference_reads_its_own_half_and_no_other_record():
    seen = set()

    class Watching(torch.utils.data.TensorDataset):
        def __getitem__(self, row):
            seen.add(row)
            return super().__getitem__(row)

    records = data(batch_size=7)
    object.__setattr__(records, "dataset", Watching(*records.dataset.tensors))
    mask = halves(*sides(), 1)
    train_pool(Net, records, in_mask=mask, trainer=SETTINGS, backend="sequential", progress=False)
    assert seen == set(np.flatnonzero(mask[0]).tolist())


@pytest.mark.parametrize("backend", ["sequential", "stacked", "auto"])
def test_randomness_outside_is_as_before(backend):
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    before = torch.rand(3), np.random.random(3), random.random()
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    found = pool(k=2, backend=backend)
    list(found.modules())
    after = torch.rand(3), np.random.random(3), random.random()
    assert torch.equal(before[0], after[0]) and (before[1] == after[1]).all() and before[2] == after[2]


def test_pool_is_what_probes_ask_for():
    class Adapter:
        abilities = frozenset({"log_probs"})

        def of(self, module):
            return module.training, next(module.parameters()).sum().item()

    found = pool(Tied, k=2)
    with pytest.raises(ReferenceModelError, match="without an adapter"):
        next(found.adapters())
    asked = list(found.asked_through(Adapter()).adapters())
    assert [training for training, _ in asked] == [False, False] and asked[0] != asked[1]
    assert (found.kind, len(found), found.in_mask.shape) == ("pool", 2, (2, 40))
    losses = found.losses(lambda module: np.arange(40) + len(list(module.parameters())))
    assert losses.shape == (2, 40)
    with pytest.raises(ReferenceModelError, match="shape"):
        found.losses(lambda module: np.zeros(3))


def test_callbacks_of_the_module_are_left_out():
    class Own(Net):
        def configure_callbacks(self):
            raise AssertionError("asked")

    assert len(pool(Own, k=1)) == 1


@pytest.mark.parametrize(
    ("mask", "seen"),
    [
        (np.zeros((2, 40), bool), "mask 0 is empty"),
        (np.ones((2, 39), bool), "39"),
        (np.ones((2, 40)), "float64"),
        (np.ones((0, 40), bool), "0, 40"),
    ],
)
def test_masks_that_do_not_fit_are_refused(mask, seen):
    with pytest.raises(ReferenceModelError, match=seen):
        train_pool(Net, data(), in_mask=mask, trainer=SETTINGS, progress=False)


def test_a_mask_that_divides_a_patient_is_refused():
    records = data(patient=np.arange(40) // 2)
    mask = np.arange(40)[None] % 4 == 0
    with pytest.raises(ReferenceModelError, match="divides a patient"):
        train_pool(Net, records, in_mask=mask, trainer=SETTINGS, progress=False)


def test_what_cannot_be_trained_says_why():
    with pytest.raises(ReferenceModelError, match="no such column"):
        pool(Broken, k=2, backend="auto")
    with pytest.raises(ReferenceModelError, match="gives Linear"):
        pool(lambda: torch.nn.Linear(1, 1), k=1)
    records = data(batch_size=64, drop_last=True)
    with pytest.raises(ReferenceModelError, match="not one batch"):
        train_pool(Net, records, in_mask=halves(*sides(), 1), trainer=SETTINGS, progress=False)
    with pytest.raises(ReferenceModelError, match="backend='threads'"):
        pool(k=2, backend="threads")


def test_a_callback_that_changes_training_is_named():
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        callbacks=[pl.callbacks.StochasticWeightAveraging(1e-2)],
    )
    with pytest.warns(MemguardWarning, match="StochasticWeightAveraging"):
        found = pool(k=1, trainer=trainer)
    assert "StochasticWeightAveraging" in found.notes[0]


class Advised(Net):
    """What Lightning has advice about: a validation step, and a Trainer of references that has nothing to validate."""

    def training_step(self, batch, batch_idx):
        warnings.warn("of the module itself", UserWarning, stacklevel=1)
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        raise AssertionError("a reference is not validated")


def test_lightnings_advice_about_validation_is_not_shown_and_the_modules_own_warnings_are():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        pool(Advised, k=2)
    said = [str(one.message) for one in seen]
    assert "of the module itself" in said
    assert not any("val_dataloader" in one or "workers" in one or "LeafSpec" in one for one in said)
