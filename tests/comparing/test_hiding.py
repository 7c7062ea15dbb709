"""Arms that hide what their weights know, and arms whose losses cannot all be asked: neither wins by that."""

import numpy as np
import pytest
import torch
from test_run_study import QUICK, Net, study
from torch.nn import functional as F

from memguard import Arm
from memguard.comparing.compare import run_study
from memguard.comparing.measuring import SIGNALS
from memguard.errors import AmbiguousLossError, DataError


class Buffered(Net):
    """Gives one of two logits wherever no gradient is asked for, and has a buffer that the baseline lacks."""

    def __init__(self):
        super().__init__()
        self.register_buffer("salt", torch.zeros(3))

    def forward(self, x):
        logits = super().forward(x)
        return logits if torch.is_grad_enabled() else torch.sign(logits)


class OwnWord(Net):
    """Says itself what it loses, with another width, so that the baseline's code does not fit."""

    def __init__(self):
        super().__init__(width=17)

    def per_record_loss(self, batch):
        return F.binary_cross_entropy_with_logits(torch.sign(self(batch[0])), batch[1], reduction="none")


class Regularized(OwnWord):
    """Nobody can tell the loss of a record from its step."""

    def training_step(self, batch, batch_idx):
        return 0.5 * super().training_step(batch, batch_idx) + 0.01 * self.net[0].weight.square().sum()

    def per_record_loss(self, batch):
        logits = self(batch[0])
        logits = logits if self.training else torch.sign(logits)
        return F.binary_cross_entropy_with_logits(logits, batch[1], reduction="none")


class SetUp(Net):
    def setup(self, stage):
        self.scale = torch.ones(())

    def forward(self, x):
        return super().forward(x) * self.scale


class Manual(Net):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.optimizers().zero_grad()
        self.manual_backward(loss)
        self.optimizers().step()
        return loss


class NoneForSome(Net):
    """No loss for those of whom it is sure."""

    def forward(self, x):
        logits = super().forward(x)
        return logits if self.training else torch.where(logits.abs() > 1.0, torch.nan, logits)


class ScaledWhenAsked(Net):
    def validation_step(self, batch, batch_idx):
        return 0.1 * super().validation_step(batch, batch_idx)


def outcomes(folder, baseline=Net, **arms):
    given = study(**{name: Arm(model=kind, trainer=QUICK) for name, kind in arms.items()})
    given.arms["plain"] = Arm(model=baseline, trainer=QUICK)
    return run_study(given, folder=folder, progress=False)


def two_values(loss):
    return np.unique(loss.round(4)).size <= 6  # two records a patient, two values a record


def test_a_buffer_that_the_baseline_lacks_keeps_nobody_from_asking_the_weights(tmp_path):
    found = outcomes(tmp_path, hides=Buffered)
    plain, hides = found.arm("plain"), found.arm("hides")
    assert two_values(hides.loss[:, -1, 0]) and list(hides.same) == []
    for way in (1, 2):  # the training step is asked with gradients
        np.testing.assert_allclose(hides.loss[:, :, way], plain.loss[:, :, 0], atol=1e-5)
    by_codes = [arm.held_out[:, -1].mean(axis=0) for arm in (hides, plain)]
    np.testing.assert_allclose(hides.held_out_by_codes, by_codes, atol=1e-5)
    assert plain.held_out_by_codes is None


class Caches(Net):
    """Keeps a tensor of the first evaluation, which no gradient can pass."""

    cached = None

    def forward(self, x):
        if not self.training and self.cached is None:
            self.cached = torch.ones(1)
        return super().forward(x) * (1.0 if self.cached is None else self.cached)


def test_a_module_whose_tensors_take_no_gradient_is_asked_as_trained_all_the_same(tmp_path):
    assert "as trained" in outcomes(tmp_path, caches=Caches).arm("caches").same


def test_a_loss_on_the_arms_own_word_is_asked_of_its_training_step_too(tmp_path):
    found = outcomes(tmp_path, hides=OwnWord, other=Regularized)
    for name in ("hides", "other"):
        arm = found.arm(name)
        assert two_values(arm.loss[:, -1, 0]) and list(arm.same) == []
        assert np.isfinite(arm.loss[:, :, 1]).all() and not two_values(arm.loss[:, -1, 1])


def test_the_baselines_code_is_set_up_as_in_a_run(tmp_path):
    plain = outcomes(tmp_path, baseline=SetUp).arm("plain")
    assert list(plain.same) == list(SIGNALS[1:])


def test_a_step_that_optimizes_by_itself_is_not_asked_again(tmp_path):
    found = outcomes(tmp_path, manual=Manual)
    assert list(found.arm("manual").same) == ["by the baseline's code"]
    np.testing.assert_allclose(found.arm("manual").loss[:, :, 0], found.arm("plain").loss[:, :, 0], atol=1e-4)


def test_an_arm_without_a_loss_on_some_records_takes_no_patient_out_of_the_study(tmp_path):
    with pytest.raises(DataError, match=r"arm 'nan' \(seed 0, half 1\).*--arms"):
        outcomes(tmp_path, nan=NoneForSome)
    with pytest.raises(DataError, match="arm 'nan'"):  # from what was kept
        outcomes(tmp_path, nan=NoneForSome)


def test_an_arm_whose_losses_cannot_be_told_is_named(tmp_path):
    with pytest.raises(AmbiguousLossError, match="arm 'scaled'"):
        outcomes(tmp_path, scaled=ScaledWhenAsked)
