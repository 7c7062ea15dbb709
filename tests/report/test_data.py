from __future__ import annotations

import json
import math

import numpy as np
import pytest
from fake_watch import about, point, report

from memguard.errors import DataError
from memguard.report.data import SCHEMA, CurvePoint, WatchReport


def test_json_round_trip_is_exact():
    one = report(roc=[(0.01, 0.2), (1.0, 1.0)])
    assert WatchReport.from_json(one.to_json()) == one


def test_json_takes_numpy_numbers_and_has_no_nan():
    curve = [
        point(
            1,
            held_out_loss=np.float32(2.5),
            step=np.int64(7),
            train_loss=float("nan"),
            auc=about(math.nan, 0),
        )
    ]
    text = report(curve=curve).to_json()
    assert "NaN" not in text
    again = WatchReport.from_json(text)
    assert again.curve[0].train_loss is None
    assert again.curve[0].held_out_loss == 2.5
    assert again.curve[0].step == 7
    assert math.isnan(again.curve[0].auc.value)


def test_unknown_keys_are_left_out():
    body = json.loads(report().to_json()) | {"later": 1}
    body["curve"][0]["later"] = 2
    assert WatchReport.from_json(json.dumps(body)) == report()


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"schema": "memguard.watch/2"}', f'{{"schema": "{SCHEMA}"}}', "{"]
)
def test_what_is_no_report_is_refused(text):
    with pytest.raises(DataError):
        WatchReport.from_json(text)


def test_best_epoch_comes_from_the_curve_and_may_be_given():
    losses = {1: 3.0, 2: 2.0, 3: math.nan, 4: None, 5: 2.0}
    curve = [point(epoch, held_out_loss=loss) for epoch, loss in losses.items()]
    assert report(curve=curve).best_epoch == 2
    assert report(curve=curve, best_epoch=5).best.epoch == 5
    assert report(curve=[point(1, held_out_loss=None)]).best is None


def test_curve_is_put_in_order_of_time():
    assert [p.epoch for p in report(curve=[point(3), point(1), point(2)]).curve] == [1, 2, 3]


def test_first_above_chance_needs_every_later_look():
    lows = [0.45, 0.52, 0.48, 0.51, 0.6]
    curve = [point(i, auc=about(low + 0.05, 0.05)) for i, low in enumerate(lows)]
    assert report(curve=curve).first_above_chance.epoch == 3
    assert report(curve=[point(0, auc=about(0.5, 0.02))]).first_above_chance is None


def test_last_is_the_last_with_a_number():
    curve = [point(1), point(2, auc=None), point(3, auc=about(math.nan, 0))]
    assert report(curve=curve).last.epoch == 1
    assert report(curve=[]).last is None


def test_counts_fall_back_to_the_curve():
    one = report(curve=[point(1, flagged_patients=7)], n_ranked=None)
    assert one.flagged_patients == 7
    assert one.n_ranked == one.n_members
    assert isinstance(one.curve[0], CurvePoint)
