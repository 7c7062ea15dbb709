import torch

from memguard.capture.content import batch_content
from memguard.capture.losses import CapturedLoss


def captured(targets, mask=None):
    size = len(targets)
    return CapturedLoss(
        loss=torch.zeros(size),
        tokens=torch.ones(size),
        targets=targets,
        mask=mask,
        unit="nats/token",
        route="",
    )


def test_the_first_code_comes_from_the_entry_that_the_targets_were_cut_from():
    codes = torch.tensor([[7, 1, 2, 0], [8, 3, 0, 0]])
    targets = codes[:, 1:]
    found = batch_content({"other": codes + 1, "codes": codes}, captured(targets, targets != 0))
    assert found["codes"].tolist() == [[7, 1, 2, 0], [8, 3, 0, 0]]
    assert found["mask"].tolist() == [[True, True, True, False], [True, True, False, False]]


def test_without_such_an_entry_the_targets_are_the_codes():
    targets = torch.tensor([[1, 2, -100], [3, -100, -100]])
    found = batch_content({"codes": torch.zeros(2, 5, dtype=torch.long)}, captured(targets, targets != -100))
    assert found["codes"].tolist() == [[1, 2, 0], [3, 0, 0]]
    assert found["mask"].sum() == 3
