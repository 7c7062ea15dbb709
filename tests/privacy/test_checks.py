"""Before the first step: an engine shows on a few patients that it does what the guarantee assumes, without a trace."""

from __future__ import annotations

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from memguard.errors import PrivacyError
from memguard.privacy.checks import Trial, prepare, refuse
from memguard.privacy.guards.finding import Finding

X = torch.randn(40, 4, generator=torch.Generator().manual_seed(1))
Y = (X.sum(1) > 0).long()
OWNER = np.arange(40) // 2


class Net(pl.LightningModule):
    def __init__(self, *layers):
        super().__init__()
        self.net = nn.Sequential(*(layers or (nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))))
        self.calls = 0

    def step(self, batch):
        x, y = batch
        return F.cross_entropy(self.net(x), y)


class Run:
    """As much of a Trainer as is silenced."""

    loggers = ()


def ready(module, kind="loop", *, checks=True, run_step=None, joins=True, parameters=None, read=None):
    def rows(positions):
        at = torch.as_tensor(list(positions))
        return X[at], Y[at]

    trial = Trial(
        owner=OWNER, read=read or rows, run_step=run_step or module.step, max_grad_norm=0.1, average="mean",
        seed=bytes(range(32)), joins=joins,
    )  # fmt: skip
    return prepare(kind, Run(), module, parameters or list(module.parameters()), trial, checks=checks)


@pytest.mark.parametrize("kind", ["loop", "opacus", "auto"])
def test_an_engine_that_passes_is_attached(kind):
    prepared = ready(Net(), kind)
    assert prepared.engine.name == ("loop" if kind == "loop" else "opacus")
    assert prepared.facts["max_sensitivity"] <= 1.01
    assert prepared.facts["owners_looked_at"] >= 3
    assert prepared.findings == []
    prepared.engine.detach()


def test_nothing_is_left_behind():
    module = Net(nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, 2))
    module.net[1].eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state, keys = torch.get_rng_state(), set(vars(module))
    prepared = ready(module, "loop")
    prepared.engine.detach()
    assert torch.equal(torch.get_rng_state(), state)
    assert set(vars(module)) == keys
    assert module.training
    assert not module.net[1].training
    assert all(p.grad is None for p in module.parameters())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_losses_over_the_batch_are_refused_by_the_fast_engine_and_not_by_the_loop():
    module = Net()

    def standardized(batch):
        x, y = batch
        return F.cross_entropy(module.net((x - x.mean(0)) / (x.std(0, unbiased=False) + 0.1) + 1), y)

    with pytest.raises(PrivacyError, match="not a sum over its records"):
        ready(module, "opacus", run_step=standardized)
    assert all(not part._forward_hooks and not part._forward_pre_hooks for part in module.modules())
    with pytest.warns(match="one record at a time"):
        prepared = ready(module, "auto", run_step=standardized)
    assert prepared.engine.name == "loop"
    assert "opacus" in prepared.facts["refused"][0]


@pytest.mark.parametrize(
    ("layers", "match"),
    [
        (
            (nn.Linear(4, 6), nn.BatchNorm1d(6, momentum=0.5), nn.Linear(6, 2)),
            "BatchNorm1d|Expected more than 1 value",
        )
    ],
)
def test_batch_statistics_are_refused(layers, match):
    with pytest.raises((PrivacyError, ValueError), match=match):
        ready(Net(*layers), "loop")


def test_a_step_that_teaches_nothing_is_refused():
    module = Net()
    spare = nn.Linear(2, 2)
    with pytest.raises(PrivacyError, match="no parameter of the optimizer a gradient"):
        ready(module, parameters=list(spare.parameters()))
    with pytest.raises(PrivacyError, match="no parameter of the optimizer a gradient"):
        ready(module, run_step=lambda batch: None)
    with pytest.raises(PrivacyError, match="nothing to train"):
        prepare("loop", Run(), module, [], None)


def test_batches_that_cannot_be_joined_are_for_the_loop():
    module = Net()

    def read(positions):
        batches = [(X[i : i + 1], Y[i : i + 1]) for i in positions]
        return batches[0] if len(batches) == 1 else batches

    with pytest.raises(PrivacyError, match="batch_size=None"):
        ready(module, "opacus", joins=False, read=read)
    assert ready(module, "auto", joins=False, read=read).engine.name == "loop"


def test_without_checks_the_engine_is_still_calibrated():
    prepared = ready(Net(), "opacus", checks=False)
    assert "max_sensitivity" not in prepared.facts
    assert prepared.facts["weighting"] in ("mean", "mass")
    prepared.engine.detach()


def test_the_first_finding_that_breaks_the_guarantee_is_raised():
    kept = Finding("a/b", "a note", "why", "fix", severity="ledger")
    refuse([kept])
    with pytest.raises(PrivacyError, match=r"seen\. why\. fix\."):
        refuse([kept, Finding("c/d", "seen", "why", "fix")])


def test_models_that_count_their_runs_are_refused():
    with pytest.raises(PrivacyError, match="that every run of the model moves"):
        ready(Net(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 6)), nn.Tanh(), nn.Linear(6, 2)))


def test_a_collate_function_that_draws_at_random_is_for_the_loop_and_said_so():
    def read(positions):
        at = torch.as_tensor(list(positions))
        return X[at] + torch.randn(len(at), 4), Y[at]

    with pytest.raises(PrivacyError, match=r"a collate_fn that draws at\s+random.*__getitem__"):
        ready(Net(), "opacus", read=read)
    with pytest.warns(match="differ each time"):
        assert ready(Net(), "auto", read=read).engine.name == "loop"


def test_a_loss_between_records_is_told_from_one_that_misses_the_parameters():
    module = Net()

    def ranked(batch):
        score = module.net(batch[0])[:, 0]
        return F.softplus(score[:, None] - score[None]).triu(1).sum()

    with pytest.raises(PrivacyError, match=r"a loss between records .* is nothing for a record alone"):
        ready(module, "auto", run_step=ranked)
