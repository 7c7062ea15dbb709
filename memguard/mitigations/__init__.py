"""What to do about memorization: policies, arrays in and weights out. None of them gives a guarantee."""

from memguard.mitigations.books import Books, Epoch
from memguard.mitigations.policies import (
    at_worst,
    drop_weights,
    flood_weights,
    floor_weights,
    reweight,
    severity_weights,
    worst,
)

__all__ = [
    "Books",
    "Epoch",
    "at_worst",
    "drop_weights",
    "flood_weights",
    "floor_weights",
    "reweight",
    "severity_weights",
    "worst",
]
