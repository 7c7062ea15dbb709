"""Fixed windows, untouched randomness, and what a batch says about its records."""

from __future__ import annotations

import random

import numpy as np
import torch
from _modules import Codes, NextCode, Rows, rng_state, same_rng, seed_everything
from torch.utils.data import ConcatDataset, Subset

from memguard.capture import CapturedLoss, LossCapture, attribute, batch_content, fetch
from memguard.capture.stillness import untouched


class Crops(Rows):
    """Draws from every kind of generator, and counts."""

    def __init__(self, n=20):
        super().__init__(n)
        self.py, self.np = random.Random(1), np.random.default_rng(2)
        self.old, self.torch = np.random.RandomState(3), torch.Generator().manual_seed(4)
        self.parts = [random.Random(5)]
        self.calls = 0

    def __getitem__(self, i):
        self.calls += 1
        draws = [
            self.py.random(), self.np.random(), self.old.rand(), float(torch.rand(1, generator=self.torch)),
            self.parts[0].random(), random.random(), np.random.rand(), float(torch.rand(1)),
        ]  # fmt: skip
        return torch.tensor([float(i), *draws])


def wrapped():
    return ConcatDataset([Subset(Crops(), range(5, 20)), Crops()])


def test_windows_are_the_same_at_every_look():
    data = wrapped()
    first = fetch(data, [1, 16, 3], batch_size=2)
    for _ in range(3):
        data[0], torch.rand(3), random.random()
    again = fetch(data, [1, 16, 3], batch_size=2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert [p.tolist() for p in first.positions] == [[1, 16], [3]]
    assert first.sizes == [2, 1]
    assert first[0][:, 0].tolist() == [6.0, 1.0]


def test_fetching_moves_no_generator():
    def run(fetching):
        seed_everything()
        data, out = wrapped(), []
        for i in range(6):
            if fetching:
                fetch(data, [0, 20, 7], batch_size=2)
            out.append(data[i * 5])
        return torch.stack(out), rng_state(), data.datasets[1].calls

    plain, fetched = run(False), run(True)
    assert torch.equal(plain[0], fetched[0])
    assert same_rng(plain[1], fetched[1])
    assert plain[2] == fetched[2]


def test_getitems_and_collate_are_used():
    class Many(Rows):
        def __getitems__(self, indices):
            return [self.x[i] for i in indices]

    assert fetch(Many(), [4, 2], lambda samples: torch.stack(samples)[:, 0].tolist()) == [[4.0, 2.0]]


def test_sequence_content_is_the_first_code_and_the_targets():
    data, module = Codes(), NextCode()
    batch = fetch(data, range(6), batch_size=6)[0]
    with LossCapture() as seen:
        loss = module.loss(batch, "train")
    content = batch_content(batch, attribute(seen.calls, loss, 6, batch=batch))
    assert content["codes"].dtype == np.int32
    np.testing.assert_array_equal(content["mask"], batch["keep"].numpy())
    np.testing.assert_array_equal(content["codes"], (batch["codes"] * batch["keep"]).numpy())


def test_classifier_content_is_everything_but_the_label():
    y = torch.tensor([1, 0, 1])
    captured = CapturedLoss(loss=torch.zeros(3), tokens=torch.ones(3), targets=y, route="")
    batch = {
        "x": torch.arange(6.0).reshape(3, 2), "flag": torch.tensor([True, False, True]),
        "y": y[:, None].float(), "image": torch.ones(3, 2, 2),
        "scale": torch.tensor(2.0), "other": torch.ones(5), "name": "a",
    }  # fmt: skip
    content = batch_content(batch, captured)
    # The flag equals the label by chance and stays.
    assert content["x"].tolist() == [[0, 1, 1, 1, 1, 1, 1], [2, 3, 0, 1, 1, 1, 1], [4, 5, 1, 1, 1, 1, 1]]
    assert content["y"].tolist() == [1.0, 0.0, 1.0]
    assert batch_content(batch, captured, widest=3)["x"].shape == (3, 3)
    nothing = CapturedLoss(loss=torch.zeros(3), tokens=torch.ones(3), route="")
    assert batch_content("opaque", nothing)["x"].shape == (3, 0)


def test_untouched_restores_after_an_exception():
    module = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Dropout())
    module[0].eval()
    module.notes = [1]
    state = rng_state()
    try:
        with untouched(module):
            module.notes.append(2)
            module.new = 3
            module[0].train()(torch.randn(4, 2))
            raise KeyError
    except KeyError:
        pass
    assert module.notes == [1]
    assert not hasattr(module, "new")
    assert [part.training for part in module.modules()] == [True, False, True]
    assert module[0].running_mean.tolist() == [0.0, 0.0]
    assert int(module[0].num_batches_tracked) == 0
    assert same_rng(state, rng_state())
