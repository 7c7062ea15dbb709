"""Without noise, every update of a Trainer with DPSGD is that of DP-SGD written out one record at a time."""

from __future__ import annotations

from functools import partial

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from _private import Case, Codes, Data, Gpt, Mlp, Recorder, Rnn, Steps, Visits, padded, trainer, worst
from _private import private as _private
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Subset, default_collate

EXACT = 1e-6
private = partial(_private, engine="auto")


def updates(folder, module, loader, dpsgd=None, *, steps=3, **options):
    """A fit of a few steps; the callback and the recorder of its updates."""
    dpsgd = dpsgd or private()
    recorder = Recorder(dpsgd)
    run = trainer(folder, dpsgd, recorder, **{"max_steps": steps, "max_epochs": 50, **options})
    run.fit(module, loader)
    assert run.global_step == len(recorder.steps) == dpsgd._run.steps == steps
    return dpsgd, recorder


def codes_loader(data, batch_size=8, **options):
    return DataLoader(data, batch_size=batch_size, shuffle=True, collate_fn=padded, **options)


@pytest.mark.parametrize("engine", ["loop", "opacus"])
def test_mlp(tmp_path, engine):
    data, module = Visits(), Mlp()
    loader = DataLoader(data, batch_size=20, shuffle=True)
    dpsgd, recorder = updates(tmp_path, module, loader, private(engine=engine, checks=True))
    assert worst(dpsgd, recorder, module, data) < EXACT


@pytest.mark.parametrize(
    "make",
    [
        Gpt,
        partial(Gpt, tied=True),
        partial(Gpt, functional=True),
        partial(Gpt, padding_idx=0),
        Rnn,
    ],
    ids=["transformer", "tied", "tied by F.linear", "padding_idx", "GRU"],
)
def test_sequence_models_with_a_mean_over_tokens_of_padded_batches(tmp_path, make):
    torch.manual_seed(0)
    data, module = Codes(), make()
    dpsgd, recorder = updates(tmp_path, module, codes_loader(data), private(max_grad_norm=0.8, checks=True))
    assert dpsgd._loop is None
    assert worst(dpsgd, recorder, module, data, collate=padded) < EXACT


class Llama(Steps):
    """transformers' own loss, batches of transformers' own kind."""

    def __init__(self):
        super().__init__()
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=20,
            hidden_size=8,
            intermediate_size=12,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=16,
            pad_token_id=0,
            tie_word_embeddings=False,
        )
        self.model = LlamaForCausalLM(config)

    def loss(self, batch):
        return self.model(**batch).loss


def encoded(records):
    from transformers import BatchEncoding

    codes = padded(records)
    return BatchEncoding(
        {
            "input_ids": codes,
            "attention_mask": (codes != 0).long(),
            "labels": codes.masked_fill(codes == 0, -100),
        }
    )


def test_llama_of_transformers(tmp_path):
    torch.manual_seed(0)
    data, module = Codes(), Llama()
    loader = DataLoader(data, batch_size=8, shuffle=True, collate_fn=encoded)
    dpsgd, recorder = updates(tmp_path, module, loader, private(checks=True))
    assert worst(dpsgd, recorder, module, data, collate=encoded) < EXACT


@pytest.mark.parametrize(
    ("settings", "options", "by"),
    [
        ({"physical_batch_size": 4}, {}, "patient"),
        ({"physical_batch_size": 2, "expected_batch_size": 1}, {}, "patient"),
        ({}, {"accumulate_grad_batches": 3}, "patient"),
        ({"average": "sum"}, {}, "patient"),
        ({"unit": "record", "delta": 1e-3}, {}, "record"),
        ({"max_records_per_patient": 2}, {}, "patient"),
        ({"sample_rate": 1.0, "physical_batch_size": 7}, {}, "patient"),
    ],
    ids=["parts", "empty parts", "accumulation", "sum", "record", "capped", "everybody"],
)
def test_settings(tmp_path, settings, options, by):
    data, module = Visits(), Mlp()
    loader = DataLoader(data, batch_size=10, shuffle=True)
    dpsgd, recorder = updates(tmp_path, module, loader, private(**settings), steps=4, **options)
    average = settings.get("average", "mean")
    assert worst(dpsgd, recorder, module, data, average=average, by=by) < EXACT
    plan = dpsgd._run.plan
    if "physical_batch_size" in settings:
        assert plan.parts > 1
        assert recorder.batches == 4 * plan.parts
    if options:
        assert plan.steps_per_epoch == 2  # 60 records, 10 in a batch, 3 batches in a step
    if "max_records_per_patient" in settings:
        for _, positions, _ in recorder.steps:
            assert np.bincount(data.patient_ids[positions]).max(initial=0) <= 2
        assert np.bincount(data.patient_ids).max() > 2
    if plan.sample_rate == 1:
        assert all(sorted(positions) == list(range(60)) for _, positions, _ in recorder.steps)


def test_an_empty_draw_is_a_step_like_any_other(tmp_path, unstated):
    data, module = Visits(), Mlp()
    loader = DataLoader(data, batch_size=10, shuffle=True)
    settings = private(sample_rate=1e-6, noise_multiplier=2.0, max_grad_norm=0.1)
    dpsgd, recorder = updates(tmp_path, module, loader, settings, steps=4)
    assert all(positions == [] for _, positions, _ in recorder.steps)
    expected = dpsgd._run.plan.expected_owners
    assert expected == pytest.approx(24e-6)
    noise = torch.cat([g.flatten() for _, _, grads in recorder.steps for g in grads.values()])
    assert noise.std().item() == pytest.approx(2.0 * 0.1 / expected, rel=0.2)


def test_bf16_mixed(tmp_path):
    data, module = Visits(), Mlp()
    loader = DataLoader(data, batch_size=20, shuffle=True)
    dpsgd, recorder = updates(tmp_path, module, loader, precision="bf16-mixed")
    around = partial(torch.autocast, "cpu", dtype=torch.bfloat16)
    assert worst(dpsgd, recorder, module, data, around=around) < 2e-3


class DictMlp(Mlp):
    def loss(self, batch):
        return F.cross_entropy(self(batch["x"]), batch["y"])


class CaseMlp(Mlp):
    def loss(self, batch):
        return F.cross_entropy(self(batch.x), batch.y)


def as_dict(records):
    x, y = default_collate(records)
    return {"x": x, "y": y, "note": ["text"] * len(y)}


def as_case(records):
    return Case(*default_collate(records))


@pytest.mark.parametrize(("make", "collate"), [(DictMlp, as_dict), (CaseMlp, as_case)])
def test_kinds_of_batches(tmp_path, make, collate):
    data, module = Visits(), make()
    loader = DataLoader(data, batch_size=20, shuffle=True, collate_fn=collate)
    dpsgd, recorder = updates(tmp_path, module, loader, private(physical_batch_size=5), steps=2)
    assert worst(dpsgd, recorder, module, data, collate=collate) < EXACT


@pytest.mark.filterwarnings("ignore:.*persistent_workers")
def test_workers_that_stay(tmp_path):
    data, module = Visits(), Mlp()
    loader = DataLoader(data, batch_size=20, shuffle=True, num_workers=2, persistent_workers=True)
    dpsgd, recorder = updates(tmp_path, module, loader, max_epochs=2, steps=6)
    assert worst(dpsgd, recorder, module, data) < EXACT
    assert len({tuple(positions) for _, positions, _ in recorder.steps}) == 6


class Whole(Visits):
    """Collates by itself: takes a list of positions."""

    def __getitem__(self, i):
        return self.x[i], self.y[i]


def test_a_dataset_that_collates_by_itself(tmp_path):
    data, module = Whole(), Mlp()
    sampler = BatchSampler(RandomSampler(data), batch_size=20, drop_last=False)
    loader = DataLoader(data, sampler=sampler, batch_size=None)
    dpsgd, recorder = updates(tmp_path, module, loader, private(checks=True))
    assert worst(dpsgd, recorder, module, data, collate=lambda one: default_collate(one)) < EXACT


def test_a_loader_whose_batches_are_single_records(tmp_path):
    data, module = Visits(), Mlp()
    data.x, data.y = data.x[:, None], data.y[:, None]  # each record is a batch of one
    loader = DataLoader(data, batch_size=None, shuffle=True)
    settings = private(checks=True, expected_batch_size=6, physical_batch_size=20)
    dpsgd, recorder = updates(tmp_path, module, loader, settings)
    assert worst(dpsgd, recorder, module, data, collate=lambda one: one[0]) < EXACT


def test_a_part_of_a_dataset_and_frozen_and_unused_parameters(tmp_path):
    data, module = Visits(), Mlp()
    module.spare = nn.Linear(2, 2)
    module.net[0].weight.requires_grad_(False)
    before = module.net[0].weight.clone()
    part = Subset(data, range(0, 60, 2))
    part.patient_ids = data.patient_ids[::2]
    dpsgd, recorder = updates(tmp_path, module, DataLoader(part, batch_size=10, shuffle=True))
    module.net[0].weight.requires_grad_(True)
    module.net[0].weight.data.copy_(before)
    for _, _, grads in recorder.steps:
        assert grads.pop("net.0.weight") is None
    assert dpsgd._run.plan.n_records == 30
    for weights, positions, grads in recorder.steps:
        assert grads["spare.weight"].abs().max() == 0
        assert all(position < 30 for position in positions)
        assert torch.equal(weights["net.0.weight"], before)


def test_a_parameter_that_no_optimizer_has_gets_no_gradient(tmp_path):
    class Half(Mlp):
        def configure_optimizers(self):
            return torch.optim.SGD(self.net[2].parameters(), lr=0.1)

    data, module = Visits(), Half()
    before = module.net[0].weight.clone()
    _, recorder = updates(tmp_path, module, DataLoader(data, batch_size=20))
    assert torch.equal(module.net[0].weight, before)
    for _, _, grads in recorder.steps:
        assert grads["net.0.weight"] is None
        assert grads["net.2.weight"] is not None
        norm = sum(g.square().sum() for g in grads.values() if g is not None).sqrt()
        assert norm > 0


def test_groups_of_one_optimizer_share_one_norm(tmp_path):
    class Groups(Mlp):
        def configure_optimizers(self):
            first, last = self.net[0].parameters(), self.net[2].parameters()
            return torch.optim.SGD([{"params": last, "lr": 0.1}, {"params": first, "lr": 0.01}])

    data, module = Visits(), Groups()
    dpsgd, recorder = updates(tmp_path, module, DataLoader(data, batch_size=20))
    assert worst(dpsgd, recorder, module, data) < EXACT


def test_the_gradient_of_the_step_is_never_seen_by_others(tmp_path):
    seen = []

    class Peeks(pl.Callback):
        def on_after_backward(self, trainer, pl_module):
            seen.append([p.grad for p in pl_module.parameters()])

    data, dpsgd = Data(batch_size=20), private(physical_batch_size=10)
    run = trainer(tmp_path, Peeks(), dpsgd, limit_val_batches=0)
    run.fit(Mlp(), datamodule=data)
    assert len(seen) > 3
    assert all(grad is None for grads in seen for grad in grads)


class Crops(Visits):
    """Draws at random which part of a record is seen."""

    def __getitem__(self, i):
        x, y = super().__getitem__(i)
        return x * (torch.rand(6) < 0.5), y


def test_records_that_are_cropped_at_random_need_no_loop(tmp_path):
    dpsgd, _ = updates(tmp_path, Mlp(), DataLoader(Crops(), batch_size=20), private(checks=True))
    ledger = dpsgd.ledger_path.read_text()
    assert '"engine":"opacus"' in ledger.replace(" ", "")


class Rare(Mlp):
    """Deaths count thirty times, by hand."""

    def loss(self, batch):
        x, y = batch
        weight = torch.where(y == 1, 30.0, 1.0)
        return (F.cross_entropy(self(x), y, reduction="none") * weight).mean()


def test_a_weight_of_a_rare_label_that_no_check_has_seen(tmp_path):
    torch.manual_seed(0)
    data, module = Visits(patients=200, records=400), Rare()
    data.y[:] = 0
    data.y[[7, 301]] = 1
    settings = private(checks=True, sample_rate=1.0, physical_batch_size=250)
    dpsgd, recorder = updates(tmp_path, module, DataLoader(data, batch_size=20), settings)
    assert worst(dpsgd, recorder, module, data) < EXACT
