"""The null on real training: dropout, train-mode mid-epoch traces, and a model that learns nothing of its members.

Two ways to learn nothing: a learning rate of zero, and training on other patients than those called members.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from memguard.records.content import Ragged, RecordContent
from memguard.records.surrogate import CounterfactualScore, ModeSample, content_features, memorization_score

CODES, LENGTH, EPOCHS = 30, 10, 4


def cohort(rng: np.random.Generator, n: int) -> torch.Tensor:
    """Chains with a favourite step each, so that records differ in how hard they are."""
    step = rng.integers(1, 6, n)
    regular = rng.uniform(0.2, 0.95, n)
    out = np.empty((n, LENGTH), dtype=np.int64)
    out[:, 0] = rng.integers(0, CODES, n)
    for t in range(1, LENGTH):
        follow = (out[:, t - 1] + step) % CODES
        out[:, t] = np.where(rng.random(n) < regular, follow, rng.integers(0, CODES, n))
    return torch.from_numpy(out)


class Model(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.table = nn.Embedding(CODES, 32)
        self.drop = nn.Dropout(dropout)
        self.rnn = nn.GRU(32, 32, batch_first=True)
        self.head = nn.Linear(32, CODES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Mean loss of each record, ``(B,)``."""
        h, _ = self.rnn(self.drop(self.table(x[:, :-1])))
        logits = self.head(self.drop(h))
        return F.cross_entropy(logits.transpose(1, 2), x[:, 1:], reduction="none").mean(1)


def run(seed: int, *, rate: float, on_others: bool) -> dict[str, CounterfactualScore]:
    """Train once and score with both kinds of current loss."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    members, held_out, others = (cohort(rng, n) for n in (300, 200, 400))
    model = Model(0.3)
    warm = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(6):  # a model that knows the population and neither of the two groups
        for part in torch.randperm(400).split(32):
            warm.zero_grad()
            model(others[part]).mean().backward()
            warm.step()
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    trace, outside, inside = np.zeros((EPOCHS, 300)), np.zeros((EPOCHS, 200)), np.zeros((EPOCHS, 300))
    for epoch in range(EPOCHS):
        model.train()
        for part in torch.randperm(300).split(32):
            loss = model(members[part])
            trace[epoch, part.numpy()] = loss.detach().numpy()
            optimizer.zero_grad()
            (model(others[part]) if on_others else loss).mean().backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            outside[epoch], inside[epoch] = model(held_out).numpy(), model(members).numpy()
    rows = rng.choice(300, 100, replace=False)
    contents = [RecordContent.from_codes(Ragged.from_padded(x[:, 1:].numpy())) for x in (members, held_out)]
    features = content_features(contents[0], None, contents[1])
    return {
        mode: memorization_score(
            features,
            traces=trace,
            held_out_traces=outside,
            loss=now,
            held_out_loss=outside[-1],
            sample=ModeSample(rows=rows, losses=inside[:, rows]),
            loss_mode=mode,
            seed=seed,
        )
        for mode, now in (("train", trace[-1]), ("eval", inside[-1]))
    }


@pytest.mark.parametrize(("rate", "on_others"), [(0.0, False), (1e-3, True)])
def test_p_values_hold_where_nothing_is_memorized(rate: float, on_others: bool) -> None:
    results = [run(seed, rate=rate, on_others=on_others) for seed in range(6)]
    for mode in ("train", "eval"):
        rates: dict[float, list[float]] = {0.02: [], 0.1: [], 0.3: []}
        centre = []
        for result in (found[mode] for found in results):
            null = np.sort(result.held_out_gap)
            p = (1 + len(null) - np.searchsorted(null, result.gap, side="left")) / (len(null) + 1)
            for level, found in rates.items():
                found.append(float((p <= level).mean()))
            centre.append((np.median(result.gap) - np.median(null)) / null.std())
        for level, found in rates.items():
            error = np.std(found, ddof=1) / np.sqrt(len(found))
            assert np.mean(found) <= level + 3 * error, (mode, level, np.mean(found), error)
        error = np.std(centre, ddof=1) / np.sqrt(len(centre))
        assert np.mean(centre) < 0.05 + 3 * error
        if mode == "eval":  # centred; train-time losses carry dropout's penalty and err to fewer flags
            assert np.mean(centre) > -0.05 - 3 * error
