"""Lets the tests of references share ``_reference_models.py``, also under pytest's importlib mode."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
