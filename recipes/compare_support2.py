"""Mitigations compared on real patients (SUPPORT2): a classifier of death in hospital.

    python -m recipes.compare_support2                  # the whole study: about twenty minutes of one core
    python -m recipes.compare_support2 --arms flood "DP-SGD, epsilon 50"

The study itself is `compare_support2.yaml`, beside this file. A patient is one row here: noise for a record and noise
for a patient are the same promise, and one arm stands for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from memguard.report.comparison import Comparison

from .compare_nafld import run

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> Comparison:
    """Run the study.

    Args:
        argv: Command line; `None` reads the real one.
    """
    return run(Path(__file__).with_suffix(".yaml"), "runs/compare_support2", argv)


if __name__ == "__main__":
    main()
