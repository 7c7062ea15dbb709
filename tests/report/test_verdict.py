from __future__ import annotations

import re

import pytest
from fake_watch import about, point, report

from memguard.report.verdict import verdict
from memguard.report.words import does_not_show, shows, unranked

FORBIDDEN = re.compile(r"anonym|\bsafe|complian|unsafe", re.IGNORECASE)

CASES = {
    "leaks": {},
    "chance": {"curve": [point(3, auc=about(0.51, 0.03), flagged_patients=0)], "flagged_identifiable": 0},
    "below": {"curve": [point(3, auc=about(0.42, 0.03))]},
    "unranked": {"curve": [point(3, flagged_patients=None)], "flagged_identifiable": None},
    "small": {"curve": [point(3, flagged_patients=3)], "flagged_identifiable": 1},
    "nothing": {"curve": [], "notes": []},
    "records": {"unit": "record"},
    "blind": {"curve": [point(9, blind_auc=about(0.6, 0.03))]},
    "overtrained": {"curve": [point(40, memorized_share=about(0.83, 0.07))]},
}


@pytest.mark.parametrize("case", CASES)
def test_never_a_forbidden_word_and_always_a_sentence(case):
    one = report(**CASES[case])
    everything = " ".join(
        [one.verdict(), verdict(one).timing, *does_not_show(one), *(t for _, t in shows(one))]
    )
    assert not FORBIDDEN.search(everything)
    assert one.verdict().endswith(".")
    assert "None" not in everything
    assert "nan" not in everything.split()


def test_the_sentence():
    curve = [point(24, auc=about(0.91, 0.02), flagged_patients=412)]
    assert verdict(report(curve=curve)).headline == (
        "At epoch 24 the membership AUC is .91 [.89, .93] (chance: .50); 412 of 4,000 patients are flagged "
        "as memorized at a 10 % false-discovery rate, 31 of them are also identifiable."
    )


def test_chance_is_said_to_be_no_more_than_that():
    text = report(**CASES["chance"]).verdict()
    assert "cannot tell from chance" in text
    assert "none of 4,000 patients is flagged" in text


def test_who_was_not_ranked_is_neither_flagged_nor_cleared():
    short = point(3, flagged_patients=None, refused="40 held-out patients, and a ranking needs 100")
    text = report(curve=[short], n_ranked=0, flagged_identifiable=None).verdict()
    assert "were not ranked (40 held-out patients, and a ranking needs 100), so nobody is flagged" in text
    assert "none of" not in text
    looks = [point(e, refused=f"r = {e / 10:.2f}") for e in (1, 2, 4)] + [point(4, refused="no loss")]
    between = point(2, epoch=2.5, refused="the epoch is not over")
    assert unranked([*looks, between, point(5)]) == [
        "Epochs 1 to 2, 4: nobody is ranked (r = 0.40; the number is of epoch 4).",
        "Epoch 4: nobody is ranked (no loss).",
    ]


def test_small_counts_are_suppressed():
    text = report(**CASES["small"]).verdict()
    assert "<5 of 4,000 patients are flagged" in text
    assert "<5 of them" in text
    assert not re.search(r"\b[13] of", text)


def test_record_unit_blind_baseline_and_overtraining_are_said():
    assert "The unit is the record" in report(**CASES["records"]).verdict()
    assert "records are flagged" in report(**CASES["records"]).verdict()
    assert "never saw the model" in report(**CASES["blind"]).verdict()
    assert "never saw the model" not in report().verdict()
    assert "83 % [76 %, 90 %]" in report(**CASES["overtrained"]).verdict()


def test_missing_numbers_give_their_reason():
    one = report(curve=[], notes=["only 40 held-out patients, 100 are needed."])
    assert one.verdict() == ("No membership number was measured: only 40 held-out patients, 100 are needed.")


@pytest.mark.parametrize(
    ("rises", "best", "said"),
    [(2, 5, "3 epochs later"), (5, 4, "1 epoch earlier"), (4, 4, "at that same epoch")],
)
def test_timing_tells_before_from_after(rises, best, said):
    curve = [
        point(e, held_out_loss=2.0 + abs(e - best), auc=about(0.7 if e >= rises else 0.5, 0.05))
        for e in range(1, 8)
    ]
    timing = verdict(report(curve=curve)).timing
    assert f"above chance from epoch {rises} on" in timing
    assert said in timing
