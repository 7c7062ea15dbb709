"""Whose rows are whose: targets that fit both ways prove nothing, and trainings that have such batches still work."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

from memguard.capture import LossCapture, evaluate
from memguard.capture.layout import LayoutMemory, UndecidedLayoutError, unflatten_length
from memguard.errors import AmbiguousLossError, MemguardWarning
from tests.capture._modules import Driver, trainer

B, T, D, C = 6, 4, 5, 3


def call(logits, target, **kwargs):
    """A call on rows of which no graph tells where they come from, unless they are given as (B, T, C)."""
    with LossCapture() as seen:
        F.cross_entropy(logits.reshape(-1, C) if logits.dim() > 2 else logits, target.reshape(-1), **kwargs)
    return seen.calls[0]


def rows(n=B * T):
    return torch.randn(n, C, requires_grad=True)


def rare():
    y = torch.zeros(B, T, dtype=torch.long)
    y[1, 2] = 1
    return y


NOBODY = torch.zeros(B, T, dtype=torch.long)
CORNERS = NOBODY.clone()
CORNERS[0, 0] = CORNERS[-1, -1] = 1  # the same rows in both layouts
PER_RECORD = torch.arange(B)[:, None].expand(B, T) % C


@pytest.mark.parametrize("y", [NOBODY, CORNERS])
def test_targets_that_fit_both_ways_prove_nothing(y):
    for target in (y, y.T):
        with pytest.raises(UndecidedLayoutError, match=r"positions first.*per_record_loss="):
            unflatten_length(call(rows(), target), B, {"y": y})


@pytest.mark.parametrize("y", [rare(), PER_RECORD])
def test_targets_that_tell_prove_it(y):
    memory = LayoutMemory()
    assert unflatten_length(call(rows(), y), B, {"y": y}, memory) == T
    assert memory.proven == {("cross_entropy", "y"): 0}
    with pytest.raises(AmbiguousLossError, match="record order"):
        unflatten_length(call(rows(), y.T), B, {"y": y})


def test_an_ignored_value_in_the_batch_tells_and_one_of_the_step_does_not():
    keep = torch.arange(T) < torch.tensor([[1], [2], [4], [3], [4], [2]])
    masked = NOBODY.masked_fill(~keep, -100)
    assert unflatten_length(call(rows(), masked), B, {"y": masked}) == T
    with pytest.raises(UndecidedLayoutError):
        unflatten_length(call(rows(), masked), B, {"y": NOBODY})
    with pytest.raises(AmbiguousLossError):
        unflatten_length(call(rows(), masked.T), B, {"y": masked})


@pytest.mark.parametrize("grad", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("y", [NOBODY, rare()])
def test_what_was_flattened_decides_in_every_gradient_mode(grad, y):
    net = nn.Linear(D, C)
    for _ in range(5):  # cross entropy is taken apart once that was seen to give the same
        with grad():
            x = torch.randn(B, T + 1, D)
            logits = net(x)[:, 1:]  # flattening a slice makes a copy
            assert unflatten_length(call(logits, y), B, {"y": y}) == T
            with pytest.raises(AmbiguousLossError, match="do not stand first"):
                unflatten_length(call(logits.transpose(0, 1), y.T), B, {"y": y})


@pytest.mark.parametrize("grad", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_sequences_that_are_all_shorter_than_the_batch_is_wide(grad):
    codes = torch.randint(0, C, (B, T + 5))  # pad_packed_sequence without total_length cuts to the longest
    with grad():
        logits = nn.Linear(D, C)(torch.randn(B, T, D))
        assert unflatten_length(call(logits, codes[:, 1 : 1 + T]), B, {"codes": codes}) == T


@pytest.mark.parametrize("grad", [torch.enable_grad, torch.inference_mode])
def test_one_logit_for_each_position_with_time_first_is_refused(grad):
    with grad():
        logits = nn.Linear(D, 1)(torch.randn(T, B, D)).squeeze(-1)
        with LossCapture() as seen:
            F.binary_cross_entropy_with_logits(logits.flatten(), NOBODY.T.flatten().float())
        with pytest.raises(AmbiguousLossError, match="do not stand first"):
            unflatten_length(seen.calls[0], B, {"y": NOBODY.float()})


def test_a_head_on_rows_tells_where_they_come_from():
    body, head = nn.Linear(D, D), nn.Sequential(nn.Linear(D, D), nn.GELU(), nn.Dropout(0.1), nn.Linear(D, C))
    hidden = body(torch.randn(B, T, D))
    assert unflatten_length(call(head(hidden.reshape(-1, D)) / 0.7, NOBODY), B, {"y": NOBODY}) == T
    with pytest.raises(AmbiguousLossError, match="do not stand first"):
        unflatten_length(call(head(hidden.transpose(0, 1).reshape(-1, D)), NOBODY.T), B, {"y": NOBODY})
    with pytest.raises(UndecidedLayoutError):  # rows were chosen, so their order is not known
        unflatten_length(call(head(hidden.reshape(-1, D)[torch.randperm(B * T)]), NOBODY), B, {"y": NOBODY})


def test_what_another_batch_proved_serves_one_that_cannot():
    memory = LayoutMemory()
    unflatten_length(call(rows(), rare()), B, {"y": rare()}, memory)
    assert unflatten_length(call(rows(), NOBODY), B, {"y": NOBODY}, memory) == T
    with pytest.raises(UndecidedLayoutError):  # another entry, of which nothing was proven
        unflatten_length(call(rows(), NOBODY), B, {"z": NOBODY}, memory)
    told = LayoutMemory()  # by the graph, with labels that tell nothing
    unflatten_length(call(torch.randn(B, T, C, requires_grad=True), NOBODY), B, {"y": NOBODY}, told)
    assert unflatten_length(call(rows(), NOBODY), B, {"y": NOBODY}, told) == T


def test_as_many_positions_as_records():
    y = torch.zeros(B, B, dtype=torch.long)
    logits = torch.randn(B, B, C, requires_grad=True)
    with pytest.raises(UndecidedLayoutError, match="cannot be told"):
        unflatten_length(call(logits, y), B, {"y": y})
    memory = LayoutMemory()
    first = y.clone()
    first[1, 3] = 1
    assert unflatten_length(call(logits, first), B, {"y": first}, memory) == B
    assert unflatten_length(call(logits, y), B, {"y": y}, memory) == B


# -- trainings ---


class Outcomes(Dataset):
    """A rare outcome at each position; of the first batches nobody has it."""

    def __init__(self, n=48, positions=T, rare_from=24):
        rng = torch.Generator().manual_seed(0)
        self.x = torch.randn(n, positions, D, generator=rng)
        self.y = torch.zeros(n, positions, dtype=torch.long)
        self.y[rare_from::5, 1] = 1

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return {"x": self.x[i], "y": self.y[i]}


class Steps(pl.LightningModule):
    def __init__(self, head_on_rows=False, time_first=False):
        super().__init__()
        self.body, self.head = nn.Linear(D, D), nn.Linear(D, C)
        self.head_on_rows, self.time_first = head_on_rows, time_first
        self.by_hand = []

    def loss(self, batch):
        x, y = batch["x"], batch["y"]
        with torch.no_grad():
            losses = F.cross_entropy(self.head(self.body(x)).transpose(1, 2), y, reduction="none")
        self.by_hand.append(losses.mean(1).clone())
        if self.time_first:
            x, y = x.transpose(0, 1), y.T
        hidden = self.body(x)
        logits = self.head(hidden.reshape(-1, D)) if self.head_on_rows else self.head(hidden).reshape(-1, C)
        return F.cross_entropy(logits, y.reshape(-1))

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        return self.loss(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize("head_on_rows", [False, True])
@pytest.mark.parametrize("rare_from", [0, 24, 48])
def test_a_training_with_batches_in_which_nobody_has_the_outcome(head_on_rows, rare_from):
    driver, module = Driver(), Steps(head_on_rows)
    data = Outcomes(rare_from=rare_from)
    trainer([driver]).fit(module, DataLoader(data, batch_size=B), DataLoader(data, batch_size=B))
    seen = driver.train[:8] + driver.val[:8] + driver.train[8:] + driver.val[8:]
    assert len(seen) == len(module.by_hand) == 32
    for got, losses in zip(seen, module.by_hand, strict=True):
        torch.testing.assert_close(torch.from_numpy(got[1]), losses)


def test_time_first_is_refused_whoever_has_the_outcome():
    for rare_from in (0, 48):
        with pytest.raises(AmbiguousLossError, match="do not stand first"):
            trainer([Driver()]).fit(
                Steps(time_first=True), DataLoader(Outcomes(rare_from=rare_from), batch_size=B)
            )


def test_steps_before_the_first_batch_that_tells_go_by():
    driver, module = Driver(), Steps()
    data = Outcomes(positions=B)  # as many positions as records, and the outcome from the fifth batch on
    with pytest.warns(MemguardWarning, match="those of later steps are"):
        trainer([driver]).fit(module, DataLoader(data, batch_size=B))
    assert [got is None for got in driver.train] == [True] * 4 + [False] * 12
    for got, losses in zip(driver.train[4:], module.by_hand[4:], strict=True):
        torch.testing.assert_close(torch.from_numpy(got[1]), losses)


def test_evaluation_comes_back_to_a_batch_that_another_one_decides():
    data, module = Outcomes(positions=B), Steps()
    batches = [{"x": data.x[at : at + B], "y": data.y[at : at + B]} for at in range(0, 48, B)]
    found = evaluate(None, module, batches)
    for captured, batch in zip(found, batches, strict=True):
        logits = module.head(module.body(batch["x"])).transpose(1, 2)
        by_hand = F.cross_entropy(logits, batch["y"], reduction="none").mean(1)
        torch.testing.assert_close(captured.loss, by_hand.detach())
    with pytest.raises(UndecidedLayoutError):
        evaluate(None, module, batches[:4])
