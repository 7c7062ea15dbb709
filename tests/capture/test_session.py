"""Capture on real fits: ids by content, losses by hand, and a run that is bitwise the same."""

from __future__ import annotations

import sys
import pathlib

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import pytest
from _modules import *
from _modules import N, Classifier, Codes, NextCode, assert_exact, assert_same_run, fit, loaders

pytestmark = pytest.mark.filterwarnings("ignore")


def both(make, make_loaders, **kwargs):
    plain = fit(make, make_loaders, watched=False, **kwargs)
    watched = fit(make, make_loaders, watched=True, **kwargs)
    assert_same_run(plain, watched)
    return watched


@pytest.mark.parametrize("make,data", [(Classifier, Rows), (NextCode, Codes)])
def test_core(make, data):
    module, driver, _, _ = both(make, loaders(data=data))
    assert_exact(module, driver)
    assert_exact(module, driver, stage="val")
