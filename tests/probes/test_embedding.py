"""The embedding probe: sees a trace in embeddings of members, and nothing where both sides are embedded alike."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
import pytest
from scipy import stats

from memguard.errors import DataError, MemguardError
from memguard.probes.asked import Asked, Budget
from memguard.probes.embedding import EmbeddingProbe
from memguard.probes.embedding.guessed import patient_folds
from memguard.probes.embedding.judged import Readings, area_difference, average_precision
from memguard.probes.embedding.told import joined
from memguard.probes.subject import Subject
from memguard.records.content import Ragged, RecordContent

V, SECRET = 40, 39  # the secret goes with codes 3 to 5
LINEAR = EmbeddingProbe(categories={"hiv": [SECRET]}, attackers=("linear",))


@dataclass
class Pool:
    models: list
    in_mask: np.ndarray
    kind: str = "pool"

    def __len__(self):
        return len(self.models)

    def adapters(self):
        return iter(self.models)


class Bag:
    """Embeds a sequence as a random projection of its codes; records it has learned carry what else they held."""

    abilities = frozenset({"embed"})
    vocabulary = V
    longest: int | None = None

    def __init__(self, seed=0, learned=(), strength=3.0):
        self.matrix = np.random.default_rng(seed).normal(size=(V, 8)) / 3.0
        self.learned = {tuple(x): y for x, y in learned}
        self.strength, self.seen = strength, []

    def embed(self, sequences: Ragged):
        rows = [sequences[i].tolist() for i in range(len(sequences))]
        self.seen = rows
        assert self.longest is None or max(map(len, rows)) <= self.longest
        known = np.array([self.learned.get(tuple(row), 0.0) for row in rows])
        bag = np.stack([self.matrix[row].mean(axis=0) for row in rows])
        return np.column_stack([bag, self.strength * known])


def cohort(seed, members=150, held_out=150, rate=0.25, records=1):
    """Records of 6 to 12 codes with a static head; holders have more of codes 3 to 5 and the secret in between."""
    rng = np.random.default_rng(seed)
    n = (members + held_out) * records
    has = np.repeat(rng.random(members + held_out) < rate, records)
    rows = []
    for i in range(n):
        codes = rng.integers(3, 30, rng.integers(5, 11))
        if has[i]:
            codes[:2] = rng.integers(3, 6, 2)
            codes = np.insert(codes, rng.integers(1, len(codes)), SECRET)
        rows.append([1, 2, *codes])
    subject = Subject(
        n_members=members * records,
        patient=np.repeat(np.arange(members + held_out), records),
        content=RecordContent.from_codes(Ragged.from_lists(rows)),
        static=np.full(n, 2),
    )
    return subject, has


def asked(model, models=(), mask=None, n=0):
    mask = np.zeros((len(models), n), bool) if mask is None else mask
    return Asked(
        target=model,
        references=Pool(list(models), mask),
        loss=np.zeros(n),
        reference_loss=np.zeros((len(models), n)),
    )


def learned(subject, has, which):
    sequences = subject.sequences
    return [
        ([c for c in sequences[i] if c != SECRET], 1.0 if has[i] else -1.0) for i in np.flatnonzero(which)
    ]


def test_a_trace_in_embeddings_of_members_is_found_and_codes_are_gone():
    subject, has = cohort(0)
    model = Bag(learned=learned(subject, has, subject.member))
    found = EmbeddingProbe(categories={"hiv": [SECRET]}).run(subject, asked(model, n=300), Budget())
    assert not any(SECRET in row for row in model.seen) and all(row[:2] == [1, 2] for row in model.seen)
    for kind in ("linear", "mlp"):
        assert found.numbers[f"hiv.{kind}.minus_held_out"].low > 0.05
        assert found.numbers[f"hiv.{kind}.held_out_auc"].low > 0.5  # what codes 3 to 5 imply
    assert (
        found.numbers["strongest.minus_held_out"].low > 0
        and "Bonferroni over 2" in found.numbers["strongest.minus_held_out"].method
    )
    assert len(found.flagged) and has[found.flagged].all() and (found.flagged < 150).all()
    evidence = found.evidence["hiv"]
    assert has[evidence.row].all() and len(evidence.row) == has.sum()
    assert np.isnan(evidence.p_value[evidence.row >= 150]).all() and "above zero" in found.answer
    assert all(len(row) == len(found.tables["attributes"].columns) for row in found.tables["attributes"].rows)


def test_a_code_in_the_static_head_stays():
    subject, _ = cohort(1)
    model = Bag()
    EmbeddingProbe(categories={"head": [2], "hiv": [SECRET]}, attackers=("linear",)).run(
        subject, asked(model, n=300), Budget()
    )
    assert all(row[1] == 2 for row in model.seen)


@pytest.mark.parametrize(("members", "held_out", "records"), [(150, 150, 1), (200, 60, 1), (80, 60, 3)])
def test_where_both_sides_are_embedded_alike_the_difference_covers_zero(members, held_out, records):
    runs, wrong, above, flagged = 60, 0, 0, 0
    for seed in range(runs):
        subject, _ = cohort(seed, members, held_out, records=records, rate=0.3)
        found = LINEAR.run(subject, asked(Bag(seed), n=len(subject)), Budget(seed=seed))
        if not found.numbers:
            continue
        wrong += not found.numbers["hiv.linear.minus_held_out"].covers(0)
        above += found.numbers["strongest.minus_held_out"].low > 0
        flagged += len(found.flagged) > 0
    assert stats.binom.sf(wrong - 1, runs, 0.05) > 0.005
    assert stats.binom.sf(above - 1, runs, 0.025) > 0.005
    assert stats.binom.sf(flagged - 1, runs, 0.1) > 0.005


def test_the_difference_covers_at_ten_holders_a_side():
    rng, wrong, runs = np.random.default_rng(0), 0, 600
    held = np.tile(np.repeat([True, False], [10, 90]), 2)
    for _ in range(runs):
        one = Readings(
            patient=np.arange(200),
            member=np.arange(200) < 100,
            held=held,
            odds=rng.normal(size=200) + 1.2 * held,
        )
        wrong += not area_difference(one).covers(0)
    assert wrong / runs < 0.065


def test_references_are_a_null_of_their_own():
    subject, has = cohort(2)
    everybody = learned(subject, has, np.ones(300, bool))
    rng = np.random.default_rng(0)
    mask = np.zeros((2, 300), bool)
    mask[0] = rng.random(300) < 0.5
    mask[1] = ~mask[0]
    models = [Bag(5, [x for x, m in zip(everybody, row, strict=True) if m]) for row in mask]
    target = Bag(learned=learned(subject, has, subject.member))
    found = LINEAR.run(subject, asked(target, models, mask, 300), Budget())
    assert found.settings["references"] == 2
    null = found.numbers["hiv.reference_minus_held_out"]
    assert null.n == 300 and null.covers(0) and found.numbers["hiv.linear.minus_held_out"].low > 0
    # only patients whom it never saw are embedded
    assert len(models[0].seen) == int((~mask[0]).sum())


@pytest.mark.parametrize("k", [0, 1])
def test_without_references_the_second_null_is_missing(k):
    subject, _ = cohort(3)
    mask = np.ones((k, 300), bool)
    found = LINEAR.run(subject, asked(Bag(), [Bag(1)] * k, mask, 300), Budget())
    assert "hiv.reference_minus_held_out" not in found.numbers
    assert any("reference" in gap.what.lower() for gap in found.not_tested)


@pytest.mark.parametrize(("rate", "held_out"), [(0.02, 150), (0.25, 10), (0.25, 1)])
def test_few_holders_are_not_tested_and_small_cells_not_told(rate, held_out):
    subject, has = cohort(4, 150, held_out, rate=rate)
    found = LINEAR.run(subject, asked(Bag(), n=len(subject)), Budget())
    assert not found.numbers
    why = found.not_tested[-1].why
    few = int(has[150:].sum())
    assert ("<5 held-out patients who hold it" in why) == (0 < few < 5) and "10 are needed" in why
    assert found.not_tested[-1].what == "Category hiv"


def test_small_cells_cannot_be_asked_for():
    with pytest.raises(MemguardError, match="min_holders = 3"):
        EmbeddingProbe(min_holders=3)


def test_models_that_embed_nothing_and_models_that_embed_badly():
    subject, _ = cohort(5)
    assert not LINEAR.run(subject, asked(None, n=300), Budget()).numbers

    class Broken(Bag):
        def embed(self, sequences):
            return np.full((len(sequences), 3), np.nan)

    found = LINEAR.run(subject, asked(Broken(), n=300), Budget())
    assert "finite" in found.not_tested[-1].why
    features = Subject(n_members=1, patient=np.arange(2), content=RecordContent.from_features(np.eye(2)))
    assert not LINEAR.run(features, asked(Bag(), n=2), Budget()).numbers


def test_without_names_or_categories_nothing_is_guessed():
    subject, _ = cohort(6)
    found = EmbeddingProbe().run(subject, asked(Bag(), n=300), Budget())
    assert "no token" in found.not_tested[0].why
    names = [f"LAB//{i}" for i in range(V)]
    names[SECRET] = "DIAGNOSIS//ICD//10//B20"
    object.__setattr__(subject, "names", tuple(names))
    found = EmbeddingProbe(attackers=("linear",)).run(subject, asked(Bag(), n=300), Budget())
    assert "hiv.linear.minus_held_out" in found.numbers and any("review" in note for note in found.notes)


def test_categories_that_are_no_tokens():
    subject, _ = cohort(7)
    with pytest.raises(DataError, match="token 99"):
        EmbeddingProbe(categories={"x": [99]}).run(subject, asked(Bag(), n=300), Budget())
    with pytest.raises(DataError, match=r"shape \(40, 2\)"):
        EmbeddingProbe(categories={"x": np.ones((V, 2), bool)}).run(subject, asked(Bag(), n=300), Budget())


def test_a_light_budget_and_a_short_model():
    subject, _ = cohort(8)
    model = Bag()
    model.longest = 9
    found = EmbeddingProbe(categories={"hiv": np.arange(V) == SECRET}).run(
        subject, asked(model, [Bag(1)], None, 300), Budget(size="light", patients=100)
    )
    assert len(model.seen) == 200 and "hiv.mlp.minus_held_out" not in found.numbers
    assert found.settings["references"] == 0


def test_a_record_of_nothing_else_is_left_out():
    subject, _ = cohort(9)
    sequences = [subject.sequences[i].tolist() for i in range(300)]
    sequences[0], static = [SECRET], subject.static.copy()
    static[0] = 0
    other = Subject(
        n_members=150,
        patient=subject.patient,
        content=RecordContent.from_codes(Ragged.from_lists(sequences)),
        static=static,
    )
    found = LINEAR.run(other, asked(Bag(), n=300), Budget())
    assert found.not_tested[0].what == "1 records" and 0 not in found.evidence["hiv"].row


def test_without_scikit_learn_it_says_so(monkeypatch):
    subject, _ = cohort(10)
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    found = LINEAR.run(subject, asked(Bag(), n=300), Budget())
    assert not found.numbers and "memguard-ehr[audit]" in found.not_tested[-1].fix


def test_average_precision_is_that_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    for ties in (False, True):
        odds, held = rng.normal(size=80), rng.random(80) < 0.3
        odds = odds.round(1) if ties else odds
        found = average_precision(odds, held)
        assert found.value == pytest.approx(metrics.average_precision_score(held, odds))
        assert found.low < found.value < found.high


def test_the_interval_of_average_precision_covers():
    rng, runs, wrong = np.random.default_rng(1), 300, 0
    held = np.repeat([True, False], [200_000, 800_000])
    truth = average_precision(np.random.default_rng(2).normal(size=1_000_000) + held, held).value
    for _ in range(runs):
        mine = np.repeat([True, False], [40, 160])
        wrong += not average_precision(rng.normal(size=200) + mine, mine).covers(truth)
    assert stats.binom.sf(wrong - 1, runs, 0.05) > 0.005
    perfect = average_precision(np.arange(20.0), np.arange(20) >= 10)
    assert perfect.value == perfect.high == 1.0 and 0.5 < perfect.low < 0.9


def test_folds_are_by_patient_and_even():
    rng = np.random.default_rng(0)
    patient = np.sort(rng.integers(0, 100, 400))
    held = np.stack([rng.random(400) < 0.05, rng.random(400) < 0.3], axis=1)
    fold = patient_folds(patient, patient < 60, held, 5, 0)
    assert all(len(np.unique(fold[patient == p])) == 1 for p in np.unique(patient))
    rare = [len(np.unique(patient[held[:, 0] & (fold == f) & (patient < 60)])) for f in range(5)]
    assert max(rare) - min(rare) <= 1


def test_references_are_joined_by_ranks():
    one = Readings(
        patient=np.array([1, 2, 3]),
        member=np.ones(3, bool),
        held=np.zeros(3, bool),
        odds=np.array([5.0, 7, 9]),
    )
    two = Readings(
        patient=np.array([3, 4]),
        member=np.array([True, False]),
        held=np.zeros(2, bool),
        odds=np.array([0.0, 1]),
    )
    both = joined([one, None, two])
    assert both.patient.tolist() == [1, 2, 3, 4] and both.member.tolist() == [True, True, True, False]
    z = stats.norm.ppf
    assert both.odds == pytest.approx([z(1 / 6), 0.0, (z(5 / 6) + z(1 / 4)) / 2, z(3 / 4)])
    assert joined([None]) is None
