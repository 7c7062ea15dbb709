"""Do references resemble the audited model?"""

from __future__ import annotations

import numpy as np
import pytest

from memguard.errors import ReferenceModelError
from memguard.references.halves import halves
from memguard.references.match import match


def cohort(k=8, seed=0, n=300, members=200, records=2):
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(n), records)
    member = patient < members
    masks = halves(patient, member, k, seed=seed)
    hard = rng.normal(2.0, 0.5, n)[patient]
    noise = rng.normal(0, 0.05, (k + 1, len(patient)))
    loss = hard - 0.6 * member + noise[0]
    return loss, hard - 0.6 * masks + noise[1:], masks, member, patient


def test_models_of_one_kind_match_and_numbers_are_plain_means():
    loss, theirs, masks, member, patient = cohort()
    found = match(loss, theirs, masks, member, patient)
    assert found.matches and (found.failed, found.underfit, found.overfit, found.unlike) == ((),) * 4
    one = [np.mean([theirs[2][patient == p].mean() for p in np.unique(patient[~masks[2]])])]
    np.testing.assert_allclose(found.held_out[2], one[0])
    both = [np.mean((theirs[2] - loss)[(patient == p)]) for p in np.unique(patient[masks[2] & member])]
    np.testing.assert_allclose(found.inside[2], np.mean(both))
    np.testing.assert_allclose(found.target_gap, loss[~member].mean() - loss[member].mean())
    assert "They match the audited model" in str(found) and "8 references" in str(found)


def test_a_patient_counts_once():
    loss, theirs, masks, member, patient = cohort(records=1)
    many = np.concatenate([np.arange(300), np.full(500, 250)])
    once = match(loss, theirs, masks, member, patient)
    often = match(loss[many], theirs[:, many], masks[:, many], member[many], patient[many])
    np.testing.assert_allclose(once.outside, often.outside)
    np.testing.assert_allclose(once.target_held_out, often.target_held_out)


@pytest.mark.parametrize(
    ("inside", "outside", "which"),
    [(0.5, 0.0, "underfit"), (-0.9, 0.0, "overfit"), (0.0, 0.4, "unlike"), (np.nan, np.nan, "failed")],
)
@pytest.mark.parametrize("who", [(1,), (0, 1, 2), tuple(range(8))])
def test_what_does_not_match_is_named(inside, outside, which, who):
    loss, theirs, masks, member, patient = cohort()
    rows = list(who)
    theirs[rows] += np.where(masks[rows], inside, outside)
    found = match(loss, theirs, masks, member, patient)
    assert not found.matches and getattr(found, which) == who
    assert f"References {', '.join(map(str, who))}" in str(found) and "do not all match" in str(found)


def test_hard_patients_are_no_mismatch():
    loss, theirs, masks, member, patient = cohort()
    shift = 3.0 * (patient % 7 == 0)
    assert match(loss + shift, theirs + shift, masks, member, patient).matches


def test_a_wide_spread_allows_more_and_few_references_do_not_say_how_wide():
    loss, theirs, masks, member, patient = cohort()
    level = np.linspace(-0.3, 0.3, 8)[:, None]
    assert match(loss, theirs + level, masks, member, patient).matches
    few = match(loss, theirs[:2] + level[:2], masks[:2], member, patient)
    assert few.allowed_outside == pytest.approx(0.05 * few.target_held_out) and few.unlike == (0, 1)


def test_losses_that_were_not_measured_are_left_out():
    loss, theirs, masks, member, patient = cohort(records=1)
    loss[::3] = np.nan
    found = match(loss, theirs, masks, member, patient)
    kept = np.arange(len(loss)) % 3 > 0
    again = match(loss[kept], theirs[:, kept], masks[:, kept], member[kept], patient[kept])
    np.testing.assert_allclose(found.outside, again.outside)
    assert found.matches


def test_bad_input_is_refused():
    loss, theirs, masks, member, patient = cohort()
    with pytest.raises(ReferenceModelError, match="losses"):
        match(loss[1:], theirs, masks, member, patient)
    with pytest.raises(ReferenceModelError, match="all held-out patients"):
        match(loss, theirs, masks | ~member, member, patient)
