"""Guards with a statistical test: no more false alarms than stated, and the known breaks are found."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from memguard.errors import PrivacyError
from memguard.privacy.guards.inclusion import included_matrix, inclusion_variance
from memguard.privacy.guards.noise import noise_residual, noise_reuse, noise_scaling
from memguard.privacy.guards.ranks import rank_masks

SIGMA, C, EXPECTED = 1.3, 0.4, 20.0


def noisy(rng, d=400, scale=1.0, signal=1.0):
    return (torch.full((d,), signal) + SIGMA * C * scale * torch.from_numpy(rng.normal(size=d))) / EXPECTED


def residual(pairs, **options):
    return noise_residual(pairs, SIGMA, C, EXPECTED, **options)


def allowed(level, runs):
    """So many false alarms in so many runs at this level come up once in ten thousand."""
    return stats.binom.ppf(1 - 1e-4, runs, level)


def test_noise_that_is_right_seldom_alarms():
    runs, level = 300, 0.05
    rng = np.random.default_rng(0)
    alarms = sum(
        not residual([(noisy(rng), noisy(rng)) for _ in range(3)], false_alarm=level).ok for _ in range(runs)
    )
    assert alarms <= allowed(level, runs)
    assert all(residual([(noisy(rng), noisy(rng)) for _ in range(2)]).ok for _ in range(50))


@pytest.mark.parametrize(
    ("found", "broken"),
    [
        ("noise/scale", lambda rng: [(noisy(rng, scale=C), noisy(rng, scale=C))]),
        ("noise/scale", lambda rng: [(noisy(rng, scale=1.4), noisy(rng, scale=1.4))]),
        (
            "noise/none",
            lambda rng: [(noisy(rng), noisy(rng)), (noisy(rng, scale=0.0), noisy(rng, scale=0.0))],
        ),
        ("noise/mean", lambda rng: [(noisy(rng, signal=1.4), noisy(rng))]),
        ("noise/shape", lambda rng: [(uniform(rng), torch.zeros(4000))]),
    ],
)
def test_noise_that_is_wrong(found, broken):
    assert residual(broken(np.random.default_rng(1))).finding.id == found


def uniform(rng, d=4000):
    """The right variance, another law."""
    return torch.from_numpy(rng.uniform(-1, 1, size=d)) * np.sqrt(3) * SIGMA * C * np.sqrt(2) / EXPECTED


def test_the_same_noise_twice():
    rng = np.random.default_rng(2)
    first, second = noisy(rng), noisy(rng)
    assert residual([(first, first), (first, second)]).finding.id == "noise/none"
    assert residual([(first, second), (first + 3, second + 3)]).finding.id == "noise/reused"
    # Only one of the two comes again: the differences correlate by half.
    assert residual([(first, second), (first, noisy(rng))]).finding.id == "noise/reused"


def test_the_same_noise_for_each_parameter():
    rng = np.random.default_rng(3)

    def update(alike):
        z = [SIGMA * C * torch.from_numpy(rng.normal(size=n)) / EXPECTED for n in (200, 60)]
        return [z[0], z[0][:60]] if alike else z

    assert residual([(update(False), update(False))]).ok
    assert residual([(update(True), update(True))]).finding.id == "noise/reused"


def test_resolution_is_honest():
    """At the ratio that it names, noise is found nearly always."""
    rng = np.random.default_rng(4)
    resolution = residual([(noisy(rng), noisy(rng))]).resolution
    missed = sum(
        residual([(noisy(rng, scale=1 + resolution), noisy(rng, scale=1 + resolution))]).ok
        for _ in range(200)
    )
    assert missed <= 3 and 0.1 < resolution < 0.4


def test_noise_must_follow_the_threshold():
    rng = np.random.default_rng(5)
    right = lambda c: SIGMA * c * torch.from_numpy(rng.normal(size=500)) / EXPECTED  # noqa: E731
    fixed = lambda c: SIGMA * torch.from_numpy(rng.normal(size=500)) / EXPECTED  # noqa: E731
    assert noise_scaling(right, SIGMA, 1.0, EXPECTED).ok
    assert noise_scaling(fixed, SIGMA, 1.0, EXPECTED).finding.id == "noise/scale"
    assert residual([(fixed(C), fixed(C))]).finding.id == "noise/scale"


def test_reuse_keeps_its_level():
    runs, level = 400, 0.05
    rng = np.random.default_rng(6)
    alarms = sum(not noise_reuse(list(rng.normal(size=(4, 50))), false_alarm=level).ok for _ in range(runs))
    assert alarms <= allowed(level, runs)


def test_noise_refuses_what_it_cannot_judge():
    z = torch.randn(40)
    for pairs in ([], [(z[:5], z[:5])], [(z, z[:30])]):
        with pytest.raises(PrivacyError):
            residual(pairs)
    with pytest.raises(PrivacyError):
        noise_residual([(z, z)], 0.0, C, EXPECTED)
    with pytest.raises(PrivacyError):
        noise_reuse([z])
    bad = z.clone()
    bad[0] = torch.nan
    assert not residual([(bad, z)]).ok


def poisson(rng, t, p, q):
    return rng.random((t, p)) < q


def epochs(rng, t, p, per_draw):
    rows = []
    while len(rows) < t:
        order = rng.permutation(p)
        rows += [order[i : i + per_draw] for i in range(0, p - per_draw + 1, per_draw)]
    return included_matrix(rows[:t], p)


@pytest.mark.parametrize(("t", "p", "q"), [(40, 30, 0.05), (120, 60, 0.1), (20, 500, 0.3), (10, 8, 0.5)])
def test_poisson_draws_seldom_alarm(t, p, q):
    runs, level = 250, 0.05
    rng = np.random.default_rng([t, p])
    alarms = sum(not inclusion_variance(poisson(rng, t, p, q), q, false_alarm=level).ok for _ in range(runs))
    assert alarms <= allowed(level, runs)


def test_poisson_draws_with_rates_of_their_own():
    rng = np.random.default_rng(0)
    q = np.where(np.arange(90) < 30, 0.05, 0.2)
    assert all(inclusion_variance(poisson(rng, 100, 90, q), q).ok for _ in range(30))
    assert inclusion_variance(poisson(rng, 100, 90, q[::-1]), q).finding.id == "inclusion/rate"
    everybody = np.ones((5, 4), bool)
    assert inclusion_variance(everybody, 1.0).ok
    everybody[2, 1] = False
    assert inclusion_variance(everybody, 1.0).finding.id == "inclusion/rate"


def test_what_is_not_poisson():
    rng = np.random.default_rng(1)
    shuffled = inclusion_variance(epochs(rng, 100, 100, 10), 0.1)
    assert shuffled.finding.id == "inclusion/sizes"
    assert shuffled.size_variance == 0 and shuffled.count_variance < 0.01
    fixed = included_matrix([rng.choice(100, 10, replace=False) for _ in range(100)], 100)
    assert inclusion_variance(fixed, 0.1).size_variance == 0 and not inclusion_variance(fixed, 0.1).ok
    assert inclusion_variance(poisson(rng, 200, 100, 0.2), 0.1).finding.id == "inclusion/rate"
    together = np.repeat(poisson(rng, 100, 20, 0.1), 5, axis=1)  # families in or out as one
    found = inclusion_variance(together, 0.1)
    assert found.finding.id in {"inclusion/sizes", "inclusion/rate"} and found.size_variance > 3
    once = poisson(rng, 60, 100, 0.1)
    again = inclusion_variance(np.concatenate([once, once]), 0.1)
    assert again.repeated == 60 and again.finding.id in {"inclusion/repeated", "inclusion/counts"}
    some = rng.permutation(100) < 50  # half of them never, the others twice as often
    assert inclusion_variance(poisson(rng, 200, 100, 0.2 * some), 0.1).finding.id == "inclusion/counts"


def test_large_draws_are_quick_and_bounded():
    rng = np.random.default_rng(2)
    found = inclusion_variance(poisson(rng, 30, 50_000, 0.01), 0.01)
    assert found.ok and found.n_draws == 30 and found.p_value > 1e-4


def test_inclusion_refuses_what_it_cannot_judge():
    with pytest.raises(PrivacyError, match="pass booleans"):
        inclusion_variance(np.ones((3, 3)), 0.1)
    with pytest.raises(PrivacyError, match="rates"):
        inclusion_variance(np.ones((3, 3), bool), [0.1, 0.2])
    with pytest.raises(PrivacyError, match="drawn twice"):
        included_matrix([[1, 1]], 3)


def test_ranks():
    rng = np.random.default_rng(3)
    one = poisson(rng, 80, 60, 0.2)
    whose = np.arange(60) % 2
    assert rank_masks([one & (whose == 0), one & (whose == 1)], 0.2).ok
    same = rank_masks([one, one], 0.2)
    assert "all ranks" in same.finding.seen and same.twice == one.sum()
    other = rank_masks([one, poisson(rng, 80, 60, 0.2)], 0.2)
    assert other.finding.id == "ranks/twice" and "all ranks" not in other.finding.seen
    assert all(rank_masks(rng.random((3, 40, 50)) < 0.2, 0.2, sharded=True).ok for _ in range(40))
    assert rank_masks([one, one], 0.2, sharded=True).finding.id == "ranks/equal"
    with pytest.raises(PrivacyError):
        rank_masks([one], 0.2)


def test_sharded_ranks_keep_their_level():
    runs, level = 300, 0.05
    rng = np.random.default_rng(4)
    q = rng.uniform(0.05, 0.4, size=30)
    alarms = sum(
        not rank_masks(rng.random((2, 20, 30)) < q, q, sharded=True, false_alarm=level).ok
        for _ in range(runs)
    )
    assert alarms <= allowed(level, runs)
