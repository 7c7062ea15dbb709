"""Weights of records: every parameter gets the gradient of the loss re-weighted by hand, to 1e-6 in float64."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

from memguard.capture import Capture
from memguard.capture.losses import LossCapture, attribute
from memguard.capture.weigh import Weigher, weigh_call
from memguard.errors import AmbiguousLossError, MemguardError, MemguardWarning

B, T, V, WIDTH = 6, 5, 7, 4
HERE = Path(__file__).parent


# -- one call of each kind -------------------------------------------------------------------------------
# Each kind: targets, the loss as a user writes it, and by hand the parts (B,) that add up to it.


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def log_p(logits):
    return logits - logits.exp().sum(-1, keepdim=True).log()


def picked(logits, y, weight=None):
    """-w_y log p_y over the last dimension, zero at ignored positions; and the weights."""
    keep = y != -100
    safe = y.clamp(min=0)
    w = (torch.ones(V, dtype=logits.dtype) if weight is None else weight)[safe] * keep
    return -(log_p(logits) * F.one_hot(safe, V)).sum(-1) * w, w


WEIGHT = torch.linspace(0.2, 2, V, dtype=torch.float64)
CODES = torch.randint(0, V, (B, T), generator=rng(3))
PADDED = CODES.masked_fill(
    torch.arange(T) >= torch.tensor([5, 3, 4, 0, 2, 5])[:, None], -100
)  # one has no target
ONE = CODES[:, 0]
PROBABILITIES = torch.rand(B, V, generator=rng(4), dtype=torch.float64).softmax(-1)
REAL = torch.rand(B, V, generator=rng(5), dtype=torch.float64)


def by_record(values, denominator):
    return values.reshape(B, -1).sum(1) / denominator


def smoothed(z, y, eps, weight=None):
    w = torch.ones(V, dtype=z.dtype) if weight is None else weight
    hard, mass = picked(z, y, weight)
    soft = -(log_p(z) * w).sum(-1) * (y != -100)
    return ((1 - eps) * hard + eps / V * soft), mass.sum()


def kinds():
    first = lambda z: z[:, 0]  # noqa: E731
    return {
        "mean": (lambda z: F.cross_entropy(first(z), ONE), lambda z: by_record(picked(first(z), ONE)[0], B)),
        "sum": (
            lambda z: F.cross_entropy(first(z), ONE, reduction="sum"),
            lambda z: by_record(picked(first(z), ONE)[0], 1),
        ),
        "class weights": (
            lambda z: F.cross_entropy(first(z), ONE, weight=WEIGHT),
            lambda z: by_record(picked(first(z), ONE, WEIGHT)[0], WEIGHT[ONE].sum()),
        ),
        "smoothed": (
            lambda z: F.cross_entropy(first(z), ONE, label_smoothing=0.2),
            lambda z: by_record(*smoothed(first(z), ONE, 0.2)),
        ),
        "smoothed, class weights, ignored": (
            lambda z: F.cross_entropy(z.flatten(0, 1), PADDED.flatten(), label_smoothing=0.2, weight=WEIGHT),
            lambda z: by_record(*smoothed(z, PADDED, 0.2, WEIGHT)),
        ),
        "flattened, ignored": (
            lambda z: F.cross_entropy(z.reshape(-1, V), PADDED.reshape(-1)),
            lambda z: by_record(picked(z, PADDED)[0], (PADDED != -100).sum()),
        ),
        "classes second": (
            lambda z: F.cross_entropy(z.transpose(1, 2), PADDED, weight=WEIGHT),
            lambda z: by_record(picked(z, PADDED, WEIGHT)[0], picked(z, PADDED, WEIGHT)[1].sum()),
        ),
        "none, then mean": (
            lambda z: F.cross_entropy(first(z), ONE, reduction="none").mean(),
            lambda z: by_record(picked(first(z), ONE)[0], B),
        ),
        "none, then masked": (
            lambda z: (
                (F.cross_entropy(z.transpose(1, 2), PADDED, reduction="none") * (PADDED != -100)).sum()
                / (PADDED != -100).sum()
            ),
            lambda z: by_record(picked(z, PADDED)[0], (PADDED != -100).sum()),
        ),
        "copied": (
            lambda z: F.cross_entropy(first(z), ONE).clone(),
            lambda z: by_record(picked(first(z), ONE)[0], B),
        ),
        "probabilities": (
            lambda z: F.cross_entropy(first(z), PROBABILITIES),
            lambda z: by_record(-log_p(first(z)) * PROBABILITIES, B),
        ),
        "nll": (
            lambda z: F.nll_loss(first(z).log_softmax(-1), ONE),
            lambda z: by_record(picked(first(z), ONE)[0], B),
        ),
        "bce": (
            lambda z: F.binary_cross_entropy_with_logits(first(z), REAL, pos_weight=WEIGHT),
            lambda z: by_record(
                -(WEIGHT * REAL * first(z).sigmoid().log() + (1 - REAL) * (1 - first(z).sigmoid()).log()),
                B * V,
            ),
        ),
        "bce of probabilities": (
            lambda z: F.binary_cross_entropy(first(z)[:, 0].sigmoid(), REAL[:, 0]),
            lambda z: by_record(
                -(
                    REAL[:, 0] * z[:, 0, 0].sigmoid().log()
                    + (1 - REAL[:, 0]) * (1 - z[:, 0, 0].sigmoid()).log()
                ),
                B,
            ),
        ),
        "mse": (
            lambda z: F.mse_loss(first(z), REAL),
            lambda z: by_record((first(z) - REAL) ** 2, B * V),
        ),
        "kl": (
            lambda z: F.kl_div(first(z).log_softmax(-1), PROBABILITIES, reduction="batchmean"),
            lambda z: by_record(PROBABILITIES * (PROBABILITIES.log() - log_p(first(z))), B),
        ),
    }


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.BatchNorm1d(T), nn.Linear(8, V)).double()


X = torch.randn(B, T, WIDTH, generator=rng(1), dtype=torch.float64)
R = torch.tensor([1.0, 0.0, 0.3, 2.0, 0.7, 1.0])


def gradients(model, loss):
    return torch.autograd.grad(loss, list(model.parameters()))


def captured_step(model, made):
    with LossCapture() as seen:
        loss = made(model(X))
    return loss, seen.calls, attribute(seen.calls, loss, B, batch={"codes": CODES, "padded": PADDED})


@pytest.mark.parametrize("kind", kinds())
def test_gradients_are_those_of_the_loss_weighed_by_hand(kind):
    made, parts = kinds()[kind]
    model = net()
    loss, calls, captured = captured_step(model, made)
    hand = parts(model(X))
    assert torch.allclose(hand.sum(), loss, rtol=1e-12)  # the oracle takes the same loss apart
    before = loss.item()
    weigh_call(loss, calls, R, captured)
    assert loss.item() == before
    wanted = gradients(model, (R * hand).sum())
    for found, right in zip(gradients(model, loss), wanted, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-6, atol=1e-9)
    plain = gradients(model, parts(model(X)).sum())
    assert any((a - b).abs().max() > 1e-4 for a, b in zip(plain, wanted, strict=True))


@pytest.mark.parametrize("kind", ["flattened, ignored", "classes second", "none, then masked"])
def test_weights_of_tokens(kind):
    made, _ = kinds()[kind]
    model, weight = net(), WEIGHT if kind == "classes second" else None
    loss, calls, captured = captured_step(model, made)
    each = torch.rand(B, T, generator=rng(9)).round(decimals=1)
    weigh_call(loss, calls, each, captured)
    values, mass = picked(model(X), PADDED, weight)
    wanted = gradients(model, (each * values).sum() / mass.sum())
    for found, right in zip(gradients(model, loss), wanted, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", ["mean", "smoothed", "classes second", "bce", "none, then masked"])
def test_whoever_listened_at_the_input_before_sees_the_weighed_gradient(kind):
    made, parts = kinds()[kind]
    model, seen = net(), []
    z = model(X)
    given = (z[:, 0] if kind in ("mean", "smoothed", "bce") else z) * 1
    given.register_hook(lambda g: seen.append(g.clone()))
    with LossCapture() as heard:
        loss = made(given[:, None] if given.dim() == 2 else given)
    captured = attribute(heard.calls, loss, B, batch={"codes": CODES, "padded": PADDED})
    weigh_call(loss, heard.calls, R, captured)
    loss.backward()
    again = given.detach().requires_grad_()
    (R * parts(again[:, None] if again.dim() == 2 else again)).sum().backward()
    torch.testing.assert_close(seen[0], again.grad, rtol=1e-6, atol=1e-9)


def test_a_weight_of_zero_silences_a_loss_that_is_infinite():
    given = torch.zeros(2, 2, dtype=torch.float64)
    given[1, 1] = -torch.inf  # probability zero of what happened
    logits = given.requires_grad_()
    with LossCapture() as seen:
        loss = F.nll_loss((logits * 1).log_softmax(-1).exp().log(), torch.tensor([0, 1]))
    captured = attribute(seen.calls, loss, 2)
    weigh_call(loss, seen.calls, torch.tensor([1.0, 0.0]), captured)
    loss.backward()
    assert torch.isfinite(logits.grad[0]).all() and logits.grad[0].abs().sum() > 0


def refused(made, message, model=None):
    model = model or net()
    loss, calls, captured = captured_step(model, made)
    with pytest.raises(AmbiguousLossError, match=message):
        weigh_call(loss, calls, R, captured)


def test_what_lies_beside_the_call_is_refused():
    model = net()
    size = lambda: sum(p.square().sum() for p in model.parameters())  # noqa: E731
    refused(lambda z: F.cross_entropy(z[:, 0], ONE) + 1e-9 * size(), "not one call", model)
    refused(lambda z: F.mse_loss(z[:, 0], z[:, 1] * 0 + REAL), "other tensors than its input")
    refused(lambda z: F.gaussian_nll_loss(z[:, 0], REAL, z[:, 1].exp()), "other tensors than its input")

    def added_in_place(z):
        loss = F.cross_entropy(z[:, 0], ONE)
        loss += 1e-9 * size()
        return loss

    refused(added_in_place, "other tensors than its input", model)


def test_weights_of_another_shape_are_refused():
    loss, calls, captured = captured_step(net(), kinds()["mean"][0])
    for wrong in (torch.ones(B - 1), torch.ones(B, T), torch.ones(())):
        with pytest.raises(AmbiguousLossError, match="weights of shape"):
            weigh_call(loss, calls, wrong, captured)


# -- in a Trainer ----------------------------------------------------------------------------------------


class Sequences(Dataset):
    def __init__(self, n=32):
        self.codes = torch.randint(1, V, (n, T), generator=rng(7))
        self.codes[:, 3:] = self.codes[:, 3:].masked_fill(torch.rand(n, T - 3, generator=rng(8)) < 0.5, 0)

    def __len__(self):
        return len(self.codes)

    def __getitem__(self, i):
        return {"codes": self.codes[i], "at": i}


def weight_of(at):
    """The weight of each record: a third of them 0, a third 0.5."""
    return torch.tensor([1.0, 0.0, 0.5])[at % 3]


class Model(pl.LightningModule):
    """A next-code model; ``by_hand`` trains on the explicitly re-weighted loss."""

    def __init__(self, by_hand=False, dropout=0.0, compiled=False, sgd=False):
        super().__init__()
        torch.manual_seed(1)
        net = nn.Sequential(
            nn.Embedding(V, 8), nn.Linear(8, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, V)
        )
        self.net, self.by_hand, self.sgd = net, by_hand, sgd
        self.run = torch.compile(net, backend="aot_eager") if compiled else net

    def training_step(self, batch, batch_idx):
        codes = batch["codes"]
        logits, y = self.run(codes[:, :-1]), codes[:, 1:]
        if self.by_hand:
            values = -logits.log_softmax(-1).gather(-1, y[..., None])[..., 0] * (y != 0)
            loss = (values * weight_of(batch["at"])[:, None]).sum() / (y != 0).sum()
        else:
            loss = F.cross_entropy(logits.transpose(1, 2), y, ignore_index=0)
        self.log("loss", loss)
        return {"loss": loss, "logits": logits.detach()}

    def configure_optimizers(self):
        return (
            torch.optim.SGD(self.parameters(), 0.5) if self.sgd else torch.optim.Adam(self.parameters(), 1e-2)
        )


class Weigh(pl.Callback):
    def __init__(self, rule=lambda at, seen: weight_of(torch.as_tensor(at)), **options):
        self.capture, self.weigher = Capture(**options), Weigher([] if rule is None else [rule])

    def setup(self, trainer, pl_module, stage):
        self.capture.install(trainer, pl_module)
        self.capture.steps.weigher = self.weigher

    def on_exception(self, trainer, pl_module, exception):
        self.capture.restore()

    def teardown(self, trainer, pl_module, stage):
        self.capture.restore()


def fitted(module, *callbacks, epochs=2, n=32, **options):
    warnings.filterwarnings("ignore", module="lightning")
    pl.seed_everything(0, verbose=False)
    defaults = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "precision": "64-true"}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "max_epochs": epochs}
    trainer = pl.Trainer(callbacks=list(callbacks), **{**defaults, **quiet, **options})
    trainer.fit(module, DataLoader(Sequences(n), batch_size=8, shuffle=True))
    return [p.detach().clone() for p in module.parameters()]


def same(a, b, rtol=1e-6, atol=1e-9):
    for one, other in zip(a, b, strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol)


pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(does not have many workers|logging interval|tensorboard).*"
)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"accumulate_grad_batches": 3},
        {"gradient_clip_val": 0.05},
        {"gradient_clip_val": 0.01, "accumulate_grad_batches": 2},
    ],
    ids=str,
)
def test_training_is_that_on_the_weighed_loss(options):
    weigh = Weigh()
    found = fitted(Model(), weigh, **options)
    same(found, fitted(Model(by_hand=True), **options))
    assert weigh.weigher.weighed == 8 and weigh.weigher.missed == 0
    assert weigh.capture.steps.graph.proven  # later steps were read from the graph alone
    with pytest.raises(AssertionError):
        same(found, fitted(Model(), **options))


def test_training_with_a_compiled_net():
    same(fitted(Model(compiled=True), Weigh()), fitted(Model(by_hand=True)))


def test_half_precision():
    found = fitted(Model(sgd=True), Weigh(), precision="bf16-mixed")
    same(found, fitted(Model(by_hand=True, sgd=True), precision="bf16-mixed"), rtol=0.05, atol=5e-3)


@pytest.mark.parametrize("rule", [None, lambda at, seen: torch.ones(len(at))], ids=["no weights", "ones"])
def test_weights_of_one_change_no_bit(rule):
    found = fitted(Model(dropout=0.2), Weigh(rule), precision="32-true")
    plain = fitted(Model(dropout=0.2), precision="32-true")
    assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))


def test_rules_multiply():
    half = lambda at, seen: torch.full((len(at),), 0.5)  # noqa: E731
    double = lambda at, seen: torch.full((len(at), T - 1), 2.0)  # noqa: E731
    weigh = Weigh()
    weigh.weigher.rules += [half, double]
    same(fitted(Model(), weigh), fitted(Model(by_hand=True)))


class Given(Model):
    """Not one call of a loss function; the losses of records come from ``per_record_loss``."""

    def parts(self, batch):
        codes = batch["codes"]
        logits, y = self.run(codes[:, :-1]), codes[:, 1:]
        return -logits.log_softmax(-1).gather(-1, y[..., None])[..., 0].mean(1)

    def training_step(self, batch, batch_idx):
        parts = self.parts(batch)
        if self.by_hand:
            parts = parts * weight_of(batch["at"])
        return parts.mean()


def test_losses_given_by_the_user():
    def given(module, batch):
        return module.parts(batch)

    found = fitted(Given(dropout=0.3), Weigh(per_record_loss=given))
    same(found, fitted(Given(by_hand=True, dropout=0.3)))
    with pytest.raises(AmbiguousLossError, match="per_record_loss="):
        fitted(Given(), Weigh(per_record_loss=lambda module, batch: 2 * module.parts(batch)))
    with pytest.raises(AmbiguousLossError, match="without a gradient"):
        fitted(Given(), Weigh(per_record_loss=lambda module, batch: module.parts(batch).detach()))


def test_losses_given_by_the_user_are_computed_in_the_precision_of_the_step():
    given = Weigh(per_record_loss=lambda module, batch: module.parts(batch))
    found = fitted(Given(sgd=True), given, precision="bf16-mixed")
    right = fitted(Given(by_hand=True, sgd=True), precision="bf16-mixed")
    same(found, right, rtol=0.05, atol=5e-3)
    assert given.weigher.weighed == 8 and given.weigher.missed == 0


class OfTokens(Given):
    """Records of different lengths, whose losses are averaged over records, or over tokens."""

    pooling, infinite = "mean", False

    def each(self, batch):
        codes = batch["codes"]
        logits, y = self.run(codes[:, :-1]), codes[:, 1:]
        values = -logits.log_softmax(-1).gather(-1, y[..., None])[..., 0] * (y != 0)
        tokens = (y != 0).sum(1)
        return values.sum(1) / tokens, tokens

    def parts(self, batch):
        losses, tokens = self.each(batch)
        share = tokens / tokens.sum() if self.pooling == "tokens" else 1 / len(tokens)
        return losses * share * len(tokens)


@pytest.mark.parametrize("pooling", ["mean", "tokens"])
def test_the_pooling_of_given_losses_is_the_nearest_and_where_it_cannot_be_told_it_is_refused(pooling):
    def trained(by_hand, precision):
        module = OfTokens(by_hand, sgd=True)
        module.pooling = pooling
        given = [] if by_hand else [Weigh(per_record_loss=lambda module, batch: module.each(batch))]
        return fitted(module, *given, precision=precision)

    same(trained(False, "64-true"), trained(True, "64-true"))
    with pytest.raises(AmbiguousLossError, match=r"mean over tokens are both.*logits\.float"):
        trained(False, "bf16-true")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_given_loss_that_is_no_number_is_refused_and_does_not_reach_the_others(bad):
    def given(module, batch):
        losses = module.parts(batch)
        gone = torch.zeros(len(losses), dtype=torch.bool)
        gone[0] = module.global_step >= start
        return torch.where(gone, bad, losses)

    start = 3
    weigh = Weigh(per_record_loss=given)
    with pytest.warns(MemguardWarning, match="1 of 8 losses of per_record_loss are NaN or infinite"):
        found = fitted(Given(), weigh)
    assert (weigh.weigher.weighed, weigh.weigher.missed) == (3, 5)
    assert all(one.isfinite().all() for one in found)
    start = 0
    with pytest.raises(AmbiguousLossError, match="divide by max"):
        fitted(Given(), Weigh(per_record_loss=given))


class Manual(Model):
    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)["loss"]
        self.optimizers().zero_grad()
        self.manual_backward(loss)
        self.optimizers().step()


class Lbfgs(Model):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), max_iter=3)


class Late(Model):
    """From step 3 on a term is added whose value is zero and whose gradient is not."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)["loss"]
        extra = self.net[1].weight.sum()
        return loss + (extra - extra.detach()) if self.global_step >= 3 else loss


def test_refusals():
    with pytest.raises(MemguardError, match="automatic_optimization"):
        fitted(Manual(), Weigh())
    with pytest.raises(MemguardError, match="LBFGS"):
        fitted(Lbfgs(), Weigh())


def test_a_loss_that_cannot_be_weighed_any_more_is_trained_on_and_counted():
    weigh = Weigh()
    with pytest.warns(MemguardWarning, match="was not weighed") as seen:
        fitted(Late(), weigh)
    assert sum(issubclass(one.category, MemguardWarning) for one in seen) == 1
    assert (weigh.weigher.weighed, weigh.weigher.missed) == (3, 5)
    assert isinstance(weigh.weigher.problem, AmbiguousLossError)


def main(folder):
    """Two processes; called by the test below."""
    found = [
        fitted(
            Model(by_hand), *([] if by_hand else [Weigh()]), devices=2, strategy="ddp", precision="64-true"
        )
        for by_hand in (False, True)
    ]
    same(*found)
    Path(folder, os.environ.get("LOCAL_RANK", "0")).write_text("equal")


def test_two_processes(tmp_path):
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("LOCAL_", "MASTER_", "NODE_", "WORLD"))}
    env = {**keep, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert {p.name for p in tmp_path.iterdir() if p.read_text() == "equal"} == {"0", "1"}


if __name__ == "__main__":
    main(sys.argv[1])
