import numpy as np
import pytest

from memguard.attacks.powered import powered_auc
from memguard.errors import MemguardError


def naive_auc(members, held_out):
    above = (members[:, None] > held_out[None, :]).mean()
    ties = (members[:, None] == held_out[None, :]).mean()
    return above + 0.5 * ties


def test_without_a_proxy_it_is_the_plain_auc_with_ties():
    rng = np.random.default_rng(0)
    members, held_out = rng.integers(0, 4, 60), rng.integers(0, 3, 90)
    got = powered_auc(members, np.zeros(60), np.zeros(60), held_out)
    assert got.value == pytest.approx(naive_auc(members, held_out), abs=1e-12)


@pytest.mark.parametrize(("shift", "noise"), [(0.0, 0.3), (0.7, 0.3), (1.8, 0.5), (0.7, 50.0)])
def test_interval_covers_what_evaluating_everybody_would_give(shift, noise):
    rng = np.random.default_rng(1)
    truth = naive_auc(rng.normal(shift, 1, 4000), rng.normal(0, 1, 4000))
    hits, centre = 0, []
    for _ in range(400):
        members, held_out = rng.normal(shift, 1, 2000), rng.normal(0, 1, 300)
        proxy = 0.5 * members + rng.normal(0, noise, 2000) + 3
        rows = rng.choice(2000, 150, replace=False)
        got = powered_auc(members[rows], proxy[rows], proxy, held_out)
        hits += got.low <= truth <= got.high
        centre.append(got.value)
    assert hits / 400 >= 0.925
    assert np.mean(centre) == pytest.approx(truth, abs=0.01)


def test_clusters_widen_the_interval():
    rng = np.random.default_rng(2)
    patient = np.repeat(np.arange(50), 6)
    members = np.repeat(rng.normal(0.5, 1, 50), 6) + rng.normal(0, 0.1, 300)
    held_out = rng.normal(0, 1, 300)
    zero = np.zeros(300)
    alone = powered_auc(members, zero, zero, held_out)
    grouped = powered_auc(members, zero, zero, held_out, sample_groups=patient)
    assert grouped.high - grouped.low > 1.5 * (alone.high - alone.low)
    assert grouped.n == 350


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_complete_separation_keeps_an_honest_interval(value):
    members, held_out = np.full(40, value), np.full(40, 0.5)
    got = powered_auc(members, members, members, held_out)
    assert got.value == value
    assert 0.02 < got.high - got.low < 0.3


def test_mismatched_lengths_are_refused():
    with pytest.raises(MemguardError, match="2 proxies"):
        powered_auc([1.0], [1.0, 2.0], [1.0], [0.0])
