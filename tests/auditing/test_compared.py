"""What an audit without trained references compares the model with."""

from __future__ import annotations

import numpy as np

from memguard.auditing.compared import compared
from memguard.auditing.models import Prepared
from memguard.probes.subject import Subject
from memguard.records.content import Ragged, RecordContent


class Unread:
    """Nothing of the sides is needed beyond their contents."""

    def __init__(self, content):
        self.content = content


def losses(held_out):
    codes = Ragged.from_lists([[1, 2, 3], [1, 2, 4], [1, 3, 4], *held_out])
    content = RecordContent.from_codes(codes)
    subject = Subject(n_members=3, patient=np.arange(len(codes)), content=content)
    models, loss, said = compared(
        Prepared(pool=None, loss=np.zeros((0, len(codes)))), "counts", None, subject, Unread(content)
    )
    assert said.kind == models.kind == "counts" and "training records" in said.notes[-1]
    return loss[0]


def test_counts_know_of_held_out_patients_what_the_model_knows_of_them():
    """Nothing: a code that two held-out patients share is as strange to counts as to a model of the members."""
    alone = losses([[1, 5, 6], [1, 2, 3]])
    shared = losses([[1, 5, 6], [1, 5, 6]])
    assert shared[3] == alone[3]
    assert shared[3] > alone[4]  # the second held-out record holds what members hold


def test_a_member_is_left_out_of_the_counts():
    codes = [[1, 2, 3], [1, 2, 4], [1, 3, 4]]
    kept = losses([[1, 4, 4]])
    copied, stranger = losses([codes[0]]), losses([[1, 4, 4], codes[0]])
    assert copied[0] == kept[0]  # a held-out copy of a member adds nothing to what is known of him
    assert stranger[4] < kept[0]  # somebody else with the same codes is known through the member
