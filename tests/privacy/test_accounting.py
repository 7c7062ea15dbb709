"""Epsilon: the published accountants, what is reported of them, and what is refused."""

from __future__ import annotations

import importlib
import importlib.util
import math

import pytest

from memguard.errors import MemguardWarning, PrivacyError
from memguard.privacy.accounting import (
    Epsilon,
    Phase,
    epsilon,
    libraries,
    mixture_epsilon,
    patient_epsilon,
    pld_epsilon,
    prv_epsilon,
    rdp_epsilon,
    reported,
    resolve_delta,
)
from memguard.privacy.accounting.phases import merged
from memguard.privacy.accounting.rdp import ORDERS, rdp_curve

slow = pytest.mark.slow
dp_accounting = pytest.mark.skipif(
    importlib.util.find_spec("dp_accounting") is None, reason="dp-accounting is an optional extra"
)

# q, sigma, steps, delta, then epsilon by Opacus RDP, Opacus PRV (upper bound), and dp-accounting PLD.
TABLE = [
    pytest.param(1e-3, 1.0, 10_000, 1e-6, 0.9795, 0.5652, 0.5554, marks=slow),
    pytest.param(1e-3, 0.6, 10_000, 1e-6, 3.999, 3.1625, 3.1522, marks=slow),
    (0.01, 1.0, 1_000, 1e-5, 2.101, 1.838, 1.828),
    pytest.param(0.01, 1.0, 10_000, 1e-5, 6.713, 6.198, 6.188, marks=slow),
    (0.01, 0.5, 1_000, 1e-5, 15.46, 13.37, 13.36),
    (0.01, 2.0, 10_000, 1e-5, 2.353, 2.173, 2.163),
    (0.01, 4.0, 10_000, 1e-6, 1.170, 1.095, 1.085),
    pytest.param(0.05, 1.0, 1_000, 1e-5, 11.98, 10.997, 10.987, marks=slow),
    (0.05, 2.0, 2_000, 1e-5, 5.924, 5.482, 5.472),
    (0.1, 3.0, 500, 1e-5, 3.593, 3.315, 3.304),
    pytest.param(0.25, 1.0, 100, 1e-4, 18.02, 16.26, 16.25, marks=slow),
    (1.0, 10.0, 100, 1e-5, 4.729, 4.387, 4.377),
    pytest.param(0.01, 10.0, 100, 1e-5, 0.0327, 0.0378, 0.0277, marks=slow),
    pytest.param(1e-4, 0.8, 100_000, 1e-7, 1.300, 0.289, 0.285, marks=slow),
]


def run(q=0.01, sigma=1.0, steps=1000):
    return [Phase(sigma, q, steps)]


@pytest.mark.parametrize(("q", "sigma", "steps", "delta", "rdp", "prv", "pld"), TABLE)
def test_published_values(q, sigma, steps, delta, rdp, prv, pld):
    history = run(q, sigma, steps)
    # More orders than Opacus has: never above it, and the same where its own contain the best one.
    ours = rdp_epsilon(history, delta)
    assert ours <= rdp * 1.0005
    if 1 < rdp < 20 and q > 1e-4:
        assert ours == pytest.approx(rdp, rel=5e-4)
    assert prv_epsilon(history, delta, eps_error=0.01) == pytest.approx(prv, abs=0.005)
    assert mixture_epsilon(history, delta) == pytest.approx(pld, abs=0.006)
    spent = epsilon(history, delta)
    tolerance = 0.02 + 0.01 * pld
    assert pld - tolerance < spent.value < pld + tolerance
    assert spent.value == max([spent.value, *(v for k, v in spent.others.items() if k != "RDP")])
    assert spent.note == ""


@dp_accounting
@pytest.mark.parametrize(("q", "sigma", "steps", "delta", "rdp", "prv", "pld"), TABLE)
def test_published_values_of_dp_accounting(q, sigma, steps, delta, rdp, prv, pld):
    assert pld_epsilon(run(q, sigma, steps), delta) == pytest.approx(pld, abs=0.005)


def test_rdp_orders_beyond_63_matter():
    # Opacus stops at 63 and says .106 here; PLD says .028
    assert rdp_epsilon(run(0.01, 10.0, 100), 1e-5) < 0.033
    assert ORDERS.max() > 4096


@pytest.mark.parametrize(("sigma", "q"), [(1.0, 0.01), (0.3, 0.05), (4.0, 0.5), (0.8, 1e-4), (20.0, 0.999)])
def test_rdp_curve_is_that_of_opacus(sigma, q):
    analysis = pytest.importorskip("opacus.accountants.analysis.rdp")
    chosen = [i for i, order in enumerate(ORDERS) if 1.5 <= order < 64]
    theirs = [
        analysis.compute_rdp(q=q, noise_multiplier=sigma, steps=1, orders=float(ORDERS[i])) for i in chosen
    ]
    assert rdp_curve(sigma, q)[chosen] == pytest.approx(theirs, rel=1e-6, abs=1e-14)


@pytest.mark.parametrize("account", [rdp_epsilon, prv_epsilon, mixture_epsilon])
def test_order_and_cutting_of_the_history_do_not_matter(account):
    whole = [Phase(1.0, 0.01, 300), Phase(2.0, 0.02, 100)]
    cut = [Phase(2.0, 0.02, 60), Phase(1.0, 0.01, 100), Phase(2.0, 0.02, 40), Phase(1.0, 0.01, 200)]
    assert account(cut, 1e-5) == account(whole, 1e-5)


@pytest.mark.parametrize("account", [rdp_epsilon, prv_epsilon, mixture_epsilon])
def test_two_phases_that_hardly_differ_are_one(account):
    one = account(run(0.02, 1.2, 700), 1e-5)
    two = account([Phase(1.2, 0.02, 300), Phase(1.2 * (1 + 1e-9), 0.02, 400)], 1e-5)
    assert two == pytest.approx(one, rel=2e-3)


@dp_accounting
def test_unlike_phases_agree_with_dp_accounting():
    history = [Phase(0.8, 0.01, 100), Phase(1.5, 0.03, 300), Phase(4.0, 1.0, 5)]
    spent = epsilon(history, 1e-5)
    assert spent.note == "" and set(spent.others) == {"PLD", "RDP"}
    assert mixture_epsilon(history, 1e-5) == pytest.approx(pld_epsilon(history, 1e-5), rel=1e-3)


@pytest.mark.parametrize(
    "account", [rdp_epsilon, prv_epsilon, mixture_epsilon, lambda h, d: epsilon(h, d).value]
)
def test_monotone_in_every_argument(account):
    middle = account(run(0.02, 1.0, 200), 1e-5)
    for more in (run(0.022, 1.0, 200), run(0.02, 0.9, 200), run(0.02, 1.0, 250)):
        assert account(more, 1e-5) > middle
    assert account(run(0.02, 1.0, 200), 1e-6) > middle
    assert account([*run(0.02, 1.0, 200), Phase(5.0, 0.01, 100)], 1e-5) > middle


@pytest.mark.parametrize("account", [rdp_epsilon, prv_epsilon, mixture_epsilon])
def test_ends_of_the_range(account):
    assert account([], 1e-5) == 0
    assert account([Phase(1.0, 0.01, 0), Phase(0.0, 0.0, 10)], 1e-5) == 0
    assert account([Phase(1.0, 0.01, 10), Phase(0.0, 0.01, 1)], 1e-5) == math.inf
    assert account(run(1e-6, 100.0, 1), 0.1) >= 0
    assert 0 < account(run(1.0, 1.0, 1), 1e-5) < 6


def test_exact_ends_say_so():
    nothing, everything = epsilon([], 1e-5), epsilon([Phase(0.0, 0.1, 1)], 1e-5)
    assert (nothing.value, nothing.accountant) == (0, "exact")
    assert (everything.value, everything.accountant) == (math.inf, "exact")
    assert patient_epsilon([Phase(0.0, 0.1, 1)], 1e-5, 3).value == math.inf


def test_phases_are_joined_and_empty_ones_left_out():
    history = [
        Phase(1.0, 0.01, 3),
        Phase(1.0, 0.02, 4),
        Phase(1, 0.01, 5),
        Phase(1.0, 0.0, 9),
        Phase(0.0, 0.5, 0),
    ]
    assert merged(history) == (Phase(1.0, 0.01, 8), Phase(1.0, 0.02, 4))


def test_steps_in_the_millions_are_refused_before_prv_starts(monkeypatch):
    history = run(0.01, 1.0, 1_000_000)
    monkeypatch.setattr(libraries, "import_module", lambda name: pytest.fail("started"))
    with pytest.raises(PrivacyError, match=r"1,000,000 steps .* grid points"):
        prv_epsilon(history, 1e-5)


def test_steps_in_the_millions_have_an_epsilon_all_the_same():
    spent = epsilon(run(0.01, 1.0, 1_000_000), 1e-5)
    assert "PRV not computed" in spent.note and spent.accountant.startswith("PLD")
    assert 138 < spent.value < spent.others["RDP"] < 150


@pytest.mark.parametrize("failure", [MemoryError, RuntimeError("Cannot compute epsilon"), ValueError])
def test_prv_that_fails_is_said_and_replaced(failure, monkeypatch):
    from opacus.accountants import PRVAccountant

    def fail(*_, **__):
        raise failure

    monkeypatch.setattr(PRVAccountant, "get_epsilon", fail)
    with pytest.raises(PrivacyError, match="failed"):
        prv_epsilon(run(), 1e-5)
    spent = epsilon(run(), 1e-5)
    assert spent.value == pytest.approx(1.828, abs=0.005)
    assert "PRV not computed" in spent.note


def test_rdp_is_the_last_resort(monkeypatch):
    def fail(*_, **__):
        raise PrivacyError("no memory")

    for name in ("prv_epsilon", "pld_epsilon", "mixture_epsilon"):
        monkeypatch.setattr(reported, name, fail)
    spent = epsilon(run(), 1e-5)
    assert (spent.value, spent.accountant) == (rdp_epsilon(run(), 1e-5), "RDP")
    assert spent.note.count("no memory") == 3 and "RDP reported" in spent.note


def test_accountants_that_disagree_are_noted_and_the_larger_counts(monkeypatch):
    monkeypatch.setattr(reported, "pld_epsilon", lambda *_: 2.0)
    monkeypatch.setattr(reported, "version_of", lambda name: f"{name} of some version")
    spent = epsilon(run(), 1e-5)
    assert (spent.value, spent.accountant) == (2.0, "PLD")
    assert spent.version == "dp-accounting of some version"
    assert "further apart" in spent.note and spent.others["PRV"] == pytest.approx(1.838, abs=0.001)


def test_without_dp_accounting(monkeypatch):
    monkeypatch.setattr(libraries, "_dp_accounting", lambda: None)
    assert pld_epsilon(run(), 1e-5) is None
    spent = epsilon(run(), 1e-5)
    assert spent.accountant == "PRV" and set(spent.others) == {"PLD (memguard)", "RDP"} and spent.note == ""
    assert patient_epsilon(run(), 1e-5, 3).accountant == "PLD (memguard)"


def test_versions_are_named():
    spent = epsilon(run(), 1e-5)
    assert isinstance(spent, Epsilon) and spent.delta == 1e-5
    assert spent.version == f"opacus {importlib.metadata.version('opacus')}"


@pytest.mark.parametrize(
    ("arguments", "seen"),
    [
        ((-1.0, 0.1, 1), "noise_multiplier=-1.0"),
        ((math.nan, 0.1, 1), "noise_multiplier=nan"),
        ((math.inf, 0.1, 1), "noise_multiplier=inf"),
        ((1.0, 1.1, 1), "sample_rate=1.1"),
        ((1.0, -0.1, 1), "sample_rate=-0.1"),
        ((1.0, math.nan, 1), "sample_rate=nan"),
        ((1.0, 0.1, -1), "steps=-1"),
        ((1.0, 0.1, 1.5), "steps=1.5"),
        ((1.0, 0.1, True), "steps=True"),
    ],
)
def test_phases_that_cannot_be(arguments, seen):
    with pytest.raises(PrivacyError) as error:
        Phase(*arguments)
    assert error.value.seen == seen and error.value.why and error.value.fix


@pytest.mark.parametrize("delta", [0, 1, -1e-5, 2.0, math.nan])
@pytest.mark.parametrize("account", [rdp_epsilon, prv_epsilon, pld_epsilon, mixture_epsilon, epsilon])
def test_deltas_that_cannot_be(account, delta):
    with pytest.raises(PrivacyError, match="delta="):
        account([], delta)


@pytest.mark.parametrize("records", [0, -1, 1.5])
@pytest.mark.parametrize("account", [patient_epsilon, mixture_epsilon, pld_epsilon])
def test_records_that_cannot_be(account, records):
    with pytest.raises(PrivacyError, match="records="):
        account(run(), 1e-5, records)


def test_delta_from_the_number_of_patients():
    assert resolve_delta("1/n", 4000) == resolve_delta("1 / n", 4000) == 1 / 4000
    assert resolve_delta(1e-6, 4000) == resolve_delta("1e-6", 4000) == 1e-6
    with pytest.warns(MemguardWarning, match="exceeds 1/n"):
        assert resolve_delta(0.01, 4000) == 0.01
    for delta in (0.0, 1.0, 1.5, "n", "1/m"):
        with pytest.raises(PrivacyError, match="delta="):
            resolve_delta(delta, 4000)
    with pytest.raises(PrivacyError, match="n=1"):
        resolve_delta("1/n", 1)
