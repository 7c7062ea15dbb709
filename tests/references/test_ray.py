"""References as Ray tasks, on a real Ray with two workers."""

from __future__ import annotations

import os

import pytest
from _reference_models import SETTINGS, Broken, Net, data, same, sides

from memguard.errors import ReferenceModelError
from memguard.references.halves import halves
from memguard.references.pool import train_pool

ray = pytest.importorskip("ray")


def pool(backend, factory=Net, folder=None, k=4, **options):
    return train_pool(
        factory,
        data(),
        in_mask=halves(*sides(), k),
        trainer=SETTINGS,
        backend=backend,
        folder=folder,
        progress=False,
        **options,
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of Ray's own files
def test_two_workers_give_the_same_bits_as_one_after_another(tmp_path, monkeypatch):
    paths = os.environ.get("PYTHONPATH")
    found = pool("ray", folder=tmp_path, ray_workers=2)
    assert found.backend == "ray" and found.restored == (False,) * 4
    assert not ray.is_initialized(), "what was started is shut down"
    assert os.environ.get("PYTHONPATH") == paths
    for one, two in zip(found.modules(), pool("sequential").modules(), strict=True):
        assert same(one, two)
    with monkeypatch.context() as without:
        without.setattr(ray, "init", lambda **_: pytest.fail("started where nothing is left to do"))
        assert pool("ray", folder=tmp_path, ray_workers=2).restored == (True,) * 4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_ray_that_runs_is_used_and_left_running(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(__file__))
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        found = pool("ray", k=2)
        with pytest.raises(ReferenceModelError, match="no such column"):
            pool("ray", Broken, k=2)
        assert ray.is_initialized()
    finally:
        ray.shutdown()
    assert all(same(a, b) for a, b in zip(found.modules(), pool("sequential", k=2).modules(), strict=True))


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ReferenceModelError, match=r"memguard-ehr\[ray\]"):
        pool("ray")
