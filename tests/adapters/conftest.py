"""Lets the tests of adapters share ``_sequence_models.py``, also under pytest's importlib mode."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
