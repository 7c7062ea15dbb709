"""What is kept of a run is used for that run alone, whatever its module does not tell of itself."""

import time
from functools import partial

import lightning.pytorch as pl
import numpy as np
import torch
from test_run_study import Net, loaders
from torch.nn import functional as F

from memguard import Arm, Deduplicate, FloodFlagged, GoldfishLoss, LeakageMonitor, LeakageStopping, Study
from memguard.comparing.compare import run_study
from memguard.comparing.kept import arm_recipe
from memguard.references.recipe import content_hash

QUICK = {"max_epochs": 1, "accelerator": "cpu"}


class Silent(Net):
    """Keeps nothing of what it was made of where a recipe would look."""

    def __init__(self, gain=1.0, config=None):
        super().__init__()
        self._hparams.clear()
        self.config = config or {"smooth": 0.0}
        with torch.no_grad():
            self.net[0].weight.mul_(gain)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.binary_cross_entropy_with_logits(self(x), y * (1 - self.config["smooth"]))


def pretrained(value):
    def make():
        module = Silent()
        with torch.no_grad():
            module.net[0].weight.fill_(value)
        return module

    return make


def twice(module, batch):
    return 2 * F.binary_cross_entropy_with_logits(module(batch[0]), batch[1], reduction="none")


def test_arms_that_differ_in_what_their_modules_do_not_tell_are_kept_apart(tmp_path):
    arms = {
        "plain": Silent,
        "gain": partial(Silent, gain=3.0),
        "by position": partial(Silent, 2.0),
        "smooth": partial(Silent, config={"smooth": 0.5}),
        "pretrained": pretrained(0.1),
    }

    def results():
        given = Study(
            data=loaders,
            arms={name: Arm(model=make, trainer=QUICK) for name, make in arms.items()},
            baseline="plain",
            seeds=3,
            stages=1,
            control=False,
        )
        return run_study(given, folder=tmp_path, progress=False)

    first, again = results(), results()  # again is what was kept
    assert len(list((tmp_path / "runs").glob("*.npz"))) == 6 * len(arms)
    for name in arms:
        np.testing.assert_array_equal(first.arm(name).loss, again.arm(name).loss)
    means = {name: float(first.arm(name).loss[:, -1, 0].mean()) for name in arms}
    assert len(set(means.values())) == len(arms)


def test_a_recipe_of_a_module_that_tells_everything_is_short():
    for make in (Net, partial(Net, dropout=0.5), partial(Net, 0.5)):
        assert not {"made by", "arguments", "initial weights"} & arm_recipe(Arm(model=make)).keys()
    first, second, same = (arm_recipe(Arm(model=pretrained(value))) for value in (0.1, 0.2, 0.1))
    assert first != second and first == same


def test_another_loss_and_another_baseline_are_measured_again(tmp_path, capsys):
    def results(**more):
        arms = {
            "plain": Arm(model=Net, trainer=QUICK),
            "wide": Arm(model=partial(Net, width=24), trainer=QUICK),
        }
        given = Study(
            data=loaders, arms=arms, seeds=3, stages=1, control=False, **{"baseline": "plain", **more}
        )
        found = run_study(given, folder=tmp_path)
        return found, capsys.readouterr().err

    one, _ = results()
    other, said = results(per_record_loss=twice)
    assert "0 of them kept" in said
    np.testing.assert_allclose(
        other.arm("plain").loss[:, :, 0], 2 * one.arm("plain").loss[:, :, 0], rtol=1e-5
    )
    assert "12 of them kept" in results(per_record_loss=twice)[1]
    other, said = results(baseline="wide")
    assert "0 of them kept" in said
    assert "by the baseline's code" in other.arm("wide").same
    assert "by the baseline's code" not in other.arm("plain").same


def test_a_recipe_does_not_change_with_the_clock():
    """Or an arm with a monitor would be trained again whenever a study goes on."""

    class Dated(pl.Callback):
        def __init__(self, patience):
            self.patience, self.made = patience, {"at": time.perf_counter()}

    def callbacks(flag_rate=0.1, patience=2):
        acting = [FloodFlagged(), GoldfishLoss(), Deduplicate(), LeakageStopping(0.6)]
        return [LeakageMonitor(flag_rate=flag_rate), *acting, Dated(patience)]

    def hashed(**settings):
        arm = Arm(model=Net, trainer=QUICK, callbacks=partial(callbacks, **settings))
        return content_hash(arm_recipe(arm))

    assert hashed() == hashed()
    assert len({hashed(), hashed(flag_rate=0.2), hashed(patience=3)}) == 3
