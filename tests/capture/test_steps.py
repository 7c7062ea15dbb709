"""Steps of every kind: optimization, compilation, refusals, and evaluation that leaves no trace."""

from __future__ import annotations

import copy
import math
import warnings
from collections import deque

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchmetrics
from _modules import (
    CLASSES,
    WIDTH,
    Classifier,
    Codes,
    Driver,
    NextCode,
    Rows,
    assert_exact,
    assert_same_run,
    by_hand,
    fit,
    loaders,
    rng_state,
    same_rng,
    seed_everything,
    trainer,
)
from torch import nn

from memguard.capture import collect, evaluate, fetch
from memguard.errors import AmbiguousLossError, MemguardError, MemguardWarning

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.filterwarnings("error::memguard.errors.MemguardWarning"),
]


def both(make, make_loaders, **kwargs):
    plain = fit(make, make_loaders, watched=False, **kwargs)
    watched = fit(make, make_loaders, watched=True, **kwargs)
    assert_same_run(plain, watched)
    return watched


@pytest.mark.parametrize(("make", "data"), [(Classifier, Rows), (NextCode, Codes)])
def test_core(make, data):
    module, driver, _, _ = both(make, loaders(data=data))
    assert_exact(module, driver)
    assert_exact(module, driver, stage="val")


class Lbfgs(Classifier):
    at = None

    def __init__(self):
        super().__init__(dropout=0.0)
        self.net[1] = nn.Identity()

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        at = (self.current_epoch, batch_idx)
        if self.at == at:  # the first evaluation of a batch is the one that counts
            self.noted.train.pop()
        self.at = at
        return loss

    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)


class Manual(Classifier):
    def __init__(self, returns=False, **kwargs):
        super().__init__(**kwargs)
        self.automatic_optimization, self.returns = False, returns

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch, "train")
        with torch.no_grad():
            F.mse_loss(torch.ones(2), torch.zeros(2))
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        self.losses.append(loss.detach())
        return loss if self.returns else None


class Compiled(Classifier):
    backend, whole = "eager", False

    def __init__(self):
        super().__init__(dropout=0.0)
        inner = self.net

        def forward(x, y):
            return F.cross_entropy(inner(x), y)

        self.fast = torch.compile(forward if self.whole else inner, backend=self.backend)

    def loss(self, batch, stage):
        x, y = batch
        self.note(stage, x[:, 0], torch.zeros(len(x)))
        with torch.no_grad():
            self.noted[stage][-1] = (x[:, 0].long(), by_hand(self.frozen(self.scale(x)), y))
        return self.fast(self.scale(x), y) if self.whole else F.cross_entropy(self.fast(self.scale(x)), y)

    def frozen(self, x):
        net = copy.deepcopy(self.net)
        return net(x)


def test_lbfgs():
    module, driver, _, _ = both(Lbfgs, loaders(val=False))
    assert_exact(module, driver)


@pytest.mark.parametrize("returns", [False, True])
def test_manual_optimization(returns):
    module, driver, _, _ = both(lambda: Manual(returns), loaders(val=False))
    assert_exact(module, driver)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("whole", [False, True])
def test_compiled(backend, whole):
    torch._dynamo.reset()
    make = type("Compiled", (Compiled,), {"backend": backend, "whole": whole})
    module, driver, _, _ = both(make, loaders(val=False, drop_last=True), max_epochs=1)
    assert_exact(module, driver)


def test_checkpointed_activations():
    class Saves(Classifier):
        def loss(self, batch, stage):
            x, y = batch
            again = torch.utils.checkpoint.checkpoint
            logits = again(self.net, self.scale(x), use_reentrant=False, preserve_rng_state=True)
            self.note(stage, x[:, 0], by_hand(logits, y))
            return again(F.cross_entropy, logits, y, use_reentrant=False)

    module, driver, _, _ = both(Saves, loaders(val=False))
    assert_exact(module, driver)


def test_per_record_loss_override():
    class Scaled(Classifier):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) / 3

    def per_record(module, batch):
        x, y = batch
        return F.cross_entropy(module.net(module.scale(x)), y, reduction="none")

    plain = fit(Scaled, loaders(), watched=False)
    watched = fit(Scaled, loaders(), watched=True, driver=Driver(per_record_loss=per_record))
    assert_same_run(plain, watched)
    driver = watched[1]
    assert all(seen is not None and len(seen[0]) == len(seen[1]) for seen in [*driver.train, *driver.val])
    assert_exact(*watched[:2], stage="val")

    class Own(Scaled):
        def per_record_loss(self, batch):
            return per_record(self, batch)

    own = fit(Own, loaders(), watched=True)
    assert_same_run(plain, own)
    assert own[1].capture.last_train is None  # torn down
    np.testing.assert_array_equal(own[1].train[3][1], driver.train[3][1])


def test_given_losses_have_the_precision_of_the_step():
    def per_record(module, batch):
        x, y = batch
        return F.cross_entropy(module.net(module.scale(x)), y, reduction="none")

    class Plain(Classifier):  # nothing in it depends on the mode
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Sequential(torch.nn.Linear(5, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))

    driver = Driver(per_record_loss=per_record)
    module, *_ = fit(Plain, loaders(), watched=True, driver=driver, precision="bf16-mixed")
    assert len(driver.train) == len(module.losses) > 0
    for seen, loss in zip(driver.train, module.losses, strict=True):
        assert np.isclose(seen[1].mean(), loss.item(), rtol=1e-6)  # in float32, off by 2e-4
    for seen, (_, loss) in zip(driver.val, module.noted["val"], strict=True):
        np.testing.assert_allclose(seen[1], loss.numpy(), rtol=1e-5, atol=1e-6)


class Late(Classifier):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss / 2 if self.global_step >= 3 else loss


def test_ambiguous_at_the_first_step_raises():
    class Scaled(Classifier):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) / 3

    driver = Driver()
    run = trainer([driver])
    with pytest.raises(AmbiguousLossError, match="per_record_loss="):
        run.fit(Scaled(), *loaders(val=False)())
    assert not {"training_step", "validation_step", "process_dataloader"} & set(vars(run.strategy))
    assert "convert_input" not in vars(run.precision_plugin)


def test_ambiguous_later_warns_once_and_training_goes_on():
    plain = fit(Late, loaders(val=False), watched=False)
    with pytest.warns(MemguardWarning, match="no further losses") as caught:
        watched = fit(Late, loaders(val=False), watched=True)
    assert len([w for w in caught if issubclass(w.category, MemguardWarning)]) == 1
    assert_same_run(plain, watched)
    assert [seen is None for seen in watched[1].train] == [False] * 3 + [True] * 9
    with pytest.raises(AmbiguousLossError):
        fit(Late, loaders(val=False), watched=True, driver=Driver(on_problem="raise"))


def test_exception_in_the_step_restores_everything():
    class Breaks(Classifier):
        def training_step(self, batch, batch_idx):
            if batch_idx == 2:
                raise RuntimeError("boom")
            return super().training_step(batch, batch_idx)

    driver = Driver()
    run, loader = trainer([driver]), loaders(val=False)()[0]
    seed_everything()
    module = Breaks()
    with pytest.raises(RuntimeError, match="boom"):
        run.fit(module, loader)
    assert run.train_dataloader is loader
    assert not {"training_step", "validation_step", "process_dataloader"} & set(vars(run.strategy))
    assert "convert_input" not in vars(run.precision_plugin)
    assert len(torch.overrides._get_current_function_mode_stack()) == 0
    driver.capture.restore()


def test_a_method_shadowed_by_somebody_else_stays():
    run = trainer()
    driver, module = Driver(), Classifier()
    mine = lambda *args: None  # noqa: E731
    run.strategy.training_step = mine
    driver.capture.install(run, module)
    assert run.strategy.training_step is not mine
    driver.capture.restore()
    assert run.strategy.training_step is mine


def test_observations_release_the_batch():
    kept = []

    class Keeps(Driver):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen = self.capture.last_train
            assert seen is self.capture.last_train
            content = seen.content()
            assert content["codes"].shape == content["mask"].shape == (len(seen.positions), 7)
            kept.append(seen)

    module, _, _, _ = fit(
        NextCode, loaders(data=Codes, val=False), watched=True, driver=Keeps(), max_epochs=1
    )
    assert kept[0].captured.targets is None
    with pytest.raises(MemguardError, match="gone"):
        kept[0].content()
    positions, loss, tokens = collect(kept)
    assert positions.shape == loss.shape == tokens.shape == (44,)
    np.testing.assert_allclose(
        loss, torch.cat([hand for _, hand in module.noted["train"]]).numpy(), rtol=2e-5
    )


# -- evaluation outside the step ---


class Meter:
    def __init__(self):
        self.n, self.values = 0, []

    def update(self, value):
        self.n += 1
        self.values.append(value)


class Full(Classifier):
    """A validation step with everything that a probe could disturb."""

    returns = True

    def __init__(self):
        super().__init__(dropout=0.5)
        self.accuracy = torchmetrics.MeanSquaredError()
        self.many = torchmetrics.MetricCollection(
            [torchmetrics.classification.MulticlassAccuracy(CLASSES), torchmetrics.CatMetric()]
        )
        self.outputs, self.recent, self.counts = [], deque(maxlen=3), {"n": [0], "s": {1}}
        self.seen, self.meter = 0, Meter()
        self.plain = torch.zeros(2)
        self.register_buffer("steps", torch.zeros(1))

    def validation_step(self, batch, batch_idx):
        loss = super().validation_step(batch, batch_idx)
        self.log("val_loss", loss, on_step=True, prog_bar=True)
        self.log_dict({"a": loss})
        self.accuracy.update(batch[0][:, 1], batch[1].float())
        self.many["MulticlassAccuracy"].update(torch.rand(len(batch[1]), CLASSES), batch[1])
        self.many["CatMetric"].update(loss)
        self.outputs.append(loss)
        self.recent.append(loss)
        self.counts["n"][0] += 1
        self.counts["n"].append(np.random.rand())
        self.counts["s"].add(batch_idx + 2)
        self.seen += 1
        self.meter.update(float(loss))
        self.fresh = loss
        self.plain += 1
        self.steps += 1
        return loss if self.returns else None


class Silent(Full):
    returns = False


def picture(module):
    def flat(value):
        if isinstance(value, torch.Tensor):
            return value.tolist()
        if isinstance(value, dict):
            return {k: flat(v) for k, v in value.items()}
        if isinstance(value, list | tuple | deque):
            return [flat(v) for v in value]
        return flat(vars(value)) if isinstance(value, Meter) else repr(value)

    out = {}
    for name, part in module.named_modules():
        for key, value in vars(part).items():
            if key not in ("noted", "_trainer", "_modules", "_jit_internal"):
                out[name, key] = flat(value)
    return out, {name: part.training for name, part in module.named_modules()}


class Probing(Driver):
    """Evaluates at every hook in which a monitor may want to."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.found = []

    def probe(self, trainer, module):
        positions = np.array([3, 1, 40, 7, 5])
        before = picture(module)
        state = rng_state()
        batches = self.capture.fetch("train", positions, batch_size=2)
        captured = self.capture.evaluate(batches)
        assert same_rng(state, rng_state())
        assert picture(module) == before
        hand = module.noted.val[-3:]
        del module.noted.val[-3:]
        assert not captured[0].loss.is_inference()
        assert torch.cat([ids for ids, _ in hand]).tolist() == positions.tolist()
        loss = torch.cat([c.loss for c in captured])
        rtol = 2e-5 if trainer.precision == "32-true" else 2e-2
        np.testing.assert_allclose(loss, torch.cat([hand for _, hand in hand]), rtol=rtol)
        self.found.append(loss)

    def on_train_epoch_end(self, trainer, pl_module):
        self.probe(trainer, pl_module)

    def on_validation_epoch_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.probe(trainer, pl_module)

    def on_train_batch_end(self, trainer, pl_module, *args):
        super().on_train_batch_end(trainer, pl_module, *args)
        if trainer.global_step == 4:
            self.probe(trainer, pl_module)

    def on_validation_batch_end(self, trainer, pl_module, *args, **kwargs):
        super().on_validation_batch_end(trainer, pl_module, *args, **kwargs)
        if trainer.global_step == 6:
            self.probe(trainer, pl_module)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("settings", [{}, {"inference_mode": False}, {"precision": "bf16-mixed"}], ids=str)
@pytest.mark.parametrize("make", [Full, Silent])
def test_evaluation_leaves_no_trace(make, settings, tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    def run(watched):
        driver = Probing() if watched else None
        logger = CSVLogger(tmp_path, name=f"{watched}")
        out = fit(
            make, loaders(), watched=watched, driver=driver, logger=logger, log_every_n_steps=1, **settings
        )
        logger.save()
        return (*out, (tmp_path / f"{watched}" / "version_0" / "metrics.csv").read_text())

    plain, watched = run(False), run(True)
    assert_same_run(plain, watched)
    assert plain[-1] == watched[-1]
    assert len(watched[1].found) == 8
    assert watched[3].callback_metrics.keys() == plain[3].callback_metrics.keys()
    assert all(plain[3].callback_metrics[k] == v for k, v in watched[3].callback_metrics.items())


def test_evaluate_without_validation_step():
    class Bare(Classifier):
        validation_step = None

    with pytest.raises(AmbiguousLossError, match="validation_step"):
        evaluate(None, Bare(), [(Rows().x[:4], Rows().y[:4])])
    found = evaluate(None, Bare(), [(Rows().x[:4], Rows().y[:4])], per_record_loss=lambda m, b: torch.ones(4))
    assert found[0].loss.tolist() == [1.0] * 4


def test_evaluate_alone():
    module = Classifier()
    batches = fetch(Rows(), range(10), None, 4)
    found = evaluate(None, module, batches)
    assert [len(c.loss) for c in found] == [4, 4, 2]
    assert module.training
    again = evaluate(None, module, list(batches))
    assert all(torch.equal(a.loss, b.loss) for a, b in zip(found, again, strict=True))


def test_validation_step_without_a_returned_loss_in_the_loop():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module, driver, _, _ = both(Silent, loaders(), num_sanity_val_steps=2)
    del module.noted["val"][:2]
    assert_exact(module, driver, stage="val")


def test_validation_step_that_cannot_be_read_warns():
    class Odd(Classifier):
        def validation_step(self, batch, batch_idx):
            return super().validation_step(batch, batch_idx) * 2

    with pytest.warns(MemguardWarning, match="val step"):
        _, driver, _, _ = fit(Odd, loaders(), watched=True)
    assert all(seen is None for seen in driver.val)
    assert all(seen is not None for seen in driver.train)


def test_width_is_what_the_helpers_say():
    assert Rows().x.shape[1] == WIDTH


def test_a_step_that_writes_into_its_batch_sees_the_same_window_again():
    class Writes(Classifier):
        def validation_step(self, batch, batch_idx):
            loss = super().validation_step(batch, batch_idx)
            batch[0].zero_()
            return loss

    module, batches = Writes(), fetch(Rows(), range(6), None, 3)
    first, again = evaluate(None, module, batches), evaluate(None, module, batches)
    assert all(torch.equal(a.loss, b.loss) for a, b in zip(first, again, strict=True))


def test_nan_losses_are_named():
    class Diverges(Classifier):
        def training_step(self, batch, batch_idx):
            if batch_idx == 2:
                with torch.no_grad():
                    self.net[0].weight.fill_(math.nan)
            return super().training_step(batch, batch_idx)

    kept = []

    class Keeps(Driver):
        def on_train_batch_end(self, trainer, pl_module, *args):
            kept.append(self.capture.last_train)

    fit(Diverges, loaders(val=False), watched=True, driver=Keeps(), max_epochs=1)
    assert len(kept) == 6
    with pytest.warns(MemguardWarning, match="28 of 44 losses are NaN"):
        collect(kept)


class Listened(Classifier):
    """Counts the steps during which somebody listens; from step 7 on the loss is a function of another graph."""

    def __init__(self, change=None):
        super().__init__()
        self.change, self.listened = change, []

    def training_step(self, batch, batch_idx):
        self.listened.append(bool(torch.overrides._get_current_function_mode_stack()))
        x, y = batch
        if self.change is None or self.global_step < 7:
            return super().training_step(batch, batch_idx)
        logits = self.net(self.scale(x))
        self.note("train", x[:, 0], by_hand(logits, y))
        return self.change(logits, y)


def test_a_proven_graph_ends_the_listening():
    module, driver, _, _ = both(Listened, loaders(), max_epochs=3)
    assert module.listened[:3] == [True] * 3 and not any(module.listened[3:]) and len(module.listened) > 10
    assert_exact(module, driver)


def test_another_graph_starts_it_again_and_loses_one_step():
    module, driver, _, _ = both(
        lambda: Listened(lambda z, y: F.nll_loss(z.log_softmax(1), y, reduction="none").mean()),
        loaders(),
        max_epochs=3,
    )
    assert module.listened[3:8] == [False] * 5 and all(module.listened[8:]) and len(module.listened) > 10
    assert driver.train[7] is None
    noted, taken = module.noted.train, driver.train
    for (ids, hand), got in zip(noted[:7] + noted[8:], taken[:7] + taken[8:], strict=True):
        assert ids.tolist() == got[0].tolist()
        torch.testing.assert_close(torch.as_tensor(got[1]), hand)
