"""Individual budgets: patients of each stratum are drawn with their own rate, and promised their own epsilon."""

from __future__ import annotations

import lightning.pytorch as pl
import numpy as np
import pytest
from _private import Data, Held, Mlp, Visits, private, trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from memguard.errors import MemguardWarning, PrivacyError
from memguard.privacy.accounting import epsilon
from memguard.privacy.ledger import Ledger

BUDGETS = {"rare": 1.0, "other": 6.0}
STRATA = ["rare"] * 20 + ["other"] * 40


def run_of(folder, dpsgd, *callbacks, epochs=2, **options):
    data = Data(Visits(60, 60), Held(), batch_size=20)
    run = trainer(folder, dpsgd, *callbacks, max_epochs=epochs, limit_val_batches=0, **options)
    run.fit(Mlp(), datamodule=data)
    return run


def public(**settings):
    return private(budgets=BUDGETS, strata=STRATA, strata_from_data=False, delta=1e-3, **settings)


def test_each_stratum_keeps_its_budget_and_has_its_rate(tmp_path):
    seen = []

    class Draws(pl.Callback):
        def __init__(self, dpsgd):
            self.dpsgd = dpsgd

        def on_train_start(self, trainer, pl_module):
            sampler = self.dpsgd._loop.data.sampler
            draws = [sampler._draw(10_000 + n, 0) for n in range(3000)]
            counts = np.bincount(
                np.concatenate([chunk.positions for draw in draws for chunk in draw]), minlength=60
            )
            seen.append((sampler.rates, counts / 3000))

    dpsgd = public()
    run_of(tmp_path, dpsgd, Draws(dpsgd))
    (rates, found) = seen[0]
    assert len(set(rates[:20])) == len(set(rates[20:])) == 1
    assert rates[0] < rates[-1]
    assert rates.mean() == pytest.approx(1 / 3, rel=1e-3)
    assert np.abs(found - rates).max() < 5 * (0.25 / 3000) ** 0.5
    ledger = Ledger.read(dpsgd.ledger_path.parent, dpsgd.ledger_path.stem)
    spent = {name: epsilon(ledger.history(name), 1e-3).value for name in BUDGETS}
    for name, budget in BUDGETS.items():
        assert 0.9 * budget < spent[name] <= budget
    statement = dpsgd.statement()
    assert {name: one.value for name, one in statement.epsilons.items()} == spent
    assert dpsgd.epsilon == spent["other"]
    text = statement.text()
    assert "rare" in text
    assert "The stratum of each patient is taken as public" in text
    assert dpsgd._run.plan.expected_owners == pytest.approx(rates.sum(), rel=1e-3)


def test_strata_that_come_from_the_data_are_warned_of(tmp_path, unstated):
    dpsgd = private(budgets=BUDGETS, strata=dict(enumerate(STRATA)), delta=1e-3)
    with pytest.warns(
        MemguardWarning, match=r"strata that were derived from the training data.*strata_from_data=False"
    ):
        run_of(tmp_path, dpsgd)
    assert "The strata were derived from the data" in dpsgd.statement().text()


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"strata": STRATA[:-1]}, "59 strata for 60 patients"),
        ({"strata": {0: "rare"}}, "59 of 60 patients have no stratum"),
        ({"strata": ["common", *STRATA[1:]]}, "strata without a budget: common"),
        ({"strata": STRATA, "unit": "record"}, "budgets are promised to patients"),
    ],
)
def test_strata_that_do_not_fit(tmp_path, settings, match):
    with pytest.raises(PrivacyError, match=match):
        run_of(tmp_path, private(budgets=BUDGETS, delta=1e-3, strata_from_data=False, **settings))


def test_budgets_hold_over_a_rollback(tmp_path, unstated):
    first = public()

    def fit(dpsgd, *callbacks, ckpt=None):
        keep = ModelCheckpoint(tmp_path / "kept", filename="{epoch}", save_top_k=-1)
        options = {"max_epochs": 3, "limit_val_batches": 0, "enable_checkpointing": True}
        run = trainer(tmp_path, dpsgd, *callbacks, keep, **options)
        run.fit(Mlp(), datamodule=Data(Visits(60, 60), Held(), batch_size=20), ckpt_path=ckpt)
        return run

    class Cut(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.should_stop = trainer.current_epoch == 1

    fit(first, Cut())
    assert first._run.steps == 6
    again = public()
    with pytest.warns(MemguardWarning, match=r"6 steps to come, and budgets for 3"):
        run = fit(again, ckpt=tmp_path / "kept" / "epoch=0.ckpt")
    assert again._run.steps == 9
    assert run.global_step == 6
    assert again.noise_multiplier == first.noise_multiplier
    with pytest.raises(PrivacyError, match="individual budgets are spent"):
        fit(public(), ckpt=tmp_path / "kept" / "epoch=0.ckpt")
    other = private(budgets=BUDGETS, strata=STRATA[::-1], strata_from_data=False, delta=1e-3)
    with pytest.raises(PrivacyError, match="strata_fingerprint"):
        fit(other, ckpt=tmp_path / "kept" / "epoch=0.ckpt")
