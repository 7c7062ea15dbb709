"""What holds for every test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from torch.utils.data import BatchSampler, DataLoader

_METHODS = [
    (owner, name, getattr(owner, name))
    for owner in (DataLoader, BatchSampler)
    for name in ("__init__", "__setattr__", "__delattr__")
]


@pytest.fixture(autouse=True)
def loaders_stay_as_they_are() -> Iterator[None]:
    """Fail a test that leaves torch's loader classes as Lightning changes them while a Trainer asks for loaders.

    Lightning does not change them back where that fails; every later test would then see other loaders.
    """
    yield
    changed = [each for each in _METHODS if getattr(each[0], each[1]) is not each[2]]
    for owner, name, method in changed:
        setattr(owner, name, method)
        if f"__old{name}" in vars(owner):
            delattr(owner, f"__old{name}")
    assert not changed, f"left changed: {changed}"
