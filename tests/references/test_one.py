"""One early-stopped reference, twins, and modules made again."""

from __future__ import annotations

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from _reference_models import SETTINGS, Net, data, records, same, sides
from torch.nn import functional as F

from memguard.errors import ReferenceModelError
from memguard.references.factory import factory_of
from memguard.references.halves import halves
from memguard.references.one import train_early_stopped, train_twins
from memguard.references.pool import train_pool


def losses(module, rows):
    assert not module.training and not torch.is_grad_enabled()
    x, y = records().tensors
    return F.cross_entropy(module(x[rows]), y[rows], reduction="none").numpy()


def early(folder=None, *, member=None, trainer=None, **changed):
    member = sides()[1] if member is None else member
    trainer = {"max_epochs": 60, "accelerator": "cpu"} if trainer is None else trainer
    options = {"losses": losses, "folder": folder, "progress": False, **changed}
    return train_early_stopped(Net, data(), member=member, trainer=trainer, **options)


def test_it_never_saw_a_member_and_was_stopped_on_others(tmp_path):
    found = early(tmp_path)
    assert (found.kind, len(found), found.restored) == ("early-stopped", 1, (False,))
    assert not found.in_mask[0, :28].any() and found.in_mask[0].sum() == 6
    assert "6 held-out records" in found.notes[-1] and "6 others" in found.notes[-1]
    again = early(tmp_path)
    assert again.restored == (True,) and same(next(found.modules()), next(again.modules()))
    changed = early(tmp_path, trainer={"max_epochs": 3, "accelerator": "cpu"})
    assert changed.restored == (False,) and "epochs 60 -> 3" in changed.notes[0]


def test_its_weights_are_those_of_the_best_epoch():
    seen = []

    def watched(module, rows):
        seen.append(losses(module, rows).mean())
        return losses(module, rows)

    found = early(losses=watched, seed=3)
    referee = np.flatnonzero(~found.in_mask[0] & ~sides()[1])
    with torch.no_grad():
        assert losses(next(found.modules()), referee).mean() == pytest.approx(min(seen), abs=1e-6)
    assert min(seen) < seen[0] and len(seen) == found.epochs[0] == int(np.argmin(seen)) + 1 + 2


def test_nobody_held_out_is_refused():
    with pytest.raises(ReferenceModelError, match="0 held-out patients"):
        early(member=np.ones(40, bool))


def test_twins_are_the_first_pair_of_a_pool(tmp_path):
    patient, member = sides()
    options = {"trainer": SETTINGS, "progress": False, "backend": "sequential", "folder": tmp_path}
    twins = train_twins(Net, data(), member=member, **options)
    assert (twins.in_mask.sum(0) == 1).all() and twins.kind == "twins"
    pool = train_pool(Net, data(), in_mask=halves(patient, member, 4), **options)
    assert pool.restored == (True, True, False, False)


class Unsaved(pl.LightningModule):
    def __init__(self, depth: int = 1) -> None:
        super().__init__()
        self.net = torch.nn.Linear(4, 2)


def test_a_module_is_made_again_from_its_arguments():
    made = factory_of(Net(lr=0.3, width=5))
    one, two = made(), made()
    assert one.hparams.lr == 0.3 and one.net[0].out_features == 5 and not same(one, two)
    with pytest.raises(ReferenceModelError, match="depth"):
        factory_of(Unsaved(depth=3))
    grown = Net()
    grown.net.append(torch.nn.Linear(2, 2))
    with pytest.raises(ReferenceModelError, match="other weights"):
        factory_of(grown)
