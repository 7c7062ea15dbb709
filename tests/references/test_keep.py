"""Finished references on disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import _killed
import numpy as np
import pytest
import torch
from _reference_models import SETTINGS, Net, Tied, data, same, sides

from memguard.errors import MemguardWarning, ReferenceModelError
from memguard.references.halves import halves
from memguard.references.job import Trained
from memguard.references.keep import Keep
from memguard.references.pool import train_pool


def pool(folder, factory=Net, k=2, *, members=28, trainer=SETTINGS, records=None, seed=0):
    masks = halves(*sides(40, members), k, seed=seed)
    records = data() if records is None else records
    return train_pool(
        factory,
        records,
        in_mask=masks,
        trainer=trainer,
        backend="sequential",
        folder=folder,
        seed=seed,
        progress=False,
    )


@pytest.mark.parametrize("factory", [Net, Tied])
def test_kept_references_are_the_same_and_are_not_trained_again(tmp_path, factory):
    plain = pool(None, factory)
    first, second = pool(tmp_path, factory), pool(tmp_path, factory)
    assert first.restored == (False, False) and second.restored == (True, True)
    assert (first.steps, first.epochs) == (second.steps, second.epochs) == ((6, 6), (2, 2))
    for a, b, c in zip(plain.modules(), first.modules(), second.modules(), strict=True):
        assert same(a, b) and same(b, c)
    more = pool(tmp_path, factory, k=4)
    assert more.restored == (True, True, False, False)
    assert more.notes[0] == "2 of 4 references were kept from before."


def test_tied_weights_are_kept_once_and_stay_tied(tmp_path):
    found = pool(tmp_path, Tied, k=1)
    meta = json.loads(next(tmp_path.glob("*/meta.json")).read_text())
    assert meta["aliases"] == {"net.2.weight": "net.0.weight"}
    module = next(found.modules())
    assert module.net[0].weight is module.net[2].weight
    assert not torch.equal(module.net[0].weight, Tied().net[0].weight)


def test_only_the_owner_can_read_and_nothing_else_is_left(tmp_path):
    folder = tmp_path / "new" / "references"
    old = os.umask(0)
    try:
        pool(folder, k=1)
    finally:
        os.umask(old)
    assert folder.stat().st_mode & 0o777 == 0o700
    (kept,) = folder.iterdir()
    assert kept.stat().st_mode & 0o777 == 0o700
    assert sorted(path.name for path in kept.iterdir()) == ["meta.json", "weights.safetensors"]
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in kept.iterdir())


RATE = 1e-2


class Constant(Net):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=RATE)


class Commented(Net):
    def forward(self, x):
        return self.net(x)


def _recommented():
    class Commented(Net):
        """With a docstring."""

        def forward(self, x):
            # and a comment
            return self.net(x)

    Commented.__qualname__ = "Commented"
    return Commented


def _changed():
    class Commented(Net):
        def forward(self, x):
            return self.net(2 * x)

    Commented.__qualname__ = "Commented"
    return Commented


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (
            {"factory": partial(Net, lr=3e-3)},
            {"factory": partial(Net, lr=1e-3)},
            ["learning rate 0.003 -> 0.001"],
        ),
        ({}, {"trainer": {**SETTINGS, "max_epochs": 3}}, ["epochs 2 -> 3"]),
        ({}, {"records": data(batch_size=4)}, ["batch_size 8 -> 4"]),
        ({}, {"records": data(seed=1)}, ["data"]),
        ({}, {"records": data(patient=np.arange(40)[::-1])}, ["data"]),
        ({}, {"members": 20}, ["mask"]),
        ({"factory": partial(Net, width=4)}, {}, ["width 4 -> 8"]),
        ({"factory": Commented}, {"factory": _changed()}, ["code of tests.references.test_keep.Commented"]),
    ],
)
def test_a_miss_names_what_changed(tmp_path, before, after, said):
    pool(tmp_path, **before)
    found = pool(tmp_path, **after)
    assert found.restored == (False, False)
    (note,) = found.notes
    assert note.startswith("2 kept references do not fit any more: ")
    for what in said:
        assert what in note
    if said[0] in ("data", "mask"):
        assert note.endswith(f": {said[0]}.")


def test_a_comment_changes_nothing_and_a_constant_does(tmp_path, monkeypatch):
    pool(tmp_path, Commented)
    assert pool(tmp_path, _recommented()).restored == (True, True)
    pool(tmp_path, Constant)
    monkeypatch.setitem(globals(), "RATE", 2e-2)
    found = pool(tmp_path, Constant)
    assert found.restored == (False, False) and "RATE 0.01 -> 0.02" in found.notes[0]


def test_another_seed_is_another_pool(tmp_path):
    pool(tmp_path)
    found = pool(tmp_path, seed=1)
    assert found.restored == (False, False) and "seed" in found.notes[0]


@pytest.mark.parametrize("name", ["weights.safetensors", "meta.json"])
def test_a_damaged_reference_is_trained_again(tmp_path, name):
    first = pool(tmp_path, k=1)
    weights = next(first.modules()).state_dict()
    (file,) = tmp_path.glob(f"*/{name}")
    body = bytearray(file.read_bytes())
    body[len(body) // 2] ^= 0xFF
    file.write_bytes(bytes(body))
    with pytest.raises(ReferenceModelError, match="gone or damaged"):
        next(first.modules())
    with pytest.warns(MemguardWarning, match="trained again"):
        second = pool(tmp_path, k=1)
    assert second.restored == (False,)
    assert all(
        torch.equal(weights[name], value) for name, value in next(second.modules()).state_dict().items()
    )
    assert pool(tmp_path, k=1).restored == (True,)


def test_a_full_disk_leaves_no_half_reference(tmp_path, monkeypatch):
    keep = Keep(tmp_path)
    monkeypatch.setattr(Path, "rename", lambda *args: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(ReferenceModelError, match="No space left"):
        keep.put({"seed": [0, 0]}, Trained(state={"w": torch.ones(1)}, steps=1, epochs=1, seconds=0.0))
    assert list(tmp_path.iterdir()) == []


def test_what_the_disk_does_not_take_stays_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "rename", lambda *args: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.warns(MemguardWarning, match="No space left"):
        found = pool(tmp_path, k=1)
    assert list(tmp_path.iterdir()) == [] and same(next(found.modules()), next(pool(None, k=1).modules()))


def test_two_processes_may_finish_the_same_reference(tmp_path):
    recipe, trained = {"seed": [0, 0]}, Trained(state={"w": torch.ones(1)}, steps=1, epochs=1, seconds=0.0)
    Keep(tmp_path).put(recipe, trained)
    Keep(tmp_path).put(recipe, trained)
    assert [path.name for path in tmp_path.iterdir()] == [Keep(tmp_path).path(recipe).name]
    assert Keep(tmp_path).get(recipe).state["w"].item() == 1


def test_what_dead_processes_left_is_removed_and_what_live_ones_write_is_not(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for pid in (dead.pid, os.getpid()):
        (tmp_path / f".partial-{pid}-{'0' * 32}").mkdir()
    Keep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f".partial-{os.getpid()}-{'0' * 32}"]


def test_a_killed_pool_goes_on_with_what_is_finished(tmp_path):
    folder = tmp_path / "references"
    script = str(Path(_killed.__file__))
    environment = {**os.environ, "WAIT_IN": str(folder)}
    process = subprocess.Popen([sys.executable, script], cwd=Path(script).parent, env=environment)
    try:
        deadline = time.monotonic() + 300
        while not (tmp_path / "waiting").exists():
            assert process.poll() is None and time.monotonic() < deadline, "it did not get so far"
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    finished = {path: path.stat().st_mtime_ns for path in folder.glob("[0-9a-f]*/weights.safetensors")}
    assert len(finished) == 2
    found = _killed.pool(folder)
    assert found.restored == (True, True, False, False)
    assert all(path.stat().st_mtime_ns == when for path, when in finished.items())
    for a, b in zip(found.modules(), _killed.pool(None).modules(), strict=True):
        assert same(a, b)
