"""The engine with hooks gives what the loop over single records gives: layers, losses, refusals."""

from __future__ import annotations

import contextlib
import copy
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

from _engines import (
    VOCABULARY,
    WIDTH,
    Block,
    Cohort,
    On,
    Recurrent,
    Sequence,
    T,
    chunk,
    classify,
    compare,
    encoder,
    mlp,
    next_code,
    sums,
    wide,
)

from memguard.errors import MemguardWarning, PrivacyError
from memguard.privacy.clipping import ClippedSum
from memguard.privacy.engines.base import Work
from memguard.privacy.engines.loop import LoopEngine
from memguard.privacy.engines.opacus import OpacusEngine
from memguard.privacy.engines.still import no_dropout

# -- one layer each ---


BODIES = {
    "mlp": lambda: On(mlp()),
    "layer norm": lambda: On(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH))),
    "layer norm over two": lambda: On(nn.LayerNorm((T, WIDTH))),
    "layer norm without bias": lambda: On(nn.Sequential(nn.LayerNorm(WIDTH, bias=False), mlp())),
    "layer norm without weights": lambda: On(
        nn.Sequential(nn.LayerNorm(WIDTH, elementwise_affine=False), mlp())
    ),
    "rms norm": lambda: On(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.RMSNorm(WIDTH), nn.PReLU())),
    "conv": lambda: On(nn.Conv1d(WIDTH, WIDTH, 3, padding=1), transpose=True),
    "conv, dilated, in groups": lambda: On(
        nn.Sequential(nn.Conv1d(WIDTH, WIDTH, 2, dilation=2, groups=2), nn.GroupNorm(2, WIDTH)),
        transpose=True,
    ),
    "conv, padded to the same": lambda: On(nn.Conv1d(WIDTH, WIDTH, 3, padding="same"), transpose=True),
    "conv, circular": lambda: On(
        nn.Conv1d(WIDTH, WIDTH, 3, padding=1, padding_mode="circular"), transpose=True
    ),
    "instance norm": lambda: On(nn.InstanceNorm1d(WIDTH, affine=True), transpose=True),
    "weight norm": lambda: On(nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH))),
    "bilinear": lambda: On(Twice(nn.Bilinear(WIDTH, WIDTH, WIDTH))),
    "used twice": lambda: On(Again(nn.Linear(WIDTH, WIDTH))),
    "adapter": lambda: On(Adapter()),
    "scale": lambda: On(Scale()),
    "class token": lambda: On(Token()),
    "transformer": lambda: On(encoder(batch_first=True)),
    "flat": lambda: On(Flat()),
    "time first": lambda: On(TimeFirst()),
    "gru cell": lambda: On(Cell()),
}


class Twice(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x, x.flip(1))


class Again(Twice):
    def forward(self, x):
        return self.layer(torch.tanh(self.layer(x)[:, 1:]))


class Adapter(nn.Module):
    """A frozen layer with low-rank matrices of its own beside it."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.a, self.b = nn.Parameter(torch.randn(WIDTH, 2)), nn.Parameter(torch.randn(2, WIDTH))

    def forward(self, x):
        return self.base(x) + x @ self.a @ self.b


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.tensor(0.7)), nn.Parameter(torch.randn(T, WIDTH))
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        h = self.inner(x * self.scale.exp())
        h += self.shift[None, : x.shape[1]]
        return h / (1 + self.shift.norm())


class Token(nn.Module):
    def __init__(self):
        super().__init__()
        self.cls, self.positions = (
            nn.Parameter(torch.randn(1, 1, WIDTH)),
            nn.Parameter(torch.randn(T + 1, WIDTH)),
        )
        self.norm, self.mix = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        h = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.norm(self.mix(self.positions))
        return torch.tanh(self.mix(h)) * h[:, :1]


class Flat(nn.Module):
    """Positions flattened before a layer, as heads often do."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        h = torch.relu(self.first(x))
        return self.second(h.reshape(-1, WIDTH)).view(len(x), -1, WIDTH)


class TimeFirst(Flat):
    def forward(self, x):
        return self.second(torch.relu(self.first(x.transpose(0, 1).contiguous()))).transpose(0, 1)


class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(WIDTH, WIDTH)

    def forward(self, x):
        h = torch.zeros(len(x), WIDTH)
        for t in range(3):
            h = self.cell(x[:, t], h)
        return h


@pytest.mark.parametrize("name", BODIES)
def test_layers(name):
    torch.manual_seed(0)
    compare(BODIES[name](), classify, kind="mass")


# -- losses ---


def padded_bce(net, batch):
    return F.binary_cross_entropy_with_logits(net(batch)[..., 0], batch["keep"].float())


def by_hand(net, batch):
    """Pooled by the user, over positions that count."""
    logits = net(batch)[:, :-1].reshape(-1, VOCABULARY)
    values = F.cross_entropy(logits, batch["codes"][:, 1:].reshape(-1), reduction="none").view(
        len(batch["codes"]), -1
    )
    keep = batch["keep"][:, 1:].float()
    return (values * keep).sum() / keep.sum()


def class_weights(net, batch):
    return F.cross_entropy(net(batch), batch["y"], weight=torch.tensor([0.2, 1.0, 3.0]))


LOSSES = {
    "mean": (lambda: On(mlp()), classify, "mass"),
    "dict": (lambda: On(mlp()), lambda net, b: {"loss": classify(net, b), "n": len(b["y"])}, "mass"),
    "sum": (lambda: On(mlp()), lambda net, b: F.cross_entropy(net(b), b["y"], reduction="sum"), "sum"),
    "scaled": (lambda: On(mlp()), lambda net, b: 3 * classify(net, b), "mass"),
    "of nobody's function": (lambda: On(mlp()), lambda net, b: -net(b).log_softmax(1)[:, 0].mean(), "mean"),
    "two of one weight": (lambda: On(mlp()), lambda net, b: classify(net, b) + net(b).square().mean(), "mass"),
    "class weights": (lambda: On(mlp()), class_weights, "mass"),
    "none, mean": (
        lambda: On(mlp()), lambda net, b: F.cross_entropy(net(b), b["y"], reduction="none").mean(), "weights",
    ),
    "none, masked by hand": (lambda: Sequence(Block()), by_hand, "weights"),
    "squared error": (lambda: On(mlp()), lambda net, b: F.mse_loss(net(b), b["x"].mean(1)[:, :3]), "mass"),
    "summed over positions": (
        lambda: Sequence(Block()),
        lambda net, b: (F.cross_entropy(net(b).mT, b["codes"], reduction="none") * b["keep"]).sum(1).mean(), "mean",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name):
    torch.manual_seed(0)
    net, step, kind = LOSSES[name]
    compare(net(), step, kind=kind)


@pytest.mark.parametrize("name", ["mean", "class weights", "dict", "squared error"])
def test_a_loss_that_is_one_call_needs_no_calibration(name):
    torch.manual_seed(0)
    net, step, _ = LOSSES[name]
    compare(net(), step, calibrated=False)


def test_another_loss_needs_it():
    net, cohort = On(mlp()), Cohort()
    engine = OpacusEngine(net, list(net.parameters()))
    engine.attach()
    with pytest.raises(PrivacyError, match="not the result of one loss function"):
        sums(engine, lambda b: 2 * classify(net, b), cohort)


@pytest.mark.parametrize(("reduction", "factor"), [("mean", 1), ("sum", 7)])
def test_or_a_word(reduction, factor):
    """Seven records: their sum is seven times their mean."""
    net, cohort = On(mlp()), Cohort()
    engine = OpacusEngine(net, list(net.parameters()), reduction=reduction)
    engine.attach()
    settings = {"parts": [(3, 10)], "max_grad_norm": 1e6}
    with no_dropout():
        got = sums(engine, lambda b: factor * classify(net, b), cohort, **settings)
        expected = sums(LoopEngine(net, engine.parameters), lambda b: classify(net, b), cohort, **settings)
    for a, b in zip(got.sums, expected.sums, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


# -- refusals ---


class Standardized(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        h = self.layer(x)
        return (h - h.mean(0)) / (h.std(0, unbiased=False) + 1e-5)


def cox(net, batch):
    risk = net(batch)[:, 0]
    order = torch.argsort(batch["x"][:, 0, 0], descending=True)
    return -(risk[order] - torch.logcumsumexp(risk[order], 0)).mean()


def contrastive(net, batch):
    h = F.normalize(net(batch), dim=-1)
    return F.cross_entropy(h @ h.roll(1, 1).T / 0.5, torch.arange(len(h)))


class Sorted(nn.Module):
    """Puts the records of a batch in another order on the way: rows are then no records."""

    def __init__(self):
        super().__init__()
        self.layer, self.other = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        order = torch.argsort(x[:, 0, 0])
        return torch.tanh(self.layer(x[order]))[torch.argsort(order)] + self.other(x)


def batch_norm(net):
    return On(nn.Sequential(nn.Linear(WIDTH, WIDTH), net))


REFUSED = {
    "batch norm": (lambda: On(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(T), mlp())), classify),
    "batch norm without weights": (
        lambda: On(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(T, affine=False), mlp())), classify,
    ),
    "standardized by hand": (lambda: On(Standardized()), classify),
    "cox": (lambda: On(mlp()), cox),
    "contrastive": (lambda: On(mlp()), contrastive),
    "records in another order": (lambda: On(Sorted()), classify),
    "weights of the batch": (
        lambda: On(mlp()),
        lambda net, b: (F.cross_entropy(net(b), b["y"], reduction="none") * torch.softmax(net(b)[:, 0], 0)).sum(),
    ),
    "two of different weight": (lambda: Sequence(Block()), lambda net, b: next_code(net, b) + padded_bce(net, b)),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_losses_that_are_no_sums_over_records_are_refused(name):
    torch.manual_seed(0)
    net, step = REFUSED[name]
    net, cohort = net(), Cohort()
    engine = OpacusEngine(net, list(net.parameters()))
    engine.attach()
    positions = [0, 1, 2, 3, 4, 5]
    work = Work(cohort.batch(positions), chunk(positions, positions))
    with no_dropout(), pytest.raises(PrivacyError, match='"loop"'):
        engine.calibrate(work, lambda b: step(net, b), cohort.read)
    assert engine.weighting is None


class TiedByHand(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.block = nn.Embedding(VOCABULARY, WIDTH), Block()

    def forward(self, batch):
        return F.linear(self.block(self.embed(batch["codes"]), batch), self.embed.weight)


def test_a_weight_used_past_its_layer_is_seen_and_then_followed():
    torch.manual_seed(0)
    net, cohort = TiedByHand(), Cohort()
    engine = OpacusEngine(net, list(net.parameters()))
    engine.attach()
    positions = [0, 1, 2, 3, 4]
    work = Work(cohort.batch(positions), chunk(positions, positions))
    with no_dropout():
        found = engine.coverage(work, lambda b: next_code(net, b), cohort.read)
    assert found["embed.weight"][0] > 0.1 * found["embed.weight"][1] > 0
    engine.detach()
    assert all(
        error <= 1e-6 * max(scale, 1e-2) for name, (error, scale) in found.items() if name != "embed.weight"
    )
    compare(net, next_code, kind="mass", bare=1)


# -- the rest of the contract ---


def test_bfloat16_is_summed_in_float32():
    torch.manual_seed(0)
    net = Sequence(Block(), tied=True)

    def step(net, batch):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return next_code(net, batch)

    compare(net, step, rtol=2e-2, kind="mass")
    engine = OpacusEngine(net, list(net.parameters()))
    engine.attach()
    cohort = Cohort()
    _, rows, _ = engine._told(
        Work(cohort.batch([0, 1, 2]), chunk([0, 1, 2], [0, 1, 2])), lambda b: step(net, b), cohort.read
    )
    assert rows.eps > 1e-3 and all(each.dtype == torch.float32 for each in rows.of.values())


def test_compiled_children_run_with_hooks():
    torch.manual_seed(0)
    net = On(mlp())
    net.body = torch.compile(net.body, backend="eager")
    compare(net, classify)


def test_a_subset_of_the_parameters():
    torch.manual_seed(0)
    net = Sequence(Recurrent(wide(nn.GRU, batch_first=True)))
    net.embed.requires_grad_(False)
    net.body.rnn.weight_hh_l0.requires_grad_(False)
    compare(net, next_code)


def test_p_grad_stays():
    net, cohort = On(Adapter()), Cohort()
    mark = net.head.weight.grad = torch.ones_like(net.head.weight)
    engine = OpacusEngine(net, [p for p in net.parameters() if p.requires_grad])
    engine.attach()
    sums(engine, lambda b: classify(net, b), cohort)
    assert (
        net.head.weight.grad is mark and torch.equal(mark, torch.ones_like(mark)) and net.body.a.grad is None
    )


def test_passes_of_others_are_left_alone_while_attached():
    torch.manual_seed(0)
    net, cohort = Sequence(Recurrent(wide(nn.GRU, num_layers=2, batch_first=True, dropout=0.5))), Cohort()
    plain, batch = copy.deepcopy(net), cohort.batch([0, 1, 2])
    engine = OpacusEngine(net, list(net.parameters()))
    engine.attach()
    copied = copy.deepcopy(net)
    for model in (net, copied):
        torch.manual_seed(5)
        next_code(model, batch).backward()
    torch.manual_seed(5)
    next_code(plain, batch).backward()
    for a, b, c in zip(net.parameters(), plain.parameters(), copied.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad) and torch.equal(c.grad, b.grad) and not vars(a)
    assert engine._hooks._rows is None


def test_a_batch_that_cannot_be_told_is_left_to_the_loop_with_one_warning():
    torch.manual_seed(0)
    net, cohort = Sequence(Block()), Cohort()

    def chosen(net, batch):
        """Only positions that count go through the head: rows are no records there."""
        h = net.body(net.embedded(batch), batch)
        return F.cross_entropy(net.head(h[batch["keep"]]), batch["codes"][batch["keep"]])

    engine = OpacusEngine(net, list(net.parameters()))
    engine.attach()
    with no_dropout():
        with pytest.warns(MemguardWarning, match="record by record"):
            got = sums(engine, lambda b: chosen(net, b), cohort)
        expected = sums(LoopEngine(net, engine.parameters), lambda b: chosen(net, b), cohort)
    assert engine.n_looped == 2
    for a, b in zip(got.sums, expected.sums, strict=True):
        torch.testing.assert_close(a, b)


def test_as_many_steps_as_records_is_told_by_a_record_alone():
    """Batches of 6 records with 6 steps, records second: one batch does not tell them apart."""
    torch.manual_seed(0)
    net, cohort = On(TimeFirst()), Cohort()
    engine = OpacusEngine(net, list(net.parameters()))
    engine.attach()
    got = sums(engine, lambda b: classify(net, b), cohort, owner=list(range(T)))
    expected = sums(
        LoopEngine(net, engine.parameters), lambda b: classify(net, b), cohort, owner=list(range(T))
    )
    assert engine.n_looped == 0
    for a, b in zip(got.sums, expected.sums, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_one_record_and_records_without_positions():
    torch.manual_seed(0)
    net, cohort = Sequence(Block()), Cohort()
    cohort.lengths[4] = 1  # nothing to predict: its contribution is zero
    engine = OpacusEngine(net, list(net.parameters()))
    engine.attach()
    with no_dropout(), warnings.catch_warnings():
        for owner in ([0], [0, 1, 2]):
            positions = [3 + i for i in range(len(owner))]
            work = Work(cohort.batch(positions), chunk(positions, owner))
            a, b = ClippedSum(engine.parameters, 0.5), ClippedSum(engine.parameters, 0.5)
            engine.accumulate(work, lambda batch: next_code(net, batch), cohort.read, a)
            for i in positions:
                if i != 4:
                    loop = LoopEngine(net, engine.parameters)
                    one = Work(cohort.read(i), chunk([i], [0]))
                    loop.accumulate(one, lambda batch: next_code(net, batch), cohort.read, b)
            for x, y in zip(a.sums, b.sums, strict=True):
                torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-7)


# -- weightings that a few records do not tell apart ---


RARE = 2  # a label that no record has before training


def weighted(net, batch):
    values = F.cross_entropy(net(batch), batch["y"], reduction="none")
    return (values * torch.where(batch["y"] == RARE, 30.0, 1.0)).mean()


def weighted_mean(net, batch):
    weight = torch.where(batch["y"] == RARE, 30.0, 1.0)
    return (F.cross_entropy(net(batch), batch["y"], reduction="none") * weight).sum() / weight.sum()


def ignored_and_not(net, batch):
    logits = net(batch)
    return F.cross_entropy(logits, batch["y"], ignore_index=RARE) + logits.square().mean()


def told_on_common_labels(step, *, dropout=0.0):
    """An engine calibrated on records without the rare label, and what it and the loop make of batches with it."""
    torch.manual_seed(0)
    net, cohort = On(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(dropout))), Cohort()
    cohort.y[:5], cohort.y[5:] = torch.tensor([0, 1, 0, 1, 1]), torch.arange(5, 24) % 2
    engine = OpacusEngine(net, list(net.parameters()))
    engine.attach()
    work = Work(cohort.batch(range(5)), chunk(list(range(5)), list(range(5))))
    with no_dropout():
        engine.calibrate(work, lambda b: step(net, b), cohort.read)
    cohort.y[[6, 13]] = RARE
    return net, engine, cohort


@pytest.mark.parametrize(("step", "kind"), [(weighted, "mean"), (weighted_mean, "weights")])
def test_a_rare_weight_is_told_by_the_first_batch_that_has_it(step, kind):
    net, engine, cohort = told_on_common_labels(step)
    assert [each.kind for each in engine.weightings] == ["weights", "mean"]
    got = sums(engine, lambda b: step(net, b), cohort)
    expected = sums(LoopEngine(net, engine.parameters), lambda b: step(net, b), cohort)
    assert [each.kind for each in engine.weightings] == [kind]
    assert engine.n_looped == 0
    for a, b in zip(got.sums, expected.sums, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_rare_weight_is_told_with_dropout_and_out_of_the_way_of_logs():
    logged, quiet = [], []

    @contextlib.contextmanager
    def aside():
        quiet.append(True)
        yield
        quiet.pop()

    def step(net, batch):
        if not quiet:
            logged.append(len(batch["y"]))
        return weighted(net, batch)

    net, engine, cohort = told_on_common_labels(step, dropout=0.5)
    engine.aside = aside
    logged.clear()
    sums(engine, lambda b: step(net, b), cohort)
    assert engine.weighting.kind == "mean"
    assert engine.n_looped == 0
    assert set(logged) == {7}  # no record by itself


def test_a_loss_that_turns_out_to_be_no_sum_is_left_to_the_loop_from_then_on():
    net, engine, cohort = told_on_common_labels(ignored_and_not)
    with pytest.warns(MemguardWarning, match="not a sum over its records, as it was"):
        got = sums(engine, lambda b: ignored_and_not(net, b), cohort)
    expected = sums(LoopEngine(net, engine.parameters), lambda b: ignored_and_not(net, b), cohort)
    assert engine.n_looped == 2
    assert engine.weighting is None
    for a, b in zip(got.sums, expected.sums, strict=True):
        torch.testing.assert_close(a, b)


# -- layers that change meanwhile ---


def test_a_layer_that_is_pruned_in_training_keeps_its_gradients():
    torch.manual_seed(0)
    net, cohort = On(nn.Linear(WIDTH, WIDTH)), Cohort()
    engine = OpacusEngine(net, list(net.parameters()))
    engine.attach()
    sums(engine, lambda b: classify(net, b), cohort)
    assert engine.n_looped == 0
    nn.utils.prune.l1_unstructured(net.body, "weight", 0.3)
    with pytest.warns(MemguardWarning, match=r"body\.weight is no longer the parameter"):
        got = sums(engine, lambda b: classify(net, b), cohort)
    expected = sums(LoopEngine(net, engine.parameters), lambda b: classify(net, b), cohort)
    for a, b in zip(got.sums, expected.sums, strict=True):
        assert b.any()
        torch.testing.assert_close(a, b)
