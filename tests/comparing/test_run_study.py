"""Arms of a study trained on halves, measured in all the ways, kept, and gathered into outcomes."""

from functools import partial

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from memguard import DPSGD, Arm, DropFlagged, LeakageMonitor, Study
from memguard.comparing.compare import run_study
from memguard.comparing.measuring import SIGNALS
from memguard.errors import MemguardError

QUICK = {"max_epochs": 4, "accelerator": "cpu"}


class Table(TensorDataset):
    """Two records of each patient."""

    def __init__(self, n, seed, first=0):
        rng = torch.Generator().manual_seed(seed)
        x = torch.randn(n, 6, generator=rng)
        y = (x @ torch.arange(6.0) + torch.randn(n, generator=rng) > 0).float()
        super().__init__(x, y)
        self.patient_ids = first + np.arange(n) // 2


class Net(pl.LightningModule):
    def __init__(self, dropout=0.0, hides=False, width=16):
        super().__init__()
        self.save_hyperparameters()
        self.hides = hides
        self.net = nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, 1))

    def forward(self, x):
        logits = self.net(x).squeeze(-1)
        return torch.sign(logits) if self.hides and not self.training else logits

    def training_step(self, batch, batch_idx):
        return F.binary_cross_entropy_with_logits(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        logits = self(batch[0])
        self.log("val_accuracy", ((logits > 0) == batch[1].bool()).float().mean())
        loss = F.binary_cross_entropy_with_logits(logits, batch[1])
        self.log("val_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=2e-2)


def loaders(held_out=120):
    train, held_out = Table(160, 1), Table(held_out, 2, first=10_000)
    return DataLoader(train, batch_size=16, shuffle=True), DataLoader(held_out, batch_size=60)


def study(data=loaders, seeds=3, stages=2, **more):
    arms = {"plain": Arm(model=Net, trainer=QUICK), **more}
    return Study(data=data, arms=arms, baseline="plain", seeds=seeds, stages=stages)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    arms = {
        "hides": Arm(model=lambda: Net(hides=True), trainer=QUICK, settings={"hides": True}),
        "wider": Arm(model=lambda: Net(width=24), trainer=QUICK),
    }
    return run_study(study(**arms), folder=tmp_path_factory.mktemp("study"), progress=False)


def test_arms_are_trained_on_the_same_halves_and_every_patient_once_a_seed(outcomes):
    plain = outcomes.arm("plain")
    assert plain.inside.shape == (6, 80) and plain.seed.tolist() == [0, 0, 1, 1, 2, 2]
    for name in ("hides", "wider", "plain, trained again"):
        assert np.array_equal(outcomes.arm(name).inside, plain.inside)
    for seed in range(3):
        one, other = plain.inside[plain.seed == seed]
        assert np.array_equal(one, ~other) and one.sum() == 40
    assert len(np.unique(plain.inside, axis=0)) == 6


def test_models_know_those_they_were_trained_on_better(outcomes):
    plain = outcomes.arm("plain")
    loss = plain.loss[:, -1, 0].astype(float)
    assert loss[plain.inside].mean() < loss[~plain.inside].mean()
    assert plain.epochs.tolist() == [[2.0, 4.0]] * 6
    assert loss.mean() < plain.loss[:, 0, 0].mean()  # training goes on between the stages


def test_the_control_has_other_weights_and_is_as_good(outcomes):
    plain, again = outcomes.arm("plain"), outcomes.arm("plain, trained again")
    assert outcomes.control == "plain, trained again"
    assert not np.allclose(plain.loss[:, -1, 0], again.loss[:, -1, 0])
    assert abs(plain.held_out[:, -1].mean() - again.held_out[:, -1].mean()) < 0.1


def test_losses_that_are_hidden_when_evaluated_are_found_by_the_other_ways(outcomes):
    plain, hides = outcomes.arm("plain"), outcomes.arm("hides")
    assert hides.signals == SIGNALS
    assert np.unique(hides.loss[:, -1, 0].round(4)).size <= 6  # two records a patient, two values a record
    for way in (1, 2):
        np.testing.assert_allclose(hides.loss[:, :, way], plain.loss[:, :, 0], atol=1e-5)
        assert np.isnan(plain.loss[:, :, way]).all()  # nothing is measured twice
    np.testing.assert_allclose(hides.metrics["val_accuracy"], plain.metrics["val_accuracy"])
    assert list(plain.same) == list(SIGNALS[1:]) and list(hides.same) == []
    # weights of another shape do not fit the baseline's code
    assert list(outcomes.arm("wider").same) == ["as trained"]
    assert np.isnan(outcomes.arm("wider").loss[:, :, 1:]).all()


def test_arms_validate_on_some_held_out_patients_and_are_judged_on_the_others(outcomes):
    assert outcomes.judging.sum() == 30 and outcomes.held_out_strata.keys() == outcomes.strata.keys()
    plain = outcomes.arm("plain")
    judged = plain.held_out[:, -1][:, outcomes.judging].mean(axis=1)
    np.testing.assert_allclose(judged, plain.metrics["val_loss"], rtol=1e-4)


def test_what_is_finished_is_not_trained_again(tmp_path, capsys):
    first = run_study(study(), folder=tmp_path, progress=False)

    def counted():
        return Net(dropout=0.5)

    again = run_study(study(other=Arm(model=counted, trainer=QUICK)), folder=tmp_path)
    assert "18 trainings, 12 of them kept from before" in capsys.readouterr().err
    np.testing.assert_array_equal(first.arm("plain").loss, again.arm("plain").loss)
    for path in (tmp_path / "runs").glob("*.npz"):
        assert path.stat().st_mode & 0o077 == 0
        path.write_bytes(path.read_bytes()[:100])
    with pytest.warns(Warning, match="cannot be read"):
        third = run_study(study(), folder=tmp_path, progress=False)
    np.testing.assert_array_equal(first.arm("plain").loss, third.arm("plain").loss)


def test_a_run_does_not_depend_on_what_was_run_before(tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = run_study(study(), folder=tmp_path / "a", progress=False)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(7)
    two = run_study(study(), folder=tmp_path / "b", progress=False, arms=["plain"])
    np.testing.assert_array_equal(one.arm("plain").loss, two.arm("plain").loss)


def test_callbacks_of_arms(tmp_path):
    early = Arm(
        model=lambda: Net(width=64),
        trainer={**QUICK, "max_epochs": 30},
        callbacks=lambda: [EarlyStopping("val_loss", patience=1), ModelCheckpoint(monitor="val_loss")],
    )
    drop = Arm(model=Net, trainer=QUICK, callbacks=lambda: [LeakageMonitor(), DropFlagged()])
    private = Arm(model=Net, trainer=QUICK, callbacks=lambda: [DPSGD(noise_multiplier=1.0)])
    enough = partial(loaders, held_out=400)  # half of the patients are left for a monitor to rank by
    found = run_study(
        study(enough, early=early, drop=drop, private=private),
        folder=tmp_path,
        progress=False,
        arms=["early", "drop", "private"],
    )
    stopped = found.arm("early")
    assert (stopped.epochs[:, -1] < 30).all()
    np.testing.assert_array_equal(stopped.loss[:, 0, 0].shape, stopped.loss[:, -1, 0].shape)
    touched = found.arm("drop").touched
    assert touched.shape == (6, 80) and not (touched & ~found.arm("drop").inside).any()
    assert found.arm("plain").touched is None
    dp = found.arm("private")
    assert dp.private and dp.epsilon.min() > 0 and "patient" in dp.guarantee
    assert not (tmp_path / "memguard-dp").exists()


def test_an_arm_that_cannot_be_trained_is_named(tmp_path):
    class Breaks(Net):
        def training_step(self, batch, batch_idx):
            raise ValueError("no such column")

    with pytest.raises(MemguardError, match=r"arm 'breaks'.*no such column"):
        run_study(study(breaks=Arm(model=Breaks, trainer=QUICK)), folder=tmp_path, progress=False)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"baseline": "other"}, "baseline"),
        ({"seeds": 2}, "seeds"),
        ({"stages": 0}, "stages"),
        ({"fpr": 0.0}, "fpr"),
        ({"hardest": 1.0}, "hardest"),
    ],
)
def test_a_study_that_compares_nothing_is_refused(change, said):
    given = {"data": loaders, "arms": {"plain": Arm(model=Net)}, "baseline": "plain", **change}
    with pytest.raises(MemguardError, match=said):
        Study(**given)


def test_what_is_refused_before_training(tmp_path):
    with pytest.raises(MemguardError, match="callbacks"):
        Arm(model=Net, trainer={"callbacks": []})
    with pytest.raises(MemguardError, match="no such arms"):
        run_study(study(), folder=tmp_path, progress=False, arms=["another"])
    few = Study(
        data=lambda: (loaders()[0], DataLoader(Table(40, 2, 10_000))),
        arms={"plain": Arm(model=Net, trainer=QUICK)},
        baseline="plain",
    )
    with pytest.raises(MemguardError, match="20 held-out patients"):
        run_study(few, folder=tmp_path, progress=False)
    for data in ("a path", (loaders()[0],)):
        with pytest.raises(MemguardError, match="one training and one validation loader"):
            run_study(
                Study(data=lambda data=data: data, arms={"plain": Arm(model=Net)}, baseline="plain"),
                folder=tmp_path,
                progress=False,
            )


def numbered():
    """Patients whom the batches name, and the data sets do not."""
    sides = []
    for loader in loaders(held_out=400):
        data = loader.dataset
        rows = [{"x": x, "y": y, "who": int(p)} for (x, y), p in zip(data, data.patient_ids, strict=True)]
        sides.append(DataLoader(rows, batch_size=16))
    return tuple(sides)


class Named(Net):
    def training_step(self, batch, batch_idx):
        return super().training_step((batch["x"], batch["y"]), batch_idx)

    def validation_step(self, batch, batch_idx):
        return super().validation_step((batch["x"], batch["y"]), batch_idx)


def test_callbacks_of_arms_find_the_patients_whom_the_study_names(tmp_path):
    def run(**private):
        arms = {
            "plain": Arm(model=Named, trainer=QUICK),
            "private": Arm(
                model=Named, trainer=QUICK, callbacks=lambda: [DPSGD(noise_multiplier=1.0, **private)]
            ),
        }
        given = Study(
            data=numbered,
            arms=arms,
            baseline="plain",
            seeds=3,
            stages=1,
            control=False,
            record_to_patient="who",
        )
        return run_study(given, folder=tmp_path, progress=False)

    found = run()
    assert found.pool == 80 and "the patient as the unit" in found.arm("private").guarantee
    # a position in a half is not that position in the data set: the promise would be to others
    with pytest.raises(MemguardError, match=r"arm 'private'.*by positions.*of the study"):
        run(record_to_patient=lambda position: position // 2)


@pytest.mark.parametrize(
    "wrong",
    [{"stages": True}, {"control": "no"}, {"seed": -1}, {"seed": "a"}, {"seed": 1.5}, {"per_record_loss": 3}],
)
def test_a_setting_of_another_kind_is_refused(wrong):
    with pytest.raises(MemguardError, match=next(iter(wrong))):
        Study(data=loaders, arms={"plain": Arm(model=Net)}, baseline="plain", **wrong)


def test_an_argument_that_no_trainer_has_is_refused_before_training():
    with pytest.raises(MemguardError, match="max_epoch"):
        Arm(model=Net, trainer={"max_epoch": 3})


class Chosen(Net):
    """Has a class among its hyperparameters, and is best after its first epoch."""

    def __init__(self, kind=nn.ReLU):
        super().__init__()
        self.save_hyperparameters()

    def validation_step(self, batch, batch_idx):
        self.log("worse", float(self.current_epoch))
        return super().validation_step(batch, batch_idx)


def test_the_weights_of_a_checkpoint_are_judged_with_the_epoch_that_they_are_of(tmp_path):
    best = Arm(model=Chosen, trainer=QUICK, callbacks=lambda: [ModelCheckpoint(monitor="worse")])
    one = Arm(model=Chosen, trainer={**QUICK, "max_epochs": 1})
    found = run_study(study(best=best, one=one), folder=tmp_path, progress=False)
    assert found.arm("best").epochs[:, -1].tolist() == [1.0] * 6
    np.testing.assert_allclose(found.arm("best").loss[:, -1], found.arm("one").loss[:, -1], atol=1e-6)
