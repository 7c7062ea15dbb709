"""Lets the tests of references share ``_models.py``, also under pytest's importlib mode."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def unstated(monkeypatch):
    """No statement at the end of a private fit: its accountants take longer than the training."""
    from memguard.callbacks.dpsgd import DPSGD

    monkeypatch.setattr(DPSGD, "_write_statement", lambda dpsgd: None)
