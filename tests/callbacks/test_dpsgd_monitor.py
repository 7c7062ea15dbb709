"""DPSGD and LeakageMonitor in one Trainer, in either order: both do what they do alone."""

from __future__ import annotations

import lightning.pytorch as pl
import numpy as np
import pytest
from _private import Data, Held, Mlp, Visits, private, trainer

from memguard import LeakageMonitor


def data():
    return Data(Visits(150, 300), Held(100, 150), batch_size=50)


class Keeps(pl.Callback):
    """The weights at the end of training."""

    def on_train_end(self, trainer, pl_module):
        self.weights = {name: value.clone() for name, value in pl_module.state_dict().items()}


@pytest.mark.parametrize("engine", ["opacus", "loop"])
@pytest.mark.parametrize("first", ["dpsgd", "monitor"])
def test_curves_coverage_and_numbers(tmp_path, engine, first, unstated):
    pl.seed_everything(0, verbose=False)
    dpsgd = private(engine=engine, checks=True, noise_multiplier=0.5, delta=1e-3, physical_batch_size=60)
    monitor = LeakageMonitor(on_problem="raise", dirpath=tmp_path / "watch", final_evaluation=True)
    keeps = Keeps()
    assert not monitor.files
    pair = [dpsgd, monitor] if first == "dpsgd" else [monitor, dpsgd]
    run = trainer(tmp_path, *pair, keeps, max_epochs=2)
    run.fit(Mlp(lr=0.5), datamodule=data())
    assert dpsgd._run.plan.parts > 1
    assert dpsgd._run.steps == run.global_step == 12
    assert len(monitor.curve) == 2
    traces = monitor.watch.members.traces.array()
    assert traces.shape == (2, 300)
    seen = ~np.isnan(traces[0])
    # Poisson draws with rate 1/6, six times: a patient is seen with 1 - (5/6)^6
    assert seen.mean() == pytest.approx(1 - (5 / 6) ** 6, abs=0.15)
    assert monitor.curve[0].coverage == pytest.approx(seen.mean(), abs=1e-6)
    drawn = ~np.isnan(traces).all(0)
    if (
        monitor._results.last_look.memorization is not None
    ):  # a ranking is refused where it would be all chance
        assert monitor.patients.height == len(np.unique(data().train.patient_ids[drawn]))
    assert "patients" in monitor.files or "flags" in monitor.files
    assert not any("training_step" in vars(one) for one in (run.strategy, run.lightning_module))
    if engine == "loop" and first == "monitor":
        return
    # the same weights, looked at without DPSGD
    pl.seed_everything(1, verbose=False)
    module = Mlp(lr=0.0)
    module.load_state_dict(keeps.weights)
    alone = LeakageMonitor(on_problem="raise", dirpath=tmp_path / "alone", final_evaluation=True)
    trainer(tmp_path, alone, max_epochs=2).fit(module, datamodule=data())
    last, same = monitor.curve[-1], alone.curve[-1]
    assert last.held_out_loss == pytest.approx(same.held_out_loss, rel=1e-5)
    ours, theirs = (one.watch.held_out.traces.array()[-1] for one in (monitor, alone))
    assert np.allclose(ours, theirs, rtol=1e-2, equal_nan=True)
