"""Guards: each finds what it is for, says nothing of what is right, and keeps its false-alarm rate."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from memguard.errors import PrivacyError
from memguard.privacy.guards._tails import squares_tails, total_pmf
from memguard.privacy.guards.batch_statistics import batch_statistics, changed_buffers, moving_buffers
from memguard.privacy.guards.coverage import coverage, optimizer_covers, weights_moved
from memguard.privacy.guards.denominator import denominator, frozen
from memguard.privacy.guards.finding import FALSE_ALARM, Finding, Verdict
from memguard.privacy.guards.reweighting import reweighting
from memguard.privacy.guards.scaling import scaling
from memguard.privacy.guards.sensitivity import flat, sensitivity, without_dropout
from memguard.privacy.guards.steps import fresh_seeds, one_draw_each, steps_accounted

C = 0.5


def world(n=6, seed=0):
    """A small classifier and one record for each of n owners."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    return net, torch.randn(n, 5), torch.randint(0, 3, (n,))


def gradients(net, loss):
    return torch.autograd.grad(loss, list(net.parameters()), allow_unused=True)


def clipped(net, x, y, c=C, clip=True, loss=None):
    """One record after another: the definition."""
    loss = loss or (lambda rows: F.cross_entropy(net(x[rows]), y[rows]))

    def sum_of(owners):
        total = torch.zeros(sum(p.numel() for p in net.parameters()), dtype=torch.float64)
        for owner in owners:
            g = flat(gradients(net, loss([owner])))
            total += g * (min(1.0, c / float(g.norm())) if clip else 1.0)
        return total

    return sum_of


def clipped_from_batch_loss(net, batch_loss, c=C):
    """What per-record hooks see of a loss over the batch: each record's share of the gradient, clipped."""

    def sum_of(owners):
        if not owners:
            return torch.zeros(sum(p.numel() for p in net.parameters()))
        shares = batch_loss(list(owners))
        total = 0
        for share in shares:
            g = flat(torch.autograd.grad(share, list(net.parameters()), retain_graph=True))
            total = total + g * min(1.0, c / max(float(g.norm()), 1e-12))
        return total

    return sum_of


def test_a_sum_of_clipped_gradients_passes():
    net, x, y = world()
    found = sensitivity(clipped(net, x, y), range(6), C)
    assert found.ok and found.max_ratio <= 1 + 1e-6 and found.company < 1e-6 and found.order < 1e-6
    assert found.n_owners == 6 and found.max_ratio > 0.5


def test_no_clipping_is_above():
    net, x, y = world()
    x[2] *= 100
    found = sensitivity(clipped(net, x, y, clip=False), range(6), C)
    assert found.finding.id == "sensitivity/above" and found.worst == 2
    with pytest.raises(PrivacyError, match="clip the gradient of each owner"):
        found.require()


@pytest.mark.parametrize(
    ("name", "batch_loss"),
    [
        ("class-weighted mean", lambda net, x, y, rows: _weighted_mean(net, x, y, rows)),
        ("standardized over the batch", lambda net, x, y, rows: _standardized(net, x, y, rows)),
        ("contrastive", lambda net, x, y, rows: _contrastive(net, x, rows)),
        ("Cox", lambda net, x, y, rows: _cox(net, x, rows)),
    ],
)
def test_losses_that_look_across_the_batch(name, batch_loss):
    net, x, y = world()
    found = sensitivity(clipped_from_batch_loss(net, lambda rows: batch_loss(net, x, y, rows)), range(6), C)
    assert found.finding.id in {"sensitivity/above", "sensitivity/company"}, name


def _weighted_mean(net, x, y, rows):
    weight = torch.tensor([1.0, 0.2, 3.0])[y[rows]]
    losses = F.cross_entropy(net(x[rows]), y[rows], reduction="none")
    return list(losses * weight / weight.sum() * len(rows))


def _standardized(net, x, y, rows):
    h = net(x[rows])
    h = (h - h.mean(0)) / (h.var(0, unbiased=False) + 1e-3).sqrt()
    return list(F.cross_entropy(h, y[rows], reduction="none"))


def _contrastive(net, x, rows):
    h = F.normalize(net(x[rows]), dim=1)
    return list(F.cross_entropy(h @ h.T / 0.2, torch.arange(len(rows)), reduction="none"))


def _cox(net, x, rows):
    risk = net(x[rows])[:, 0]
    order = [sum(torch.exp(risk[j]) for j in range(i, len(rows))) for i in range(len(rows))]
    return [torch.log(total) - r + 0 * risk.sum() for total, r in zip(order, risk, strict=True)]


def test_a_clip_of_the_sum_is_seen_in_company():
    net, x, y = world()
    unclipped = clipped(net, x, y, clip=False)

    def sum_of(owners):
        total = unclipped(owners)
        return total * min(1.0, C / max(float(total.norm()), 1e-12))

    found = sensitivity(sum_of, range(6), C)
    assert found.finding.id == "sensitivity/company" and found.max_ratio < 1
    assert sensitivity(sum_of, range(6), C, companions=False).ok  # what the weaker question misses


def test_a_weight_by_place_is_seen_in_the_order():
    weights = torch.linspace(0.0, 0.3, 6)
    found = sensitivity(
        lambda owners: sum((weights[: len(owners)][i] for i in range(len(owners))), torch.zeros(())).reshape(1),
        range(6), 1.0, companions=False,
    )  # fmt: skip
    assert found.ok  # a function of the number alone has no order
    rows = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)) * 0.3
    found = sensitivity(
        lambda o: (rows[list(o)] * weights[: len(o), None]).sum(0), range(6), 1.0, companions=False
    )
    assert found.finding.id == "sensitivity/order"


def test_nan_and_random_sums():
    net, x, y = world()
    x[1, 0] = math.nan
    assert sensitivity(clipped(net, x, y), range(6), C).finding.id == "sensitivity/nonfinite"
    rows = torch.eye(6) * 0.5
    noisy = lambda o: rows[list(o)].sum(0) + 0.2 * torch.randn(6)  # noqa: E731
    found = sensitivity(noisy, range(6), 1.0)
    assert (found.finding.id, found.finding.severity) == ("sensitivity/random", "ledger")
    found.require()  # a ledger finding does not raise
    loud = lambda o: rows[list(o)].sum(0) * 30 + torch.randn(6)  # noqa: E731
    assert sensitivity(loud, range(6), 1.0).finding.id == "sensitivity/above"


def test_the_probe_leaves_random_states_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    sensitivity(lambda o: torch.rand(3), [0, 1], 1.0)
    scaling(lambda c: torch.rand(3), 2, 1.0)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("owners", [[0], [], [1, 1]])
def test_too_few_owners_are_refused(owners):
    with pytest.raises(PrivacyError, match="at least two owners"):
        sensitivity(lambda o: torch.zeros(1), owners, 1.0)
    with pytest.raises(PrivacyError, match="pass the C"):
        sensitivity(lambda o: torch.zeros(1), [0, 1], 0.0)


def test_dropout_is_off_inside_and_back_afterwards():
    net = nn.Sequential(
        nn.Dropout(0.4), nn.MultiheadAttention(4, 2, dropout=0.2), nn.LSTM(4, 4, 2, dropout=0.1)
    )

    def fails():
        with without_dropout(net):
            assert (net[0].p, net[1].dropout, net[2].dropout) == (0, 0, 0) and net.training
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert (net[0].p, net[1].dropout, net[2].dropout) == (0.4, 0.2, 0.1)


def test_scaling():
    net, x, y = world()
    assert scaling(lambda c: clipped(net, x, y, c)(range(6)), 6, C).ok
    ignored = scaling(lambda c: clipped(net, x, y, clip=False)(range(6)), 6, C)
    assert ignored.finding.id == "clipping/none" and not ignored.responds

    # Each layer by itself: twice the norm at most, when everybody is clipped.
    def per_layer(c):
        parts = [[], []]
        for owner in range(6):
            g = gradients(net, F.cross_entropy(net(x[[owner]]), y[[owner]]))
            for part, chosen in zip(parts, (g[:2], g[2:]), strict=True):
                v = flat(chosen)
                part.append(v * min(1.0, c / float(v.norm())))
        return torch.cat([torch.stack(part).sum(0) for part in parts])

    same = torch.ones(6, 5)
    x, y = same, torch.zeros(6, dtype=torch.long)
    loose = scaling(per_layer, 6, C)
    assert loose.finding.id == "clipping/loose" and max(loose.norms) == pytest.approx(math.sqrt(2), abs=0.01)
    with pytest.raises(PrivacyError):
        scaling(lambda c: torch.zeros(1), 0, C)


def test_coverage_of_a_tied_weight():
    torch.manual_seed(0)
    emb, body = nn.Embedding(7, 4), nn.Linear(4, 4)
    ids = torch.randint(0, 7, (5,))
    loss = F.cross_entropy(F.linear(torch.tanh(body(emb(ids))), emb.weight), ids, reduction="sum")
    whole = dict(
        zip(
            ["body.w", "body.b", "emb"],
            torch.autograd.grad(loss, [body.weight, body.bias, emb.weight]),
            strict=True,
        )
    )
    assert coverage(whole, whole).ok and coverage(whole, whole).errors == dict.fromkeys(whole, 0.0)
    # Hooks on the embedding see its output's gradient and not that of the second use.
    out = emb(ids)
    seen = torch.autograd.grad(
        F.cross_entropy(F.linear(torch.tanh(body(out)), emb.weight), ids, reduction="sum"), out
    )[0]
    hooked = {**whole, "emb": torch.zeros(7, 4).index_add_(0, ids, seen)}
    found = coverage(hooked, whole)
    assert found.worst == "emb" and "loop" in found.finding.fix
    assert coverage({"w": torch.ones(2)}, {"w": None}).worst == "w"
    assert coverage({"w": torch.zeros(2)}, {"w": None}).ok
    assert not coverage({"w": torch.tensor([math.nan])}, {"w": torch.ones(1)}).ok


def test_parameters_of_optimizer_and_engine():
    net = world()[0]
    named = list(net.named_parameters())
    assert optimizer_covers(named, named).ok
    copies = [(n, nn.Parameter(p.detach().clone())) for n, p in named]
    found = optimizer_covers(copies, named)
    assert len(found.missing) == len(found.idle) == len(named) and not found.ok
    before = {n: p.detach().clone() for n, p in named}
    assert weights_moved(before, dict(named)).missing == tuple(before)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1.0)
    assert weights_moved(before, dict(named)).ok


def test_denominators():
    sums = [torch.full((4,), float(n)) for n in (1, 3, 5)]
    assert denominator(sums, [s / 4 for s in sums], 4).ok
    assert (
        denominator(sums, [s / n for s, n in zip(sums, (1, 3, 5), strict=True)], 4).finding.id
        == "denominator/moves"
    )
    assert denominator(sums, [s / 5 for s in sums], 4).finding.id == "denominator/other"
    bent = [s / 4 + torch.tensor([1.0, -1, 1, -1]) for s in sums]
    assert denominator(sums, bent, 4).finding.id == "denominator/crooked"
    assert math.isnan(
        denominator([torch.zeros(2), torch.ones(2)], [torch.zeros(2), torch.ones(2)], 1).values[0]
    )
    with pytest.raises(PrivacyError, match="all zero"):
        denominator([torch.zeros(2)], [torch.zeros(2)], 1)
    with pytest.raises(PrivacyError, match="as many updates"):
        denominator(sums, sums[:1], 1)


def test_constants_stay():
    assert frozen([{"n": 10, "rates": (0.1, 0.2)}] * 3).ok
    assert frozen([{"n": 10}, {"n": 10, "C": 1.0}]).changed == {"C": (None, 1.0)}


def test_steps_draws_and_seeds():
    assert steps_accounted(10, 10, scheduled=10).ok
    assert steps_accounted(12, 10, interrupted=2).ok
    assert steps_accounted(12, 10, interrupted=1).finding.id == "steps/overcounted"
    assert steps_accounted(9, 10).finding.id == "steps/unaccounted"
    assert steps_accounted(9, 9, scheduled=10).finding.id == "steps/skipped"
    assert one_draw_each([[1, 2], []], [[1, 2], []]).ok
    assert one_draw_each([[1, 2], []], [[1, 2]]).skipped == 1
    assert one_draw_each([[1, 2]], [[1, 2, 2]]).twice == 1
    assert one_draw_each([[1, 2]], [[1, 3]]).foreign == 1
    assert fresh_seeds(["a", "b"]).ok and fresh_seeds(["a", "a", "b"]).repeated == ("a",)


def test_weights_of_a_batch_and_of_a_record():
    losses = np.random.default_rng(0).exponential(size=20)
    assert reweighting(lambda who: np.exp(-losses[list(who)]), range(20)).ok
    for of in (
        lambda v: v / v.sum(),
        lambda v: (v > np.quantile(v, 0.9)).astype(float),
        lambda v: np.argsort(np.argsort(v)).astype(float),
    ):
        found = reweighting(lambda who, of=of: of(losses[list(who)]), range(20))
        assert found.finding.severity == "refuse" and found.change > 0
        entered = reweighting(lambda who, of=of: of(losses[list(who)]), range(20), entered=True)
        assert entered.finding.severity == "ledger"
    with pytest.raises(PrivacyError, match="one weight for each"):
        reweighting(lambda who: np.ones(2), range(3))
    with pytest.raises(PrivacyError, match="at least two"):
        reweighting(lambda who: np.ones(1), range(1))


class Standardized(nn.BatchNorm1d):
    pass


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm1d(3),
        nn.BatchNorm2d(3, track_running_stats=False).eval(),
        nn.SyncBatchNorm(3),
        nn.LazyBatchNorm1d(),
        nn.InstanceNorm1d(3, track_running_stats=True),
        Standardized(3),
    ],
)
def test_layers_that_mix(layer):
    assert batch_statistics(nn.Sequential(nn.Linear(3, 3), layer)).names == ("1",)


@pytest.mark.parametrize(
    "layer",
    [nn.LayerNorm(3), nn.GroupNorm(1, 3), nn.InstanceNorm1d(3), nn.BatchNorm1d(3).eval(), nn.RMSNorm(3)],
)
def test_layers_that_do_not(layer):
    assert batch_statistics(nn.Sequential(nn.Linear(3, 3), layer)).ok


class Remembers(nn.Module):
    """A center that follows the data, as in some losses and codebooks."""

    def __init__(self):
        super().__init__()
        self.register_buffer("center", torch.zeros(3))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        self.center = 0.9 * self.center + 0.1 * x.mean(0)
        return x - self.center


def test_buffers_that_follow_the_data():
    net = nn.Sequential(Remembers(), nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)))
    a, b = torch.zeros(4, 3), torch.ones(4, 3)
    kept = {n: v.clone() for n, v in net.named_buffers()}
    found = changed_buffers(net, [lambda: net(a), lambda: net(b)])
    assert found.names == ("0.center",)
    assert set(changed_buffers(net, [lambda: net(b)]).names) >= {"0.center", "0.calls"}
    assert all(torch.equal(v, kept[n]) for n, v in net.named_buffers())
    assert changed_buffers(nn.LayerNorm(3), [lambda: None]).ok
    with pytest.raises(PrivacyError):
        changed_buffers(net, [])


def test_buffers_come_back_after_an_error():
    net = Remembers()

    def fails():
        net(torch.ones(2, 3))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        changed_buffers(net, [fails])
    assert not net.center.any() and net.calls == 0


def test_verdict_and_finding():
    found = Finding("a/b", "seen", "why", "fix", severity="ledger")
    assert str(found.warning()) == str(found.error()) == "seen. why. fix."
    assert not Verdict(finding=found).ok and FALSE_ALARM <= 1e-6


def test_tails_bound_the_exact_ones():
    values, law = total_pmf([(0.3, 12), (0.7, 5)])
    assert law.sum() == pytest.approx(1.0) and (values @ law) == pytest.approx(12 * 0.3 + 5 * 0.7)
    one = (np.array([0.0, 1.0]), np.array([0.8, 0.2]), 40)
    from scipy import stats

    for x in (1, 3, 14, 20):
        below, above = squares_tails(float(x), [one])
        assert below >= stats.binom.cdf(x, 40, 0.2) and above >= stats.binom.sf(x - 1, 40, 0.2)
    assert squares_tails(20.0, [one])[1] < 1e-3
    assert squares_tails(0.0, [(np.zeros(1), np.ones(1), 4)]) == (1.0, 1.0)


def test_buffers_that_every_run_moves():
    class Cached(nn.Linear):
        """Makes a table at the first run, which then stays."""

        def forward(self, x):
            if not hasattr(self, "table"):
                self.register_buffer("table", torch.arange(9.0))
            return super().forward(x) + self.table[: x.shape[1]]

    net = nn.Sequential(Remembers(), nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)), Cached(3, 3))
    kept = {n: v.clone() for n, v in net.named_buffers()}
    found = moving_buffers(net, lambda: net(torch.ones(2, 3)))
    assert {"0.calls", "0.center", "1.parametrizations.weight.0._u"} <= set(found.names)
    assert "2.table" not in found.names
    with pytest.raises(PrivacyError, match="that every run of the model moves"):
        found.require()
    assert all(torch.equal(v, kept[n]) for n, v in net.named_buffers() if n in kept)
    assert moving_buffers(Cached(3, 3), lambda: None).ok
